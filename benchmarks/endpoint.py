"""A static OpenAI-compatible endpoint in a process of its own: the same answer to everything, as fast as can be.

nginx serves it where it is installed, otherwise a protocol of sixty lines on uvloop. Either way the client under
measurement is the bottleneck, and not the endpoint.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "static",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The capital of France is Paris, on the Seine."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 11, "total_tokens": 23},
    }
).encode()
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_NGINX = """daemon off; worker_processes 1; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {folder}; proxy_temp_path {folder};
fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
server {{ listen 127.0.0.1:{port} backlog=4096; default_type application/json;
location / {{ return 200 '{answer}'; }} }} }}
"""


class _Static(asyncio.Protocol):
    """Counts off request bodies by their content-length, and answers each."""

    def __init__(self) -> None:
        self._answer = _HEAD % len(ANSWER) + ANSWER
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        answers = 0
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            _, found, rest = self._data[:end].lower().partition(b"content-length:")
            whole = end + 4 + (int(rest.split(b"\r\n", 1)[0]) if found else 0)
            if len(self._data) < whole:
                break
            self._data = self._data[whole:]
            answers += 1
        if answers:
            self._transport.write(self._answer * answers)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Static, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _wait_for(port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


@contextmanager
def static_endpoint() -> Iterator[str]:
    """Run the endpoint; gives its base URL."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        if nginx := shutil.which("nginx"):
            config = Path(folder, "nginx.conf")
            config.write_text(_NGINX.format(folder=folder, port=port, answer=ANSWER.decode()))
            command = [nginx, "-c", str(config)]
        else:
            command = [sys.executable, "-m", "benchmarks.endpoint", str(port)]
        process = subprocess.Popen(command)
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(int(sys.argv[1])))
