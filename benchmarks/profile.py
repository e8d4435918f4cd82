"""Where the time of one request goes, layer by layer: `python -m benchmarks.profile`.

Each layer by itself in a tight loop, in microseconds of CPU for one row of a run with one generate stage, so that
before and after can be laid side by side. What no layer accounts for is the event loop, the tasks, and the two threads'
taking turns at the interpreter.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from benchmarks.endpoint import ANSWER, static_endpoint
from benchmarks.harness import BARE, Result, isolated, rounds, script
from benchmarks.jobs import PROMPT, run_once
from benchmarks.loops import prompts, timed
from benchmarks.store import open_tables, state

WINDOW = 64
RENDER, BUILD, SENDING, DISPATCH, PARSE, RUNNER, PUT, COMMIT, READ = (
    "template: render the prompt",
    "wire: build the request, and its key",
    "transport: native send, decode",
    "dispatch: retry, route, limit, metrics",
    "replies: parse the answer",
    "runner: admit, window, settle, attempts",
    "store: put a state",
    "store: commit it (writer's thread)",
    "store: read a pending row (reader's thread)",
)


class _NullTransport:
    """Answers at once with what the static endpoint would say."""

    async def send(self, request: Any, timeout: float | None) -> Any:
        return _reply()

    async def aclose(self) -> None:
        pass


class _NullWriter:
    """Takes everything and keeps nothing."""

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False, size: int = 0) -> None:
        pass

    def is_behind(self, rows: int, size: int) -> bool:
        return False


class _Rows:
    """Pending rows that are there already."""

    row_bytes = 100

    def __init__(self, chunks: Sequence[list[Any]]) -> None:
        self.chunks = range(len(chunks))
        self.read = chunks.__getitem__


def _reply() -> Any:
    from infermesh.types import Reply

    return Reply(200, _BODY, _no_header)


def _no_header(name: str) -> None:
    return None


_BODY = orjson.loads(ANSWER)


def _cpu(turn: Callable[[int], Any], count: int) -> float:
    """CPU seconds of one turn; a tenth of the turns go before to warm up."""
    for number in range(count // 10):
        turn(number)
    before = time.process_time()
    for number in range(count):
        turn(number)
    return (time.process_time() - before) / count


def _cpu_of_workers(ask: Callable[[int], Any], count: int, window: int = WINDOW) -> Any:
    """The same for a coroutine, by so many workers."""

    async def spread(numbers: range) -> None:
        left = iter(numbers)

        async def worker() -> None:
            for number in left:
                await ask(number)

        await asyncio.gather(*[worker() for _ in range(window)])

    async def main() -> float:
        await spread(range(count // 10))
        before = time.process_time()
        await spread(range(count))
        return (time.process_time() - before) / count

    return main()


def _model() -> Any:
    from infermesh.client.build import client_model, deployment_configs
    from infermesh.dispatch.retry import RetryPolicy
    from infermesh.limits import Limits

    configs = deployment_configs("hosted_vllm/static", "http://127.0.0.1:9/v1", None, None)
    model, deployments = client_model(
        "m",
        configs,
        account=Limits(),
        strategy="simple-shuffle",
        endpoint="chat_completion",
        retry=RetryPolicy(),
        timeout=600.0,
    )
    deployments[0].transport = _NullTransport()
    return model, deployments


def _stage() -> Any:
    from infermesh.config.schema import GenerateStage
    from infermesh.stages import StageContext
    from infermesh.stages.generate import Generate

    config = GenerateStage(kind="generate", model="m", prompt=PROMPT, max_parallel_requests=WINDOW)
    return Generate("s0", config, StageContext({"m": _model()[0]}, []))


def rendering(count: int) -> dict[str, float]:
    """The template alone."""
    from infermesh.inputs.templates import Template

    template = Template(PROMPT, "prompt")
    return {RENDER: _cpu(lambda number: template.render({"id": number, "note": "x"}), count)}


def building(count: int) -> dict[str, float]:
    """From a rendered prompt to the request and its key, the wire bytes included."""
    from infermesh.wire.requests import request_key

    model, texts = _model()[0], prompts(count)
    return {
        BUILD: _cpu(
            lambda number: request_key(model.generation_request(texts[number], model.params), model.identity), count
        )
    }


def sending(count: int, url: str) -> dict[str, float]:
    """The native transport alone, requests ready made; its HTTP threads' CPU is counted with it."""
    from infermesh.runtime.loop import run_loop
    from infermesh.transports import NativeTransport
    from infermesh.wire.requests import generation_request, payload_bytes

    transport = NativeTransport(label="d", model="static", api_base=url)
    requests = [generation_request("chat_completion", text, {}) for text in prompts(count)]
    for request in requests:
        payload_bytes(request)
    return {SENDING: run_loop(_cpu_of_workers(lambda number: transport.send(requests[number], 600.0), count))}


