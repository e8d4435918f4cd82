"""Make the content block of a picture in a chat message from a path, bytes or a URL."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from infermesh.errors import InputError
from infermesh.inputs.formats import sniff

__all__ = ["image_block"]


def image_block(source: str | Path | bytes, *, detail: str | None = None, mime: str | None = None) -> dict[str, Any]:
    """Make a picture a part of a chat message: ``{"type": "image_url", "image_url": {"url": …}}``.

    Parameters
    ----------
    source
        A file's path, its bytes, or an ``http(s)://`` or ``data:`` URL. A file is sent in the request as a data URL. An
        http URL is sent as it is, and the server fetches it.
    detail
        OpenAI's ``low``, ``high`` or ``auto``.
    mime
        The media type, if the picture is not PNG, JPEG, GIF or WebP.

    Raises
    ------
    InputError
        The file is missing, unreadable, or not an image of a known type.

    Examples
    --------
    >>> from infermesh import image_block
    >>> question = {"type": "text", "text": "What is in this picture?"}
    >>> turn = {"role": "user", "content": [question, image_block("https://example.org/cat.png", detail="low")]}
    >>> client.generate([turn]).finish_reason
    'stop'
    """
    image: dict[str, Any] = {"url": _url(source, mime)}
    if detail is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _url(source: str | Path | bytes, mime: str | None) -> str:
    if isinstance(source, str):
        head = source[:11].lower()
        if head.startswith(("http://", "https://", "data:image/")):
            return source
        if head.startswith("data:"):
            raise InputError(f"the data URL is not an image: it begins {source[:40]!r}, expected data:image/…")
    if isinstance(source, str | Path):
        name = f"the image {str(source)!r:.300}"
        data = _read(Path(source), name)
    elif isinstance(source, bytes | bytearray | memoryview):
        name = "the image"
        data = bytes(source)
    else:
        raise InputError(f"cannot make an image from {type(source).__name__}: pass a path, bytes or a URL")
    if mime is None and (found := sniff(data)) is not None and found.mime.startswith("image/"):
        mime = found.mime
    if mime is None:
        raise InputError(
            f"{name} is not a PNG, JPEG, GIF or WebP (it begins {data[:12]!r}): convert it, or pass its mime type"
        )
    return f"data:{mime};base64,{b64encode(data).decode()}"


def _read(path: Path, name: str) -> bytes:
    try:
        path = path.expanduser()
        if not path.is_file():
            raise InputError(f"{name} {'is not a file' if path.exists() else 'does not exist'}: check the path")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read: {error}") from None
