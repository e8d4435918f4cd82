"""Who may ask the app, and what a browser may do with its pages.

A page in the same browser is a stranger too. It may send requests to 127.0.0.1, and it may have its own name resolve to
that address (DNS rebinding). Three things stand against that, each by itself: a token that only the printed address
has, a list of the hosts that the app answers to, and the browser's word on which site a request comes from.

Sources: Fetch Metadata Request Headers (https://www.w3.org/TR/fetch-metadata/), Content Security Policy Level 3.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

__all__ = ["LOOPBACK", "NONCE", "Access", "from_here", "is_loopback"]

logger = logging.getLogger("infermesh")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
NONCE = web.RequestKey("nonce", str)
TOKEN = "token"  # in the printed address
_OPEN = "/static/"  # the app's own files, which are the same for everybody
_BY_SCRIPT = ("/api/", "/events/")  # what the app's own pages alone ask for
_OURS = ("same-origin", "none")
_DENIED = (
    "This is the app of `infermesh view`. Open it by the address that the command printed: it has a token in it, and "
    "this browser has not shown it yet. A new start of the command makes a new one.\n"
)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def from_here(request: web.Request) -> bool:
    """Whether the app's own page, or the user by hand, made this request. What is no browser does not say."""
    return request.headers.get("Sec-Fetch-Site", "none") in _OURS


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Parameters
    ----------
    host
        The address that is listened on.
    port
        Its port.

    Attributes
    ----------
    token
        In the printed address; scripts send it as ``Authorization: Bearer``.
    session
        In the cookie that the token is traded for.
    """

    host: str
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def cookie(self) -> str:
        """The cookie's name. Browsers keep cookies by host and not by port, so the port is in it."""
        return f"infermesh-{self.port}"

    @property
    def url(self) -> str:
        """The address to print."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{'localhost' if self.host in ('0.0.0.0', '::') else host}:{self.port}"

    def answers_to(self, host: str) -> bool:
        """Whether a request's ``Host`` is this app. An address cannot be rebound, a name can."""
        name, _, port = host.rpartition(":")
        if port != str(self.port):
            return False
        if name in self._names():
            return True
        if self.host not in ("0.0.0.0", "::"):
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _names(self) -> Collection[str]:
        if is_loopback(self.host):
            return LOOPBACK
        own = f"[{self.host}]" if ":" in self.host else self.host
        return {*LOOPBACK, own, socket.gethostname()}

    def middleware(self) -> Any:  # aiohttp's decorator gives a type of its own
        """What every request goes through, and every answer."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[NONCE] = secrets.token_urlsafe(16)
            try:
                refused = self._refusal(request)
                response = refused if refused is not None else await handler(request)
            except web.HTTPException as error:
                _add_headers(error, request[NONCE])
                raise
            except Exception:
                logger.exception("%s %s", request.method, request.path)
                response = _said(500, "This page could not be made, which is a bug: the terminal has its traceback.\n")
            if not response.prepared:
                _add_headers(response, request[NONCE])
            return response

        return guard

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        """The answer to who may not ask, or has to be sent elsewhere; ``None`` to who may."""
        if not self.answers_to(request.headers.get("Host", "")):
            return _said(403, f"This app answers to {' or '.join(LOOPBACK)} with its port, and to no other name.\n")
        if request.method not in ("GET", "HEAD", "POST"):
            return _said(405, "GET, HEAD and POST are all that there is.\n")
        if request.path.startswith(_OPEN):
            return None
        scripted = request.path.startswith(_BY_SCRIPT) or request.method == "POST"
        origin = request.headers.get("Origin")
        if scripted and not (from_here(request) and origin in (None, f"http://{request.headers['Host']}")):
            return _said(403, "Only the app's own pages may ask for this.\n")
        given = request.query.get(TOKEN)
        if given is not None and _same(given, self.token):
            bare = str(request.rel_url.without_query_params(TOKEN))
            traded = web.Response(status=303, headers={"Location": f"/{bare.lstrip('/')}"})
            # Lax: with Strict, the printed link would not work where a page of another site shows it, as a notebook.
            traded.set_cookie(self.cookie, self.session, httponly=True, samesite="Lax", path="/")
            return traded
        if _same(request.cookies.get(self.cookie, ""), self.session):
            return None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(bearer.strip(), self.token):
            return None
        return _said(401, _DENIED)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _said(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)


def _add_headers(response: web.StreamResponse, nonce: str) -> None:
    response.headers.setdefault(
        "Content-Security-Policy",
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
        "media-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    )
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
