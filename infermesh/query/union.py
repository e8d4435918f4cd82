"""Many runs as one database: each is attached for reading, and views of the tables' names unite their rows.

Columns are matched by name. Every view begins with ``run_id`` and with a column for each setting that differs between
the runs. Of a live run, the tables that a query names are copied.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.exact_json import loads
from infermesh.query.attached import LiveTables, attach
from infermesh.query.overrides import as_text, column_names, column_type, config_value, free_name, settings_of
from infermesh.runtime.openfiles import SPARE, allow_files
from infermesh.store.connection import open_duckdb
from infermesh.store.schema import literal, quoted

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_FLOATS = ("FLOAT", "DOUBLE")
# A query with one of these words may list the tables, so all views have to be there.
_LISTS_TABLES = re.compile(r"\b(show|describe|pragma|information_schema|duckdb_\w+|pg_catalog)\b", re.IGNORECASE)
_RESERVED_WORDS = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"

# Table, in lower case → column → type.
_Tables = dict[str, dict[str, str]]


@dataclass(slots=True)
class AttachedRun:
    """One run of the union.

    Attributes
    ----------
    catalog
        What its database is attached as.
    settings
        The values of the overrides that it was started with, by dotted key.
    config
        Its composed config.
    live
        The copies of its tables, if the run is live.
    tables
        Its tables and views.
    """

    catalog: str
    folder: Path
    run_id: str = ""
    experiment: str = ""
    started_at: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    config: Any = None
    live: LiveTables | None = None
    tables: _Tables = field(default_factory=dict)

    def setting(self, key: str) -> Any:
        """The value of a dotted key in this run: the override's, or else the composed config's."""
        return self.settings[key] if key in self.settings else config_value(self.config, key)

    def shown(self, key: str) -> str:
        """That value for people: texts as they are."""
        value = self.setting(key)
        return value if isinstance(value, str) else as_text(value)


@dataclass(frozen=True, slots=True)
class Label:
    """The column of a setting that differs between the runs: the dotted key, the column's name and its type."""

    key: str
    name: str
    type: str


