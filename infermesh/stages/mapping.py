"""Mappers: make a stage's input from a row's own fields, or with a user's function."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from infermesh.config.schema import OWN_FIELDS
from infermesh.errors import ConfigError, InputError, StoppedError
from infermesh.exact_json import dumps, loads, try_enums
from infermesh.hints import nearest
from infermesh.runtime.foreign import Foreign
from infermesh.stages.functions import imported_function, module_hash
from infermesh.types import Endpoint

METADATA = "metadata"
_NUMBERS = ("id", "index", "key", "n", "number", "row")  # columns that are hardly what is to be sent
# Types of columns that are never a prompt, a text or a path; as in a template, they would have to be written out.
_NO_TEXT = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DOUBLE|FLOAT|DECIMAL.*|BOOLEAN|DATE|TIME.*|BLOB")
_SHOWN = 20  # columns that a message lists


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
# What a row's own fields are called, by the kind of stage: it has one of them.
OWN_NAMES = {"generate": ("prompt", "messages", "responses_input"), "embed": ("text",), "transcribe": ("path",)}


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
    try_enums([made["input"], metadata])
    if metadata is None:
        return Mapped(made["input"])
    try:
        return Mapped(made["input"], dumps(metadata).decode())
    except TypeError as error:
        raise InputError(f"metadata is not JSON: {error}") from None


def columns_of(context: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    """A row's context without what ``hidden`` names."""
    return {name: value for name, value in context.items() if name not in hidden}


def without_input(kind: str, path: str, columns: Mapping[str, str], whose: str = "the source") -> str | None:
    """What to tell where rows are to be sent as they are, and none has a column for it; ``None`` where one may.

    Parameters
    ----------
    kind
        ``generate``, ``embed`` or ``transcribe``.
    path
        The stage's place in the declaration, such as ``stages.words``.
    columns, whose
        The rows' columns with their types, and where they come from.
    """
    wanted = OWN_NAMES[kind]
    found = [name for name in wanted if name in columns]
    if not columns or any(not _NO_TEXT.fullmatch(columns[name]) for name in found):
        return None
    if found:
        said = f"column {found[0]} of {whose} holds {columns[found[0]]}, not text"
    else:
        either = ", ".join(wanted[:-1]) + f" or {wanted[-1]}" if len(wanted) > 1 else wanted[0]
        shown = ", ".join([*columns][:_SHOWN]) + (", …" if len(columns) > _SHOWN else "")
        said = f"{whose} has no column {either}, so nothing says what to send. It has: {shown}"
    key, name = wanted[0], _likeliest(wanted, columns)
    remedy = f"Name what to send in a template, such as '{{{{ {name if name.isidentifier() else f'row[{name!r}]'} }}}}'"
    if kind == "transcribe":
        key, remedy = "mapper", f"Rename the one that names the clip, say '{name}', to path"
    return f"{path}.{key}: {said}. {remedy}, or use a mapper (module:function)."


def _likeliest(wanted: Sequence[str], columns: Collection[str]) -> str:
    """The column that is most likely to be sent."""
    near = [name for name in columns if name.lower() in wanted] or difflib.get_close_matches(wanted[0], columns, n=1)
    return next(iter(near or [name for name in columns if name.lower() not in _NUMBERS] or columns))


def generation_row(row: Mapping[str, Any]) -> Mapped:
    """The input of a ``generate`` row: its ``prompt``, ``messages`` or ``responses_input``. It must have just one."""
    given = [name for name in OWN_NAMES["generate"] if row.get(name) is not None]
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
