"""The kind ``generate``: a prompt or messages → text, and ``parsed`` if the stage has a response format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from infermesh.config.schema import GenerateStage
from infermesh.errors import ConfigError, InputError
from infermesh.inputs.messages import load_messages
from infermesh.inputs.paths import find, similar_file
from infermesh.inputs.templates import load_template
from infermesh.results import GenerationResult
from infermesh.runtime.foreign import words_of
from infermesh.stages.base import ModelStage, Prepared, StageContext, as_json
from infermesh.stages.functions import import_object
from infermesh.stages.mapping import METADATA, Mapped, generation_row
from infermesh.store import Column, StageTable
from infermesh.store.schema import INVALID, stored_text
from infermesh.types import Endpoint, Request
from infermesh.wire.requests import INPUT_FIELD, PromptForm, all_params, request_key
from infermesh.wire.structured import ResponseFormat, stored_json

logger = logging.getLogger("infermesh")


class Generate(ModelStage):
    """See :class:`~infermesh.config.schema.GenerateStage` for its parameters."""

    columns = (
        Column("text", "VARCHAR"),
        Column("parsed", "JSON"),
        Column("reasoning", "VARCHAR"),
        Column("finish_reason", "VARCHAR"),
        Column("tool_calls", "JSON"),
        Column(INVALID, "VARCHAR"),
    )

    def __init__(self, name: str, config: GenerateStage, context: StageContext) -> None:
        super().__init__(name, config, context)
        path = f"stages.{name}"
        self._on_invalid = config.on_invalid
        self._prompt = load_template(config.prompt, f"{path}.prompt", context.roots) if config.prompt else None
        self._messages = load_messages(config.messages, f"{path}.messages", context.roots) if config.messages else None
        self._asks_logprobs = _asks_logprobs(all_params(self.params))
        outputs = (*self.columns, Column("logprobs", "JSON")) if self._asks_logprobs else self.columns
        if config.mapper is not None:
            self.map_rows(config.mapper, generation_row, context.stages)
            outputs = (*outputs, Column(METADATA, "JSON"))
        self.table = StageTable(name, outputs)
        self._system = load_template(config.system, f"{path}.system", context.roots) if config.system else None
        asked = self._messages.templates if self._messages else []
        self.templates = [item for item in (self._prompt, *asked, self._system) if item is not None]
        # parse_json changes the stored answer but not the request, so it has to change the key.
        self._identity = f"{self.model.identity}|parsed" if config.parse_json else self.model.identity
        self._format = _response_format(config.response_format, f"{path}.response_format", context.roots)
        if self._format is None and config.parse_json:
            self._format = ResponseFormat.any_json()
        self.try_params(INPUT_FIELD[self.model.endpoint], lambda: self._request("", None))
        self._form: PromptForm | None = None
        self.sign(
            prompt=self._prompt and self._prompt.source,
            messages=self._messages and self._messages.source,
            system=self._system and self._system.source,
            response_format=(self._format and self._format.wire) or None,
            parse_json=config.parse_json or None,
            on_invalid=self._on_invalid,
            mapper=config.mapper,
        )

    def prepare(self, context: Mapping[str, Any], mapped: Mapped | None = None) -> Prepared[Request]:
        """Render the prompt and build the request."""
        # The common case, a prompt alone: only the text differs between rows, so a form of the request is built once.
        if self._system is None and self._prompt is not None:
            if self._form is None:
                self._form = PromptForm(lambda prompt: self._request(prompt, None))
            request = self._form.request(self._prompt.render(context))
            return Prepared(request, request_key(request, self._identity))
        system = self._system.render(context) if self._system else None
        endpoint: Endpoint | None = None
        carried: tuple[str | None, ...] = ()
        if self._prompt is not None:
            content: Any = self._prompt.render(context)
        elif self._messages is not None:
            content = self._messages.evaluate(context)
            if not isinstance(content, str | list | dict):
                raise InputError(f"{self._messages.path}: expected a list of messages, got {type(content).__name__}.")
        else:
            mapped = self.mapped(context, mapped)
            content, endpoint, carried = mapped.input, mapped.endpoint, (mapped.metadata,)
            if not isinstance(content, str | list | dict):
                raise InputError(f"input: expected a prompt or a list of messages, got {type(content).__name__}.")
        request = self._request(content, system, endpoint)
        return Prepared(request, request_key(request, self._identity), carried)

    def _request(self, content: Any, system: str | None, endpoint: Endpoint | None = None) -> Request:
        return self.model.generation_request(
            content, self.params, system=system, response_format=self._format, endpoint=endpoint
        )

    async def answer(self, prepared: Prepared[Request]) -> GenerationResult:
        """Send the request. With ``on_invalid``, send it again if the answer does not match the response format."""
        return await self.model.generate(prepared.request, self._format, on_invalid=self._on_invalid)

    def outputs(self, result: GenerationResult) -> tuple[Any, ...]:
        parsed, invalid = None, result.invalid
        if result.output_parsed is not None:
            parsed, invalid = self._parsed(result)
        calls = as_json(result.tool_calls)
        reason = invalid and stored_text(invalid)
        values = (result.output_text, parsed, result.reasoning, result.finish_reason, calls, reason)
        return (*values, as_json(result.logprobs)) if self._asks_logprobs else values

    def _parsed(self, result: GenerationResult) -> tuple[str | None, str | None]:
        """The parsed answer as JSON; or NULL, where JSON cannot hold it, and why."""
        try:
            return stored_json(result.output_parsed), None
        except (TypeError, ValueError) as error:
            logger.warning("stage %s: %s: parsed is NULL: %s", self.name, result.request_id or "an answer", error)
            return None, str(error)


def _asks_logprobs(params: Mapping[str, Any]) -> bool:
    included = params.get("include")  # as the Responses API asks for them
    named = isinstance(included, list) and any("logprobs" in str(item) for item in included)
    return bool(params.get("logprobs") or params.get("top_logprobs") or named)


def _response_format(value: str | dict[str, Any] | None, path: str, roots: Sequence[Path]) -> ResponseFormat | None:
    if value is None:
        return None
    spec: Any = value
    if isinstance(value, str):
        if value.endswith(".json"):
            file = find(value, roots)
            if file is None:
                raise ConfigError(f"{path}: no file '{value}'.{similar_file(value, roots)}")
            try:
                spec = orjson.loads(file.read_bytes())
            except orjson.JSONDecodeError as error:
                raise ConfigError(f"{path}: {value} is not JSON: {error}") from None
        elif ":" in value:
            spec = import_object(value, path)
        else:
            raise ConfigError(f"{path}: '{value}' is neither module:PydanticClass, nor a .json file, nor a schema.")
    try:
        return ResponseFormat.of(spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # a class of the user's makes the schema
        raise ConfigError(f"{path}: no schema can be made of {value}: {words_of(error)}") from None
