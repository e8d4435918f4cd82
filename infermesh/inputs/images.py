"""Make the content block of a picture in a chat message from a path, bytes or a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pybase64 import b64encode_as_string

from infermesh.errors import InputError
from infermesh.inputs.formats import SNIFFED, sniff
from infermesh.inputs.paths import opened, read_all

__all__ = ["image_block"]

_SENT = ("image/png", "image/jpeg", "image/gif", "image/webp")  # what every provider takes
_MAX_BYTES = 64 * 1024 * 1024  # more than any provider takes


def image_block(
    source: str | Path | bytes, *, mime_type: str | None = None, detail: str | None = None, mime: str | None = None
) -> dict[str, Any]:
    """Make a picture a part of a chat message: ``{"type": "image_url", "image_url": {"url": …}}``.

    Parameters
    ----------
    source
        A file's path, its bytes, or an ``http(s)://`` or ``data:`` URL. A file is sent in the request as a data URL. An
        http URL is sent as it is, and the server fetches it.
    mime_type
        The media type, such as ``image/svg+xml``. ``None`` tells PNG, JPEG, GIF and WebP by their bytes. Of a URL it
        says nothing: the server goes by what it fetches.
    detail
        OpenAI's ``low``, ``high`` or ``auto``.
    mime
        A former name of ``mime_type``.

    Raises
    ------
    InputError
        The file is missing, unreadable, larger than 64 MiB, or not an image of a known type; or ``mime_type`` is no
        media type.

    Examples
    --------
    >>> from infermesh import image_block
    >>> question = {"type": "text", "text": "What is in this picture?"}
    >>> turn = {"role": "user", "content": [question, image_block("https://example.org/cat.png", detail="low")]}
    >>> client.generate([turn]).finish_reason
    'stop'
    """
    image: dict[str, Any] = {"url": _url(source, _media_type(mime_type if mime_type is not None else mime))}
    if detail is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _media_type(given: object) -> str | None:
    """A media type that a data URL can carry: type/subtype, in the characters of RFC 6838, section 4.2."""
    if given is None or (isinstance(given, str) and re.fullmatch(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", given, re.ASCII)):
        return given
    raise InputError(f"mime_type: expected a media type such as 'image/png', got {given!r:.100}")


def _url(source: str | Path | bytes, mime: str | None) -> str:
    if isinstance(source, str):
        head = source[:11].lower()
        if head.startswith(("http://", "https://", "data:image/")):
            return source
        if head.startswith("data:"):
            raise InputError(f"the data URL is not an image: it begins {source[:40]!r}, expected data:image/…")
    if isinstance(source, str | Path):
        data, mime = _read(Path(source), f"the image {str(source)!r:.300}", mime)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        mime = mime or _mime(data, "the image")
    else:
        raise InputError(f"cannot make an image from {type(source).__name__}: pass a path, bytes or a URL")
    return f"data:{mime};base64,{b64encode_as_string(data)}"


def _read(path: Path, name: str, mime: str | None) -> tuple[bytes, str]:
    """A file's bytes and its media type. A file that is no image is not read."""
    with opened(Path(os.path.expanduser(path)), name) as (file, stat):
        mime = mime or _mime(file.peek(SNIFFED), name)
        data = read_all(file, stat, _MAX_BYTES) if stat.st_size <= _MAX_BYTES else b""
    if not 0 < len(data) <= _MAX_BYTES:
        raise InputError(f"{name} has more than {_MAX_BYTES:,} bytes: make it smaller, no provider takes that")
    return data, mime


def _mime(data: bytes, name: str) -> str:
    found = sniff(data)
    if found is None or found.mime not in _SENT:
        what = "" if found is None else f" but {found.mime}"
        raise InputError(f"{name} is not a PNG, JPEG, GIF or WebP{what}: convert it, or pass its mime_type")
    return found.mime
