"""Runs, commands, retries and sweeps that are killed at random moments, again and again, and gone on with each time.

At each kill the tables are read, and what the service was asked is counted. A row that had settled by then keeps its
state to the end, and is never asked for again.
"""

from __future__ import annotations

import itertools
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.store.schema import DATABASE
from tests.chaos.service import CountingService
from tests.e2e.conftest import Launch
from tests.support import COMMAND_S, ask, environment, infermesh, wait_until, wav, write_experiment, write_jsonl
from tests.support import command as command_line

ROWS = 5_000
CLIPS = 25
KILLS = 30
FOLDER = Path("outputs/here")
# Stage → the texts of its requests at the service, by row_id.
STAGES = {
    "a": ("chat", "SELECT s.row_id, 'row ' || n FROM source s"),
    "v": ("embed", "SELECT s.row_id, 'vector ' || n FROM source s"),
    "b": ("chat", "SELECT s.row_id, 'again ' || n FROM q s"),
    "t": ("speech", "SELECT s.row_id, clip FROM source s WHERE clip IS NOT NULL"),
}
FUNCTION = """
import time
def tag(row):
    time.sleep(0.001)
    return {"tag": "tag of " + row["a"]["text"]}
"""


def project(root: Path, service: CountingService, rows: int) -> None:
    """Every kind of stage, over rows, over a query's rows, over another stage's answers; sinks of each kind."""
    (root / "tagging.py").write_text(FUNCTION)
    clips = [f"clip{n}.wav" for n in range(CLIPS)]
    for clip in clips:
        (root / clip).write_bytes(wav(clip))
    write_jsonl(root / "rows.jsonl", [{"n": n, "clip": f"clip{n}.wav" if n < CLIPS else None} for n in range(rows)])
    common = {"model": "m", "max_parallel_requests": 16}
    write_experiment(
        root,
        {
            "source": {"path": "rows.jsonl"},
            "deployments": {"d": {"model": "hosted_vllm/any", "api_base": service.url}},
            "models": {"m": {"deployments": ["d"], "timeout": 30.0}},
            "stages": {
                "a": {"kind": "generate", "prompt": "row {{ n }}", **common},
                "p": {
                    "kind": "python",
                    "function": "tagging:tag",
                    "reads": ["a"],
                    "columns": {"tag": "VARCHAR"},
                    "max_parallel_requests": 8,
                },
                "v": {"kind": "embed", "text": "vector {{ n }}", "micro_batch_size": 8, **common},
                "t": {"kind": "transcribe", "audio": "{{ clip }}", "where": "clip is not null", **common},
                "q": {
                    "kind": "sql",
                    "query": "SELECT s.n, p.tag FROM source s JOIN p USING (row_id) WHERE s.n % 2 = 0",
                },
                "b": {"kind": "generate", "prompt": "again {{ n }}", "rows": "q", **common},
            },
            "sinks": {
                "lines": {"path": "out.jsonl"},
                "table": {"path": "out.parquet", "columns": ["n", "a_text", "p_tag", "v_embedding"]},
                "again": {"path": "again.csv", "table": "q_results"},
            },
            "store": {"commit_interval": 0.05},
        },
    )


class Settled:
    """What has settled by each kill, and how often the service had been asked for it."""

    def __init__(self, folder: Path, service: CountingService) -> None:
        self._folder = folder
        self._service = service
        self.states: dict[tuple[str, int], Any] = {}
        self.asked: dict[tuple[str, str], int] = {}

    def look(self) -> None:
        """Compare with what was seen before, and remember what is new."""
        wait_until(lambda: self._service.in_flight == 0, "the service to be idle")
        if not (self._folder / DATABASE).exists():
            return
        with duckdb.connect(str(self._folder / DATABASE), read_only=True) as connection:
            tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            for stage in (*STAGES, "p"):
                if stage not in tables:
                    continue
                now = connection.execute(f"SELECT row_id, finished_at FROM {stage} WHERE status = 'done'").fetchall()
                found = {(stage, row): at for row, at in now}
                before = {key: at for key, at in self.states.items() if key[0] == stage}
                assert before.items() <= found.items(), f"{stage}: a settled row is gone, or was settled again"
                self.states |= found
                if stage in STAGES:
                    endpoint, sql = STAGES[stage]
                    new = {row for name, row in found.keys() - before.keys()}
                    for row, text in connection.execute(sql).fetchall():
                        if row in new:
                            self.asked[endpoint, text] = self._service.asked[endpoint, text]
        for thing, count in self.asked.items():
            assert self._service.asked[thing] == count, f"{thing} had settled, and was asked again"


