"""Google's own SDK against the simulator's generateContent, files and batches of Gemini: each state, each fault."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from infermesh.simulator import Simulator
from tests.support import wait_until

Start = Callable[..., Simulator]
Ask = Callable[..., Any]
MODEL = "gemini-2.5-flash"
KEY = {"x-goog-api-key": "right"}


class Service:
    """A simulator and the SDK at it."""

    def __init__(self, simulator: Simulator, sdk: genai.Client) -> None:
        self.simulator, self.sdk = simulator, sdk

    def upload(self, lines: list[Any]) -> str:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lines.jsonl"
            path.write_text(text)
            config = types.UploadFileConfig(display_name="lines", mime_type="application/jsonl")
            return str(self.sdk.files.upload(file=path, config=config).name)

    def create(self, lines: list[Any], name: str = "mine", model: str = MODEL) -> types.BatchJob:
        return self.sdk.batches.create(model=model, src=self.upload(lines), config={"display_name": name})

    def until(self, batch: types.BatchJob, state: str = "SUCCEEDED") -> types.BatchJob:
        found: list[types.BatchJob] = []

        def there() -> bool:
            found.append(self.sdk.batches.get(name=str(batch.name)))
            return found[-1].state == f"JOB_STATE_{state}"

        wait_until(there, state)
        return found[-1]

    def run(self, lines: list[Any]) -> types.BatchJob:
        return self.until(self.create(lines))

    def rows(self, batch: types.BatchJob) -> list[dict[str, Any]]:
        assert batch.dest is not None
        content = self.sdk.files.download(file=str(batch.dest.file_name))
        return [json.loads(line) for line in content.splitlines()]

    def raw(self, ask: Ask, batch: types.BatchJob) -> dict[str, Any]:
        """The operation as it is on the wire, of which the SDK leaves much out."""
        found: dict[str, Any] = ask(self.simulator, f"/v1beta/{batch.name}", None, KEY, method="GET").json()
        return found

    def counts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.simulator.stats(lines=True)["batches"]
        return found


@pytest.fixture
def service(with_sdk: Callable[..., tuple[Simulator, Any]]) -> Callable[..., Service]:
    """Start simulators with the given settings of batches, the SDK at them."""

    def sdk(url: str) -> genai.Client:
        options = types.HttpOptions(base_url=url.removesuffix("/v1"), timeout=20_000)
        return genai.Client(api_key="right", http_options=options, vertexai=False)

    return lambda **settings: Service(*with_sdk(sdk, **settings))


def request(text: str = "One. Two.", **fields: Any) -> Any:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], **fields}


def asks(count: int) -> list[Any]:
    return [{"key": f"r{number}", "request": request(f"One. Two {number}.")} for number in range(count)]


def test_an_answer(service: Callable[..., Service], ask: Ask) -> None:
    at = service(plain={"reasoning_tokens": 4})
    answer = at.sdk.models.generate_content(
        model=MODEL, contents="One. Two.", config={"system_instruction": "Be brief."}
    )
    assert answer.text == "One. Two."
    assert answer.model_version == MODEL
    assert answer.usage_metadata is not None
    usage = answer.usage_metadata
    counts = (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count)
    assert (counts, usage.total_token_count) == ((6, 3, 4), 13)
    cut = at.sdk.models.generate_content(model=MODEL, contents="One. Two.", config={"max_output_tokens": 5})
    assert cut.candidates is not None
    assert cut.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    several = at.sdk.models.generate_content(model=MODEL, contents="One. Two.", config={"candidate_count": 3})
    assert len(several.candidates or ()) == 3
    for version in ("v1", "v1beta"):
        path = f"/{version}/models/{MODEL}:generateContent"
        snake = {"contents": request()["contents"], "generation_config": {"max_output_tokens": 5}}
        assert ask(at.simulator, path, snake).json()["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_a_tool_and_a_schema(service: Callable[..., Service]) -> None:
    sdk = service().sdk
    schema: Any = {
        "type": "OBJECT",
        "properties": {"n": {"type": "INTEGER"}, "s": {"type": "STRING", "nullable": True}},
        "required": ["n", "s"],
    }
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="look", parameters=schema)])
    mode = types.FunctionCallingConfigMode.ANY
    choice = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode=mode))
    config = types.GenerateContentConfig(tools=[tool], tool_config=choice)
    calls = sdk.models.generate_content(model=MODEL, contents="Look.", config=config).function_calls
    assert calls is not None
    (call,) = calls
    assert call.name == "look"
    assert isinstance((call.args or {})["n"], int)
    plain = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for form in ({"response_schema": schema}, {"response_json_schema": plain}, {}):
        config = types.GenerateContentConfig(response_mime_type="application/json", **form)
        found = json.loads(sdk.models.generate_content(model=MODEL, contents="A form.", config=config).text or "")
        assert found.keys() >= {"n"} if form else {"text"}


def test_keys_and_errors(service: Callable[..., Service], ask: Ask) -> None:
    at = service(plain={"api_key": "right", "models": [MODEL]})
    at.run(asks(1))
    for version in ("v1", "v1beta"):
        reply = ask(at.simulator, f"/{version}/batches/x", None, {"x-goog-api-key": "wrong"}, method="GET")
        assert reply.status == 400
        assert reply.json()["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    with pytest.raises(errors.ClientError, match="not found") as caught:
        at.create(asks(1), model="x")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    with pytest.raises(errors.ClientError) as refused:
        at.sdk.models.generate_content(model="x", contents="a")
    assert refused.value.code == 404
    with pytest.raises(errors.ClientError) as unknown:
        at.sdk.batches.get(name="batches/x")
    assert unknown.value.code == 404


def test_openais_batches_are_at_the_same_path(service: Callable[..., Service], ask: Ask) -> None:
    """`/v1/batches` is both providers': the header with the key tells whose it is."""
    at = service()
    batch = at.run(asks(1))
    assert ask(at.simulator, f"/v1/{batch.name}", None, method="GET").json()["error"]["param"] is None
    assert ask(at.simulator, "/v1/batches", None, method="GET").json()["data"] == []
    found = ask(at.simulator, "/v1/batches", None, KEY, method="GET").json()["operations"]
    assert [each["name"] for each in found] == [batch.name]


