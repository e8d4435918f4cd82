"""Hands on a live run: pause it, let it go on, change its limits, windows and weights.

Requests come from the run's socket, in its threads. What they change is changed in the run's event loop, at once; each
change is told, logged, and a row of the table ``changes``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from infermesh.config.declaration import Declaration
from infermesh.config.live import Change, changed, in_words
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import InfermeshError
from infermesh.exact_json import dumps
from infermesh.hints import command, counted
from infermesh.runs.assemble import requests_at_once
from infermesh.runtime.openfiles import allow_requests
from infermesh.stages import Stage
from infermesh.store import Connection
from infermesh.store.changes import keep_config, note_changes
from infermesh.store.database import utcnow

__all__ = ["Adjustment", "Hands", "adjust", "adjustments"]

logger = logging.getLogger("infermesh")
_ANSWER_S = 20.0

Adjustment = tuple[str, str, Any]  # account, own, weight, slots, window; whose; limits or a number


def adjustments(changes: Sequence[Change], declaration: Declaration) -> list[Adjustment]:
    """What the process that sends requests has to set, each thing once. ``declaration`` is the new one.

    A guard is none of them: it stands with the run's own process.
    """
    experiment = declaration.experiment
    found: dict[tuple[str, str], Any] = {}
    for change in changes:
        match change.path:
            case ("limits", name, _):
                found["account", name] = experiment.limits[name]
            case ("deployments", label, "limits", _):
                found["own", label] = experiment.deployments[label].limits
            case ("deployments", label, "weight"):
                found["weight", label] = change.new
            case ("deployments", label, _):
                found["slots", label] = change.new
            case ("stages", name, _):
                found["window", name] = change.new
    return [(kind, name, value) for (kind, name), value in found.items()]


def adjust(fleet: Fleet, stages: Mapping[str, Stage], made: Sequence[Adjustment], *, shared: bool = False) -> None:
    """Set them in a process that sends requests; ``shared``: slots are dealt to it by somebody else."""
    for kind, name, value in made:
        match kind:
            case "account":
                fleet.set_account_limits(name, value)
            case "own":
                fleet.set_limits(name, value)
            case "weight":
                fleet.set_weight(name, value)
            case "slots":
                fleet.set_slots(name, value, shared=shared)
            case "window":
                stages[name].window = value


class Run(Protocol):
    """The session whose run it is."""

    @property
    def stopping(self) -> bool: ...

    def pause(self, on: bool) -> None: ...

    def adjust(self, made: Sequence[Adjustment]) -> None: ...

    def set_budget(self, dollars: float | None) -> None: ...

    async def send_again(self, stage: str, where: str) -> tuple[int, int]: ...

    def cursor(self) -> Connection: ...


class Hands:
    """Takes requests of the run's socket while its event loop runs.

    Parameters
    ----------
    declaration
        What the run goes by.
    environ
        Where the variables that it names are looked up.
    note
        Tells the user a line.

    Attributes
    ----------
    write_config
        Writes a declaration beside the run's database, for who reads it there.
    paused_at
        Since when the run is paused; ``None``: it is not.
    """

    def __init__(
        self,
        run: Run,
        declaration: Declaration,
        environ: Mapping[str, str],
        folder: Path,
        note: Callable[[str], None],
    ) -> None:
        self._run = run
        self._declaration = declaration
        # What a resume is to go by: what was changed without being kept is not in it.
        self._kept = declaration
        self._environ = environ
        self._folder = folder
        self._note = note
        self.write_config: Callable[[Declaration], None] = lambda declaration: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self.paused_at: datetime | None = None

    def begin(self) -> None:
        """Take requests from now on. Call it in the run's event loop."""
        self._loop = asyncio.get_running_loop()

    def end(self) -> None:
        """Take none any more."""
        self._loop = None
        self.paused_at = None

    def waiting_for(self) -> list[str]:
        """What requests wait for while the run is paused, in words."""
        if self.paused_at is None or self._run.stopping:
            return []
        return [f"{command('continue', self._folder)} (paused at {self.paused_at:%H:%M:%S} UTC)"]

    # In a thread of the socket

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a client asks for; the answer has the lines to tell its user.

        Raises
        ------
        ValueError
            It cannot be done; the message says why.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            raise ValueError("the run is just beginning, or ending: it sends nothing that could be changed")
        match request:
            case {"op": "pause"}:
                work = self._pause(True)
            case {"op": "continue"}:
                work = self._pause(False)
            case {"op": "set", "changes": [*assignments]} if all(isinstance(each, str) for each in assignments):
                work = self._set(assignments, keep=bool(request.get("keep")))
            case {"op": "retry", "stage": str(stage), "where": str(where)}:
                work = self._retry(stage, where)
            case _:
                raise ValueError('expected {"op": "set", "changes": ["KEY=VALUE", …]}')
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result(_ANSWER_S)
        except InfermeshError as error:
            raise ValueError(str(error)) from None
        except (TimeoutError, CancelledError):
            raise ValueError("the run has not answered: it is very busy, or ending") from None

    # In the event loop

    async def _pause(self, on: bool) -> dict[str, Any]:
        async with self._lock:
            self._refuse_late()
            if on == (self.paused_at is not None):
                return {"said": ["it is paused already" if on else "it is not paused"]}
            self.paused_at = utcnow() if on else None
            self._run.pause(on)
            if on:
                line = f"paused: no request is sent, those in flight go on; {command('continue', self._folder)}"
            else:
                line = "going on after a pause"
            await self._tell([line], [("paused", str(not on).lower(), str(on).lower())])
            return {"said": [line]}

    async def _set(self, assignments: Sequence[str], *, keep: bool) -> dict[str, Any]:
        async with self._lock:
            self._refuse_late()
            declaration, changes = changed(self._declaration, assignments, self._environ)
            kept = changed(self._kept, assignments, self._environ)[0] if keep else None
            self._run.adjust(adjustments(changes, declaration))
            for change in changes:
                if change.path[0] == "guards":
                    self._run.set_budget(change.new)
            self._declaration = declaration
            lines = [str(change) for change in changes] or ["nothing to change: all of it is so already"]
            if changes and (warning := allow_requests(requests_at_once(declaration.experiment))) is not None:
                lines.append(warning)
            if kept is not None:
                await asyncio.to_thread(self._keep, kept)
                lines.append("kept: a resume of this run goes by it too")
            rows = [(each.what, _stored(each.old), _stored(each.new)) for each in changes]
            if rows or keep:
                await self._tell(lines, rows)
            return {"said": lines}

    async def _retry(self, stage: str, where: str) -> dict[str, Any]:
        async with self._lock:
            self._refuse_late()
            sent, left = await self._run.send_again(stage, where)
            said = [f"{counted(sent, f'failed row of {stage} is', f'failed rows of {stage} are')} sent again"]
            if left:
                later = command("retry", self._folder, "--stage", stage)
                rest = counted(left, "further row matches", "further rows match")
                said.append(
                    f"{rest}, and cannot be sent now: not failed, failed in an earlier session, or still at work in "
                    f"another stage. Ask again later, or once the run has ended: {later}"
                )
            await self._tell(said, [(f"retry {stage}", None, f"{counted(sent, 'row')} where {where}")] if sent else [])
            return {"said": said}

    def _refuse_late(self) -> None:
        if self._run.stopping:
            raise ValueError("the run is stopping: it sends nothing more")

    async def _tell(self, lines: Sequence[str], rows: Sequence[tuple[str, str | None, str | None]]) -> None:
        for line in lines:
            logger.info("by hand: %s", line)
            self._note(line)
        if rows:
            await asyncio.to_thread(self._store, utcnow(), rows)

    def _store(self, at: datetime, rows: Sequence[tuple[str, str | None, str | None]]) -> None:
        with self._run.cursor() as connection:
            note_changes(connection, at, rows)

    def _keep(self, declaration: Declaration) -> None:
        with self._run.cursor() as connection:
            keep_config(connection, dumps(declaration.mapping).decode(), declaration.hash)
        self._kept = declaration
        self.write_config(declaration)


def _stored(value: Any) -> str | None:
    return None if value is None else in_words(value)
