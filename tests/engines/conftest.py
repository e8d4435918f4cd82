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

from tests.engines.install import AIMOCK, ENGINES, HERE, LLAMA, SMOLLM2, VERSIONS, WHISPER, program

_START_S = 180.0
# No engine asks anything outside this machine, and each takes one core.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("engines")


def pytest_report_header() -> list[str]:
    installed = ", ".join(sorted(found.name for found in ENGINES.glob("*") if found.is_dir())) or "none installed"
    pins = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    return [f"engines in {ENGINES}: {installed}", f"pinned: {pins}"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


KEY = "sk-of-the-engines-1234"  # of those that ask for one


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
                [str(part) for part in self._command(self.port)],
                stdout=log,
                stderr=log,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
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
    serving = program("llmock", "llmock")
    _needs("llmock", serving)
    engines: list[Engine] = []

    def start(*options: str) -> Engine:
        def command(port: int) -> Sequence[str | Path]:
            return [serving, "serve", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", *options]

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
    _needs("aimock", AIMOCK)
    fixtures = logs / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": FIXTURES}))

    def command(port: int) -> Sequence[str | Path]:
        return ["node", AIMOCK, "-p", str(port), "-h", "127.0.0.1", "-f", fixtures, "--log-level", "warn"]

    with _running(Engine("aimock", command, "/v1/models", logs / "aimock.log")) as engine:
        yield engine


def _llamacpp(logs: Path, *options: str) -> Engine:
    _needs("llamacpp", SMOLLM2)

    def command(port: int) -> Sequence[str | Path]:
        return [program("llamacpp"), HERE / "serve_llamacpp.py", SMOLLM2, str(port), *options]

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


@pytest.fixture(scope="session")
def vllm(logs: Path) -> Iterator[Engine]:
    """vLLM on this CPU with a small random model, which it calls ``tiny``."""
    _needs("vllm", LLAMA)

    def command(port: int) -> Sequence[str | Path]:
        where = ("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny")
        size = ("--max-model-len", "1024", "--max-num-seqs", "16", "--dtype", "float32", "--enforce-eager")
        # A random model would fill its JSON with blanks to the end.
        terse = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
        return [program("vllm", "vllm"), "serve", LLAMA, *where, *size, *terse, "--api-key", KEY]

    with _running(Engine("vLLM", command, "/health", logs / "vllm.log")) as engine:
        yield engine


@pytest.fixture(scope="session")
def transformers(logs: Path) -> Iterator[Engine]:
    """``transformers serve`` with the same model, which it calls by its folder."""
    _needs("vllm", LLAMA)

    def command(port: int) -> Sequence[str | Path]:
        return [program("vllm", "transformers"), "serve", LLAMA, "--host", "127.0.0.1", "--port", str(port)]

    with _running(Engine("transformers serve", command, "/health", logs / "transformers.log")) as engine:
        yield engine


@pytest.fixture(scope="session")
def whisper(logs: Path) -> Iterator[Engine]:
    """faster-whisper-server with the smallest Whisper, which it calls by its folder."""
    _needs("whisper", WHISPER)

    def command(port: int) -> Sequence[str | Path]:
        return [program("whisper", "faster-whisper-server"), WHISPER, "--host", "127.0.0.1", "--port", str(port)]

    with _running(Engine("faster-whisper-server", command, "/v1/models", logs / "whisper.log")) as engine:
        yield engine


@pytest.fixture(scope="session")
def proxy(logs: Path, aimock: Engine) -> Iterator[Engine]:
    """LiteLLM's proxy: canned answers, aimock behind it, a model of 60 requests a minute, one whose server is away."""
    serving = program("proxy", "litellm")
    _needs("proxy", serving)
    behind = {
        "canned": {"model": "openai/canned", "api_key": "x", "mock_response": "canned answer"},
        "gpt": {"model": "openai/gpt-4.1-mini", "api_base": aimock.base, "api_key": "x"},
        "claude": {"model": "anthropic/claude-sonnet-4-5", "api_base": aimock.root, "api_key": "x"},
        "limited": {"model": "openai/gpt-4.1-mini", "api_base": aimock.base, "api_key": "x", "rpm": 30},
        "dead": {"model": "openai/dead", "api_base": "http://127.0.0.1:9/v1", "api_key": "x"},
    }
    config = {
        "model_list": [{"model_name": name, "litellm_params": params} for name, params in behind.items()],
        "litellm_settings": {"num_retries": 0, "request_timeout": 60, "telemetry": False},
        "router_settings": {"num_retries": 0, "optional_pre_call_checks": ["enforce_model_rate_limits"]},
        "general_settings": {"master_key": KEY},
    }
    file = logs / "proxy.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML

    def command(port: int) -> Sequence[str | Path]:
        return [serving, "--config", file, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]

    with _running(Engine("LiteLLM's proxy", command, "/health/liveliness", logs / "proxy.log")) as engine:
        yield engine
