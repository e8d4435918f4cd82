"""The kind ``embed``: a text → its embedding, several texts per request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infermesh.config.schema import EmbedStage
from infermesh.errors import RequestError
from infermesh.inputs.templates import load_template
from infermesh.results import EmbeddingResult
from infermesh.stages.base import ModelStage, Prepared, StageContext
from infermesh.stages.mapping import METADATA, Mapped, text_row
from infermesh.store import Column, StageTable
from infermesh.wire.requests import embedding_keys, embedding_request


class Embed(ModelStage):
    """See :class:`~infermesh.config.schema.EmbedStage` for its parameters."""

    columns = (Column("embedding", "FLOAT[]"),)

    def __init__(self, name: str, config: EmbedStage, context: StageContext) -> None:
        super().__init__(name, config, context)
        self.batch_size = config.micro_batch_size
        self._text = None
        if config.text is not None:
            self._text = load_template(config.text, f"stages.{name}.text", context.roots)
            self.templates = [self._text]
        elif config.mapper is not None:
            self.map_rows(config.mapper, text_row, context.stages)
            self.table = StageTable(name, (*self.columns, Column(METADATA, "JSON")))
        self.try_params("input", lambda: embedding_request([""], self.params))
        self._key = embedding_keys(self.params, self.model.identity)
        self.sign(text=self._text and self._text.source, mapper=config.mapper)

    def prepare(self, context: Mapping[str, Any], mapped: Mapped | None = None) -> Prepared[str]:
        """Render the text. The key is that of a request with this text alone, since batches differ between runs."""
        carried: tuple[str | None, ...] = ()
        if self._text is not None:
            text: Any = self._text.render(context)
        else:
            mapped = self.mapped(context, mapped)
            text, carried = mapped.input, (mapped.metadata,)
        return Prepared(text, self._key(text), carried)

    async def answer(self, prepared: Prepared[str]) -> EmbeddingResult:
        (result,) = await self.answer_batch([prepared])
        if isinstance(result, RequestError):
            raise result
        return result

    async def answer_batch(self, prepared: Sequence[Prepared[str]]) -> Sequence[EmbeddingResult | RequestError]:
        """Send all texts in one request. If the server refuses it, it is split, so that one bad text fails alone."""
        return await self.model.embed([item.request for item in prepared], self.params)

    def outputs(self, result: EmbeddingResult) -> tuple[Any, ...]:
        return (result.packed,)
