"""A one-stage declaration put to work without a store: for a prompt on the command line, and for the benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infermesh.config.load import load
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import RequestError
from infermesh.runs.assemble import assembled
from infermesh.runtime.workers import run_window
from infermesh.stages import Stage
from infermesh.stages.base import Result


@dataclass(slots=True)
class Desk:
    """One stage and who serves it."""

    stage: Stage
    fleet: Fleet

    async def ask(self, rows: Sequence[Mapping[str, Any]]) -> list[Result | RequestError]:
        """Prepare rows and send them in one request; one result or error for each."""
        try:
            prepared = [self.stage.prepare(row) for row in rows]
        except RequestError as error:
            return [error] * len(rows)
        return list(await self.stage.answer(prepared))

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
def opened(
    mapping: Mapping[str, Any], roots: Sequence[Path], environ: Mapping[str, str] = os.environ
) -> Iterator[Desk]:
    """Build what a declaration of one stage says.

    Parameters
    ----------
    mapping
        The composed config.
    roots
        What relative paths are relative to, and where ``module:name`` imports from.

    Raises
    ------
    ConfigError
        The declaration is wrong.
    """
    with assembled(load(mapping), roots, environ) as (fleet, graph):
        *_, stage = graph.stages.values()
        yield Desk(stage, fleet)
