"""A pipeline with a query that fans out and one that fans in, killed for real and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import ask, experiment, generate, here, infermesh, totals, wait_until, write_experiment, write_jsonl

DOCUMENTS, PARTS = 60, 4
STAGES = {
    "chunks": {
        "kind": "sql",
        "query": "SELECT n, unnest(parts) AS part, generate_subscripts(parts, 1) AS i "
        "FROM (SELECT n, string_split(text, '|') AS parts FROM source)",
    },
    "summaries": {"model": "m", **generate("Sum up: {{ chunks.part }}", max_parallel_requests=8)},
    "merged": {
        "kind": "sql",
        "query": "SELECT n, string_agg(s.text, ' ' ORDER BY i) AS text, count(*) AS parts FROM chunks "
        "JOIN summaries s USING (row_id) WHERE s.status = 'done' GROUP BY n",
    },
    "titles": {"model": "m", **generate("A title for: {{ merged.text }}", max_parallel_requests=2)},
}


def settled(folder: Path) -> int:
    tables = [row[0] for row in ask(folder, "SELECT table_name FROM duckdb_tables()")]
    found = sum(
        ask(folder, f"SELECT count(*) FROM {stage}")[0][0] for stage in ("summaries", "titles") if stage in tables
    )
    return int(found)


def reached(simulator: Simulator, received: int) -> bool:
    return bool(totals(simulator)["received"] >= received)


@pytest.mark.long
def test_killed_in_each_stage_it_sends_only_the_rest(
    tmp_path: Path, launch: Launch, start_simulator: Callable[..., Simulator]
) -> None:
    simulator = start_simulator(latency_s=0.03)
    mapping = experiment(simulator.url, {})
    mapping["stages"] = STAGES
    write_experiment(tmp_path, mapping)
    rows = [
        {"n": n, "text": "|".join(f"Part {part} of document {n}." for part in range(PARTS))} for n in range(DOCUMENTS)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    folder = tmp_path / "outputs" / "one"
    command = ("run", "+experiment=mine", f"hydra.run.dir={folder}")
    whole = DOCUMENTS * PARTS + DOCUMENTS
    for received in (80, 160, DOCUMENTS * PARTS + 50):  # twice among the summaries, once among the titles
        process = launch(*command, cwd=tmp_path)
        wait_until(partial(reached, simulator, received), "requests to arrive")
        process.kill()
        process.wait()
    known = settled(folder)
    assert DOCUMENTS * PARTS < known < whole
    simulator.reset()
    ended = infermesh(*command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert totals(simulator)["received"] == whole - known
    assert ask(folder, "SELECT count(*), sum(parts) FROM merged_results WHERE titles_status = 'done'") == [
        (DOCUMENTS, DOCUMENTS * PARTS)
    ]
    assert ask(folder, "SELECT max(n) FROM (SELECT count(*) AS n FROM summaries GROUP BY row_id)") == [(1,)]


def test_rows_chosen_in_sql_are_done_again(tmp_path: Path, simulator: Simulator) -> None:
    mapping = experiment(simulator.url, {"answers": generate()})
    write_experiment(tmp_path, mapping)
    write_jsonl(tmp_path / "rows.jsonl", [{"n": n, "text": f"Text {n}."} for n in range(20)])
    assert here("run", "+experiment=mine", cwd=tmp_path).returncode == 0
    simulator.reset()
    shown = here("retry", "--stage", "answers", "--where", "row_id < 3", "--dry-run", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, "")
    assert "3 rows of answers where row_id < 3" in shown.stderr
    assert totals(simulator)["received"] == 0
    assert here("retry", "--stage", "answers", "--where", "row_id < 3", cwd=tmp_path).returncode == 0
    assert totals(simulator)["received"] == 3
    wrong = here("retry", "--stage", "answer", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.strip()) == (
        2,
        "error: --stage answer: no such stage over rows. Did you mean 'answers'?",
    )
