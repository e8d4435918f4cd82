"""What a request begins with, and where it goes, from a URL and headers as a user wrote them."""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from infermesh.redaction import origin

__all__ = ["Origin", "head", "origin_of"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_HOST = re.compile(r"[0-9A-Za-z._:-]+")
_KEPT = string.punctuation + string.ascii_letters + string.digits  # of a target: what is sent as it stands
_FRAMING = frozenset(("content-length", "transfer-encoding"))  # the body's own


class Origin(NamedTuple):
    """What connections are made to."""

    secure: bool
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """Where a URL's requests go; a name in another script is written as DNS has it (IDNA).

    Raises
    ------
    ValueError
        It is no ``http://`` or ``https://`` URL. The text holds no secret.
    """
    try:
        parts = urlsplit(url)
        host = _ascii(parts.hostname or "")
        port = parts.port
    except ValueError:
        host = ""
    if not _HOST.fullmatch(host) or parts.scheme not in ("http", "https"):
        raise ValueError(f"api_base ({origin(url)}) is no URL that can be asked")
    secure = parts.scheme == "https"
    return Origin(secure, host, (443 if secure else 80) if port is None else port)


def head(url: str, headers: Mapping[str, str], *, forwarded: bool = False, method: str = "POST") -> bytes:
    """The head of a POST request, up to where the length of its body is to follow; of a GET request, all of it.

    A user and a password in the URL become its ``authorization`` (RFC 7617), unless ``headers`` has another.

    Parameters
    ----------
    url
        Where the request goes.
    headers
        Sent with it, instead of one's own of that name.
    forwarded
        Whether a proxy is asked to pass it on: it needs the whole URL (RFC 9112, section 3.2.2).
    method
        ``POST`` or ``GET``, which has no body.

    Raises
    ------
    ValueError
        A header cannot be sent. The text holds no secret.
    """
    parts = urlsplit(url)
    host = _ascii(parts.netloc.rpartition("@")[2])
    fields = {"host": host, **_authorization(parts), **{name.lower(): value for name, value in headers.items()}}
    for name, value in fields.items():
        if name in _FRAMING or not _TOKEN.fullmatch(name):
            raise ValueError(f"the header {name!r} cannot be set")
        if not _VALUE.fullmatch(value):
            what = "key, or the header 'authorization'," if name == "authorization" else f"header {name!r}"
            raise ValueError(f"the {what} is not text on one line")
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), _KEPT)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    end = "\r\n" if method == "GET" else "content-length: "
    return f"{method} {f'http://{host}' if forwarded else ''}{path} HTTP/1.1\r\n{lines}{end}".encode()


def _ascii(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None and parts.password is None:
        return {}
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
