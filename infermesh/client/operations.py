"""The client's three operations: from an input and the caller's options to a result, on the client's loop.

Options are merged and checked once for a call or a whole batch, and an output schema is compiled once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Generic, TypeVar, get_args

from infermesh.dispatch.model import LogicalModel, OnInvalid
from infermesh.errors import ConfigError, InputError, RequestError
from infermesh.exact_json import try_enums
from infermesh.inputs.audio import read_audio
from infermesh.results import EmbeddingResult, GenerationResult, TranscriptionResult
from infermesh.runtime.foreign import words_of
from infermesh.types import USE_CLIENT_DEFAULT, Endpoint, MaxBytes, Request, Timeout, UseClientDefault
from infermesh.wire.requests import GenerationInput, PromptForm
from infermesh.wire.structured import ResponseFormat, ResponseFormatSpec

__all__ = [
    "AudioInput",
    "Handler",
    "I",
    "Operations",
    "check_choice",
    "check_max_bytes",
    "check_timeout",
    "client_default",
]

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
T = TypeVar("T")
AudioInput = str | os.PathLike[str] | bytes | BinaryIO

# What a generation takes besides wire parameters.
_GENERATION_OPTIONS = ("response_format", "parse_output", "on_invalid", "endpoint", "system")


@dataclass(slots=True)
class Handler(Generic[I, R]):
    """What is done with an input.

    Attributes
    ----------
    one
        From an input to its result. Raises its error.
    group
        From inputs that travel in one request to an outcome for each, its result or its error; ``None`` where each
        travels alone.
    """

    one: Callable[[I], Coroutine[Any, Any, R]]
    group: Callable[[Sequence[I]], Coroutine[Any, Any, Sequence[R | Exception]]] | None = None


class Operations:
    """A model, the client's slots in front of it, and the client's defaults.

    Parameters
    ----------
    model
        Asked without parameters of its own.
    slots
        Requests at once, over all callers and deployments; ``None`` where the deployments' own slots bound them.
    defaults
        Options and wire parameters of every request, without those that :func:`client_default` has taken out.
    max_transcription_bytes
        Largest clip that is sent; ``None`` sends any.
    """

    def __init__(
        self,
        model: LogicalModel,
        slots: int | None,
        defaults: Mapping[str, Any],
        max_transcription_bytes: int | None,
    ) -> None:
        self._model = model
        self._slots = None if slots is None else _Slots(slots)
        self._options = {name: defaults.get(name) for name in _GENERATION_OPTIONS}
        self._params = {name: value for name, value in defaults.items() if name not in _GENERATION_OPTIONS}
        self._max_bytes = max_transcription_bytes

    def generation(
        self,
        params: Mapping[str, Any],
        response_format: ResponseFormatSpec | None,
        parse_output: bool | None,
        on_invalid: OnInvalid | None,
        endpoint: Endpoint | None,
        system: str | None,
        timeout: Timeout,
    ) -> Handler[GenerationInput, GenerationResult]:
        """Inputs are prompts, conversations or payloads. Raises ``ConfigError`` for an option that cannot be."""
        options = self._options
        spec = options["response_format"] if response_format is None else response_format
        output = None if spec is None else _response_format(spec)
        parse = options["parse_output"] if parse_output is None else parse_output
        parsed = None if parse is False else output
        invalid: OnInvalid = check_choice("on_invalid", on_invalid or options["on_invalid"] or "null", OnInvalid)
        chosen: Endpoint = check_choice("endpoint", endpoint or options["endpoint"] or self._model.endpoint, Endpoint)
        message = options["system"] if system is None else system
        wire, seconds = {**self._params, **params}, check_timeout(timeout)
        if output is not None:
            wire["response_format"] = output.wire
        model, slots = self._model, self._slots

        def make(input: GenerationInput) -> Request:
            request = model.generation_request(_checked(input), wire, system=message, endpoint=chosen)
            _try_values(request.payload)
            return request

        form = PromptForm(make)

        async def one(input: GenerationInput) -> GenerationResult:
            request = form.request(input) if type(input) is str else make(input)
            answer = model.generate(request, parsed, on_invalid=invalid, timeout=seconds)
            return await (answer if slots is None else slots.hold_during(answer))

        return Handler(one)

    def embedding(self, params: Mapping[str, Any], timeout: Timeout) -> Handler[str, EmbeddingResult]:
        """Inputs are texts, and those of one call travel in one request."""
        wire, seconds = {**self._params, **params}, check_timeout(timeout)
        model, slots = self._model, self._slots

        async def group(chunk: Sequence[str]) -> Sequence[EmbeddingResult | Exception]:
            # Of an enumeration's member that is a text, the text: its value may be a property of the caller's.
            texts = [text if type(text) is str else str.__str__(text) for text in chunk if isinstance(text, str)]
            found: Sequence[EmbeddingResult | Exception] = ()
            try:
                if texts:
                    _try_values(wire)
                    answer = model.embed(texts, wire, timeout=seconds)
                    found = await (answer if slots is None else slots.hold_during(answer))
            except Exception as error:
                found = [error] * len(texts)
            if len(texts) == len(chunk):
                return found
            rest = iter(found)
            return [next(rest) if isinstance(text, str) else _not_a_text(text) for text in chunk]

        async def one(text: str) -> EmbeddingResult:
            (outcome,) = await group((text,))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return Handler(one, group)

    def transcription(
        self, params: Mapping[str, Any], max_transcription_bytes: MaxBytes, timeout: Timeout
    ) -> Handler[AudioInput, TranscriptionResult]:
        """Inputs are paths, bytes or binary files, read in another thread."""
        wire, seconds = {**self._params, **params}, check_timeout(timeout)
        own = check_max_bytes(max_transcription_bytes)
        max_bytes = self._max_bytes if own is USE_CLIENT_DEFAULT else own
        model, slots = self._model, self._slots

        async def read_and_send(source: AudioInput) -> TranscriptionResult:
            _try_values(wire)
            clip = await asyncio.to_thread(read_audio, source, max_bytes=max_bytes)
            return await model.transcribe(clip, wire, timeout=seconds)

        async def one(source: AudioInput) -> TranscriptionResult:
            # With the slot held while the clip is read, so that no more clips are in memory than requests are out.
            return await (read_and_send(source) if slots is None else slots.hold_during(read_and_send(source)))

        return Handler(one)


class _Slots:
    """How many requests are out at once. A request that waited for its slot has those seconds in its metrics.

    Slots belong to an event loop. A client that was closed and opened again has a new one, and all its slots free.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(size)

    def _of_running_loop(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._free = loop, asyncio.Semaphore(self._size)
        return self._free

    async def hold_during(self, answer: Coroutine[Any, Any, R]) -> R:
        """Await an answer once there is a slot for its request."""
        free = self._of_running_loop()
        started = time.perf_counter() if free.locked() else None
        try:
            await free.acquire()
        except BaseException:
            answer.close()  # never begun: Python would warn that nobody awaited it
            raise
        waited = 0.0 if started is None else time.perf_counter() - started
        try:
            outcome = await answer
        except RequestError as error:
            _add_wait((error,), waited)
            raise
        finally:
            free.release()
        if waited:
            _add_wait(outcome if isinstance(outcome, list) else (outcome,), waited)
        return outcome


def _add_wait(outcomes: Iterable[Any], waited: float) -> None:
    # The texts of one request share one metrics object.
    for metrics in {id(outcome.metrics): outcome.metrics for outcome in outcomes}.values():
        if metrics is not None:
            metrics.queue_s += waited
            metrics.end_to_end_s += waited


def _response_format(spec: ResponseFormatSpec) -> ResponseFormat:
    """The format that a call asks for. A class and an enumeration in it are the caller's: they may raise anything."""
    try:
        if isinstance(spec, Mapping):
            try_enums(spec)
        return ResponseFormat.of(spec)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"response_format: no schema can be made of it: {words_of(error)}") from None