def test_a_batch(service: Callable[..., Service], ask: Ask) -> None:
    at = service()
    wrong = {"key": "bad", "request": request(generationConfig={"maxOutputTokens": 0})}
    batch = at.create([*asks(3), wrong], "shown")
    assert (batch.display_name, batch.model) == ("shown", f"models/{MODEL}")
    batch = at.until(batch)
    found = at.raw(ask, batch)
    assert found["done"] is True
    assert found["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    stats = found["metadata"]["batchStats"]
    assert stats == {"requestCount": "4", "successfulRequestCount": "3", "failedRequestCount": "1"}
    assert found["response"]["responsesFile"] == found["metadata"]["output"]["responsesFile"]
    rows = {row["key"]: row for row in at.rows(batch)}
    live = at.sdk.models.generate_content(model=MODEL, contents="One. Two 0.")
    assert rows["r0"]["response"]["candidates"][0]["content"]["parts"] == [{"text": live.text}]
    assert rows["bad"]["error"]["code"] == 3
    path = f"/download/v1beta/{batch.dest and batch.dest.file_name}:download?alt=media"  # the guide's
    assert ask(at.simulator, path, None, KEY, method="GET").body.count(b"\n") == 4
    assert at.counts()["by_custom_id"]["bad"] == {"sent": 1, "answered": 0}
    at.sdk.batches.delete(name=str(batch.name))
    with pytest.raises(errors.ClientError):
        at.sdk.batches.get(name=str(batch.name))
    with pytest.raises(errors.ClientError):
        at.rows(batch)


def test_cancel(service: Callable[..., Service], ask: Ask) -> None:
    at = service(processing_s=100, cancelling_s=0.05)
    batch = at.create(asks(500))

    def answered() -> int:
        return int(at.raw(ask, batch)["metadata"]["batchStats"].get("successfulRequestCount", "0"))

    wait_until(lambda: answered() > 2, "some answers")
    at.sdk.batches.cancel(name=str(batch.name))
    ended = at.until(batch, "CANCELLED")
    assert len(at.rows(ended)) == answered() > 2
    assert at.raw(ask, batch)["error"]["code"] == 13
    lost = service(processing_s=100, cancel_loses=True)
    batch = lost.create(asks(3))
    lost.sdk.batches.cancel(name=str(batch.name))
    assert lost.until(batch, "CANCELLED").dest is None


def test_expiry_gives_nothing_back(service: Callable[..., Service]) -> None:
    at = service(processing_s=2, expires_s=0.3)
    assert at.until(at.create(asks(100)), "EXPIRED").dest is None


def test_the_file_comes_late(service: Callable[..., Service]) -> None:
    at = service(late_output_s=0.3)
    batch = at.run(asks(1))
    assert batch.dest is None
    wait_until(lambda: at.until(batch).dest is not None, "its file")


def test_what_is_refused_at_once(service: Callable[..., Service], ask: Ask) -> None:
    at = service(max_requests=3, invalid_marker="mole")
    for lines, message in (
        ([], "no requests"),
        (["{"], "line 1"),
        ([*asks(1), {"key": "a"}], "line 2"),
        ([{"key": "a", "request": request("mole")}], "line 1"),
        (asks(4), "more than 3"),
    ):
        with pytest.raises(errors.ClientError, match=message) as caught:
            at.create(lines)
        assert caught.value.code == 400
    with pytest.raises(errors.ClientError, match="too large"):
        service(max_bytes=10).create(asks(1))
    with pytest.raises(errors.ClientError, match="does not exist"):
        at.sdk.batches.create(model=MODEL, src="files/x", config={"display_name": "a"})
    path = f"/v1beta/models/{MODEL}:batchGenerateContent"
    for body in (b"{", b"[]", b"{}", b'{"batch": {"displayName": "a"}}'):
        assert ask(at.simulator, path, body, KEY).status == 400
    assert at.counts()["created"] == 0


def test_an_upload_in_pieces(service: Callable[..., Service], ask: Ask) -> None:
    at = service()
    begun = ask(at.simulator, "/upload/v1beta/files", {}, {**KEY, "X-Goog-Upload-Command": "start"})
    path = begun.headers["X-Goog-Upload-URL"].removeprefix(at.simulator.url.removesuffix("/v1"))
    line = json.dumps(asks(1)[0]).encode() + b"\n"
    first = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}
    assert ask(at.simulator, path, line[:10], first).headers["X-Goog-Upload-Status"] == "active"
    assert ask(at.simulator, path, line[10:], first).status == 400  # that is not where it stands
    last = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "10"}
    made = ask(at.simulator, path, line[10:], last)
    assert made.headers["X-Goog-Upload-Status"] == "final"
    file = made.json()["file"]
    assert (file["sizeBytes"], file["state"]) == (str(len(line)), "ACTIVE")
    batch = at.sdk.batches.create(model=MODEL, src=file["name"], config={"display_name": "a"})
    assert [row["key"] for row in at.rows(at.until(batch))] == ["r0"]
    assert ask(at.simulator, path, b"", last).status == 400  # it is over


