"""Structured output: a caller's format → ``response_format`` on the wire, and an answer's text → checked values.

The wire form is OpenAI's Structured Outputs (https://platform.openai.com/docs/guides/structured-outputs), which vLLM,
SGLang and most compatible servers take as well.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cache, cached_property
from typing import Any

from pydantic import BaseModel, ValidationError

from infermesh.errors import ConfigError
from infermesh.exact_json import dumps, loads
from infermesh.wire.extraction import candidates, mended
from infermesh.wire.keywords import KEYWORDS, VALUES, begin_answer, without_foreign_patterns
from infermesh.wire.strict import NotStrictError, strict_schema

__all__ = ["ResponseFormat", "ResponseFormatSpec", "stored_json", "to_json"]

logger = logging.getLogger("infermesh")

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_SHOWN = 200
_TEXT_OR_NUMBER = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.DOTALL)


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
    runs_code
        Whether the class has validators of its own, in Python, which may take any time.
    """

    def __init__(
        self, wire: dict[str, Any], schema: Mapping[str, Any] | None = None, model: type[BaseModel] | None = None
    ) -> None:
        self.wire = wire
        self.schema = schema
        self.model = model
        self.runs_code = model is not None and _runs_code(model)

    @classmethod
    def of(cls, spec: object) -> ResponseFormat:
        """Make a format.

        Parameters
        ----------
        spec
            A pydantic model class; a JSON schema; ``{"type": "json_schema", "json_schema": {"name", "schema",
            "strict"}}``; ``{"type": "json_object"}``; or a ``ResponseFormat``, which is returned as it is. ``strict``
            is sent as given, as is the schema then. Where it is not, it is on if the schema satisfies OpenAI's rules,
            or can be made to without a change of what it accepts: see :mod:`infermesh.wire.strict`. Objects of a
            pydantic class that say nothing about further keys are closed, since pydantic would drop those keys.

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
            The answer. Thoughts before the JSON, a Markdown fence around it, and words before and after are tolerated.
            Of several values the last counts that satisfies the schema; without a schema, one in a fence, else the
            longest.

        Returns
        -------
        Any
            An instance of the pydantic class, or plain lists, dicts and scalars where the format came from a dict.
            Integers are exact, whatever their size, as are the fields of a pydantic class that are ``Decimal``.

        Raises
        ------
        ValueError
            The text is not JSON, or not what the schema asks for. The message is one short line.
        """
        return self.parse_apart(text)[0]

    def parse_apart(self, text: str) -> tuple[Any, str | None]:
        """As :meth:`parse`, with the thoughts in the text before the value; ``None`` where there are none."""
        begin_answer()
        try:
            return self._parse_any(text)
        except RecursionError:
            raise ValueError(
                "the answer is nested too deeply to be checked, or the schema refers to itself without an end"
            ) from None

    def _parse_any(self, text: str) -> tuple[Any, str | None]:
        try:
            return self._parse(text), None
        except ValueError as error:
            first = error
        unfit: ValueError | None = None if isinstance(first, _NotJSONError) else first
        for thoughts, candidate in candidates(text, last=bool(self.schema)):
            for parse in (self._parse, self._parse_leniently):
                try:
                    return parse(candidate), thoughts
                except _NotJSONError:
                    continue
                except ValueError as error:
                    unfit = unfit or error
                    break
        raise unfit or first

    def _parse(self, text: str) -> Any:
        """Parse one text that is to be JSON and nothing else. ``_NotJSONError``: it is not."""
        if self.model is not None:
            parsed = _parse_model(self.model, text)
            return _with_exact_decimals(parsed, text) if self._has_decimals else parsed
        try:
            value = loads(text)
        except ValueError as error:
            raise _NotJSONError(f"the answer is not JSON ({error}): {_shown(text)}") from None
        return self._checked(value, text)

    def _parse_leniently(self, text: str) -> Any:
        """Parse what the standard forbids and can be understood all the same: see :func:`mended`."""
        try:
            value = mended(text)
        except ValueError as error:
            raise _NotJSONError(str(error)) from None
        if self.model is not None:
            return _parse_model(self.model, json.dumps(value))
        return self._checked(value, text)

    def _checked(self, value: Any, text: str) -> Any:
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

        schema: Any = without_foreign_patterns(dict(self.schema or {}), [])
        draft = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        # An empty registry: a remote $ref is an error, not a download.
        extend: Any = jsonschema.validators.extend
        return extend(draft, KEYWORDS)(schema, registry=Registry())

    @cached_property
    def _has_decimals(self) -> bool:
        return self.model is not None and "decimal" in _types(self.model.__pydantic_core_schema__)


# What a user may write for a format.
ResponseFormatSpec = type[BaseModel] | Mapping[str, Any] | ResponseFormat


def to_json(parsed: Any) -> str:
    """Write a parsed answer (pydantic object or plain value) as JSON, to be stored."""
    if isinstance(parsed, BaseModel):
        return parsed.model_dump_json()
    return dumps(parsed).decode()