class RunUnion:
    """Runs' databases as one, for reading; a context manager that closes them.

    Parameters
    ----------
    folders
        The runs' folders.
    database
        The name of a run's database in its folder.

    Attributes
    ----------
    connection
        Where queries run, after :meth:`prepare`.
    runs
        Those that could be opened, in the order of their start.
    left_out
        A line for each of the others: which run, and why.
    labels
        The settings that differ between the runs, and the columns that hold them.
    """

    def __init__(self, folders: Iterable[Path], database: str) -> None:
        self.connection = in_memory()
        self.left_out: list[str] = []
        self._live: list[LiveTables] = []
        self._made: set[str] = set()
        folders = list(folders)
        allow_files(len(folders) + SPARE)
        self.runs = self._attach(folders, database)
        self._read_tables()
        self._fill(["run"])
        self._identify()
        self.labels = self._find_labels()

    def prepare(self, query: str) -> None:
        """Make the views that a query may name. Making all of them takes a while where there are hundreds of runs."""
        lowered = query.lower()
        named = [table for table in self._tables() if table in lowered]
        self._fill(named)
        self._make(self._tables() if _LISTS_TABLES.search(query) else named)

    def make_views(self) -> None:
        """Make every view."""
        self._fill(self._tables())
        self._make(self._tables())

    def about(self, error: duckdb.Error) -> str:
        """What to say besides of a query that names a setting's key, but not its column; else nothing.

        A column has the shortest name that no other differing key shares, so it depends on the runs that are asked.
        """
        found = re.search(r'column "?([\w.]+?)"? not found', str(error))
        if found is None:
            return ""
        ending = f".{found[1].lower()}"
        meant = [f"{one.name} ({one.key})" for one in self.labels if f".{one.key.lower()}".endswith(ending)]
        return f". In these runs the setting {found[1]} is {' or '.join(meant)}" if meant else ""

    def close(self) -> None:
        """Close all databases."""
        self.connection.close()
        for live in self._live:
            live.close()

    def __enter__(self) -> RunUnion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tables(self) -> list[str]:
        return sorted({table for run in self.runs for table in run.tables})

    def _leave_out(self, run: AttachedRun, why: str) -> None:
        self.left_out.append(why)
        self.runs.remove(run)

    def _attach(self, folders: Sequence[Path], database: str) -> list[AttachedRun]:
        runs = []
        for number, folder in enumerate(folders):
            run = AttachedRun(f"run_{number}", folder)
            try:
                run.live = attach(self.connection, folder / database, run.catalog)
            except StoreError as error:
                self.left_out.append(str(error))
                continue
            if run.live is not None:
                self._live.append(run.live)
            runs.append(run)
        return runs

    def _read_tables(self) -> None:
        runs = {run.catalog: run for run in self.runs}
        rows = self.connection.execute(
            "SELECT database_name, lower(table_name), column_name, data_type FROM duckdb_columns() "
            "WHERE NOT internal ORDER BY database_name, table_name, column_index"
        ).fetchall()
        for catalog, table, column, kind in rows:
            if catalog in runs:
                runs[catalog].tables.setdefault(table, {})[column] = kind

    def _fill(self, tables: Iterable[str]) -> None:
        """Copy these tables from the live runs; a run that does not give them is left out."""
        tables = list(tables)
        for run in list(self.runs):
            if run.live is None:
                continue
            try:
                run.live.fill(tables)
            except StoreError as error:
                self._leave_out(run, f"{run.folder}, which goes on: {error}")

    def _identify(self) -> None:
        """Read what each run is. Those that never began, and second copies of a run, are left out."""
        seen: dict[str, Path] = {}
        for run in list(self.runs):
            row = self._run_row(run)
            if row is None:
                why = "holds no rows yet: it ended before its source was loaded. Run it again, or delete it."
                self._leave_out(run, f"{run.folder} {why}")
                continue
            run.run_id, config, overrides, started_at, run.experiment = row
            if run.run_id in seen:
                why = f"is a copy of {seen[run.run_id]}: it has the same run_id. Delete one of them."
                self._leave_out(run, f"{run.folder} {why}")
                continue
            seen[run.run_id] = run.folder
            run.started_at = str(started_at)
            run.config = None if config is None else loads(config)
            run.settings = {} if overrides is None else settings_of(loads(overrides) or [])
        self.runs.sort(key=lambda run: (run.started_at, run.run_id))

    def _run_row(self, run: AttachedRun) -> tuple[Any, ...] | None:
        columns = run.tables.get("run")
        if not columns:
            return None
        overrides = "overrides" if "overrides" in columns else "NULL"  # schema 1 has none
        return self.connection.execute(
            f"SELECT run_id, config, {overrides}, started_at, experiment FROM {run.catalog}.run"
        ).fetchone()

    def _find_labels(self) -> list[Label]:
        """The columns of the settings that differ between the runs."""
        several = len({run.experiment for run in self.runs}) > 1
        if several:  # say it, whichever override chose them
            for run in self.runs:
                run.settings["experiment"] = run.experiment
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        differing = [key for key in keys if len({as_text(run.setting(key)) for run in self.runs}) > 1]
        taken = {name for (name,) in self.connection.execute(_RESERVED_WORDS).fetchall()}
        taken |= {"run_id", "folder"}
        taken |= {
            column.lower()
            for run in self.runs
            for table, columns in run.tables.items()
            for column in columns
            if not (several and (table, column) == ("run", "experiment"))  # it is the same thing
        }
        return [
            Label(key, name, column_type([run.setting(key) for run in self.runs]))
            for key, name in column_names(differing, taken).items()
        ]

    def _make(self, tables: Iterable[str]) -> None:
        for table in tables:
            if table not in self._made:
                self._made.add(table)
                self.connection.execute(f"CREATE VIEW {quoted(table)} AS {self._view(table)}")

    def _view(self, table: str) -> str:
        """The rows of a table from all runs that have it."""
        runs = [run for run in self.runs if table in run.tables]
        types: dict[str, list[str]] = {}
        for run in runs:
            for column, kind in run.tables[table].items():
                types.setdefault(column.lower(), []).append(kind)
        common = {column: _common_type(kinds) for column, kinds in types.items()}
        for column, kinds in types.items():
            if common[column] == "DOUBLE" and self._rounds(runs, table, column, kinds):
                common[column] = "VARCHAR"
        select = self._run_table if table == "run" else self._user_table
        return " UNION ALL BY NAME ".join(select(run, table, common) for run in runs)

    def _rounds(self, runs: Sequence[AttachedRun], table: str, column: str, kinds: Sequence[str]) -> bool:
        """Whether a DOUBLE cannot hold an integer of the column exactly: one from 2**53 on."""
        if not {"BIGINT", "HUGEINT"} & set(kinds):
            return False
        for run in runs:
            name = next((name for name in run.tables[table] if name.lower() == column), None)
            if name is not None and run.tables[table][name] in ("BIGINT", "HUGEINT"):
                large = f"SELECT bool_or(abs({quoted(name)}::HUGEINT) > {2**53}) FROM {run.catalog}.{quoted(table)}"
                if self.connection.execute(large).fetchall()[0][0]:
                    return True
        return False

    def _run_table(self, run: AttachedRun, table: str, common: Mapping[str, str]) -> str:
        """The ``run`` table of one run: its columns, without those that stand in front, and the run's folder."""
        columns = run.tables[table]
        front = {"run_id", *(label.name for label in self.labels)}
        rest = {column: kind for column, kind in columns.items() if column not in front}
        without = ", ".join(quoted(column) for column in columns if column in front)
        star = f"* EXCLUDE ({without}){_casts(rest, common)}"
        folder = f"{literal(str(run.folder))}::VARCHAR AS folder"
        return f"SELECT {self._front(run)}, {star}, {folder} FROM {run.catalog}.{quoted(table)}"

    def _user_table(self, run: AttachedRun, table: str, common: Mapping[str, str]) -> str:
        """Any other table of one run; a column of the user's that is called ``run_id`` gets another name."""
        columns = run.tables[table]
        star = f"*{_casts(columns, common)}"
        own = next((column for column in columns if column.lower() == "run_id"), None)
        if own is not None:
            star += f" RENAME ({quoted(own)} AS {quoted(free_name('run_id', common, 'source'))})"
        return f"SELECT {self._front(run)}, {star} FROM {run.catalog}.{quoted(table)}"

    def _front(self, run: AttachedRun) -> str:
        """The columns that every view begins with."""
        values = [(run.run_id, "VARCHAR", "run_id")]
        values += [(run.setting(label.key), label.type, label.name) for label in self.labels]
        return ", ".join(f"{_constant(value, kind)} AS {quoted(name)}" for value, kind, name in values)


