"""Anthropic's own SDK against the simulator's messages and message batches: each state, each fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from anthropic.types.messages import MessageBatch

from infermesh.simulator import Simulator
from tests.support import wait_until

Start = Callable[..., Simulator]
Ask = Callable[..., Any]


class Service:
    """A simulator and the SDK at it."""

    def __init__(self, simulator: Simulator, sdk: anthropic.Anthropic) -> None:
        self.simulator, self.sdk = simulator, sdk

    def create(self, requests: list[Any]) -> MessageBatch:
        return self.sdk.messages.batches.create(requests=requests)

    def until(self, batch: MessageBatch, state: str = "ended") -> MessageBatch:
        found: list[MessageBatch] = []

        def there() -> bool:
            found.append(self.sdk.messages.batches.retrieve(batch.id))
            return found[-1].processing_status == state

        wait_until(there, state)
        return found[-1]

    def run(self, requests: list[Any]) -> MessageBatch:
        return self.until(self.create(requests))

    def fates(self, batch: MessageBatch) -> dict[str, list[str]]:
        """custom_id → the type of each of its results."""
        fates: dict[str, list[str]] = {}
        for row in self.sdk.messages.batches.results(batch.id):
            fates.setdefault(row.custom_id, []).append(row.result.type)
        return fates

    def counts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.simulator.stats(lines=True)["batches"]
        return found


@pytest.fixture
def service(with_sdk: Callable[..., tuple[Simulator, Any]]) -> Callable[..., Service]:
    """Start simulators with the given settings of batches, the SDK at them; the SDK does not retry."""

    def sdk(url: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="right", max_retries=0, timeout=20)

    return lambda **settings: Service(*with_sdk(sdk, **settings))


def params(text: str = "One. Two.", **fields: Any) -> Any:
    return {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}


def asks(count: int) -> list[Any]:
    return [{"custom_id": f"r{number}", "params": params(f"One. Two {number}.")} for number in range(count)]


def test_a_message(service: Callable[..., Service]) -> None:
    sdk = service(plain={"reasoning_tokens": 4}).sdk
    answer = sdk.messages.create(**params(system=[{"type": "text", "text": "Be brief."}]))
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert (answer.content[1].text, answer.stop_reason) == ("One. Two.", "end_turn")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 7)
    assert answer.usage.service_tier == "standard"
    cut = sdk.messages.create(**params(max_tokens=5))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)


def test_a_tool_and_a_schema(service: Callable[..., Service]) -> None:
    sdk = service().sdk
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"name": "look", "input_schema": schema}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "look"}):
        (call,) = sdk.messages.create(**params(tools=tools, tool_choice=choice)).content
        assert call.type == "tool_use"
        assert call.name == "look"
        assert isinstance(call.input["n"], int)
    form = {"format": {"type": "json_schema", "schema": schema}}
    named: Any
    for named in ({"output_config": form}, {"extra_body": {"output_format": form["format"]}}):  # now, and in the beta
        (text,) = sdk.messages.create(**params(**named)).content
        assert isinstance(json.loads(text.text)["n"], int)


def test_streams(service: Callable[..., Service]) -> None:
    sdk = service(plain={"reasoning_tokens": 4}).sdk
    whole = sdk.messages.create(**params())
    with sdk.messages.stream(**params()) as stream:
        assert "".join(stream.text_stream) == whole.content[1].text
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    tools = [{"name": "look", "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}]
    with sdk.messages.stream(**params(tools=tools, tool_choice={"type": "any"})) as stream:
        (_, call) = stream.get_final_message().content
    assert call.type == "tool_use"


def test_keys_and_errors(service: Callable[..., Service], ask: Ask) -> None:
    at = service(plain={"api_key": "right", "models": ["m"]})
    at.sdk.messages.create(**params())
    headers = {"anthropic-version": "2023-06-01", "x-api-key": "right"}  # as older SDKs sign
    assert ask(at.simulator, "/v1/messages", params(), headers).status == 200
    with pytest.raises(anthropic.AuthenticationError):
        at.sdk.with_options(api_key="wrong").messages.create(**params())
    with pytest.raises(anthropic.NotFoundError) as caught:
        at.sdk.messages.create(**params(model="x"))
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as refused:
        at.sdk.messages.create(**params(max_tokens=0))
    assert refused.value.type == "invalid_request_error"


def test_a_batch(service: Callable[..., Service]) -> None:
    at = service()
    wrong = {"custom_id": "bad", "params": params(max_tokens=0)}
    streamed = {"custom_id": "streamed", "params": params(stream=True)}
    batch = at.create([*asks(3), wrong, streamed])
    assert (batch.processing_status, batch.request_counts.processing, batch.results_url) == ("in_progress", 5, None)
    batch = at.until(batch)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 3, 2)
    assert batch.results_url == f"{at.simulator.url}/messages/batches/{batch.id}/results"
    assert batch.ended_at is not None
    assert batch.ended_at >= batch.created_at
    live = at.sdk.messages.create(**asks(1)[0]["params"])
    rows = {row.custom_id: row.result for row in at.sdk.messages.batches.results(batch.id)}
    first = rows["r0"]
    assert first.type == "succeeded"
    assert first.message.content == live.content
    assert first.message.usage.service_tier == "batch"
    bad = rows["bad"]
    assert bad.type == "errored"
    assert bad.error.error.type == "invalid_request_error"
    assert rows["streamed"].type == "errored"
    assert at.counts()["by_custom_id"]["bad"] == {"sent": 1, "answered": 0}
    assert at.sdk.messages.batches.delete(batch.id).id == batch.id
    with pytest.raises(anthropic.NotFoundError):
        at.sdk.messages.batches.retrieve(batch.id)


def test_cancel(service: Callable[..., Service], ask: Ask) -> None:
    at = service(processing_s=100, cancelling_s=0.05)
    batch = at.create(asks(500))
    wait_until(lambda: at.sdk.messages.batches.retrieve(batch.id).request_counts.succeeded > 2, "some answers")
    assert ask(at.simulator, f"/v1/messages/batches/{batch.id}/results", None, method="GET").status == 404
    with pytest.raises(anthropic.BadRequestError):
        at.sdk.messages.batches.delete(batch.id)
    assert at.sdk.messages.batches.cancel(batch.id).processing_status == "canceling"
    ended = at.until(batch)
    assert ended.cancel_initiated_at is not None
    fates = list(at.fates(ended).values())
    assert fates.count(["succeeded"]) == ended.request_counts.succeeded > 2
    assert fates.count(["canceled"]) == ended.request_counts.canceled == 500 - ended.request_counts.succeeded


def test_a_cancel_before_any_answer(service: Callable[..., Service]) -> None:
    at = service(validating_s=100)
    batch = at.create(asks(3))
    at.sdk.messages.batches.cancel(batch.id)
    ended = at.until(batch)
    assert ended.request_counts.canceled == 3
    assert set(map(tuple, at.fates(ended).values())) == {("canceled",)}


def test_expiry(service: Callable[..., Service]) -> None:
    at = service(processing_s=2, expires_s=0.5)
    batch = at.run(asks(100))
    fates = list(at.fates(batch).values())
    assert 0 < fates.count(["succeeded"]) < 50
    assert fates.count(["expired"]) == batch.request_counts.expired == 100 - fates.count(["succeeded"])


def test_what_is_refused_at_once(service: Callable[..., Service], ask: Ask) -> None:
    at = service(max_requests=3, invalid_marker="mole")
    one = asks(1)[0]
    for requests, message in (
        ([], "at least 1 item"),
        ([one, one], "Duplicate custom_id found: r0"),
        ([{**one, "custom_id": "x" * 65}], "requests.0.custom_id: String should have at most 64"),
        ([{**one, "custom_id": "a b"}], "should match pattern"),
        ([{"custom_id": "a"}], "requests.0.params: Field required"),
        ([one, {"custom_id": "a", "params": params("mole")}], "requests.1.params"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=message):
            at.create(requests)
    with pytest.raises(anthropic.RequestTooLargeError):
        at.create(asks(4))
    with pytest.raises(anthropic.RequestTooLargeError):
        service(max_bytes=10).create(asks(1))
    for body in (b'{"requests": [{"custom_id"', b"[]", b"{}", b'{"requests": 3}', b'{"requests": [1]}', b'{"a": \xff}'):
        assert ask(at.simulator, "/v1/messages/batches", body).status == 400
    assert at.counts()["created"] == 0


def test_a_body_of_many_blocks(service: Callable[..., Service], ask: Ask) -> None:
    at = service()
    # Longer than a block, and with what a decoder may trip over at its border.
    requests = [{"custom_id": f"r{n}", "params": params(f'"[{{é\u2028\\ {n}". ' * 9000)} for n in range(12)]
    body = json.dumps({"first": [1, {"requests": 2}], "requests": requests, "last": 10}, ensure_ascii=False, indent=1)
    reply = ask(at.simulator, "/v1/messages/batches", body.encode())
    assert reply.status == 200
    at.until(MessageBatch.model_validate(reply.json()))
    assert at.counts()["answered_lines"] == 12
    live = at.sdk.messages.create(**requests[11]["params"])
    rows = {row.custom_id: row.result for row in at.sdk.messages.batches.results(reply.json()["id"])}
    answer = rows["r11"]
    assert answer.type == "succeeded"
    assert (answer.message.content, answer.message.usage.input_tokens) == (live.content, live.usage.input_tokens)


def test_the_listing_has_pages(service: Callable[..., Service]) -> None:
    at = service()
    made = [at.create(asks(1)).id for _ in range(7)][::-1]
    batches = at.sdk.messages.batches
    assert [each.id for each in batches.list(limit=3)] == made
    page = batches.list(limit=3, after_id=made[1])
    assert ([each.id for each in page.data], page.has_more) == (made[2:5], True)
    page = batches.list(limit=3, before_id=made[4])
    assert ([each.id for each in page.data], page.has_more) == (made[1:4], True)
    page = batches.list(limit=3, before_id=made[1])
    assert ([each.id for each in page.data], page.has_more) == (made[:1], False)
    for query in ({"limit": 1001}, {"after_id": "msgbatch_x"}):
        with pytest.raises(anthropic.BadRequestError):
            batches.list(**query)


def test_lines_that_are_shuffled_doubled_and_missing(service: Callable[..., Service]) -> None:
    at = service(shuffle=True, doubled_lines=0.2, missing_lines=0.2, failed_lines=0.2)
    batch = at.run(asks(200))
    order = [row.custom_id for row in at.sdk.messages.batches.results(batch.id)]
    assert order != sorted(order, key=lambda name: int(name[1:]))
    fates = at.fates(batch)
    assert 20 < 200 - len(fates) < 65
    assert 15 < sum(len(fate) == 2 for fate in fates.values()) < 60
    assert 15 < sum("errored" in fate for fate in fates.values()) < 60
    assert batch.request_counts.succeeded + batch.request_counts.errored == 200


def test_a_create_whose_answer_is_lost(service: Callable[..., Service]) -> None:
    at = service(lost_creates=1.0)
    with pytest.raises(anthropic.APIConnectionError):
        at.create(asks(2))
    (found,) = at.sdk.messages.batches.list()
    assert at.fates(at.until(found)) == {"r0": ["succeeded"], "r1": ["succeeded"]}
    # The SDK's own retries make a batch each.
    with pytest.raises(anthropic.APIConnectionError):
        at.sdk.with_options(max_retries=2).messages.batches.create(requests=asks(1))
    assert at.counts()["created"] == 4


def test_listings_and_reads_that_do_not_find_it(service: Callable[..., Service]) -> None:
    at = service(unlisted=1.0)
    batch = at.run(asks(1))
    assert list(at.sdk.messages.batches.list()) == []
    assert at.fates(batch) == {"r0": ["succeeded"]}
    at = service(not_found=1.0)
    batch = at.create(asks(1))
    with pytest.raises(anthropic.NotFoundError):
        at.sdk.messages.batches.retrieve(batch.id)


def test_enqueued_tokens_have_a_cap(service: Callable[..., Service]) -> None:
    at = service(max_enqueued_tokens=20, processing_s=100, poll_after_s=10)
    first = at.create(asks(4))  # 3 tokens each
    with pytest.raises(anthropic.RateLimitError) as caught:
        at.create(asks(4))
    assert caught.value.type == "rate_limit_error"
    assert at.sdk.messages.batches.with_raw_response.retrieve(first.id).headers["retry-after"] == "10"
    at.sdk.messages.batches.cancel(first.id)
    at.until(first)
    at.create(asks(4))


def test_downloads_that_break(service: Callable[..., Service], ask: Ask) -> None:
    at = service(cut_downloads=1.0)
    results = iter(at.sdk.messages.batches.results(at.run(asks(50)).id))
    with pytest.raises(Exception, match=r"incomplete|peer closed|disconnected"):  # whatever its HTTP library raises
        [row.custom_id for row in results]
    short = service(short_downloads=1.0)
    path = f"/v1/messages/batches/{short.run(asks(50)).id}/results"
    content = ask(short.simulator, path, None, method="GET").body
    assert 20 < content.count(b"\n") < 30
    assert not content.endswith(b"\n")


def test_faults_of_every_endpoint(service: Callable[..., Service]) -> None:
    with pytest.raises(anthropic.InternalServerError):
        service(faults={"server_error": 1.0, "endpoints": ["messages"]}).sdk.messages.create(**params())
    at = service(faults={"drop": 1.0, "endpoints": ["message_batches"]})
    with pytest.raises(anthropic.APIConnectionError):
        at.create(asks(1))
    at.sdk.messages.create(**params())
    assert at.simulator.stats()["endpoints"]["message_batches"]["faults"] == {"drop": 1}
    assert at.counts()["calls"] == {"message_batches.create": 1}
