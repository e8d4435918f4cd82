"""The kind ``python``: a row → the result of a user's function, sync or async."""

from __future__ import annotations

import datetime as dt
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from infermesh.config.schema import PythonStage
from infermesh.dispatch import Deployment, Router
from infermesh.dispatch.dispatcher import Dispatcher
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import ConfigError, FunctionError, InputError, RequestError
from infermesh.exact_json import dumps, has_surrogates, try_enums
from infermesh.hints import nearest
from infermesh.inputs.templates import Template
from infermesh.limits import make_limiter
from infermesh.results import FunctionResult
from infermesh.runtime.foreign import Foreign, ForeignFunction, NoAnswer
from infermesh.stages.base import Prepared, StageContext, hashed
from infermesh.stages.functions import imported_function, module_hash
from infermesh.stages.mapping import Mapped, Mapper, columns_of
from infermesh.store import Column, StageTable
from infermesh.types import Reply, Request
from infermesh.wire.vectors import FLOAT32_MAX

DEPLOYMENT = "python"
_OWN = frozenset(column.name for column in StageTable("", ()).columns)
# Exceptions that a second call would raise again, so that it is not retried.
_LASTING = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError),
    *(StopIteration, StopAsyncIteration),
)


class Python:
    """See :class:`~infermesh.config.schema.PythonStage` for its parameters.

    A call goes through dispatch like a request, with the function in place of a deployment's transport, so that retries
    and timeouts work the same.
    """

    batch_size = 1
    model = None
    mapper: Mapper | None = None

    def __init__(self, name: str, config: PythonStage, context: StageContext) -> None:
        path = f"stages.{name}"
        self._function = imported_function(
            config.function, f"{path}.function", config.max_parallel_requests, self._values
        )
        self.name = name
        self.rows = config.rows
        self.where = config.where
        self.window = config.max_parallel_requests
        self.templates: list[Template] = []
        self.reads: Sequence[str] = tuple(config.reads)
        self._hidden = frozenset(context.stages) - set(self.reads)
        self._columns = config.columns
        columns = {"value": "JSON"} if config.columns is None else config.columns
        for column, kind in columns.items():
            if column.lower() in _OWN:
                raise ConfigError(
                    f"{path}.columns.{column}: every stage's table has such a column. Choose another name."
                )
            if kind.upper() not in _FITS:
                hint = nearest(kind.upper(), _FITS)
                raise ConfigError(f"{path}.columns.{column}: no column type '{kind}' of a python stage.{hint}")
        self.table = StageTable(name, tuple(Column(column, kind.upper()) for column, kind in columns.items()))
        deployment = Deployment(DEPLOYMENT, _Function(self._function), make_limiter(None))
        policy = RetryPolicy(max_retries=config.max_retries)
        self._dispatcher = Dispatcher(Router([deployment], "simple-shuffle"), policy)
        self._timeout = config.timeout
        self.facts = {
            "kind": "python",
            "where": self.where,
            "function": config.function,
            "code": module_hash(self._function.function),
            "reads": list(self.reads),
            "columns": dict(sorted(columns.items())),
        }
        self.facts = {fact: value for fact, value in self.facts.items() if value is not None}
        self.signature = hashed(sorted(self.facts.items()))

    def stop(self, *, drop: bool = False) -> None:
        self._dispatcher.stop(drop=drop)

    def pause(self, on: bool) -> None:
        self._dispatcher.pause(on)

    def close(self) -> None:
        self._function.close()

    def prepare(self, context: Mapping[str, Any], mapped: Mapped | None = None) -> Prepared[dict[str, Any]]:
        """The row as the function gets it. The key is a hash of the row and the stage, with the function's code."""
        row = columns_of(context, self._hidden)
        try:
            content = orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
        except TypeError as error:
            raise InputError(f"stages.{self.name}: the row cannot be hashed: {error}") from None
        return Prepared(row, hashed((self.signature, content)))

    async def answer(self, prepared: Prepared[dict[str, Any]]) -> FunctionResult:
        request = Request("function", prepared.request)
        result, metrics = await self._dispatcher.send(request, self._parse, self._timeout)
        result.metrics = metrics
        return result

    def _parse(self, reply: Reply) -> tuple[FunctionResult, None]:
        values: Any = reply.body
        return FunctionResult(values=values), None

    def _values(self, value: Any) -> tuple[Any, ...]:
        """What the function has returned as values of the table's output columns. Raises ``FunctionError``."""
        if self._columns is not None and not isinstance(value, Mapping):
            raise FunctionError(f"expected a dict with {', '.join(self._columns)}, got {type(value).__name__}")
        values = {"value": value} if self._columns is None else value
        known = [column.name for column in self.table.outputs]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise FunctionError(
                f"it returned '{unknown[0]}', which is none of stages.{self.name}.columns: {', '.join(known)}"
            )
        return tuple(_stored(values.get(column.name), column) for column in self.table.outputs)

    def outputs(self, result: FunctionResult) -> tuple[Any, ...]:
        """The values of the declared columns, or of ``value`` if none are declared."""
        return result.values


