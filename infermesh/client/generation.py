"""The client's methods that generate text, each twice: plain, and with an ``a`` in front for ``await``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from infermesh.client.batches import Callbacks, Inputs, abatch, astream, batch, stream
from infermesh.client.calls import Calls, OnProgress, OnResult
from infermesh.dispatch.model import OnInvalid
from infermesh.results import BatchResult, GenerationResult, StreamItem
from infermesh.types import USE_CLIENT_DEFAULT, Endpoint, Timeout
from infermesh.wire.requests import GenerationInput
from infermesh.wire.structured import ResponseFormatSpec

__all__ = ["GenerationCalls"]


class GenerationCalls(Calls):
    """One prompt, a batch of them, a stream of them."""

    def generate(
        self,
        input: GenerationInput,
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> GenerationResult:
        """Answer one prompt. For many, use :meth:`generate_batch` or :meth:`generate_stream`.

        Options that are ``None`` are those of ``default_request_kwargs``, or else as described here.

        Parameters
        ----------
        input
            A prompt; a list of messages; or a mapping with the endpoint's own fields (``messages``, ``prompt``,
            ``input`` …).
        response_format
            A pydantic class or a JSON schema. The server is asked for it, and the answer is checked and parsed into
            ``output_parsed``. ``None`` asks for plain text.
        parse_output
            ``False`` sends the schema and leaves ``output_parsed`` empty. ``None`` is as ``True``.
        on_invalid
            What to do with an answer that does not satisfy the format. ``"null"`` (as ``None``): warn, and leave
            ``output_parsed`` empty. ``"retry"``: tell the model what was wrong and ask again, at most twice.
        endpoint
            ``None`` takes the client's.
        system
            A system message, put first unless the conversation begins with one of its own.
        timeout
            Seconds for one attempt, above 0. ``None`` waits for ever. ``USE_CLIENT_DEFAULT`` takes the client's.
        params
            Wire parameters: ``temperature``, ``max_tokens``, ``tools`` and so on. ``None`` sends none of that name.

        Raises
        ------
        RequestError
            The failure of the last attempt; its class says what kind.
        ConfigError
            An option is wrong. Nothing was sent.

        Examples
        --------
        >>> result = client.generate("What is the capital of France?", max_tokens=64, timeout=30)
        >>> result.output_text
        'What is the capital of France?'

        (The server of these examples repeats the prompt.)

        >>> from pydantic import BaseModel
        >>> class City(BaseModel):
        ...     name: str
        ...     population: int
        >>> type(client.generate("A city, as JSON.", response_format=City).output_parsed).__name__
        'City'
        """
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return self._loop.run(handler.one, input)

    async def agenerate(
        self,
        input: GenerationInput,
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> GenerationResult:
        """Do what :meth:`generate` does, for ``await``."""
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return await self._loop.arun(handler.one, input)

    def generate_batch(
        self,
        inputs: Inputs[GenerationInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[GenerationResult] | None = None,
        on_progress: OnProgress | None = None,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[GenerationResult]:
        """Answer many prompts, and return when all have settled.

        A failed item does not end the batch. For inputs or results that do not fit into memory there is
        :meth:`generate_stream`.

        Parameters
        ----------
        inputs
            Any iterable of what :meth:`generate` takes, asynchronous ones included.
        return_exceptions
            ``True``: a failed item is ``None`` in ``batch.results``, and its exception is in ``batch.errors``.
            ``False``: the first failure ends the batch and is raised.
        on_result
            Called with ``(index, result, error)`` as each item settles, in the caller's thread or loop, one call at a
            time. If it raises, the batch ends.
        on_progress
            Called after it with ``(done, total)``; ``total`` is ``None`` where the inputs have no length.
        response_format, parse_output, on_invalid, endpoint, system, timeout, params
            As for :meth:`generate`.

        Returns
        -------
        BatchResult
            Results in the order of the inputs.

        Raises
        ------
        BaseException
            What ended the batch early, Ctrl-C included. Its attribute ``batch`` holds what had settled by then.

        Examples
        --------
        >>> batch = client.generate_batch(["One.", "Two.", None], on_progress=lambda done, total: None)
        >>> [str(result) for result in batch]
        ['One.', 'Two.', 'None']
        >>> batch.failures
        {2: InputError(...)}
        """
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return batch(self._loop, handler, inputs, Callbacks(on_result, on_progress, not return_exceptions))

    async def agenerate_batch(
        self,
        inputs: Inputs[GenerationInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[GenerationResult] | None = None,
        on_progress: OnProgress | None = None,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[GenerationResult]:
        """Do what :meth:`generate_batch` does, for ``await``. Callbacks may be ``async def``."""
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return await abatch(self._loop, handler, inputs, Callbacks(on_result, on_progress, not return_exceptions))

    def generate_stream(
        self,
        inputs: Inputs[GenerationInput],
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> Iterator[StreamItem[GenerationResult]]:
        """Answer prompts one by one as they settle, for inputs and outputs of any length.

        Inputs are pulled as results are taken: at most twice ``max_parallel_requests`` (64 where nothing says how many)
        are between the iterator and the caller, so that a slow consumer slows the requests down. Leaving the loop early
        ends the requests under way.

        Yields
        ------
        StreamItem
            ``(index, result, error)``, in the order in which they settle.

        Examples
        --------
        >>> def rows():
        ...     for number in range(1_000_000):
        ...         yield f"Name city number {number}."
        >>> for index, result, error in client.generate_stream(rows()):
        ...     if index == 100:
        ...         break
        """
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return stream(self._loop, handler, inputs)

    def agenerate_stream(
        self,
        inputs: Inputs[GenerationInput],
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> AsyncIterator[StreamItem[GenerationResult]]:
        """Do what :meth:`generate_stream` does, for ``async for``."""
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return astream(self._loop, handler, inputs)