def dispatching(count: int) -> dict[str, float]:
    """Dispatch over a transport that answers at once."""
    from infermesh.dispatch import Router
    from infermesh.dispatch.dispatcher import Dispatcher
    from infermesh.results import TokenUsage
    from infermesh.runtime.loop import run_loop
    from infermesh.types import Request

    dispatcher = Dispatcher(Router(_model()[1]))
    request, parsed = Request("chat_completion", {}), (None, TokenUsage(12, 11, 23))
    ask = partial(dispatcher.send, request, lambda reply: parsed, 600.0)
    return {DISPATCH: run_loop(_cpu_of_workers(lambda number: ask(), count))}


def parsing(count: int) -> dict[str, float]:
    """From the decoded body to the typed result."""
    from infermesh.wire.answers import parse_generation

    return {PARSE: _cpu(lambda number: parse_generation("chat_completion", _reply()), count)}


def running(count: int) -> dict[str, float]:
    """The runner over a stage that answers at once and a writer that keeps nothing."""
    from infermesh.results import Attempt, GenerationResult, RequestMetrics, TokenUsage
    from infermesh.runs.runner import Runner
    from infermesh.runs.stats import RunStats, StageStats
    from infermesh.runtime.loop import run_loop
    from infermesh.stages import Prepared
    from infermesh.stages.graph import StageGraph
    from infermesh.store.pending import CHUNK, Row

    stage = _stage()
    prepared = Prepared(None, "0" * 32)
    attempts = [Attempt(1, "d", time.time(), 0.0, 0.01, 200, None, 12, 11)]
    usage = TokenUsage(12, 11, 23)

    async def answer(item: Any) -> Any:
        metrics = RequestMetrics("d", 0.0, 0.01, 0.01, 0, attempts)
        return GenerationResult("chatcmpl-1", "static", usage, None, metrics, None, "Paris.")

    stage.prepare, stage.answer = lambda context, mapped=None: prepared, answer
    rows = [Row(number, {"id": number, "note": "x"}, None, {}) for number in range(count)]
    chunks = [rows[start : start + CHUNK] for start in range(0, count, CHUNK)]
    stats = RunStats({"s0": StageStats(count)})

    async def main() -> float:
        writer: Any = _NullWriter()
        pending: Any = _Rows(chunks)
        runner = Runner(StageGraph({"s0": stage}), writer, stats, filters={}, stale=set(), keep_errors=False)
        before = time.process_time()
        await runner.run(pending)
        return (time.process_time() - before) / count

    found = {RUNNER: run_loop(main())}
    assert stats.stages["s0"].done == count
    return found