def _stored(value: Any, column: Column) -> Any:
    """Convert a value for its column. Raises ``FunctionError`` if it does not fit: the writer would end the run."""
    if value is None:
        return None
    if column.type == "JSON":
        try_enums(value)
        try:
            return dumps(value).decode()
        except TypeError as error:
            raise FunctionError(f"{column.name}: not JSON: {error}") from None
    element, many = column.type.removesuffix("[]"), column.type.endswith("[]")
    values = value if many and isinstance(value, list | tuple) else [value]
    if (many and values is not value) or not all(_FITS[element](item) for item in values):
        raise FunctionError(f"{column.name}: expected {column.type}, got {str(value)[:80]!r} ({type(value).__name__})")
    if element in ("DOUBLE", "FLOAT"):  # an integer may be too long for the appender
        values = [None if item is None else float(item) for item in values]
    values = [_exact(item) for item in values]
    return values if many else values[0]


def _exact(value: Any) -> Any:
    """A time without its zone, in UTC, and without a class of the user's: the writer would call the methods of both."""
    if not isinstance(value, dt.date):
        return value
    if not isinstance(value, dt.datetime):
        return dt.date(value.year, value.month, value.day)
    if value.tzinfo is not None:
        value = value.astimezone(dt.UTC)
    return dt.datetime(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)


def _integer(bits: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)


def _number(largest: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        if isinstance(value, int):
            return abs(value) <= largest
        # NaN and infinity are stored as they are.
        return isinstance(value, float) and not largest < abs(value) < math.inf

    return fits


def _text(value: Any) -> bool:
    return isinstance(value, str) and not has_surrogates(value)


def _anything(value: Any) -> bool:
    return True


_SCALARS: dict[str, Callable[[Any], bool]] = {
    "VARCHAR": _text,
    "DOUBLE": _number(sys.float_info.max),
    "FLOAT": _number(FLOAT32_MAX),
    "BIGINT": _integer(64),
    "INTEGER": _integer(32),
    "BOOLEAN": lambda value: isinstance(value, bool),
    "TIMESTAMP": lambda value: isinstance(value, dt.datetime),
    "DATE": lambda value: isinstance(value, dt.date),
}
_FITS = {**_SCALARS, "JSON": _anything} | {f"{name}[]": fits for name, fits in _SCALARS.items()}


class _Function:
    """A transport that calls a function."""

    def __init__(self, function: ForeignFunction) -> None:
        self._function = function

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Call the function once."""
        try:
            value = await self._function.call(request.payload, timeout)
        except NoAnswer as error:
            raise FunctionError(f"{self._function.name}: {error}", retryable=True) from None
        except Foreign as error:
            ended = error.ended_in
            if isinstance(ended, RequestError):  # what it returned does not fit, or it sends requests itself
                raise ended from None
            again = isinstance(ended, Exception) and not isinstance(ended, _LASTING)
            raise FunctionError(f"{self._function.name}: {error}", retryable=again) from ended
        return Reply(None, value, _no_header)

    async def aclose(self) -> None:
        """Nothing to close: the stage ends the threads."""


def _no_header(name: str) -> str | None:
    return None
