"""Content codings (RFC 9110, section 8.4), decoded piece by piece, so that a bound on the result holds meanwhile."""

from __future__ import annotations

import zlib

__all__ = ["Inflater", "inflater_for"]

_STEP = 1 << 20  # decoded at a time: zlib holds it twice
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_BARE = -zlib.MAX_WBITS  # what some servers send as "deflate"


class Inflater:
    """Decodes gzip and deflate.

    Parameters
    ----------
    most
        The most bytes that the result may have.

    Attributes
    ----------
    data
        What is decoded and not taken yet.
    """

    __slots__ = ("_decoder", "_first", "_room", "data")

    def __init__(self, most: int) -> None:
        self._room = most
        self._decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._first = True
        self.data = bytearray()

    def add(self, piece: bytes) -> bool:
        """Decode a piece; whether the result still fits.

        Raises
        ------
        zlib.error
            It is not of that coding.
        """
        while True:
            if self._decoder.eof:  # several members may follow each other (RFC 1952, section 2.2)
                if piece[:1] != b"\x1f":  # what follows the last one is nothing
                    return True
                self._decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
            room = min(_STEP, self._room + 1)
            decoded = self._decode(piece, room)
            self.data += decoded[: self._room]
            self._room -= len(decoded)
            if self._room < 0:
                return False
            piece = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
            if not piece and len(decoded) < room:
                return True

    def take(self) -> bytes:
        """What is decoded since the last time."""
        data, self.data = bytes(self.data), bytearray()
        return data

    def _decode(self, piece: bytes, room: int) -> bytes:
        first, self._first = self._first, False
        try:
            return self._decoder.decompress(piece, room)
        except zlib.error:
            if not first:
                raise
            self._decoder = zlib.decompressobj(_BARE)
            return self._decoder.decompress(piece, room)

    @property
    def complete(self) -> bool:
        """Whether the end was reached. Nothing at all is complete, too: an empty body."""
        return self._first or self._decoder.eof


def inflater_for(coding: str, most: int) -> Inflater | None:
    """What decodes a body of this ``Content-Encoding``; ``None``: it is not encoded.

    Raises
    ------
    ValueError
        A coding that was not asked for and is not known, such as ``br``.
    """
    coding = coding.strip().lower()
    if coding in ("gzip", "x-gzip", "deflate"):
        return Inflater(most)
    if coding in ("", "identity"):
        return None
    raise ValueError(f"content-encoding {coding[:100]!r}")
