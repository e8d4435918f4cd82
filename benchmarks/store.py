"""What the store takes in: `python -m benchmarks.store`.

An event loop puts the states of a generate stage, each telling of its one request, as fast as the writer commits them,
holding back at the runner's own backlog. A probe notes how late the loop's timers come meanwhile. Beside it a file of
JSON lines, the least that anybody could do to keep the same values, and a commit for each row. Then the states of an
embed stage, with vectors of 1,024 numbers.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Target, isolated, rounds, script
from benchmarks.jobs import LagProbe, idle

WRITER, FILE, SINGLY = "group-commit writer", "JSON lines, no database", "a commit for each row"
VECTORS, DIMENSIONS = "group-commit writer, vectors", 1024
IDLE = "an idle loop"
_BACKLOG = 20_000
_TURN = 64  # rows put in one turn of the loop, as many as are in flight in a usual run


def state(row_id: int) -> tuple[Any, ...]:
    """A settled row of a generate stage."""
    now = datetime.now(UTC).replace(tzinfo=None)
    text = f"The capital of France is Paris, on the Seine. {row_id}"
    answer = (text, None, None, "stop", None, None)
    key = f"{row_id:032x}"
    return (
        row_id,
        "done",
        *answer,
        None,
        None,
        1,
        "d",
        "static",
        "chatcmpl-1",
        key,
        12,
        11,
        None,
        0.0,
        0.01,
        now,
        None,
        True,
    )


def open_tables(path: Path) -> Any:
    """A database with a generate stage's table; gives the connection and the tables' columns."""
    from infermesh.stages.generate import Generate
    from infermesh.store.connection import connect_to_write
    from infermesh.store.schema import StageTable

    stage = StageTable("s0", Generate.columns)
    connection = connect_to_write(path, {"threads": 2}, 16_384)
    connection.execute("SET memory_limit = '256MB'")
    connection.execute(stage.ddl)
    return connection, {"s0": stage.columns}


def through_writer(states: int) -> dict[str, float]:
    """Put so many states from an event loop; made for ``isolated``."""
    from infermesh.runtime.loop import run_loop
    from infermesh.store.writer import GroupWriter

    async def put_all(connection: Any, tables: Any) -> tuple[float, LagProbe]:
        room, probe, loop = asyncio.Event(), LagProbe(), asyncio.get_running_loop()

        def committed(_: int) -> None:
            loop.call_soon_threadsafe(room.set)

        writer = GroupWriter(connection.cursor(), tables, on_commit=committed)
        probe.start()
        started = time.perf_counter()
        for row_id in range(states):
            writer.put("s0", state(row_id))
            if not row_id % _TURN:
                await asyncio.sleep(0)
            while writer.backlog > _BACKLOG:
                room.clear()
                await room.wait()
        await asyncio.to_thread(writer.close)
        took = time.perf_counter() - started
        probe.stop()
        return took, probe

    with tempfile.TemporaryDirectory() as folder:
        connection, tables = open_tables(Path(folder) / "run.duckdb")
        with connection:
            measured: tuple[float, LagProbe] = run_loop(put_all(connection, tables))
            for table in tables:
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (states,)
    took, probe = measured
    return {"seconds": took / states} | probe.summary()


def vectors(states: int) -> dict[str, float]:
    """Put so many states of an embed stage, and close the database; made for ``isolated``."""
    from infermesh.config.schema import StoreConfig
    from infermesh.stages.embed import Embed
    from infermesh.store import RunStore
    from infermesh.store.schema import StageTable
    from infermesh.store.writer import GroupWriter

    table = StageTable("s0", Embed.columns)
    made = [array("f", [random.uniform(-1, 1) for _ in range(DIMENSIONS)]).tobytes() for _ in range(200)]
    blank = (None,) * (len(table.columns) - 3)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "run.duckdb", StoreConfig(), vectors=True)
        with store.cursor() as connection:
            connection.execute(table.ddl)
        writer = GroupWriter(store.cursor(), {"s0": table.columns})
        started = time.perf_counter()
        for row_id in range(states):
            writer.put("s0", (row_id, "done", made[row_id % len(made)], *blank), size=4 * DIMENSIONS)
            while writer.is_behind(states, 48_000_000):
                time.sleep(0.001)
        writer.close()
        store.close()
        return {"seconds": (time.perf_counter() - started) / states}


def to_file(states: int) -> dict[str, float]:
    """The same values as JSON lines."""
    import orjson

    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "states.jsonl", "wb") as lines:
        started = time.perf_counter()
        for row_id in range(states):
            lines.write(orjson.dumps(state(row_id)) + b"\n")
        lines.flush()
        return {"seconds": (time.perf_counter() - started) / states}


def singly(states: int) -> dict[str, float]:
    """A transaction for each row."""
    with tempfile.TemporaryDirectory() as folder:
        connection, tables = open_tables(Path(folder) / "run.duckdb")
        insert = f"INSERT INTO s0 VALUES ({', '.join('?' * len(tables['s0']))})"
        with connection:
            started = time.perf_counter()
            for row_id in range(states):
                connection.begin()
                connection.execute(insert, state(row_id))
                connection.commit()
            return {"seconds": (time.perf_counter() - started) / states}


def measure(quick: bool) -> Result:
    """The writer and what it is compared with."""
    states, few, count = (20_000, 50, 2) if quick else (100_000, 500, 3)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        WRITER: partial(isolated, through_writer, states=states),
        FILE: partial(isolated, to_file, states=states),
        SINGLY: partial(isolated, singly, states=few),
        VECTORS: partial(isolated, vectors, states=states // 4),
        IDLE: partial(isolated, idle, seconds=2),
    }
    found = rounds(count, ways)
    middle = {name: statistics.median([each["seconds"] for each in found[name]]) for name in ways if name != IDLE}
    worst, idle_worst = (max(each["worst_ms"] for each in found[name]) for name in (WRITER, IDLE))
    return Result(
        "store",
        "The store",
        f"{states:,} states of a generate stage, put from an event loop ({few:,} singly); {count} rounds by turns; "
        "medians.",
        ["", "states/s", "µs a state"],
        [[name, f"{1 / each:,.0f}", f"{1e6 * each:.1f}"] for name, each in middle.items()],
        [
            Target("row states a second through the writer", 1 / middle[WRITER], 30_000),
            Target("vectors through the writer", 4e-6 * DIMENSIONS / middle[VECTORS], 100, "MB/s"),
            Target("writing flat out: the event loop late by at most", worst, 20, "ms", at_least=False),
        ],
        [f"The timers of a loop that does nothing else, between the rounds, were late by at most {idle_worst:.1f} ms."],
    )


if __name__ == "__main__":
    script(measure)
