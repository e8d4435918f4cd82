"""The stage protocols, and what the kinds of stages share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from infermesh.config.schema import OWN_FIELDS, ModelStageConfig
from infermesh.dispatch.model import LogicalModel
from infermesh.errors import ConfigError, InputError, RequestError
from infermesh.exact_json import dumps
from infermesh.inputs.row_files import RowFiles
from infermesh.inputs.templates import Template
from infermesh.results import EmbeddingResult, FunctionResult, GenerationResult, TranscriptionResult
from infermesh.runtime.foreign import words_of
from infermesh.stages.mapping import FieldReader, Mapped, Mapper, columns_of, without_input
from infermesh.store import Column, StageTable
from infermesh.types import Request
from infermesh.wire.requests import all_params, payload_bytes

R = TypeVar("R")
_PAUSE = 128  # prepare so many rows, then let other tasks of the event loop run
_MAPPER_THREADS = 64  # calls of a plain mapper at once, per stage; one that waits for much more may be async
Result = GenerationResult | EmbeddingResult | TranscriptionResult | FunctionResult


@dataclass(frozen=True, slots=True)
class StageContext:
    """What building a stage needs: models, the folders to look up paths in, all stages' names, files for rows."""

    models: Mapping[str, LogicalModel]
    roots: Sequence[Path]
    stages: Collection[str] = ()
    files: RowFiles = field(default_factory=RowFiles)


@dataclass(slots=True)
class Prepared(Generic[R]):
    """A row's request, ready to send.

    Attributes
    ----------
    request
        What the stage's kind sends: a request, a text, a path, a row.
    key
        The ``request_key``: a hash of everything in the request that decides its answer.
    carried
        Values of the table's last output columns that are known before the answer, such as ``metadata``. They are
        stored with an answer and with an error.
    """

    request: R
    key: str
    carried: tuple[Any, ...] = ()


class Stage(Protocol):
    """One stage of a run, of a kind that takes rows.

    Attributes
    ----------
    where
        SQL condition on the rows it takes; ``None`` takes all.
    window
        The most requests in flight.
    batch_size
        Rows per request; 1 for a stage that is no :class:`BatchStage`.
    table
        Its table in the database.
    templates, reads
        With ``where``, what it reads: stages and columns named in templates, and stages named outright.
    rows
        The sql stage whose rows it takes, or ``source``, if the declaration says so; else ``None``.
    facts, signature
        Names and values of everything that decides every row's answer, and their hash.
    model
        The model it sends to; ``None`` for a stage that calls a function.
    mapper
        The user's function that makes its input; ``None`` if it has none.
    """

    name: str
    where: str | None
    window: int
    batch_size: int
    table: StageTable
    templates: list[Template]
    rows: str | None
    reads: Sequence[str]
    signature: str
    facts: dict[str, Any]
    mapper: Mapper | None

    @property
    def model(self) -> LogicalModel | None: ...

    def prepare(self, context: Mapping[str, Any], mapped: Mapped | None = None) -> Prepared[Any]:
        """Build a row's request. Use :func:`prepare`, which awaits what ``mapper`` makes of the row.

        Raises
        ------
        InputError
            The row does not make a request.
        """
        ...

    async def answer(self, prepared: Prepared[Any]) -> Result:
        """Send the request and return its answer. Raises ``RequestError``."""
        ...

    def outputs(self, result: Any) -> tuple[Any, ...]:
        """The values of the table's output columns from an answer, without those of ``carried``."""
        ...

    def stop(self, *, drop: bool = False) -> None:
        """Send no more requests. Those that are not sent yet raise ``StoppedError``; with ``drop``, all of them."""
        ...

    def pause(self, on: bool) -> None:
        """Send nothing while ``on``: requests wait, and those in flight go on."""
        ...

    def close(self) -> None:
        """Release threads and files."""
        ...


@runtime_checkable
class BatchStage(Stage, Protocol):
    """A stage whose requests may carry several rows."""

    async def answer_batch(self, prepared: Sequence[Prepared[Any]]) -> Sequence[Result | RequestError]:
        """Send the rows in one request; one result or error per row, in the same order."""
        ...


async def prepare(stage: Stage, context: Mapping[str, Any]) -> Prepared[Any]:
    """Build a row's request.

    Raises
    ------
    InputError
        The row does not make one.
    StoppedError
        The stage was stopped while its mapper ran.
    """
    if stage.mapper is None:
        return stage.prepare(context)
    mapped = await stage.mapper.call(context)
    try:
        return stage.prepare(context, mapped)
    except Exception:
        raise
    except BaseException as error:  # the mapper's value is looked at, and its methods are the user's as well
        raise InputError(f"mapper {stage.mapper.spec}: {words_of(error)}, when its input was read") from error


