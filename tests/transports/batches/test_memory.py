"""A batch's lines and results pass in blocks: memory does not grow by their size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from aiohttp import web

from infermesh.config.deployment import DeploymentConfig
from infermesh.transports import make_transport
from infermesh.transports.batches import BatchStatus, make_batch_wire
from tests.transports.batches.conftest import MODELS, TOKEN
from tests.transports.conftest import serving

MB = 10**6
LINE = orjson.dumps({"custom_id": f"{TOKEN[:8]}-1", "params": {"text": "word " * 20_000}}) + b"\n"
LINES = 100 * MB // len(LINE) + 1


@contextmanager
def no_more_than(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


async def test_100_mb_there_and_back(tmp_path: Path) -> None:
    received = sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal received, sent
        if request.method == "POST":
            async for block in request.content.iter_any():
                received += len(block)
            return web.json_response({"id": "msgbatch_1", "processing_status": "in_progress", "request_counts": {}})
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(LINES):
            await response.write(LINE)
            sent += 1
        return response

    lines = tmp_path / "lines"
    with lines.open("wb") as file:
        for _ in range(LINES):
            file.write(LINE)
    model = MODELS["anthropic"]
    async with serving(answer) as url:
        transport = make_transport(DeploymentConfig(model, url, api_key="k"), label="d")
        wire = make_batch_wire("d", model, transport)
        with no_more_than(8 * MB):
            await wire.create(TOKEN, "chat_completion", None, lines)
        assert received == lines.stat().st_size + len('{"requests":[]}') - 1  # commas between lines, not behind
        ended = BatchStatus("msgbatch_1", "ended", "ended", files=(f"{url}/v1/messages/batches/msgbatch_1/results",))
        with no_more_than(8 * MB):
            await wire.download(ended, tmp_path / "results")
        assert (tmp_path / "results").stat().st_size == lines.stat().st_size
        with no_more_than(8 * MB):  # of an ended batch only the beginning is read, to know whose it is
            sent = 0
            assert await wire._is_own(ended, TOKEN)  # type: ignore[attr-defined]
            await wire.aclose()
        assert sent < LINES // 2
