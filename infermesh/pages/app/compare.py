"""Two runs side by side, and a sweep's curve and table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from infermesh.errors import InfermeshError, StoreError
from infermesh.exact_json import dumps, read
from infermesh.hints import command, nearest
from infermesh.pages import sweep as sweep_pages
from infermesh.pages.app.site import SITE, html, link, problem
from infermesh.query.diff import RunDiff, StageDiff
from infermesh.store.folders import is_sweep, run_folders
from infermesh.store.schema import DATABASE, SOURCE

__all__ = ["compare", "sweep"]

_ROWS = 50
_RUNS = 300  # that can be chosen
_CHARACTERS = 40_000  # of an answer


@dataclass(frozen=True, slots=True)
class Differing:
    """A row that differs: its numbers in both runs, and ``(column, value in A, value in B)``, ``None`` for NULL."""

    row_a: int
    row_b: int
    status_a: str
    status_b: str
    of: str
    values: list[tuple[str, str | None, str | None]]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs compared.

    Attributes
    ----------
    alone
        Which stages only one run has, in words.
    differ
        How many rows of the stage differ.
    rows
        The first of them.
    """

    stages: list[StageDiff]
    alone: list[str]
    stage: str
    differ: int
    rows: list[Differing]


async def compare(request: web.Request) -> web.Response:
    """``/compare/A?b=B&stage=…``: counts, what the stages took, and the rows that differ."""
    site = request.app[SITE]
    name, folder = site.run_of(request)
    b, stage = request.query.get("b", ""), request.query.get("stage", "")
    folders = await site.in_thread(run_folders, site.outputs)
    others = [other for each in folders[:_RUNS] if (other := site.name_of(each)) != name]
    found, error = None, None
    if b:
        _, second = site.run_of(request, "b")
        try:
            found = await site.in_thread(_compared, folder, second, stage)
        except StoreError as refused:
            error = str(refused)
        if b not in others:
            others.insert(0, b)
    return html(
        request,
        "compare",
        name=name,
        b=b,
        others=others,
        found=found,
        stage=found.stage if found else "",
        error=error,
        command=command("diff", folder, site.outputs / b, "--limit", "0") if found else "",
    )


def _compared(first: Path, second: Path, stage: str) -> Compared:
    with RunDiff(first / DATABASE, second / DATABASE) as diff:
        common = diff.common
        if not common:
            raise StoreError("these runs have no stage in common")
        chosen = stage or common[0]
        if chosen not in common:
            raise StoreError(f"no stage '{chosen}' in both runs.{nearest(chosen, common)}")
        stages = [diff.compare(each) for each in common]
        alone = [
            f"Only {side.upper()} has the stage {each}."
            for side in ("a", "b")
            for each in diff.stages(side)
            if each not in common
        ]
        result = diff.connection.execute(diff.differing([chosen], _ROWS))
        names = [column[0] for column in result.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        (counts,) = [each for each in stages if each.stage == chosen]
        origin = diff.origin_of(chosen)
        return Compared(
            stages,
            alone,
            chosen,
            counts.different + counts.other_status,
            [_differing(row, "" if origin == SOURCE else origin) for row in rows],
        )


def _differing(row: dict[str, Any], of: str) -> Differing:
    return Differing(row["row_id_a"], row["row_id_b"], row["status_a"], row["status_b"], of, list(_values(row)))


def _values(row: dict[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    sides = [_object(row["answer_a"]), _object(row["answer_b"])]
    for column in dict.fromkeys((*sides[0], *sides[1])):
        before, after = (_text(side.get(column)) for side in sides)
        yield column, before, after


def _object(text: str | None) -> dict[str, Any]:
    found = read(text or "{}")
    return found if isinstance(found, dict) else {"answer": found}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else dumps(value).decode()
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} … ({len(text):,} characters)"


async def sweep(request: web.Request) -> web.Response:
    """``/sweep/FOLDER``: the curve over its setting, and a line for each job."""
    site = request.app[SITE]
    name = request.match_info["run"]
    folder = site.folder(name, "")
    if folder is None or not is_sweep(folder):
        raise web.HTTPNotFound(text=f"There is no sweep {name} below {site.outputs}.\n")
    try:
        picture = await site.in_thread(site.sweep, folder)
    except InfermeshError as error:
        return problem(request, "This sweep cannot be shown", error)

    def job_link(number: str) -> str:
        job = f"{name}/{number}"
        return link("overview", job) if site.folder(job) is not None else ""

    return html(request, "sweep", sweep_pages.charts(picture), name=name, picture=picture, job_link=job_link)
