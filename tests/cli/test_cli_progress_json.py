"""``--progress json``: what a program reads of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infermesh.runs.progress import JsonLines
from infermesh.runs.stats import RunStats, StageStats
from infermesh.simulator import Simulator
from tests.support import experiment, generate, here, texts, write_jsonl


def project(root: Path, url: str) -> None:
    write_jsonl(root / "rows.jsonl", texts(20))
    conf = root / "conf" / "experiment"
    conf.mkdir(parents=True)
    declared = experiment(url, {"answers": generate()})
    (conf / "lab.yaml").write_text("# @package _global_\n" + json.dumps(declared))


def events(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def test_a_run_and_a_resume_tell_it_on_stdout(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path, simulator.url)
    ran = here("run", "+experiment=lab", "hydra.run.dir=out/a", "--progress", "json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told = events(ran.stdout)
    progress = [each for each in told if each["event"] == "progress"]
    first, last = progress[0], progress[-1]
    assert first["stages"]["answers"]["total"] == 20
    assert first["left_s"] is None
    counts = {"done": 20, "failed": 0, "skipped": 0, "in_flight": 0, "total": 20}
    assert last["stages"] == {"answers": counts}
    assert (last["requests"], last["left_s"], last["errors"]) == (20, 0.0, 0)
    assert {"event": "note", "text": "20 rows × 1 stage"} in told
    assert "20 rows × 1 stage" in ran.stderr
    again = here("resume", "out/a", "--progress", "json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert events(again.stdout)[-1]["requests"] == 0


def test_a_wrong_word_is_refused(tmp_path: Path) -> None:
    said = here("resume", "--progress", "yaml", cwd=tmp_path)
    assert said.returncode == 2
    assert "json" in said.stderr


def test_nobody_reads() -> None:
    lines: list[str] = []
    said: list[str] = []

    def broken(line: str) -> None:
        lines.append(line)
        raise BrokenPipeError

    observer = JsonLines(broken, said.append)
    stats = RunStats({"a": StageStats()})
    observer.start(stats)
    observer.note("One.")
    observer.stop(stats)
    assert len(lines) == 1
    assert said == ["--progress json: nobody reads the lines any more; the run goes on", "One."]


def test_a_line_a_second_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("infermesh.runs.progress.time.monotonic", lambda: now[0])
    lines: list[str] = []
    observer = JsonLines(lines.append, lambda _: None)
    stats = RunStats({"a": StageStats(total=10)}, started=100.0)
    observer.start(stats)
    for tick in range(1, 13):
        now[0] = 100 + tick / 4
        stats.settled = stats.stages["a"].done = tick // 4
        observer.tick(stats)
    observer.stop(stats)
    told = [json.loads(line) for line in lines]
    assert [each["elapsed_s"] for each in told] == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert [each["left_s"] for each in told] == [None, 9.0, 8.0, 7.0, 7.0]
