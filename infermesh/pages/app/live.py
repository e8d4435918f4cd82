"""Runs that go on: each is asked once a second, however many pages show it, and these get what has changed.

What is sent are server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): ``parts`` with the
HTML of the parts that have changed and the charts, ``over`` when the run has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from infermesh.errors import StoreError
from infermesh.exact_json import dumps
from infermesh.pages import run as run_pages
from infermesh.pages.app.runs import figure_parts, head_parts
from infermesh.pages.app.site import SITE, Site
from infermesh.query.overview import Overview, read_counts, read_overview

__all__ = ["LIVE", "Live", "events"]

logger = logging.getLogger("infermesh")

EVERY_S = 1.0
FIGURES_EVERY_S = 5.0
# Of the time: reading all figures takes one of so many parts of it at most, so that the run is not held up. To read the
# counts is mostly to wait for the turn of a busy process.
_SHARE = 50
_SHARE_OF_COUNTS = 10
_PING_S = 10.0
_FAILURES = 5  # in a row, and the run counts as over
_RETRY_MS = 2000


class Live:
    """The runs that pages follow.

    Parameters
    ----------
    every_s, figures_every_s
        Seconds between two looks at a run's counts, and at all of its figures; longer where reading takes long.
    """

    def __init__(self, site: Site, every_s: float = EVERY_S, figures_every_s: float = FIGURES_EVERY_S) -> None:
        self.site = site
        self.every_s = every_s
        self.figures_every_s = figures_every_s
        self.closing = False
        self._feeds: dict[Path, _Feed] = {}

    @contextlib.contextmanager
    def follow(self, folder: Path) -> Any:
        """A page's slot, as long as the block lasts."""
        feed = self._feeds.get(folder)
        if feed is None or feed.over:
            feed = self._feeds[folder] = _Feed(self, folder)
        slot = feed.join()
        try:
            yield slot
        finally:
            feed.leave(slot)
            if not feed.slots and self._feeds.get(folder) is feed:
                del self._feeds[folder]

    def close(self) -> None:
        """End all streams, so that the server need not wait for them."""
        self.closing = True
        for feed in self._feeds.values():
            feed.wake()


LIVE = web.AppKey("live", Live)


class Slot:
    """What a page has not been sent yet: the newest of each part. A slow page misses what was in between."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.charts: list[dict[str, Any]] | None = None
        self.over = False
        self.news = asyncio.Event()


class _Feed:
    """One run: it is asked in a task, as long as a page follows it."""

    def __init__(self, live: Live, folder: Path) -> None:
        self.slots: set[Slot] = set()
        self.over = False
        self._live = live
        self._folder = folder
        self._name = live.site.name_of(folder)
        self._parts: dict[str, str] = {}
        self._charts: list[dict[str, Any]] | None = None
        self._task = asyncio.create_task(self._ask_on())
        self._task.add_done_callback(self._ended)

    def join(self) -> Slot:
        slot = Slot()
        slot.parts, slot.charts = dict(self._parts), self._charts
        if slot.parts:
            slot.news.set()
        self.slots.add(slot)
        return slot

    def leave(self, slot: Slot) -> None:
        self.slots.discard(slot)
        if not self.slots:
            self._task.cancel()

    def wake(self) -> None:
        for slot in self.slots:
            slot.news.set()

    async def _ask_on(self) -> None:
        figures_at, failures = 0.0, 0
        before: Overview | None = None
        while not self._live.closing:
            began = time.monotonic()
            whole = began >= figures_at or before is None
            try:
                found = await self._live.site.in_thread(_asked, self._folder, None if whole else before)
                going, failures = found.live, 0
            except StoreError:  # it ends, or is busy
                failures += 1
                going = failures < _FAILURES
            took = time.monotonic() - began
            if not failures:
                parts, charts = head_parts(found, self._name), None
                if whole:
                    before = found
                    parts |= figure_parts(found)
                    charts = [chart.as_json() for chart in run_pages.charts(found)]
                    figures_at = time.monotonic() + max(self._live.figures_every_s, _SHARE * took)
                self._tell(parts, charts)
            if not going:
                self._end()
                return
            await asyncio.sleep(max(self._live.every_s - took, 0 if whole else (_SHARE_OF_COUNTS - 1) * took, 0.05))

    def _tell(self, parts: dict[str, str], charts: list[dict[str, Any]] | None) -> None:
        changed = {name: html for name, html in parts.items() if self._parts.get(name) != html}
        self._parts |= changed
        self._charts = charts if charts is not None else self._charts
        for slot in self.slots:
            slot.parts |= changed
            slot.charts = charts if charts is not None else slot.charts
        self.wake()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let no page wait for a feed that a bug has ended."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s is no longer followed", self._folder, exc_info=error)
            self._end()

    def _end(self) -> None:
        self.over = True
        for slot in self.slots:
            slot.over = True
        self.wake()


def _asked(folder: Path, before: Overview | None) -> Overview:
    """The run as it is now: its counts, and all of its figures where there are none ``before``."""
    return read_overview(folder, samples=False) if before is None else read_counts(folder, before)


async def events(request: web.Request) -> web.StreamResponse:
    """``/events/RUN``: the stream."""
    live, (_, folder) = request.app[LIVE], request.app[SITE].run_of(request)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    with live.follow(folder) as slot, contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(f"retry: {_RETRY_MS}\n\n".encode())
        number = 0
        while not live.closing:
            try:
                await asyncio.wait_for(slot.news.wait(), _PING_S)
            except TimeoutError:
                await response.write(b": ping\n\n")
                continue
            slot.news.clear()
            if live.closing:
                break
            if slot.parts or slot.charts is not None:
                number += 1
                data = {"parts": slot.parts, "charts": slot.charts}
                slot.parts, slot.charts = {}, None
                await response.write(_event("parts", number, data))
            if slot.over:
                await response.write(_event("over", number + 1, {}))
                break
    return response


def _event(kind: str, number: int, data: Any) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), dumps(data))
