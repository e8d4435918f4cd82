"""A page of a run's rows, filtered and sorted by the database: first the numbers of its rows, then what they hold.

No row is passed over one by one: a page begins behind the last row of the one before it (keyset paging), so the last
page of a million rows costs what the first does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infermesh.errors import StoreError
from infermesh.exact_json import dumps, loads
from infermesh.hints import nearest
from infermesh.query.closed_run import ClosedRun
from infermesh.query.row_values import answer_columns, column_kinds, origins, rows_of, shown_columns
from infermesh.store.schema import AFTER_OUTPUTS, SOURCE, literal, not_retired, quoted, results_view

__all__ = ["MOST_COUNTED", "STATUSES", "Asked", "RowPage", "read_page"]

STATUSES = ("done", "error", "skipped", "pending")
MOST_COUNTED = 10_000
PAGE = 50
CUT = 300  # characters of a value
TIME_S = 5.0
_SORTED_BY = 200  # characters of a text
_SHORT = re.compile(r"(?:U?(?:TINY|SMALL|BIG|HUGE)?INT(?:EGER)?|DOUBLE|FLOAT|DECIMAL\(.*\)|BOOLEAN|DATE|TIME.*)\Z")
SORTABLE = ("service_s", "queue_s", "attempts", "prompt_tokens", "completion_tokens", "cost_usd", "finished_at")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rows, and in which order.

    Attributes
    ----------
    origin
        ``source``, or the sql stage whose rows they are.
    statuses
        Stage → one of :data:`STATUSES`.
    kinds
        Stage → an ``error_type``.
    text
        A text that one of the shown values holds, in whatever case; empty: any.
    where
        An SQL condition on the columns of the view of results; empty: none.
    sort
        A column of the origin, or ``stage.column`` with one of :data:`SORTABLE`; empty: the row's number.
    after
        Where the page begins: :attr:`RowPage.next` of the page before.
    """

    origin: str = SOURCE
    statuses: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    where: str = ""
    sort: str = ""
    descending: bool = False
    after: str = ""


@dataclass(frozen=True, slots=True)
class RowPage:
    """A page of rows.

    Attributes
    ----------
    origin, columns, stages, rows, hidden
        As of :class:`~infermesh.query.overview.SampledRows`.
    count
        How many rows there are on all pages; at most :data:`MOST_COUNTED` and one more where there is a condition.
    next
        Where the next page begins; empty if this is the last.
    origins
        Whose rows there are, and the stages over each.
    sorts
        What the rows can be sorted by.
    """

    origin: str
    columns: list[str]
    stages: dict[str, list[str]]
    rows: list[tuple[Any, ...]]
    hidden: int
    count: int
    next: str
    origins: dict[str, list[str]]
    sorts: list[str]


def read_page(run: ClosedRun, asked: Asked) -> RowPage:
    """Read a page.

    Raises
    ------
    StoreError
        What is asked for is not there, the condition is wrong, or it takes longer than five seconds.
    """
    order = list(dict.fromkeys(stage for (stage,) in run.rows("SELECT stage FROM progress")))
    over = origins(run, order)
    if asked.origin not in over:
        raise StoreError(f"no rows '{asked.origin}'.{nearest(asked.origin, list(over))}")
    stages = over[asked.origin]
    kinds = column_kinds(run, asked.origin)
    columns, hidden = shown_columns(kinds)
    answers = {stage: answer_columns(run, stage) for stage in stages}
    sorts = [*columns, *(f"{stage}.{column}" for stage in stages for column in SORTABLE)]
    query = _Query(asked, stages, columns, answers, _sorting(asked, stages, kinds, sorts))
    found, count = query.keys(run)
    return RowPage(
        asked.origin,
        columns,
        answers,
        rows_of(run, asked.origin, columns, answers, [row for row, _ in found[:PAGE]], CUT),
        hidden,
        count,
        _token(*found[PAGE - 1], count) if len(found) > PAGE else "",
        over,
        sorts,
    )


