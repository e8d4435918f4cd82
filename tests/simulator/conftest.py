from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from typing import Any
from urllib.parse import urlsplit

import pytest

from infermesh.simulator import Simulator, SimulatorSettings


@dataclass
class Reply:
    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def text(self) -> str:
        """The first choice's content."""
        return str(self.json()["choices"][0]["message"]["content"])

    def code(self) -> Any:
        error = self.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error["code"]


def ask(simulator: Any, path: str, body: Any, headers: dict[str, str] | None = None, method: str = "POST") -> Reply:
    address = urlsplit(simulator.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def chat(simulator: Any, prompt: str = "Hello there.", **fields: Any) -> Reply:
    body = {"model": "any", "messages": [{"role": "user", "content": prompt}], **fields}
    return ask(simulator, "/v1/chat/completions", body)


def upload(simulator: Any, clip: bytes, **fields: str) -> Reply:
    boundary = "a-boundary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in {"model": "any", **fields}.items()
    ]
    disposition = 'form-data; name="file"; filename="clip.wav"'
    parts.append(f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + clip + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return ask(simulator, "/v1/audio/transcriptions", body, headers)


def wav(seconds: float, comment: str | None = None, language: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(2 * int(seconds * 8000)))
    data = buffer.getvalue()
    info = b"INFO"
    for name, value in ((b"ICMT", comment), (b"ILNG", language)):
        if value is not None:
            content = value.encode() + b"\0"
            info += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    data += b"LIST" + struct.pack("<I", len(info)) + info
    return b"RIFF" + struct.pack("<I", len(data) - 8) + data[8:]


@pytest.fixture
def start() -> Iterator[Callable[..., Simulator]]:
    """Start simulators with the given settings; they are closed after the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Simulator(SimulatorSettings(**settings)))


# The helpers as fixtures: a test module cannot import its conftest by a name that holds in every layout.
@pytest.fixture(name="ask")
def _ask() -> Callable[..., Reply]:
    return ask


@pytest.fixture(name="chat")
def _chat() -> Callable[..., Reply]:
    return chat


@pytest.fixture(name="upload")
def _upload() -> Callable[..., Reply]:
    return upload


@pytest.fixture(name="wav")
def _wav() -> Callable[..., bytes]:
    return wav


@pytest.fixture
def with_sdk(start: Callable[..., Simulator]) -> Iterator[Callable[..., tuple[Simulator, Any]]]:
    """Start simulators with the given settings of batches, each with a provider's SDK at its URL."""
    with ExitStack() as stack:

        def begin(
            sdk: Callable[[str], AbstractContextManager[Any]],
            faults: dict[str, Any] | None = None,
            plain: dict[str, Any] | None = None,
            **batches: Any,
        ) -> tuple[Simulator, Any]:
            simulator = start(batches=batches, faults=faults or {}, **(plain or {}))
            return simulator, stack.enter_context(sdk(simulator.url))

        yield begin
