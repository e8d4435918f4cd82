"""The SQL box: a query that reads one run, its result as a table, and as a file."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from infermesh.errors import StoreError
from infermesh.exact_json import dumps, loads
from infermesh.pages.app.site import SITE, Site, html, json_answer, link, problem
from infermesh.pages.words import clean
from infermesh.query.closed_run import Answer, ClosedRun

__all__ = ["answer", "box", "export"]

MOST_ROWS = 1000
TIME_S = 5.0
EXPORT_S = 60.0
_CHARACTERS = 2000  # of a value
_FIRST = "SELECT stage, status, rows FROM progress"
_TABLES = (
    "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = current_database() "
    "AND NOT internal ORDER BY table_name, column_index"
)
_WORDS = (
    "SELECT 'keywords', string_agg(DISTINCT keyword_name, ' ') FROM duckdb_keywords() UNION ALL "
    "SELECT 'builtin', string_agg(DISTINCT function_name, ' ') FROM duckdb_functions() "
    "WHERE regexp_full_match(function_name, '[a-z][a-z0-9_]*') UNION ALL "
    "SELECT 'types', string_agg(DISTINCT lower(type_name), ' ') FROM duckdb_types()"
)


async def box(request: web.Request) -> web.Response:
    """``/sql/RUN``: the editor. A query in the address (``?sql=``) stands in it, and waits for the user's word."""
    site = request.app[SITE]
    name, folder = site.run_of(request)
    try:
        tables, dialect = await site.in_thread(_schema, folder)
    except StoreError as error:
        return problem(request, "This run cannot be read", error, name, "sql")
    return html(
        request,
        "sql",
        name=name,
        query=request.query.get("sql") or _FIRST,
        tables=tables,
        ask=link("api/sql", name),
        export=link("api/export", name),
        words=dumps({"dialect": dialect, "schema": {table: list(columns) for table, columns in tables.items()}}),
        most=MOST_ROWS,
        seconds=f"{TIME_S:g}",
    )


def _schema(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Table → column → type; and the words that DuckDB knows."""
    tables: dict[str, dict[str, str]] = {}
    with ClosedRun(folder) as run:
        for table, column, kind in run.rows(_TABLES):
            tables.setdefault(table, {})[column] = kind
        words = dict(run.rows(_WORDS))
    first = [name for name in ("results", "progress", "source", "attempts", "run") if name in tables]
    return {name: tables[name] for name in (*first, *(name for name in tables if name not in first))}, words


async def answer(request: web.Request) -> web.Response:
    """``/api/sql/RUN``: POST ``{"sql": …}``; columns and rows as texts. It ends when the browser hangs up.

    With ``"check": true`` it only says whether the query can be run.
    """
    site = request.app[SITE]
    _, folder = site.run_of(request)
    try:
        given = loads(await request.read())
        query = given["sql"]
        if not isinstance(query, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        return json_answer({"error": 'expected {"sql": "SELECT …"}'}, status=400)
    began = time.perf_counter()
    try:
        if given.get("check"):
            await _interruptible(site, folder, lambda run: run.check(query))
            return json_answer({})
        found: Answer = await _interruptible(
            site, folder, lambda run: run.ask(query, most=MOST_ROWS, timeout=TIME_S, characters=_CHARACTERS)
        )
    except StoreError as error:
        return json_answer({"error": clean(error)})
    return json_answer(
        {
            "columns": [{"name": clean(name), "type": clean(kind)} for name, kind in found.columns],
            "rows": [[None if value is None else clean(value) for value in row] for row in found.rows],
            "more": found.more,
            "seconds": round(time.perf_counter() - began, 3),
        }
    )


async def _interruptible(site: Site, folder: Path, asked: Callable[[ClosedRun], Any]) -> Any:
    """What a query gives. Where the handler is cancelled, since nobody waits any longer, so is the query."""
    opened: list[ClosedRun] = []

    def work() -> Any:
        with ClosedRun(folder) as run:
            opened.append(run)
            return asked(run)

    try:
        return await site.in_thread(work)
    except asyncio.CancelledError:
        for run in opened:
            run.interrupt()
        raise


async def export(request: web.Request) -> web.StreamResponse:
    """``/api/export/RUN?sql=…&format=csv|json``: all rows of a query, as a file that is sent while it is read."""
    site = request.app[SITE]
    _, folder = site.run_of(request)
    query, kind = request.query.get("sql", ""), request.query.get("format", "csv")
    if kind not in ("csv", "json"):
        raise web.HTTPBadRequest(text="format: csv or json\n")
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/csv; charset=utf-8" if kind == "csv" else "application/json",
            "Content-Disposition": f'attachment; filename="query.{kind}"',
        }
    )
    lines = _csv if kind == "csv" else _json
    run: ClosedRun | None = None
    try:
        run = await site.in_thread(ClosedRun, folder)
        pieces = lines(run.batches(query, timeout=EXPORT_S))
        piece = await site.in_thread(next, pieces, None)  # what is wrong with it shows before anything is sent
        await response.prepare(request)
        while piece is not None:
            await response.write(piece)
            piece = await site.in_thread(next, pieces, None)
        await response.write_eof()
    except StoreError as error:
        if response.prepared:  # the file is not whole: the browser has to see that it was broken off
            if request.transport is not None:
                request.transport.abort()
            return response
        return web.Response(status=400, text=f"{clean(error)}\n")
    finally:
        if run is not None:
            run.interrupt()
            await asyncio.shield(site.in_thread(run.close))
    return response


def _csv(batches: Iterator[Any]) -> Iterator[bytes]:
    for number, batch in enumerate(batches):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([batch] if number == 0 else batch)
        yield text.getvalue().encode("utf-8", "replace")


def _json(batches: Iterator[Any]) -> Iterator[bytes]:
    names = next(batches)
    yield b"["
    first = True
    for batch in batches:
        for row in batch:
            yield (b"\n" if first else b",\n") + dumps(dict(zip(names, row, strict=True)), default=str)
            first = False
    yield b"\n]\n"
