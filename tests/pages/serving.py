"""The app of `infermesh view` on a free port, in a thread; and a run that goes on, held by this process."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
from aiohttp import web

from infermesh.cli.report import sweep_picture
from infermesh.cli.view import story_of
from infermesh.pages.app.access import Access
from infermesh.pages.app.live import LIVE
from infermesh.pages.app.server import application, listen
from infermesh.pages.app.site import Site
from infermesh.query.server import LiveServer
from infermesh.store.connection import connect
from infermesh.store.schema import DATABASE
from tests.pages.reading import Read


@dataclass
class Reply:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def read(self) -> Read:
        return Read(self.text)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """The app, and who asks it as a browser with the cookie does."""

    access: Access
    app: web.Application

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.access.port}"

    @property
    def link(self) -> str:
        """The address that the command prints."""
        return f"http://{self.host}/?token={self.access.token}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, *, trusted: bool = True, **headers: str
    ) -> Reply:
        """A request. ``Sec_Fetch_Site="x"`` is the header Sec-Fetch-Site."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if trusted:
            given.setdefault("Cookie", f"{self.access.cookie}={self.access.session}")
        connection = http.client.HTTPConnection("127.0.0.1", self.access.port, timeout=20)
        try:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **query: str) -> Reply:
        """A page."""
        return self.ask(f"{path}?{urlencode(query)}" if query else path)

    def sql(self, run: str, query: str, **more: Any) -> Any:
        """What the SQL box gives."""
        return self.ask(f"/api/sql/{run}", "POST", json.dumps({"sql": query, **more}).encode()).json


@contextmanager
def served(outputs: Path, **live: float) -> Iterator[Served]:
    """Serve the runs below a folder. ``live``: seconds of :class:`~infermesh.pages.app.live.Live`."""
    sock = listen("127.0.0.1", 0)
    access = Access("127.0.0.1", sock.getsockname()[1])
    site = Site(outputs, story_of, sweep_picture)
    app = application(site, access)
    for name, seconds in live.items():
        setattr(app[LIVE], name, seconds)
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        ends.append(partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert ready.wait(20)
        yield Served(access, app)
    finally:
        ends[0]()
        thread.join()
        sock.close()


@contextmanager
def going_on(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Hold a run as its process does while it goes on; what is committed by the connection is what it has done."""
    connection = connect(folder / DATABASE, {"memory_limit": "512MB", "threads": 2})
    try:
        connection.execute("UPDATE run SET status = 'running'")
        with LiveServer(folder, connection.cursor, lambda: None):
            yield connection
    finally:
        connection.execute("UPDATE run SET status = 'done'")
        connection.close()