def storing(count: int) -> dict[str, float]:
    """Putting a state; then its commit, with all others."""
    from infermesh.store.writer import GroupWriter

    states = [state(row) for row in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        connection, tables = open_tables(Path(folder) / "run.duckdb")
        with connection:
            put = commit = 0.0
            for start in range(0, count, 2000):  # a group; the writer would wake at 4,096 rows
                writer = GroupWriter(connection.cursor(), tables, interval=3600)
                before = time.process_time()
                for row in range(start, min(start + 2000, count)):
                    writer.put("s0", states[row])
                middle = time.process_time()
                writer.close()
                put, commit = put + middle - before, commit + time.process_time() - middle
            ((stored,),) = connection.execute("SELECT count(*) FROM s0").fetchall()
    return {PUT: put / stored, COMMIT: commit / stored}


def reading(count: int) -> dict[str, float]:
    """The feeder's chunks out of a database that holds the source."""
    from infermesh.store.pending import PendingRows
    from infermesh.store.schema import RETIRED_DDL, SOURCE_ERRORS_DDL, StageTable

    with tempfile.TemporaryDirectory() as folder:
        connection, _ = open_tables(Path(folder) / "run.duckdb")
        with connection:
            for ddl in (RETIRED_DDL, SOURCE_ERRORS_DDL):
                connection.execute(ddl)
            connection.execute(
                "CREATE TABLE source AS SELECT i AS row_id, i::VARCHAR AS row_key, i AS id, repeat('x', 100) AS note "
                f"FROM range({count}) t(i)"
            )
            table = StageTable("s0", type(_stage()).columns)
            rows = PendingRows(connection.cursor(), "source", [table], {"s0": []}, stale=(), keep_errors=False)
            before = time.process_time()
            read = sum(len(rows.read(chunk)) for chunk in rows.chunks)
            took = time.process_time() - before
    assert read == count
    return {READ: took / count}


def measure(quick: bool) -> Result:
    """Every layer, then the whole."""
    count, requests, whole, times = (2_000, 2_000, 3_000, 2) if quick else (20_000, 20_000, 30_000, 3)
    with static_endpoint() as url:

        def every_layer() -> dict[str, float]:
            parts: list[dict[str, float]] = [
                isolated(layer, count=count)
                for layer in (rendering, building, dispatching, parsing, running, storing, reading)
            ]
            parts.append(isolated(sending, count=count, url=url))
            return {name: seconds for part in parts for name, seconds in part.items()}

        ways: dict[str, Callable[[], dict[str, float]]] = {
            "layers": every_layer,
            BARE: partial(isolated, timed, way=BARE, url=url, requests=requests, window=WINDOW),
            "batch": partial(isolated, timed, way="generate_batch", url=url, requests=requests, window=WINDOW),
            "run": partial(isolated, run_once, url=url, rows=whole, stages=1, window=WINDOW),
        }
        found = rounds(times, ways)
    order = (RENDER, BUILD, DISPATCH, SENDING, PARSE, RUNNER, PUT, COMMIT, READ)
    layers = {name: statistics.median([each[name] for each in found["layers"]]) for name in order}

    def each(way: str, number: int) -> list[str]:
        cpu, wall = (statistics.median([one[key] / number for one in found[way]]) for key in ("cpu_s", "seconds"))
        return [f"{1e6 * cpu:.1f}", f"{1e6 * wall:.1f}"]

    rows = [[name, f"{1e6 * seconds:.1f}", ""] for name, seconds in layers.items()]
    rows += [
        ["all layers", f"{1e6 * sum(layers.values()):.1f}", ""],
        ["run, whole", *each("run", whole)],
        ["generate_batch, whole", *each("batch", requests)],
        [BARE, *each(BARE, requests)],
    ]
    return Result(
        "profile",
        "Where the time of one request goes",
        f"Microseconds of CPU, of all threads, for one row of a run with one generate stage: each layer by itself "
        f"{count:,} times, then the whole; {WINDOW} in flight, {times} rounds by turns, medians. The right column is "
        "the clock's.",
        ["", "CPU µs", "elapsed µs"],
        rows,
    )


if __name__ == "__main__":
    script(measure)
