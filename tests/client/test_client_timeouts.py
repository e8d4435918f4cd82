"""Which timeout and which largest clip hold, the call's, the defaults' or the client's, in every method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Any

import pytest

from infermesh import (
    USE_CLIENT_DEFAULT,
    APIConnectionError,
    ConfigError,
    InputError,
    LMClient,
    RequestError,
    RequestTimeoutError,
)
from infermesh.simulator import Faults, Simulator, SimulatorSettings
from tests.support import wav

MODEL = "hosted_vllm/any"
LATENCY_S, TOO_SHORT_S, ENOUGH_S = 0.1, 0.05, 20.0
PROMPT, TEXT, CLIP = "Hello.", "Hello.", wav("Good morning.")


def _taken(items: Iterable[Any]) -> None:
    for _, _, error in items:
        if error is not None:
            raise error


async def _ataken(items: AsyncIterable[Any]) -> None:
    async for _, _, error in items:
        if error is not None:
            raise error


# Each asks once, with the given options, and raises what the request ends with.
METHODS: dict[str, Callable[..., Any]] = {
    "generate": lambda client, **options: client.generate(PROMPT, **options),
    "agenerate": lambda client, **options: asyncio.run(client.agenerate(PROMPT, **options)),
    "generate_batch": lambda client, **options: client.generate_batch([PROMPT], return_exceptions=False, **options),
    "agenerate_batch": lambda client, **options: asyncio.run(
        client.agenerate_batch([PROMPT], return_exceptions=False, **options)
    ),
    "generate_stream": lambda client, **options: _taken(client.generate_stream([PROMPT], **options)),
    "agenerate_stream": lambda client, **options: asyncio.run(_ataken(client.agenerate_stream([PROMPT], **options))),
    "embed": lambda client, **options: client.embed(TEXT, **options),
    "aembed": lambda client, **options: asyncio.run(client.aembed(TEXT, **options)),
    "embed_batch": lambda client, **options: client.embed_batch([TEXT], return_exceptions=False, **options),
    "aembed_batch": lambda client, **options: asyncio.run(
        client.aembed_batch([TEXT], return_exceptions=False, **options)
    ),
    "embed_stream": lambda client, **options: _taken(client.embed_stream([TEXT], **options)),
    "aembed_stream": lambda client, **options: asyncio.run(_ataken(client.aembed_stream([TEXT], **options))),
    "transcribe": lambda client, **options: client.transcribe(CLIP, **options),
    "atranscribe": lambda client, **options: asyncio.run(client.atranscribe(CLIP, **options)),
    "transcribe_batch": lambda client, **options: client.transcribe_batch([CLIP], return_exceptions=False, **options),
    "atranscribe_batch": lambda client, **options: asyncio.run(
        client.atranscribe_batch([CLIP], return_exceptions=False, **options)
    ),
    "transcribe_stream": lambda client, **options: _taken(client.transcribe_stream([CLIP], **options)),
    "atranscribe_stream": lambda client, **options: asyncio.run(_ataken(client.atranscribe_stream([CLIP], **options))),
}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service that takes its time over every request."""
    with Simulator(SimulatorSettings(latency_s=LATENCY_S)) as simulator:
        yield simulator.url


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """A service that never answers: on a busy machine a slow answer may overtake a short timeout."""
    with Simulator(SimulatorSettings(faults=Faults(hang=1.0))) as simulator:
        yield simulator.url


def client(url: str, timeout: Any, /, **defaults: Any) -> LMClient:
    return LMClient(MODEL, api_base=url, timeout=timeout, max_retries=0, default_request_kwargs=defaults)


def too_short() -> pytest.RaisesExc[RequestError]:
    """The short timeout has passed: on a busy machine it may do so before there is a connection."""
    errors: tuple[type[RequestError], ...] = (RequestTimeoutError, APIConnectionError)
    return pytest.raises(errors, match=f"within {TOO_SHORT_S} s")


