"""Workers that die, freeze or never come, and a hub that is killed: no row is lost or stored twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import ConfigError
from infermesh.runs.crew import hub
from tests.counting import CountingServer, repeated
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    Lab,
    Watch,
    ask,
    committed,
    experiment,
    generate,
    infermesh,
    texts,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 600
WINDOW = 32
RUN = ("run", "+experiment=mine", "hydra.run.dir=outputs/here", "engine.workers=2", "engine.silence=2s")


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer(0.3) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, server: CountingServer) -> Path:
    """Two stages, so that some rows are half done when a worker is lost."""
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    stages = {
        "a": generate(max_parallel_requests=WINDOW),
        "b": generate("{{ a.text }} Once more.", max_parallel_requests=WINDOW),
    }
    write_experiment(tmp_path, experiment(server.url, stages))
    return tmp_path


def workers(hub_pid: int) -> list[int]:
    """The processes of a hub's workers."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    return [int(pid) for pid, parent, args in rows if int(parent) == hub_pid and "crew.worker" in args]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_all_done(folder: Path, server: CountingServer, *, sent_again: int) -> None:
    """Every row is done once at both stages, and few were sent twice."""
    for stage in ("a", "b"):
        found = ask(folder, f"SELECT count(*), count(DISTINCT row_id) FROM {stage} WHERE status = 'done'")
        assert found == [(ROWS, ROWS)]
    counts = server.counts
    assert len(counts) == 2 * ROWS
    assert repeated(counts, [*counts]) <= sent_again
    # A request that was lost with its worker is in no table; each that was answered to somebody is.
    attempts = ask(folder, "SELECT count(*) FROM attempts")[0][0]
    assert 2 * ROWS <= attempts <= len(server.seen)
    assert len(server.seen) - attempts <= sent_again


def start(project: Path, launch: Launch, server: CountingServer, *more: str) -> subprocess.Popen[str]:
    process = launch(*RUN, *more, cwd=project)
    wait_until(lambda: len(server.seen) > 150, "requests of workers")
    return process


def test_a_worker_is_killed(project: Path, server: CountingServer, launch: Launch) -> None:
    process = start(project, launch, server)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, told = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, told
    assert re.search(
        r"worker \d \(process \d+\) was ended by SIGKILL; its \d+ rows in hand will be sent by others", told
    )
    assert_all_done(project / "outputs" / "here", server, sent_again=2 * 2 * WINDOW)
    progress = re.findall(r"a (\d+)/600  b (\d+)/600", told)[-1]
    assert progress == ("600", "600")


@pytest.mark.long
def test_a_worker_is_frozen(project: Path, server: CountingServer, launch: Launch) -> None:
    process = start(project, launch, server)
    frozen = workers(process.pid)[0]
    os.kill(frozen, signal.SIGSTOP)
    _, told = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, told
    assert "has said nothing for 2 s" in told
    assert not alive(frozen)
    assert_all_done(project / "outputs" / "here", server, sent_again=2 * 2 * WINDOW)


def test_the_hub_is_killed(project: Path, server: CountingServer, launch: Launch) -> None:
    process = start(project, launch, server)
    children = workers(process.pid)
    assert len(children) == 2
    process.send_signal(signal.SIGKILL)
    process.wait(COMMAND_S)
    wait_until(lambda: not any(map(alive, children)), "the workers to end", 3.0)
    sent = len(server.seen)
    kept = committed(project / "outputs" / "here", "a")
    assert kept > 0
    assert infermesh(*RUN[:3], "engine=process", cwd=project).returncode == 0
    lost = sent - ask(project / "outputs" / "here", "SELECT count(*) FROM attempts")[0][0]
    assert lost < 2 * ROWS
    # What the hub had not committed is sent again as well: a commit each 10 ms, and answers of 50 ms.
    assert_all_done(project / "outputs" / "here", server, sent_again=6 * 2 * WINDOW)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a frozen process is told by /proc")
