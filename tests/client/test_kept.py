"""What a batch keeps of its results: the same values, in little memory."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, replace
from typing import Any

import pytest

from infermesh import LMClient
from infermesh.client.kept import Keeper
from infermesh.results import Attempt, GenerationResult, RequestMetrics, TokenUsage
from infermesh.simulator import Simulator


def answer(number: int, **changes: Any) -> GenerationResult:
    """The answer to one request, with its values in each of their places."""
    usage = TokenUsage(7 + number, 5, 12 + number, 2, None)
    only = Attempt(1, "d", 1_790_000_000.5 + number, 0.25, 1.5, 200, None, 7 + number, 5, 0.125)
    result = GenerationResult(
        request_id=f"chatcmpl-{number}",
        model_id="m",
        token_usage=usage,
        cost=0.125,
        metrics=RequestMetrics("d", 0.5, 1.5, 2.5, 0, [only]),
        raw_body=b'{"id": "chatcmpl-%d", "choices": []}' % number,
        output_text=f"Answer {number}.",
    )
    return replace(result, **changes)


def keep(results: list[GenerationResult]) -> None:
    keeper = Keeper()
    for result in results:
        keeper.keep(result)
    keeper.close()


def is_kept(result: GenerationResult) -> bool:
    """Whether its values are in a block."""
    try:
        object.__getattribute__(result, "_block")
    except AttributeError:
        return False
    return True


def test_every_value_comes_back() -> None:
    results, wanted = ([answer(number) for number in range(600)] for _ in range(2))
    keep(results)
    assert all(map(is_kept, results))
    assert results == wanted
    assert [asdict(each) for each in results[:3]] == [asdict(each) for each in wanted[:3]]
    assert repr(results[500]) == repr(wanted[500])
    assert results[599].raw_response == {"id": "chatcmpl-599", "choices": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"token_usage": None, "cost": None},
        {"request_id": None},
        {"request_id": "né\ud800e"},
        {"output_text": "", "finish_reason": "length", "logprobs": {"content": []}},
    ],
    ids=str,
)
def test_what_is_missing_is_missing(changes: dict[str, Any]) -> None:
    def made() -> GenerationResult:
        result = answer(0, **changes)
        assert result.metrics is not None
        if result.token_usage is None:
            result.metrics.attempts[0] = replace(
                result.metrics.attempts[0], prompt_tokens=None, completion_tokens=None, cost_usd=None
            )
        return result

    result = made()
    keep([answer(1), result, answer(2)])
    assert is_kept(result)
    assert result == made()


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": None},
        {"raw_body": None},
        {"raw_body": {"id": "x"}},
        {"raw_body": bytes(100_000)},
        {"cost": float("nan")},
        {"cost": 0.25},
        {"request_id": ""},
        {"token_usage": TokenUsage(7, 5, 1 << 70)},
        {"token_usage": TokenUsage(7, 5, 12, details={"service_tier": "flex"})},
    ],
    ids=str,
)
def test_what_does_not_fit_stays_as_it_is(changes: dict[str, Any]) -> None:
    result = answer(0, **changes)
    before = {name: getattr(result, name) for name in ("metrics", "token_usage", "cost", "request_id", "raw_body")}
    keep([result, answer(1)])
    assert not is_kept(result)
    assert all(getattr(result, name) is value for name, value in before.items())


def test_a_retried_request_stays_as_it_is() -> None:
    result = answer(0)
    assert result.metrics is not None
    result.metrics.attempts.insert(0, replace(result.metrics.attempts[0], status_code=503, error_type="server_error"))
    result.metrics.retries = 1
    keep([result])
    assert not is_kept(result)


def test_what_is_changed_stays_changed() -> None:
    result = answer(0)
    keep([result])
    assert result.token_usage is result.token_usage
    assert result.token_usage is not None
    result.token_usage.total_tokens = 99
    result.cost, result.raw_body = 3.0, b"{}"
    assert (result.token_usage.total_tokens, result.cost, result.raw_response) == (99, 3.0, {})


def test_copies_and_pickles_stand_alone() -> None:
    results = [answer(number) for number in range(200)]
    keep(results)
    dumped = pickle.dumps(results[7])
    assert len(dumped) < 2_000  # not the block with the bodies of the others
    assert pickle.loads(dumped) == copy.copy(results[7]) == copy.deepcopy(results[7]) == answer(7)
    with pytest.raises(AttributeError, match="no attribute 'costs'"):
        _ = results[7].costs


def test_a_batch_says_what_single_calls_say(simulator: Simulator) -> None:
    with LMClient("hosted_vllm/any", api_base=simulator.url) as client:
        prompts = [f"Prompt {number}." for number in range(300)]
        one = client.generate(prompts[5])
        for batch in (
            client.generate_batch(prompts),
            client.generate_batch(iter(prompts), on_progress=lambda *_: None),
        ):
            assert not batch.failures
            results = [each for each in batch if each is not None]
            assert len(results) == 300
            assert all(map(is_kept, results))
            assert results[5].output_text == one.output_text
            assert results[5].token_usage == one.token_usage
            assert len({each.request_id for each in results}) == 300
            assert all(each.raw_response is not None and each.raw_response["choices"] for each in results)
            assert all(each.metrics is not None and each.metrics.attempts[0].status_code == 200 for each in results)
            assert all(each.metrics.end_to_end_s >= each.metrics.service_s > 0 for each in results if each.metrics)
