"""What a file is by its first bytes: the one list of signatures."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["CLIPS", "SNIFFED", "Signature", "container", "is_clip", "sniff"]

# How files begin that hold no rows as they are. A frame of zstd may be a skippable one (RFC 8878, section 3.1.2).
_CONTAINERS = (
    (rb"\x1f\x8b\x08", "gzip"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"),
    (rb"BZh[1-9]1AY&SY", "bzip2"),
    (rb"\xfd7zXZ\0", "xz"),
    (rb"PK\x03\x04", "zip"),  # Excel's .xlsx, too
    (rb"PAR1", "parquet"),
)


def container(data: bytes) -> str | None:
    """What a file of rows is by its first bytes: how it is compressed, or ``parquet``; ``None`` for text."""
    return next((name for mark, name in _CONTAINERS if re.match(mark, data)), None)


class Signature(NamedTuple):
    """A format that is known by how its files begin: the usual suffix, without its dot, and the media type."""

    suffix: str
    mime: str


_PNG = Signature("png", "image/png")
_JPEG = Signature("jpg", "image/jpeg")
_GIF = Signature("gif", "image/gif")
_HEIF = Signature("heif", "image/heif")
_WAV = Signature("wav", "audio/wav")
_MP3 = Signature("mp3", "audio/mpeg")
_AIFF = Signature("aiff", "audio/aiff")
_MOV = Signature("mov", "video/quicktime")
_MPEG = Signature("mpeg", "video/mpeg")
# Offset and bytes; the first that fits counts. https://en.wikipedia.org/wiki/List_of_file_signatures
_SIGNATURES: tuple[tuple[int, bytes, Signature], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", _PNG),
    (0, b"\xff\xd8\xff", _JPEG),
    (0, b"GIF87a", _GIF),
    (0, b"GIF89a", _GIF),
    (0, b"fLaC", Signature("flac", "audio/flac")),
    (0, b"OggS", Signature("ogg", "audio/ogg")),  # Vorbis, Opus, Speex
    (0, b"\x1a\x45\xdf\xa3", Signature("webm", "video/webm")),  # Matroska
    (4, b"ftypM4A ", Signature("m4a", "audio/mp4")),  # MPEG-4 with sound alone
    (4, b"ftypqt  ", _MOV),
    (4, b"ftyp3g", Signature("3gp", "video/3gpp")),
    *((4, b"ftyp" + brand, _HEIF) for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")),
    (4, b"ftyp", Signature("mp4", "video/mp4")),
    (4, b"moov", _MOV),  # QuickTime as it was before ftyp
    (4, b"mdat", _MOV),
    (0, b"\0\0\0\x08wide", _MOV),
    *((0, b"ID3" + bytes([version]), _MP3) for version in (2, 3, 4)),
    (0, b"APETAGEX", _MP3),
    (0, b"#!AMR", Signature("amr", "audio/amr")),
    (0, b"caff\0\1", Signature("caf", "audio/x-caf")),
    (0, b".snd\0", Signature("au", "audio/basic")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Signature("wma", "audio/x-ms-wma")),  # ASF
    (0, b"FLV\1", Signature("flv", "video/x-flv")),
    (0, b"\0\0\1\xba", _MPEG),
    (0, b"\0\0\1\xb3", _MPEG),
    (0, b"%PDF", Signature("pdf", "application/pdf")),
)
# Formats of chunks: how the file begins, and what stands behind the chunk's size.
_CHUNKED: dict[tuple[bytes, bytes], Signature] = {
    (b"RIFF", b"WEBP"): Signature("webp", "image/webp"),
    (b"RIFF", b"WAVE"): _WAV,
    (b"RF64", b"WAVE"): _WAV,
    (b"BW64", b"WAVE"): _WAV,
    (b"RIFF", b"AVI "): Signature("avi", "video/x-msvideo"),
    (b"FORM", b"AIFF"): _AIFF,
    (b"FORM", b"AIFC"): _AIFF,
}
SNIFFED = 64  # bytes that are enough for sniff
CLIPS = "wav, mp3, flac, ogg, opus, m4a, mp4, mov, webm, mkv, aac, amr, aiff, caf, au, wma, 3gp, avi, flv or mpeg"


def sniff(data: bytes) -> Signature | None:
    """What a picture, a clip or a document is by its first bytes; ``None`` for any other."""
    for offset, mark, signature in _SIGNATURES:
        if data[offset : offset + len(mark)] == mark:
            return signature
    return _CHUNKED.get((bytes(data[:4]), bytes(data[8:12]))) or _mpeg_audio(data)


def is_clip(data: bytes) -> bool:
    """Whether a file is sound or a film by its first bytes."""
    found = sniff(data)
    return found is not None and found.mime.startswith(("audio/", "video/"))


def _mpeg_audio(data: bytes) -> Signature | None:
    """MPEG audio without a tag: eleven set bits, then the version and the layer (ISO 11172-3, section 2.4.1.3).

    Layer 0 is AAC in ADTS. Layer I is none: UTF-16 text begins so, with FF FE.
    """
    if len(data) < 2 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    if layer == 0:
        return Signature("aac", "audio/aac") if version >= 2 else None
    return _MP3 if version != 1 and layer != 3 else None
