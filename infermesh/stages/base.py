"""The stage protocols, and what the kinds of stages share."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from infermesh.config.schema import ModelStageConfig
from infermesh.dispatch.model import LogicalModel
from infermesh.errors import ConfigError, RequestError
from infermesh.exact_json import dumps
from infermesh.hints import nearest
from infermesh.inputs.row_files import RowFiles
from infermesh.inputs.templates import Template
from infermesh.results import EmbeddingResult, FunctionResult, GenerationResult, TranscriptionResult
from infermesh.store import Column, StageTable

R = TypeVar("R")
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

    @property
    def model(self) -> LogicalModel | None: ...

    def prepare(self, context: Mapping[str, Any]) -> Prepared[Any]:
        """Build a row's request. Raises ``InputError`` if the row does not make one."""
        ...

    async def answer(self, prepared: Prepared[Any]) -> Result:
        """Send the request and return its answer. Raises ``RequestError``."""
        ...

    def outputs(self, result: Any) -> tuple[Any, ...]:
        """The values of the table's output columns from an answer, without those of ``carried``."""
        ...

    def stop(self) -> None:
        """Send no more requests. Those that are not sent yet raise ``StoppedError``."""
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

    def sign(self, **parts: Any) -> None:
        """Set ``facts`` and ``signature`` from the model, the parameters and ``parts``; ``None`` is an absent part.

        A resumed run compares them with the stored ones to find the stages that an edit has changed. Everything that
        may change an answer belongs in here, and nothing that changes speed alone.
        """
        model = self.model
        facts = {"kind": self._kind, "where": self.where, "model": model.backends, "endpoint": model.endpoint}
        facts |= {f"params.{name}": value for name, value in sorted(self.params.items())}
        self.facts = {name: value for name, value in (facts | parts).items() if value is not None}
        self.signature = hashed(sorted(self.facts.items()))

    def stop(self) -> None:
        self.model.stop()

    def close(self) -> None:
        """Nothing to release."""


def as_json(value: Any) -> str | None:
    """A value for a JSON column, ``None`` for NULL where there is none."""
    return None if value is None else dumps(value).decode()


def hashed(parts: object) -> str:
    """A hash of the ``repr`` of values that decide an answer: pass values with a stable ``repr`` and order."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def module_hash(function: Any) -> str | None:
    """Hash the module that defines a function, without comments and layout; ``None`` if it has no Python source.

    The whole module, because the function may call others in it.
    """
    module = inspect.getmodule(function)
    try:
        tree = ast.dump(ast.parse(inspect.getsource(module or function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return hashlib.blake2b(tree.encode(), digest_size=8).hexdigest()


def import_object(spec: str, path: str) -> Any:
    """Import ``module:name``.

    Raises
    ------
    ConfigError
        It does not import; the message says why.
    """
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything on import
        raise ConfigError(
            f"{path}: '{spec}' does not import: {type(error).__name__}: {error}. Expected module:Name, with the module "
            f"importable from the working directory."
        ) from None
    if not hasattr(module, name):
        public = [item for item in vars(module) if not item.startswith("_")]
        raise ConfigError(f"{path}: module '{module_name}' has no '{name}'.{nearest(name, public)}")
    return getattr(module, name)
