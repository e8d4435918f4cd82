"""What OpenAI's batches have of their own: files, metadata, a validation that fails; and how Azure tells the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from infermesh.errors import BadRequestError
from infermesh.transports.batches import LineProblem
from infermesh.types import Request
from tests.transports.batches.conftest import TOKEN, Bench, chat, chats

Make = Callable[..., Bench]


@pytest.fixture
def make(bench: Make) -> Make:
    return lambda **settings: bench("openai", **settings)


async def test_a_line(make: Make) -> None:
    line = json.loads(make().wire.line("a-1", chat("Hi.", max_tokens=3)))
    assert line == {
        "custom_id": "a-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4.1-mini", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi."}]},
    }


@pytest.mark.parametrize(
    ("request_", "holds"),
    [
        (Request("embedding", {"input": ["a", "b"]}), "data"),
        (Request("text_completion", {"prompt": "One. Two."}), "choices"),
        (Request("responses", {"input": "One. Two."}), "output"),
    ],
)
async def test_every_operation(make: Make, request_: Request, holds: str) -> None:
    at = make()
    ((result),) = (await at.run([request_])).values()
    live = await at.transport.send(request_, 20.0)
    assert (result.kind, result.body[holds] is not None) == ("answered", True)
    if holds == "data":
        assert result.body["data"] == live.body["data"]  # base64 in both


async def test_it_is_found_by_its_file(make: Make) -> None:
    at = make()
    path = at.write(chats(1))
    file_id = await at.wire.upload(path, "infermesh-x.jsonl")
    made = await at.wire.create("another token", "chat_completion", file_id, path)
    found = await at.wire.find(TOKEN, file_id, 1, time.time() - 5)
    assert found is not None
    assert found.id == made.id
    assert await at.wire.find(TOKEN, "file-other", 1, time.time() - 5) is None


@pytest.mark.parametrize(("named", "lines"), [(1, [2]), (5, [2, 4])])
async def test_lines_that_fail_the_validation_are_named(make: Make, named: int, lines: list[int]) -> None:
    at = make(invalid_marker="mole", named_lines=named)
    made = await at.create([*chats(2), chat("A mole."), *chats(1), chat("A mole, again.")])
    failed = await at.ended(made.id)
    assert (failed.phase, failed.said, failed.files) == ("failed", "failed", ())
    assert [each.line for each in failed.problems] == lines
    assert {(each.code, each.full) for each in failed.problems} == {("invalid_request", False)}


async def test_a_model_that_there_is_not_is_every_lines(make: Make) -> None:
    at = make(plain={"models": ["other"]})
    failed = await at.ended((await at.create(chats(2))).id)
    assert [(each.line, each.code) for each in failed.problems] == [(None, "model_not_found")]


async def test_too_much_waits_already_as_a_failed_validation(make: Make) -> None:
    at = make(max_enqueued_tokens=20, over_limit="fail", processing_s=100)
    await at.create(chats(4))
    failed = await at.ended((await at.create(chats(4), token="f" * 32)).id)
    ((problem),) = failed.problems
    assert (failed.phase, problem.line, problem.full) == ("failed", None, True)


async def test_an_upload_that_is_refused(make: Make) -> None:
    at = make()
    path = at.write(chats(1))
    with pytest.raises(BadRequestError, match=r"\.jsonl"):
        await at.wire.upload(path, "lines.txt")


async def test_all_failed_has_an_error_file_alone(make: Make) -> None:
    at = make(refused_lines=1.0)
    ended = await at.ended((await at.create(chats(2))).id)
    assert (ended.phase, ended.finished, len(ended.files)) == ("ended", 2, 1)


async def test_azure_tells_it_otherwise(make: Make) -> None:
    at = make(azure=True, finalizing_s=0.2)
    made = await at.create(chats(3))
    assert made.said in ("validating", "in_progress", "finalizing")
    ended = await at.ended(made.id)
    assert (ended.phase, ended.said, ended.total, ended.finished) == ("ended", "completed", 3, 3)
    assert len(ended.files) == 2  # the file of errors is there, and empty
    assert [each.kind for each in await at.results(ended)] == ["answered"] * 3
    found = await at.wire.find(TOKEN, None, 3, time.time() - 5)  # its times are texts
    assert found is not None


@pytest.mark.parametrize(
    ("row", "kind", "status"),
    [
        ({"response": {"status_code": 200, "body": {"choices": []}}, "error": None}, "answered", 200),
        ({"response": {"status_code": 400, "body": {"error": {"message": "no"}}}, "error": None}, "failed", 400),
        ({"response": {"status_code": 400, "body": '{"error": {"message": "no"}}'}, "error": None}, "failed", 400),
        ({"response": None, "error": {"code": "batch_expired", "message": "late"}}, "unserved", None),
        ({"response": None, "error": {"code": "batch_cancelled", "message": "late"}}, "unserved", None),
        ({"response": None, "error": {"code": "other", "message": "no"}}, "failed", None),
        ({"response": {"status_code": 200, "body": "text"}, "error": None}, "failed", 200),
    ],
)
async def test_rows(make: Make, row: dict[str, Any], kind: str, status: int | None) -> None:
    wire = make().wire
    result = wire.result(json.dumps({"custom_id": "a", **row}).encode())
    assert (result.custom_id, result.kind, result.status) == ("a", kind, status)
    if kind == "failed":
        assert wire.error(result).deployment == "d"


async def test_groqs_list_of_errors(make: Make) -> None:
    """Groq shows a bare list where OpenAI has an object: console.groq.com/docs/batch."""
    wire: Any = make().wire
    body = {"id": "b", "status": "failed", "errors": [{"code": "x", "message": "no", "line": 3}]}
    assert wire._read_status(body, lambda name: None).problems == (LineProblem(2, "x", "no", False),)
