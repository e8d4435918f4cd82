"""Embeddings and transcriptions."""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest

from infermesh.simulator.vectors import embed

Start = Callable[..., Any]
Ask = Callable[..., Any]


def cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def test_embeddings_shape(start: Start, ask: Ask) -> None:
    types = pytest.importorskip("openai.types")
    simulator = start()
    reply = ask(simulator, "/v1/embeddings", {"model": "mini", "input": ["one text", "another text"]})
    answer = types.CreateEmbeddingResponse.model_validate(reply.json(), strict=True)
    assert [item.index for item in answer.data] == [0, 1]
    assert {len(item.embedding) for item in answer.data} == {64}
    assert answer.model == "mini"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens == 5


def test_base64_says_the_same(start: Start, ask: Ask) -> None:
    simulator = start()
    body = {"model": "m", "input": "the quick brown fox", "dimensions": 16}
    plain = ask(simulator, "/v1/embeddings", body).json()["data"][0]["embedding"]
    packed = ask(simulator, "/v1/embeddings", {**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert len(plain) == 16
    assert struct.unpack("<16f", b64decode(packed)) == pytest.approx(plain)


@pytest.mark.parametrize("text", ["a longer text about whales", "?!", "x", " ", "\ud83d", "日本語"])
def test_vectors_have_length_one(text: str) -> None:
    assert math.hypot(*embed(text, 64)) == pytest.approx(1)
    assert math.hypot(*embed(text, 1)) == pytest.approx(1)


def test_similar_texts_are_nearer() -> None:
    printer = embed("My printer shows blank pages after I changed the cartridge", 64)
    printers = embed("The printers print empty pages since the cartridge change", 64)
    refund = embed("Please refund the second invoice of our annual subscription", 64)
    assert cosine(printer, printers) > cosine(printer, refund) + 0.2


def test_one_bad_text_fails_the_batch(start: Start, ask: Ask) -> None:
    simulator = start(bad_texts="BAD")
    reply = ask(simulator, "/v1/embeddings", {"model": "m", "input": ["good", "a BAD one"]})
    assert (reply.status, reply.code()) == (400, "invalid_input")
    assert ask(simulator, "/v1/embeddings", {"model": "m", "input": ["good"]}).status == 200


def test_embedding_limits(start: Start, ask: Ask) -> None:
    simulator = start(context_window=10)
    assert ask(simulator, "/v1/embeddings", {"model": "m", "input": ["word " * 6] * 9}).status == 200
    long = ask(simulator, "/v1/embeddings", {"model": "m", "input": ["fine", "word " * 9]})
    assert (long.status, long.code()) == (400, "context_length_exceeded")
    for value in ("", [], ["ok", ""], ["x"] * 2049):
        assert ask(simulator, "/v1/embeddings", {"model": "m", "input": value}).status == 400
    assert len(ask(simulator, "/v1/embeddings", {"model": "m", "input": [[1, 2], [3]]}).json()["data"]) == 2


def test_a_clip_carries_its_words(start: Start, upload: Ask, wav: Callable[..., bytes]) -> None:
    simulator = start()
    clip = wav(1.5, comment="Grüße from the fjord.", language="no")
    plain = upload(simulator, clip).json()
    assert plain["text"] == "Grüße from the fjord."
    verbose = upload(simulator, clip, response_format="verbose_json").json()
    assert (verbose["text"], verbose["duration"], verbose["language"]) == ("Grüße from the fjord.", 1.5, "no")
    assert verbose["segments"][0]["end"] == 1.5
    text = upload(simulator, clip, response_format="text")
    assert text.body.decode() == "Grüße from the fjord.\n"
    assert text.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("comment", ["odd", "even"])
def test_chunks_are_padded(start: Start, upload: Ask, wav: Callable[..., bytes], comment: str) -> None:
    # The language comes after the comment: a wrong step over the padding byte loses it.
    clip = upload(start(), wav(1, comment=comment, language="no"), response_format="verbose_json").json()
    assert (clip["text"], clip["language"]) == (comment, "no")


def test_a_clip_without_words(start: Start, upload: Ask, wav: Callable[..., bytes]) -> None:
    simulator = start(language="de")
    first = upload(simulator, wav(8), response_format="verbose_json").json()
    assert len(first["text"].split()) == 20
    assert first["language"] == "de"
    assert upload(simulator, wav(8)).json()["text"] == first["text"]
    assert upload(simulator, wav(4)).json()["text"] != first["text"]
    assert upload(simulator, wav(8), response_format="verbose_json", language="fr").json()["language"] == "fr"


def test_other_formats_are_estimated(start: Start, upload: Ask) -> None:
    reply = upload(start(), b"ID3" + bytes(31_997), response_format="verbose_json")
    assert reply.json()["duration"] == 2.0


def test_wav_that_is_not_plain(start: Start, upload: Ask, wav: Callable[..., bytes]) -> None:
    simulator = start()
    clip = bytearray(wav(2))
    clip[20:22] = struct.pack("<H", 7)  # mu-law, which `wave` does not read
    assert upload(simulator, bytes(clip), response_format="verbose_json").json()["duration"] == 2.0
    piped = bytearray(wav(2))
    piped[40:44] = b"\xff\xff\xff\xff"
    assert upload(simulator, bytes(piped), response_format="verbose_json").json()["duration"] == pytest.approx(
        2, abs=0.1
    )


def test_bad_uploads(start: Start, upload: Ask, ask: Ask) -> None:
    simulator = start(max_body_bytes=2000)
    assert upload(simulator, b"").json()["error"]["param"] == "file"
    assert upload(simulator, b"RIFF\0\0\0\0WAVEjunk").status == 400
    assert upload(simulator, b"x", response_format="srt").status == 400
    assert upload(simulator, bytes(3000)).status == 413
    assert ask(simulator, "/v1/audio/transcriptions", {"model": "m"}).code() == "invalid_content_type"
    broken = ask(simulator, "/v1/audio/transcriptions", b"junk", {"Content-Type": "multipart/form-data; boundary=b"})
    assert broken.status == 400
