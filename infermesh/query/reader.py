"""Reading a run from outside: a finished run from its database, a live one over its socket."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.errors import StoreError, StoreInUseError
from infermesh.query.carried import restored
from infermesh.query.server import SOCKET, TIME_LIMIT_S, short_name
from infermesh.store.connection import connect, damage, open_duckdb, unusable
from infermesh.store.schema import DATABASE, literal, quoted

_OPENING_S = 0.5  # a run locks its file a moment before its socket answers, and unlocks it a moment after
_ENDING_S = 30.0
_CONNECT_S = 5.0
_TRIES = 3  # the run may end meanwhile, and another process may resume it
_BLOCK = 1 << 20


class RunReader:
    """One run, open for reading, whether it is live or not. A live run that ends meanwhile is read from its file.

    As long as the file is open the run cannot be resumed, so close the reader soon.

    Attributes
    ----------
    folder
        The run's folder.
    live
        Whether the run was live when it was last asked.

    Raises
    ------
    StoreInUseError
        A process holds the database and does not answer, for example because it is still loading its source.
    StoreError
        There is no database, or it is damaged.

    Examples
    --------
    >>> with RunReader(Path("outputs/quickstart/latest")) as reader:
    ...     reader.execute("SELECT count(*) FROM results").fetchall()
    [(60,)]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live = False
        self._file: duckdb.DuckDBPyConnection | None = None
        self._memory: duckdb.DuckDBPyConnection | None = None
        self._answers: tempfile.TemporaryDirectory[str] | None = None
        self._timer: threading.Timer | None = None
        self._open(_OPENING_S)

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, sql: str, *, timeout: float | None = None) -> duckdb.DuckDBPyConnection:
        """Run a query and return a connection that holds its result until the next query.

        The query sees all that was committed when it began.

        Parameters
        ----------
        sql
            For a file any statements that a read-only database takes; for a live run one query.
        timeout
            In seconds; ``None`` is no limit for a file and 30 seconds for a live run.

        Raises
        ------
        StoreError
            The query is wrong, takes too long or gives too much, or nobody answers. A query on a file may still raise
            ``duckdb.Error`` while its rows are fetched.
        """
        connection, query = self.prepare(sql, timeout=timeout)
        try:
            return connection.execute(query)
        except duckdb.Error as error:
            raise self._refused(error, timeout) from None

    def rows(self, sql: str, *, timeout: float | None = None) -> list[tuple[Any, ...]]:
        """All rows of a query of ours over tables that every run has.

        Parameters and errors are those of :meth:`execute`; it raises no others.
        """
        connection, query = self.prepare(sql, timeout=timeout)
        try:
            return connection.execute(query).fetchall()
        except duckdb.CatalogException as error:
            raise unusable(self.folder / DATABASE, error) from None
        except duckdb.Error as error:
            raise self._refused(error, timeout) from None
        finally:
            self._stop_timer()

    def prepare(self, sql: str, *, timeout: float | None = None) -> tuple[duckdb.DuckDBPyConnection, str]:
        """A connection and the query that gives the result there, for a larger query around it.

        A live run is asked at once, and its answer is what the returned query reads. Parameters and errors are those of
        :meth:`execute`.
        """
        for _ in range(_TRIES):
            if not self.live:
                break
            try:
                return self._ask_run(sql, TIME_LIMIT_S if timeout is None else timeout)
            except _Ended:
                self._open(_ENDING_S)
        if self._file is None:
            raise StoreError(f"the run in {self.folder} hung up {_TRIES} times before it had answered")
        self._stop_timer()
        if timeout is not None:
            self._timer = threading.Timer(timeout, self._file.interrupt)
            self._timer.daemon = True
            self._timer.start()
        return self._file, sql

    @contextlib.contextmanager
    def asked(self, sql: str, *, timeout: float | None = None) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """:meth:`prepare`, with DuckDB's errors as ``StoreError`` for as long as the result is read."""
        try:
            yield self.prepare(sql, timeout=timeout)
        except duckdb.Error as error:
            raise self._refused(error, timeout) from None
        finally:
            self._stop_timer()

    def close(self) -> None:
        """Close the file and delete what was answered."""
        self._stop_timer()
        for connection in (self._file, self._memory):
            if connection is not None:
                connection.close()
        if self._answers is not None:
            self._answers.cleanup()

    def _refused(self, error: duckdb.Error, timeout: float | None) -> StoreError:
        if isinstance(error, duckdb.InterruptException) and timeout is not None:
            return StoreError(
                f"the query took longer than {timeout:g} s: ask for less, or give it more time (--timeout SECONDS)"
            )
        return damage(error, self.folder / DATABASE) or StoreError(str(error))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _open(self, patience_s: float) -> None:
        """Find the run's socket or open its file; wait so long for a process that holds the file."""
        until = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(_Ended), _connected(self.folder):
                self.live = True
                return
            self.live = False
            try:
                self._file = connect(self.folder / DATABASE, read_only=True)
            except StoreInUseError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    def _ask_run(self, sql: str, timeout: float) -> tuple[duckdb.DuckDBPyConnection, str]:
        if self._memory is None:
            self._memory = open_duckdb()
            self._answers = tempfile.TemporaryDirectory(prefix="infermesh-")
        assert self._answers is not None
        file = Path(self._answers.name) / "answer.parquet"
        with _connected(self.folder) as server:
            server.settimeout(2 * timeout + _CONNECT_S)  # the query may have to wait as long for its turn
            columns = _receive(server, {"op": "query", "sql": sql, "timeout": timeout}, file)
        values = (f"{restored(kind, f'c{number}')} AS {quoted(name)}" for number, (name, kind) in enumerate(columns))
        return self._memory, f"SELECT {', '.join(values)} FROM read_parquet({literal(str(file))})"


