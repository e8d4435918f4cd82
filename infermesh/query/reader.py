"""Reading a run from outside: its database where nobody holds it, its socket where it goes on."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.errors import StoreError, StoreInUseError
from infermesh.query.carried import restored
from infermesh.query.server import SOCKET, TIME_LIMIT_S, reachable
from infermesh.store.database import connect
from infermesh.store.schema import DATABASE, SETTINGS, literal, quoted

_PATIENCE_S = 0.5  # between a run's hold on its file and its socket, and back, lies a moment
_ENDING_S = 30.0
_CONNECT_S = 5.0
_TRIES = 3  # the run may end, and be resumed by another process
_BLOCK = 1 << 20


class RunReader:
    """One run, open for reading; made by :func:`open_run`. A live run that ends meanwhile is read from its file.

    While it reads from the file, the run cannot be resumed: close it soon.

    Attributes
    ----------
    folder
        The run's folder.
    live
        Whether the run is going on, as of the last look.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live = False
        self._file: duckdb.DuckDBPyConnection | None = None
        self._memory: duckdb.DuckDBPyConnection | None = None
        self._answers: tempfile.TemporaryDirectory[str] | None = None
        self._timer: threading.Timer | None = None
        self._attach(_PATIENCE_S)

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, sql: str, *, timeout: float | None = None) -> duckdb.DuckDBPyConnection:
        """Run a query; gives a connection that holds its result (``description``, ``fetchmany``, ``fetchall``).

        The result is there until the next query. What it sees is all that was committed when it began.

        Parameters
        ----------
        sql
            Any statements that a read-only database takes; on a live run one query.
        timeout
            Seconds; ``None`` is no limit on a file and 30 on a live run.

        Raises
        ------
        StoreError
            The query is wrong or broke a limit, or nobody answers. Rows that a file's query gives later may raise
            ``duckdb.Error`` as they are fetched.
        """
        connection, query = self.prepare(sql, timeout=timeout)
        try:
            return connection.execute(query)
        except duckdb.Error as error:
            raise StoreError(_told(error, timeout)) from None

    def prepare(self, sql: str, *, timeout: float | None = None) -> tuple[duckdb.DuckDBPyConnection, str]:
        """A connection, and the query that gives the result there: for a ``COPY (…) TO`` of one's own.

        On a live run this is where it is asked. Parameters and errors as :meth:`execute`.
        """
        for _ in range(_TRIES):
            if not self.live:
                break
            try:
                return self._ask(sql, TIME_LIMIT_S if timeout is None else timeout)
            except _Ended:
                self._attach(_ENDING_S)
        if self._file is None:
            raise StoreError(f"the run in {self.folder} hung up {_TRIES} times before it had answered")
        self._cancel()
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
            raise StoreError(_told(error, timeout)) from None
        finally:
            self._cancel()

    def close(self) -> None:
        """Let go of the file and of what was answered."""
        self._cancel()
        for connection in (self._file, self._memory):
            if connection is not None:
                connection.close()
        if self._answers is not None:
            self._answers.cleanup()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _attach(self, patience_s: float) -> None:
        until = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(_Ended), _dial(self.folder):
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

    def _ask(self, sql: str, timeout: float) -> tuple[duckdb.DuckDBPyConnection, str]:
        if self._memory is None:
            self._memory = duckdb.connect(config=SETTINGS)
            self._answers = tempfile.TemporaryDirectory(prefix="infermesh-")
        assert self._answers is not None
        file = Path(self._answers.name) / "answer.parquet"
        with _dial(self.folder) as talk:
            talk.settimeout(2 * timeout + _CONNECT_S)  # it may have to wait for its turn for as long again
            columns = _receive(talk, {"op": "query", "sql": sql, "timeout": timeout}, file)
        values = (f"{restored(kind, f'c{number}')} AS {quoted(name)}" for number, (name, kind) in enumerate(columns))
        return self._memory, f"SELECT {', '.join(values)} FROM read_parquet({literal(str(file))})"


def open_run(folder: Path) -> RunReader:
    """Open a run's folder for reading, whether the run goes on or not.

    Raises
    ------
    StoreInUseError
        A process holds the database and does not answer: it is still loading its source, say.
    StoreError
        There is no database, or it is damaged.
    """
    return RunReader(folder)


def is_live(folder: Path) -> bool:
    """Whether a run goes on in ``folder`` and answers."""
    try:
        with _dial(folder):
            return True
    except (_Ended, StoreError):
        return False


def ask_run(folder: Path, sql: str) -> list[tuple[Any, ...]] | None:
    """A small query's rows, wherever the run is; ``None`` where a process holds it and does not answer soon."""
    try:
        with RunReader(folder) as reader:
            return reader.execute(sql, timeout=_CONNECT_S).fetchall()
    except StoreError:
        return None


def request_stop(folder: Path) -> Generator[int]:
    """Ask the live run in ``folder`` to stop as its first Ctrl-C would; gives its process id, then waits for its end.

    ``next()`` on it asks; to exhaust it is to wait until the run has let go of its database.

    Raises
    ------
    StoreError
        No run goes on there.
    """
    try:
        with _dial(folder) as talk:
            talk.settimeout(_CONNECT_S)
            talk.sendall(orjson.dumps({"op": "stop"}) + b"\n")
            with talk.makefile("rb") as stream:
                yield int(_header(stream)["pid"])
                talk.settimeout(None)
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


class _Ended(Exception):
    """Nobody is at the other end of the socket, or no more."""


@contextlib.contextmanager
def _dial(folder: Path) -> Iterator[socket.socket]:
    path = folder / SOCKET
    if not path.exists() or not hasattr(socket, "AF_UNIX"):
        raise _Ended
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
        talk.settimeout(_CONNECT_S)
        try:
            with reachable(path) as name:
                talk.connect(name)
        except PermissionError:
            raise StoreError(f"{path} belongs to another user: only who runs it may ask it") from None
        except TimeoutError:
            raise StoreError(f"the run in {folder} does not answer; ask again later") from None
        except OSError:  # a run that was killed leaves its socket behind
            raise _Ended from None
        try:
            yield talk
        except TimeoutError:
            raise StoreError(f"the run in {folder} does not answer; ask again later") from None
        except ConnectionError:
            raise _Ended from None


def _receive(talk: socket.socket, request: dict[str, Any], file: Path) -> list[tuple[str, str]]:
    talk.sendall(orjson.dumps(request) + b"\n")
    with talk.makefile("rb") as stream:
        header = _header(stream)
        left: int = header["bytes"]
        with open(file, "wb") as target:
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise _Ended
                target.write(block)
                left -= len(block)
    return [(name, kind) for name, kind in header["columns"]]


def _header(stream: Any) -> dict[str, Any]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise _Ended
    header: dict[str, Any] = orjson.loads(line)
    if "error" in header:
        raise StoreError(header["error"])
    return header


def _told(error: duckdb.Error, timeout: float | None) -> str:
    if isinstance(error, duckdb.InterruptException) and timeout is not None:
        return f"the query took longer than {timeout:g} s: ask for less, or give it more time (--timeout SECONDS)"
    return str(error)
