"""What the wires of all providers have in common, each against the simulator: each state, each fault."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RequestError,
)
from infermesh.transports.batches import GeminiBatches
from tests.transports.batches.conftest import TOKEN, Bench, chat, chats

Make = Callable[..., Bench]

_NO_RESULT = "line 1 column|not an? "
SEPARATED = "One\u2028line.\u0085 Two\u2029lines."
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "Answer",
        "schema": {
            "type": "object",
            "properties": {"values": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}},
            "required": ["values", "n"],
            "additionalProperties": False,
        },
    },
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA["json_schema"]["schema"]}}  # type: ignore[index]


@pytest.fixture(params=["openai", "anthropic", "gemini"])
def make(request: pytest.FixtureRequest, bench: Make) -> Make:
    return lambda **settings: bench(request.param, **settings)


def shown(body: dict[str, Any]) -> dict[str, Any]:
    """What of an answer does not differ from one call to the next."""
    body = json.loads(json.dumps(body))
    for name in ("id", "created", "service_tier", "system_fingerprint"):
        body.pop(name, None)
    (body.get("usage") or {}).pop("service_tier", None)
    for choice in body["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("id")
    return body


async def test_answers_are_those_of_live_requests(make: Make) -> None:
    at = make(plain={"reasoning_tokens": 4})
    requests = [
        chat("Hello there."),
        chat(SEPARATED, max_tokens=50),
        chat("One. Two. Three. Four.", max_tokens=6),
        chat("A form.", response_format=SCHEMA),
        chat("A tool.", tools=[TOOL], tool_choice="required"),
    ]
    found = await at.run(requests)
    assert {each.kind for each in found.values()} == {"answered"}
    for number, request in enumerate(requests):
        result = found[f"{TOKEN[:8]}-{number}"]
        live = await at.transport.send(request, 20.0)
        assert shown(result.body) == shown(live.body)
        assert result.status == 200
        assert result.body["id"]
    assert json.loads(found[f"{TOKEN[:8]}-3"].body["choices"][0]["message"]["content"]).keys() == {"values", "n"}


async def test_a_line_is_one_for_every_reader(make: Make) -> None:
    at = make()
    line = at.wire.line("a-1", chat(SEPARATED))
    assert len(line.decode().splitlines()) == 1
    assert line.endswith(b"\n")
    assert SEPARATED in json.dumps(json.loads(line), ensure_ascii=False)


async def test_counts_and_states(make: Make) -> None:
    at = make(processing_s=0.3, finalizing_s=0.1, poll_after_s=7)
    made = await at.create(chats(5))
    assert (made.phase, made.files) == ("working", ())
    assert (await at.wire.status(made.id)).retry_after == 7
    ended = await at.ended(made.id)
    assert (ended.id, ended.phase, ended.total, ended.finished, ended.problems) == (made.id, "ended", 5, 5, ())


async def test_lines_that_fail(make: Make) -> None:
    at = make(refused_lines=0.3, failed_lines=0.3)
    results = (await at.run(chats(40))).values()
    kinds = [(each.kind, each.status) for each in results]
    assert {*kinds} == {("answered", 200), ("failed", 400), ("failed", 500)}
    for each in results:
        if each.status != 200:
            error = at.wire.error(each)
            assert (type(error) is BadRequestError) == (each.status == 400)
            assert (error.status_code, error.retryable) == (each.status, each.status == 500)
            assert error.deployment == "d"


async def test_a_batch_whose_lines_all_fail(make: Make) -> None:
    found = await make(refused_lines=1.0).run(chats(3))
    assert [each.status for each in found.values()] == [400] * 3


async def test_a_cancel_leaves_lines_unserved(make: Make) -> None:
    at = make(processing_s=100)
    made = await at.create(chats(500))
    await at.until(made.id, lambda status: (status.finished or 0) > 2)
    await at.wire.cancel(made.id)
    ended = await at.ended(made.id)
    assert ended.phase == "ended"
    kinds = [each.kind for each in await at.results(ended)]
    assert kinds.count("answered") > 2
    # Gemini's results do not name the others.
    assert len(kinds) == (kinds.count("answered") if isinstance(at.wire, GeminiBatches) else 500)
    assert kinds.count("answered") + kinds.count("unserved") == len(kinds)
    await at.wire.cancel(made.id)  # as it has ended, nothing happens


async def test_an_expiry_leaves_lines_unserved(make: Make) -> None:
    at = make(processing_s=2, expires_s=0.5)
    kinds = [each.kind for each in (await at.run(chats(100))).values()]
    if isinstance(at.wire, GeminiBatches):
        assert kinds == []  # it gives nothing back
        return
    assert 0 < kinds.count("answered") < 100
    assert kinds.count("answered") + kinds.count("unserved") == 100


async def test_results_in_any_order_doubled_and_loose(make: Make) -> None:
    at = make(shuffle=True, doubled_lines=0.3, loose_lines=True)
    made = await at.create([chat(f"{SEPARATED} {number}.") for number in range(40)])
    results = await at.results(await at.ended(made.id))
    assert len(results) > 40
    assert {each.custom_id for each in results} == {f"{TOKEN[:8]}-{n}" for n in range(40)}
    assert "One\u2028line." in results[0].body["choices"][0]["message"]["content"]


@pytest.mark.parametrize("fault", ["cut_downloads", "short_downloads"])
async def test_a_download_that_breaks(make: Make, fault: str) -> None:
    at = make(**{fault: 1.0})
    ended = await at.ended((await at.create(chats(50))).id)
    if fault == "cut_downloads":
        with pytest.raises(APIConnectionError):
            await at.results(ended)
    else:
        assert 20 < len(await at.results(ended)) < 30
    target = at.folder / "results"
    with pytest.raises(ValueError, match=_NO_RESULT):  # the line that is cut off
        at.wire.result(target.read_bytes().rstrip(b"\n").rpartition(b"\n")[2])


async def test_a_create_whose_answer_is_lost_is_found(make: Make) -> None:
    since = time.time()
    at = make(lost_creates=1.0)
    with pytest.raises(APIConnectionError) as caught:
        await at.create(chats(3))
    assert caught.value.status_code is None
    assert at.simulator.stats()["batches"]["created"] == 1  # it was sent once
    found = await at.wire.find(TOKEN, None, 3, since)
    assert found is not None
    assert [each.kind for each in await at.results(await at.ended(found.id))] == ["answered"] * 3


async def test_it_is_found_behind_a_page_of_others(make: Make) -> None:
    since = time.time()
    at = make()
    first = await at.create(chats(2))
    await at.ended(first.id)
    for number in range(101):
        await at.create(chats(1), token=f"{number:032x}")
    other = make(beside=at)  # a process that knows of none of them
    found = await other.wire.find(TOKEN, None, 2, since)
    assert found is not None
    assert found.id == first.id
    assert await other.wire.find("f" * 32, None, 2, since) is None


async def test_a_batch_that_no_listing_shows(make: Make) -> None:
    at = make(unlisted=1.0)
    made = await at.create(chats(1))
    assert await make(beside=at).wire.find(TOKEN, None, 1, time.time() - 5) is None
    await at.ended(made.id)


async def test_a_batch_that_is_not_found(make: Make) -> None:
    at = make(not_found=1.0)
    made = await at.create(chats(1))
    with pytest.raises(NotFoundError):
        await at.wire.status(made.id)


async def test_too_much_waits_already(make: Make) -> None:
    at = make(max_enqueued_tokens=20, processing_s=100)
    await at.create(chats(4))
    with pytest.raises(RateLimitError) as caught:
        await at.create(chats(4), token="f" * 32)
    assert (caught.value.status_code, caught.value.retryable) == (429, True)


async def test_a_wrong_key(make: Make) -> None:
    at = make(plain={"api_key": "right"}, key="sk-wrong-0123456789")
    for call in (at.create(chats(1)), at.wire.status("x"), at.wire.find(TOKEN, None, 1, 0.0), at.wire.cancel("x")):
        with pytest.raises(AuthenticationError) as caught:
            await call
        assert "sk-wrong" not in caught.value.message


async def test_what_is_no_result(make: Make) -> None:
    wire = make().wire
    for line in (b"", b"\n", b"{", b"[]", b"3", b'{"custom_id": "a", "resu'):
        with pytest.raises(ValueError, match=_NO_RESULT):
            wire.result(line)


async def test_another_server_than_one_with_batches(make: Make) -> None:
    at = make(
        plain={"faults": {"malformed": 1.0, "endpoints": ["batches", "message_batches", "gemini_batches", "files"]}}
    )
    with pytest.raises(RequestError) as caught:
        await at.wire.status("x")
    assert isinstance(caught.value, MalformedResponseError | NotFoundError)
