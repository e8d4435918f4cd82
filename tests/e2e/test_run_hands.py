"""Hands on a live run: pause, continue, set. The servers say what has come of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    experiment,
    generate,
    here,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 2000
FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
CHANGES = "SELECT what, old, new FROM changes ORDER BY changed_at"
ENGINES = pytest.mark.parametrize(
    "engine", [pytest.param({}, id="process"), pytest.param({"workers": 2}, id="local", marks=pytest.mark.long)]
)


@pytest.fixture
def servers(start_simulator: Callable[..., Simulator]) -> list[Simulator]:
    return [start_simulator(latency_s=0.05), start_simulator(latency_s=0.05)]


def project(root: Path, servers: list[Simulator], *, rows: int = ROWS, **sections: Any) -> Path:
    write_jsonl(root / "rows.jsonl", texts(rows))
    mapping = experiment(servers[0].url, {"a": generate(max_parallel_requests=8)}, **sections)
    mapping["deployments"] = {
        label: {"model": "hosted_vllm/any", "api_base": server.url, "limits": "team"}
        for label, server in zip("de", servers, strict=False)
    }
    mapping["models"]["m"]["deployments"] = ["d", "e"]
    mapping.setdefault("limits", {"team": {"rpm": 100_000}})
    write_experiment(root, mapping)
    return root


def answered(servers: list[Simulator]) -> int:
    return sum(int(totals(server)["answered"]) for server in servers)


def say(root: Path, *words: str, code: int = 0) -> str:
    done = here(*words, cwd=root)
    assert done.returncode == code, done.stderr
    return done.stderr


def stop(root: Path, run: Any) -> str:
    say(root, "stop", FOLDER)
    assert run.wait(COMMAND_S) == 130
    return str(run.stderr.read())


@ENGINES
def test_pause_and_go_on(tmp_path: Path, servers: list[Simulator], launch: Launch, engine: dict[str, Any]) -> None:
    root = project(tmp_path, servers, engine=engine)
    run = launch(*RUN, "--progress", "json", cwd=root)
    wait_until(lambda: answered(servers) >= 20, "20 answers")
    assert "paused: no request is sent" in say(root, "pause", FOLDER)
    assert "paused already" in say(root, "pause", FOLDER)
    assert run.stdout is not None
    lines = iter(run.stdout)
    said = next(line for line in lines if "(paused at" in line)
    assert f"infermesh continue {FOLDER}" in said
    settled = next(line for line in lines if '"event":"progress"' in line)  # a second later
    before = answered(servers)
    next(line for line in lines if '"event":"progress"' in line)
    assert answered(servers) == before < ROWS, settled
    assert "going on" in say(root, "continue")
    wait_until(lambda: answered(servers) >= before + 50, "answers after the pause")
    say(root, "pause")
    assert "going on after a pause" in stop(root, run)  # a stop ends the pause
    expected = [("paused", "false", "true"), ("paused", "true", "false"), ("paused", "false", "true")]
    assert ask(root / FOLDER, CHANGES) == expected


@ENGINES
def test_limits_windows_and_weights(
    tmp_path: Path, servers: list[Simulator], launch: Launch, engine: dict[str, Any]
) -> None:
    root = project(tmp_path, servers, engine=engine, limits={"team": {"rpm": 60}})
    run = launch(*RUN, cwd=root)
    wait_until(lambda: answered(servers) >= 2, "two answers, a second apart")
    said = say(
        root, "set", FOLDER, "limits.team.rpm=12000", "stages.a.max_parallel_requests=16", "deployments.e.weight=0"
    )
    assert "limits.team.rpm: 60 → 12000" in said
    wait_until(lambda: totals(servers[0])["answered"] >= 200, "answers at the new rate")  # at 60 a minute: 200 s
    before = totals(servers[1])["received"]
    reached = totals(servers[0])["answered"]
    wait_until(lambda: totals(servers[0])["answered"] >= reached + 100, "100 more")
    assert totals(servers[1])["received"] == before
    assert totals(servers[0])["max_in_flight"] > 8
    say(root, "set", "deployments.e.weight=1", "deployments.d.max_parallel_requests=1")
    wait_until(lambda: totals(servers[1])["received"] > before + 50, "requests at the other server again")
    stop(root, run)
    assert ask(root / FOLDER, CHANGES) == [
        ("limits.team.rpm", "60", "12000"),
        ("stages.a.max_parallel_requests", "8", "16"),
        ("deployments.e.weight", "1", "0"),
        ("deployments.e.weight", "0", "1"),
        ("deployments.d.max_parallel_requests", None, "1"),
    ]


def test_what_cannot_be_set_is_refused_with_what_can(tmp_path: Path, servers: list[Simulator], launch: Launch) -> None:
    root = project(tmp_path, servers)
    run = launch(*RUN, cwd=root)
    wait_until(lambda: answered(servers) >= 5, "answers")
    for change, words in {
        "stages.a.max_paralel_requests=3": "Did you mean 'stages.a.max_parallel_requests'?",
        "stages.a.prompt=x": r"What can be set: limits.team.rpm \(tpm, rpd, tpd\), .*guards.max_cost_usd",
        "limits.team.rpm=0": "limits.team.rpm: input should be greater than 0",
        "limits.team.rpm=fast": "limits.team.rpm: expected a number, or null",
        "limits.team.rpd=5": "limits.team.rpd: a quota a day can be raised or lowered",
        "deployments.d.limits.rpm=5": "set limits.team.rpm",
        "deployments.d.weight=-1": "deployments.d.weight: input should be greater than or equal to 0",
    }.items():
        assert re.search(words, say(root, "set", FOLDER, change, code=1)), change
    both = say(root, "set", FOLDER, "deployments.d.weight=0", "deployments.e.weight=0", code=1)
    assert "models.m: all its deployments have weight 0" in both
    stop(root, run)
    assert ask(root / FOLDER, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'changes'") == [(0,)]
    assert "no run is going on" in say(root, "pause", FOLDER, code=1)


def test_a_resume_goes_by_what_was_kept_alone(tmp_path: Path, servers: list[Simulator], launch: Launch) -> None:
    root = project(tmp_path, servers, rows=400, limits={"team": {"rpm": 600}})
    run = launch(*RUN, cwd=root)
    wait_until(lambda: answered(servers) >= 5, "answers")
    say(root, "set", FOLDER, "stages.a.max_parallel_requests=64")
    assert "kept: a resume" in say(root, "set", FOLDER, "--keep", "limits.team.rpm=30000")
    stop(root, run)
    query = "SELECT config->>'$.limits.team.rpm', config->>'$.stages.a.max_parallel_requests' FROM run"
    assert ask(root / FOLDER, query) == [("30000", "8")]
    assert re.search(r"rpm: 30000", (root / FOLDER / ".hydra" / "config.yaml").read_text())
    assert "resuming" in say(root, "resume", FOLDER)
    assert ask(root / FOLDER, "SELECT count(*) FROM a WHERE status = 'done'") == [(400,)]
    ((elapsed_s,),) = ask(root / FOLDER, "SELECT elapsed_s FROM sessions ORDER BY session DESC LIMIT 1")
    assert elapsed_s < 20  # at 600 a minute: 35 s
