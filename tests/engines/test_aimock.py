"""OpenAI's, Anthropic's, Gemini's and Cohere's wire, from an emulator that this project did not write."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from infermesh import (
    ContextLengthError,
    DeploymentConfig,
    LMClient,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    ServerError,
)
from tests.engines.conftest import Engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
# Model → where its provider's API begins at the emulator.
WIRES = {
    "openai/gpt-4.1-mini": "/v1",
    "anthropic/claude-sonnet-4-5": "",
    "gemini/gemini-2.5-flash": "/v1beta",
    "cohere_chat/command-r-plus": "/v2/chat",
}


@pytest.fixture(params=WIRES)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wire(model: str) -> str:
    return model.partition("/")[0]


@pytest.fixture
def client(model: str, aimock: Engine) -> Iterator[LMClient]:
    deployment = DeploymentConfig(model, aimock.root + WIRES[model], api_key="x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = LMClient("m", deployments={"d": deployment}, max_retries=2, timeout=30)
    with made:
        yield made


def test_an_answer(client: LMClient) -> None:
    result = client.generate("What is the capital of France?", max_tokens=50)
    assert (result.output_text, result.finish_reason) == ("Paris.", "stop")


def test_a_batch(client: LMClient) -> None:
    batch = client.generate_batch([f"row {n}" for n in range(50)], max_tokens=50)
    assert [str(each) for each in batch] == ["a row"] * 50


def test_what_is_cut_says_so(client: LMClient) -> None:
    assert client.generate("cut this", max_tokens=5).finish_reason == "length"


def test_a_limit_is_waited_for(client: LMClient, wire: str) -> None:
    result = client.generate(f"limited over {wire}", max_tokens=50)
    assert result.output_text == "after the limit"
    assert result.metrics is not None
    assert [attempt.error_type for attempt in result.metrics.attempts] == [RateLimitError.kind, None]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("too long", ContextLengthError), ("forbidden", PermissionDeniedError), ("broken", ServerError)],
)
def test_failures_are_told_apart(client: LMClient, prompt: str, expected: type[RequestError]) -> None:
    with pytest.raises(expected):
        client.generate(prompt, max_tokens=50)
