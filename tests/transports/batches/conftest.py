"""A wire at the package's own simulator, and what is done with any wire."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.deployment import DeploymentConfig
from infermesh.simulator import Simulator, SimulatorSettings
from infermesh.transports import make_transport
from infermesh.transports.batches import BatchStatus, BatchWire, LineResult, make_batch_wire
from infermesh.transports.litellm import import_litellm
from infermesh.types import Request, Transport
from infermesh.wire.requests import generation_request

DEADLINE_S = 20.0
KEY = "sk-bench-0123456789abcdef"
MODELS = {
    "openai": "openai/gpt-4.1-mini",
    "anthropic": "anthropic/claude-sonnet-4-5",
    "gemini": "gemini/gemini-2.5-flash",
}
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _quiet_litellm() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="session")
def litellm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_litellm()


def chat(text: str, **params: Any) -> Request:
    return generation_request("chat_completion", text, params)


def chats(count: int) -> list[Request]:
    return [chat(f"One. Two {number}.") for number in range(count)]


@dataclass
class Bench:
    """A wire, the transport beside it, and the simulator at their other end."""

    wire: BatchWire
    transport: Transport
    simulator: Simulator
    folder: Path
    requests: dict[str, Request] = field(default_factory=dict)

    def write(self, requests: Sequence[Request], token: str = TOKEN) -> Path:
        path = self.folder / f"{token}.jsonl"
        with path.open("wb") as file:
            for number, request in enumerate(requests):
                custom_id = f"{token[:8]}-{number}"
                self.requests[custom_id] = request
                file.write(self.wire.line(custom_id, request))
        return path

    async def create(self, requests: Sequence[Request], token: str = TOKEN) -> BatchStatus:
        path = self.write(requests, token)
        file_id = await self.wire.upload(path, f"infermesh-{token}.jsonl") if self.wire.uploads else None
        return await self.wire.create(token, requests[0].operation, file_id, path)

    async def until(self, batch_id: str, true: Callable[[BatchStatus], Any]) -> BatchStatus:
        until = time.monotonic() + DEADLINE_S
        while not true(status := await self.wire.status(batch_id)):
            assert time.monotonic() < until, f"waited {DEADLINE_S:g} s, and it is {status}"
            await asyncio.sleep(0.01)
        return status

    async def ended(self, batch_id: str) -> BatchStatus:
        return await self.until(batch_id, lambda status: status.phase != "working")

    async def results(self, status: BatchStatus) -> list[LineResult]:
        """The results, with the requests that they answer at hand."""
        target = self.folder / "results"
        target.unlink(missing_ok=True)
        target.touch()
        await self.wire.download(status, target)
        found = []
        with target.open("rb") as file:
            for line in file:
                try:
                    custom_id = self.wire.result(line).custom_id
                except ValueError:
                    continue
                found.append(self.wire.result(line, self.requests.get(custom_id or "")))
        return found

    async def run(self, requests: Sequence[Request]) -> dict[str, LineResult]:
        """custom_id → the first result."""
        made = await self.create(requests)
        found: dict[str, LineResult] = {}
        for each in await self.results(await self.ended(made.id)):
            found.setdefault(str(each.custom_id), each)
        return found


@pytest.fixture
async def bench(tmp_path: Path, litellm: Any) -> AsyncIterator[Callable[..., Bench]]:
    """Make benches of a provider: its wire at a new simulator with these settings of batches, or at another's."""
    made: list[Bench] = []
    with ExitStack() as stack:

        def begin(
            provider: str, *, beside: Bench | None = None, plain: Any = None, key: str = KEY, **batches: Any
        ) -> Bench:
            settings = SimulatorSettings(batches=batches, **(plain or {}))
            simulator = beside.simulator if beside is not None else stack.enter_context(Simulator(settings))
            config = DeploymentConfig(MODELS[provider], simulator.url, api_key=key)
            transport = make_transport(config, label="d")
            made.append(Bench(make_batch_wire("d", config.model, transport), transport, simulator, tmp_path))
            return made[-1]

        yield begin
        for each in made:
            await each.wire.aclose()
            await each.transport.aclose()
