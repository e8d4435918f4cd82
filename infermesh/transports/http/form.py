"""Forms with a file in them (RFC 7578)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from mimetypes import guess_type
from typing import NamedTuple
from uuid import uuid4

from infermesh.types import Audio

__all__ = ["Form", "form"]

_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers do: HTML, "multipart form data"


class Form(NamedTuple):
    """A body in pieces, so that a clip is not copied, and its content type."""

    content_type: str
    pieces: tuple[bytes, ...]


def form(fields: Mapping[str, Sequence[str]], audio: Audio) -> Form:
    """Make the form of some text fields, each with one or more values, and the field ``file``."""
    boundary = uuid4().hex
    texts = "".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name.translate(_ESCAPES)}"\r\n\r\n{value}\r\n'
        for name, values in fields.items()
        for value in values
    )
    kind, _ = guess_type(audio.filename)
    head = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; '
        f'filename="{audio.filename.translate(_ESCAPES)}"\r\ncontent-type: {kind or "application/octet-stream"}\r\n\r\n'
    )
    pieces = ((texts + head).encode(), audio.data, f"\r\n--{boundary}--\r\n".encode())
    return Form(f"multipart/form-data; boundary={boundary}", pieces)
