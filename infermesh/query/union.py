"""Many runs in one database: each is attached for reading, and a view a table name unions them.

The union goes by column name. ``run_id`` and what was set otherwise in one run than in another come first. The tables
that a query names are copied from a run that goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import orjson
import yaml

from infermesh.errors import StoreError
from infermesh.query.attached import LiveTables, attach
from infermesh.runtime.openfiles import SPARE, allow_files
from infermesh.store.schema import SETTINGS, quoted

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_FLOATS = ("FLOAT", "DOUBLE")
_CATALOG_WORDS = re.compile(r"\b(show|describe|pragma|information_schema|duckdb_\w+|pg_catalog)\b", re.IGNORECASE)


@dataclass(slots=True)
class AttachedRun:
    """One run of the union; ``settings`` are the overrides that it was started with, by dotted key."""

    catalog: str
    folder: Path
    run_id: str = ""
    experiment: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    config: Any = None
    live: LiveTables | None = None

    def setting(self, key: str) -> Any:
        """What a key was in this run: the override's value, else that of the composed config."""
        if key in self.settings:
            return self.settings[key]
        node = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return None if isinstance(node, Mapping) else node


class RunUnion:
    """Runs' databases as one, for reading; a context manager that closes it.

    Parameters
    ----------
    folders
        The runs' folders.
    database
        What a run's database is called in its folder.

    Attributes
    ----------
    runs
        Those that could be opened, in the order of their start.
    left_out
        A line for each of the others: which, and why.
    """

    def __init__(self, folders: Iterable[Path], database: str) -> None:
        self.connection = in_memory()
        self.runs: list[AttachedRun] = []
        self.left_out: list[str] = []
        folders = list(folders)
        allow_files(len(folders) + SPARE)
        for number, folder in enumerate(folders):
            run = AttachedRun(f"run_{number}", folder)
            try:
                run.live = attach(self.connection, folder / database, run.catalog)
            except StoreError as error:
                self.left_out.append(str(error))
            else:
                self.runs.append(run)
        self._live = [run.live for run in self.runs if run.live is not None]
        self._columns = self._read_columns()
        self._fill(["run"])
        self._read_runs()
        self.labels = self._find_labels()
        self._made: set[str] = set()

    @property
    def tables(self) -> list[str]:
        """Every table and view that a run has."""
        return sorted({table for columns in self._columns.values() for table in columns})

    def prepare(self, query: str) -> None:
        """Make the views that a query can mean: with hundreds of runs each of them takes a while."""
        lowered = query.lower()
        everything = _CATALOG_WORDS.search(query) is not None
        self._fill(table for table in self.tables if table in lowered)
        self._make(table for table in self.tables if everything or table in lowered)

    def make_views(self) -> None:
        """Make every view."""
        self._fill(self.tables)
        self._make(self.tables)

    def close(self) -> None:
        """Close all databases."""
        self.connection.close()
        for live in self._live:
            live.close()

    def __enter__(self) -> RunUnion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, tables: Iterable[str]) -> None:
        """Copy these tables of the runs that go on. One that does not give them is left out."""
        tables = list(tables)
        for run in list(self.runs):
            if run.live is None:
                continue
            try:
                run.live.fill(tables)
            except StoreError as error:
                self.left_out.append(f"{run.folder}, which goes on: {error}")
                self.runs.remove(run)
                del self._columns[run.catalog]

    def _read_columns(self) -> dict[str, dict[str, dict[str, str]]]:
        """Catalog → table → column → type; tables in lower case."""
        found: dict[str, dict[str, dict[str, str]]] = {run.catalog: {} for run in self.runs}
        rows = self.connection.execute(
            "SELECT database_name, lower(table_name), column_name, data_type FROM duckdb_columns() "
            "WHERE NOT internal ORDER BY database_name, table_name, column_index"
        ).fetchall()
        for catalog, table, column, kind in rows:
            if catalog in found:
                found[catalog].setdefault(table, {})[column] = kind
        return found

    def _read_runs(self) -> None:
        """Take in each run's identity; those that never began, and second copies of a run, are left out."""
        started: dict[str, Any] = {}
        seen: dict[str, Path] = {}
        for run in list(self.runs):
            columns = self._columns[run.catalog].get("run", {})
            overrides = "overrides" if "overrides" in columns else "NULL"
            row = None
            if columns:
                row = self.connection.execute(
                    f"SELECT run_id, config, {overrides}, started_at, experiment FROM {run.catalog}.run"
                ).fetchone()
            if row is None:
                problem = "holds no rows yet: it ended before its source was loaded. Run it again, or delete it."
            elif row[0] in seen:
                problem = f"is a copy of {seen[row[0]]}: it has the same run_id. Delete one of them."
            else:
                run.run_id, started[run.catalog] = row[0], row[3]
                run.config, run.settings = _json(row[1]), _settings(_json(row[2]) or [])
                run.experiment = row[4]
                seen[run.run_id] = run.folder
                continue
            self.left_out.append(f"{run.folder} {problem}")
            self.runs.remove(run)
            del self._columns[run.catalog]
        self.runs.sort(key=lambda run: (str(started[run.catalog]), run.run_id))

    def _find_labels(self) -> dict[str, tuple[str, str]]:
        """Setting → its column's name and type, for those that differ between the runs."""
        several = len({run.experiment for run in self.runs}) > 1
        if several:  # whatever chose them
            for run in self.runs:
                run.settings["experiment"] = run.experiment
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        differing = [key for key in keys if len({_encoded(run.setting(key)) for run in self.runs}) > 1]
        taken = {name for (name,) in self.connection.execute(_RESERVED_WORDS).fetchall()}
        taken |= {"run_id", "folder"}
        taken |= {
            column.lower()
            for tables in self._columns.values()
            for table, columns in tables.items()
            for column in columns
            if not (several and (table, column) == ("run", "experiment"))  # the same thing
        }
        names = label_names(differing, taken)
        return {key: (names[key], _sql_type([run.setting(key) for run in self.runs])) for key in differing}

    def _make(self, tables: Iterable[str]) -> None:
        for table in tables:
            if table not in self._made:
                self._made.add(table)
                self.connection.execute(f"CREATE VIEW {quoted(table)} AS {self._union(table)}")

    def _union(self, table: str) -> str:
        runs = [run for run in self.runs if table in self._columns[run.catalog]]
        present = [self._columns[run.catalog][table] for run in runs]
        types: dict[str, list[str]] = {}
        for columns in present:
            for column, kind in columns.items():
                types.setdefault(column.lower(), []).append(kind)
        common = {column: _common_type(kinds) for column, kinds in types.items()}
        renamed = _renamed("run_id", types) if table != "run" else None
        parts = [self._select(run, table, columns, common, renamed) for run, columns in zip(runs, present, strict=True)]
        return " UNION ALL BY NAME ".join(parts)

    def _select(
        self, run: AttachedRun, table: str, columns: Mapping[str, str], common: Mapping[str, str], renamed: str | None
    ) -> str:
        first = [f"{_literal(run.run_id, 'VARCHAR')} AS run_id"]
        first += [f"{_literal(run.setting(key), kind)} AS {quoted(name)}" for key, (name, kind) in self.labels.items()]
        own = next((column for column in columns if column.lower() == "run_id"), None)
        star = "*"
        shown = {"run_id", *(name for name, _ in self.labels.values())}
        if table == "run":
            star += f" EXCLUDE ({', '.join(quoted(column) for column in columns if column in shown)})"
        casts = [
            f"{_cast(quoted(column), kind, common[column.lower()])} AS {quoted(column)}"
            for column, kind in columns.items()
            if kind != common[column.lower()] and not (table == "run" and column in shown)
        ]
        if casts:
            star += f" REPLACE ({', '.join(casts)})"
        if table != "run" and own is not None and renamed is not None:
            star += f" RENAME ({quoted(own)} AS {quoted(renamed)})"
        last = f", {_literal(str(run.folder), 'VARCHAR')} AS folder" if table == "run" else ""
        return f"SELECT {', '.join(first)}, {star}{last} FROM {run.catalog}.{quoted(table)}"