@dataclass(frozen=True, slots=True)
class _Sorting:
    """By which column: of the origin (``s``) or of a stage; and its type."""

    alias: str
    column: str
    kind_of_column: str

    @property
    def value(self) -> str:
        column = f"{self.alias}.{quoted(self.column)}"
        return column if self.plain else f"left({column}::VARCHAR, {_SORTED_BY})"

    @property
    def plain(self) -> bool:
        """Whether a value is short: others are sorted by their beginning, which has to fit into an address."""
        return _SHORT.match(self.kind_of_column) is not None

    @property
    def kind(self) -> str:
        """The type of what is sorted by."""
        return self.kind_of_column if self.plain else "VARCHAR"


def _sorting(asked: Asked, stages: list[str], kinds: Mapping[str, str], sorts: list[str]) -> _Sorting | None:
    """``None``: by the row's number."""
    if not asked.sort:
        return None
    if asked.sort not in sorts:
        raise StoreError(f"rows cannot be sorted by '{asked.sort}'.{nearest(asked.sort, sorts)}")
    if asked.sort in kinds:
        return _Sorting("s", asked.sort, kinds[asked.sort])
    stage, _, column = asked.sort.rpartition(".")
    (kind,) = [each.type for each in AFTER_OUTPUTS if each.name == column]
    return _Sorting(f"t{stages.index(stage)}", column, kind)


