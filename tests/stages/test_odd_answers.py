"""Whatever one answer holds, it costs its own row: the run goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infermesh.stages.embed import Embed
from tests.support import Lab, embed, experiment, generate

Serve = Callable[[Callable[[dict[str, Any]], Any]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers a request's JSON by a function: with JSON, or with the text itself."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[dict[str, Any]], Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                found = answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                body = (found if isinstance(found, str) else json.dumps(found)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def chat(text: str, **choice: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop", **choice}], "usage": usage}


def deep(levels: int) -> str:
    return '{"c":' * levels + "null" + "}" * levels


def odd_first(lab: Lab) -> None:
    lab.rows([{"n": 0, "text": "odd"}, *({"n": n, "text": f"even {n}"} for n in range(1, 6))])


ITSELF = {"type": "object", "properties": {"c": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["c"]}


@pytest.mark.parametrize(
    ("odd", "stage"),
    [
        (chat(deep(600)), {"parse_json": True}),
        (chat(deep(300)), {"response_format": ITSELF}),
        (chat("{}"), {"response_format": {"$ref": "#"}}),
        (
            json.dumps(chat("Yes", logprobs={"content": "@"})).replace('"@"', "[" * 600 + "]" * 600),
            {"params": {"logprobs": True}},
        ),
    ],
    ids=["any JSON", "recursive schema", "schema that is itself", "log-probabilities"],
)
def test_deep_nesting(lab: Lab, serve: Serve, odd: Any, stage: dict[str, Any]) -> None:
    url = serve(lambda body: odd if "odd" in str(body) else chat('{"c": null}'))
    odd_first(lab)
    lab.run(experiment(url, {"a": generate(**stage)}))
    assert set(lab.statuses("a").values()) == {"done"}
    assert lab.one("SELECT text FROM a WHERE row_id = 0")


def test_a_number_that_json_has_no_name_for(lab: Lab, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    url = serve(lambda body: chat('{"x": NaN}' if "odd" in str(body) else '{"x": null}'))
    odd_first(lab)
    lab.run(experiment(url, {"a": generate(parse_json=True)}))
    assert set(lab.statuses("a").values()) == {"done"}
    assert lab.sql("SELECT text, parsed FROM a ORDER BY row_id LIMIT 2") == [
        ('{"x": NaN}', None),
        ('{"x": null}', '{"x":null}'),
    ]
    assert "parsed is NULL: it holds a number" in caplog.text


def test_numbers_that_a_vector_cannot_hold(lab: Lab, serve: Serve) -> None:
    def answer(body: dict[str, Any]) -> Any:
        vectors = [[1e39 if text == "odd" else 1.0, 2.0] for text in body["input"]]
        return {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]}

    odd_first(lab)
    mapping = experiment(serve(answer), {"v": embed(micro_batch_size=3)})
    mapping["models"]["m"]["max_retries"] = 0
    lab.run(mapping)
    assert lab.statuses("v") == {0: "error", **dict.fromkeys(range(1, 6), "done")}
    assert lab.one("SELECT error_type FROM v WHERE row_id = 0") == "malformed_response"


def test_an_answer_that_cannot_be_written_costs_its_row_and_is_paid_for(
    lab: Lab, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(self: Embed, result: Any) -> tuple[Any, ...]:
        if result.embedding == [1.0]:
            raise TypeError("no such value")
        return (result.embedding,)

    def answer(body: dict[str, Any]) -> Any:
        vectors = [[1.0] if text == "odd" else [2.0] for text in body["input"]]
        return {
            "data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)],
            "usage": {"prompt_tokens": 30},
        }

    monkeypatch.setattr(Embed, "outputs", outputs)
    odd_first(lab)
    lab.run(experiment(serve(answer), {"v": embed(micro_batch_size=6)}))
    assert lab.statuses("v") == {0: "error", **dict.fromkeys(range(1, 6), "done")}
    ((kind, error, attempts),) = lab.sql("SELECT error_type, error, attempts FROM v WHERE row_id = 0")
    assert (kind, attempts) == ("internal", 1)
    assert error.startswith("TypeError: no such value")
    assert lab.one("SELECT sum(prompt_tokens) FROM v") == 30


def test_a_schema_class_whose_check_never_ends(lab: Lab, serve: Serve) -> None:
    lab.rows([{"text": "nowhere"}, {"text": "somewhere"}])
    url = serve(lambda asked: chat(json.dumps({"city": asked["messages"][-1]["content"]})))
    mapping = experiment(url, {"a": generate(response_format="tests.functions:Fussy"), "b": generate()})
    mapping["models"]["m"]["timeout"] = 0.5
    assert lab.run(mapping).status == "done"
    assert lab.sql("SELECT status, count(*), count(text), count(parsed) FROM a GROUP BY ALL") == [("done", 2, 2, 0)]
