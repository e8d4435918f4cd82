"""A wish to stop that comes from outside: before the first row, or to a run that is not in the main thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest

from infermesh.errors import StoreError
from infermesh.query.reader import RunReader, request_stop
from infermesh.query.server import SOCKET, LiveServer
from infermesh.runs.outcome import RunOutcome
from infermesh.runtime import signals
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.support import Lab, Watch, experiment, generate, texts, totals, wait_until


def test_before_the_loop_runs_it_is_not_lost(lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.rows(texts(50))
    enter = LiveServer.__enter__

    def stopped_at_once(server: LiveServer) -> LiveServer:
        entered = enter(server)
        next(request_stop(lab.folder))
        return entered

    monkeypatch.setattr(LiveServer, "__enter__", stopped_at_once)
    outcome = lab.run(experiment(simulator.url, {"a": generate(max_parallel_requests=2)}))
    assert outcome.exit_code == 130
    assert totals(simulator)["received"] < 50
    monkeypatch.undo()
    assert lab.run(experiment(simulator.url, {"a": generate()})).exit_code == 0
    assert totals(simulator)["received"] == 50


def test_in_a_thread_and_beside_a_loop(lab: Lab, start_simulator: Any) -> None:
    service = start_simulator(latency_s=0.05)
    lab.rows(texts(200))
    found: list[RunOutcome] = []
    mapping = experiment(service.url, {"a": generate(max_parallel_requests=2)})
    thread = threading.Thread(target=lambda: found.append(lab.run(mapping)))
    thread.start()
    wait_until((lab.folder / SOCKET).exists, "the socket")
    wait_until(lambda: totals(service)["answered"] >= 5, "5 answers")
    with RunReader(lab.folder) as reader:
        assert reader.live
        assert reader.execute("SELECT count(*) > 0 FROM a").fetchall() == [(True,)]

    async def stop() -> None:
        await asyncio.to_thread(lambda: list(request_stop(lab.folder)))

    asyncio.run(stop())
    thread.join(20)
    assert found[0].exit_code == 130
    assert totals(service)["abandoned"] == 0
    assert lab.one("SELECT count(*) FROM a WHERE status = 'done'") == totals(service)["received"] < 200


@pytest.mark.parametrize(("together_s", "dropped"), [(1000.0, 0), (0.0, 4)])
def test_signals_that_belong_together_are_one_wish(
    lab: Lab, start_simulator: Any, monkeypatch: pytest.MonkeyPatch, together_s: float, dropped: int
) -> None:
    """Each look at the run sends one, while requests are in flight."""
    monkeypatch.setattr(signals, "TOGETHER_S", together_s)
    service = start_simulator(latency_s=0.8)
    lab.rows(texts(20))
    watch = Watch(
        lambda stats: os.kill(os.getpid(), signal.SIGTERM) if service.stats()["totals"]["in_flight"] else None
    )
    outcome = lab.run(experiment(service.url, {"a": generate(max_parallel_requests=4)}), watch=watch)
    assert outcome.exit_code == 130
    assert lab.sql("SELECT error_type, count(*) FROM attempts GROUP BY ALL") == [("stopped" if dropped else None, 4)]
    said = [note for note in watch.notes if "dropped" in note]
    assert [note.partition(":")[0] for note in said] == (["4 sent requests dropped"] if dropped else [])


def test_two_stages_of_one_model_store_what_was_in_flight(lab: Lab, start_simulator: Any) -> None:
    service = start_simulator(latency_s=0.7)
    lab.rows(texts(20))
    mapping = experiment(
        service.url, {"a": generate(), "b": generate("Again: {{ text }}")}, guards={"max_duration": 0.9}
    )
    mapping["deployments"]["d"]["max_parallel_requests"] = 4
    outcome = lab.run(mapping)
    assert outcome.exit_code == 4
    assert totals(service)["abandoned"] == 0
    done = sum(counts.get("done", 0) for counts in outcome.counts.values())
    assert done == totals(service)["received"] < 40


def test_a_database_that_is_cut_short_meanwhile(lab: Lab, start_simulator: Any) -> None:
    service = start_simulator(latency_s=0.05)
    lab.rows(texts(200, filler="x" * 2000))
    mapping = experiment(service.url, {"a": generate(max_parallel_requests=2)})

    limited = mapping | {"source": mapping["source"] | {"limit": 2}}
    assert lab.run(limited).status == "done"  # DuckDB writes its file at a session's end

    def cut(stats: Any) -> None:
        place = lab.folder / DATABASE
        if stats.settled >= 4 and place.stat().st_size > 20_000:
            os.truncate(place, 20_000)

    with pytest.raises(StoreError, match=r"run\.duckdb was cut short while the run had it open\. What stood"):
        lab.run(mapping, watch=Watch(cut))
    assert totals(service)["received"] < 200


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_database_that_is_taken_away_meanwhile(lab: Lab, start_simulator: Any, how: str) -> None:
    service = start_simulator(latency_s=0.05)
    lab.rows(texts(200))
    mapping = experiment(service.url, {"a": generate(max_parallel_requests=2)}, sinks={"s": {"path": "s.jsonl"}})
    elsewhere = lab.root / "elsewhere"

    def take_away(stats: Any) -> None:
        if stats.settled < 2 or elsewhere.exists():
            return
        lab.folder.rename(elsewhere)
        if how == "deleted":
            (elsewhere / DATABASE).unlink()
        if how == "replaced":
            lab.folder.mkdir()
            (lab.folder / DATABASE).write_bytes(b"")

    with pytest.raises(
        StoreError, match=r"run\.duckdb was deleted, moved or replaced while the run had it open\. What"
    ):
        lab.run(mapping, watch=Watch(take_away))
    assert totals(service)["received"] < 200
    assert not (lab.folder / "s.jsonl").exists()
    if how == "moved":
        lab.folder = elsewhere
        assert lab.one("SELECT count(*) FROM a") == totals(service)["received"]
        assert lab.one("SELECT status FROM run") == "crashed"
