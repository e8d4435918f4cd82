"""OpenAI's own SDK against the simulator's files and batches: each state, each fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types import Batch, FileObject

from infermesh.simulator import Simulator
from tests.support import wait_until

Start = Callable[..., Simulator]

ENDED = ("completed", "failed", "expired", "cancelled")


class Service:
    """A simulator and the SDK at it."""

    def __init__(self, simulator: Simulator, sdk: openai.OpenAI) -> None:
        self.simulator, self.sdk = simulator, sdk

    def upload(self, lines: list[Any], name: str = "in.jsonl") -> FileObject:
        content = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
        return self.sdk.files.create(file=(name, content), purpose="batch")

    def create(self, lines: list[Any], endpoint: Any = "/v1/chat/completions", **fields: Any) -> Batch:
        stored = self.upload(lines)
        return self.sdk.batches.create(input_file_id=stored.id, endpoint=endpoint, completion_window="24h", **fields)

    def until(self, batch: Batch, *states: str) -> Batch:
        found: list[Batch] = []

        def there() -> bool:
            found.append(self.sdk.batches.retrieve(batch.id))
            return found[-1].status.lower() in states

        wait_until(there, f"{states}")
        return found[-1]

    def run(self, lines: list[Any], **fields: Any) -> Batch:
        return self.until(self.create(lines, **fields), *ENDED)

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        if not file_id:
            return []
        return [json.loads(line) for line in self.sdk.files.content(file_id).content.split(b"\n") if line.strip()]

    def fates(self, batch: Batch) -> dict[str, list[Any]]:
        """custom_id → the status or error code of each of its lines, in both files."""
        fates: dict[str, list[Any]] = {}
        for row in self.rows(batch.output_file_id) + self.rows(batch.error_file_id):
            fate = row["error"]["code"] if row["response"] is None else row["response"]["status_code"]
            fates.setdefault(row["custom_id"], []).append(fate)
        return fates

    def counts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.simulator.stats(lines=True)["batches"]
        return found


@pytest.fixture
def service(with_sdk: Callable[..., tuple[Simulator, Any]]) -> Callable[..., Service]:
    """Start simulators with the given settings of batches, the SDK at them; the SDK does not retry."""

    def sdk(url: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=20)

    return lambda **settings: Service(*with_sdk(sdk, **settings))


def chat_line(custom_id: str, text: str = "One. Two.", model: str = "m", **body: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": f"{text} {custom_id}."}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def chats(count: int) -> list[Any]:
    return [chat_line(f"r{number}") for number in range(count)]


def test_files(service: Callable[..., Service]) -> None:
    sdk = service().sdk
    content = b'{"a": 1}\n{"b": 2}\n'
    stored = sdk.files.create(
        file=("rows.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (stored.bytes, stored.filename, stored.purpose, stored.expires_at) == (18, "rows.jsonl", "batch", None)
    again = sdk.files.retrieve(stored.id)
    assert again.expires_at == again.created_at + 3600
    assert sdk.files.content(stored.id).content == content
    others = [sdk.files.create(file=(f"{n}.jsonl", b"{}"), purpose="batch").id for n in range(4)]
    newest_first = [*reversed(others), stored.id]
    assert [each.id for each in sdk.files.list(limit=2)] == newest_first  # three pages
    assert [each.id for each in sdk.files.list(order="asc", purpose="batch")] == newest_first[::-1]
    assert list(sdk.files.list(purpose="fine-tune")) == []
    assert sdk.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(stored.id)
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        sdk.files.create(file=("rows.txt", content), purpose="batch")


def test_chats_and_embeddings(service: Callable[..., Service]) -> None:
    at = service()
    batch = at.run([*chats(3), chat_line("bad", n=0)], metadata={"intent": "t1"})
    assert (batch.status, batch.model, batch.metadata) == ("completed", "m", {"intent": "t1"})
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (4, 3, 1)
    assert at.fates(batch) == {"r0": [200], "r1": [200], "r2": [200], "bad": [400]}
    rows = at.rows(batch.output_file_id)
    live = at.sdk.chat.completions.create(**chats(1)[0]["body"])
    body = openai.types.chat.ChatCompletion.model_validate(rows[0]["response"]["body"])
    assert body.choices[0].message.content == live.choices[0].message.content
    assert body.usage is not None
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(row["response"]["body"]["usage"]["prompt_tokens"] for row in rows)
    assert batch.usage.total_tokens == sum(row["response"]["body"]["usage"]["total_tokens"] for row in rows)
    (failed,) = at.rows(batch.error_file_id)
    # The status says it, not `error`.
    assert failed["error"] is None
    assert failed["response"]["body"]["error"]["param"] == "n"
    assert at.sdk.files.retrieve(batch.output_file_id or "").purpose == "batch_output"

    line = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "e", "input": ["a", "b"]}}
    vectors = at.run([{"custom_id": "v", **line}], endpoint="/v1/embeddings")
    ((row),) = at.rows(vectors.output_file_id)
    assert [len(each["embedding"]) for each in row["response"]["body"]["data"]] == [64, 64]
    assert vectors.error_file_id is None


def test_all_failed(service: Callable[..., Service]) -> None:
    at = service()
    batch = at.run([chat_line("bad", n=0)])
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert at.fates(batch) == {"bad": [400]}


def test_states_and_their_moments(service: Callable[..., Service]) -> None:
    at = service(validating_s=0.01, processing_s=0.02, finalizing_s=0.01)
    batch = at.create(chats(4))
    assert (batch.status, batch.in_progress_at, batch.output_file_id) == ("validating", None, None)
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    assert batch.expires_at == pytest.approx(batch.created_at + 86400, abs=1)
    done = at.until(batch, *ENDED)
    moments = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert moments == sorted(each for each in moments if each is not None)
    assert (done.failed_at, done.expired_at, done.cancelling_at, done.cancelled_at) == (None, None, None, None)
    assert at.fates(done) == {f"r{n}": [200] for n in range(4)}


def test_cancel_keeps_what_was_answered(service: Callable[..., Service]) -> None:
    at = service(processing_s=100, cancelling_s=0.05)
    batch = at.create(chats(1000))

    def some() -> bool:
        counts = at.sdk.batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed > 2

    wait_until(some, "some answers")
    assert at.sdk.batches.retrieve(batch.id).status == "in_progress"
    assert at.sdk.batches.retrieve(batch.id).output_file_id is None
    assert at.sdk.batches.cancel(batch.id).status == "cancelling"
    ended = at.until(batch, "cancelled")
    assert ended.request_counts is not None
    fates = list(at.fates(ended).values())
    assert fates.count([200]) == ended.request_counts.completed > 2
    assert fates.count([200]) + fates.count(["batch_cancelled"]) == 1000
    with pytest.raises(openai.ConflictError):
        at.sdk.batches.cancel(batch.id)


def test_a_cancel_may_lose_what_was_answered(service: Callable[..., Service]) -> None:
    at = service(finalizing_s=100, cancel_loses=True)
    batch = at.until(at.create(chats(3)), "finalizing")
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 3
    at.sdk.batches.cancel(batch.id)
    ended = at.until(batch, "cancelled")
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.output_file_id) == (0, None)
    assert set(map(tuple, at.fates(ended).values())) == {("batch_cancelled",)}


def test_a_cancel_before_validation(service: Callable[..., Service]) -> None:
    at = service(validating_s=100)
    batch = at.create(chats(3))
    at.sdk.batches.cancel(batch.id)
    ended = at.until(batch, "cancelled")
    assert (ended.output_file_id, ended.error_file_id) == (None, None)


def test_expiry_keeps_what_was_answered(service: Callable[..., Service]) -> None:
    at = service(processing_s=2, expires_s=0.5)
    batch = at.run(chats(100))
    assert batch.status == "expired"
    fates = list(at.fates(batch).values())
    assert 0 < fates.count([200]) < 50
    assert fates.count([200]) + fates.count(["batch_expired"]) == 100


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xef\xbb\xbf{}", "invalid_json_line", None),
        ({"method": "POST"}, "missing_required_parameter", "custom_id"),
        (chat_line("r0"), "duplicate_custom_id", "custom_id"),
        (chat_line("x", model="other"), "mismatched_model", "body.model"),
        (chat_line("x", model=""), "invalid_request", "body.model"),
        ({**chat_line("x"), "url": "/v1/embeddings"}, "invalid_url", "url"),
        ({**chat_line("x"), "method": "GET"}, "invalid_method", "method"),
        (chat_line("x", stream=True), "streaming_unsupported", "body.stream"),
        (chat_line("x", "It is a mole."), "invalid_request", "body"),
    ],
)
def test_a_line_that_is_not_valid_fails_all(
    service: Callable[..., Service], line: Any, code: str, param: str | None
) -> None:
    at = service(invalid_marker="mole")
    batch = at.run([*chats(2), line, b"{"])
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors is not None
    # It stops at the first.
    assert [(each.code, each.param, each.line) for each in batch.errors.data or []] == [(code, param, 3)]
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    assert at.counts()["lines"] == 0


def test_several_lines_may_be_named(service: Callable[..., Service]) -> None:
    at = service(invalid_marker="mole", named_lines=2)
    batch = at.run([b"{", *chats(1), chat_line("a", "mole"), chat_line("b", "mole")])
    assert batch.errors is not None
    assert [each.line for each in batch.errors.data or []] == [1, 3]


def test_batches_that_cannot_be(service: Callable[..., Service]) -> None:
    at = service(max_requests=2, plain={"models": ["m"]})
    for lines, code in (
        (chats(3), "too_many_tasks"),
        ([], "empty_file"),
        ([chat_line("x", model="unknown")], "model_not_found"),
    ):
        batch = at.run(lines)
        assert batch.errors is not None
        assert [each.code for each in batch.errors.data or []] == [code]
    (tiny,) = [service(max_bytes=10).run(chats(1))]
    assert tiny.status == "failed"
    lost = at.until(
        at.sdk.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h"), *ENDED
    )
    assert lost.errors is not None
    assert [(each.code, each.param) for each in lost.errors.data or []] == [("invalid_request", "file_id")]
    with pytest.raises(openai.BadRequestError, match="Supported values"):
        at.create(chats(1), endpoint="/v1/nonsense")
    with pytest.raises(openai.BadRequestError, match="metadata"):
        at.create(chats(1), metadata={"k": "v" * 513})
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
        at.sdk.batches.retrieve("batch_x")


def test_the_listing_has_pages(service: Callable[..., Service]) -> None:
    at = service()
    stored = at.upload(chats(1))
    made = [
        at.sdk.batches.create(
            input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"n": str(n)}
        ).id
        for n in range(25)
    ]
    page = at.sdk.batches.list()
    assert (len(page.data), page.has_more) == (20, True)
    assert [each.id for each in at.sdk.batches.list(limit=10)] == made[::-1]
    assert [each.id for each in at.sdk.batches.list(limit=100)] == made[::-1]
    with pytest.raises(openai.BadRequestError, match="limit"):
        at.sdk.batches.list(limit=101)


def test_lines_that_are_shuffled_doubled_and_missing(service: Callable[..., Service]) -> None:
    at = service(shuffle=True, doubled_lines=0.2, missing_lines=0.1, refused_lines=0.1, failed_lines=0.1)
    batch = at.run(chats(400))
    assert batch.status == "completed"
    order = [row["custom_id"] for row in at.rows(batch.output_file_id)]
    assert order != sorted(order, key=lambda name: int(name[1:]))
    fates = at.fates(batch)
    assert 25 < 400 - len(fates) < 60
    assert 40 < sum(len(fate) == 2 for fate in fates.values()) < 110
    assert 15 < sum(400 in fate for fate in fates.values()) < 60
    assert 15 < sum(500 in fate for fate in fates.values()) < 60
    # The counters know nothing of what is missing.
    assert batch.request_counts is not None
    assert batch.request_counts.completed + batch.request_counts.failed == 400
    counts = at.counts()
    assert (counts["lines"], counts["answered_lines"]) == (400, batch.request_counts.completed)


def test_a_line_that_is_sent_again_draws_anew(service: Callable[..., Service]) -> None:
    at = service(missing_lines=0.5)
    names, rounds = {f"r{n}" for n in range(40)}, 0
    while names:
        names -= at.fates(at.run([chat_line(name) for name in sorted(names)])).keys()
        rounds += 1
    assert 2 < rounds < 15
    counts = at.counts()
    assert counts["repeated_lines"] == counts["repeated_answers"] == counts["repeated_requests"] > 0
    assert counts["by_custom_id"]["r0"]["sent"] == counts["by_custom_id"]["r0"]["answered"]
    at.simulator.reset()
    assert at.counts()["lines"] == 0


def test_loose_lines(service: Callable[..., Service]) -> None:
    at = service(loose_lines=True)
    batch = at.run([chat_line("a", "A\u2028line."), chat_line("b")])
    content = at.sdk.files.content(batch.output_file_id or "").content
    assert content.count(b"\r\n") == 1
    assert not content.endswith(b"\n")
    assert "\u2028".encode() in content
    assert len(at.rows(batch.output_file_id)) == 2


def test_a_create_whose_answer_is_lost(service: Callable[..., Service]) -> None:
    at = service(lost_creates=1.0)
    with pytest.raises(openai.APIConnectionError):
        at.create(chats(2), metadata={"intent": "t7"})
    (found,) = [each for each in at.sdk.batches.list() if (each.metadata or {}).get("intent") == "t7"]
    assert at.until(found, *ENDED).status == "completed"
    # The SDK's own retries make a batch each.
    with pytest.raises(openai.APIConnectionError):
        at.sdk.with_options(max_retries=2).batches.create(
            input_file_id=found.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert at.counts()["created"] == 4
    assert at.counts()["faults"] == {"lost_creates": 4}
    assert at.counts()["calls"]["batches.create"] == 4


def test_an_upload_whose_answer_is_lost(service: Callable[..., Service]) -> None:
    at = service(lost_uploads=1.0)
    with pytest.raises(openai.APIConnectionError):
        at.upload(chats(2), "run-7.jsonl")
    assert [each.filename for each in at.sdk.files.list(purpose="batch")] == ["run-7.jsonl"]


def test_a_listing_hides_a_batch(service: Callable[..., Service]) -> None:
    at = service(unlisted=1.0)
    batch = at.create(chats(1))
    assert list(at.sdk.batches.list()) == []
    assert at.until(batch, *ENDED).status == "completed"


def test_a_404_is_no_proof_of_absence(service: Callable[..., Service]) -> None:
    at = service(not_found=0.5)
    batch, found, missed = at.create(chats(1)), 0, 0
    for _ in range(40):
        try:
            at.sdk.batches.retrieve(batch.id)
            found += 1
        except openai.NotFoundError:
            missed += 1
    assert min(found, missed) > 5


@pytest.mark.parametrize("over", ["refuse", "fail"])
def test_enqueued_tokens_have_a_cap(service: Callable[..., Service], over: str) -> None:
    at = service(max_enqueued_tokens=30, over_limit=over, processing_s=100)
    first = at.create(chats(4))  # 4 tokens each
    if over == "refuse":
        with pytest.raises(openai.RateLimitError, match="Limit: 30 enqueued tokens, enqueued: 16, requested: 16"):
            at.create(chats(4))
    else:
        at.until(first, "in_progress")
        refused = at.run(chats(4))
        assert refused.errors is not None
        assert [(each.code, each.line) for each in refused.errors.data or []] == [("token_limit_exceeded", None)]
    at.sdk.batches.cancel(first.id)
    at.until(first, "cancelled")
    at.until(at.create(chats(4)), "in_progress")


def test_downloads_that_break(service: Callable[..., Service]) -> None:
    at = service(cut_downloads=1.0)
    batch = at.run(chats(50))
    with pytest.raises(openai.APIConnectionError):
        at.sdk.files.content(batch.output_file_id or "")
    short = service(short_downloads=1.0)
    batch = short.run(chats(50))
    content = short.sdk.files.content(batch.output_file_id or "").content
    assert not content.endswith(b"\n")
    assert 20 < content.count(b"\n") < 30


def test_azure(service: Callable[..., Service]) -> None:
    at = service(azure=True, validating_s=0.2)
    batch = at.create(chats(2))
    assert batch.status == "Validating"  # type: ignore[comparison-overlap]
    assert isinstance(batch.created_at, str)
    assert batch.request_counts is not None
    assert batch.request_counts.total is None
    ended = at.until(batch, *ENDED)
    assert at.sdk.files.content(ended.error_file_id or "").content == b""
    assert len(at.rows(ended.output_file_id)) == 2


def test_faults_of_every_endpoint(service: Callable[..., Service]) -> None:
    refusing = service(faults={"rate_limit": 1.0, "endpoints": ["files"]})
    with pytest.raises(openai.RateLimitError):
        refusing.upload(chats(1))
    failing = service(faults={"server_error": 1.0, "endpoints": ["batches"]})
    with pytest.raises(openai.InternalServerError):
        failing.create(chats(1))
    cut = service(faults={"truncate": 1.0, "endpoints": ["batches"]})
    with pytest.raises(openai.APIConnectionError):
        cut.create(chats(1))
    closed = service(plain={"api_key": "right"})
    with pytest.raises(openai.AuthenticationError):
        closed.upload(chats(1))
    waiting = service(poll_after_s=7, processing_s=100)
    batch = waiting.create(chats(1))
    assert waiting.sdk.batches.with_raw_response.retrieve(batch.id).headers["retry-after"] == "7"
    counts = failing.simulator.stats()["endpoints"]
    assert (counts["files"]["status"], counts["batches"]["status"]) == ({"200": 1}, {"500": 1})
