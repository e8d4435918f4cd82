"""The same questions to real servers by infermesh and by the openai SDK: the same answers, counts, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest

from infermesh import (
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    DeploymentConfig,
    LMClient,
    NotFoundError,
    RequestError,
)
from tests.engines.conftest import KEY, Engine
from tests.engines.install import LLAMA

PROMPT = "What is the capital of France?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look up the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# Fixture → the model's name there.
MODELS = {"llamacpp": "smollm2", "vllm": "tiny", "transformers": str(LLAMA), "proxy": "gpt"}


def client_of(base: str, model: str, api_key: str = KEY) -> LMClient:
    deployment = DeploymentConfig(f"openai/{model}", base, api_key=api_key)
    return LMClient("m", deployments={"d": deployment}, timeout=120, max_retries=0)


@dataclass
class Pair:
    """A client and the SDK at one server."""

    name: str
    model: str
    base: str
    client: LMClient
    sdk: openai.OpenAI

    def other(self, model: str | None = None, api_key: str = KEY) -> LMClient:
        return client_of(self.base, model or self.model, api_key)

    def lacks(self, *names: str) -> None:
        if self.name in names:
            pytest.skip(f"{self.name} does not do this")


@pytest.fixture(params=MODELS, scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    engine: Engine = request.getfixturevalue(request.param)
    model = MODELS[request.param]
    with (
        openai.OpenAI(base_url=engine.base, api_key=KEY, max_retries=0, timeout=120) as sdk,
        client_of(engine.base, model) as client,
    ):
        yield Pair(request.param, model, engine.base, client, sdk)


def test_a_chat(pair: Pair) -> None:
    ours = pair.client.generate(PROMPT, max_tokens=12, temperature=0)
    theirs = pair.sdk.chat.completions.create(
        model=pair.model, messages=[{"role": "user", "content": PROMPT}], max_tokens=12, temperature=0
    )
    assert theirs.usage is not None
    assert ours.token_usage is not None
    assert ours.output_text == theirs.choices[0].message.content
    assert ours.finish_reason == theirs.choices[0].finish_reason
    assert ours.model_id == theirs.model
    assert ours.token_usage.prompt_tokens == theirs.usage.prompt_tokens
    assert ours.token_usage.completion_tokens == theirs.usage.completion_tokens


def test_a_plain_completion(pair: Pair) -> None:
    prompt = "a row of one two three"
    ours = pair.client.generate(prompt, endpoint="text_completion", max_tokens=6, temperature=0)
    theirs = pair.sdk.completions.create(model=pair.model, prompt=prompt, max_tokens=6, temperature=0)
    assert (ours.output_text, ours.finish_reason) == (theirs.choices[0].text, theirs.choices[0].finish_reason)


def test_a_response(pair: Pair) -> None:
    ours = pair.client.generate(PROMPT, endpoint="responses", max_tokens=32, temperature=0)
    # transformers serve streams unless it is told not to, which the SDK does not notice and infermesh learns.
    theirs = pair.sdk.responses.create(
        model=pair.model, input=PROMPT, max_output_tokens=32, temperature=0, stream=False
    )
    assert ours.output_text == theirs.output_text
    assert ours.token_usage is not None


def test_what_a_schema_allows(pair: Pair) -> None:
    pair.lacks("transformers")
    prompt = "json" if pair.name == "proxy" else "Give a city as JSON."
    schema = {**SCHEMA, "required": ["city"]} if pair.name == "proxy" else SCHEMA
    ours = pair.client.generate(prompt, response_format=schema, max_tokens=250, temperature=0)
    assert set(ours.output_parsed) <= {"city", "n"}
    assert isinstance(ours.output_parsed["city"], str)


def test_a_tool_call(pair: Pair) -> None:
    pair.lacks("transformers", "llamacpp", "vllm")  # small random models call nothing of themselves
    ours = pair.client.generate("weather", max_tokens=40, temperature=0, tools=[TOOL])
    assert [(call.name, call.arguments) for call in ours.tool_calls or []] == [("look", '{"city":"Rome"}')]


def test_a_batch(pair: Pair) -> None:
    pair.lacks("transformers")  # one at a time: a minute
    batch = pair.client.generate_batch([f"{PROMPT} {n}" for n in range(16)], max_tokens=4, temperature=0)
    assert not batch.failures
    assert all(batch)


class TestErrors:
    def test_a_model_that_is_not_there(self, pair: Pair) -> None:
        pair.lacks("llamacpp")  # it serves its one model by any name
        with pair.other("no-such-model") as client, pytest.raises((NotFoundError, BadRequestError)) as caught:
            client.generate(PROMPT, max_tokens=4)
        assert "no-such-model" in str(caught.value)
        assert not caught.value.retryable

    def test_a_wrong_key(self, pair: Pair) -> None:
        pair.lacks("llamacpp", "transformers", "proxy")  # they ask for none; the proxy looks for it in a database
        with pair.other(api_key="sk-wrong-123456789") as client, pytest.raises(AuthenticationError) as caught:
            client.generate(PROMPT, max_tokens=4)
        assert "sk-wrong-123456789" not in str(caught.value)

    def test_a_prompt_that_is_too_long(self, pair: Pair) -> None:
        pair.lacks("transformers")  # it takes what the model cannot
        with pytest.raises(ContextLengthError):
            pair.client.generate("too long" if pair.name == "proxy" else "word " * 9000, max_tokens=4)

    def test_a_parameter_out_of_its_range(self, pair: Pair) -> None:
        pair.lacks("llamacpp", "proxy", "transformers")  # they take anything
        with pytest.raises(BadRequestError) as caught:
            pair.client.generate(PROMPT, max_tokens=4, temperature=-5)
        assert "temperature" in str(caught.value)

    def test_a_base_without_v1(self, pair: Pair) -> None:
        pair.lacks("llamacpp", "proxy")  # they answer there too
        base = pair.base.removesuffix("/v1")
        with (
            LMClient(f"openai/{pair.model}", api_base=base, api_key=KEY, max_retries=0, timeout=120) as client,
            pytest.raises(NotFoundError) as caught,
        ):
            client.generate(PROMPT, max_tokens=4)
        assert f"{base}/chat/completions" in str(caught.value)

    def test_what_it_cannot_embed(self, pair: Pair) -> None:
        pair.lacks("proxy")  # what is behind it embeds
        with pytest.raises(RequestError) as caught:
            pair.client.embed("hello")
        assert not caught.value.retryable


def test_embeddings_are_the_sdks(llamacpp_embeddings: Engine) -> None:
    with LMClient("openai/smollm2", api_base=llamacpp_embeddings.base, api_key=KEY, timeout=120) as client:
        ours = client.embed("hello world")
    with openai.OpenAI(base_url=llamacpp_embeddings.base, api_key=KEY, max_retries=0, timeout=120) as sdk:
        theirs = sdk.embeddings.create(model="smollm2", input="hello world", encoding_format="float")
    assert list(ours.embedding) == theirs.data[0].embedding
