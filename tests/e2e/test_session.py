"""A day with a pipeline: run, edited, grown, shrunk, swept, and each time only what has changed is sent.

What was sent is what the service counted (its /stats).
"""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    ask,
    embed,
    experiment,
    generate,
    here,
    infermesh,
    totals,
    transcribe,
    wait_until,
    wav,
    write_experiment,
    write_jsonl,
)

ROWS = 200
CLIPS = 4
RUN = ("run", "+experiment=mine", "hydra.run.dir=outputs/mine/one")
ONE = Path("outputs/mine/one")


def rows(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "text": f"Parcel number {n} came late.", "clip": f"{n % CLIPS}.wav"} for n in range(count)]


def declaration(url: str) -> dict[str, Any]:
    """Clips are heard, summed up with the text, and the summaries embedded one by one."""
    return experiment(
        url,
        {
            "heard": transcribe("{{ clip }}"),
            "summaries": generate("Sum up: {{ text }} {{ heard.text }}"),
            "vectors": embed("{{ summaries.text }}", micro_batch_size=1),
        },
    )


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Path:
    for number in range(CLIPS):
        (tmp_path / f"{number}.wav").write_bytes(wav(f"Clip {number}."))
    write_jsonl(tmp_path / "rows.jsonl", rows(ROWS))
    write_experiment(tmp_path, declaration(simulator.url))
    return tmp_path


def sent(simulator: Simulator) -> tuple[int, int, int]:
    """Requests since the last look: transcriptions, chats, embeddings."""
    found = tuple(totals(simulator, endpoint)["received"] for endpoint in ("transcriptions", "chat", "embeddings"))
    simulator.reset()
    return found[0], found[1], found[2]


def results(folder: Path) -> int:
    ((found,),) = ask(folder, "SELECT count(*) FROM results WHERE vectors_status = 'done'")
    return int(found)


@pytest.mark.long
def test_only_what_an_edit_touches_is_sent(project: Path, simulator: Simulator) -> None:
    folder = project / ONE

    def go(*overrides: str) -> str:
        ended = here(*RUN, *overrides, cwd=project)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    go()
    assert sent(simulator) == (ROWS, ROWS, ROWS)

    # Another prompt that gets other answers: its stage, and what depends on them.
    shorter = "stages.summaries.prompt='In brief: {{ text }} {{ heard.text }}'"
    before = dict(ask(folder, "SELECT row_id, text FROM summaries"))
    said = go(shorter)
    after = dict(ask(folder, "SELECT row_id, text FROM summaries"))
    changed = sum(before[row] != after[row] for row in before)
    assert sent(simulator) == (0, ROWS, changed)
    assert f"heard: {ROWS} kept" in said
    assert "summaries: prompt" in said

    # Concurrency and limits decide no answer.
    go(shorter, "stages.summaries.max_parallel_requests=7", "deployments.d.limits={rpm: 600000}")
    assert sent(simulator) == (0, 0, 0)

    # A row more is a request for each stage; a row less is none, and leaves the results.
    write_jsonl(project / "rows.jsonl", [*rows(ROWS), {"n": -1, "text": "One more.", "clip": "0.wav"}])
    go(shorter)
    assert sent(simulator) == (1, 1, 1)
    assert results(folder) == ROWS + 1
    write_jsonl(project / "rows.jsonl", [*rows(ROWS)[:100], *rows(ROWS)[101:]])
    go(shorter)
    assert sent(simulator) == (0, 0, 0)
    assert results(folder) == ROWS - 1
    assert ask(folder, "SELECT count(*) FROM retired") == [(2,)]
    assert ask(folder, "SELECT count(*), count(DISTINCT row_id) FROM vectors") == [(ROWS + 1, ROWS + 1)]

    # Another run takes the answers that are there; what was retired is an answer, too.
    write_jsonl(project / "rows.jsonl", rows(ROWS))
    ended = here("run", "+experiment=mine", shorter, "reuse=latest", cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert sent(simulator) == (0, 0, 0)

    # Chosen rows are asked for again; the plan of what is left then is nothing.
    retried = infermesh("retry", str(ONE), "--stage", "summaries", "--where", "row_id < 3", cwd=project)
    assert retried.returncode == 0, retried.stderr
    assert sent(simulator) == (0, 3, 0)  # the row that came back to the source has its answers still
    planned = here("plan", *RUN[1:], shorter, "--json", cwd=project)
    assert json.loads(planned.stdout)["requests"] == 0, planned.stdout
    assert sent(simulator) == (0, 0, 0)


@pytest.mark.long
def test_a_sweep_that_is_gone_on_with_sends_only_the_rest(tmp_path: Path, simulator: Simulator, launch: Launch) -> None:
    count = 120
    write_jsonl(tmp_path / "rows.jsonl", rows(count))
    write_experiment(tmp_path, experiment(simulator.url, {"answers": generate()}))
    sweep = (
        "run", "-m", "+experiment=mine", "stages.answers.max_parallel_requests=2,4,8",
        "deployments.d.limits={rpm: 6000}", "hydra.sweep.dir=outputs/mine/sweep",
    )  # fmt: skip
    process = launch(*sweep, cwd=tmp_path)
    wait_until(partial(lambda: totals(simulator)["received"] > count * 3 // 2), "the second job's requests")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    done = totals(simulator)["answered"]
    assert count < done < 2 * count
    simulator.reset()
    ended = here(*sweep, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert totals(simulator)["received"] == 3 * count - done
    for job in range(3):
        assert ask(tmp_path / f"outputs/mine/sweep/{job}", "SELECT count(*) FROM answers WHERE status = 'done'") == [
            (count,)
        ]
    assert (tmp_path / "outputs/mine/sweep/sweep.parquet").exists()
