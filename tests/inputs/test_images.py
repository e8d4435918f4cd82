from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import InputError
from infermesh.inputs.audio import read_audio
from infermesh.inputs.images import image_block
from infermesh.inputs.paths import opened, read_all

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8
KINDS = {
    "png": (PNG, "image/png"),
    "jpeg": (b"\xff\xd8\xff\xe0abc", "image/jpeg"),
    "gif": (b"GIF89a...", "image/gif"),
    "webp": (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images(kind: str, tmp_path: Path) -> None:
    data, mime = KINDS[kind]
    (path := tmp_path / "picture").write_bytes(data)
    blocks = [image_block(source) for source in (data, path, str(path))]
    assert blocks[0] == blocks[1] == blocks[2]
    assert blocks[0]["type"] == "image_url"
    assert blocks[0]["image_url"]["url"].startswith(f"data:{mime};base64,")


@pytest.mark.parametrize("url", ["https://host/a.png", "HTTP://host/a", "data:image/png;base64,AAAA"])
def test_urls_are_sent_as_they_are(url: str) -> None:
    block = image_block(url, detail="low")
    assert block == {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def test_mime_for_other_kinds() -> None:
    with pytest.raises(InputError, match="not a PNG"):
        image_block(b"<svg/>")
    for name in ("mime_type", "mime"):
        url = image_block(b"<svg/>", **{name: "image/svg+xml"})["image_url"]["url"]
        assert url.startswith("data:image/svg+xml;base64,")


@pytest.mark.parametrize("wrong", ["", "png", "image/png;base64,AA", "image/p ng", 7])
def test_what_is_no_media_type(wrong: Any) -> None:
    with pytest.raises(InputError, match="mime_type: expected a media type"):
        image_block(b"<svg/>", mime_type=wrong)


@pytest.mark.parametrize("bad", ["nowhere.png", "data:text/plain,hi", "\0", ".", 7, None, b""])
def test_what_is_no_image(bad: Any) -> None:
    with pytest.raises(InputError):
        image_block(bad)


def test_what_is_no_image_is_not_read(tmp_path: Path) -> None:
    """Nor shown in the message: it may be a key. A pipe is not waited for."""
    (tmp_path / "key.png").write_bytes(b"secret=planted")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(PNG)
    os.truncate(tmp_path / "large.png", 2**36)
    for name, says in {"key": "not a PNG", "pipe": "is not a file", "large": "67,108,864"}.items():
        with pytest.raises(InputError, match=says) as caught:
            image_block(tmp_path / f"{name}.png")
        assert "secret" not in str(caught.value)


WAV = b"RIFF\0\0\0\0WAVEfmt "
CLIPS = {
    "wav": WAV,
    "mp3": b"ID3\x04rest",
    "flac": b"fLaC....",
    "ogg": b"OggS....",
    "m4a": b"\0\0\0\x20ftypM4A ",
    "webm": b"\x1a\x45\xdf\xa3....",
}


@pytest.mark.parametrize("extension", CLIPS)
def test_clips_get_the_name_of_their_format(extension: str, tmp_path: Path) -> None:
    data = CLIPS[extension]
    (path := tmp_path / "clip").write_bytes(data)
    assert read_audio(data).filename == f"audio.{extension}"
    assert read_audio(path).filename == f"clip.{extension}"
    assert read_audio(io.BytesIO(data)).data == data
    assert read_audio(b"\xff\xfbmp3 frames").filename == "audio.mp3"


def test_named_files(tmp_path: Path) -> None:
    (path := tmp_path / "talk.mp3").write_bytes(WAV)
    assert read_audio(str(path)).filename == "talk.mp3"
    with path.open("rb") as file:
        file.seek(4)
        clip = read_audio(file)
    assert (clip.filename, clip.data) == ("talk.mp3", WAV[4:])


class Trickle(io.RawIOBase):
    """Hands out a few bytes at a time, for ever."""

    handed_out = 0

    def read(self, size: int = -1) -> bytes:
        self.handed_out += 3
        return b"abc"


def test_size_limit(tmp_path: Path) -> None:
    (path := tmp_path / "big.wav").write_bytes(b"x" * 101)
    for source in (b"x" * 101, path, io.BytesIO(b"x" * 101)):
        with pytest.raises(InputError, match=r"100.*max_transcription_bytes"):
            read_audio(source, max_bytes=100)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        assert len(read_audio(source, max_bytes=101).data) == 101
        if isinstance(source, io.BytesIO):
            source.seek(0)
        assert len(read_audio(source, max_bytes=None).data) == 101
    with pytest.raises(InputError, match="101"):
        read_audio(path, max_bytes=100)
    with pytest.raises(InputError, match="26,214,400"):
        read_audio(bytes(25 * 1024 * 1024 + 1))


def test_an_endless_file_is_read_no_further_than_the_limit() -> None:
    endless = Trickle()
    with pytest.raises(InputError):
        read_audio(endless, max_bytes=100)  # type: ignore[arg-type]
    assert endless.handed_out < 110


@pytest.mark.parametrize(
    "bad", ["nowhere.wav", "https://host/a.wav", ".", "/dev/zero", b"", 7, None, io.StringIO("x"), "\0"]
)
def test_what_is_no_clip(bad: Any) -> None:
    with pytest.raises(InputError):
        read_audio(bad)


@pytest.mark.parametrize(("most", "read"), [(None, 30), (100, 30), (25, 26), (20, 21)])
def test_a_file_that_grows_as_it_is_read(tmp_path: Path, most: int | None, read: int) -> None:
    (path := tmp_path / "clip").write_bytes(b"x" * 20)
    with opened(path, "the clip") as (file, stat):
        with path.open("ab") as more:
            more.write(b"y" * 10)
        assert read_all(file, stat, most) == (b"x" * 20 + b"y" * 10)[:read]
