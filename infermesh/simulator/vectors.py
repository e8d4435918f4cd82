"""Embeddings without a model: hashed bags of words and character trigrams."""

from __future__ import annotations

import math
import re
import sys
from array import array
from base64 import b64encode
from collections import Counter
from functools import lru_cache
from zlib import crc32

__all__ = ["embed", "to_base64"]

_WORD = re.compile(r"\w+")
_TRIGRAM_WEIGHT = 0.35
_LITTLE_ENDIAN = sys.byteorder == "little"


@lru_cache(maxsize=65536)
def _features(word: str, dimensions: int) -> tuple[tuple[int, float], ...]:
    """Where a word adds to a vector, and how much.

    The sign comes from the hash too, so that collisions cancel out instead of making all texts alike (Weinberger et
    al., Feature Hashing for Large Scale Multitask Learning, 2009).
    """
    # Short words are mostly grammar, which every text shares.
    weight = min(len(word), 8) / 8 if len(word) > 3 else 0.1
    padded = f"^{word}$"
    trigrams = [padded[start : start + 3] for start in range(len(padded) - 2)]
    share = weight * _TRIGRAM_WEIGHT / math.sqrt(len(trigrams))
    features = [(f"w:{word}", weight), *((trigram, share) for trigram in trigrams)]
    places = []
    for feature, amount in features:
        code = crc32(feature.encode("utf-8", "surrogatepass"))
        places.append(((code >> 1) % dimensions, amount if code & 1 else -amount))
    return tuple(places)


def embed(text: str, dimensions: int) -> list[float]:
    """Return a unit vector. Texts that share words, or parts of words, have a higher cosine."""
    vector = [0.0] * dimensions
    for word, count in Counter(_WORD.findall(text.lower())).items():
        times = 1 + math.log(count)
        for place, amount in _features(word, dimensions):
            vector[place] += amount * times
    norm = math.sqrt(sum(value * value for value in vector))
    if norm < 1e-9:
        # A text of punctuation alone, or all features cancelled out. It gets a unit vector all the same.
        vector = [0.0] * dimensions
        vector[crc32(text.encode("utf-8", "surrogatepass")) % dimensions] = 1.0
        return vector
    return [value / norm for value in vector]


def to_base64(vector: list[float]) -> str:
    """Return the little-endian float32 values in base64, as OpenAI does."""
    values = array("f", vector)
    if not _LITTLE_ENDIAN:
        values.byteswap()
    return b64encode(values.tobytes()).decode()
