"""The client's three operations, on its loop: from an input and the caller's options to a result.

Each is prepared once for a call or a whole batch: options merged and checked, output schema compiled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, get_args

from infermesh.dispatch.model import Model, OnInvalid
from infermesh.errors import ConfigError, InputError, RequestError
from infermesh.inputs.audio import read_audio
from infermesh.results import EmbeddingResult, GenerationResult, TranscriptionResult
from infermesh.types import USE_CLIENT_DEFAULT, Endpoint, Request, Timeout
from infermesh.wire.requests import PromptForm
from infermesh.wire.structured import ResponseFormat

__all__ = ["Operations", "check_choice", "check_timeout"]

R = TypeVar("R")

# What a generation takes besides wire parameters.
_GENERATION_OPTIONS = ("response_format", "parse_output", "on_invalid", "endpoint", "system")


class Operations:
    """A model, the client's slots in front of it, and the client's defaults.

    Parameters
    ----------
    model
        Asked without parameters of its own.
    slots
        Requests in hand at once, over all callers and deployments; ``None`` where the deployments' own slots do.
    defaults
        Options and wire parameters of every request.
    max_transcription_bytes
        Largest clip that is sent.
    """

    def __init__(
        self, model: Model, slots: int | None, defaults: Mapping[str, Any], max_transcription_bytes: int | None
    ) -> None:
        self._model = model
        self._slots = None if slots is None else _Slots(slots)
        self._defaults = dict(defaults)
        self._max_bytes = max_transcription_bytes

    def generation(self, params: Mapping[str, Any], timeout: Timeout, **options: Any) -> Work[Any, GenerationResult]:
        """Inputs are prompts, conversations or payloads. Raises ``ConfigError`` for an option that cannot be."""
        wire = self._merged(params, options)
        chosen = {name: wire.pop(name, None) for name in _GENERATION_OPTIONS}
        spec = chosen["response_format"]
        output = None if spec is None else ResponseFormat.of(spec)
        if output is not None:
            wire["response_format"] = output.wire
        parse = output if chosen["parse_output"] is not False else None
        on_invalid: OnInvalid = check_choice("on_invalid", chosen["on_invalid"] or "null", OnInvalid)
        endpoint: Endpoint = check_choice("endpoint", chosen["endpoint"] or self._model.endpoint, Endpoint)
        system, timeout = chosen["system"], check_timeout(timeout)
        model, slots = self._model, self._slots

        def make(input: Any) -> Request:
            return model.generation_request(_checked(input), wire, system=system, endpoint=endpoint)

        @cache
        def form() -> PromptForm | None:
            try:
                return PromptForm(make)
            except ValueError:  # a system message before the prompt, in one text
                return None

        async def one(input: Any) -> GenerationResult:
            known = form() if type(input) is str else None
            request = make(input) if known is None else known.request(input)
            ask = model.generate(request, parse, on_invalid=on_invalid, timeout=timeout)
            return await (ask if slots is None else slots.turn(ask))

        return Work(one)

    def embedding(self, params: Mapping[str, Any], timeout: Timeout) -> Work[Any, EmbeddingResult]:
        """Inputs are texts, and those of one call travel in one request."""
        wire, timeout = self._for_others(params), check_timeout(timeout)
        model, slots = self._model, self._slots

        async def group(chunk: Sequence[Any]) -> Sequence[EmbeddingResult | Exception]:
            texts = [text for text in chunk if isinstance(text, str)]
            found: Sequence[EmbeddingResult | Exception] = ()
            try:
                if texts:
                    ask = model.embed(texts, wire, timeout=timeout)
                    found = await (ask if slots is None else slots.turn(ask))
            except Exception as error:
                found = [error] * len(texts)
            if len(texts) == len(chunk):
                return found
            rest = iter(found)
            return [next(rest) if isinstance(text, str) else _not_a_text(text) for text in chunk]

        async def one(text: Any) -> EmbeddingResult:
            (outcome,) = await group((text,))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return Work(one, group)

    def transcription(self, params: Mapping[str, Any], timeout: Timeout) -> Work[Any, TranscriptionResult]:
        """Inputs are paths, bytes or binary files, read in another thread."""
        wire, timeout = self._for_others(params), check_timeout(timeout)
        model, slots, max_bytes = self._model, self._slots, self._max_bytes

        async def ask(source: Any) -> TranscriptionResult:
            clip = await asyncio.to_thread(read_audio, source, max_bytes=max_bytes)
            return await model.transcribe(clip, wire, timeout=timeout)

        async def one(source: Any) -> TranscriptionResult:
            return await (ask(source) if slots is None else slots.turn(ask(source)))

        return Work(one)

    def _merged(self, params: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if value is not None}
        return {**self._defaults, **given, **params}

    def _for_others(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The merged parameters of an operation that is not a generation."""
        defaults = {name: value for name, value in self._defaults.items() if name not in _GENERATION_OPTIONS}
        return {**defaults, **params}