def stored_json(parsed: Any) -> str:
    """As :func:`to_json`, but nothing is changed in silence.

    Raises
    ------
    ValueError
        It holds a number that JSON has no name for: NaN, an infinity, or one that is too large for a float.
    TypeError
        It is nested too deeply, or is no JSON for another reason.
    """
    text = to_json(parsed)
    # What to_json writes for such a number; only then is it worth a look at every value.
    if any(name in text for name in ("null", "NaN", "Infinity")):
        waiting = [parsed.model_dump() if isinstance(parsed, BaseModel) else parsed]
        while waiting:
            value = waiting.pop()
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"it holds a number that JSON has no name for ({value})")
            if isinstance(value, dict):
                waiting.extend(value.values())
            elif isinstance(value, list | tuple | set | frozenset):
                waiting.extend(value)
    return text


def _runs_code(model: type[BaseModel]) -> bool:
    """Whether a validator that is not pydantic's is called somewhere in a class or in the classes of its fields."""
    waiting: list[Any] = [model.__pydantic_core_schema__]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            function = part.get("function")
            called = function.get("function") if isinstance(function, Mapping) else function
            if callable(called) and not str(getattr(called, "__module__", "")).startswith("pydantic"):
                return True
            if part.get("custom_init") or part.get("post_init") not in (None, "init_private_attributes"):
                return True
            waiting.extend(value for key, value in part.items() if key not in ("metadata", "serialization"))
        elif isinstance(part, list | tuple):
            waiting.extend(part)
    return False


class _NotJSONError(ValueError):
    """The text is not JSON at all."""


def _parse_model(model: type[BaseModel], text: str) -> BaseModel:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        raise _NotJSONError(f"the answer is not JSON ({first['msg']}): {_shown(text)}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = ".".join(map(str, first["loc"])) or "its root"
    raise ValueError(f"the answer does not fit {model.__name__} at {where}: {first['msg'][:_SHOWN]}{more}")


def _with_exact_decimals(parsed: BaseModel, text: str) -> BaseModel:
    """The same with every digit of its decimals: pydantic reads them by way of floats, but not those in quotes."""

    def quoted(found: re.Match[str]) -> str:
        token = found[0]
        if token[0] == '"' or token.lstrip("-").isdecimal() or Decimal(repr(float(token))) == Decimal(token):
            return token
        return f'"{token}"'

    exact = _TEXT_OR_NUMBER.sub(quoted, text)
    if exact == text:
        return parsed
    try:
        again = type(parsed).model_validate_json(exact)
    except ValidationError:
        return parsed
    return again if _same_but_decimals(parsed.model_dump(), again.model_dump()) else parsed


def _same_but_decimals(first: Any, second: Any) -> bool:
    """Whether two values are the same but for their decimals."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same_but_decimals(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same_but_decimals, first, second))
    return isinstance(first, Decimal) or bool(first == second)


def _types(core_schema: Any) -> set[Any]:
    """Every ``type`` in a schema of pydantic's."""
    found, waiting = set(), [core_schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            kind = node.get("type")
            found.add(kind if isinstance(kind, str) else None)
            waiting.extend(node.values())
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    return found


def _json_schema(name: str, schema: Mapping[str, Any], strict: bool | None = None) -> dict[str, Any]:
    clean = _NOT_A_NAME.sub("_", name).strip("_")[:64] or "response"
    sent = dict(schema)
    if strict is None:
        try:
            sent, strict = strict_schema(schema), True
        except NotStrictError as reason:
            strict = False
            _say_once(clean, str(reason))
    return {"type": "json_schema", "json_schema": {"name": clean, "schema": sent, "strict": bool(strict)}}


@cache
def _say_once(name: str, reason: str) -> None:
    logger.info("response_format %s is sent with strict off, as OpenAI's strict mode would refuse it: %s", name, reason)


@cache
def _warn_of_pattern(pattern: str) -> None:
    logger.warning(
        "response_format: the pattern %r is left to the server: the regex package cannot compile it, so no "
        "answer is checked against it. To have them checked, write it without what only other dialects know",
        pattern,
    )


def _check(schema: Mapping[str, Any]) -> None:
    import jsonschema

    left: list[str] = []
    known = without_foreign_patterns(dict(schema), left)
    for pattern in left:
        _warn_of_pattern(pattern)
    try:
        draft: Any = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        draft.check_schema(known, format_checker=jsonschema.FormatChecker(formats=()))  # patterns are looked at above
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "its root"
        raise ConfigError(f"response_format is not a valid JSON schema at {where}: {error.message[:_SHOWN]}") from None


def _closed(node: Any) -> Any:
    """A copy in which every object with named properties that leaves further keys open is closed."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: value if key in VALUES else _closed(value) for key, value in node.items()}
    if node.get("type") == "object" and isinstance(node.get("properties"), dict):
        copy.setdefault("additionalProperties", False)
    return copy


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