_RESERVED_WORDS = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"


def in_memory() -> duckdb.DuckDBPyConnection:
    """A database of its own for queries over attached ones; what does not fit into memory spills to disk."""
    spill = Path(tempfile.gettempdir()) / f"infermesh-{os.getpid()}"
    return duckdb.connect(config={**SETTINGS, "temp_directory": str(spill)})


def label_names(keys: Sequence[str], taken: Iterable[str]) -> dict[str, str]:
    """Each dotted key's column: its shortest suffix that no other key shares and that is not taken (lower case)."""
    taken = set(taken)
    parts = {key: [part for part in re.split(r"\W+", key) if part] for key in keys}

    def suffix(key: str, length: int) -> str:
        return "_".join(parts[key][-length:])

    names: dict[str, str] = {}
    for key in keys:
        for length in range(1, len(parts[key]) + 1):
            name = suffix(key, length)
            shared = any(suffix(other, length).lower() == name.lower() for other in keys if other != key)
            if not shared and name.lower() not in taken:
                break
        else:
            name = _renamed("_".join(parts[key]), taken, "override")
        names[key] = name
        taken.add(name.lower())
    return names


def _renamed(name: str, taken: Iterable[str], prefix: str = "source") -> str:
    taken = set(taken)
    while name in ("run_id", "folder") or name.lower() in taken:
        name = f"{prefix}_{name}"
    return name


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra's overrides by key; one that takes something out (``~stages.a``) has the value ``removed``."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if key.startswith("~"):
            found[key.lstrip("~")] = "removed"
        elif equals:
            found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML takes 1e-3 for text
    return value


def _sql_type(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return "BIGINT"
    return "DOUBLE" if kinds and kinds <= {int, float} else "VARCHAR"


def _literal(value: Any, kind: str) -> str:
    if value is None:
        return f"NULL::{kind}"
    text = value if isinstance(value, str) else _encoded(value)
    return "'" + text.replace("'", "''") + f"'::{kind}"


def _encoded(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS).decode()


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


def _common_type(kinds: Sequence[str]) -> str:
    """A type that holds the values of all without loss of meaning."""
    found = set(kinds)
    if len(found) == 1:
        return kinds[0]
    if found <= {*_INTEGERS}:
        return max(found, key=_INTEGERS.index)
    if found <= {*_INTEGERS, *_FLOATS}:
        return "DOUBLE"
    return "JSON" if any(map(_is_nested, found)) else "VARCHAR"


def _is_nested(kind: str) -> bool:
    return kind == "JSON" or (kind.endswith(("]", ")")) and not kind.startswith("DECIMAL"))


def _cast(value: str, kind: str, common: str) -> str:
    if common == "JSON":
        return f"CASE WHEN {value} IS NOT NULL THEN to_json({value}) END"
    return f"CAST({value} AS {common})"