def killed(process: subprocess.Popen[str], after_s: float) -> bool:
    """Whether the process was killed, after so many seconds; false if it had ended before."""
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(COMMAND_S)
        return True
    return False


def test_a_run_with_every_kind_of_stage(
    tmp_path: Path, service: CountingService, launch: Launch, chance: random.Random
) -> None:
    service.latency_s = 0.15  # some 40 seconds of work in all
    project(tmp_path, service, ROWS)
    settled = Settled(tmp_path / FOLDER, service)
    kills = 0
    for _ in itertools.count():
        process = launch("run", "+experiment=mine", f"hydra.run.dir={FOLDER}", cwd=tmp_path)
        # The first second starts Python, and the kills are to fall into each part of the work.
        if kills < KILLS and killed(process, chance.uniform(0.4, 3.5)):
            kills += 1
            settled.look()
            continue
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        if kills == KILLS:
            break
        pytest.fail(f"it was done after {kills} kills: there is too little work for {KILLS}")
    settled.look()
    folder = tmp_path / FOLDER
    for stage, rows in {"a": ROWS, "v": ROWS, "p": ROWS, "b": ROWS // 2, "t": ROWS, "q": ROWS // 2}.items():
        assert ask(folder, f"SELECT count(*), count(DISTINCT row_id) FROM {stage}") == [(rows, rows)]
    assert ask(folder, "SELECT status, count(*) FROM t GROUP BY ALL ORDER BY ALL") == [
        ("done", CLIPS),
        ("skipped", ROWS - CLIPS),
    ]
    # Each answer is its own row's.
    wrong = (
        "SELECT count(*) FROM results WHERE a_text <> 're: row ' || n OR p_tag <> 'tag of re: row ' || n "
        "OR v_embedding[1] <> n OR t_text <> 'heard ' || clip"
    )
    assert ask(folder, wrong) == [(0,)]
    assert ask(folder, "SELECT count(*) FROM q_results WHERE b_text <> 're: again ' || n") == [(0,)]
    # The service counts what the tables do, but for requests that a kill met before their commit.
    lost = sum(service.requests.values()) - ask(folder, "SELECT count(*) FROM attempts WHERE stage <> 'p'")[0][0]
    assert 0 <= lost <= KILLS * 4 * (16 + 16)
    print(f"{KILLS} kills, {sum(service.requests.values())} requests, {lost} of them sent again")


def test_rows_that_are_done_again(
    tmp_path: Path, service: CountingService, launch: Launch, chance: random.Random
) -> None:
    """No answer is ever missing, and each is replaced once."""
    rows, folder = 400, tmp_path / FOLDER
    project(tmp_path, service, rows)
    assert infermesh("run", "+experiment=mine", f"hydra.run.dir={FOLDER}", cwd=tmp_path).returncode == 0
    first = dict(ask(folder, "SELECT row_id, finished_at FROM a"))
    service.latency_s, before, kills, begun = 0.1, service.asked.copy(), 0, False
    for _ in itertools.count():
        arguments = ("resume", str(FOLDER)) if begun else ("retry", str(FOLDER), "--stage", "a", "--where", "true")
        process = launch(*arguments, cwd=tmp_path)
        if not killed(process, chance.uniform(0.8, 4.0)):
            assert process.returncode == 0
            break
        kills += 1
        assert ask(folder, "SELECT count(*), count(text) FROM a") == [(rows, rows)]
        begun = begun or ask(folder, "SELECT count(*) FROM redo_rows") == [(rows,)]
    wait_until(lambda: service.in_flight == 0, "the service to be idle")
    again = dict(ask(folder, "SELECT row_id, finished_at FROM a"))
    assert all(again[row] > at for row, at in first.items())
    assert ask(folder, "SELECT count(*) FROM results WHERE a_text <> 're: row ' || n") == [(0,)]
    sent = Counter({thing: count - before[thing] for thing, count in service.asked.items() if thing[0] == "chat"})
    assert sum(sent.values()) <= rows + kills * (16 + 16)
    assert all(sent["chat", f"row {n}"] >= 1 for n in range(rows))
    print(f"{kills} kills, {sum(sent.values())} requests for {rows} rows")


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("kind", ["generate", "embed", "transcribe"])
def test_a_command(
    tmp_path: Path, service: CountingService, launch: Launch, chance: random.Random, kind: str, output: str
) -> None:
    service.latency_s, rows, kills = 0.1, 400, 0
    made: dict[str, Any] = {
        "generate": lambda n: {"prompt": f"row {n}"},
        "embed": lambda n: {"text": f"vector {n}"},
        "transcribe": lambda n: {"path": f"clip{n}.wav"},
    }
    write_jsonl(tmp_path / "in.jsonl", [made[kind](n) for n in range(rows)])
    if kind == "transcribe":
        for n in range(rows):
            (tmp_path / f"clip{n}.wav").write_bytes(wav())
    arguments = [kind, "--model", "hosted_vllm/any", "--api-base", service.url, "--input-jsonl", "in.jsonl"]
    arguments += ["--output", output, "--max-parallel-requests", "8"]
    if kind == "embed":
        arguments += ["--micro-batch-size", "2"]
    resume: list[str] = []
    while True:
        process = launch(*arguments, *resume, cwd=tmp_path)
        if not killed(process, chance.uniform(0.8, 2.5)):
            assert process.returncode == 0, process.communicate()[1]
            break
        kills += 1
        if (tmp_path / f"{output}.infermesh" / DATABASE).exists():
            resume = ["--resume"]
    shown = {"generate": "output_text", "embed": "embedding[1]::INTEGER::VARCHAR", "transcribe": "text"}[kind]
    wanted = {"generate": "re: row {}", "embed": "{}", "transcribe": "heard clip{}.wav"}[kind]
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT _index, {shown} FROM '{tmp_path / output}' ORDER BY _index").fetchall()
    assert found == [(n, wanted.format(n)) for n in range(rows)]
    assert sum(service.asked.values()) <= rows + kills * (8 * 2 + 32)
    print(f"{kind} into {output}: {kills} kills, {sum(service.asked.values())} texts asked for {rows} rows")


def test_a_sweep(tmp_path: Path, service: CountingService, launch: Launch, chance: random.Random) -> None:
    service.latency_s, kills = 0.1, 0
    project(tmp_path, service, 300)
    sweep = ("run", "-m", "+experiment=mine", "stages.a.max_parallel_requests=4,8", "hydra.sweep.dir=outputs/swept")
    while True:
        process = launch(*sweep, cwd=tmp_path)
        if not killed(process, chance.uniform(1.0, 5.0)):
            said = process.communicate()[1]
            assert process.returncode == 0, said
            break
        kills += 1
    folders = [database.parent for database in sorted((tmp_path / "outputs/swept").rglob(DATABASE))]
    assert len(folders) == 2
    for folder in folders:
        assert ask(folder, "SELECT count(*) FROM results WHERE a_text = 're: row ' || n") == [(300,)]
        assert ask(folder, "SELECT status FROM run") == [("done",)]
    print(f"a sweep of 2 jobs: {kills} kills")


def test_two_at_once(tmp_path: Path, service: CountingService) -> None:
    """Of six runs that are started on one folder in the same moment, one works, and the others say so."""
    project(tmp_path, service, 200)
    arguments = command_line("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
    at_once = [
        subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [process.communicate(timeout=300)[1] for process in at_once]
    codes = [process.returncode for process in at_once]
    assert codes.count(0) >= 1
    for code, words in zip(codes, said, strict=True):
        assert code == 0 or (code == 1 and "in use" in words and "Traceback" not in words), words
    assert ask(tmp_path / FOLDER, "SELECT count(*), count(DISTINCT row_id) FROM a") == [(200, 200)]
    assert sum(service.asked["chat", f"row {n}"] for n in range(200)) == 200
