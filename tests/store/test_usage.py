"""What today has used of the quotas, over runs."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from infermesh.config.load import load
from infermesh.config.schema import Experiment
from infermesh.dispatch.fleet import Fleet
from infermesh.limits import LocalRateLimiter
from infermesh.store import connection as opening
from infermesh.store import usage
from infermesh.store.schema import ATTEMPTS_DDL, RUN_DDL, attempts_view
from infermesh.store.usage import used_today
from tests.support import experiment, generate

NOON = dt.datetime(2031, 5, 6, 12, tzinfo=dt.UTC)
TODAY = NOON.date()
URL = "http://127.0.0.1:9/v1"


def declared(**sections: Any) -> dict[str, Any]:
    deployments = {"d": {"model": "hosted_vllm/any", "api_base": URL, "limits": {"rpd": 20}}}
    return experiment(URL, {"a": generate()}, **({"deployments": deployments} | sections))


class Runs:
    """A folder of runs whose databases hold the given attempts."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.notes: list[str] = []

    def add(self, name: str, config: dict[str, Any], attempts: Sequence[tuple[Any, ...]], at: dt.datetime) -> Path:
        """Attempts are ``(deployment, started_at, error_type, prompt_tokens, completion_tokens)``."""
        folder = self.outputs / name
        folder.mkdir(parents=True)
        with duckdb.connect(str(folder / "run.duckdb")) as connection:
            connection.execute(RUN_DDL)
            connection.execute(ATTEMPTS_DDL)
            connection.execute(attempts_view([]))
            connection.execute("INSERT INTO run (config) VALUES (?)", [orjson.dumps(config).decode()])
            for deployment, started, error, prompt, completion in attempts:
                connection.execute(
                    "INSERT INTO attempts_log (deployment, started_at, error_type, prompt_tokens, completion_tokens) "
                    "VALUES (?, ?, ?, ?, ?)",
                    [deployment, started.replace(tzinfo=None), error, prompt, completion],
                )
        os.utime(folder / "run.duckdb", (at.timestamp(), at.timestamp()))
        return folder

    def used(self, config: dict[str, Any], **options: Any) -> dict[str, tuple[float, float]]:
        found = used_today(load(config), None, self.outputs, None, self.notes.append, wall=NOON.timestamp, **options)
        assert all(count.date == TODAY for count in found.values())
        return {label: (count.requests, count.tokens) for label, count in found.items()}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "outputs")


def test_requests_and_tokens_since_midnight(runs: Runs) -> None:
    morning, yesterday = NOON.replace(hour=1), NOON.replace(day=5, hour=23)
    runs.add(
        "one",
        declared(),
        [
            ("d", morning, None, 10, 5),
            ("d", yesterday, None, 1000, 1000),
            ("d", NOON, "timeout", None, None),
            ("d", NOON, "rate_limit", None, None),  # turned away, as the limiter sees it too
            ("d", NOON, "connection", None, None),
        ],
        NOON,
    )
    assert runs.used(declared()) == {"d": (2, 15)}


