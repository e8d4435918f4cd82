"""The client, one call at a time: what it takes, what it sends, what it gives back, how it opens and closes."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import infermesh
from infermesh import (
    AuthenticationError,
    BadRequestError,
    ConfigError,
    DeploymentConfig,
    GenerationResult,
    InputError,
    LMClient,
    NoDeploymentError,
    NotFoundError,
    RequestTimeoutError,
    image_block,
)
from infermesh.client.build import deployment_configs
from infermesh.config.deployment import MAX_RESPONSE_BYTES
from infermesh.simulator import Faults, Simulator
from tests.support import totals, wav

Start = Callable[..., Simulator]
MODEL = "hosted_vllm/any"
KEY = "sk-very-secret-0123456789"
PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(24)


class Answer(BaseModel):
    value: int
    confidence: float


@pytest.fixture
def client(simulator: Simulator) -> Any:
    with LMClient(MODEL, api_base=simulator.url, max_retries=0) as opened:
        yield opened


def seen(client: LMClient) -> list[Any]:
    """Every request that goes out from now on."""
    requests: list[Any] = []
    for deployment in client._loop._deployments:
        send = deployment.transport.send

        async def spy(request: Any, timeout: float | None, send: Any = send) -> Any:
            requests.append((request, timeout))
            return await send(request, timeout)

        deployment.transport.send = spy  # type: ignore[method-assign]
    return requests


def test_a_generation_has_text_tokens_ids_and_times(client: LMClient) -> None:
    result = client.generate("The parcel came late.")
    assert isinstance(result, GenerationResult)
    assert str(result) == result.output_text == "The parcel came late."
    assert result.finish_reason == "stop"
    assert result.request_id
    assert result.model_id == "any"
    assert result.raw_response is not None
    assert result.token_usage is not None
    assert result.token_usage.total_tokens == result.token_usage.prompt_tokens + result.token_usage.completion_tokens
    assert result.metrics is not None
    assert (result.metrics.retries, result.metrics.deployment) == (0, MODEL)
    assert result.metrics.end_to_end_s >= result.metrics.service_s > 0


def test_inputs_may_be_a_prompt_messages_with_a_picture_or_a_payload(client: LMClient) -> None:
    sent = seen(client)
    turns = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image_block(PIXEL)]}]
    client.generate("Hello.", system="Be brief.")
    client.generate(turns)
    client.generate({"messages": [{"role": "user", "content": "Hi."}], "seed": 7})
    client.generate({"input": "Hi."}, endpoint="responses")
    client.generate("Once", endpoint="text_completion")
    payloads = [request.payload for request, _ in sent]
    assert [turn["role"] for turn in payloads[0]["messages"]] == ["system", "user"]
    assert payloads[1]["messages"] == turns
    assert payloads[2]["seed"] == 7
    assert payloads[3] == {"input": "Hi."}
    assert payloads[4] == {"prompt": "Once"}


@pytest.mark.parametrize("endpoint", ["chat_completion", "text_completion", "responses"])
@pytest.mark.parametrize("bad", [None, 5, b"bytes", {"role": 1, "x": 2}.keys(), []])
def test_what_is_no_input_is_an_input_error(client: LMClient, endpoint: Any, bad: Any) -> None:
    with pytest.raises(InputError):
        client.generate(bad, endpoint=endpoint)


def test_a_call_overrides_the_defaults_of_the_client(simulator: Simulator) -> None:
    defaults = {"max_tokens": 256, "temperature": 0.7, "timeout": 30.0, "system": "Be kind."}
    with LMClient(MODEL, api_base=simulator.url, timeout=10, default_request_kwargs=defaults) as client:
        sent = seen(client)
        client.generate("Hello.")
        client.generate("Hello.", max_tokens=64, timeout=5.0, top_p=0.5, system="Be brief.")
        client.embed("Hello.")
    (first, patience), (second, impatience), (third, _) = sent
    assert (first.payload["max_tokens"], first.payload["temperature"], patience) == (256, 0.7, 30.0)
    assert (second.payload["max_tokens"], second.payload["temperature"], impatience) == (64, 0.7, 5.0)
    assert (second.payload["top_p"], second.payload["messages"][0]["content"]) == (0.5, "Be brief.")
    assert "system" not in third.payload


def test_a_timeout_is_one_for_each_attempt(start_simulator: Start) -> None:
    slow = start_simulator(faults=Faults(hang=1.0))
    with (
        LMClient(MODEL, api_base=slow.url, max_retries=0) as client,
        pytest.raises(RequestTimeoutError, match=r"0\.05"),
    ):
        client.generate("Hello.", timeout=0.05)


def test_structured_output_is_parsed_checked_or_a_warning(client: LMClient, caplog: pytest.LogCaptureFixture) -> None:
    result = client.generate("What is 2 + 2?", response_format=Answer)
    assert isinstance(result.output_parsed, Answer)
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    assert isinstance(client.generate("A word.", response_format=schema).output_parsed["word"], str)
    assert client.generate("A word.", response_format=schema, parse_output=False).output_parsed is None
    with pytest.raises(ConfigError, match="response_format"):
        client.generate("A word.", response_format=5)  # type: ignore[arg-type]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_invalid_output_is_a_warning_or_asked_for_again(
    start_simulator: Start, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = start_simulator(faults=Faults(invalid_json_content=1.0))
    with LMClient(MODEL, api_base=spoiled.url) as client, caplog.at_level(logging.WARNING):
        assert client.generate("What is 2 + 2?", response_format=Answer).output_parsed is None
        again = client.generate("What is 2 + 2?", response_format=Answer, on_invalid="retry")
    assert "output_parsed is None" in caplog.text
    assert again.metrics is not None
    assert again.metrics.retries == 2
    assert totals(spoiled)["received"] == 4


def test_embeddings_and_transcripts(client: LMClient, tmp_path: Path) -> None:
    vector = client.embed("The quick brown fox")
    assert len(vector.embedding) == 64
    clip = wav("Good morning.")
    path = tmp_path / "clip.wav"
    path.write_bytes(clip)
    for source in (path, str(path), clip, io.BytesIO(clip)):
        result = client.transcribe(source)
        assert (result.text, result.language) == ("Good morning.", "en")
        assert result.duration_s == pytest.approx(0.2)


def test_a_large_clip_is_refused_unless_allowed(simulator: Simulator) -> None:
    clip = wav("Good morning.", seconds=1.0)
    with (
        LMClient(MODEL, api_base=simulator.url, max_transcription_bytes=1000) as client,
        pytest.raises(InputError, match="max_transcription_bytes"),
    ):
        client.transcribe(clip)
    assert totals(simulator)["received"] == 0
    with LMClient(MODEL, api_base=simulator.url, max_transcription_bytes=None) as client:
        assert client.transcribe(clip).text == "Good morning."


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "25 MB"])
def test_what_is_no_size_of_a_clip_is_refused(client: LMClient, wrong: Any) -> None:
    for call in (
        lambda: client.transcribe(b"RIFF", max_transcription_bytes=wrong),
        lambda: client.transcribe_stream([], max_transcription_bytes=wrong),
        lambda: LMClient(MODEL, max_transcription_bytes=wrong),
        lambda: LMClient(MODEL, default_request_kwargs={"max_transcription_bytes": wrong}),
    ):
        with pytest.raises(ConfigError, match="max_transcription_bytes"):
            call()


def test_a_deployments_own_value_stands_though_it_is_the_usual_one() -> None:
    """Not given is not the same as given with the value that holds where nothing is given."""
    deployments: dict[str, Any] = {
        "given": {"model": MODEL, "api_base": "http://127.0.0.1:9/v1", "max_response_bytes": MAX_RESPONSE_BYTES},
        "config": DeploymentConfig(MODEL, "http://127.0.0.1:9/v1", max_response_bytes=MAX_RESPONSE_BYTES),
        "silent": DeploymentConfig(MODEL, "http://127.0.0.1:9/v1"),
    }
    found = deployment_configs("m", None, None, deployments, 1000)
    assert {label: config.max_response_bytes for label, config in found.items()} == {
        **dict.fromkeys(("given", "config"), MAX_RESPONSE_BYTES),
        "silent": 1000,
    }


def test_errors_keep_their_class_and_tell_no_key(start_simulator: Start) -> None:
    locked = start_simulator(api_key="another", models=["known"])
    with LMClient(MODEL, api_base=locked.url, api_key=KEY) as client:
        with pytest.raises(AuthenticationError) as caught:
            client.generate("Hello.")
        assert KEY not in str(caught.value) + repr(caught.value) + repr(client) + repr(client.__dict__)
        assert caught.value.status_code == 401
    with LMClient(MODEL, api_base=locked.url, api_key="another") as client:
        with pytest.raises(NotFoundError):
            client.generate("Hello.")
        with pytest.raises(InputError, match="belongs to the deployment"):
            client.generate("Hello.", api_key=KEY)


def test_a_failure_that_may_pass_is_tried_again(start_simulator: Start) -> None:
    flaky = start_simulator(seed=3, faults=Faults(unavailable=0.5, retry_after_s=0.0))
    with LMClient(MODEL, api_base=flaky.url, max_retries=12) as client:
        batch = client.generate_batch([f"Parcel {n}." for n in range(20)])
    assert not batch.failures
    assert sum(result.metrics.retries for result in batch if result and result.metrics) > 0


def test_several_urls_are_several_deployments(start_simulator: Start) -> None:
    replicas = [start_simulator() for _ in range(3)]
    with LMClient(MODEL, api_base=[r.url for r in replicas], routing_strategy="least-busy") as client:
        batch = client.generate_batch([f"Parcel {n}." for n in range(30)])
    labels = {result.metrics.deployment for result in batch if result and result.metrics}
    assert labels == {"replica-0", "replica-1", "replica-2"}
    assert all(totals(replica)["received"] for replica in replicas)


def test_deployments_may_be_configs_mappings_or_structured_configs(simulator: Simulator) -> None:
    from omegaconf import OmegaConf

    config = DeploymentConfig(MODEL, api_base=simulator.url)
    for given in (config, {"model": MODEL, "api_base": simulator.url}, OmegaConf.structured(config)):
        with LMClient("llama", deployments={"gpu-0": given}) as client:
            metrics = client.generate("Hello.").metrics
            assert metrics is not None
            assert metrics.deployment == "gpu-0"


def test_every_deployment_failed_names_each(start_simulator: Start) -> None:
    down = start_simulator(faults=Faults(unavailable=1.0, retry_after_s=0.0))
    bases = [down.url, "http://127.0.0.1:9/v1"]
    with LMClient(MODEL, api_base=bases, max_retries=1) as client, pytest.raises(NoDeploymentError) as caught:
        client.generate("Hello.")
    assert caught.value.failures.keys() == {"replica-0", "replica-1"}


def test_costs_come_from_the_client_unless_a_deployment_says(simulator: Simulator) -> None:
    given = {"input_cost_per_token": 1.0, "output_cost_per_token": 10.0}
    with LMClient(MODEL, api_base=simulator.url, **given) as client:  # type: ignore[arg-type]
        result = client.generate("Hello.")
    assert result.token_usage is not None
    assert result.cost == result.token_usage.prompt_tokens + 10 * result.token_usage.completion_tokens
    own = DeploymentConfig(MODEL, api_base=simulator.url, input_cost_per_token=0.0, output_cost_per_token=0.0)
    with LMClient("llama", deployments={"gpu-0": own}, **given) as client:  # type: ignore[arg-type]
        assert client.generate("Hello.").cost == 0.0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_parallel_requests": 0}, "max_parallel_requests"),
        ({"rpm": -1}, "rpm"),
        ({"max_retries": -1}, "max_retries"),
        ({"timeout": 0}, "timeout"),
        ({"routing_strategy": "fastest"}, "routing_strategy"),
        ({"api_base": []}, "api_base"),
        ({"api_base": "localhost:8000"}, "api_base"),
        ({"header_bucket_scope": "hour"}, "header_bucket_scope"),
        ({"deployments": {}}, "deployments"),
        ({"deployments": {"a": {"model": MODEL}}, "api_base": "http://h/v1"}, "api_base or deployments"),
        ({"deployments": {"a": {"api_base": "http://h/v1"}}}, r"deployments\.a\.model"),
        ({"deployments": {"a": {"modle": "m"}}}, "Did you mean 'model'"),
        ({"deployments": {"a": 5}}, r"deployments\.a"),
        ({"deployments": {"a": {"model": MODEL, "transport": "carrier-pigeon"}}}, "transport"),
        ({"deployments": {"a": {"model": MODEL, "api_base": "http://h/v1", "weight": -1}}}, r"a\.weight"),
        ({"endpoint": "chat"}, "endpoint"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LMClient(MODEL, **{"api_base": None if "deployments" in options else "http://127.0.0.1:9/v1", **options})


def test_wrong_options_of_a_call_say_what_is_wrong(client: LMClient) -> None:
    for options, named in (
        ({"timeout": "long"}, "timeout"),
        ({"endpoint": "chat"}, "endpoint"),
        ({"on_invalid": "ignore"}, "on_invalid"),
    ):
        with pytest.raises(ConfigError, match=named):
            client.generate("Hello.", **options)  # type: ignore[arg-type]


def test_a_closed_client_says_so_and_may_be_opened_again(simulator: Simulator) -> None:
    client = LMClient(MODEL, api_base=simulator.url)
    for _ in range(3):
        with client:
            assert client.generate("Hello.").output_text == "Hello."
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.generate("Hello.")


def test_limits_outlive_a_close(simulator: Simulator) -> None:
    client = LMClient(MODEL, api_base=simulator.url, rpd=2)
    with client:
        client.generate_batch(["One.", "Two."])
    limiter = client._loop._deployments[0].limiter
    with client:
        assert client._loop._deployments[0].limiter is limiter
    assert limiter.used_today.requests == 2  # type: ignore[attr-defined]


def test_a_bad_request_is_not_tried_again(start_simulator: Start) -> None:
    small = start_simulator(context_window=5)
    with LMClient(MODEL, api_base=small.url) as client, pytest.raises(BadRequestError):
        client.generate("This is by far too long a prompt for so small a window.")
    assert totals(small)["received"] == 1


def test_every_public_name_is_there() -> None:
    for name in infermesh.__all__:
        assert getattr(infermesh, name) is not None
    assert set(infermesh.__all__) <= set(dir(infermesh))
    with pytest.raises(AttributeError, match="nothing"):
        _ = infermesh.nothing
