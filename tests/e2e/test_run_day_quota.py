"""Quotas a day hold over restarts and over experiments. Real processes, real sockets."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    committed,
    experiment,
    generate,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

RPD = 20
Start = Callable[..., Simulator]


@pytest.fixture
def service(start_simulator: Start) -> Simulator:
    return start_simulator(latency_s=0.05)


@pytest.fixture
def project(tmp_path: Path, service: Simulator) -> Path:
    """Two experiments with 30 rows each, on one deployment that allows 20 requests a day."""
    now = dt.datetime.now(dt.UTC)
    if (now.hour, now.minute) >= (23, 57):
        pytest.skip("midnight would begin a new day in the middle of the test")
    write_jsonl(tmp_path / "rows.jsonl", texts(30))
    for name in ("mine", "yours"):
        mapping: dict[str, Any] = experiment(service.url, {"a": generate(f"{name}: {{{{ text }}}}")})
        mapping["stages"]["a"]["max_parallel_requests"] = 2
        mapping["deployments"]["d"]["limits"] = {"rpd": RPD}
        write_experiment(tmp_path, mapping, name)
    return tmp_path


class Notes:
    """A run's standard error, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def until(self, text: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in {self.lines}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.lines += self.process.communicate(timeout=COMMAND_S)[1].splitlines()
        return self.process.returncode


@pytest.mark.long
def test_the_total_of_a_day_holds_over_restarts_and_experiments(
    project: Path, service: Simulator, launch: Launch
) -> None:
    first = Notes(launch("run", "+experiment=mine", "hydra.run.dir=outputs/mine/a", cwd=project))
    wait_until(lambda: totals(service)["answered"] >= 5, "the first answers")
    assert first.stop() == 130
    sent = totals(service)["received"]
    assert 5 <= sent < RPD
    assert ask(project / "outputs/mine/a", "SELECT count(*) FROM attempts") == [(sent,)]

    other = Notes(launch("run", "+experiment=yours", "hydra.run.dir=outputs/yours/a", cwd=project))
    assert f"deployment d has used {sent} requests" in other.until("today")
    wait_until(lambda: totals(service)["answered"] >= sent + 3, "answers of the other experiment")
    assert other.stop() == 130
    sent = totals(service)["received"]

    again = Notes(launch("resume", "outputs/mine/a", cwd=project))
    assert f"deployment d has used {sent} requests" in again.until("today")
    said = again.until("used up")
    assert f"rpd of deployment d is used up until 00:00 UTC ({RPD} of {RPD}): requests wait for it" in said
    assert again.stop() == 130
    assert totals(service)["received"] == totals(service)["answered"] == RPD

    late = Notes(launch("run", "+experiment=yours", "hydra.run.dir=outputs/yours/b", cwd=project))
    late.until("used up")
    assert late.stop() == 130
    assert totals(service)["received"] == RPD


@pytest.mark.long
def test_a_killed_run_loses_no_more_than_was_in_flight(project: Path, service: Simulator, launch: Launch) -> None:
    """What was on its way, or answered within the last commit, when the process was killed is not in its tables."""
    process = launch("run", "+experiment=mine", "hydra.run.dir=outputs/mine/a", cwd=project)
    folder = project / "outputs/mine/a"
    wait_until(lambda: committed(folder, "a") >= 8, "the first answers to be kept")
    process.kill()
    process.wait(COMMAND_S)
    wait_until(lambda: totals(service)["in_flight"] == 0, "the service to notice")
    sent = totals(service)["received"]
    ((counted,),) = ask(folder, "SELECT count(*) FROM attempts")
    assert 8 <= counted <= sent
    again = Notes(launch("resume", "outputs/mine/a", cwd=project))
    again.until("used up")
    assert again.stop() == 130
    assert totals(service)["received"] == sent + RPD - counted


@pytest.mark.long
def test_another_deployment_takes_over(project: Path, service: Simulator, launch: Launch) -> None:
    mapping = experiment(service.url, {"a": generate(max_parallel_requests=2)})
    entry = mapping["deployments"]["d"]
    mapping["deployments"] = {"d": entry | {"limits": {"rpd": 3}}, "e": entry}
    mapping["models"]["m"]["deployments"] = ["d", "e"]
    write_experiment(project, mapping, "two")
    process = launch("run", "+experiment=two", "hydra.run.dir=outputs/two/a", cwd=project)
    assert "other deployments take its share" in Notes(process).until("rpd of deployment d is used up until 00:00 UTC")
    assert process.wait(COMMAND_S) == 0
    counts = ask(project / "outputs/two/a", "SELECT deployment, count(*) FROM attempts GROUP BY ALL ORDER BY ALL")
    assert counts == [("d", 3), ("e", 27)]


@pytest.mark.long
def test_a_run_that_goes_on_is_asked(project: Path, service: Simulator, launch: Launch) -> None:
    first = Notes(launch("run", "+experiment=mine", "hydra.run.dir=outputs/mine/a", cwd=project))
    first.until("used up")
    wait_until(lambda: totals(service)["answered"] == RPD, "the whole quota")
    other = Notes(launch("run", "+experiment=yours", "hydra.run.dir=outputs/yours/a", cwd=project))
    assert f"deployment d has used {RPD} requests" in other.until("today")
    other.until("used up")
    assert other.stop() == first.stop() == 130
    assert totals(service)["received"] == RPD