class _Slots:
    """Requests in hand at once. What waited for its turn has the seconds in its metrics."""

    def __init__(self, size: int) -> None:
        self._free = asyncio.Semaphore(size)

    async def turn(self, ask: Coroutine[Any, Any, R]) -> R:
        """Await a request once there is a slot for it."""
        started = time.perf_counter() if self._free.locked() else None
        try:
            await self._free.acquire()
        except BaseException:
            ask.close()
            raise
        waited = 0.0 if started is None else time.perf_counter() - started
        try:
            outcome = await ask
        except RequestError as error:
            _add_wait((error,), waited)
            raise
        finally:
            self._free.release()
        if waited:
            _add_wait(outcome if isinstance(outcome, list) else (outcome,), waited)
        return outcome


def _add_wait(outcomes: Iterable[Any], waited: float) -> None:
    for metrics in {id(outcome.metrics): outcome.metrics for outcome in outcomes}.values():
        if metrics is not None:
            metrics.queue_s += waited
            metrics.end_to_end_s += waited


def _checked(input: Any) -> Any:
    if isinstance(input, (str, Mapping)) or (isinstance(input, Sequence) and not isinstance(input, bytes | bytearray)):
        return input
    raise InputError(
        f"cannot make a request from {type(input).__name__}: pass a prompt (str), a list of messages, or a mapping "
        "with the endpoint's own fields"
    )


def _not_a_text(text: Any) -> InputError:
    return InputError(f"the text to embed is {type(text).__name__}, not a string")


def check_choice(name: str, value: Any, allowed: Any) -> Any:
    """``value`` itself; ``ConfigError`` unless it is one of the literals ``allowed``."""
    if value not in get_args(allowed):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(allowed))}, got {value!r}")
    return value


def check_timeout(timeout: Any) -> Timeout:
    """A timeout as a call may give it; infinite seconds are ``None``, for ever.

    Raises ``ConfigError`` for anything but a number above 0, ``None`` and ``USE_CLIENT_DEFAULT``.
    """
    if timeout is None or timeout is USE_CLIENT_DEFAULT:
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ConfigError(f"timeout: expected a number of seconds above 0, or None to wait for ever, got {timeout!r}")
    return None if math.isinf(timeout) else float(timeout)


def default_timeout(timeout: Any, defaults: dict[str, Any]) -> float | None:
    """The timeout of calls that give none; one among the request defaults is taken out of them, and stands first.

    Raises ``ConfigError`` as :func:`check_timeout` does, and where the client itself is to use the client's default.
    """
    own = check_timeout(timeout)
    if own is USE_CLIENT_DEFAULT:
        raise ConfigError("timeout: this is the client's default: give seconds, or None to wait for ever")
    given = check_timeout(defaults.pop("timeout", USE_CLIENT_DEFAULT))
    return own if given is USE_CLIENT_DEFAULT else given


I = TypeVar("I")  # noqa: E741


@dataclass(slots=True)
class Work(Generic[I, R]):
    """What is done with an input, on the client's loop.

    Attributes
    ----------
    one
        From an input to its result, or the error that it raises.
    group
        From inputs that travel together to an outcome for each, its result or its error; ``None`` where each travels
        alone.
    """

    one: Callable[[I], Coroutine[Any, Any, R]]
    group: Callable[[Sequence[I]], Coroutine[Any, Any, Sequence[R | Exception]]] | None = None
