"""A run that is asked by other processes while it goes on, stopped by one, and killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    environment,
    experiment,
    generate,
    here,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 120
FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
# Waits for a run, asks it every 100 ms until its end, and prints each answer's counts.
ASKER = """
import json, sys, threading
from pathlib import Path
from infermesh.query.reader import RunReader
pause = threading.Event()
folder = Path(sys.argv[1])
print("ready", flush=True)
while not (folder / "run.sock").exists():
    pause.wait(0.01)
with RunReader(folder) as reader:
    while reader.live:
        (row,) = reader.execute(
            "SELECT (SELECT count(*) FROM a), (SELECT count(DISTINCT row_id) FROM a), (SELECT count(*) FROM b), "
            "(SELECT count(*) FROM b WHERE row_id NOT IN (SELECT row_id FROM a)), "
            "(SELECT sum(rows)::BIGINT FROM progress WHERE stage = 'a')"
        ).fetchall()
        print(json.dumps(row), flush=True)
        pause.wait(0.1)
"""


@pytest.fixture
def service(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=0.08)


@pytest.fixture
def project(tmp_path: Path, service: Simulator) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    stages: dict[str, Any] = {
        "a": generate(max_parallel_requests=6),
        "b": generate("{{ a.text }} Once more.", max_parallel_requests=6),
    }
    write_experiment(tmp_path, experiment(service.url, stages))
    return tmp_path


@pytest.mark.long
def test_a_second_process_asks_all_the_time(project: Path, service: Simulator, launch: Launch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ASKER, FOLDER],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as asker:
        assert asker.stdout is not None
        assert asker.stdout.readline() == "ready\n"
        run = launch(*RUN, cwd=project)
        _, err = run.communicate(timeout=COMMAND_S)
        asked, said = asker.communicate(timeout=COMMAND_S)
    assert (asker.returncode, said) == (0, "")
    assert run.returncode == 0, err
    seen = [json.loads(line) for line in asked.splitlines()]
    assert len(seen) >= 5
    firsts, seconds = [row[0] for row in seen], [row[2] for row in seen]
    assert firsts == sorted(firsts)
    assert seconds == sorted(seconds)
    assert any(0 < first < ROWS for first in firsts)
    for first, distinct, _, orphans, total in seen:
        assert first == distinct
        assert orphans == 0
        assert total == ROWS
    assert seen[-1][0] == seen[-1][2] == ROWS
    assert totals(service)["received"] == 2 * ROWS
    assert not (project / FOLDER / "run.sock").exists()


def test_the_commands_know_it_and_stop_drains_it(project: Path, service: Simulator, launch: Launch) -> None:
    run = launch(*RUN, "stages.a.max_parallel_requests=1", cwd=project)
    wait_until(lambda: totals(service)["answered"] >= 20, "20 answers")
    found = here("status", cwd=project)
    assert found.returncode == 0, found.stderr
    assert f"of {ROWS}" in found.stdout
    assert "infermesh stop" in found.stdout
    listed = here("runs", cwd=project).stdout
    assert " running " in listed
    assert " 0 done" not in listed
    run_id = here("sql", "SELECT run_id FROM run", cwd=project).stdout.split()[1]
    found = here("stop", run_id, cwd=project)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    assert "interrupted" in found.stderr
    _, err = run.communicate(timeout=COMMAND_S)
    assert run.returncode == 130, err
    assert totals(service)["abandoned"] == 0
    ((done,),) = ask(project / FOLDER, "SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)")
    assert 20 <= done == totals(service)["received"] < 2 * ROWS

    found = here("stop", cwd=project)
    assert found.returncode == 1
    assert "no run is going on" in found.stderr
    service.reset()
    found = here(*RUN, cwd=project)
    assert found.returncode == 0, found.stderr
    assert totals(service)["received"] == 2 * ROWS - done


@pytest.mark.long
def test_a_killed_runs_socket_is_in_nobodys_way(project: Path, service: Simulator, launch: Launch) -> None:
    run = launch(*RUN, cwd=project)
    wait_until(lambda: totals(service)["answered"] >= 20, "20 answers")
    run.send_signal(signal.SIGKILL)
    run.wait(COMMAND_S)
    assert (project / FOLDER / "run.sock").exists()
    assert "killed" in here("status", cwd=project).stdout
    found = here("sql", "SELECT count(*) AS c FROM source", cwd=project)
    assert (found.returncode, found.stdout) == (0, f"c\n{ROWS}\n"), found.stderr
    assert here("stop", FOLDER, cwd=project).returncode == 1
    found = here("resume", FOLDER, cwd=project)
    assert found.returncode == 0, found.stderr
    assert ask(project / FOLDER, "SELECT count(*) FROM b WHERE status = 'done'") == [(ROWS,)]
    assert not (project / FOLDER / "run.sock").exists()


@pytest.mark.long
def test_it_is_exported(project: Path, service: Simulator, launch: Launch) -> None:
    run = launch(*RUN, "stages.a.max_parallel_requests=1", cwd=project)
    wait_until(lambda: totals(service)["answered"] >= 20, "20 answers")
    found = here("export", FOLDER, "r.csv", "--columns", "n,a_status", "--where", "a_status = 'done'", cwd=project)
    assert found.returncode == 0, found.stderr
    assert "the run goes on" in found.stderr
    lines = (project / "r.csv").read_text().splitlines()
    assert lines[0] == "n,a_status"
    assert 0 < len(lines) - 1 < ROWS
    assert lines[1:] == [f"{n},done" for n in range(len(lines) - 1)]
    query = "SELECT sum(n) AS total, count(*) AS rows FROM source"
    assert here("export", FOLDER, "s.jsonl", "--sql", query, cwd=project).returncode == 0
    assert json.loads((project / "s.jsonl").read_text()) == {"total": sum(range(ROWS)), "rows": ROWS}
    found = here("export", FOLDER, "t.csv", "--columns", "a_txt", cwd=project)
    assert (found.returncode, "Did you mean 'a_text'?" in found.stderr) == (1, True)
    assert here("stop", FOLDER, cwd=project).returncode == 0
    assert run.wait(COMMAND_S) == 130


@pytest.mark.long
def test_it_is_one_of_many_and_one_of_two(project: Path, service: Simulator, launch: Launch) -> None:
    done = here("run", "+experiment=mine", "hydra.run.dir=outputs/whole", cwd=project)
    assert done.returncode == 0, done.stderr
    before = totals(service)["answered"]
    run = launch(*RUN, "stages.a.max_parallel_requests=1", cwd=project)
    wait_until(lambda: totals(service)["answered"] >= before + 20, "20 answers")
    query = (
        "SELECT max_parallel_requests AS slots, status, count(*) AS c, count(text) AS texts FROM run JOIN a "
        "USING (run_id, max_parallel_requests) GROUP BY ALL ORDER BY slots"
    )
    query = query.replace("status", "run.status")
    found = here("sql", "--all", query, "--format", "jsonl", cwd=project)
    assert (found.returncode, found.stderr) == (0, "")
    live, whole = map(json.loads, found.stdout.splitlines())
    assert whole == {"slots": 6, "status": "done", "c": ROWS, "texts": ROWS}
    assert (live["slots"], live["status"]) == (1, "running")
    assert 0 < live["c"] == live["texts"] < ROWS
    found = here("sql", "--all", "SELECT count(*) FROM aa", cwd=project)
    assert (found.returncode, 'Did you mean "a"?' in found.stderr) == (1, True)

    found = here("diff", "outputs/whole", FOLDER, "--stage", "a", "--format", "jsonl", cwd=project)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    counts = re.search(r"a: (\d+) rows in both; (\d+) same answer, 0 different answer, (\d+) only in A\n", found.stderr)
    assert counts is not None, found.stderr
    both, same, only = map(int, counts.groups())
    assert live["c"] <= both == same < ROWS
    assert both + only == ROWS
    assert here("stop", FOLDER, cwd=project).returncode == 0
    assert run.wait(COMMAND_S) == 130
