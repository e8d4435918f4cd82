"""Failed rows of a wave that are sent again while its other rows are still at work."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Collection, Sequence

from infermesh.errors import ConfigError
from infermesh.hints import command
from infermesh.runs.runner import Runner
from infermesh.stages.graph import Wave
from infermesh.store import GroupWriter, PendingRows, RunStore
from infermesh.store.database import Redo

__all__ = ["SentAgain"]


class SentAgain:
    """Runs a wave's Runner, and beside it others over rows that have failed in it.

    A row is sent again once it has left the first Runner's memory, so that no two have it. What is stored of it stays
    until there is another state: a kill in between leaves it failed.

    Parameters
    ----------
    wave
        The wave.
    make
        Makes a Runner for chosen rows, of which these stages may be settled.

    Attributes
    ----------
    failed
        The row_ids that have failed and left memory, which Runners fill.
    """

    def __init__(
        self,
        wave: Wave,
        store: RunStore,
        writer: GroupWriter,
        make: Callable[[SentAgain, Collection[str]], Runner],
    ) -> None:
        self._wave = wave
        self._store = store
        self._writer = writer
        self._make = make
        self.failed = array("q")
        self.others: set[Runner] = set()
        self._group: asyncio.TaskGroup | None = None

    async def run(self, runner: Runner, rows: PendingRows) -> None:
        """Run the wave; return when its rows, and those that were sent again meanwhile, have settled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(runner.run(rows))

    async def send(self, redo: Redo, readers: Collection[str]) -> tuple[int, int]:
        """Send failed rows of a stage again, and those that were skipped since it had failed.

        Returns
        -------
        tuple
            How many rows are sent, and how many match but cannot be sent now: they failed in an earlier session, have
            another stage at work, or are not failed.

        Raises
        ------
        ConfigError
            The stage is not at work, or the condition does not bind.
        """
        if redo.stage not in self._wave.graph.stages:
            raise ConfigError(
                f"--stage {redo.stage}: it is not at work now; this is: {', '.join(self._wave.graph.stages)}"
            )
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        work = self._send(redo, readers, answer)
        try:
            assert self._group is not None
            self._group.create_task(work)
        except (AssertionError, RuntimeError):  # its last row has settled
            work.close()
            raise ConfigError(
                f"the rows of {redo.stage} are all settled, and the run goes on to what comes after: once it has "
                f"ended, {command('retry', '--stage', redo.stage)} sends them again"
            ) from None
        return await answer

    async def _send(self, redo: Redo, readers: Collection[str], answer: asyncio.Future[tuple[int, int]]) -> None:
        """Tell in ``answer`` how many there are, then run them."""
        try:
            await asyncio.to_thread(self._writer.flush)
            chosen = await asyncio.to_thread(self._chosen, redo)
            left = set(self.failed)  # after the last wait: nobody else takes them
            ids = [row_id for row_id in chosen if row_id in left]
            taken = set(ids)
            self.failed[:] = array("q", [row_id for row_id in self.failed if row_id not in taken])
            rows = None
            if ids:
                rows = await asyncio.to_thread(self._reader, ids)
        except BaseException as error:
            if not answer.done():
                answer.set_exception(error)
            if isinstance(error, Exception):
                return  # it is the asker's
            raise
        if not answer.done():
            answer.set_result((len(ids), len(chosen) - len(ids)))
        if rows is None:
            return
        runner = self._make(self, {redo.stage, *readers})
        self.others.add(runner)
        try:
            await runner.run(rows)
        finally:
            self.others.discard(runner)

    def _chosen(self, redo: Redo) -> list[int]:
        with self._store.cursor() as connection:
            return redo.row_ids(connection, self._wave.origin)

    def _reader(self, ids: Sequence[int]) -> PendingRows:
        return self._store.reader(self._wave.graph.needed, origin=self._wave.origin, only=ids)
