"""One stage without a store: for a prompt on the command line, and for the concurrency benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infermesh.config.declaration import Declaration
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import RequestError
from infermesh.runs.assemble import assembled
from infermesh.runtime.workers import run_window
from infermesh.stages import Stage, answers
from infermesh.stages.base import Result


@dataclass(slots=True)
class DirectStage:
    """A stage that is asked without a store: nothing is kept, and nothing is resumed."""

    stage: Stage
    fleet: Fleet

    async def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Result | RequestError]:
        """Prepare rows and send them in one request; one result or error for each."""
        try:
            prepared = [self.stage.prepare(row) for row in rows]
        except RequestError as error:
            return [error] * len(rows)
        return list(await answers(self.stage, prepared))

    async def ask_each(self, rows: Sequence[Mapping[str, Any]]) -> list[Result | RequestError]:
        """Send each row by itself, as many at once as the stage's window has; results in the rows' order."""
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
        """Close every connection."""
        await self.fleet.aclose()


@contextmanager
def open_stage(declaration: Declaration, environ: Mapping[str, str] = os.environ) -> Iterator[DirectStage]:
    """Build the last stage of a declaration, usually its only one, and what serves it.

    Raises
    ------
    ConfigError
        The declaration names what is not there.
    """
    with assembled(declaration, environ) as (fleet, pipeline):
        *_, stage = pipeline.stages.values()
        yield DirectStage(stage, fleet)
