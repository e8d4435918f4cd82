"""Mappers: make a stage's input from a row's own fields, or with a user's function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from infermesh.config.schema import OWN_FIELDS
from infermesh.errors import ConfigError, InputError, StoppedError
from infermesh.exact_json import dumps, loads
from infermesh.hints import nearest
from infermesh.runtime.foreign import Foreign
from infermesh.stages.functions import imported_function, module_hash
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


FieldReader = Callable[[Mapping[str, Any]], Mapped]


class Mapper:
    """Makes a stage's input from a row by a function of the user's.

    Parameters
    ----------
    spec
        ``module:function`` of a function, sync or async, that gets the row as a dict and returns ``{"input": …,
        "metadata": {…}}``; ``metadata`` may be missing.
    path
        The config key, for messages.
    hidden
        Names in a row's context that are not columns of the source; the function does not get them.
    threads
        The most calls of a plain function at once.
    timeout
        Seconds that one call may take; ``None`` waits for ever.

    Raises
    ------
    ConfigError
        The function does not import, or is not callable.
    """

    def __init__(
        self,
        spec: str,
        path: str,
        hidden: Collection[str],
        *,
        threads: int,
        timeout: float | None,
    ) -> None:
        self.spec = spec
        self._hidden = frozenset(hidden)
        self._timeout = timeout
        self._stopped = False
        self._calls: set[asyncio.Task[Any]] = set()
        if ":" not in spec:
            raise ConfigError(f"{path}: '{spec}' is neither '{OWN_FIELDS}' nor module:function.")
        self._function = imported_function(spec, path, threads, _mapped)

    async def call(self, context: Mapping[str, Any]) -> Mapped:
        """Map a row.

        Raises
        ------
        InputError
            Whatever the function ends in, exit, interrupt and cancellation too; or it takes longer than ``timeout``.
        StoppedError
            :meth:`stop` was called before it had ended.
        """
        if self._stopped:
            raise StoppedError("stopped before the mapper was called")
        row = columns_of(context, self._hidden)
        call = asyncio.create_task(self._function.call(row, self._timeout), name=self.spec)
        self._calls.add(call)
        try:
            await asyncio.wait([call])
        finally:
            self._calls.discard(call)
            call.cancel()  # without effect, unless the caller was cancelled
        if call.cancelled():
            raise StoppedError("stopped before the mapper had ended")
        if (error := call.exception()) is not None:
            ended = error.ended_in if isinstance(error, Foreign) else error
            words = ended if isinstance(ended, InputError) else error
            raise InputError(f"mapper {self.spec}: {words}") from error
        mapped: Mapped = call.result()
        return mapped

    def stop(self) -> None:
        """Call the function no more, and wait for no call: its rows stay pending, since nothing of them was sent."""
        self._stopped = True
        for call in self._calls:
            call.cancel()

    def close(self) -> None:
        """End the function's threads."""
        self._function.close()

    @property
    def code(self) -> str | None:
        """:func:`module_hash` of the function."""
        return module_hash(self._function.function)


def _mapped(made: Any) -> Mapped:
    """What a mapper has returned, checked. Raises ``InputError``."""
    if not isinstance(made, Mapping):
        raise InputError(f'expected {{"input": …, "metadata": {{…}}}}, got {type(made).__name__}')
    unknown = [str(key) for key in made if key not in ("input", METADATA)]
    if unknown:
        raise InputError(f"unknown key '{unknown[0]}'.{nearest(unknown[0], ['input', METADATA])}")
    if made.get("input") is None:
        raise InputError("the row has no input: 'input' is missing or None")
    metadata = made.get(METADATA)
    if metadata is None:
        return Mapped(made["input"])
    try:
        return Mapped(made["input"], dumps(metadata).decode())
    except TypeError as error:
        raise InputError(f"metadata is not JSON: {error}") from None


def columns_of(context: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    """A row's context without what ``hidden`` names."""
    return {name: value for name, value in context.items() if name not in hidden}


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