def is_live(folder: Path) -> bool:
    """Whether a live run in ``folder`` answers."""
    try:
        with _connected(folder):
            return True
    except (_Ended, StoreError):
        return False


def ask_run(folder: Path, sql: str) -> list[tuple[Any, ...]] | None:
    """The rows of a small query on a run, live or not; ``None`` if it cannot be answered within five seconds."""
    try:
        with RunReader(folder) as reader:
            return reader.rows(sql, timeout=_CONNECT_S)
    except StoreError:
        return None


def request_stop(folder: Path) -> Generator[int]:
    """Ask the live run in ``folder`` to stop, as Ctrl-C does the first time.

    The first ``next()`` asks, and gives the id of the run's process. Exhaust the generator to wait until the run has
    closed its database.

    Raises
    ------
    StoreError
        No run is going on there, or it does not end.
    """
    try:
        with _connected(folder) as server:
            server.settimeout(_CONNECT_S)
            server.sendall(orjson.dumps({"op": "stop"}) + b"\n")
            with server.makefile("rb") as stream:
                yield int(_read_header(stream)["pid"])
                server.settimeout(None)
                stream.read()
    except _Ended:
        raise StoreError(f"{folder}: no run is going on there") from None
    until = time.monotonic() + _ENDING_S
    while True:
        try:
            connect(folder / DATABASE, read_only=True).close()
        except StoreInUseError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def ask_hands(folder: Path, request: Mapping[str, Any]) -> list[str]:
    """Ask the live run in ``folder`` to pause, to continue or to set something: a request as the server takes it.

    Returns
    -------
    list
        What the run has to say of it.

    Raises
    ------
    StoreError
        No run is going on there, or it refuses.
    """
    try:
        with _connected(folder) as server:
            server.settimeout(_ENDING_S)
            server.sendall(orjson.dumps(request) + b"\n")
            with server.makefile("rb") as stream:
                return [str(line) for line in _read_header(stream)["said"]]
    except _Ended:
        raise StoreError(f"{folder}: no run is going on there") from None


def watch_run(folder: Path) -> Iterator[dict[str, Any]]:
    """What the live run in ``folder`` tells of its progress, until it ends: see :mod:`infermesh.query.server`.

    The last one is ``{"over": exit code}``; it is missing where the run was killed.

    Raises
    ------
    StoreError
        No run is going on there.
    """
    try:
        with _connected(folder) as server:
            server.sendall(orjson.dumps({"op": "watch"}) + b"\n")
            server.settimeout(None)
            with server.makefile("rb") as stream:
                for line in stream:
                    news: dict[str, Any] = orjson.loads(line)
                    if "error" in news:
                        raise StoreError(news["error"])
                    yield news
    except _Ended:
        return


class _Ended(Exception):
    """There is no run at the other end of the socket, or it has closed the connection."""


@contextlib.contextmanager
def _connected(folder: Path) -> Iterator[socket.socket]:
    """A connection to the live run in ``folder``."""
    path = folder / SOCKET
    if not path.exists() or not hasattr(socket, "AF_UNIX"):
        raise _Ended
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(_CONNECT_S)
        try:
            with short_name(path) as name:
                server.connect(name)
        except PermissionError:
            raise StoreError(f"{path} belongs to another user: only who runs it may ask it") from None
        except TimeoutError:
            raise StoreError(f"the run in {folder} does not answer; ask again later") from None
        except OSError:  # a run that was killed leaves its socket behind
            raise _Ended from None
        try:
            yield server
        except TimeoutError:
            raise StoreError(f"the run in {folder} does not answer; ask again later") from None
        except ConnectionError:
            raise _Ended from None


def _receive(server: socket.socket, request: dict[str, Any], file: Path) -> list[tuple[str, str]]:
    """Send a request and write the rows that come into ``file``; return the columns' names and types."""
    server.sendall(orjson.dumps(request) + b"\n")
    with server.makefile("rb") as stream:
        header = _read_header(stream)
        left: int = header["bytes"]
        with open(file, "wb") as target:
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise _Ended
                target.write(block)
                left -= len(block)
    return [(name, kind) for name, kind in header["columns"]]


def _read_header(stream: Any) -> dict[str, Any]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise _Ended
    header: dict[str, Any] = orjson.loads(line)
    if "error" in header:
        raise StoreError(header["error"])
    return header