def test_every_method_with_a_timeout_is_tried() -> None:
    asking = {name for name in dir(LMClient) if not name.startswith("_")} - {"close", "aclose"}
    assert asking == set(METHODS)


@every_method
def test_a_call_may_wait_for_ever(url: str, method: str) -> None:
    with client(url, TOO_SHORT_S) as impatient:
        METHODS[method](impatient, timeout=None)


@every_method
def test_a_call_that_says_nothing_has_the_clients_timeout(silent: str, method: str) -> None:
    with client(silent, TOO_SHORT_S) as impatient:
        for options in ({}, {"timeout": USE_CLIENT_DEFAULT}):
            with too_short():
                METHODS[method](impatient, **options)


@every_method
def test_a_call_may_set_its_own(url: str, silent: str, method: str) -> None:
    with client(silent, None) as patient, too_short():
        METHODS[method](patient, timeout=TOO_SHORT_S)
    with client(url, TOO_SHORT_S) as impatient:
        METHODS[method](impatient, timeout=ENOUGH_S)
        METHODS[method](impatient, timeout=float("inf"))


@every_method
def test_the_request_defaults_come_before_the_clients(url: str, silent: str, method: str) -> None:
    with client(url, TOO_SHORT_S, timeout=None) as patient:
        METHODS[method](patient)
        METHODS[method](patient, timeout=USE_CLIENT_DEFAULT)
    for timeout, defaults, options in (
        (TOO_SHORT_S, None, {"timeout": TOO_SHORT_S}),
        (None, TOO_SHORT_S, {}),
        (TOO_SHORT_S, USE_CLIENT_DEFAULT, {}),
    ):
        with client(silent, timeout, timeout=defaults) as impatient, too_short():
            METHODS[method](impatient, **options)


@every_method
@pytest.mark.parametrize("wrong", [0, 0.0, -1, float("nan"), True, "long"])
def test_what_is_no_time_is_refused_before_anything_is_sent(url: str, method: str, wrong: Any) -> None:
    with client(url, None) as patient, pytest.raises(ConfigError, match="timeout"):
        METHODS[method](patient, timeout=wrong)


@pytest.mark.parametrize("wrong", [0, -0.5, float("nan"), False, "long"])
def test_a_client_refuses_it_when_it_is_made(wrong: Any) -> None:
    for options in ({"timeout": wrong}, {"default_request_kwargs": {"timeout": wrong}}):
        with pytest.raises(ConfigError, match="timeout"):
            LMClient(MODEL, api_base="http://127.0.0.1:9/v1", **options)
    with pytest.raises(ConfigError, match="timeout"):
        LMClient(MODEL, api_base="http://127.0.0.1:9/v1", timeout=USE_CLIENT_DEFAULT)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [name for name in METHODS if "transcribe" in name])
def test_a_call_may_set_the_largest_clip(url: str, method: str) -> None:
    """The call's size stands over the defaults', and those over the client's; no server is told of it."""
    ask = METHODS[method]
    small: dict[str, Any] = {"api_base": url, "max_transcription_bytes": 1000}
    with LMClient(MODEL, **small) as client:
        for refused in ({}, {"max_transcription_bytes": USE_CLIENT_DEFAULT}, {"max_transcription_bytes": 500}):
            with pytest.raises(InputError, match="max_transcription_bytes"):
                ask(client, **refused)
        for allowed in (None, 10**6):
            ask(client, max_transcription_bytes=allowed)
    with LMClient(MODEL, **small, default_request_kwargs={"max_transcription_bytes": None}) as client:
        ask(client)
        with pytest.raises(InputError, match="1,000 are sent"):
            ask(client, max_transcription_bytes=1000)


def test_the_sentinel_shows_its_name() -> None:
    assert repr(USE_CLIENT_DEFAULT) == "USE_CLIENT_DEFAULT"
