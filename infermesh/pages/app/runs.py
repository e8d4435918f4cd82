"""The list of runs, a run's overview and its failures."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Any

from aiohttp import web

from infermesh.errors import StoreError
from infermesh.hints import command
from infermesh.pages import run as run_pages
from infermesh.pages.app.site import SITE, Site, html, json_answer, link, problem
from infermesh.pages.page import fragment
from infermesh.pages.words import duration, money
from infermesh.query.listing import ListedRun, RunList
from infermesh.query.overview import Overview, read_overview
from infermesh.store.folders import DATABASE, sweep_of, written_at

__all__ = ["OVERVIEWS", "RUNS", "Overviews", "failures", "figure_parts", "head_parts", "list_runs", "overview", "rest"]

_A_PAGE = 50  # runs
_PATIENCE_S = 0.15  # that a page waits for all figures; then it is sent without them, and asks for them
_LARGE = 32 << 20  # bytes of a database whose figures take longer than that
_KEPT = 8  # overviews of runs that are over
RUNS = web.AppKey("runs", RunList)


class Overviews:
    """Overviews of runs, read in threads; those of runs that are over are kept until their file is written to again."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._known: OrderedDict[Path, tuple[float, asyncio.Task[Overview]]] = OrderedDict()

    def whole(self, folder: Path) -> asyncio.Task[Overview]:
        """The overview with all its figures, being read or read already."""
        if (known := self.known(folder)) is not None:
            return known
        task = asyncio.create_task(self._site.in_thread(_read, folder))
        task.add_done_callback(_heard)
        self._known[folder] = (written_at(folder), task)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return task

    def known(self, folder: Path) -> asyncio.Task[Overview] | None:
        """The same if it has begun, and the run has not been written to since; else ``None``."""
        known = self._known.get(folder)
        return known[1] if known is not None and known[0] == written_at(folder) and not _useless(known[1]) else None


def _heard(task: asyncio.Task[Overview]) -> None:
    """Whoever asked may have gone, and then asyncio would complain that nobody has heard of the error."""
    if not task.cancelled():
        task.exception()


def _useless(task: asyncio.Task[Overview]) -> bool:
    if not task.done():
        return False
    return task.cancelled() or task.exception() is not None or task.result().live


def _read(folder: Path) -> Overview:
    return read_overview(folder, samples=False)


OVERVIEWS = web.AppKey("overviews", Overviews)


async def list_runs(request: web.Request) -> web.Response:
    """``/``: the runs, most recently written first."""
    site, runs = request.app[SITE], request.app[RUNS]
    text = request.query.get("q", "").strip()
    first = max(0, _number(request.query.get("first")))
    found, total = await site.in_thread(runs.page, text, first, _A_PAGE)
    lines = [_line(site, each) for each in found]
    return html(request, "runs", runs=lines, total=total, first=first, q=text, outputs=site.outputs)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else 0


def _line(site: Site, listed: ListedRun) -> dict[str, Any]:
    info = listed.info
    sweep = info.as_json()["sweep"]
    known = info.answers
    return {
        "name": site.name_of(info.folder),
        "experiment": info.experiment,
        "sweep": None if sweep is None else site.name_of(Path(sweep)),
        "state": run_pages.state_of(info.status),
        "problem": info.problem if info.status == "damaged" else None,
        "done": info.done if known else None,
        "failed": info.failed if known else None,
        "pending": info.pending if known else None,
        "cost": info.cost_usd,
        "rate": _rate(listed.rate),
        "seconds": listed.seconds,
        "previous": None if listed.previous is None else site.name_of(listed.previous.info.folder),
        "changes": _changes(listed, listed.previous),
    }


def _rate(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:,.4g}/s"


