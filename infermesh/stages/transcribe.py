"""transcribe: an audio file → its words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infermesh.audio import read_audio
from infermesh.config import TranscribeStage
from infermesh.errors import InputError, RequestError
from infermesh.sources import find
from infermesh.stages.base import ModelStage, Prepared, StageContext
from infermesh.store import Column
from infermesh.templates import load_template
from infermesh.types import TranscriptionResult


class Transcribe(ModelStage):
    """See :class:`~infermesh.config.TranscribeStage` for its parameters."""

    columns = (Column("text", "VARCHAR"), Column("language", "VARCHAR"), Column("duration_s", "DOUBLE"))

    def __init__(self, name: str, config: TranscribeStage, context: StageContext) -> None:
        super().__init__(name, config, context)
        self._audio = load_template(config.audio, f"stages.{name}.audio", context.roots)
        self._max_bytes = config.max_transcription_bytes
        self._roots = context.roots
        self.templates = [self._audio]
        self.sign(self._audio.source)

    def prepare(self, context: Mapping[str, Any]) -> Prepared:
        """Find the clip. The key stands for its path, size and time: hashing each clip would read it twice."""
        written = self._audio.render(context).strip()
        path = find(written, self._roots) if written else None
        if path is None or not path.is_file():
            looked = ", ".join(str(root) for root in self._roots)
            raise InputError(f"{self._audio.path}: no audio file '{written}' (looked in {looked}).")
        stat = path.stat()
        return Prepared(path, self.model.key(written, stat.st_size, stat.st_mtime_ns, sorted(self.params.items())))

    async def answer(self, prepared: Sequence[Prepared]) -> Sequence[TranscriptionResult | RequestError]:
        """Read the clip off the event loop, then send it."""
        path: Path = prepared[0].request
        try:
            audio = await asyncio.to_thread(read_audio, path, max_bytes=self._max_bytes)
            return [await self.model.transcribe(audio, self.params)]
        except RequestError as error:
            return [error]

    def outputs(self, result: TranscriptionResult) -> tuple[Any, ...]:
        """text, language, duration_s."""
        return (result.text, result.language, result.duration_s)
