"""The flags of the one-shot commands that are parameters of the request."""

from __future__ import annotations

import email
import json
import threading
from collections.abc import Iterator
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oneshot_shell import Shell
from tests.support import wav, write_jsonl

KEY = "sk-aaaaaaaaaaaaaaaaaaaaaaaa"
ANSWERS: dict[str, Any] = {
    "completions": {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]},
    "embeddings": {"data": [{"index": 0, "embedding": [0.5]}]},
    "transcriptions": {"text": "Good morning."},
}


def _form(kind: str, body: bytes) -> dict[str, Any]:
    """The fields of a form, without its file."""
    form: Any = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + body, policy=HTTP)
    named = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
    return {name: part.get_content() for name, part in named.items() if name != "file"}


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    """The parameters of every request, without what is asked."""
    return []


@pytest.fixture
def shell(tmp_path: Path, asked: list[dict[str, Any]]) -> Iterator[Shell]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body, kind = self.rfile.read(int(self.headers["content-length"])), self.headers["content-type"]
            asked.append(json.loads(body) if "json" in kind else _form(kind, body))
            answer = json.dumps(ANSWERS[self.path.rpartition("/")[2]]).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Shell(tmp_path, f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.shutdown()
    thread.join()
    server.server_close()


PARAM = ("--param", "presence_penalty=1e-1", "--param", "stop=[a, 'b']", "--param", "logit_bias={5: 1}")


def test_flags_of_requests_arrive_at_the_server(shell: Shell, asked: list[dict[str, Any]]) -> None:
    """Those with a flag of their own and any other, with values as YAML has them."""
    write_jsonl(shell.folder / "in.jsonl", [{"prompt": "Hello", "text": "Hello"}])
    flags = ("--seed", "7", "--top-p", "0.5", *PARAM, "--param", "user='7'", "--param", "metadata=2024-01-02")
    for more in (("--prompt", "Hello"), ("--input-jsonl", "in.jsonl")):
        done = shell.here("generate", *more, *flags)
        assert done.returncode == 0, done.stderr
        body = asked.pop()
        expected = {"seed": 7, "top_p": 0.5, "presence_penalty": 0.1, "stop": ["a", "b"], "user": "7"}
        assert body.items() >= {**expected, "metadata": "2024-01-02"}.items()
    assert shell.here("embed", "--text", "Hello", "--dimensions", "16", "--param", "user=me").returncode == 0
    assert asked.pop().items() >= {"dimensions": 16, "user": "me"}.items()
    (shell.folder / "a.wav").write_bytes(wav("Good morning."))
    spoken = ("transcribe", "a.wav", "--language", "de", "--transcript-format", "text", "--param", "temperature=0.25")
    assert shell.here(*spoken).stdout == "Good morning.\n"
    assert asked.pop() == {"language": "de", "response_format": "text", "temperature": "0.25", "model": "any"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--param", "seed"), "--param seed: expected NAME=VALUE"),
        (("--param", "=1"), "--param =1: expected NAME=VALUE"),
        (("--param", "user={"), "--param user: '{' is no YAML value"),
        (("--param", "seed=1", "--seed", "2"), "--param seed: --seed gives it already"),
        (("--param", "user=a", "--param", "user=b"), "--param user: it is given twice"),
        (("--param", "timeout=5"), "use --timeout"),
        (("--top-p", "2"), "--top-p"),
        (("--param", f"user={KEY}"), "--param: the value holds what looks like a key"),
    ],
)
def test_a_parameter_that_cannot_be(shell: Shell, flags: tuple[str, ...], said: str) -> None:
    done = shell.here("generate", "--prompt", "Hello", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert KEY not in done.stderr