def test_workers_of_a_frozen_hub_end_by_themselves(project: Path, server: CountingServer, launch: Launch) -> None:
    process = start(project, launch, server)
    children = workers(process.pid)

    def gone(pid: int) -> bool:  # its parent, which is frozen, does not collect it
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(map(gone, children)), "the workers to end", 8.0)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0
    assert_all_done(project / "outputs" / "here", server, sent_again=3 * 2 * WINDOW)


POISON = """
import os

def weigh(row):
    if row["n"] in (17, 431):
        os._exit(7)
    return len(row["text"])

def weigh_again(row):
    return row["w"]["value"] + 1
"""


@pytest.mark.long
def test_a_row_that_ends_its_worker_becomes_an_error(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    mapping = experiment("http://127.0.0.1:9/v1", {})
    mapping["stages"]["w"] = {"kind": "python", "function": "poison:weigh", "max_parallel_requests": 8}
    mapping["stages"]["v"] = {"kind": "python", "function": "poison:weigh_again", "reads": ["w"]}
    write_experiment(tmp_path, mapping)
    process = launch(*RUN, cwd=tmp_path)
    _, told = process.communicate(timeout=2 * COMMAND_S)
    assert process.returncode == 3, told
    here = tmp_path / "outputs" / "here"
    failed = ask(here, "SELECT n, error_type FROM source JOIN w USING (row_id) WHERE status <> 'done' ORDER BY n")
    assert failed == [(17, "worker_died"), (431, "worker_died")]
    assert ask(here, "SELECT error_type, count(*) FROM v WHERE status = 'skipped' GROUP BY ALL") == [("upstream", 2)]
    assert ask(here, "SELECT count(*) FROM v WHERE status = 'done'") == [(ROWS - 2,)]
    assert "w 600/600 (2 failed)" in told
    assert "row 17 has ended every worker that had it" in told


STILLBORN = """
import os, sys

if "infermesh.runs.crew.worker" in sys.modules:
    os._exit(9)

def weigh(row):
    return 1
"""


@pytest.mark.long
def test_workers_that_die_as_they_come_stop_the_run(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "stillborn.py").write_text(STILLBORN)
    write_jsonl(tmp_path / "rows.jsonl", texts(10))
    mapping = experiment("http://127.0.0.1:9/v1", {})
    mapping["stages"]["w"] = {"kind": "python", "function": "stillborn:weigh"}
    write_experiment(tmp_path, mapping)
    process = launch(*RUN, "engine.max_lost=4", cwd=tmp_path)
    _, told = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 4, told
    assert (
        "engine.max_lost is 4: 4 workers lost with no row finished in between; the last one has ended with exit" in told
    )
    assert ask(tmp_path / "outputs" / "here", "SELECT count(*) FROM w") == [(0,)]
    assert infermesh(*RUN[:3], cwd=tmp_path).returncode == 0


@pytest.mark.breaks_runs
def test_a_worker_of_another_version_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.rows(texts(3))
    monkeypatch.setattr(hub, "PROTOCOL", "9.9.9/0123")
    with pytest.raises(ConfigError, match=r"is of another infermesh \(.*; this is 9\.9\.9/0123\)"):
        lab.run(experiment("http://127.0.0.1:9/v1", {"a": generate()}) | {"engine": {"workers": 2}})


def test_what_a_worker_cannot_find_is_told_once(lab: Lab) -> None:
    """A file that is there for the hub alone, as on another machine: here a function that only the hub can import."""
    (lab.root / "mine.py").write_text(
        'import sys\n\nif "infermesh.runs.crew.worker" not in sys.modules:\n    def f(row):\n        return 1\n'
    )
    lab.rows(texts(3))
    mapping: dict[str, Any] = experiment("http://127.0.0.1:9/v1", {})
    mapping["stages"]["w"] = {"kind": "python", "function": "mine:f"}
    with pytest.raises(ConfigError, match=r"stages.w.function: module 'mine' has no 'f'"):
        lab.run(mapping | {"engine": {"workers": 2}}, watch=Watch())
    assert json.loads(lab.one("SELECT config FROM run"))["engine"] == {"workers": 2}
