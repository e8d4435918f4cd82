"""Servers that this project did not write, each started once on a free port and ended by its process group.

One that is not installed skips its tests and says how to install it: ``python tests/engines/install.py NAME``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines.install import ENGINES, python_of

HERE = Path(__file__).parent
_START_S = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("engines")


def pytest_report_header() -> list[str]:
    return [f"engines: {ENGINES}: {', '.join(sorted(found.name for found in ENGINES.glob('*'))) or 'none installed'}"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Engine:
    """A server's process, which can be killed and started again at its port."""

    def __init__(self, name: str, command: Callable[[int], Sequence[str | Path]], ready: str, log: Path) -> None:
        self.name, self.port, self._command, self._ready, self._log = name, free_port(), command, ready, log
        self.root = f"http://127.0.0.1:{self.port}"
        self.base = f"{self.root}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in self._command(self.port)], stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                pytest.fail(f"{self.name} did not start: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.root + self._ready, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code != 503  # which says that it loads its model
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _needs(name: str, path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{name} is not installed: python tests/engines/install.py {name}")


@contextmanager
def _running(engine: Engine) -> Iterator[Engine]:
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def llmock(logs: Path) -> Iterator[Callable[..., Engine]]:
    """Start llmock with options of its own."""
    program = python_of("llmock").with_name("llmock")
    _needs("llmock", program)
    engines: list[Engine] = []

    def start(*options: str) -> Engine:
        def command(port: int) -> Sequence[str | Path]:
            return [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", *options]

        engines.append(Engine("llmock", command, "/v1/models", logs / "llmock.log"))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.kill()


FIXTURES: list[dict[str, Any]] = [
    {"match": {"userMessage": "capital"}, "response": {"content": "Paris."}},
    *(
        {
            "match": {"userMessage": f"limited over {wire}", "sequenceIndex": 0},
            "response": {"error": {"message": "slow down", "type": "rate_limit_error"}, "status": 429, "retryAfter": 1},
        }
        for wire in ("openai", "anthropic", "gemini", "cohere_chat")  # the emulator counts over all its wires
    ),
    {"match": {"userMessage": "limited"}, "response": {"content": "after the limit"}},
    {
        "match": {"userMessage": "too long"},
        "response": {"error": {"message": "prompt is too long: 9 tokens > 5 maximum"}, "status": 400},
    },
    {"match": {"userMessage": "forbidden"}, "response": {"error": {"message": "no access"}, "status": 403}},
    {"match": {"userMessage": "broken"}, "response": {"error": {"message": "internal"}, "status": 500}},
    {
        "match": {"userMessage": "weather"},
        "response": {"toolCalls": [{"name": "look", "arguments": '{"city":"Rome"}'}]},
    },
    {"match": {"userMessage": "cut"}, "response": {"content": "This was c", "finishReason": "length"}},
    {"match": {"userMessage": "json"}, "response": {"content": '{"city": "Rome"}'}},
    {"match": {"userMessage": "row"}, "response": {"content": "a row"}},
]


@pytest.fixture(scope="session")
def aimock(logs: Path) -> Iterator[Engine]:
    """aimock with :data:`FIXTURES`."""
    program = ENGINES / "aimock" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    _needs("aimock", program)
    fixtures = logs / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": FIXTURES}))

    def command(port: int) -> Sequence[str | Path]:
        return ["node", program, "-p", str(port), "-h", "127.0.0.1", "-f", fixtures, "--log-level", "warn"]

    with _running(Engine("aimock", command, "/v1/models", logs / "aimock.log")) as engine:
        yield engine


def _llamacpp(logs: Path, *options: str) -> Engine:
    model = ENGINES / "models" / "smollm2.gguf"
    _needs("llamacpp", model)

    def command(port: int) -> Sequence[str | Path]:
        return [python_of("llamacpp"), HERE / "serve_llamacpp.py", model, str(port), *options]

    return Engine("llama.cpp", command, "/health", logs / "llamacpp.log")


@pytest.fixture(scope="session")
def llamacpp(logs: Path) -> Iterator[Engine]:
    """llama.cpp with a small model."""
    with _running(_llamacpp(logs)) as engine:
        yield engine


@pytest.fixture(scope="session")
def llamacpp_embeddings(logs: Path) -> Iterator[Engine]:
    """llama.cpp that embeds."""
    with _running(_llamacpp(logs, "--embeddings")) as engine:
        yield engine
