"""Failed rows of a run that goes on are sent again beside its other rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from infermesh.errors import StoreError
from infermesh.query.reader import ask_hands, request_stop
from infermesh.query.server import SOCKET
from infermesh.runs.outcome import RunOutcome
from infermesh.simulator import Simulator
from tests.support import DEADLINE_S, Lab, Watch, experiment, generate, texts, totals, wait_until

Start = Callable[..., Simulator]


class Going:
    """A run in a thread of its own."""

    def __init__(self, lab: Lab, mapping: Mapping[str, Any]) -> None:
        self.lab = lab
        self.watch = Watch()
        self.found: list[RunOutcome] = []
        self.thread = threading.Thread(target=lambda: self.found.append(lab.run(mapping, watch=self.watch)))

    def retry(self, stage: str, where: str = "status = 'error'") -> list[str]:
        return list(ask_hands(self.lab.folder, {"op": "retry", "stage": stage, "where": where}))

    def set(self, *changes: str) -> None:
        ask_hands(self.lab.folder, {"op": "set", "changes": list(changes)})

    def end(self) -> RunOutcome:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        return self.found[0]


@contextmanager
def going(lab: Lab, mapping: Mapping[str, Any]) -> Iterator[Going]:
    run = Going(lab, mapping)
    run.thread.start()
    try:
        wait_until((lab.folder / SOCKET).exists, "the socket")
        wait_until(lambda: run.watch.stats is not None, "the first request")
        yield run
    finally:
        if run.thread.is_alive():
            with suppress(StoreError):
                list(request_stop(lab.folder))
        run.thread.join(40)


@pytest.fixture
def service(start_simulator: Start) -> Simulator:
    return start_simulator(latency_s=0.1)


@pytest.fixture
def shaky(lab: Lab, service: Simulator) -> dict[str, Any]:
    """A function that fails while a file is there, a stage that reads it, and a slow one beside both."""
    lab.rows(texts(60))
    broken = lab.root / "broken"
    broken.touch()
    (lab.root / "shaky_function.py").write_text(
        "from pathlib import Path\n\n\n"
        "def answer(row):\n"
        f"    if Path({str(broken)!r}).exists():\n"
        "        raise ValueError('broken')\n"
        "    return {'text': row['text'].upper()}\n"
    )
    function = {"kind": "python", "function": "shaky_function:answer", "columns": {"text": "VARCHAR"}, "max_retries": 0}
    stages = {
        "b": generate("{{ a.text }} Once more.", max_parallel_requests=16),
        "c": generate("On its own: {{ text }}", max_parallel_requests=2),
    }
    mapping = experiment(service.url, stages, guards={"first_errors": None})
    mapping["stages"] = {"a": {**function, "max_parallel_requests": 16}, **mapping["stages"]}
    return mapping


def test_beside_the_others(lab: Lab, shaky: dict[str, Any]) -> None:
    with going(lab, shaky) as run:
        wait_until(lambda: run.watch.stats and run.watch.stats.stages["c"].done >= 8, "rows that are over")
        (lab.root / "broken").unlink()
        said = run.retry("a")
        assert said[0].split()[1:4] == ["failed", "rows", "of"]
        sent = int(said[0].split()[0])
        assert 8 <= sent < 60
        assert "cannot be sent now" in said[1]
        with pytest.raises(StoreError, match="nowhere"):
            run.retry("a", "nowhere = 1")
        with pytest.raises(StoreError, match="no such stage over rows"):
            run.retry("x")
        run.set("stages.c.max_parallel_requests=64")
        outcome = run.end()
    assert outcome.status == "failed_rows"
    assert outcome.counts["a"] == {"done": sent, "error": 60 - sent}
    assert outcome.counts["b"] == {"done": sent, "skipped": 60 - sent}
    assert outcome.counts["c"] == {"done": 60}
    assert lab.one("SELECT count(*) FROM attempts WHERE stage = 'a'") == 60 + sent
    assert lab.one("SELECT new FROM changes WHERE what = 'retry a'") == f"{sent} rows where status = 'error'"
    stats = run.watch.stats
    assert stats is not None
    assert {name: (each.done, each.failed, each.skipped, each.in_flight) for name, each in stats.stages.items()} == {
        "a": (sent, 60 - sent, 0, 0),
        "b": (sent, 0, 60 - sent, 0),
        "c": (60, 0, 0, 0),
    }
    assert (stats.rows, stats.errors) == (60, 60 - sent)


def test_a_row_is_never_in_two_hands(lab: Lab, service: Simulator, shaky: dict[str, Any]) -> None:
    """Asked again and again, and failing again: each time a row is sent once, and the window holds."""
    with going(lab, shaky) as run:
        wait_until(lambda: run.watch.stats and run.watch.stats.stages["c"].done >= 8, "rows that are over")
        sent = sum(int(run.retry("a")[0].split()[0]) for _ in range(5))
        (lab.root / "broken").unlink()
        run.set("stages.c.max_parallel_requests=3")
        sent += int(run.retry("a")[0].split()[0])
        run.set("stages.c.max_parallel_requests=64")
        run.end()
    assert lab.one("SELECT count(*) FROM attempts WHERE stage = 'a'") == 60 + sent
    assert totals(service)["received"] == lab.one("SELECT count(*) FROM attempts WHERE stage <> 'a'")


def test_a_stop_leaves_them_to_a_resume(lab: Lab, shaky: dict[str, Any]) -> None:
    with going(lab, shaky) as run:
        wait_until(lambda: run.watch.stats and run.watch.stats.stages["c"].done >= 4, "rows that are over")
        (lab.root / "broken").unlink()
        run.retry("a")
        list(request_stop(lab.folder))
        assert run.end().status == "interrupted"
    assert lab.run(shaky).status == "done"
    assert lab.sql("SELECT status, count(*) FROM b GROUP BY ALL") == [("done", 60)]


def test_with_workers_it_says_what_to_do(lab: Lab, service: Simulator) -> None:
    lab.rows(texts(200))
    mapping = experiment(service.url, {"a": generate(max_parallel_requests=2)}, engine={"kind": "local", "workers": 2})
    with (
        going(lab, mapping) as run,
        pytest.raises(StoreError, match=r"with workers: once it has ended, infermesh retry .* --stage a sends them"),
    ):
        run.retry("a")
