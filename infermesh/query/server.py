"""A run answers while it goes on: read-only queries, and a wish to stop, over a private Unix socket in its folder.

DuckDB locks its file, so only the run's own process can read it meanwhile. One request a connection, a line of JSON::

    {"op": "query", "sql": "from progress", "timeout": 30}
    {"op": "stop"}

The answer to a query is a line ``{"columns": [[name, type], …], "bytes": n}`` and ``n`` bytes of Parquet with columns
``c0``, ``c1``, …; to a stop ``{"pid": p}``, after which the connection stays open until the run is over. A refusal is
``{"error": text}``. :mod:`infermesh.query.reader` is the other end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.query.live_query import LIMIT_BYTES, Watch, write_answer

logger = logging.getLogger("infermesh")

SOCKET = "run.sock"
TIME_LIMIT_S = 30.0
_AT_ONCE = 2  # queries; further ones wait for their turn
_CONNECTIONS = 32
_REQUEST_BYTES = 1 << 20
_REQUEST_S = 5.0
_SEND_S = 60.0
_PATH_BYTES = 100  # the kernel takes 107, 103 on a Mac


class LiveServer:
    """Answers for a run from threads of its own, from ``with`` to its end.

    Parameters
    ----------
    folder
        The run's folder; the caller holds its database, so a socket that is there is a dead one's.
    cursor
        Makes a connection to the run's database. Called here only, in the caller's thread.
    on_stop
        Called in a thread of the server when someone asks the run to stop.
    """

    def __init__(
        self, folder: Path, cursor: Callable[[], duckdb.DuckDBPyConnection], on_stop: Callable[[], None]
    ) -> None:
        self._path = folder.absolute() / SOCKET
        self._cursor = cursor
        self._on_stop = on_stop
        self._cursors: queue.Queue[duckdb.DuckDBPyConnection] = queue.Queue()
        self._every: list[duckdb.DuckDBPyConnection] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._talks: dict[socket.socket, threading.Thread] = {}
        self._listener: socket.socket | None = None

    def __enter__(self) -> LiveServer:
        try:
            self._listener = listen(self._path)
        except OSError as error:
            logger.warning("the run cannot be asked while it goes on: no socket at %s: %s", self._path, error)
            return self
        self._wake, self._woken = socket.socketpair()
        for _ in range(_AT_ONCE):
            cursor = self._cursor()
            self._every.append(cursor)
            self._cursors.put(cursor)
        self._thread = threading.Thread(target=self._accept, name="infermesh-live", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is None:
            return
        self._path.unlink(missing_ok=True)
        self._over.set()
        self._wake.close()
        self._thread.join()
        with self._lock:
            talks = dict(self._talks)
        for cursor in self._every:
            cursor.interrupt()
        for talk, thread in talks.items():
            with contextlib.suppress(OSError):
                talk.shutdown(socket.SHUT_RDWR)
            thread.join(_REQUEST_S)
        for cursor in self._every:
            cursor.close()
        self._woken.close()

    def _accept(self) -> None:
        assert self._listener is not None
        with self._listener as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._over.is_set():
                selector.select()
                try:
                    talk, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # no file descriptor left, perhaps
                    self._over.wait(0.1)
                    continue
                self._admit(talk)

    def _admit(self, talk: socket.socket) -> None:
        with self._lock:
            if len(self._talks) >= _CONNECTIONS:
                with talk, contextlib.suppress(OSError):
                    _refuse(talk, f"{_CONNECTIONS} others are asking this run already: ask again later")
                return
            thread = threading.Thread(target=self._talk, args=(talk,), name="infermesh-live-answer", daemon=True)
            self._talks[talk] = thread
            thread.start()

    def _talk(self, talk: socket.socket) -> None:
        try:
            with talk:
                self._answer(talk)
        except OSError:
            pass  # whoever asked has gone
        finally:
            with self._lock:
                del self._talks[talk]

    def _answer(self, talk: socket.socket) -> None:
        talk.settimeout(_REQUEST_S)
        try:
            line = _line(talk)
            if line is None:
                return
            match _request(line):
                case {"op": "query", "sql": str(sql), **rest}:
                    self._query(talk, sql, _limit(rest.get("timeout")))
                case {"op": "stop"}:
                    self._on_stop()
                    talk.sendall(orjson.dumps({"pid": os.getpid()}) + b"\n")
                    self._over.wait()
                case _:
                    raise ValueError('expected {"op": "query", "sql": …} or {"op": "stop"}')
        except ValueError as error:
            _refuse(talk, str(error))
        except OSError:
            raise
        except Exception as error:
            logger.exception("a live query failed")
            _refuse(talk, f"{type(error).__name__}: {error}; run.log has the traceback")

    def _query(self, talk: socket.socket, sql: str, limit_s: float) -> None:
        with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
            file = Path(folder) / "answer.parquet"
            with self._turn(limit_s) as cursor, Watch(cursor, talk, file, limit_s, self._over) as watch:
                if self._over.is_set():
                    return
                try:
                    columns = write_answer(cursor, sql, file)
                except duckdb.InterruptException:
                    if watch.reason is None:
                        return  # the run is over: it hangs up, and the file answers from now on
                    raise ValueError(watch.reason) from None
                except duckdb.Error as error:
                    raise ValueError(str(error)) from None
            size = file.stat().st_size
            if size > LIMIT_BYTES:
                raise ValueError(watch.too_large)
            talk.settimeout(_SEND_S)
            talk.sendall(orjson.dumps({"columns": columns, "bytes": size}) + b"\n")
            with open(file, "rb") as data:
                talk.sendfile(data)

    @contextlib.contextmanager
    def _turn(self, limit_s: float) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            cursor = self._cursors.get(timeout=limit_s)
        except queue.Empty:
            raise ValueError(
                f"the run was busy with other queries for {limit_s:g} s: ask again later, or with a longer --timeout"
            ) from None
        try:
            yield cursor
        finally:
            self._cursors.put(cursor)


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, for this user alone from its first moment; what was there is replaced.

    It is made in a private folder and moved from there.

    Raises
    ------
    OSError
        The platform or the file system has no Unix sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this platform has no Unix sockets")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        private = Path(tempfile.mkdtemp(prefix=".sock-", dir=path.parent))  # mode 0700
        try:
            with reachable(private / "s") as short:
                listener.bind(short)
            (private / "s").chmod(0o600)
            listener.listen(_CONNECTIONS)
            listener.setblocking(False)
            (private / "s").rename(path)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name of ``path`` that is short enough for a socket's address: its own, or one through a symbolic link."""
    name = str(path.absolute())
    if len(os.fsencode(name)) <= _PATH_BYTES:
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
        link = Path(folder) / "d"
        link.symlink_to(path.absolute().parent)
        yield str(link / path.name)


def _refuse(talk: socket.socket, why: str) -> None:
    talk.settimeout(_REQUEST_S)
    talk.sendall(orjson.dumps({"error": why}) + b"\n")


def _line(talk: socket.socket) -> bytes | None:
    """The request; ``None`` where the other end said nothing."""
    data = b""
    while b"\n" not in data:
        try:
            block = talk.recv(1 << 16)
        except TimeoutError:
            raise ValueError(f"no whole line came within {_REQUEST_S:g} s") from None
        if not block:
            break
        data += block
        if len(data) > _REQUEST_BYTES:
            raise ValueError(f"a request of more than {_REQUEST_BYTES >> 10} KiB")
    return data or None


def _request(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"expected a line of JSON: {error}") from None


def _limit(seconds: Any) -> float:
    return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 1e6 else TIME_LIMIT_S