class _Query:
    """The queries for the numbers of a page's rows. ``s`` are the origin's rows, ``t0``, ``t1`` … the stages'."""

    def __init__(
        self,
        asked: Asked,
        stages: list[str],
        columns: list[str],
        answers: Mapping[str, list[str]],
        sorting: _Sorting | None,
    ) -> None:
        self._asked = asked
        self._stages = stages
        self._sorting = sorting
        self._needed: set[str] = set()  # aliases
        self._conditions = [not_retired(asked.origin), *self._states(), *self._texts(columns, answers)]
        self._rows = quoted(asked.origin)
        if asked.where.strip():
            meeting = f"(SELECT row_id FROM {quoted(results_view(asked.origin))} WHERE (\n{asked.where}\n))"
            if sorting is None and not asked.text:  # nothing else is asked of the origin's columns
                self._rows = meeting
            else:
                self._conditions.append(f"s.row_id IN {meeting}")
        self._all = len(self._conditions) == 1 and not asked.where.strip()

    def keys(self, run: ClosedRun) -> tuple[list[tuple[int, str | None]], int]:
        """Number and value of the rows of a page and of one more; and how many there are on all pages.

        The count is exact where there is no condition, else up to :data:`MOST_COUNTED` and one. It is counted once, and
        goes from page to page.
        """
        last, row, count = _begins(self._asked.after)
        behind = [] if row is None else [f"s.row_id {'<' if self._asked.descending else '>'} {row}"]
        order = f"s.row_id {'DESC' if self._asked.descending else 'ASC'}"
        if self._sorting is not None:
            return self._sorted_keys(run, last, row), self._count(run) if count is None else count
        if count is None and not self._all:  # looked for once, for the page and for the count
            found = self._ask(run, "NULL", self._tables(), behind, order, MOST_COUNTED + 1)
            return found[: PAGE + 1], len(found)
        found = self._ask(run, "NULL", self._tables(), behind, order, PAGE + 1)
        return found, self._count(run) if count is None else count

    def _sorted_keys(self, run: ClosedRun, last: str | None, row: int | None) -> list[tuple[int, str | None]]:
        assert self._sorting is not None
        value, kind, most = self._sorting.value, self._sorting.kind, PAGE + 1
        found: list[tuple[int, str | None]] = []
        if row is None or last is not None:
            behind = [f"{value} IS NOT NULL"]
            if row is not None:
                there = f"CAST({literal(last or '')} AS {kind})"
                further = "<" if self._asked.descending else ">"
                behind.append(f"({value} {further} {there} OR ({value} = {there} AND s.row_id > {row}))")
            by = f"{value} {'DESC' if self._asked.descending else 'ASC'}, s.row_id"
            found = self._ask(run, value, self._tables(sorted_first=True), behind, by, most)
            row = None
        if len(found) < most:  # rows without a value come last
            behind = [f"{value} IS NULL", *([] if row is None else [f"s.row_id > {row}"])]
            found += self._ask(run, "NULL", self._tables(), behind, "s.row_id", most - len(found))
        return found

    def _count(self, run: ClosedRun) -> int:
        where = " AND ".join(self._conditions)
        if self._all:
            ((count,),) = run.rows(f"SELECT count(*) FROM {quoted(self._asked.origin)} s WHERE {where}")
        else:
            some = f"SELECT 1 FROM {self._tables(but_sorting=True)} WHERE {where} LIMIT {MOST_COUNTED + 1}"
            ((count,),) = run.rows(f"SELECT count(*) FROM ({some})", timeout=TIME_S)
        return int(count)

    def _ask(
        self, run: ClosedRun, value: str, tables: str, also: list[str], by: str, most: int
    ) -> list[tuple[int, str | None]]:
        where = " AND ".join([*self._conditions, *also])
        keys = f"SELECT s.row_id, {value} AS value FROM {tables} WHERE {where} ORDER BY {by} LIMIT {most}"
        # Only these values are made texts, and not those of all rows.
        found = run.rows(f"SELECT row_id, value::VARCHAR FROM ({keys})", timeout=TIME_S)
        return [(row, value) for row, value in found]

    def _tables(self, *, sorted_first: bool = False, but_sorting: bool = False) -> str:
        """A FROM clause of the tables that are needed.

        Where the sorting's own stage stands in for the origin (a row that has a value is there), a million rows need
        not be joined.
        """
        by = self._sorting.alias if self._sorting is not None else "s"
        needed = self._needed | ({by} if not but_sorting else set())
        stages = [(f"t{place}", stage) for place, stage in enumerate(self._stages) if f"t{place}" in needed]
        if sorted_first and by != "s" and not self._asked.text and needed == {by}:
            ((_, stage),) = stages
            return f"{quoted(stage)} {by}, LATERAL (SELECT {by}.row_id) s(row_id)"
        joins = "".join(f" LEFT JOIN {quoted(stage)} {alias} ON {alias}.row_id = s.row_id" for alias, stage in stages)
        return f"{self._rows} s{joins}"

    def _states(self) -> list[str]:
        found = []
        for of, column, names in (
            (self._asked.statuses, "status", STATUSES),
            (self._asked.kinds, "error_type", None),
        ):
            for stage, wanted in of.items():
                if stage not in self._stages:
                    near = nearest(stage, self._stages)
                    raise StoreError(f"no stage '{stage}' over the rows of {self._asked.origin}.{near}")
                if names is not None and wanted not in names:
                    raise StoreError(f"no status '{wanted}'.{nearest(wanted, list(names))}")
                alias = f"t{self._stages.index(stage)}"
                self._needed.add(alias)
                pending = wanted == "pending" and names is not None
                found.append(f"{alias}.{column} {'IS NULL' if pending else f'= {literal(wanted)}'}")
        return found

    def _texts(self, columns: list[str], answers: Mapping[str, list[str]]) -> list[str]:
        if not self._asked.text:
            return []
        places = [f"s.{quoted(column)}" for column in columns]
        for place, stage in enumerate(self._stages):
            self._needed.add(f"t{place}")
            places += [f"t{place}.error", *(f"t{place}.{quoted(column)}" for column in answers[stage])]
        sought = f"lower({literal(self._asked.text)})"
        return [f"({' OR '.join(f'contains(lower({place}::VARCHAR), {sought})' for place in places)})"]


def _begins(after: str) -> tuple[str | None, int | None, int | None]:
    """Value and number of the last row of the page before, and the count; ``None`` for the first page."""
    if not after:
        return None, None, None
    try:
        value, row, count = loads(base64.urlsafe_b64decode(after))
        return (None if value is None else str(value)), int(row), int(count)
    except (ValueError, TypeError, binascii.Error):
        raise StoreError(
            "the row that this address begins at cannot be read from it: go back to the first page"
        ) from None


def _token(row: int, value: str | None, count: int) -> str:
    return base64.urlsafe_b64encode(dumps([value, row, count])).decode()
