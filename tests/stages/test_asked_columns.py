"""What a stage's parameters ask for beside the answer is kept in columns of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support import Lab, experiment, generate, transcribe, wav

TOKEN = {"token": "Yes", "logprob": -0.12345, "top_logprobs": []}
CHAT = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop", "logprobs": {"content": [TOKEN]}}]}
WORD = {"word": "hi", "start": 0.0, "end": 0.41357}
SPOKEN = {"text": "hi", "language": "english", "duration": 1.2, "words": [WORD], "segments": [{"id": 0, "text": "hi"}]}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(SPOKEN if "transcriptions" in self.path else CHAT).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def columns(lab: Lab, stage: str) -> set[str]:
    return {name for (name,) in lab.sql(f"SELECT column_name FROM (DESCRIBE {stage})")}


@pytest.mark.parametrize(
    "params",
    [
        {"logprobs": True},
        {"extra_body": {"logprobs": True}},
        {"include": ["message.output_text.logprobs"]},
    ],
)
def test_log_probabilities_where_params_ask_for_them(lab: Lab, url: str, params: dict[str, Any]) -> None:
    lab.rows([{"text": "Is it?"}])
    lab.run(experiment(url, {"a": generate()}))
    assert "logprobs" not in columns(lab, "a")
    lab.run(experiment(url, {"a": generate(params=params)}))  # the same run, edited
    assert json.loads(lab.one("SELECT logprobs FROM a")) == {"content": [TOKEN]}
    assert lab.one("SELECT results.a_logprobs->>'$.content[0].token' FROM results") == "Yes"


@pytest.mark.parametrize("params", [{"timestamp_granularities": ["word"]}, {"response_format": "verbose_json"}])
def test_the_times_of_words_where_params_ask_for_them(lab: Lab, url: str, params: dict[str, Any]) -> None:
    (lab.root / "clip.wav").write_bytes(wav())
    lab.rows([{"audio": "clip.wav"}])
    lab.run(experiment(url, {"t": transcribe()}))
    assert not columns(lab, "t") & {"words", "segments"}
    lab.run(experiment(url, {"t": transcribe(params=params)}))
    ((words, segments),) = lab.sql("SELECT words, segments FROM t")
    assert json.loads(words) == [WORD]
    assert json.loads(segments) == SPOKEN["segments"]
