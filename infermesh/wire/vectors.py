"""The OpenAI wire format, embeddings: decoded JSON → vectors, which stay the bytes that came where they are base64."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from pybase64 import b64decode

from infermesh.results import EmbeddingResult
from infermesh.types import Reply
from infermesh.wire.replies import malformed, request_id_of, text_or_none
from infermesh.wire.usage import count, shares, usage_of

__all__ = ["FLOAT32_MAX", "parse_embeddings"]

FLOAT32_MAX = 3.4028234663852886e38  # vectors are stored as float32


def parse_embeddings(reply: Reply, n: int, weights: Sequence[int] | None = None) -> list[EmbeddingResult]:
    """Read ``n`` embeddings, in the order of the texts.

    Parameters
    ----------
    reply
        The answer; vectors as lists of floats, or base64 of little-endian float32 (``encoding_format: base64``).
    n
        How many texts were sent.
    weights
        The texts' lengths in any unit. The request's tokens are shared out to the texts by them, and the shares add up
        to the whole. ``None`` shares equally.

    Raises
    ------
    MalformedResponseError
        There are not ``n`` vectors with the indices 0 … n-1, or one is empty or holds what is no finite number.
        Indices that are all left out, or all the same, say nothing: the vectors are in the order of the texts then. A
        single one that is left out is the one that is missing (0 in JSON written from protocol buffers).
    """
    body = reply.body
    data = body.get("data")
    if not isinstance(data, list) or len(data) != n:
        found = f"{len(data)}" if isinstance(data, list) else "none"
        malformed(f"{n} embeddings in 'data' ({found} came)", reply)
    results = [_EMPTY] * n
    for index, item in zip(_indices(data, reply), data, strict=True):
        results[index] = _embedding(item.get("embedding"), reply)
    request_id = request_id_of(reply)
    model_id = text_or_none(body.get("model"))
    usages = shares(usage_of(body, input_only=True), weights if weights is not None else [1] * n)
    for result, usage in zip(results, usages, strict=True):
        result.request_id, result.model_id, result.token_usage = request_id, model_id, usage
    return results


def _indices(data: list[Any], reply: Reply) -> Sequence[int]:
    """Which text each vector belongs to."""
    everyone = range(len(data))
    try:
        told = [item.get("index") for item in data]
    except AttributeError:
        malformed("a list of objects in 'data'", reply)
    if told == list(everyone) or all(index == told[0] for index in told):
        return everyone
    indices = [None if index is None else count(index) for index in told]
    if told.count(None) == 1 and len(left := set(everyone).difference(indices)) == 1:
        indices[told.index(None)] = left.pop()
    found = [index for index in indices if index is not None]
    if sorted(found) != list(everyone):
        malformed(f"each index 0 … {len(data) - 1} once in 'data'", reply)
    return found


def _embedding(value: Any, reply: Reply) -> EmbeddingResult:
    try:
        if isinstance(value, str):
            packed = b64decode(value, validate=True)
            if sys.byteorder == "big":
                packed = _swapped(packed)
            # The byte that holds most of the exponent says of nearly every vector that its numbers are finite.
            highest = packed[_HIGHEST::4]
            if not packed or len(packed) % 4 or ((b"\x7f" in highest or b"\xff" in highest) and not _is_finite(packed)):
                malformed("each embedding as base64 of finite float32 numbers", reply)
            return EmbeddingResult.of_bytes(packed)
        # One pass in C finds what is not a number, not finite, or too large: no number is larger than the length.
        if not isinstance(value, list) or not value or not math.hypot(*value) <= FLOAT32_MAX:
            malformed("each embedding as a non-empty list of finite numbers within float32", reply)
    except (TypeError, ValueError, OverflowError):
        malformed("each embedding as a list of numbers, or base64 of float32", reply)
    return EmbeddingResult(embedding=value)


_HIGHEST = 3 if sys.byteorder == "little" else 0  # of a number's four bytes
_EMPTY = EmbeddingResult()


def _swapped(packed: bytes) -> bytes:
    numbers = array("f", packed)
    numbers.byteswap()
    return numbers.tobytes()


def _is_finite(packed: bytes) -> bool:
    return all(map(math.isfinite, memoryview(packed).cast("f")))
