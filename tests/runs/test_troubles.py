"""What a run says of requests that fail while their rows still wait, and when it stops by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.schema import GuardsConfig
from infermesh.runs.guards import Guards
from infermesh.runs.progress import Rates
from infermesh.runs.stats import RunStats, StageStats, Trouble
from infermesh.simulator import Simulator
from tests.support import (
    COMMAND_S,
    Lab,
    Watch,
    ask,
    command,
    environment,
    experiment,
    generate,
    infermesh,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

Start = Callable[..., Simulator]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class TestFirstErrors:
    def stats(self, **counts: Any) -> RunStats:
        return RunStats({"a": StageStats(total=1000, **counts)})

    def tripped(self, stats: RunStats, most: int | None = 20) -> str | None:
        stats.errors = sum(stage.failed for stage in stats.stages.values())
        return Guards(GuardsConfig(first_errors=most)).tripped(stats)

    def failing(self, *kinds: tuple[str, bool], done: int = 0) -> RunStats:
        stats = self.stats(done=done)
        for number, (kind, lasting) in enumerate(kinds):
            stats.stages["a"].fail(kind, f"{kind} {number}", lasting=lasting)
        return stats

    def test_twenty_alike_that_no_retry_mends(self) -> None:
        assert self.tripped(self.failing(*[("not_found", True)] * 19)) is None
        said = self.tripped(self.failing(*[("not_found", True)] * 20))
        assert said is not None
        assert "first_errors is 20: the first 20 rows of a" in said
        assert "not_found 0" in said

    @pytest.mark.parametrize(
        "stats",
        [
            pytest.param(lambda self: self.failing(*[("server", False)] * 30), id="a retry may mend them"),
            pytest.param(
                lambda self: self.failing(*[("server", False)], *[("server", True)] * 30), id="a retry may mend one"
            ),
            pytest.param(lambda self: self.failing(*[("bad_request", True)] * 30, ("not_found", True)), id="two kinds"),
            pytest.param(lambda self: self.failing(*[("bad_request", True)] * 30, done=1), id="one was answered"),
        ],
    )
    def test_what_does_not_stop_a_run(self, stats: Callable[[TestFirstErrors], RunStats]) -> None:
        assert self.tripped(stats(self)) is None

    def test_it_can_be_left_out(self) -> None:
        assert self.tripped(self.failing(*[("not_found", True)] * 100), None) is None

    def test_a_run_with_a_wrong_key_stops_and_goes_on_with_the_right_one(
        self, lab: Lab, start_simulator: Start
    ) -> None:
        simulator = start_simulator(api_key="right")
        lab.rows(texts(300))
        mapping = experiment(simulator.url, {"a": generate(max_parallel_requests=4)})
        mapping["deployments"]["d"]["api_key_env"] = "KEY"
        outcome = lab.run(mapping, environ={"KEY": "wrong"})
        assert (outcome.status, outcome.exit_code) == ("stopped", 4)
        assert "guards.first_errors is 20" in (outcome.reason or "")
        assert "401" in (outcome.reason or "")
        assert totals(simulator)["received"] <= 24
        assert lab.run(mapping, environ={"KEY": "right"}).status == "done"
        assert lab.one("SELECT count(*) FROM a WHERE status = 'done'") == 300

    def test_rows_that_a_content_filter_refuses_are_rows_in_a_table(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(filter_marker="Refused")
        lab.rows([{"text": f"Refused {number}."} for number in range(30)] + texts(1))
        mapping = experiment(simulator.url, {"a": generate(max_parallel_requests=4)})
        assert lab.run(mapping).counts == {"a": {"done": 1, "error": 30}}

    def test_rows_that_cannot_be_read_are_rows_in_a_table(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(["no json"] * 30 + texts(1))
        outcome = lab.run(experiment(simulator.url, {"a": generate()}))
        assert outcome.counts == {"a": {"done": 1, "error": 30}}


class TestTold:
    def untold(self, stats: RunStats, *away: str) -> list[str]:
        return stats.untold(lambda label: label in away)

    def test_each_kind_once_after_a_second(self) -> None:
        stats = RunStats({})
        young = Trouble("a", "gpu", "server", "HTTP 500: no", True, 3)
        old = Trouble("a", "gpu", "rate_limit", "HTTP 429: slow", True, 2, since=time.monotonic() - 2)
        lasting = Trouble("b", "gpu", "bad_request", "HTTP 400: no", False, 1, since=time.monotonic() - 2)
        stats.troubles = {(each.stage, each.deployment, each.kind): each for each in (young, old, lasting)}
        assert self.untold(stats) == [
            "a at gpu: rate_limit: HTTP 429: slow (2 requests so far; each is tried again)",
            "b at gpu: bad_request: HTTP 400: no (1 request so far; no retry mends it, so that its rows fail)",
        ]
        assert self.untold(stats) == []

    def test_not_where_the_deployment_is_told_to_be_away(self) -> None:
        stats = RunStats({})
        stats.troubles = {("a", "gpu", "x"): Trouble("a", "gpu", "x", "no", True, 2, since=time.monotonic() - 2)}
        assert self.untold(stats, "gpu") == []

    def test_requests_are_counted_while_their_rows_wait(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"server_error": 1.0})
        lab.rows(texts(4))
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["models"]["m"]["max_retries"] = 2
        seen: list[tuple[int, int]] = []
        watch = Watch(lambda stats: seen.append((stats.requests, stats.settled)))
        assert lab.run(mapping, watch=watch).exit_code == 3
        assert any(requests and not settled for requests, settled in seen)
        assert any("a at d: server: HTTP 500" in note and "tried again" in note for note in watch.notes)
        assert lab.one("SELECT count(*) FROM attempts WHERE error LIKE 'HTTP 500%'") == totals(simulator)["received"]


@pytest.mark.long
def test_attempts_of_one_answer_have_numbers_of_their_own(lab: Lab, start_simulator: Start) -> None:
    """Also where a question is asked again after an answer that does not fit, and fails in between."""
    simulator = start_simulator(faults={"invalid_json_content": 0.5, "server_error": 0.4}, seed=3)
    lab.rows(texts(12))
    mapping = experiment(simulator.url, {"a": generate(response_format=SCHEMA, on_invalid="retry")})
    lab.run(mapping)
    assert lab.one("SELECT count(*) FROM attempts") == totals(simulator)["received"]
    numbers = lab.sql("SELECT list(attempt ORDER BY attempt) FROM attempts GROUP BY row_id")
    assert all(found == list(range(1, len(found) + 1)) for (found,) in numbers)
    assert max(len(found) for (found,) in numbers) > 2
    assert (
        lab.one(
            "SELECT count(*) FROM a JOIN (SELECT row_id, count(*) n FROM attempts GROUP BY 1) USING (row_id) "
            "WHERE attempts <> n"
        )
        == 0
    )


def test_status_says_of_a_live_run_who_does_not_answer(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(30))
    write_experiment(tmp_path, experiment(f"http://127.0.0.1:{free_port()}/v1", {"a": generate()}))
    run = subprocess.Popen(
        command("run", "+experiment=mine", "hydra.run.dir=out"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert run.stderr is not None
        while "cannot be reached" not in (line := run.stderr.readline()):
            assert line
        said = wait_until(
            lambda: (found := infermesh("status", "out", cwd=tmp_path).stdout).count("a at d") and found, "its attempts"
        )
        assert "connection refused" in said
        assert "rows of a wait for another try" in said
        assert " 0 requests" not in said
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(COMMAND_S) == 130
    finally:
        run.kill()
        run.communicate()
    assert ask(tmp_path / "out", "SELECT count(*) > 0 FROM attempts WHERE error LIKE '%connection refused%'") == [
        (True,)
    ]


def test_the_time_left_does_not_jump_where_little_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time, every four seconds: half a row a second, whichever seconds one looks at."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stats = RunStats({"a": StageStats(total=200)})
    rates, left = Rates(), []
    for tick in range(0, 400):
        now = tick / 4
        stats.settled = stats.stages["a"].done = 2 * (tick // 16)
        rates.update(stats)
        if now > 60:
            left.append((200 - stats.settled) / rates.states - (200 - stats.settled) / 0.5)
    assert max(map(abs, left)) < 20