def _changes(now: ListedRun, before: ListedRun | None) -> list[tuple[str, bool | None]]:
    """What changed, and whether that is good (``None``: neither). Nothing while the run goes on."""
    if before is None or now.info.status == "running":
        return []
    found: list[tuple[str, bool | None]] = []
    if now.rate and before.rate and abs(share := now.rate / before.rate - 1) >= 0.01:
        found.append((f"speed {_signed(share)}{abs(share):.0%}", share > 0))
    if failed := now.info.failed - before.info.failed:
        found.append((f"{_signed(failed)}{abs(failed):,} failed", failed < 0))
    if now.info.cost_usd is not None and before.info.cost_usd is not None:
        cost = now.info.cost_usd - before.info.cost_usd
        if abs(cost) >= 0.00005:
            found.append((f"{_signed(cost)}{money(abs(cost))}", cost < 0))
    if not found and before.seconds and now.seconds:
        found.append((f"as before ({duration(before.seconds)})", None))
    return found


def _signed(number: float) -> str:
    return "+" if number > 0 else "−"


async def overview(request: web.Request) -> web.Response:
    """``/overview/RUN``: state, counts, stages, time, deployments, config."""
    site = request.app[SITE]
    name, folder = site.run_of(request)
    reading = request.app[OVERVIEWS].known(folder)
    if reading is None and (folder / DATABASE).stat().st_size < _LARGE:
        reading = request.app[OVERVIEWS].whole(folder)
        await asyncio.wait([reading], timeout=_PATIENCE_S)
    later = reading is None or not reading.done()
    try:
        found = await site.in_thread(_counts, folder) if reading is None or later else reading.result()
    except StoreError as error:
        return problem(request, "This run cannot be read", error, name, "overview")
    values = run_pages.values_of(found)
    return html(
        request,
        "overview",
        run_pages.charts(found),
        **values,
        name=name,
        later=link("api/overview", name) if later else "",
        events=link("events", name) if found.live else "",
        report=command("report", found.folder),
    )


def _counts(folder: Path) -> Overview:
    return read_overview(folder, figures=False, samples=False)


async def rest(request: web.Request) -> web.Response:
    """``/api/overview/RUN``: the parts of the overview that take long, for a page that was sent without them."""
    name, folder = request.app[SITE].run_of(request)
    try:
        found = await asyncio.shield(request.app[OVERVIEWS].whole(folder))
    except StoreError as error:
        return json_answer({"error": str(error)})
    charts = [chart.as_json() for chart in run_pages.charts(found)]
    return json_answer({"parts": head_parts(found, name) | figure_parts(found), "charts": charts})


def head_parts(found: Overview, name: str) -> dict[str, str]:
    """The parts of the overview that the counts make."""
    state, totals = run_pages.state_of(found.status), run_pages.totals(found)
    reason = found.sessions[-1].reason if found.sessions else None
    return {
        "head": fragment("run_parts.jinja", "head", found, state, reason, sweep_of(found.folder)),
        "tiles": fragment("run_parts.jinja", "tiles", found, totals),
        "failed": fragment("view/parts.jinja", "failed", totals, link("failures", name)),
        "graph": fragment("run_parts.jinja", "stage_graph", run_pages.graphs(found)),
    }


def figure_parts(found: Overview) -> dict[str, str]:
    """The parts of the overview that are summed up over all requests."""
    charts = {chart.name: chart for chart in run_pages.charts(found)}
    return {
        "stages": fragment("run_parts.jinja", "stages", found),
        "time": fragment("run_parts.jinja", "over_time", found, charts, run_pages.bins(found)),
        "deployments": fragment("run_parts.jinja", "deployments", found),
    }


async def failures(request: web.Request) -> web.Response:
    """``/failures/RUN``: rows and requests that failed, by kind and message, with what to do."""
    name, folder = request.app[SITE].run_of(request)
    try:
        found = await asyncio.shield(request.app[OVERVIEWS].whole(folder))
    except StoreError as error:
        return problem(request, "This run cannot be read", error, name, "failures")

    def rows_of(stage: str, kind: str) -> str:
        origin = found.origins.get(stage, "source")
        of = {"of": origin} if origin != "source" else {}
        return link("rows", name, **of, **{f"status.{stage}": "error", f"kind.{stage}": kind})

    return html(request, "failures", **run_pages.values_of(found), name=name, links=rows_of)
