"""What the app's pages have in common: their addresses, the runs that these name, and how a page is made."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from aiohttp import web
from markupsafe import Markup

from infermesh.errors import InfermeshError
from infermesh.exact_json import dumps
from infermesh.pages.app.access import NONCE
from infermesh.pages.charts import Chart
from infermesh.pages.page import as_served, asset, served_style
from infermesh.pages.words import clean
from infermesh.store.folders import DATABASE

__all__ = ["FILES", "SITE", "Page", "Site", "file_hash", "json_answer", "link", "static_file"]

_Found = TypeVar("_Found")
_THREADS = 8
FILES = {  # what /static/ has, and as what
    "view.css": "text/css",
    "view.js": "text/javascript",
    "page.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
    "editor.min.js": "text/javascript",
    "sql.js": "text/javascript",
    "diff.min.js": "text/javascript",
    "compare.js": "text/javascript",
}


class Site:
    """The app's runs, and what it needs of folders above this one.

    Parameters
    ----------
    outputs
        The folder that holds the runs. Nothing outside of it is shown.
    story
        Folder, row number and origin → a row's story as plain values.
    sweep
        A sweep's folder → its :class:`~infermesh.pages.sweep.Picture`.
    """

    def __init__(
        self, outputs: Path, story: Callable[[Path, int, str], dict[str, Any]], sweep: Callable[[Path], Any]
    ) -> None:
        self.outputs = outputs
        self.story = story
        self.sweep = sweep
        self._threads = ThreadPoolExecutor(_THREADS, "infermesh-view")

    def run_of(self, request: web.Request, key: str = "run") -> tuple[str, Path]:
        """The name and the folder of the run that an address names. Raises 404 if there is none below outputs."""
        name = request.match_info.get(key) or request.query.get(key) or ""
        folder = self.folder(name)
        if folder is None:
            raise web.HTTPNotFound(text=f"There is no run {clean(name)} below {self.outputs}.\n")
        return name, folder

    def folder(self, name: str, holds: str = DATABASE) -> Path | None:
        """The folder of that name below outputs, if it holds a run (or another file)."""
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            return None
        folder = self.outputs.joinpath(*parts)
        return folder if (folder / holds).exists() else None

    def name_of(self, folder: Path) -> str:
        """What a run is called in an address."""
        return folder.relative_to(self.outputs).as_posix()

    async def in_thread(self, function: Callable[..., _Found], *arguments: Any) -> _Found:
        """Call a function that reads a run; the app goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *arguments))

    def close(self) -> None:
        """Start nothing more in threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


SITE = web.AppKey("site", Site)


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is being made: what its template asks for addresses."""

    nonce: str

    def file(self, name: str) -> str:
        """The address of one of the app's files; another one when the file has changed."""
        return f"/static/{name}?{file_hash(name)[:12]}"

    def data(self, json: bytes) -> Markup:
        """JSON for a script element, which no browser executes; no text in it ends the element."""
        return Markup(json.decode().replace("<", "\\u003c"))

    def link(self, view: str, name: str = "", **query: Any) -> str:
        """See :func:`link`."""
        return link(view, name, **query)


def link(view: str, name: str = "", **query: Any) -> str:
    """The address of a page: ``/rows/quickstart/2025-01-01_00-00-00?stage=a``. Empty values are left out."""
    path = "/".join(filter(None, (view, quote(name))))
    given = {key: value for key, value in query.items() if value not in (None, "", 0)}
    return f"/{path}{'?' + urlencode(given) if given else ''}"


def html(
    request: web.Request, template: str, charts: Sequence[Chart] = (), *, status: int = 200, **values: Any
) -> web.Response:
    """A page from a template of ``templates/view/``."""
    text = as_served(f"view/{template}.html.jinja", charts, page=Page(request[NONCE]), **values)
    return web.Response(body=text.encode("utf-8", "replace"), status=status, content_type="text/html", charset="utf-8")


def problem(request: web.Request, title: str, error: InfermeshError, name: str = "", here: str = "") -> web.Response:
    """A page that says what does not go."""
    return html(
        request, "error", status=500 if not name else 200, title=title, message=str(error), name=name, here=here
    )


def json_answer(value: Any, *, status: int = 200) -> web.Response:
    """Plain values as JSON."""
    return web.Response(body=dumps(value, default=str), status=status, content_type="application/json")


@functools.cache
def _file(name: str) -> bytes:
    return (served_style() if name == "view.css" else asset(name)).encode()


@functools.cache
def file_hash(name: str) -> str:
    """The SHA-256 of one of the app's files."""
    return hashlib.sha256(_file(name)).hexdigest()


async def static_file(request: web.Request) -> web.Response:
    """One of the app's own files."""
    name = request.match_info["name"]
    if name not in FILES:
        raise web.HTTPNotFound
    fresh = request.query_string == file_hash(name)[:12]
    return web.Response(
        body=_file(name),
        content_type=FILES[name],
        charset="utf-8",
        headers={"Cache-Control": "private, max-age=31536000, immutable" if fresh else "no-store"},
    )
