"""The sinks of a declaration: checked before anything is sent, written when the run ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from infermesh.config.schema import SinkConfig
from infermesh.errors import ConfigError, StoreError
from infermesh.query.export import WrittenFile, export, file_format
from infermesh.query.table_query import TableQuery, table_query
from infermesh.store.ingest import row_columns
from infermesh.store.schema import quoted


@dataclass(slots=True)
class SinkReport:
    """What became of the sinks: the files, and a line for each that could not be written."""

    written: list[WrittenFile] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def check_sinks(connection: duckdb.DuckDBPyConnection, sinks: Mapping[str, SinkConfig]) -> None:
    """Check every sink against the tables that are there.

    Raises
    ------
    ConfigError
        A sink's path, table, columns or condition is wrong; the message has a line for each such sink.
    """
    problems: list[str] = []
    paths: dict[str, str] = {}
    for name, sink in sinks.items():
        if (other := paths.setdefault(sink.path, name)) != name:
            problems.append(f"sinks.{name}.path: sinks.{other} writes '{sink.path}' already. Give it another name.")
        try:
            sink_query(connection, name, sink)
            file_format(Path(sink.path))
        except ConfigError as error:
            problems.append(_labelled(f"sinks.{name}.path", error))
    if problems:
        raise ConfigError("\n".join(problems))


def write_sinks(
    connection: duckdb.DuckDBPyConnection, sinks: Mapping[str, SinkConfig], folder: Path, place: Path
) -> SinkReport:
    """Write every sink's file; one that cannot be written does not keep the others from it.

    Parameters
    ----------
    folder
        What relative paths are relative to: the run's.
    place
        The same, absolute: a function may have changed the working directory.
    """
    report = SinkReport()
    for name, sink in sinks.items():
        path, target = (base / os.path.expanduser(sink.path) for base in (folder, place))
        try:
            rows = export(connection, sink_query(connection, name, sink), target)
            report.written.append(WrittenFile(path, rows, target.stat().st_size))
        except (ConfigError, StoreError, OSError) as error:
            report.errors.append(_labelled(f"sinks.{name}", error))
    return report


def sink_query(connection: duckdb.DuckDBPyConnection, name: str, sink: SinkConfig) -> TableQuery:
    """What a sink writes, as a query. Raises ``ConfigError``."""
    labels = (f"sinks.{name}.table", f"sinks.{name}.columns", f"sinks.{name}.where")
    if sink.columns == []:
        raise ConfigError(f"{labels[1]}: an empty list; leave it out for all columns")
    if sink.table.lower() in ("results", "source") and not row_columns(connection):
        # A source without rows has no columns: there is nothing to check against, and no row to write.
        select = ", ".join(f"NULL AS {quoted(column)}" for column in sink.columns or ["row_id"])
        return TableQuery(select, "source", "false", by_row=False)
    return table_query(connection, sink.table, sink.columns, sink.where, labels)


def _labelled(label: str, error: Exception) -> str:
    """The error with the sink's place in the declaration before it, if it does not name one itself."""
    text = str(error)
    return text if text.startswith("sinks.") else f"{label}: {text}"