def in_memory() -> duckdb.DuckDBPyConnection:
    """A database in memory for queries over attached ones; what does not fit into memory spills to disk."""
    spill = Path(tempfile.gettempdir()) / f"infermesh-{os.getpid()}"
    return open_duckdb(config={"temp_directory": str(spill)})


def _constant(value: Any, kind: str) -> str:
    if value is None:
        return f"NULL::{kind}"
    return f"{literal(value if isinstance(value, str) else as_text(value))}::{kind}"


def _common_type(kinds: Sequence[str]) -> str:
    """A type that holds the values of all types, so that they keep their meaning."""
    found = set(kinds)
    if len(found) == 1:
        return kinds[0]
    if found <= {*_INTEGERS}:
        return max(found, key=_INTEGERS.index)
    if found <= {*_INTEGERS, *_FLOATS}:
        return "DOUBLE"  # the caller looks whether it holds the integers that there are
    return "JSON" if any(map(_is_nested, found)) else "VARCHAR"


def _is_nested(kind: str) -> bool:
    return kind == "JSON" or (kind.endswith(("]", ")")) and not kind.startswith("DECIMAL"))


def _casts(columns: Mapping[str, str], common: Mapping[str, str]) -> str:
    """A REPLACE of the columns whose type is not the common one."""
    casts = [
        f"{_cast(quoted(column), common[column.lower()])} AS {quoted(column)}"
        for column, kind in columns.items()
        if kind != common[column.lower()]
    ]
    return f" REPLACE ({', '.join(casts)})" if casts else ""


def _cast(value: str, common: str) -> str:
    if common == "JSON":
        return f"CASE WHEN {value} IS NOT NULL THEN to_json({value}) END"
    return f"CAST({value} AS {common})"
