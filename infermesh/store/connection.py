"""The one place that opens DuckDB: what holds for every connection, and what it means that a database is unusable."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import orjson

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from infermesh.errors import StoreError, StoreInUseError
from infermesh.hints import cure, one_line
from infermesh.store.schema import DATABASE, SETTINGS, literal, quoted

__all__ = [
    "DatabaseError",
    "check_log",
    "connect",
    "connect_to_write",
    "damage",
    "half_made",
    "in_words",
    "is_short_of_memory",
    "log_of",
    "open_duckdb",
    "shortened",
    "unusable",
]

DatabaseError = duckdb.Error
_READERS_S = 5.0  # a starting run waits so long for other processes that read the database

# What DuckDB says of a database that it cannot use. It has one class of errors for most of it, so its words decide.
# "different configuration" and "Unique file handle": this process has it open.
_IN_USE = ("Could not set lock on file", "different configuration than existing", "Unique file handle conflict")
_NO_LOCKS = tuple(os.strerror(number) for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))
_NEWER = ("storage version number", "storage version greater", "Failed to read WAL of version")
_BAD_LOG = ("Failure while replaying WAL",)
_DAMAGED = ("Corrupt database file",)
_DAMAGED_FILE = ("not a valid DuckDB database", "Could not read enough bytes")  # of the file that is named
_GAVE_UP = ("INTERNAL Error", "database has been invalidated")
_NO_ROOM = ("Out of Memory Error", "failed to pin block", "failed to allocate")
_HEADER = 4096  # bytes of each of the three headers before a database's blocks
_LOG_BEGINS = b"d\0be\0"  # the fields "type: version" and "version". DuckDB passes over a log that begins otherwise


def open_duckdb(
    path: str = ":memory:", config: Mapping[str, Any] | None = None, *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """Open a database, or one in memory. Its times with a zone are UTC's.

    So the same rows give the same answers, prompts and files on every machine.

    Raises
    ------
    duckdb.Error
        It cannot be opened.
    """
    connection = duckdb.connect(path, read_only=read_only, config={**SETTINGS, **(config or {})})
    # GLOBAL, since a cursor does not take the plain setting with it. In ``config`` DuckDB does not know it yet.
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    return connection


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Within the block, what DuckDB raises over a run's database becomes a ``StoreError`` that says what to do."""
    try:
        yield
    except duckdb.Error as error:
        raise unusable(path, error) from None


