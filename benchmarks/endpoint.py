"""OpenAI-compatible endpoints in a process of their own: the same answer to everything, as fast as can be.

`static_endpoint` is nginx where it is installed, otherwise a protocol of a hundred lines on uvloop. Either way the
client under measurement is the bottleneck, and not the endpoint. `watching_endpoint` is always the protocol: it can
answer late, and it tells when requests came in, which nginx does not. `tls_endpoint` is the static one over TLS, with a
path that is never answered. `embedding_endpoint` gives vectors, in base64 where it is asked for them so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from array import array
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import environment

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
server {{ listen 127.0.0.1:{port} backlog=4096{secure}; default_type application/json; {more}
location / {{ return 200 '{answer}'; }} }} }}
"""
_TLS = """ssl_certificate {certificate}; ssl_certificate_key {certificate};
location /v1/never/ {{ proxy_pass {behind}; proxy_read_timeout 600s; proxy_http_version 1.1; }}"""
_NEVER = b"POST /v1/never/"
_BUCKETS_A_SECOND = 100


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests came in: the first and the last on ``time.monotonic``, and how many in each hundredth second."""

    first: float
    last: float
    counts: dict[int, int]

    @property
    def total(self) -> int:
        """How many came."""
        return sum(self.counts.values())

    def buckets(self, start: float, end: float, width_s: float) -> list[int]:
        """How many came in each whole ``width_s`` between two times."""
        width = round(width_s * _BUCKETS_A_SECOND)
        first, last = (int(at * _BUCKETS_A_SECOND) for at in (start, end))
        return [
            sum(self.counts.get(slot + offset, 0) for offset in range(width))
            for slot in range(first, last - width + 1, width)
        ]


class Answers:
    """What an endpoint answers, as whole responses.

    Parameters
    ----------
    characters
        Of a chat's answer; 0: the short one.
    texts
        Of each request for embeddings.
    dimensions
        Of an embedding.
    """

    def __init__(self, characters: int = 0, texts: int = 1, dimensions: int = 0) -> None:
        body = ANSWER
        if characters:
            answer = json.loads(ANSWER)
            answer["choices"][0]["message"]["content"] = long_text(characters)
            body = json.dumps(answer).encode()
        self.chat = _HEAD % len(body) + body
        vectors = [[random.uniform(-1, 1) for _ in range(dimensions)] for _ in range(texts)]
        packed = [b64encode(array("f", each).tobytes()).decode() for each in vectors]
        self.numbers, self.packed = _embeddings(vectors), _embeddings(packed)

    def to(self, request: bytes) -> bytes:
        """The answer to a request."""
        if not request.startswith(b"POST /v1/embeddings"):
            return self.chat
        return self.packed if b'"base64"' in request else self.numbers


def long_text(characters: int) -> str:
    """Words of a small vocabulary, so that it compresses about as text does."""
    chosen = random.Random(7)
    words = ["".join(chosen.choices("etaoinshrdlucm", k=chosen.randint(2, 9))) for _ in range(2000)]
    return " ".join(chosen.choices(words, k=characters // 4))[:characters]


def _embeddings(vectors: Sequence[Any]) -> bytes:
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 12 * len(data), "total_tokens": 12 * len(data)}
    body = json.dumps({"object": "list", "data": data, "model": "static", "usage": usage}).encode()
    return _HEAD % len(body) + body


class _Log:
    """What all connections of a server share."""

    def __init__(self, delay_s: float, spread_s: float, answers: Answers) -> None:
        self.answers = answers
        self.delay_s = delay_s
        self.spread_s = spread_s
        self.waiting = 0
        self.clear()

    def clear(self) -> None:
        self.first = self.last = 0.0
        self.counts: Counter[int] = Counter()

    def note(self) -> None:
        self.last = now = time.monotonic()
        if not self.first:
            self.first = now
        self.counts[int(now * _BUCKETS_A_SECOND)] += 1

    def seen(self) -> dict[str, object]:
        return {"first": self.first, "last": self.last, "counts": self.counts, "waiting": self.waiting}

    def told(self) -> bytes:
        data = json.dumps(self.seen()).encode()
        self.clear()
        return _HEAD % len(data) + data


class _Static(asyncio.Protocol):
    """Counts off request bodies by their content-length, and answers each, after its delay if there is one."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._data = bytearray()  # grows in place: a body of a megabyte comes in many pieces
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._log.waiting -= self._waits

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            _, found, rest = self._data[:end].lower().partition(b"content-length:")
            whole = end + 4 + (int(rest.split(b"\r\n", 1)[0]) if found else 0)
            if len(self._data) < whole:
                break
            asked = self._data.startswith(b"GET /arrivals")
            if self._data.startswith(_NEVER):
                self._waits = True
                self._log.waiting += 1
                return
            answer = self._log.answers.to(bytes(self._data[:whole]))
            del self._data[:whole]
            if asked:
                self._transport.write(self._log.told())
                continue
            self._log.note()
            if self._log.delay_s:
                delay = self._log.delay_s + random.uniform(-1, 1) * self._log.spread_s
                self._loop.call_later(delay, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def _serve(port: int, delay_s: float, spread_s: float, certificate: Path | None, answers: Answers) -> None:
    log = _Log(delay_s, spread_s, answers)
    loop = asyncio.get_running_loop()
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    server = await loop.create_server(lambda: _Static(log), "127.0.0.1", port, backlog=4096, ssl=context)
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
def _process(command: Sequence[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(command, env=environment())
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def static_endpoint() -> Iterator[str]:
    """Run the fastest endpoint there is; gives its base URL."""
    nginx = shutil.which("nginx")
    if not nginx:
        with watching_endpoint() as url:
            yield url
        return
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder, _nginx(nginx, folder, port) as url:
        yield url


@contextmanager
def _nginx(command: str, folder: str, port: int, tls: str = "") -> Iterator[str]:
    config = Path(folder, "nginx.conf")
    secure = " ssl" if tls else ""
    config.write_text(_NGINX.format(folder=folder, port=port, answer=ANSWER.decode(), secure=secure, more=tls))
    with _process([command, "-c", str(config)], port) as url:
        yield url


@dataclass(frozen=True, slots=True)
class TlsEndpoint:
    """An endpoint over TLS: its base URL, the file of the authority that has signed its certificate, and who watches.

    Requests to ``/v1/never/...`` get no answer.
    """

    url: str
    authority: str
    watching: str

    def waiting(self) -> int:
        """How many connections are open on which a request waits for the answer that never comes."""
        return int(_report(self.watching, self.authority)["waiting"])


@contextmanager
def tls_endpoint() -> Iterator[TlsEndpoint]:
    """Run the fastest endpoint over TLS, with a certificate of an authority made for it."""
    import trustme

    with tempfile.TemporaryDirectory() as folder:
        authority, certificate = Path(folder, "authority.pem"), Path(folder, "certificate.pem")
        signer = trustme.CA()
        signer.cert_pem.write_to_path(str(authority))
        signer.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        nginx, port = shutil.which("nginx"), _free_port()
        if not nginx:
            with _watching(port, "--certificate", str(certificate)) as url:
                url = url.replace("http:", "https:")
                yield TlsEndpoint(url, str(authority), url)
            return
        with watching_endpoint() as behind:
            tls = _TLS.format(certificate=certificate, behind=behind.removesuffix("/v1"))
            with _nginx(nginx, folder, port, tls) as url:
                yield TlsEndpoint(url.replace("http:", "https:"), str(authority), behind)


@contextmanager
def watching_endpoint(delay_s: float = 0.0, spread_s: float = 0.0) -> Iterator[str]:
    """Run an endpoint that keeps :func:`arrivals`; gives its base URL.

    It answers after ``delay_s`` seconds, give or take up to ``spread_s``, evenly distributed.
    """
    with _watching(_free_port(), "--delay", str(delay_s), "--spread", str(spread_s)) as url:
        yield url


@contextmanager
def embedding_endpoint(texts: int, dimensions: int) -> Iterator[str]:
    """Run an endpoint that embeds ``texts`` texts in each request; gives its base URL."""
    with _watching(_free_port(), "--texts", str(texts), "--dimensions", str(dimensions)) as url:
        yield url


@contextmanager
def long_endpoint(characters: int) -> Iterator[str]:
    """Run an endpoint whose answers have so many characters; gives its base URL."""
    with _watching(_free_port(), "--characters", str(characters)) as url:
        yield url


@contextmanager
def simulator_endpoint(*settings: str) -> Iterator[str]:
    """Run the simulator, with settings as ``infermesh simulate`` takes them; gives its base URL."""
    port = _free_port()
    command = [sys.executable, "-m", "infermesh", "simulate", "--port", str(port), *settings]
    with _process(command, port) as url:
        yield url


@contextmanager
def _watching(port: int, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.endpoint", "--port", str(port), *options]
    with _process(command, port) as url:
        yield url


def _report(url: str, authority: str | None = None) -> Any:
    context = ssl.create_default_context(cafile=authority) if url.startswith("https:") else None
    with urllib.request.urlopen(url.removesuffix("/v1") + "/arrivals", timeout=30, context=context) as answer:
        return json.load(answer)


def arrivals(url: str) -> Arrivals:
    """What a watching endpoint has seen since it was last asked."""
    seen = _report(url)
    return Arrivals(seen["first"], seen["last"], {int(slot): count for slot, count in seen["counts"].items()})


def first_arrival(url: str, deadline_s: float = 120.0) -> float:
    """Wait for a watching endpoint's first request; returns when it came, on ``time.monotonic``."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if first := arrivals(url).first:
            return first
        time.sleep(0.02)
    raise TimeoutError(f"no request came within {deadline_s:g} s")


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--certificate", type=Path)
    for name in ("characters", "texts", "dimensions"):
        parser.add_argument(f"--{name}", type=int, default=0)
    arguments = parser.parse_args()
    answers = Answers(arguments.characters, arguments.texts, arguments.dimensions)
    serving = _serve(arguments.port, arguments.delay, arguments.spread, arguments.certificate, answers)
    with suppress(KeyboardInterrupt):
        try:
            import uvloop
        except ImportError:
            asyncio.run(serving)
        else:
            uvloop.run(serving)


if __name__ == "__main__":
    main()
