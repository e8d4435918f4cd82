"""Mappers: make a stage's input from a row's own fields, or with a user's function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from infermesh.config.schema import OWN_FIELDS
from infermesh.errors import ConfigError, InputError
from infermesh.exact_json import dumps, loads
from infermesh.hints import nearest
from infermesh.runtime.foreign import words_of
from infermesh.stages.base import import_object, module_hash
from infermesh.types import Endpoint

METADATA = "metadata"


@dataclass(slots=True)
class Mapped:
    """A mapped row.

    ``input`` is the stage's input, ``metadata`` JSON text to store with the answer. ``endpoint`` replaces the model's;
    ``None`` keeps it.
    """

    input: Any
    metadata: str | None = None
    endpoint: Endpoint | None = None


class Mapper:
    """Makes a stage's input from a row.

    Parameters
    ----------
    spec
        ``row`` uses the row's own fields, as ``own`` reads them. ``module:function`` names a function that gets the row
        as a dict and returns ``{"input": …, "metadata": {…}}``; ``metadata`` may be missing.
    path
        The config key, for messages.
    own
        Reads the input from a row's own fields.
    hidden
        Names in a row's context that are not columns of the source; the function does not get them.

    Raises
    ------
    ConfigError
        The function does not import, or is not callable.
    """

    def __init__(
        self, spec: str, path: str, own: Callable[[Mapping[str, Any]], Mapped], hidden: Collection[str] = ()
    ) -> None:
        self.spec = spec
        self._path = path
        self._own = own
        self._hidden = frozenset(hidden)
        self._function: Callable[[dict[str, Any]], Any] | None = None
        if spec != OWN_FIELDS:
            if ":" not in spec:
                raise ConfigError(f"{path}: '{spec}' is neither '{OWN_FIELDS}' nor module:function.")
            self._function = import_object(spec, path)
            if not callable(self._function):
                raise ConfigError(f"{path}: '{spec}' is a {type(self._function).__name__}, not a function.")

    def __call__(self, context: Mapping[str, Any]) -> Mapped:
        """Map a row. Whatever the function ends in, exit, interrupt and cancellation too, becomes an ``InputError``."""
        row = {name: value for name, value in context.items() if name not in self._hidden}
        if self._function is None:
            return self._own(row)
        try:
            made = self._function(row)
        except BaseException as error:
            raise InputError(f"mapper {self.spec}: {words_of(error)}") from error
        return self._checked(made)

    def _checked(self, made: Any) -> Mapped:
        if not isinstance(made, Mapping):
            raise InputError(
                f'mapper {self.spec}: expected {{"input": …, "metadata": {{…}}}}, got {type(made).__name__}'
            )
        unknown = [str(key) for key in made if key not in ("input", METADATA)]
        if unknown:
            raise InputError(
                f"mapper {self.spec}: unknown key '{unknown[0]}'.{nearest(unknown[0], ['input', METADATA])}"
            )
        if made.get("input") is None:
            raise InputError(f"mapper {self.spec}: the row has no input: 'input' is missing or None")
        metadata = made.get(METADATA)
        if metadata is None:
            return Mapped(made["input"])
        try:
            return Mapped(made["input"], dumps(metadata).decode())
        except TypeError as error:
            raise InputError(f"mapper {self.spec}: metadata is not JSON: {error}") from None

    @property
    def code(self) -> str | None:
        """:func:`module_hash` of the function; ``None`` for ``row``."""
        return None if self._function is None else module_hash(self._function)


def generation_row(row: Mapping[str, Any]) -> Mapped:
    """The input of a ``generate`` row: its ``prompt``, ``messages`` or ``responses_input``. It must have just one."""
    given = [name for name in ("prompt", "messages", "responses_input") if row.get(name) is not None]
    if len(given) != 1:
        found = f"it has both {' and '.join(given)}" if given else f"it has {_fields(row)}"
        raise InputError(f"expected a row with one of prompt, messages, responses_input; {found}")
    value = row[given[0]]
    if given[0] == "prompt":
        if not isinstance(value, str):
            raise InputError(f"prompt: expected text, got {type(value).__name__}")
        return Mapped(value)
    if given[0] == "messages":
        return Mapped(_message_list(value))
    if not isinstance(value, str | list):
        raise InputError(f"responses_input: expected text or a list of items, got {type(value).__name__}")
    return Mapped(value, endpoint="responses")


def text_row(row: Mapping[str, Any]) -> Mapped:
    """The input of an ``embed`` row: its ``text``."""
    return Mapped(_string(row, "text"))


def path_row(row: Mapping[str, Any]) -> Mapped:
    """The input of a ``transcribe`` row: its ``path``."""
    return Mapped(_string(row, "path"))


def _string(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise InputError(f"expected a row with {name}; it has {_fields(row)}")
    if not isinstance(value, str):
        raise InputError(f"{name}: expected text, got {type(value).__name__}")
    return value


def _message_list(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):  # JSON in a CSV cell
        try:
            value = loads(value)
        except orjson.JSONDecodeError as error:
            raise InputError(f"messages: not JSON: {error}") from None
    if not isinstance(value, list):
        raise InputError(f"messages: expected a list of messages, got {type(value).__name__}")
    return value


def _fields(row: Mapping[str, Any]) -> str:
    present = [name for name, value in row.items() if value is not None]
    return f"only {', '.join(present[:10])}" if present else "nothing"