async def prepare_each(stage: Stage, contexts: Sequence[Mapping[str, Any]]) -> list[Prepared[Any] | Exception]:
    """Build the requests of several rows: each one's, or the error in place of it.

    A mapper is called with all of them at once.
    """

    async def one(number: int, context: Mapping[str, Any]) -> Prepared[Any] | Exception:
        if number % _PAUSE == _PAUSE - 1:
            await asyncio.sleep(0)
        try:
            return await prepare(stage, context)
        except Exception as error:
            return error

    if stage.mapper is not None:
        return await asyncio.gather(*(one(number, context) for number, context in enumerate(contexts)))
    return [await one(number, context) for number, context in enumerate(contexts)]


async def answers(stage: Stage, prepared: Sequence[Prepared[Any]]) -> Sequence[Result | RequestError]:
    """Get a result or error per row: in one request for a :class:`BatchStage`, else in one request after another."""
    if isinstance(stage, BatchStage):
        return await stage.answer_batch(prepared)
    found: list[Result | RequestError] = []
    for item in prepared:
        try:
            found.append(await stage.answer(item))
        except RequestError as error:
            found.append(error)
    return found


class ModelStage:
    """The base of stages that send to a model."""

    columns: ClassVar[tuple[Column, ...]]
    batch_size = 1
    reads: Sequence[str] = ()

    def __init__(self, name: str, config: ModelStageConfig, context: StageContext) -> None:
        self.name = name
        self._kind = config.kind
        self.rows = config.rows
        self.where = config.where
        self.window = config.max_parallel_requests
        self.table = StageTable(name, self.columns)
        self.model = context.models[config.model]
        self.params = {**self.model.params, **config.params}
        self.templates: list[Template] = []
        self.signature = ""
        self.facts: dict[str, Any] = {}
        self.mapper: Mapper | None = None
        self._own_fields: FieldReader | None = None

    def map_rows(self, spec: str, own: FieldReader, hidden: Collection[str]) -> None:
        """Take the input from a mapper, which ``spec`` names, or from the row's own fields.

        Raises
        ------
        ConfigError
            The mapper does not import, or is not callable.
        """
        self._hidden = frozenset(hidden)
        if spec == OWN_FIELDS:
            self._own_fields = own
            return
        threads = min(_MAPPER_THREADS, self.window * self.batch_size)
        self.mapper = Mapper(spec, f"stages.{self.name}.mapper", hidden, threads=threads, timeout=self.model.timeout)

    def mapped(self, context: Mapping[str, Any], made: Mapped | None) -> Mapped:
        """A row's input: what the mapper has made, else what its own fields give. Raises ``InputError``."""
        if made is not None:
            return made
        assert self._own_fields is not None
        return self._own_fields(columns_of(context, self._hidden))

    def missing_input(self, columns: Sequence[Column], whose: str) -> str | None:
        """What to tell where it takes rows as they are, and they have no column for it; ``None`` where they may."""
        if self._own_fields is None:
            return None
        types = {column.name: column.type for column in columns}
        return without_input(self._kind, f"stages.{self.name}", types, whose)

    def try_params(self, own_field: str, make: Callable[[], Request]) -> None:
        """Make a request of no row, so that what fails for every row fails before the first.

        Parameters
        ----------
        own_field
            Where the stage's own input stands in a request.

        Raises
        ------
        ConfigError
            No request can be made with these parameters.
        """
        path = f"stages.{self.name}.params"
        if own_field in all_params(self.params):
            raise ConfigError(
                f"{path}.{own_field}: it would stand in place of what the stage makes of each row. Remove it."
            )
        try:
            payload_bytes(make())
        except InputError as error:
            raise ConfigError(f"{path}: {error} (the model's params count as well)") from None

    def sign(self, **parts: Any) -> None:
        """Set ``facts`` and ``signature`` from the model, the parameters and ``parts``; ``None`` is an absent part.

        A resumed run compares them with the stored ones to find the stages that an edit has changed. Everything that
        may change an answer belongs in here, and nothing that changes speed alone.
        """
        model = self.model
        facts = {"kind": self._kind, "where": self.where, "model": model.backends, "endpoint": model.endpoint}
        if self.mapper is not None:
            facts["mapper_code"] = self.mapper.code
        facts |= {f"params.{name}": value for name, value in sorted(self.params.items())}
        self.facts = {name: value for name, value in (facts | parts).items() if value is not None}
        self.signature = hashed(sorted(self.facts.items()))

    def stop(self, *, drop: bool = False) -> None:
        self.model.stop(drop=drop)
        if self.mapper is not None:
            self.mapper.stop()

    def pause(self, on: bool) -> None:
        self.model.pause(on)

    def close(self) -> None:
        if self.mapper is not None:
            self.mapper.close()


def as_json(value: Any) -> str | None:
    """A value for a JSON column, ``None`` for NULL where there is none."""
    return None if value is None else dumps(value).decode()


def hashed(parts: object) -> str:
    """A hash of the ``repr`` of values that decide an answer: pass values with a stable ``repr`` and order."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
