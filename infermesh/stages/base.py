"""What every kind of stage has in common."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from infermesh.config.schema import ModelStageConfig
from infermesh.dispatch.model import LogicalModel
from infermesh.errors import ConfigError, RequestError
from infermesh.hints import nearest
from infermesh.inputs.templates import Template
from infermesh.results import EmbeddingResult, FunctionResult, GenerationResult, TranscriptionResult
from infermesh.store import Column, StageTable

R = TypeVar("R")
Result = GenerationResult | EmbeddingResult | TranscriptionResult | FunctionResult


@dataclass(frozen=True, slots=True)
class StageContext:
    """What building a stage needs from outside: the models, where paths are looked for, all stages' names."""

    models: Mapping[str, LogicalModel]
    roots: Sequence[Path]
    stages: Collection[str] = ()


@dataclass(slots=True)
class Prepared(Generic[R]):
    """A row made ready to send.

    Attributes
    ----------
    request
        What the stage's kind sends: a request, a text, a path, a row.
    key
        The hash of all that decides its answer.
    carried
        The values of the table's last output columns, which are stored whatever comes of the request.
    """

    request: R
    key: str
    carried: tuple[Any, ...] = ()


class Stage(Protocol):
    """One stage of a run.

    Its ``templates``, ``where`` and ``reads`` say which stages and columns it reads; ``rows`` is the sql stage whose
    rows it takes, where the declaration says so. ``window`` requests are in flight at once, and ``batch_size`` rows
    travel in one. ``facts`` is what decides every row's answer, in words; ``signature`` its hash. ``model`` is whom it
    asks; ``None`` for a stage that calls a function.
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
        """Turn a row into a request. Raises ``InputError``."""
        ...

    async def answer(self, prepared: Prepared[Any]) -> Result:
        """Send and await. Raises ``RequestError``."""
        ...

    def outputs(self, result: Any) -> tuple[Any, ...]:
        """The values of the kind's own columns."""
        ...

    def stop(self) -> None:
        """Send nothing more; what waits for its turn ends with ``StoppedError``."""
        ...

    def close(self) -> None:
        """Let go of what the stage holds."""
        ...


@runtime_checkable
class BatchStage(Stage, Protocol):
    """A stage whose requests may carry several rows."""

    async def answer_batch(self, prepared: Sequence[Prepared[Any]]) -> Sequence[Result | RequestError]:
        """Send them in one request and await it; one result or error for each."""
        ...


async def answers(stage: Stage, prepared: Sequence[Prepared[Any]]) -> Sequence[Result | RequestError]:
    """Ask a stage for some rows: in one request where it is a :class:`BatchStage`, else one after the other."""
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
    """The part of a stage that asks a model."""

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
        """Hash what decides every row's answer, so that a resumed run sees what an edit has touched."""
        model = self.model
        facts = {"kind": self._kind, "where": self.where, "model": model.backends, "endpoint": model.endpoint}
        facts |= {f"params.{name}": value for name, value in sorted(self.params.items())}
        self.facts = {name: value for name, value in (facts | parts).items() if value is not None}
        self.signature = hashed(sorted(self.facts.items()))

    def stop(self) -> None:
        """Send nothing more; requests that wait for their turn end with ``StoppedError``."""
        self.model.stop()

    def close(self) -> None:
        """Nothing is open."""


def hashed(parts: Any) -> str:
    """The hash of what decides an answer."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def module_hash(function: Any) -> str | None:
    """A hash of the module that holds a function; comments and layout do not count. ``None`` without source."""
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
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"{path}: '{spec}' does not import: {type(error).__name__}: {error}. Expected module:Name, with the module "
            f"importable from the working directory."
        ) from None
    if not hasattr(module, name):
        public = [item for item in vars(module) if not item.startswith("_")]
        raise ConfigError(f"{path}: module '{module_name}' has no '{name}'.{nearest(name, public)}")
    return getattr(module, name)
