"""The kind ``transcribe``: an audio file → its text."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from infermesh.config.schema import TranscribeStage
from infermesh.errors import InputError
from infermesh.exact_json import has_surrogates
from infermesh.inputs.audio import read_audio, refuse_url
from infermesh.inputs.templates import load_template
from infermesh.results import TranscriptionResult
from infermesh.stages.base import ModelStage, Prepared, StageContext, as_json
from infermesh.stages.mapping import METADATA, Mapped, path_row
from infermesh.store import Column, StageTable
from infermesh.types import Audio
from infermesh.wire.requests import transcription_request


class Transcribe(ModelStage):
    """See :class:`~infermesh.config.schema.TranscribeStage` for its parameters."""

    columns = (Column("text", "VARCHAR"), Column("language", "VARCHAR"), Column("duration_s", "DOUBLE"))

    def __init__(self, name: str, config: TranscribeStage, context: StageContext) -> None:
        super().__init__(name, config, context)
        self._audio = None
        self._files = context.files
        self._asks_times = bool(self.params.get("timestamp_granularities")) or (
            self.params.get("response_format") in ("verbose_json", "diarized_json")
        )
        outputs = (
            (*self.columns, Column("words", "JSON"), Column("segments", "JSON")) if self._asks_times else self.columns
        )
        if config.audio is not None:
            self._audio = load_template(config.audio, f"stages.{name}.audio", context.roots, gives_path=True)
            self._files = context.files.beginning(self._audio.start, whole=self._audio.is_text)
            self.templates = [self._audio]
        elif config.mapper is not None:
            self.map_rows(config.mapper, path_row, context.stages)
            outputs = (*outputs, Column("path", "VARCHAR"), Column(METADATA, "JSON"))
        self.table = StageTable(name, outputs)
        self._max_bytes = config.max_transcription_bytes
        self.try_params("file", lambda: transcription_request(Audio(b"", "clip.wav"), self.params))
        self.sign(audio=self._audio and self._audio.source, mapper=config.mapper)

    def prepare(self, context: Mapping[str, Any], mapped: Mapped | None = None) -> Prepared[Path | InputError]:
        """Find the audio file. The key covers its path, size and mtime; hashing the content would read it twice."""
        carried: tuple[str | None, ...] = ()
        if self._audio is not None:
            written = self._audio.render(context).strip()
            if written in ("", "None"):
                raise InputError(
                    f"{self._audio.path}: this row names no audio file. To leave such rows out, set a condition: "
                    "where: audio is not null"
                )
        else:
            mapped = self.mapped(context, mapped)
            if not isinstance(mapped.input, str | os.PathLike):
                raise InputError(f"input: expected the path of a clip, got {type(mapped.input).__name__}")
            written = os.fspath(mapped.input)
            if not isinstance(written, str) or has_surrogates(written):
                raise InputError(f"input: expected the path of a clip, got {written!r:.100}, which is no text")
            carried = (written, mapped.metadata)
        try:
            path, *facts = self._found(written)
        except InputError as error:
            if self._audio is not None:
                raise InputError(f"{self._audio.path}: {error}") from None
            return Prepared(error, self.model.key(written), carried)  # the carried values are stored with it
        return Prepared(path, self.model.key(written, *facts, sorted(self.params.items())), carried)

    def _found(self, written: str) -> tuple[Path, int, int]:
        """The file of that name, its size and its time of change."""
        refuse_url(written)
        with suppress(OSError, ValueError):  # the text may be no valid file name
            path = self._files.find(written) if written else None
            if path is not None and path.is_file():
                self._files.judge(path)
                stat = path.stat()
                return path, stat.st_size, stat.st_mtime_ns
        looked = ", ".join(str(root) for root in self._files.roots)
        raise InputError(f"no audio file '{written:.300}': it does not exist, or is a folder (looked in {looked}).")

    async def answer(self, prepared: Prepared[Path | InputError]) -> TranscriptionResult:
        """Read the audio file in a thread, then send it."""
        if isinstance(prepared.request, InputError):
            raise prepared.request
        audio = await asyncio.to_thread(read_audio, prepared.request, max_bytes=self._max_bytes, files=self._files)
        return await self.model.transcribe(audio, self.params)

    def outputs(self, result: TranscriptionResult) -> tuple[Any, ...]:
        values = (result.text, result.language, result.duration_s)
        return (*values, as_json(result.words), as_json(result.segments)) if self._asks_times else values
