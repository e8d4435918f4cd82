"""Check what must hold of every run, whatever has happened to it, from its tables and files alone."""

from __future__ import annotations

import filecmp
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from infermesh.config.load import config_hash
from infermesh.config.references import taken
from infermesh.config.schema import SinkConfig
from infermesh.errors import ConfigError, InfermeshError, StoreError
from infermesh.exact_json import loads
from infermesh.hints import counted, one_line
from infermesh.query.export import export
from infermesh.query.reader import RunReader
from infermesh.query.sinks import sink_query
from infermesh.store.output_file import digest_of, read_record
from infermesh.store.schema import (
    SCHEMA_VERSION,
    SOURCE,
    literal,
    not_retired,
    quoted,
    redone,
    results_view,
)

__all__ = ["Finding", "verify"]

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes
    ----------
    about
        What: a table, a stage, a file.
    words
        What holds, or what is wrong with examples.
    """

    about: str
    ok: bool
    words: str


def verify(folder: Path) -> Iterator[Finding]:
    """Check a run.

    The tables are read whole, so that DuckDB checks the sum of each of their blocks. A run that is going on is checked
    as far as it has come; its files are left out.

    Raises
    ------
    StoreError
        The database cannot be opened, or is in use by a process that does not answer.
    """
    with RunReader(folder) as reader:
        try:
            if not reader.rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'run'"):
                yield Finding("run.duckdb", True, "it holds no run: its session ended before the source was loaded")
                return
            yield from _Tables(reader).findings()
            if reader.live:
                yield Finding("files", True, "left out: the run is going on")
                return
        except StoreError as error:
            yield Finding("run.duckdb", False, f"it cannot be read: {one_line(error, 300)}")
            return
        connection, _ = reader.prepare("SELECT 1")
        yield from _files(connection, folder)


class _Tables:
    """The checks of a run's tables."""

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._rows = reader.rows
        self._run: dict[str, Any] = {}

    def findings(self) -> Iterator[Finding]:
        names = "status, config, config_hash, schema_version, started_at"
        found = self._rows(f"SELECT {names} FROM run")
        if not found:
            yield Finding("run", False, "no rows, expected one")
            return
        self._run = dict(zip(names.split(", "), found[0], strict=True))
        yield from self._record()
        origins = self._origins()
        for origin, stages in origins.items():
            yield self._rows_once(origin)
            for stage in stages:
                yield from self._stage(stage, origin, stages)
        yield from self._attempts(origins)
        yield from self._end(origins)

    def _record(self) -> Iterator[Finding]:
        """The run's own row: one, and its declaration unchanged."""
        ((rows,),) = self._rows("SELECT count(*) FROM run")
        wrong = [f"{counted(rows, 'row')}, expected one"] if rows != 1 else []
        if self._run["schema_version"] > SCHEMA_VERSION:
            wrong.append(f"schema {self._run['schema_version']}, known up to {SCHEMA_VERSION}")
        if config_hash(loads(self._run["config"])) != self._run["config_hash"]:
            wrong.append("its declaration is not the one that config_hash was made of")
        yield _finding("run", wrong, "one, with the declaration that it was made with")

    def _origins(self) -> dict[str, list[str]]:
        """``source`` and each sql stage → the stages over its rows."""
        named = list(dict.fromkeys(name for (name,) in self._rows("SELECT stage FROM progress")))
        tables = f"({', '.join(map(literal, [SOURCE, *named]))})"
        keyed = self._rows(
            f"SELECT table_name FROM duckdb_columns() WHERE column_name = 'row_key' AND table_name IN {tables}"
        )
        found: dict[str, list[str]] = {}
        for origin in sorted({name for (name,) in keyed} & {SOURCE, *named}, key=lambda name: name != SOURCE):
            columns = {row[0] for row in self._rows(f"DESCRIBE {quoted(results_view(origin))}")}
            found[origin] = [name for name in named if name not in found and f"{name}_finished_at" in columns]
        return found

    def _rows_once(self, origin: str) -> Finding:
        table = quoted(origin)
        wrong = [
            *self._such(f"SELECT row_id FROM {table} GROUP BY ALL HAVING count(*) > 1", "there twice"),
            *self._such(
                f"SELECT any_value(row_id) FROM {table} GROUP BY row_key HAVING count(*) > 1",
                "their row_key is there twice",
            ),
            *self._such(f"SELECT row_id FROM {table} WHERE row_id IS NULL OR row_key IS NULL", "no key"),
        ]
        ((rows, _),) = self._rows(f"SELECT count(*), bit_xor(hash(t)) FROM {table} t")  # reads every block
        return _finding(origin, wrong, f"{counted(rows, 'row')}, each once")

    def _stage(self, stage: str, origin: str, beside: Sequence[str]) -> Iterator[Finding]:
        table, rows = quoted(stage), quoted(origin)
        checks = {
            "there twice": "GROUP BY ALL HAVING count(*) > 1",
            f"not among those of {origin}": f"WHERE row_id NOT IN (SELECT row_id FROM {rows})",
            "no known status": "WHERE status IS NULL OR status NOT IN ('done', 'error', 'skipped')",
            "done, and an error": "WHERE status = 'done' AND coalesce(error_type, error) IS NOT NULL",
            "failed without an error": "WHERE status = 'error' AND (error_type IS NULL OR error IS NULL)",
            "no time": "WHERE finished_at IS NULL",
            "answered by no request": "WHERE status = 'done' AND reused_from IS NULL AND attempts < 1",
            "an answer without request_key": (
                f"WHERE status = 'done' AND request_key IS NULL AND row_id NOT IN (SELECT row_id FROM retired "
                f"WHERE origin = {literal(origin)})"
            ),
        }
        wrong = [
            line
            for words, condition in checks.items()
            for line in self._such(f"SELECT row_id FROM {table} {condition}", words)
        ]
        others = " OR ".join(
            f"EXISTS (SELECT 1 FROM {quoted(other)} o WHERE o.row_id = s.row_id AND o.status <> 'done')"
            for other in beside
            if other != stage
        )
        if self._run["status"] in ("done", "failed_rows"):
            wrong += self._such(
                f"SELECT row_id FROM {table} s WHERE error_type = 'upstream' AND {not_retired(origin)} AND NOT "
                f"({others or 'false'})",
                "skipped for the failure of a stage in which they have not failed",
            )
        totals = self._rows(f"SELECT count(*), count(*) FILTER (status = 'done'), bit_xor(hash(s)) FROM {table} s")
        settled, done, _ = totals[0]
        words = f"{counted(settled, 'row has', 'rows have')} settled, {done} of them done, each once"
        yield _finding(stage, wrong, words)

    def _attempts(self, origins: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
        """Requests against the states that they led to. A request is stored before its state."""
        wrong = self._such(
            "SELECT row_id FROM attempts GROUP BY stage, row_id, attempt, deployment, started_at HAVING count(*) > 1",
            "there twice",
            "request",
        )
        for origin, stages in origins.items():
            for stage in stages:
                mine = f"(SELECT row_id, count(*) AS n FROM attempts WHERE stage = {literal(stage)} GROUP BY row_id)"
                wrong += [
                    f"{stage}: {line}"
                    for line in self._such(
                        f"SELECT row_id FROM {mine} WHERE row_id NOT IN (SELECT row_id FROM {quoted(origin)})",
                        "of no row",
                        "request",
                    )
                ]
                own = "s.reused_from IS NULL AND s.attempts > 0"
                ((together, sent, needed),) = self._rows(
                    "SELECT count(*) FILTER (request_rows > 1), coalesce(sum(greatest(request_rows, 1)), 0), (SELECT "
                    f"count(*) FROM {quoted(stage)} s WHERE {own}) FROM attempts WHERE stage = {literal(stage)}"
                )
                if sent < needed:
                    went = counted(needed, "row was", "rows were")
                    wrong.append(f"{stage}: {went} sent, by requests for {counted(sent, 'row')}")
                if not together:
                    wrong += [
                        f"{stage}: {line}"
                        for line in self._such(
                            f"SELECT s.row_id FROM {quoted(stage)} s LEFT JOIN {mine} a ON a.row_id = s.row_id "
                            f"WHERE {own} AND coalesce(a.n, 0) < s.attempts",
                            "fewer requests in attempts than they say",
                        )
                    ]
        ((rows, _),) = self._rows("SELECT count(*), bit_xor(hash(t)) FROM attempts t")
        yield _finding("attempts", wrong, f"{counted(rows, 'request')}, each once and of a row")

    def _end(self, origins: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
        """What the run says of itself against what its tables say."""
        counts: dict[str, int] = {}
        for status, rows in self._rows("SELECT status, sum(rows)::BIGINT FROM progress GROUP BY status"):
            counts[status] = int(rows)
        status = self._run["status"]
        pending, failed = counts.get("pending", 0), counts.get("error", 0)
        marked = self._marked(origins)
        unsettled = f"{counted(pending, 'row is', 'rows are')} pending and {counted(failed, 'has', 'have')} failed"
        wrong = [f"{counted(rows, 'row')} {name}" for name, rows in counts.items() if rows < 0]
        if status == "done" and (pending or failed):
            wrong.append(f"it says done, but {unsettled}")
        if status == "failed_rows" and (pending != marked or not failed + marked):
            wrong.append(f"it says failed_rows, but {unsettled}")
        sessions = self._rows("SELECT session, status, finished_at IS NULL FROM sessions ORDER BY session")
        if [number for number, *_ in sessions] != list(range(1, len(sessions) + 1)):
            wrong.append("its sessions are not numbered from 1")
        elif sessions and not self._reader.live and sessions[-1][1] != status:
            wrong.append(f"it says {status}, its last session {sessions[-1][1]}")
        listed = ", ".join(f"{rows} {name}" for name, rows in sorted(counts.items()) if rows) or "no rows"
        yield _finding("status", wrong, f"{status}: {listed}")

    def _marked(self, origins: Mapping[str, Sequence[str]]) -> int:
        """How many rows keep the answer that they had, and are still to be done again."""
        if not self._rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'redo_rows'"):
            return 0
        return sum(
            int(rows)
            for origin, stages in origins.items()
            for stage in stages
            for (rows,) in self._rows(
                f"SELECT count(*) FROM {quoted(stage)} s WHERE {redone(stage, 's')} AND {not_retired(origin)}"
            )
        )

    def _such(self, sql: str, words: str, noun: str = "row") -> list[str]:
        """A line if the query has rows: what is the matter with them, how many, and some of their row_ids."""
        ((count, some),) = self._rows(
            f"SELECT count(*), list(row_id ORDER BY row_id)[:{_EXAMPLES}] FROM ({sql}) t(row_id)"
        )
        return [f"{words}: {counted(count, noun)}, row_id {', '.join(map(str, some))}"] if count else []


def _finding(about: str, wrong: Sequence[str], words: str) -> Finding:
    return Finding(about, not wrong, "; ".join(wrong) if wrong else words)


def _files(connection: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[Finding]:
    """The files that the run wrote, against its tables."""
    record = read_record(connection)
    if record is not None:
        known = [(record.bytes, record.digest), (record.next_bytes, record.next_digest)]
        wrong = _unlike(_found(Path(record.path), connection, folder), known)
        yield _finding(record.path, wrong, "as the checkpoint has recorded it")
        return
    row = connection.execute("SELECT status, config FROM run").fetchone()
    if row is None or row[0] in ("running", "interrupted", "waiting", "crashed"):
        return
    for name, written in (loads(row[1]).get("sinks") or {}).items():
        try:
            sink = SinkConfig.model_validate(taken(written, os.environ)[0])
        except (ConfigError, ValueError) as error:  # a variable is not set here, or another version wrote it
            yield Finding(f"sinks.{name}", True, f"left out: {one_line(error, 300)}")
        else:
            yield _sink(connection, folder, name, sink)


def _sink(connection: duckdb.DuckDBPyConnection, folder: Path, name: str, sink: SinkConfig) -> Finding:
    """A sink's file against a new one from the same tables."""
    path = folder / os.path.expanduser(sink.path)
    about = f"sinks.{name}"
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        return Finding(about, False, f"{path} is {what}; infermesh export writes it anew")
    with tempfile.TemporaryDirectory(prefix="infermesh-verify-") as place:
        again = Path(place) / path.name
        try:
            rows = export(connection, sink_query(connection, name, sink), again)
        except InfermeshError as error:
            return Finding(about, False, one_line(error, 300))
        if not filecmp.cmp(path, again, shallow=False):
            return Finding(about, False, f"{path} differs from the tables: it was edited, or is another session's")
    return Finding(about, True, f"{path}: {counted(rows, 'row')}, as in the tables")


def _found(path: Path, connection: duckdb.DuckDBPyConnection, folder: Path) -> Path:
    """The output file of a command: its path is relative to where that ran, if it is not beside the checkpoint."""
    row = connection.execute("SELECT roots FROM run").fetchone()
    roots = [] if row is None else loads(row[0])
    places = [path, folder.parent / path.name, *(Path(root) / path for root in roots)]
    return next((place for place in places if place.exists()), path)


def _unlike(path: Path, known: Sequence[tuple[int | None, str | None]]) -> list[str]:
    """What is wrong with a file of which size and digest are known. It may be longer: the end of it is not recorded."""
    if known[0] == (0, ""):
        return []  # nothing was written yet
    if not path.exists():
        return ["it is not there; the same command with --resume writes it anew"]
    for size, digest in known:
        if size is not None and digest_of(path, size) == (size, digest):
            return []
    return ["it is not what was written: it was edited or cut; the same command with --resume writes it anew"]