def _try_values(payload: Mapping[str, Any]) -> None:
    """Raise ``InputError`` where a member of an enumeration that would be sent cannot say its value.

    This is on the client's loop, where what it raises is that request's error, even a ``SystemExit``.
    """
    try:
        try_enums(payload)
    except BaseException as error:
        raise InputError(f"the request cannot be written as JSON: {words_of(error)}") from None


def _checked(input: GenerationInput) -> GenerationInput:
    if isinstance(input, (str, Mapping)) or (isinstance(input, Sequence) and not isinstance(input, bytes | bytearray)):
        return input
    raise InputError(
        f"cannot make a request from {type(input).__name__}: pass a prompt (str), a list of messages, or a mapping "
        "with the endpoint's own fields"
    )


def _not_a_text(text: object) -> InputError:
    return InputError(f"the text to embed is {type(text).__name__}, not a string")


def check_choice(name: str, value: Any, allowed: Any) -> Any:
    """``value`` itself; ``ConfigError`` unless it is one of the literals ``allowed``."""
    if value not in get_args(allowed):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(allowed))}, got {value!r}")
    return value


def check_timeout(timeout: object) -> Timeout:
    """A timeout as a call may give it.

    Raises ``ConfigError`` for anything but a number above 0, ``None`` and ``USE_CLIENT_DEFAULT``.
    """
    if timeout is None or timeout is USE_CLIENT_DEFAULT:
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ConfigError(f"timeout: expected a number of seconds above 0, or None to wait for ever, got {timeout!r}")
    return float(timeout)


def check_max_bytes(most: object) -> MaxBytes:
    """The largest clip as a call may give it.

    Raises ``ConfigError`` for anything but a whole number above 0, ``None`` and ``USE_CLIENT_DEFAULT``.
    """
    if most is None or most is USE_CLIENT_DEFAULT:
        return most
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(
            f"max_transcription_bytes: expected a number of bytes, at least 1, or None to send any clip, got {most!r}"
        )
    return most


def client_default(
    name: str, value: object, defaults: dict[str, Any], check: Callable[[object], T | UseClientDefault]
) -> T:
    """What holds for calls that give none. One among the request defaults is taken out of them and goes first.

    Raises ``ConfigError`` as ``check`` does, and where the client itself is to use the client's default.
    """
    own = check(value)
    if own is USE_CLIENT_DEFAULT:
        raise ConfigError(f"{name}: this is the client's default: give a number, or None for no limit")
    given = check(defaults.pop(name, USE_CLIENT_DEFAULT))
    return own if given is USE_CLIENT_DEFAULT else given
