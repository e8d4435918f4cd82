"""A run's rows, page by page, and one row's whole story."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web

from infermesh.errors import ConfigError, InfermeshError, StoreError
from infermesh.exact_json import dumps
from infermesh.hints import command
from infermesh.pages.app.access import from_here
from infermesh.pages.app.runs import RUNS
from infermesh.pages.app.site import SITE, Site, html, json_answer, link, problem
from infermesh.pages.app.story import shown_stages, shown_values
from infermesh.query.closed_run import ClosedRun
from infermesh.query.reader import RunReader
from infermesh.query.row_page import MOST_COUNTED, STATUSES, Asked, RowPage, read_page
from infermesh.store.schema import SOURCE, quoted

__all__ = ["list_rows", "raw_row", "row"]


async def list_rows(request: web.Request) -> web.Response:
    """``/rows/RUN``: filtered and sorted by what the address says."""
    site = request.app[SITE]
    name, folder = site.run_of(request)
    asked = _asked(request.query)
    # A link on another site may lead here. What it would have the database compute waits for the user's word.
    held = bool(asked.where or asked.text) and not from_here(request)
    error = None
    found: RowPage | None = None
    try:
        found = await site.in_thread(_read, folder, _without_text(asked) if held else asked)
    except StoreError as refused:
        error = str(refused)
        try:
            found = await site.in_thread(_read, folder, Asked())
        except StoreError as unreadable:
            return problem(request, "This run cannot be read", unreadable, name, "rows")
    return html(
        request,
        "rows",
        name=name,
        asked=asked,
        found=found,
        sample=found,
        error=error,
        held=held,
        statuses=STATUSES,
        most=MOST_COUNTED,
        filtered=bool(asked.statuses or asked.kinds or asked.text or asked.where),
        row_link=lambda number: link(f"row/{number}", name, of="" if found.origin == SOURCE else found.origin),
        next_link=link("rows", name, **{**_query(asked), "after": found.next}) if found.next else "",
        first_link=link("rows", name, **{**_query(asked), "after": ""}) if asked.after else "",
        sorted_by=lambda column, descending: link(
            "rows", name, **{**_query(asked), "after": "", "sort": column, "desc": "1" if descending else ""}
        ),
        kinds_link=lambda stage: link(
            "rows", name, **{key: value for key, value in _query(asked).items() if key != f"kind.{stage}"}
        ),
    )


def _asked(query: Any) -> Asked:
    def of(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in query.items() if key.startswith(prefix) and value}

    return Asked(
        query.get("of") or SOURCE,
        of("status."),
        of("kind."),
        query.get("q", "").strip(),
        query.get("where", "").strip(),
        query.get("sort", ""),
        bool(query.get("desc")),
        query.get("after", ""),
    )


def _query(asked: Asked) -> dict[str, str]:
    """The address that says the same."""
    return {
        "of": "" if asked.origin == SOURCE else asked.origin,
        **{f"status.{stage}": status for stage, status in asked.statuses.items()},
        **{f"kind.{stage}": kind for stage, kind in asked.kinds.items()},
        "q": asked.text,
        "where": asked.where,
        "sort": asked.sort,
        "desc": "1" if asked.descending else "",
    }


def _without_text(asked: Asked) -> Asked:
    return Asked(asked.origin, asked.statuses, asked.kinds, sort=asked.sort, descending=asked.descending)


def _read(folder: Path, asked: Asked) -> RowPage:
    with ClosedRun(folder) as run:
        return read_page(run, asked)


async def row(request: web.Request) -> web.Response:
    """``/row/N/RUN``: the row's columns, and each stage's request, answer and attempts."""
    site, runs = request.app[SITE], request.app[RUNS]
    name, folder = site.run_of(request)
    origin = request.query.get("of") or SOURCE
    try:
        number, (least, most), story = await _story(site, request, folder, origin)
    except InfermeshError as error:
        return problem(request, "This row cannot be shown", error, name, "rows")
    of = "" if origin == SOURCE else origin

    def media(column: str) -> str:
        return link(f"api/media/{number}", name, of=of, column=column)

    return html(
        request,
        "row",
        name=name,
        number=number,
        origin=origin,
        unreadable=story["unreadable"],
        columns=shown_values(story["columns"], media),
        stages=shown_stages(story["stages"]),
        raw=link(f"api/row/{number}", name, of=of),
        show=command("show", folder, number, *(("--rows", origin) if of else ())),
        before=link(f"row/{number - 1}", name, of=of) if number > least else "",
        behind=link(f"row/{number + 1}", name, of=of) if number < most else "",
        run_of=lambda run_id: link("overview", site.name_of(known)) if (known := runs.by_id(run_id)) else "",
    )


async def raw_row(request: web.Request) -> web.Response:
    """``/api/row/N/RUN``: the story as JSON, nothing left out."""
    site = request.app[SITE]
    _, folder = site.run_of(request)
    try:
        number, _, story = await _story(site, request, folder, request.query.get("of") or SOURCE)
    except InfermeshError as error:
        return json_answer({"error": str(error)}, status=404)
    return web.Response(
        body=dumps(story, default=str),
        content_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="row-{number}.json"'},
    )


async def _story(
    site: Site, request: web.Request, folder: Path, origin: str
) -> tuple[int, tuple[int, int], dict[str, Any]]:
    text = request.match_info["number"]
    if not text.isdecimal() or len(text) > 18:
        raise ConfigError(f"row {text}: expected a number (row_id)")
    number = int(text)
    around = await site.in_thread(_bounds, folder, origin)
    if not around[0] <= number <= around[1]:
        raise ConfigError(f"row {number}: {origin} has rows {around[0]} to {around[1]}")
    return number, around, await site.in_thread(site.story, folder, number, origin)


def _bounds(folder: Path, origin: str) -> tuple[int, int]:
    with RunReader(folder) as reader:
        tables = {name for (name,) in reader.rows("SELECT table_name FROM duckdb_tables()")}
        if origin not in tables:
            raise ConfigError(f"the run has no rows '{origin}'")
        ((least, most),) = reader.rows(f"SELECT min(row_id), max(row_id) FROM {quoted(origin)}")
    if least is None:
        raise ConfigError(f"{origin} has no rows")
    return least, most
