"""The client's methods that embed texts, each twice: plain, and with an ``a`` in front for ``await``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from infermesh.client.batches import Callbacks, Inputs, abatch, astream, batch, stream
from infermesh.client.calls import Calls, OnProgress, OnResult
from infermesh.results import BatchResult, EmbeddingResult, StreamItem
from infermesh.types import USE_CLIENT_DEFAULT, Timeout

__all__ = ["EmbeddingCalls"]


class EmbeddingCalls(Calls):
    """One text, a batch of them, a stream of them."""

    def embed(
        self,
        text: str,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> EmbeddingResult:
        """Embed one text. For many, use :meth:`embed_batch`: texts that travel together cost far less.

        Parameters
        ----------
        text
            What to embed.
        timeout
            As for ``generate``.
        params
            Wire parameters: ``dimensions`` and so on.

        Raises
        ------
        RequestError
            The failure of the last attempt.

        Examples
        --------
        >>> len(client.embed("The quick brown fox", dimensions=32).embedding)
        32
        """
        handler = self._operations.embedding(params, timeout)
        return self._loop.run(handler.one, text)

    async def aembed(
        self,
        text: str,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> EmbeddingResult:
        """Do what :meth:`embed` does, for ``await``."""
        handler = self._operations.embedding(params, timeout)
        return await self._loop.arun(handler.one, text)

    def embed_batch(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        return_exceptions: bool = True,
        on_result: OnResult[EmbeddingResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[EmbeddingResult]:
        """Embed many texts.

        Parameters
        ----------
        texts
            Any iterable of strings, asynchronous ones included.
        micro_batch_size
            Texts that travel in one request, at least 1. A request that the server refuses is split until only the text
            that is to blame fails.
        return_exceptions, on_result, on_progress
            As for ``generate_batch``.
        timeout, params
            As for :meth:`embed`.

        Examples
        --------
        >>> batch = client.embed_batch(["sentence one", "sentence two", "sentence three"], micro_batch_size=2)
        >>> len([result.embedding for result in batch if result is not None])
        3
        """
        handler = self._operations.embedding(params, timeout)
        return batch(
            self._loop, handler, texts, Callbacks(on_result, on_progress, not return_exceptions), micro_batch_size
        )

    async def aembed_batch(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        return_exceptions: bool = True,
        on_result: OnResult[EmbeddingResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[EmbeddingResult]:
        """Do what :meth:`embed_batch` does, for ``await``."""
        handler = self._operations.embedding(params, timeout)
        return await abatch(
            self._loop, handler, texts, Callbacks(on_result, on_progress, not return_exceptions), micro_batch_size
        )

    def embed_stream(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> Iterator[StreamItem[EmbeddingResult]]:
        """Embed texts one by one as they settle, for inputs and outputs of any length.

        Inputs are pulled as results are taken, and leaving the loop early ends the requests under way, as in
        ``generate_stream``. At most twice ``max_parallel_requests`` requests (64 where nothing says how many), with
        their texts, are between the iterator and the caller. A request goes out once it has its ``micro_batch_size``
        texts, or the inputs end: where a text is made from the answer to the last, that size has to be 1.

        Parameters
        ----------
        texts, micro_batch_size, timeout, params
            As for :meth:`embed_batch`.

        Yields
        ------
        StreamItem
            ``(index, result, error)``, in the order in which they settle.

        Examples
        --------
        >>> def rows():
        ...     for number in range(1_000_000):
        ...         yield f"Sentence number {number}."
        >>> for index, result, error in client.embed_stream(rows(), micro_batch_size=8):
        ...     if index == 100:
        ...         break
        """
        handler = self._operations.embedding(params, timeout)
        return stream(self._loop, handler, texts, micro_batch_size)

    def aembed_stream(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> AsyncIterator[StreamItem[EmbeddingResult]]:
        """Do what :meth:`embed_stream` does, for ``async for``."""
        handler = self._operations.embedding(params, timeout)
        return astream(self._loop, handler, texts, micro_batch_size)
