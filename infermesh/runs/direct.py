"""Run one stage without a store: for a prompt on the command line, and for the concurrency benchmark."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infermesh.config.declaration import Declaration
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import ConfigError, RequestError
from infermesh.runs.assemble import assembled
from infermesh.runtime.workers import run_window
from infermesh.stages import Stage, answers, prepare
from infermesh.stages.base import Result
from infermesh.stages.graph import StageGraph
from infermesh.store import Column


@dataclass(slots=True)
class DirectStage:
    """A stage and its deployments, without a store: answers are returned, not stored, and nothing is resumed."""

    stage: Stage
    fleet: Fleet

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ``ConfigError`` if the stage names a column that is none of these, or takes one that is none."""
        columns = [Column(name, "JSON") for name in names]
        if problems := StageGraph({self.stage.name: self.stage}).missing_columns(columns):
            raise ConfigError("\n".join(problems))

    async def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Result | RequestError]:
        """Send the rows in one request if the stage batches, else one after another; one result or error per row.

        If a row cannot be made into a request, every row gets that error and nothing is sent.
        """
        try:
            prepared = [await prepare(self.stage, row) for row in rows]
        except RequestError as error:
            return [error] * len(rows)
        return list(await answers(self.stage, prepared))

    async def ask_each(self, rows: Sequence[Mapping[str, Any]]) -> list[Result | RequestError]:
        """Send each row in its own request, up to the stage's window at once; results in the rows' order."""
        results: list[Any] = [None] * len(rows)
        numbered = iter(enumerate(rows))

        async def pull() -> tuple[int, Mapping[str, Any]]:
            item = next(numbered, None)
            if item is None:
                raise StopAsyncIteration
            return item

        async def handle(item: tuple[int, Mapping[str, Any]]) -> None:
            results[item[0]] = (await self.ask([item[1]]))[0]

        await run_window(pull, handle, self.stage.window)
        return results

    async def aclose(self) -> None:
        await self.fleet.aclose()


@contextmanager
def open_stage(declaration: Declaration, environ: Mapping[str, str] = os.environ) -> Iterator[DirectStage]:
    """Build a declaration and yield its last stage, usually its only one.

    Raises
    ------
    ConfigError
        The declaration names something that does not exist: a file, a function, a column.
    """
    with assembled(declaration, environ) as (fleet, pipeline):
        *_, stage = pipeline.stages.values()
        yield DirectStage(stage, fleet)
