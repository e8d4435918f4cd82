"""What a file's first bytes say."""

from __future__ import annotations

import pytest

from infermesh.inputs.formats import sniff


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", ("png", "image/png")),
        (b"\xff\xd8\xff\xe0", ("jpg", "image/jpeg")),
        (b"GIF89a", ("gif", "image/gif")),
        (b"RIFF\0\0\0\0WEBPVP8 ", ("webp", "image/webp")),
        (b"RIFF\0\0\0\0WAVEfmt ", ("wav", "audio/wav")),
        (b"fLaC", ("flac", "audio/flac")),
        (b"OggS", ("ogg", "audio/ogg")),
        (b"\x1a\x45\xdf\xa3", ("webm", "video/webm")),
        (b"\0\0\0\x20ftypM4A ", ("m4a", "audio/mp4")),
        (b"\0\0\0\x20ftypisom", ("mp4", "video/mp4")),
        (b"ID3\x04", ("mp3", "audio/mpeg")),
        (b"\xff\xfb\x90", ("mp3", "audio/mpeg")),
        (b"\xff\xf3\x90", ("mp3", "audio/mpeg")),
        (b"\xff\xfd\x90", ("mp3", "audio/mpeg")),
        (b"\xff\xf1\x50", ("aac", "audio/aac")),
        (b"\xff\xf9\x50", ("aac", "audio/aac")),
        (b"RF64\xff\xff\xff\xffWAVE", ("wav", "audio/wav")),
        (b"RIFF\0\0\0\0AVI LIST", ("avi", "video/x-msvideo")),
        (b"FORM\0\0\0\0AIFCFVER", ("aiff", "audio/aiff")),
        (b"#!AMR-WB\n", ("amr", "audio/amr")),
        (b"caff\0\1\0\0desc", ("caf", "audio/x-caf")),
        (b".snd\0\0\0\x18", ("au", "audio/basic")),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", ("wma", "audio/x-ms-wma")),
        (b"\0\0\0\x14ftyp3gp4", ("3gp", "video/3gpp")),
        (b"\0\0\0\x14ftypqt  ", ("mov", "video/quicktime")),
        (b"\0\0\0\x08wide\0\0\x12mdat", ("mov", "video/quicktime")),
        (b"\0\0\0\x18ftypheic", ("heif", "image/heif")),
        (b"\0\0\1\xba", ("mpeg", "video/mpeg")),
        (b"FLV\1\5", ("flv", "video/x-flv")),
        (b"%PDF-1.7", ("pdf", "application/pdf")),
    ],
)
def test_a_signature(data: bytes, expected: tuple[str, str]) -> None:
    assert sniff(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"R",
        b"RIFF\0\0\0\0PAL ",
        b"....WAVE....WAVE",
        b"\xff",
        b"<svg>",
        b"hello",
        "ID3_KEY=secret".encode("utf-16"),  # FF FE
        "ID3_KEY=secret".encode("utf-16-be"),
        b"ID3_KEY=secret",
        b"-----BEGIN OPENSSH PRIVATE KEY-----",
        b"\x30\x82\x04\xa4\x02\x01\x00",  # a key in DER
        b"SQLite format 3\0",
        b"FORM=secret\n",
    ],
)
def test_no_signature(data: bytes) -> None:
    assert sniff(data) is None
