"""A logical model: which timeout its requests have, and what one bad text of several costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from infermesh.config.load import load
from infermesh.dispatch import Deployment
from infermesh.dispatch.fleet import Fleet
from infermesh.dispatch.model import LogicalModel
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    MalformedResponseError,
    RateLimitError,
    RequestError,
    ServerError,
)
from infermesh.types import USE_CLIENT_DEFAULT, Audio, Reply, Request
from infermesh.wire.structured import ResponseFormat
from tests.fakes import ScriptedTransport, reply, virtual
from tests.support import experiment, generate

CHAT = reply({"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]})
VECTOR = reply({"data": [{"embedding": [1.0]}]})
WORDS = reply({"text": "Yes."})


def fleet(**model: Any) -> tuple[Any, ScriptedTransport]:
    """The model of a declaration, over a scripted transport."""
    models = {"m": {"deployments": ["d"], **model}}
    built = Fleet(load(experiment("http://127.0.0.1:9/v1", {"s": generate()}, models=models)))
    transport = ScriptedTransport([CHAT, VECTOR, WORDS])
    built.deployments["d"].transport = transport
    return built.models["m"], transport


FOREVER: list[dict[str, Any]] = [{"timeout": None}, {"timeout": float("inf")}]


@pytest.mark.parametrize(
    ("declared", "holds"), [({}, 600.0), ({"timeout": 5}, 5.0), *((each, None) for each in FOREVER)]
)
@pytest.mark.parametrize(("options", "own"), [({}, None), ({"timeout": 2.0}, [2.0]), *((e, [None]) for e in FOREVER)])
@virtual
async def test_a_models_timeout_holds_unless_the_request_has_its_own(
    declared: dict[str, Any], holds: float | None, options: dict[str, Any], own: list[float | None] | None
) -> None:
    model, transport = fleet(**declared)
    await model.generate(model.generation_request("Is it?", {}), **options)
    await model.embed(["Is it?"], {}, **options)
    await model.transcribe(Audio(b"", "clip.wav"), {}, **options)
    assert transport.timeouts == 3 * (own or [holds])


@virtual
async def test_to_ask_for_the_default_is_to_say_nothing() -> None:
    model, transport = fleet(timeout=None)
    await model.generate(model.generation_request("Is it?", {}), timeout=USE_CLIENT_DEFAULT)
    assert transport.timeouts == [None]


class TestOneBadText:
    """A server of embeddings that fails for one text, in each of the ways that were seen."""

    TEXTS: ClassVar[list[str]] = ["a", "b", "bad", "c", "d", "e", "f", "g"]

    @staticmethod
    def model(answer: Callable[[list[str]], Any]) -> tuple[LogicalModel, list[list[str]]]:
        seen: list[list[str]] = []

        class Server:
            async def send(self, request: Request, timeout: float | None) -> Reply:
                texts = request.payload["input"]
                texts = [texts] if isinstance(texts, str) else list(texts)
                seen.append(texts)
                found = answer(texts)
                if isinstance(found, RequestError):
                    raise found
                return Reply(200, {"data": found}, lambda name: None)

            async def aclose(self) -> None:
                pass

        made = LogicalModel("m", [Deployment("d", Server())], backends=["m"], retry=RetryPolicy(jitter_s=0))
        return made, seen

    @staticmethod
    def vectors(texts: list[str], bad: Any) -> list[dict[str, Any]]:
        return [{"index": i, "embedding": bad if text == "bad" else [1.0, 2.0, 3.0]} for i, text in enumerate(texts)]

    @pytest.mark.parametrize(
        "bad",
        [
            [None, 1.0, 2.0],
            None,
            [],
            [1.0],
            [float("nan"), 1.0, 2.0],
            ServerError("NaN", status_code=500),
            BadRequestError("no", status_code=422),
            MalformedResponseError("html"),
            APIConnectionError("reset"),
            *(ServerError("proxy", status_code=status) for status in (502, 503, 504)),
        ],
    )
    @virtual
    async def test_it_costs_its_own_row(self, bad: Any) -> None:
        def answer(texts: list[str]) -> Any:
            return bad if isinstance(bad, RequestError) and "bad" in texts else self.vectors(texts, bad)

        model, _ = self.model(answer)
        results = await model.embed(self.TEXTS, {})
        failed = [text for text, found in zip(self.TEXTS, results, strict=True) if isinstance(found, RequestError)]
        assert failed == ["bad"]

    @virtual
    async def test_too_few_vectors(self) -> None:
        def answer(texts: list[str]) -> Any:
            return self.vectors([text for text in texts if text != "bad"], None)

        model, _ = self.model(answer)
        results = await model.embed(self.TEXTS, {})
        assert [isinstance(found, RequestError) for found in results].index(True) == 2
        assert sum(isinstance(found, RequestError) for found in results) == 1

    @virtual
    async def test_what_is_refused_whatever_the_texts_is_not_split_to_the_end(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        model, seen = self.model(lambda texts: BadRequestError("no such parameter", status_code=400))
        for _ in range(2):
            seen.clear()
            results = await model.embed([f"t{n}" for n in range(32)], {"dimensions": -1})
            assert all(isinstance(found, BadRequestError) for found in results)
            assert len(seen) <= 3
        (line,) = [line for line in caplog.messages if "whatever the text" in line]
        assert line.startswith("m: ")
        assert "no such parameter" in line

    @pytest.mark.parametrize("passing", [RateLimitError("slow", status_code=429), ServerError("away", status_code=503)])
    @virtual
    async def test_a_harmless_text_that_meets_an_overload_fails_no_other(self, passing: RequestError) -> None:
        def answer(texts: list[str]) -> Any:
            if texts == ["text"]:
                return passing
            return BadRequestError("no", status_code=422) if "bad" in texts else self.vectors(texts, None)

        model, seen = self.model(answer)
        results = await model.embed(self.TEXTS, {})
        assert ["text"] in seen
        failed = [text for text, found in zip(self.TEXTS, results, strict=True) if isinstance(found, RequestError)]
        assert failed == ["bad"]

    @pytest.mark.parametrize(
        ("error", "probes"),
        [
            (AuthenticationError("key", status_code=401), False),
            (RateLimitError("slow", status_code=429), False),
            (ServerError("away", status_code=503), True),
            (APIConnectionError("refused"), True),
        ],
    )
    @virtual
    async def test_what_is_no_texts_fault_is_not_split(self, error: RequestError, probes: bool) -> None:
        model, seen = self.model(lambda texts: error)
        results = await model.embed(self.TEXTS, {})
        assert all(found is error or isinstance(found, RequestError) for found in results)
        assert all(len(texts) == len(self.TEXTS) or (probes and texts == ["text"]) for texts in seen)

    @pytest.mark.parametrize(
        "error", [BadRequestError("no such parameter", status_code=400), ServerError("away", status_code=503)]
    )
    @virtual
    async def test_each_request_is_counted_once(self, error: RequestError) -> None:
        model, seen = self.model(lambda texts: type(error)(error.message, status_code=error.status_code))
        results = await model.embed(self.TEXTS, {})
        metrics = {id(found.metrics): found.metrics for found in results if found.metrics is not None}
        attempts = [attempt for each in metrics.values() for attempt in each.attempts]
        assert len(attempts) == len({id(attempt) for attempt in attempts}) == len(seen)


class TestAskingAgain:
    """``on_invalid: retry``, against a server that answers by a script."""

    SCHEMA: ClassVar[dict[str, Any]] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

    @staticmethod
    def said(text: str, reason: str = "stop") -> Reply:
        return reply({"choices": [{"message": {"content": text}, "finish_reason": reason}]})

    async def ask(self, script: list[Any]) -> tuple[Any, ScriptedTransport]:
        transport = ScriptedTransport(script)
        model = LogicalModel("m", [Deployment("d", transport)], backends=["m"], retry=RetryPolicy(max_retries=0))
        form = ResponseFormat.of(self.SCHEMA)
        request = model.generation_request("Is it?", {"max_tokens": 5}, response_format=form)
        return await model.generate(request, form, on_invalid="retry"), transport

    @virtual
    async def test_what_does_not_fit_is_asked_again(self) -> None:
        result, transport = await self.ask([self.said('{"a": "x"}'), self.said('{"a": 1}')])
        assert (result.output_parsed, len(transport.sent_at)) == ({"a": 1}, 2)

    @virtual
    async def test_what_a_limit_has_cut_is_not(self, caplog: pytest.LogCaptureFixture) -> None:
        result, transport = await self.ask([self.said('{"a": ', "length")] * 3)
        assert (result.output_parsed, len(transport.sent_at)) == (None, 1)
        assert "cut at max_tokens=5" in caplog.text

    @virtual
    async def test_where_asking_again_fails_the_first_answer_stays(self, caplog: pytest.LogCaptureFixture) -> None:
        result, _ = await self.ask([self.said('{"a": "x"}'), BadRequestError("no", status_code=400)])
        assert (result.output_text, result.output_parsed) == ('{"a": "x"}', None)
        assert [attempt.error_type for attempt in result.metrics.attempts] == [None, "bad_request"]
        assert result.metrics.deployment == "d"
        assert "asking again failed: no" in caplog.text

    @virtual
    async def test_thoughts_before_the_json_are_reasoning(self) -> None:
        result, _ = await self.ask([self.said('<think>One?</think>{"a": 1}')])
        assert (result.output_parsed, result.reasoning) == ({"a": 1}, "One?")

    @pytest.mark.parametrize("content", [None, ""])
    @virtual
    async def test_an_answer_that_a_server_takes_for_thoughts(self, content: str | None) -> None:
        message = {"content": content, "reasoning_content": 'So: {"a": 1}'}
        result, transport = await self.ask([reply({"choices": [{"message": message, "finish_reason": "stop"}]})])
        assert (result.output_parsed, len(transport.sent_at)) == ({"a": 1}, 1)

    @virtual
    async def test_thoughts_that_a_limit_has_cut_are_no_answer(self) -> None:
        message = {"content": None, "reasoning_content": '{"a": 1}'}
        result, _ = await self.ask([reply({"choices": [{"message": message, "finish_reason": "length"}]})])
        assert result.output_parsed is None

    @virtual
    async def test_a_refusal_is_not_asked_again(self, caplog: pytest.LogCaptureFixture) -> None:
        message = {"content": None, "refusal": "I cannot."}
        result, transport = await self.ask([reply({"choices": [{"message": message, "finish_reason": "stop"}]})])
        assert (result.output_text, result.output_parsed, len(transport.sent_at)) == ("I cannot.", None, 1)
        assert "the model refused: 'I cannot.'" in caplog.text
