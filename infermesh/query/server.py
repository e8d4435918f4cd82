"""The server of a live run: it answers queries that read, and takes the request to stop.

DuckDB locks its file, so only the run's own process can read it while the run goes on. It listens on a private Unix
socket in the run's folder; :mod:`infermesh.query.reader` is the client. A connection carries one request, a line of
JSON::

    {"op": "query", "sql": "from progress", "timeout": 30}
    {"op": "stop"}
    {"op": "pause"}
    {"op": "continue"}
    {"op": "set", "changes": ["limits.team.rpm=2000"], "keep": false}
    {"op": "retry", "stage": "summaries", "where": "status = 'error'"}
    {"op": "watch"}

The answer to a query is a line ``{"columns": [[name, type], …], "bytes": n}`` and then ``n`` bytes of Parquet with
the columns ``c0``, ``c1``, … (see :mod:`infermesh.query.carried`). The answer to a stop is ``{"pid": p}``, and then
the connection stays open until the run has ended. The next four answer ``{"said": [lines for the user]}``. Who
watches gets lines ``{"stats": {…}}`` and ``{"note": text}`` as they come, and at the run's end ``{"over": exit
code}``. An error is ``{"error": text}``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import selectors
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.query.live_query import LIMIT_BYTES, QueryGuard, write_answer
from infermesh.runtime.guarded import start_thread

logger = logging.getLogger("infermesh")

SOCKET = "run.sock"
TIME_LIMIT_S = 30.0
_AT_ONCE = 2  # queries; further ones wait
_CONNECTIONS = 32
_REQUEST_BYTES = 1 << 20
_REQUEST_S = 5.0
_SEND_S = 60.0
_PATH_BYTES = 100  # of a socket's address: Linux takes 107, macOS 103


class LiveServer:
    """Serves a run's socket from threads of its own, for as long as the ``with`` block lasts.

    Parameters
    ----------
    folder
        The run's folder. The caller holds its database, so a socket that is there was left by a process that died.
    cursor
        Makes a connection to the run's database. It is called in the caller's thread.
    on_stop
        Called in a thread of the server when a client asks the run to stop.
    hands
        Called in a thread of the server with a request to pause, to continue or to set; returns the answer. Raises
        ``ValueError`` for one that is refused.
    watch
        Called in a thread of the server when a client wants to watch, with an event that is set at the end; gives the
        lines to send.
    """

    def __init__(
        self,
        folder: Path,
        cursor: Callable[[], duckdb.DuckDBPyConnection],
        on_stop: Callable[[], None],
        hands: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        watch: Callable[[threading.Event], Iterator[bytes]] | None = None,
    ) -> None:
        self._path = folder.absolute() / SOCKET
        self._cursor = cursor
        self._on_stop = on_stop
        self._hands = hands
        self._watch = watch
        self._free_cursors: queue.Queue[duckdb.DuckDBPyConnection] = queue.Queue()
        self._all_cursors: list[duckdb.DuckDBPyConnection] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
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
            self._all_cursors.append(cursor)
            self._free_cursors.put(cursor)
        self._thread = start_thread("infermesh-live", self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is None:
            return
        self._path.unlink(missing_ok=True)
        self._over.set()
        self._wake.close()
        self._thread.join()
        with self._lock:
            clients = dict(self._clients)
        for cursor in self._all_cursors:
            cursor.interrupt()
        for client, thread in clients.items():
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            thread.join(_REQUEST_S)
        for cursor in self._all_cursors:
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
                    client, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # no file descriptor left, perhaps
                    self._over.wait(0.1)
                    continue
                self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        with self._lock:
            if len(self._clients) >= _CONNECTIONS:
                with client, contextlib.suppress(OSError):
                    _refuse(client, f"{_CONNECTIONS} others are asking this run already: ask again later")
                return
            self._clients[client] = start_thread("infermesh-live-answer", functools.partial(self._serve, client))

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                self._answer(client)
        except OSError:
            pass  # the client has gone
        finally:
            with self._lock:
                del self._clients[client]

    def _answer(self, client: socket.socket) -> None:
        client.settimeout(_REQUEST_S)
        try:
            line = _read_line(client)
            if line is None:
                return
            match _parsed(line):
                case {"op": "query", "sql": str(sql), **rest}:
                    self._query(client, sql, _time_limit(rest.get("timeout")))
                case {"op": "stop"}:
                    self._on_stop()
                    client.sendall(orjson.dumps({"pid": os.getpid()}) + b"\n")
                    self._over.wait()
                case {"op": "pause" | "continue" | "set" | "retry"} as request if self._hands is not None:
                    answer = self._hands(request)
                    client.sendall(orjson.dumps(answer) + b"\n")
                case {"op": "watch"} if self._watch is not None:
                    client.settimeout(_SEND_S)
                    for news in self._watch(self._over):
                        client.sendall(news)
                case _:
                    others = "stop, pause, continue, set, retry or watch"
                    raise ValueError(f'expected {{"op": "query", "sql": …}}, or "op": {others}')
        except ValueError as error:
            _refuse(client, str(error))
        except OSError:
            raise
        except Exception as error:
            logger.exception("a live query failed")
            _refuse(client, f"{type(error).__name__}: {error}; run.log has the traceback")

    def _query(self, client: socket.socket, sql: str, limit_s: float) -> None:
        with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
            file = Path(folder) / "answer.parquet"
            with (
                self._cursor_in_turn(limit_s) as cursor,
                QueryGuard(cursor, client, file, limit_s, self._over) as guard,
            ):
                if self._over.is_set():
                    return
                try:
                    columns = write_answer(cursor, sql, file)
                except duckdb.InterruptException:
                    if guard.reason is None:
                        return  # the run is over: the client sees the connection close, and reads the file
                    raise ValueError(guard.reason) from None
                except duckdb.Error as error:
                    raise ValueError(str(error)) from None
            size = file.stat().st_size
            if size > LIMIT_BYTES:
                raise ValueError(guard.too_large)
            client.settimeout(_SEND_S)
            client.sendall(orjson.dumps({"columns": columns, "bytes": size}) + b"\n")
            with open(file, "rb") as data:
                client.sendfile(data)

    @contextlib.contextmanager
    def _cursor_in_turn(self, limit_s: float) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            cursor = self._free_cursors.get(timeout=limit_s)
        except queue.Empty:
            raise ValueError(
                f"the run was busy with other queries for {limit_s:g} s: ask again later, or with a longer --timeout"
            ) from None
        try:
            yield cursor
        finally:
            self._free_cursors.put(cursor)


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` that only this user can connect to; what was there is replaced.

    It is made in a private folder and moved from there, so no other user can connect before its mode is set.

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
            with short_name(private / "s") as short:
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
def short_name(path: Path) -> Iterator[str]:
    """A name of ``path`` that fits into a socket's address: its own, or a shorter one through a symbolic link."""
    name = str(path.absolute())
    if len(os.fsencode(name)) <= _PATH_BYTES:
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
        link = Path(folder) / "d"
        link.symlink_to(path.absolute().parent)
        yield str(link / path.name)


def _refuse(client: socket.socket, why: str) -> None:
    client.settimeout(_REQUEST_S)
    client.sendall(orjson.dumps({"error": why}) + b"\n")


def _read_line(client: socket.socket) -> bytes | None:
    """The request; ``None`` if the client closed the connection without one."""
    data = b""
    while b"\n" not in data:
        try:
            block = client.recv(1 << 16)
        except TimeoutError:
            raise ValueError(f"no whole line came within {_REQUEST_S:g} s") from None
        if not block:
            break
        data += block
        if len(data) > _REQUEST_BYTES:
            raise ValueError(f"a request of more than {_REQUEST_BYTES >> 10} KiB")
    return data or None


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"expected a line of JSON: {error}") from None


def _time_limit(seconds: Any) -> float:
    return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 1e6 else TIME_LIMIT_S
