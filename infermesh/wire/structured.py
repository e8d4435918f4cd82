"""Structured output: a caller's format → ``response_format`` on the wire, and an answer's text → checked values.

The wire form is OpenAI's Structured Outputs (https://platform.openai.com/docs/guides/structured-outputs), which vLLM,
SGLang and most compatible servers take as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from infermesh.errors import ConfigError

__all__ = ["ResponseFormat", "ResponseFormatSpec", "to_json"]

_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)\n?[ \t]*```", re.DOTALL)
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_SHOWN = 200

# What OpenAI's strict mode does not take; a schema that has one is sent with strict off.
_UNSTRICT_KEYWORDS = frozenset(
    ("allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties")
)


class ResponseFormat:
    """One output format: its wire form, and the parser of answers.

    Make one with :meth:`of` and keep it: the schema is compiled once.

    Attributes
    ----------
    wire
        What to send as ``response_format``; an empty one sends nothing.
    schema
        The JSON schema, ``None`` for ``json_object``.
    model
        The pydantic class, ``None`` where a dict was given.
    """

    def __init__(
        self, wire: dict[str, Any], schema: Mapping[str, Any] | None = None, model: type[BaseModel] | None = None
    ) -> None:
        self.wire = wire
        self.schema = schema
        self.model = model

    @classmethod
    def of(cls, spec: object) -> ResponseFormat:
        """Make a format.

        Parameters
        ----------
        spec
            A pydantic model class; a JSON schema; ``{"type": "json_schema", "json_schema": {"name", "schema",
            "strict"}}``; ``{"type": "json_object"}``; or a ``ResponseFormat``, which is returned as it is. ``strict``
            is sent as given. Where it is not, it is on if the schema satisfies OpenAI's rules for it: every object
            closed with ``additionalProperties: false``, and every property required. Objects of a pydantic class that
            say nothing about further keys are closed, since pydantic would drop those keys.

        Raises
        ------
        ConfigError
            It is none of these, or not a valid JSON schema.
        """
        if isinstance(spec, ResponseFormat):
            return spec
        if isinstance(spec, type) and issubclass(spec, BaseModel):
            schema = _closed(spec.model_json_schema())
            return cls(_json_schema(spec.__name__, schema), schema, spec)
        if not isinstance(spec, Mapping):
            raise ConfigError(
                f"response_format is {spec!r:.100}: expected a pydantic model class, a JSON schema (a mapping), or "
                '{"type": "json_object"}'
            )
        return cls._from_mapping(spec)

    @classmethod
    def any_json(cls) -> ResponseFormat:
        """A format that asks nothing of the server, and takes any JSON value for an answer."""
        return cls({}, {})

    @classmethod
    def _from_mapping(cls, spec: Mapping[str, Any]) -> ResponseFormat:
        if spec.get("type") == "json_object":
            return cls({"type": "json_object"})
        if spec.get("type") == "json_schema":
            inner = spec.get("json_schema", spec)  # the Responses API writes name and schema one level up
            schema = inner.get("schema") if isinstance(inner, Mapping) else None
            if not isinstance(schema, Mapping):
                raise ConfigError('response_format of type "json_schema" needs its schema at json_schema.schema')
            wire = _json_schema(str(inner.get("name") or "response"), schema, inner.get("strict"))
            if inner.get("description"):
                wire["json_schema"]["description"] = inner["description"]
        else:
            schema = spec
            wire = _json_schema(str(spec.get("title") or "response"), schema)
        _check(schema)
        return cls(wire, schema)

    def parse(self, text: str) -> Any:
        """Parse and validate one answer.

        Parameters
        ----------
        text
            The answer; white space and one Markdown code fence around the JSON are tolerated.

        Returns
        -------
        Any
            An instance of the pydantic class, or plain lists, dicts and scalars where the format came from a dict.

        Raises
        ------
        ValueError
            The text is not JSON, or not what the schema asks for. The message is one short line.
        """
        text = text.strip().removeprefix("\ufeff")
        if text.startswith("```") and (fenced := _FENCE.fullmatch(text)):
            text = fenced[1].strip()
        if self.model is not None:
            return _parse_model(self.model, text)
        try:
            value = orjson.loads(text)
        except ValueError as error:
            raise ValueError(f"the answer is not JSON ({error}): {_shown(text)}") from None
        if self.schema is None:
            if not isinstance(value, dict):
                raise ValueError(f"the answer is not a JSON object: {_shown(text)}")
        else:
            self._validate(value)
        return value

    def _validate(self, value: Any) -> None:
        import jsonschema.exceptions
        from referencing.exceptions import Unresolvable

        try:
            error = next(self._validator.iter_errors(value), None)
            if error is None:
                return
            error = jsonschema.exceptions.best_match(self._validator.iter_errors(value)) or error
        except Unresolvable as unresolved:
            raise ValueError(f"the schema has a $ref that leads nowhere: {str(unresolved)[:_SHOWN]}") from None
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
        raise ValueError(f"the answer does not fit the schema at {where or 'its root'}: {error.message[:_SHOWN]}")

    @cached_property
    def _validator(self) -> Any:
        import jsonschema
        from referencing import Registry

        schema: Any = dict(self.schema or {})
        # An empty registry: a remote $ref is an error, not a download.
        return jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema, registry=Registry())


# What a user may write for a format.
ResponseFormatSpec = type[BaseModel] | Mapping[str, Any] | ResponseFormat


def to_json(parsed: Any) -> str:
    """Write a parsed answer (pydantic object or plain value) as JSON, to be stored."""
    if isinstance(parsed, BaseModel):
        return parsed.model_dump_json()
    return orjson.dumps(parsed, option=orjson.OPT_NON_STR_KEYS).decode()


def _parse_model(model: type[BaseModel], text: str) -> BaseModel:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        raise ValueError(f"the answer is not JSON ({first['msg']}): {_shown(text)}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = ".".join(map(str, first["loc"])) or "its root"
    raise ValueError(f"the answer does not fit {model.__name__} at {where}: {first['msg'][:_SHOWN]}{more}")


def _json_schema(name: str, schema: Mapping[str, Any], strict: bool | None = None) -> dict[str, Any]:
    clean = _NOT_A_NAME.sub("_", name).strip("_")[:64] or "response"
    return {
        "type": "json_schema",
        "json_schema": {
            "name": clean,
            "schema": dict(schema),
            "strict": _is_strict(schema) if strict is None else bool(strict),
        },
    }


def _check(schema: Mapping[str, Any]) -> None:
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "its root"
        raise ConfigError(f"response_format is not a valid JSON schema at {where}: {error.message[:_SHOWN]}") from None


def _closed(node: Any) -> Any:
    """A copy in which every object with named properties that leaves further keys open is closed."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {
        key: value if key in ("default", "examples", "enum", "const") else _closed(value) for key, value in node.items()
    }
    if node.get("type") == "object" and isinstance(node.get("properties"), dict):
        copy.setdefault("additionalProperties", False)
    return copy


def _is_strict(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "object" and "anyOf" not in schema and _node_is_strict(schema)


def _node_is_strict(node: Any) -> bool:
    if not isinstance(node, Mapping) or not _UNSTRICT_KEYWORDS.isdisjoint(node):
        return False
    kind = node.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in node:
        properties = node.get("properties", {})
        if node.get("additionalProperties") is not False or set(node.get("required", ())) != set(properties):
            return False
        if not all(map(_node_is_strict, properties.values())):
            return False
    if "items" in node and not _node_is_strict(node["items"]):
        return False
    named = [*node.get("$defs", {}).values(), *node.get("definitions", {}).values()]
    return all(map(_node_is_strict, [*named, *node.get("anyOf", ())]))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