def test_the_listing_has_pages(service: Callable[..., Service]) -> None:
    at = service()
    assert list(at.sdk.batches.list()) == []
    made = [at.create(asks(1)).name for _ in range(5)][::-1]
    assert [each.name for each in at.sdk.batches.list(config={"page_size": 2})] == made
    with pytest.raises(errors.ClientError):
        at.sdk.batches.list(config={"page_size": 1001})


def test_lines_that_are_shuffled_doubled_and_missing(service: Callable[..., Service]) -> None:
    at = service(shuffle=True, doubled_lines=0.2, missing_lines=0.2, failed_lines=0.2)
    rows = at.rows(at.run(asks(200)))
    order = [row["key"] for row in rows]
    assert order != sorted(order, key=lambda name: int(name[1:]))
    assert 20 < 200 - len({*order}) < 65
    assert 15 < len(order) - len({*order}) < 60
    assert 15 < sum(row.get("error", {}).get("code") == 13 for row in rows) < 70


def test_answers_that_are_lost(service: Callable[..., Service]) -> None:
    at = service(lost_creates=1.0)
    with pytest.raises(Exception, match=r"disconnected|reset|closed"):  # whatever its HTTP library raises
        at.create(asks(2), "lost")
    (found,) = at.sdk.batches.list()
    assert found.display_name == "lost"
    assert len(at.rows(at.until(found))) == 2
    at = service(unlisted=1.0)
    batch = at.run(asks(1))
    assert list(at.sdk.batches.list()) == []
    assert len(at.rows(batch)) == 1
    at = service(not_found=1.0)
    batch = at.create(asks(1))
    with pytest.raises(errors.ClientError):
        at.sdk.batches.get(name=str(batch.name))


@pytest.mark.parametrize("over_limit", ["refuse", "fail"])
def test_enqueued_tokens_have_a_cap(service: Callable[..., Service], ask: Ask, over_limit: str) -> None:
    at = service(max_enqueued_tokens=20, processing_s=100, poll_after_s=10, over_limit=over_limit)
    first = at.create(asks(4))  # 3 tokens each
    if over_limit == "refuse":
        with pytest.raises(errors.ClientError) as caught:
            at.create(asks(4))
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    else:
        failed = at.until(at.create(asks(4)), "FAILED")
        assert at.raw(ask, failed)["error"]["code"] == 8
    reply = ask(at.simulator, f"/v1beta/{first.name}", None, KEY, method="GET")
    assert reply.headers["retry-after"] == "10"


def test_faults_of_every_endpoint(service: Callable[..., Service], ask: Ask) -> None:
    at = service(faults={"server_error": 1.0, "endpoints": ["generate_content"]})
    with pytest.raises(errors.ServerError) as caught:
        at.sdk.models.generate_content(model=MODEL, contents="a")
    assert caught.value.status == "INTERNAL"
    short = service(short_downloads=1.0)
    batch = short.run(asks(50))
    path = f"/v1/{batch.dest and batch.dest.file_name}:download?alt=media"
    content = ask(short.simulator, path, None, KEY, method="GET").body
    assert 20 < content.count(b"\n") < 30
    assert short.counts()["calls"]["gemini_batches.create"] == 1
