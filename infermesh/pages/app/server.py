"""The server of the app: its addresses, and how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from infermesh.pages.app import compare, live, media, rows, runs, sql
from infermesh.pages.app.access import Access
from infermesh.pages.app.site import SITE, Site, static_file
from infermesh.query.listing import RunList

__all__ = ["application", "listen", "serve"]

_SHUTDOWN_S = 1.0
_MOST_BODY = 1 << 20


def application(site: Site, access: Access) -> web.Application:
    """The app.

    Parameters
    ----------
    site
        The runs.
    access
        Who may ask.
    """
    app = web.Application(middlewares=[access.middleware()], client_max_size=_MOST_BODY)
    app[SITE] = site
    app[runs.RUNS] = RunList(site.outputs)
    app[runs.OVERVIEWS] = runs.Overviews(site)
    app[live.LIVE] = live.Live(site)
    app.add_routes(
        [
            web.get("/", runs.list_runs),
            web.get("/overview/{run:.+}", runs.overview),
            web.get("/failures/{run:.+}", runs.failures),
            web.get("/rows/{run:.+}", rows.list_rows),
            web.get("/row/{number}/{run:.+}", rows.row),
            web.get("/sql/{run:.+}", sql.box),
            web.post("/api/sql/{run:.+}", sql.answer),
            web.get("/api/export/{run:.+}", sql.export, allow_head=False),
            web.get("/compare/{run:.+}", compare.compare),
            web.get("/sweep/{run:.+}", compare.sweep),
            web.get("/events/{run:.+}", live.events, allow_head=False),
            web.get("/api/overview/{run:.+}", runs.rest),
            web.get("/api/row/{number}/{run:.+}", rows.raw_row),
            web.get("/api/media/{number}/{run:.+}", media.media),
            web.get("/static/{name}", static_file),
        ]
    )
    app.on_shutdown.append(_end_streams)
    return app


async def _end_streams(app: web.Application) -> None:
    app[live.LIVE].close()
    app[SITE].close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0: a free one. Raises ``OSError`` where the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def serve(sock: socket.socket, site: Site, access: Access, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM. Call it in the main thread; ``on_ready`` when requests are accepted."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        # Handlers are cancelled when the browser has gone: a query that nobody waits for ends.
        runner = web.AppRunner(
            application(site, access), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            on_ready()
            await stop.wait()
        finally:
            await runner.cleanup()

    with sock:
        asyncio.run(main())
