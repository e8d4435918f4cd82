"""A structured answer that is wrong: how it is told to the model, and what several requests for one answer come to."""

from __future__ import annotations

import contextlib
from typing import Any

from infermesh.errors import InvalidAnswerError, RequestError
from infermesh.results import GenerationResult, RequestMetrics
from infermesh.runtime.foreign import words_of
from infermesh.types import Request
from infermesh.wire.endings import ending
from infermesh.wire.structured import ResponseFormat
from infermesh.wire.usage import together

_SHOWN = 300  # characters of an answer that is not kept
_REASK = "That answer could not be used: {problem}. Answer again with nothing but JSON that satisfies the schema."


def with_earlier(later: RequestMetrics | None, earlier: RequestMetrics | None) -> RequestMetrics | None:
    """The metrics of a request and of the one that was sent before it for the same answer, as one."""
    if later is None or earlier is None:
        return later or earlier
    attempts = [*earlier.attempts, *later.attempts]
    for number, attempt in enumerate(attempts, 1):
        attempt.attempt = number
    later.attempts = attempts
    later.retries = len(attempts) - 1
    later.queue_s += earlier.queue_s
    later.end_to_end_s += earlier.end_to_end_s
    return later


def parsed(given: tuple[GenerationResult, ResponseFormat]) -> tuple[str | None, Any, str | None]:
    """What is wrong, and the fields that :func:`parse_into` sets."""
    result, response_format = given
    problem = parse_into(result, response_format)
    return problem, result.output_parsed, result.reasoning


def parse_into(result: GenerationResult, response_format: ResponseFormat) -> str | None:
    """Fill ``output_parsed``. Returns what is wrong where the text does not satisfy the format."""
    try:
        result.output_parsed, thoughts = response_format.parse_apart(result.output_text)
    except ValueError as error:
        if result.reasoning and not (result.output_text or result.tool_calls or ending(result.finish_reason) == "cut"):
            # A server's reasoning parser takes an answer without thoughts for thoughts (vLLM).
            with contextlib.suppress(ValueError):
                result.output_parsed = response_format.parse(result.reasoning)
                return None
        return str(error)
    except BaseException as error:  # a validator of the user's may end in anything
        return words_of(error)
    if result.reasoning is None:
        result.reasoning = thoughts
    return None


def unusable(result: GenerationResult, problem: str) -> InvalidAnswerError:
    """The error in place of an answer that does not satisfy its format, with what it took to get it."""
    text = result.output_text[:_SHOWN]
    shown = "" if not text or text[:40] in problem else f": {text!r}"
    answered = result.metrics.deployment if result.metrics is not None else None
    error = InvalidAnswerError(f"{problem}{shown}", deployment=answered, request_id=result.request_id)
    error.usage, error.metrics = result.token_usage, result.metrics
    return error


def with_failed_reask(result: GenerationResult, error: RequestError) -> GenerationResult:
    """The answer that there is, with the attempts and cost of the one that was asked for in vain."""
    answered = result.metrics.deployment if result.metrics is not None else ""
    result.metrics = with_earlier(error.metrics, result.metrics)
    if result.metrics is not None:
        result.metrics.deployment = answered
    result.cost = cost(result.metrics)
    return result


def asked_again(request: Request, result: GenerationResult, problem: str) -> Request:
    """The same request, followed by the model's answer and by what was wrong with it."""
    note = _REASK.format(problem=problem)
    payload = dict(request.payload)
    turns = [{"role": "assistant", "content": result.output_text}, {"role": "user", "content": note}]
    if request.operation == "chat_completion":
        payload["messages"] = [*payload["messages"], *turns]
    elif request.operation == "responses":
        first = payload["input"]
        start = [{"role": "user", "content": first}] if isinstance(first, str) else list(first)
        payload["input"] = [*start, *turns]
    else:
        payload["prompt"] = f"{payload['prompt']}{result.output_text}\n\n{note}\n"
    earlier = len(result.metrics.attempts) if result.metrics is not None else 0
    return Request(request.operation, payload, output_tokens=request.output_tokens, earlier=earlier)


def merged(first: GenerationResult, again: GenerationResult) -> GenerationResult:
    """The later answer, with the attempts, tokens and cost of both."""
    again.metrics = with_earlier(again.metrics, first.metrics)
    again.cost = cost(again.metrics)
    again.token_usage = together(first.token_usage, again.token_usage)
    return again


def cost(metrics: RequestMetrics | None) -> float | None:
    """What all attempts cost together, failures that are billed included."""
    attempts = metrics.attempts if metrics is not None else []
    if len(attempts) == 1:
        return attempts[0].cost_usd
    costs = [attempt.cost_usd for attempt in attempts if attempt.cost_usd is not None]
    return sum(costs) if costs else None