def connect(
    path: Path, config: Mapping[str, Any] | None = None, *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """Open a run's database.

    A file of no bytes, or with a part of its headers alone, is what a kill leaves that comes while the file is made. It
    is read as a database without tables, and made anew for writing.

    Raises
    ------
    StoreInUseError
        Another process, or this one, has it open.
    StoreError
        It is damaged, of a newer DuckDB, or the system refuses it; see :func:`unusable`.
    """
    if "?" in str(path) and not read_only:  # DuckDB puts its write-ahead log into a folder that is not there
        raise StoreError(f"{path}: DuckDB cannot write where a folder has a ? in its name. Rename it.")
    check_log(log_of(path))
    there = path.exists()
    try:
        try:
            return open_duckdb(str(path), config, read_only=read_only)
        except duckdb.Error:
            if not (there and _is_blank(path) and (read_only or _removed(path))):
                raise
            return open_duckdb() if read_only else open_duckdb(str(path), config)
    except duckdb.Error as error:
        problem = unusable(path, error, done="opened")
        if not (there or read_only or isinstance(problem, StoreInUseError)):
            path.unlink(missing_ok=True)  # what there was room for would look like a run
        raise problem from None


def check_log(log: Path) -> None:
    """Refuse a log whose beginning is damaged: its commits would be lost without a word."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        begins = file.read(len(_LOG_BEGINS))
        if not _LOG_BEGINS.startswith(begins):
            raise _bad_log(log, "it does not begin as a log of DuckDB does")


def _is_blank(path: Path) -> bool:
    """Whether the file has no bytes, or a part of its three headers alone, and no log beside it that may have some."""
    return path.is_file() and path.stat().st_size in (0, _HEADER, 2 * _HEADER) and not log_of(path).exists()


def _removed(path: Path) -> bool:
    """Remove a blank file, unless a process is about to fill it: that one holds its lock."""
    if fcntl is None:
        return False
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if blank := _is_blank(path):
            path.unlink()
    return blank


def log_of(path: Path) -> Path:
    """DuckDB's write-ahead log: what was committed since the database was last closed."""
    return path.with_name(f"{path.name}.wal")


def connect_to_write(path: Path, config: Mapping[str, Any], row_group: int) -> duckdb.DuckDBPyConnection:
    """Open for writing. Wait up to five seconds for processes that read it; do not wait for one that writes.

    DuckDB reads the log of a killed run, and merges it into the file, with all the memory that it may have: it cannot
    open a database whose log it has no room for.

    Parameters
    ----------
    config
        DuckDB's settings, without a memory limit: set it on the connection.
    row_group
        Rows in a group: see :func:`regroup`.
    """
    until = None
    while True:
        try:
            connection = connect(path, config)
            try:
                with in_words(path):
                    regroup(connection, path, row_group)
                _remove_spilled(path)
            except BaseException:
                connection.close()
                raise
            return connection
        except StoreInUseError as error:
            if until is None:
                # Readers share the file. If another process writes, this raises StoreInUseError too, with the same
                # message. Once is enough: it reads the log, which takes a second if it is long.
                connect(path, read_only=True).close()
                until = time.monotonic() + _READERS_S
            elif time.monotonic() > until:
                asks = "it is read again and again, or for long. End that process, then run this again"
                raise StoreInUseError(f"{str(error).partition(': a run')[0]}: {asks}.") from None
        time.sleep(0.02)


def _remove_spilled(path: Path) -> None:
    """Remove what killed processes had spilled to disk. While a file is open for writing, nobody else has it open."""
    folder = path.with_name(f"{path.name}.tmp")
    for file in folder.glob("duckdb_temp_*"):
        if not file.name.startswith(f"duckdb_temp_{os.getpid()}_"):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or it is in use
        folder.rmdir()


def regroup(connection: duckdb.DuckDBPyConnection, path: Path, rows: int) -> None:
    """Attach a connection's database again, so that what is written from now on is in row groups of ``rows``.

    At each checkpoint DuckDB writes the last row group of a table anew, whole. Its own have 122,880 rows: half a
    gigabyte of vectors with 1,024 numbers, which are written again for each 16 MB that come. Only ATTACH knows the
    setting (https://duckdb.org/docs/current/sql/statements/attach, ``ROW_GROUP_SIZE``). The database keeps its name, so
    that later cursors find it, and its place among the process's open databases, which keeps a second connection of
    the process from opening the file: closing that one would end the lock.

    Parameters
    ----------
    rows
        A multiple of 2,048.

    Raises
    ------
    duckdb.Error
        Another process has taken the file meanwhile, or there is no space.
    """
    (name,) = connection.execute("SELECT current_database()").fetchall()[0]
    file, database, aside = literal(str(path)), quoted(name), quoted(f"{name}_aside")
    connection.execute(f"ATTACH ':memory:' AS {aside}")
    connection.execute(f"USE {aside}")
    connection.execute(f"DETACH {database}")
    connection.execute(f"ATTACH {file} AS {database} (ROW_GROUP_SIZE {rows})")
    connection.execute(f"USE {database}")
    connection.execute(f"DETACH {aside}")


def unusable(path: Path, error: duckdb.Error, *, done: str = "used") -> StoreError:
    """What it means that DuckDB cannot open or use a run's database, and what to do.

    Parameters
    ----------
    done
        What could not be done: ``opened``, ``used``.
    """
    text = shortened(error)
    words = _without(path, text)
    if _says(words, _IN_USE):
        if _says(words, _NO_LOCKS):
            return StoreError(f"{path} cannot be {done}: its file system keeps no locks. Use another one. ({text})")
        holder = re.search(r"\(PID (\d+)\)", words)
        who = f"process {holder[1]}" if holder else "another process"
        return StoreInUseError(f"{path} is in use by {who}: a run that is still going? Wait for it, or stop it.")
    if (reason := cure(words)) is not None:
        return StoreError(f"{path} cannot be {done}: {reason}. ({text})")
    if _says(words, _NEWER):
        return StoreError(
            f"{path} cannot be {done}: a newer DuckDB wrote it. pip install --upgrade infermesh duckdb. ({text})"
        )
    if _is_blank(path):
        return StoreError(f"{path} holds no run: it ended while the file was made. Run it again.")
    if isinstance(error, duckdb.CatalogException):
        return half_made(path, text)
    return damage(error, path, done=done) or StoreError(f"{path} cannot be {done}: {text}")


def damage(error: duckdb.Error, path: Path | None = None, *, done: str = "used") -> StoreError | None:
    """The same for a damaged database alone, as a query of it may find; ``None`` for any other error.

    Parameters
    ----------
    path
        The database; ``None`` if the query reads several.
    """
    text = shortened(error)
    file = Path(DATABASE) if path is None else path
    words = _without(file, text)
    if _says(words, _BAD_LOG):
        if _says(words, _NO_ROOM):  # the log is well
            return StoreError(f"{file} cannot be {done}: its log takes more memory than there is. Free some. ({text})")
        return _bad_log(log_of(file), text)
    if _says(words, _DAMAGED) or (file.name in text and _says(words, _DAMAGED_FILE)):
        return StoreError(
            f"{file} cannot be {done}: it is damaged. Put back a copy of it; or delete it, and {log_of(file).name} "
            f"beside it, and run the experiment again: its rows and answers are lost then. ({text})"
        )
    if _says(words, _GAVE_UP):
        return StoreError(
            f"{file} cannot be {done}: DuckDB gave up. What was committed is kept: resume the run; if that fails in "
            f"the same way, put back a copy of the file. ({text})"
        )
    return None


def is_short_of_memory(error: duckdb.Error) -> bool:
    """Whether DuckDB says that its memory was not enough. Of a commit it says so in an error of another class."""
    return isinstance(error, duckdb.OutOfMemoryException) or _says(str(error), _NO_ROOM)


def half_made(path: Path, text: str) -> StoreError:
    """The error for a database without something that every run has."""
    return StoreError(
        f"{path} holds no whole run. Put back a copy of it; or delete it and run the experiment again: what it holds "
        f"is lost then. ({text})"
    )


def _bad_log(log: Path, text: str) -> StoreError:
    return StoreError(
        f"{log} cannot be opened: it is damaged. Put back a copy of it and of the file beside it; or move it away: "
        f"what was committed since the run was last closed is lost then, and is sent again. ({text})"
    )


def shortened(error: duckdb.Error) -> str:
    """DuckDB's message in one line, without stack traces and guesses, and without the JSON around a nested one."""
    text = re.split("Stack Trace:|Did you mean", str(error))[0]
    nested = re.search(r'"exception_message":("(?:[^"\\]|\\.)*")', text)
    return one_line(orjson.loads(nested[1]) if nested else text)


def _without(path: Path, text: str) -> str:
    """The text without the file's name, which may say anything."""
    return text.replace(str(path.absolute()), "")


def _says(text: str, marks: tuple[str, ...]) -> bool:
    return any(mark in text for mark in marks)
