"""What a clip's header tells: its length, and the words and the language that a test has written into it."""

from __future__ import annotations

import io
import struct
import wave
from dataclasses import dataclass

__all__ = ["Clip", "inspect"]

# 128 kbit/s, the usual rate of compressed speech and music.
_COMPRESSED_BYTES_PER_SECOND = 16_000


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip's duration in seconds, and its comment (`ICMT`) and language (`ILNG`) if it has them."""

    duration_s: float
    words: str | None = None
    language: str | None = None


def inspect(data: bytes) -> Clip:
    """Read a clip's header.

    Raises
    ------
    ValueError
        If the clip is empty, or is a RIFF file without sound.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return Clip(len(data) / _COMPRESSED_BYTES_PER_SECOND)
    chunks = _chunks(data, 12, len(data))
    info: dict[bytes, bytes] = {}
    for name, content in chunks:
        if name == b"LIST" and content[:4] == b"INFO":
            info.update(_chunks(content, 4, len(content)))
    return Clip(_duration(data, dict(chunks)), _text(info.get(b"ICMT")), _text(info.get(b"ILNG")))


def _duration(data: bytes, chunks: dict[bytes, bytes]) -> float:
    try:
        with wave.open(io.BytesIO(data)) as reader:
            # A recorder that writes to a pipe cannot go back to write the length. It leaves 4 GB there.
            frames = min(reader.getnframes(), len(data) // (reader.getnchannels() * reader.getsampwidth()))
            return float(frames / reader.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        # `wave` reads plain PCM only, but every format has its bytes per second at the same place.
        fmt = chunks.get(b"fmt ", b"")
        rate = struct.unpack_from("<I", fmt, 8)[0] if len(fmt) >= 16 else 0
        if not rate or b"data" not in chunks:
            raise ValueError("the file could not be decoded") from None
        return len(chunks[b"data"]) / int(rate)


def _chunks(data: bytes, start: int, end: int) -> list[tuple[bytes, bytes]]:
    """Split RIFF chunks: four letters, a little-endian length, the content, a byte of padding if it is odd."""
    found = []
    while start + 8 <= end:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        found.append((data[start : start + 4], data[start + 8 : start + 8 + size]))
        start += 8 + size + size % 2
    return found


def _text(value: bytes | None) -> str | None:
    text = (value or b"").split(b"\0", 1)[0].decode("utf-8", "replace").strip()
    return text or None
