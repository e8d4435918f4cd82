"""The kind ``python``: a row → the result of a user's function, sync or async."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import inspect
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
from infermesh.exact_json import dumps
from infermesh.hints import nearest
from infermesh.inputs.templates import Template
from infermesh.limits import make_limiter
from infermesh.results import FunctionResult
from infermesh.runtime.foreign import DaemonThreads, Foreign, harmless, words_of
from infermesh.stages.base import Prepared, StageContext, hashed, import_object, module_hash
from infermesh.store import Column, StageTable
from infermesh.types import Reply, Request
from infermesh.wire.answers import FLOAT32_MAX

DEPLOYMENT = "python"
_OWN = frozenset(column.name for column in StageTable("", ()).columns)
# Exceptions that a second call would raise again, so that it is not retried.
_LASTING = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError)


class Python:
    """See :class:`~infermesh.config.schema.PythonStage` for its parameters.

    A call goes through dispatch like a request, with the function in place of a deployment's transport, so that retries
    and timeouts work the same.
    """

    batch_size = 1
    model = None

    def __init__(self, name: str, config: PythonStage, context: StageContext) -> None:
        path = f"stages.{name}"
        function = import_object(config.function, f"{path}.function")
        if not callable(function):
            raise ConfigError(f"{path}.function: '{config.function}' is a {type(function).__name__}, not a function.")
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
        self._call = _Function(config.function, function, self.window)
        deployment = Deployment(DEPLOYMENT, self._call, make_limiter(None))
        policy = RetryPolicy(max_retries=config.max_retries)
        self._dispatcher = Dispatcher(Router([deployment], "simple-shuffle"), policy)
        self._timeout = config.timeout
        self.facts = {
            "kind": "python",
            "where": self.where,
            "function": config.function,
            "code": module_hash(function),
            "reads": list(self.reads),
            "columns": dict(sorted(columns.items())),
        }
        self.facts = {fact: value for fact, value in self.facts.items() if value is not None}
        self.signature = hashed(sorted(self.facts.items()))

    def stop(self) -> None:
        self._dispatcher.stop()

    def close(self) -> None:
        self._call.close()

    def prepare(self, context: Mapping[str, Any]) -> Prepared[dict[str, Any]]:
        """The row as the function gets it. The key is a hash of the row and the stage, with the function's code."""
        row = {name: value for name, value in context.items() if name not in self._hidden}
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
        value: Any = reply.body
        if self._columns is not None and not isinstance(value, Mapping):
            raise FunctionError(f"expected a dict with {', '.join(self._columns)}, got {type(value).__name__}")
        values = {"value": value} if self._columns is None else value
        known = [column.name for column in self.table.outputs]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise FunctionError(
                f"it returned '{unknown[0]}', which is none of stages.{self.name}.columns: {', '.join(known)}"
            )
        return FunctionResult(
            values=tuple(_stored(values.get(column.name), column) for column in self.table.outputs)
        ), None

    def outputs(self, result: FunctionResult) -> tuple[Any, ...]:
        """The values of the declared columns, or of ``value`` if none are declared."""
        return result.values


def _stored(value: Any, column: Column) -> Any:
    """Convert a value for its column. Raises ``FunctionError`` if it does not fit: the writer would end the run."""
    if value is None:
        return None
    if column.type == "JSON":
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
    return list(values) if many else values[0]


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
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


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
    """A transport that calls a function: on the event loop if it is async, else in a pool of threads."""

    def __init__(self, spec: str, function: Any, threads: int) -> None:
        self._spec = spec
        self._function = function
        call = function if inspect.isroutine(function) or isinstance(function, functools.partial) else function.__call__
        self._is_async = inspect.iscoroutinefunction(call)
        self._threads = threads
        self._pool: DaemonThreads | None = None

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Call the function once. After a timeout, a call in a thread goes unawaited: a thread cannot be cancelled."""
        row = request.payload
        try:
            async with asyncio.timeout(timeout) as limit:
                if self._is_async:
                    value = await self._on_the_loop(row)
                else:
                    if self._pool is None:
                        self._pool = DaemonThreads(self._threads, f"infermesh-{self._spec}")
                    value = await self._pool.call(self._function, row)
        except RequestError:
            raise
        except TimeoutError as error:
            if limit.expired():
                raise FunctionError(f"{self._spec}: no answer within {timeout:g} s", retryable=True) from None
            raise self._failed(error) from error
        except Exception as error:
            raise self._failed(error) from error
        return Reply(None, value, _no_header)

    async def _on_the_loop(self, row: Any) -> Any:
        """Await the function in a task of its own.

        So a cancellation that comes from within, of something the function awaited, is not one of this row's worker;
        and a function that ignores its cancellation is left behind.
        """
        task = asyncio.create_task(_guarded(self._function, row), name=self._spec)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it
            task.cancel()
            raise
        return task.result()

    def _failed(self, error: Exception) -> FunctionError:
        return FunctionError(f"{self._spec}: {words_of(error)}", retryable=not isinstance(error, (*_LASTING, Foreign)))

    async def aclose(self) -> None:
        """Nothing to close: :meth:`close` ends the threads."""

    def close(self) -> None:
        """End the threads, without waiting for calls that are running."""
        if self._pool is not None:
            self._pool.close()


async def _guarded(function: Any, row: Any) -> Any:
    """Await a function. An end that would be more than the call's own (exit, interrupt) is a :class:`Foreign`."""
    try:
        return await function(row)
    except BaseException as raised:
        error = harmless(raised)
        if error is raised:
            raise
        raise error from None


def _no_header(name: str) -> str | None:
    return None