def test_a_run_not_written_since_midnight_is_not_opened(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.add("old", declared(), [("d", NOON, None, 1, 1)], NOON.replace(day=5))
    fresh = runs.add("new", declared(), [("d", NOON, None, 1, 1)], NOON)
    opened: list[Path] = []
    connect = opening.connect

    def watched(path: Path, **options: Any) -> duckdb.DuckDBPyConnection:
        opened.append(path)
        return connect(path, **options)

    monkeypatch.setattr(usage, "connect", watched)
    assert runs.used(declared()) == {"d": (1, 2)}
    assert opened == [fresh / "run.duckdb"]
    opened.clear()
    without = {"d": {"model": "hosted_vllm/any", "api_base": URL, "limits": {"rpm": 20}}}
    assert runs.used(declared(deployments=without)) == {}
    assert opened == []


def test_the_log_beside_a_database_tells_when_it_was_written(runs: Runs) -> None:
    """A killed run's last commits stand in its log alone."""
    folder = runs.add("killed", declared(), [("d", NOON, None, 1, 1)], NOON.replace(day=5))
    with duckdb.connect(str(folder / "run.duckdb"), config={"checkpoint_threshold": "1TB"}) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("INSERT INTO attempts_log SELECT * FROM attempts")
    log = folder / "run.duckdb.wal"
    assert log.exists()
    os.utime(folder / "run.duckdb", (0, 0))
    os.utime(log, (NOON.timestamp(), NOON.timestamp()))
    assert runs.used(declared()) == {"d": (2, 4)}


@pytest.mark.parametrize(
    ("entry", "counts"),
    [
        ({"model": "hosted_vllm/any", "api_base": f"{URL}/"}, True),
        ({"model": "hosted_vllm/other", "api_base": URL}, False),
        ({"model": "hosted_vllm/any", "api_base": "http://127.0.0.1:8/v1"}, False),
        ({"model": "hosted_vllm/any", "api_base": URL, "api_key_env": "TEAM_KEY"}, False),
    ],
)
def test_the_same_deployment_under_another_label(runs: Runs, entry: dict[str, Any], counts: bool) -> None:
    runs.add("other", declared(name="other", deployments={"x": entry}), [("x", NOON, None, 3, 4)], NOON)
    assert runs.used(declared()) == {"d": (1, 7) if counts else (0, 0)}


def test_twins_are_told_apart_by_their_labels(runs: Runs) -> None:
    twin = {"model": "hosted_vllm/any", "api_base": URL, "limits": {"rpd": 9}}
    config = declared(deployments={"d": twin, "e": twin})
    runs.add("one", config, [("d", NOON, None, 1, 0), ("e", NOON, None, 1, 0), ("e", NOON, None, 1, 0)], NOON)
    assert runs.used(config) == {"d": (1, 1), "e": (2, 2)}


def test_an_account_sums_over_its_deployments(runs: Runs) -> None:
    def entry(model: str) -> dict[str, Any]:
        return {"model": f"hosted_vllm/{model}", "api_base": URL, "limits": "team"}

    config = declared(limits={"team": {"rpd": 100, "tpd": 1000}}, deployments={"d": entry("x"), "e": entry("y")})
    runs.add("one", config, [("d", NOON, None, 1, 2), ("e", NOON, None, 4, 8)], NOON)
    real = dt.datetime.now(dt.UTC).date()  # the fleet's limiters live by the real clock
    experiment: Experiment = load(config)
    fleet = Fleet(experiment, environ={})
    counted = used_today(experiment, None, runs.outputs, None, runs.notes.append, wall=NOON.timestamp)
    told = fleet.restore_usage({label: count._replace(date=real) for label, count in counted.items()})
    assert told == ["account team has used 2 requests and 15 tokens today"]
    (limiter,) = [limiter for _, limiter, _ in fleet._daily()]
    assert isinstance(limiter, LocalRateLimiter)
    assert limiter.used_today is not None
    assert (limiter.used_today.requests, limiter.used_today.tokens) == (2, 15)


@pytest.fixture
def held(runs: Runs) -> Iterator[Path]:
    """A run that another process is at."""
    import subprocess
    import sys

    folder = runs.add("live", declared(), [("d", NOON, None, 1, 1)], NOON)
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); c.execute('create table held (i int)'); "
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "run.duckdb")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        os.utime(folder / "run.duckdb", (NOON.timestamp(), NOON.timestamp()))
        yield folder
        process.stdin.close()


def test_a_live_run_is_asked_or_told_of(runs: Runs, held: Path) -> None:
    assert runs.used(declared()) == {"d": (0, 0)}
    assert runs.notes == [f"{held} is running: what it uses of today's quotas is not counted here"]

    def live(folder: Path, sql: str) -> list[tuple[Any, ...]]:
        assert folder == held
        return [("d", 7, 70)] if "attempts" in sql else [(orjson.dumps(declared()).decode(),)]

    runs.notes.clear()
    assert runs.used(declared(), live=live) == {"d": (7, 70)}
    assert runs.notes == []


def test_what_is_no_run_is_passed_over(runs: Runs) -> None:
    folder = runs.outputs / "broken"
    folder.mkdir(parents=True)
    (folder / "run.duckdb").write_bytes(b"no database")
    os.utime(folder / "run.duckdb", (NOON.timestamp(), NOON.timestamp()))
    (runs.outputs / "empty").mkdir()
    duckdb.connect(str(runs.outputs / "empty" / "run.duckdb")).close()
    assert runs.used(declared()) == {"d": (0, 0)}
    assert [note.split(":")[0] for note in runs.notes] == [str(folder)]
