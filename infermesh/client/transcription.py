"""The client's methods that transcribe clips, each twice: plain, and with an ``a`` in front for ``await``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from infermesh.client.batches import Callbacks, Inputs, abatch, astream, batch, stream
from infermesh.client.calls import Calls, OnProgress, OnResult
from infermesh.client.operations import AudioInput
from infermesh.results import BatchResult, StreamItem, TranscriptionResult
from infermesh.types import USE_CLIENT_DEFAULT, MaxBytes, Timeout

__all__ = ["TranscriptionCalls"]


class TranscriptionCalls(Calls):
    """One clip, a batch of them, a stream of them."""

    def transcribe(
        self,
        audio: AudioInput,
        *,
        max_transcription_bytes: MaxBytes = USE_CLIENT_DEFAULT,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> TranscriptionResult:
        """Transcribe one clip.

        Parameters
        ----------
        audio
            A path, bytes, or an open binary file.
        max_transcription_bytes
            Largest clip that is sent, in bytes, at least 1. ``None`` sends any, and reads it into memory whole: for a
            server of yours that takes long recordings. ``USE_CLIENT_DEFAULT`` takes the client's.
        timeout
            As for ``generate``.
        params
            Wire parameters: ``language``, ``prompt`` and so on.

        Raises
        ------
        RequestError
            The failure of the last attempt; an ``InputError`` where the clip cannot be read or is too large.
        ConfigError
            An option is wrong. Nothing was sent.

        Examples
        --------
        >>> client.transcribe("recording.wav", language="en").text
        'Good morning.'
        """
        handler = self._operations.transcription(params, max_transcription_bytes, timeout)
        return self._loop.run(handler.one, audio)

    async def atranscribe(
        self,
        audio: AudioInput,
        *,
        max_transcription_bytes: MaxBytes = USE_CLIENT_DEFAULT,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> TranscriptionResult:
        """Do what :meth:`transcribe` does, for ``await``."""
        handler = self._operations.transcription(params, max_transcription_bytes, timeout)
        return await self._loop.arun(handler.one, audio)

    def transcribe_batch(
        self,
        audio: Inputs[AudioInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[TranscriptionResult] | None = None,
        on_progress: OnProgress | None = None,
        max_transcription_bytes: MaxBytes = USE_CLIENT_DEFAULT,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[TranscriptionResult]:
        """Transcribe many clips, each in a request of its own. Other parameters are those of ``generate_batch``.

        Examples
        --------
        >>> batch = client.transcribe_batch(["recording.wav", "missing.wav"])
        >>> batch.failures.keys()
        dict_keys([1])
        """
        handler = self._operations.transcription(params, max_transcription_bytes, timeout)
        return batch(self._loop, handler, audio, Callbacks(on_result, on_progress, not return_exceptions))

    async def atranscribe_batch(
        self,
        audio: Inputs[AudioInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[TranscriptionResult] | None = None,
        on_progress: OnProgress | None = None,
        max_transcription_bytes: MaxBytes = USE_CLIENT_DEFAULT,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[TranscriptionResult]:
        """Do what :meth:`transcribe_batch` does, for ``await``."""
        handler = self._operations.transcription(params, max_transcription_bytes, timeout)
        return await abatch(self._loop, handler, audio, Callbacks(on_result, on_progress, not return_exceptions))

    def transcribe_stream(
        self,
        audio: Inputs[AudioInput],
        *,
        max_transcription_bytes: MaxBytes = USE_CLIENT_DEFAULT,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> Iterator[StreamItem[TranscriptionResult]]:
        """Transcribe clips one by one as they settle, for any number of them.

        Inputs are pulled as results are taken, and leaving the loop early ends the requests under way, as in
        ``generate_stream``. A clip that is given as a path is read when its request is sent: give paths rather than
        bytes where clips are large.

        Parameters
        ----------
        audio, max_transcription_bytes, timeout, params
            As for :meth:`transcribe`.

        Yields
        ------
        StreamItem
            ``(index, result, error)``, in the order in which they settle.

        Examples
        --------
        >>> for index, result, error in client.transcribe_stream(["recording.wav", "missing.wav"]):
        ...     if error is not None:
        ...         print(index, type(error).__name__)
        1 InputError
        """
        handler = self._operations.transcription(params, max_transcription_bytes, timeout)
        return stream(self._loop, handler, audio)

    def atranscribe_stream(
        self,
        audio: Inputs[AudioInput],
        *,
        max_transcription_bytes: MaxBytes = USE_CLIENT_DEFAULT,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> AsyncIterator[StreamItem[TranscriptionResult]]:
        """Do what :meth:`transcribe_stream` does, for ``async for``."""
        handler = self._operations.transcription(params, max_transcription_bytes, timeout)
        return astream(self._loop, handler, audio)
