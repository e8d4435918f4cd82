"""``infermesh run -m``: the table at its end, what is done again and what is not, and other launchers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.pages.reading import Read
from tests.support import (
    COMMAND_S,
    ask,
    embed,
    experiment,
    generate,
    here,
    infermesh,
    run_folders,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 40
KEY = "stages.a.max_parallel_requests"
Start = Callable[..., Simulator]


def make_project(root: Path, url: str, rows: int = ROWS, **sections: Any) -> None:
    write_jsonl(root / "rows.jsonl", texts(rows))
    stages = {"a": generate(max_parallel_requests=10), "v": embed("{{ a.text }}", micro_batch_size=8)}
    write_experiment(root, experiment(url, stages, **sections))


def sweep(root: Path, *overrides: str, folder: str = "outputs/s") -> subprocess.CompletedProcess[str]:
    return here("run", "-m", "+experiment=mine", *overrides, f"hydra.sweep.dir={folder}", cwd=root)


def table(root: Path, columns: str, folder: str = "outputs/s") -> list[tuple[Any, ...]]:
    return duckdb.connect().execute(f"SELECT {columns} FROM '{root / folder}/sweep.parquet' ORDER BY job").fetchall()


@pytest.fixture
def group(launch: Launch) -> Launch:
    """Start ``infermesh …`` in a process group of its own, as a shell does: Ctrl-C goes to all of it."""
    return partial(launch, start_new_session=True)


def test_the_table_the_figures_and_the_plot(tmp_path: Path, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.05, tokens_per_second=2000)
    make_project(tmp_path, simulator.url)
    found = infermesh("run", "-m", "+experiment=mine", f"{KEY}=1,8", "hydra.sweep.dir=outputs/s", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    assert f"sweep over {KEY}\n2 jobs, figures of stage a, " in found.stderr
    assert f"recommended: {KEY}=8" in found.stderr
    assert "continue" not in found.stderr
    rows = table(tmp_path, f'job, status, exit_code, stage, "{KEY}", "rows", failed, requests, run_id, folder')
    assert [row[:8] for row in rows] == [
        (0, "done", 0, "a", 1, ROWS, 0, ROWS),
        (1, "done", 0, "a", 8, ROWS, 0, ROWS),
    ]
    for row in rows:
        assert ask(tmp_path / row[9], "SELECT run_id FROM run") == [(row[8],)]
    (slow, slow_p50), (fast, fast_p50) = table(tmp_path, "rows_per_s, p50_s")
    assert fast > 3 * slow
    assert slow <= 1 / slow_p50 * 1.01  # one at a time: no faster than one answer after the other
    assert slow_p50 > 0.05
    assert fast_p50 < 4 * slow_p50
    shown = re.findall(r"^ +([01]) +([18]) +([\d.]+) ", found.stderr, re.MULTILINE)
    assert [(int(job), int(value)) for job, value, _ in shown] == [(0, 1), (1, 8)]
    assert [float(rate) for *_, rate in shown] == pytest.approx([slow, fast], abs=0.06)
    page = (tmp_path / "outputs/s/sweep.html").read_text()
    assert f"Recommended: {KEY}=8." in page
    assert '"label":"recommended: 8"' in page
    # The same page later, from anywhere, and of the jobs as they are now.
    again = infermesh("report", str(tmp_path / "outputs/s"), "--output", "again.html", cwd=tmp_path.parent)
    assert again.returncode == 0, again.stderr
    later = (tmp_path.parent / "again.html").read_text()
    assert f"Recommended: {KEY}=8." in later
    assert Read(later).charts["rate"]["series"] == Read(page).charts["rate"]["series"]


@pytest.mark.long
def test_run_again_it_sends_nothing(tmp_path: Path, simulator: Simulator) -> None:
    make_project(tmp_path, simulator.url)
    assert sweep(tmp_path, f"{KEY}=1,8").returncode == 0
    databases = {folder: (folder / "run.duckdb").stat().st_mtime_ns for folder in run_folders(tmp_path)}
    before = table(tmp_path, "* EXCLUDE (status)")
    simulator.reset()
    found = sweep(tmp_path, f"{KEY}=1,8")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("not run again") == 2
    assert totals(simulator)["received"] == 0
    assert databases == {folder: (folder / "run.duckdb").stat().st_mtime_ns for folder in run_folders(tmp_path)}
    assert table(tmp_path, "* EXCLUDE (status)") == before


@pytest.mark.long
def test_an_edited_prompt_file_is_no_complete_job(tmp_path: Path, simulator: Simulator) -> None:
    make_project(tmp_path, simulator.url)
    (tmp_path / "p.jinja").write_text("{{ text }}")
    assert sweep(tmp_path, f"{KEY}=1,8", "stages.a.prompt=p.jinja").returncode == 0
    (tmp_path / "p.jinja").write_text("In short: {{ text }}")
    simulator.reset()
    assert sweep(tmp_path, f"{KEY}=1,8", "stages.a.prompt=p.jinja").returncode == 0
    assert totals(simulator, "chat")["received"] == 2 * ROWS


@pytest.mark.long
def test_failed_rows_are_unfinished_unless_they_are_kept(tmp_path: Path, start_simulator: Start) -> None:
    simulator = start_simulator(filter_marker="number 3 ")
    make_project(tmp_path, simulator.url)
    found = sweep(tmp_path, f"{KEY}=1,8")
    assert found.returncode == 3
    assert table(tmp_path, "status, failed, exit_code") == [("failed rows", 1, 3)] * 2
    assert "continue  infermesh run -m +experiment=mine" in found.stderr
    simulator.reset()
    assert sweep(tmp_path, f"{KEY}=1,8").returncode == 3
    assert totals(simulator, "chat")["received"] == 2
    simulator.reset()
    assert sweep(tmp_path, f"{KEY}=1,8", "keep_errors=true").returncode == 3  # another config: looked at once
    found = sweep(tmp_path, f"{KEY}=1,8", "keep_errors=true")
    assert found.returncode == 3
    assert found.stderr.count("not run again") == 2
    assert totals(simulator)["received"] == 0


@pytest.mark.long
def test_a_reordered_list_is_refused(tmp_path: Path, simulator: Simulator) -> None:
    make_project(tmp_path, simulator.url)
    assert sweep(tmp_path, f"{KEY}=1,8").returncode == 0
    before = table(tmp_path, "*")
    simulator.reset()
    found = sweep(tmp_path, f"{KEY}=8,1")
    assert found.returncode == 1
    assert f"outputs/s/0 holds the run of another job: {KEY}=1 there, {KEY}=8 here" in found.stderr
    assert totals(simulator)["received"] == 0
    assert table(tmp_path, "*") == before


@pytest.mark.long
def test_interrupted_and_gone_on_with(tmp_path: Path, start_simulator: Start, launch: Launch) -> None:
    simulator = start_simulator(latency_s=0.03)
    make_project(tmp_path, simulator.url, rows=60)
    process = launch("run", "-m", "+experiment=mine", f"{KEY}=20,2,10", cwd=tmp_path)
    wait_until(lambda: totals(simulator, "chat")["answered"] >= 70, "the second job")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "job 2" not in err
    assert len(run_folders(tmp_path)) == 2
    answered = totals(simulator, "chat")["answered"]
    assert 60 < answered < 120
    assert totals(simulator)["abandoned"] == 0

    (told,) = re.findall(r"continue +(infermesh run -m .*?)   \(", err)
    simulator.reset()
    found = infermesh(*shlex.split(told)[1:], cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("not run again") == 1
    assert totals(simulator, "chat")["received"] == 180 - answered
    assert len(run_folders(tmp_path)) == 3
    folder = str(run_folders(tmp_path)[0].parent.relative_to(tmp_path))
    assert table(tmp_path, f'"{KEY}", "rows", requests', folder) == [(20, 60, 60), (2, 60, 60), (10, 60, 60)]
    (_, second, _) = table(tmp_path, "elapsed_s", folder)
    sessions = ask(tmp_path / folder / "1", "SELECT count(*), sum(elapsed_s) FROM sessions")
    assert sessions[0][0] == 2
    assert second[0] <= sessions[0][1]


@pytest.mark.long
def test_a_killed_job_is_resumed(tmp_path: Path, start_simulator: Start, launch: Launch) -> None:
    simulator = start_simulator(latency_s=0.03)
    make_project(tmp_path, simulator.url, rows=60)
    process = launch("run", "-m", "+experiment=mine", f"{KEY}=4,20", "hydra.sweep.dir=outputs/s", cwd=tmp_path)
    wait_until(lambda: totals(simulator, "chat")["answered"] >= 30, "30 answers")
    process.kill()
    process.wait()
    simulator.reset()
    status = here("status", "outputs/s", cwd=tmp_path).stdout
    _, marked, command = status.partition("\n  continue: infermesh ")
    assert marked, status
    found = here(*shlex.split(command), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "resuming" in found.stderr
    assert "continue:" not in here("status", "outputs/s", cwd=tmp_path).stdout
    assert totals(simulator, "chat")["received"] < 120
    assert table(tmp_path, '"rows", pending') == [(60, 0), (60, 0)]
    assert all(0 < elapsed < 30 for (elapsed,) in table(tmp_path, "elapsed_s"))


def test_status_of_a_sweep_counts_the_jobs_that_have_not_begun(
    tmp_path: Path, start_simulator: Start, launch: Launch
) -> None:
    simulator = start_simulator(latency_s=30)
    make_project(tmp_path, simulator.url)
    swept = ["+experiment=glob(min*)", f"{KEY}=range(1,4)"]
    process = launch("run", "-m", *swept, "hydra.sweep.dir=outputs/s", cwd=tmp_path)
    wait_until(lambda: totals(simulator, "chat")["received"] >= 1, "a request of the first job")
    status = here("status", "outputs/s", cwd=tmp_path).stdout
    assert status.startswith("outputs/s is a sweep of 3 jobs, 1 of them begun\n")
    assert "continue:" not in status
    process.kill()
    process.wait()
    assert "3 jobs, 1 of them begun" in here("resume", "outputs/s", cwd=tmp_path).stderr


@pytest.mark.long
def test_several_keys_are_measured_over_the_whole_run(tmp_path: Path, simulator: Simulator) -> None:
    make_project(tmp_path, simulator.url)
    found = sweep(tmp_path, f"{KEY}=2,4", "models.m.routing_strategy=simple-shuffle,least-busy")
    assert found.returncode == 0, found.stderr
    assert "4 jobs, figures of the whole run" in found.stderr
    rows = table(tmp_path, f'"{KEY}", "models.m.routing_strategy", stage, "rows", requests')
    assert [row[:4] for row in rows] == [
        (2, "simple-shuffle", None, ROWS),
        (2, "least-busy", None, ROWS),
        (4, "simple-shuffle", None, ROWS),
        (4, "least-busy", None, ROWS),
    ]
    assert all(row[4] >= ROWS + ROWS // 8 for row in rows)
    assert Read((tmp_path / "outputs/s/sweep.html").read_text()).charts == {}  # a table alone


def test_one_wrong_job_does_not_end_the_others(tmp_path: Path, simulator: Simulator) -> None:
    make_project(tmp_path, simulator.url)
    found = sweep(tmp_path, f"{KEY}=0,4")
    assert found.returncode == 1
    assert table(tmp_path, "status, exit_code, requests") == [("error", 1, None), ("done", 0, ROWS)]
    assert len(run_folders(tmp_path)) == 1


@pytest.mark.parametrize(("key", "kept"), [(f"{KEY}=1,8", "none"), ("stages.a.params.seed=1,2", "latest")])
@pytest.mark.long
def test_a_sweep_over_speed_reuses_nothing(tmp_path: Path, simulator: Simulator, key: str, kept: str) -> None:
    make_project(tmp_path, simulator.url)
    found = sweep(tmp_path, key, "reuse=latest")
    assert found.returncode == 0, found.stderr
    assert [ask(folder, "SELECT config->>'$.reuse' FROM run") for folder in run_folders(tmp_path)] == [[(kept,)]] * 2
    assert found.stderr.count("note: reuse is none") == (kept == "none")


class TestJoblib:
    """Jobs in processes of their own; needs hydra-joblib-launcher."""

    OVERRIDES = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")

    @pytest.fixture(autouse=True)
    def _needed(self) -> None:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

    def test_the_same_table(self, tmp_path: Path, simulator: Simulator) -> None:
        make_project(tmp_path, simulator.url)
        found = sweep(tmp_path, f"{KEY}=1,2,8", *self.OVERRIDES)
        assert found.returncode == 0, found.stderr
        assert table(tmp_path, f'job, "{KEY}", status, "rows"') == [
            (0, 1, "done", ROWS),
            (1, 2, "done", ROWS),
            (2, 8, "done", ROWS),
        ]
        simulator.reset()
        found = sweep(tmp_path, f"{KEY}=1,2,8", *self.OVERRIDES)
        assert found.stderr.count("not run again") == 3
        assert totals(simulator)["received"] == 0

    def test_the_worst_code(self, tmp_path: Path, start_simulator: Start) -> None:
        make_project(tmp_path, start_simulator(filter_marker="number 3 ").url)
        assert sweep(tmp_path, f"{KEY}=1,8", *self.OVERRIDES).returncode == 3
        assert sweep(tmp_path, f"{KEY}=0,8", *self.OVERRIDES, folder="outputs/t").returncode == 1

    def test_interrupted_and_gone_on_with(self, tmp_path: Path, start_simulator: Start, group: Launch) -> None:
        simulator = start_simulator(latency_s=0.05)
        make_project(tmp_path, simulator.url, rows=60)
        process = group(
            "run",
            "-m",
            "+experiment=mine",
            f"{KEY}=2,3,4,5",
            *self.OVERRIDES,
            "hydra.sweep.dir=outputs/s",
            cwd=tmp_path,
        )
        wait_until(lambda: totals(simulator, "chat")["answered"] >= 20, "20 answers")
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=COMMAND_S)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert totals(simulator)["abandoned"] == 0
        answered = totals(simulator, "chat")["answered"]
        assert 20 <= answered < 120
        assert len(run_folders(tmp_path)) == 2
        simulator.reset()
        found = sweep(tmp_path, f"{KEY}=2,3,4,5", *self.OVERRIDES)
        assert found.returncode == 0, found.stderr
        assert totals(simulator, "chat")["received"] == 240 - answered
