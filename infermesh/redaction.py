"""What a key looks like and what it is called, and how it is kept out of what is shown, logged or stored.

The one list for all who ask: the check of configs and command lines (:func:`looks_secret`, :func:`names_secret`,
:func:`names_config_secret`) and the cleaning of messages (:func:`redact`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

__all__ = [
    "looks_secret",
    "names_config_secret",
    "names_secret",
    "origin",
    "redact",
    "secret_parts",
    "secret_values",
]

_REDACTED = "[redacted]"


class _KeyShape(NamedTuple):
    """How the keys of some providers begin.

    ``whole`` is the pattern of a complete key, ``quoted`` that of the piece which servers repeat in their messages,
    often with stars in its middle.
    """

    whole: str
    quoted: str


def _prefixed(prefix: str) -> _KeyShape:
    return _KeyShape(rf"{prefix}[\w\-]{{16,}}", rf"{prefix}[\w*.\-]{{6,}}")


# The prefixes are those of keys as their providers hand them out. Cohere, Mistral and Azure have none: their keys are
# known by the name that they stand under.
_KEY_SHAPES = (
    _prefixed("[spr]k-"),  # OpenAI, Anthropic (sk-ant-), OpenRouter (sk-or-), DeepSeek, Moonshot, LiteLLM, Langfuse
    _prefixed("[spr]k_"),  # ElevenLabs, Stripe
    _prefixed("gsk_"),  # Groq
    _prefixed("xai-"),  # xAI
    _prefixed("hf_"),  # Hugging Face
    _prefixed("nvapi-"),  # NVIDIA
    _prefixed("fw_"),  # Fireworks
    _prefixed("csk-"),  # Cerebras
    _prefixed("pplx-"),  # Perplexity
    _prefixed("r8_"),  # Replicate
    _prefixed("tgp_"),  # Together
    _prefixed("jina_"),  # Jina
    _prefixed("gh[opsu]_"),  # GitHub
    _prefixed("github_pat_"),  # GitHub, fine-grained
    _prefixed("ABSK"),  # Amazon Bedrock
    _KeyShape(r"AIza[\w\-]{16,}", r"AIza[\w*.\-]{6,}"),  # Google
    _KeyShape(r"AQ\.[\w\-]{16,}", r"AQ\.[\w*\-]{16,}"),  # Google, the newer ones
    _KeyShape(r"ya29\.[\w.\-]{16,}", r"ya29\.[\w*.\-]{6,}"),  # Google, OAuth
    _KeyShape(r"A[KS]IA[A-Z0-9]{12,}", r"A[KS]IA[A-Z0-9*]{12,}"),  # AWS, the key's id
    _KeyShape(r"dapi[0-9a-f]{32}", r"dapi[0-9a-f*]{12,}"),  # Databricks
    _KeyShape(r"eyJ[\w\-]{8,}\.[\w\-]{8,}", r"eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*"),  # a JSON web token
)
_SHORTEST_KEY = 16
_WHOLE = re.compile(
    rf"(?<![\w\-])(?:{'|'.join(shape.whole for shape in _KEY_SHAPES)})|(?i:\bbearer\s+)[\w.~+/=\-]{{16,}}"
)
_QUOTED = re.compile(rf"(?i:\bbearer\s+)[^\s\"',;]+|\b(?:{'|'.join(shape.quoted for shape in _KEY_SHAPES)})")
_PREFIX = re.compile(r"(?i:bearer\s+)|AIza|AQ\.|ya29\.|A[KS]IA|ABSK|dapi|eyJ|[a-z0-9]+(?:_pat)?[-_]")

# What a person writes behind such a prefix is words and versions (llama-v3p1, 70b): few changes between small letters,
# capitals and digits, and no very long run of them. Of keys with 22 characters of base64 one in 500 reads so, of longer
# ones none.
_LONG_RUN = 16
_LONG_NUMBER = 9
_VERSION = re.compile(r"[a-z0-9]{1,5}")
_WORD = re.compile(r"[A-Z]+[a-z]*|[a-z]+|\d+")
_CHARS_A_WORD = 4
_SHARE_BY_CHANCE = 1 / 3
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # Langfuse's keys have one

_DATA_URL = re.compile(r"data:[\w.+\-/]+;base64,[A-Za-z0-9+/=]+")  # a picture's bytes may spell anything
_URL_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_USERINFO = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
_QUERY = re.compile(r"(https?://[^\s?#\"'<>]+)\?[^\s\"'<>)]*")

_SECRET_NAME = re.compile(
    r"authori[sz]ation|cookie|(?:^|[-_.])(?:auth|(?:api)?(?:key|token|secret|password)s?)$|(?:password|secret|apikey)$",
    re.IGNORECASE,
)
_CONFIG_SECRET = re.compile(
    r"authori[sz]ation|cookie|^(?:token|password|secret)$"
    r"|(?:api|access|auth|secret|subscription|private|client|account|refresh|security|session|ad)[-_]?"
    r"(?:key|token|secret|password)$",
    re.IGNORECASE,
)


def looks_secret(text: str) -> bool:
    """Whether a text holds a provider's key, a bearer token, or a URL with a password or a key in it.

    It is asked of what users write, where a false alarm stops the run. So a key must be whole, and must not read like a
    name: ``sk-learn-pipelines-v2`` and ``pplx-70b-online`` are none.
    """
    if len(text) < _SHORTEST_KEY and "://" not in text:
        return False  # most of what stands in a config
    text = _DATA_URL.sub("", text)
    return (
        any(_is_random(found[0]) for found in _WHOLE.finditer(text))
        or _URL_PASSWORD.search(text) is not None
        or _query_holds_secret(text)
    )


def _is_random(key: str) -> bool:
    """Whether what follows the prefix was drawn and not written."""
    if key.startswith("eyJ") or _UUID.search(key):
        return True
    runs = re.findall(r"[A-Za-z0-9]+", _PREFIX.sub("", key, count=1))
    if any(len(run) >= _LONG_RUN for run in runs):
        return True
    drawn = sum(len(run) for run in runs if not _is_written(run))
    return drawn > 0 and drawn >= _SHARE_BY_CHANCE * sum(map(len, runs))


def _is_written(run: str) -> bool:
    words = _WORD.findall(run)
    if len(words) == 1:
        return not (run.isdigit() and len(run) >= _LONG_NUMBER)
    return _VERSION.fullmatch(run) is not None or len(run) >= _CHARS_A_WORD * len(words)


def _query_holds_secret(text: str) -> bool:
    """Whether a text is a URL whose query names a key, as in ``?key=…``."""
    if not text.startswith(("http://", "https://")) or any(character.isspace() for character in text):
        return False
    return any(names_secret(name) and value for name, value in parse_qsl(text.partition("?")[2]))


def names_secret(name: str) -> bool:
    """Whether a header, an environment variable or a URL's parameter of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def names_config_secret(name: str) -> bool:
    """Whether a config's key of this name holds a secret.

    Narrower than :func:`names_secret`: wire parameters such as ``prompt_cache_key`` and ``eos_token`` hold none, and
    must be allowed to stand in a config.
    """
    return _CONFIG_SECRET.search(name) is not None


def redact(text: str, *secrets: str | None) -> str:
    """Take the keys out of a text that will be shown, logged or stored.

    Parameters
    ----------
    text
        Something a server or a library said; servers echo keys.
    secrets
        The keys at hand, also where only their beginning is quoted. Whatever has the shape of a provider's key, a
        bearer token, a URL's user and password, or a URL's query goes in any case.

    Examples
    --------
    >>> redact("Incorrect API key provided: sk-proj-abc***********wxyz.")
    'Incorrect API key provided: [redacted]'
    """
    for secret in secrets:
        if not secret:
            continue
        if len(secret) >= 12:
            text = text.replace(secret, _REDACTED)
            text = re.sub(re.escape(secret[:8]) + r"[^\s\"',;]*", _REDACTED, text)
        else:
            # A short key may be part of an ordinary word: only where it stands alone.
            text = re.sub(r"(?<![\w-])" + re.escape(secret) + r"(?![\w-])", _REDACTED, text)
    text = _QUOTED.sub(_REDACTED, text)
    text = _USERINFO.sub(f"{_REDACTED}@", text)
    return _QUERY.sub(rf"\1?{_REDACTED}", text)


def secret_values(named: Mapping[str, str]) -> list[str]:
    """The values of those headers or environment variables that hold a secret by their name, for :func:`redact`."""
    return [part for name, value in named.items() if names_secret(name) for part in secret_parts(value)]


def secret_parts(value: str) -> list[str]:
    """A secret as it may be quoted: whole, and without its scheme (``x`` of ``Bearer x``)."""
    return [value, *value.split()[1:]] if value else []


def origin(url: str) -> str:
    """``scheme://host:port`` of a URL, for messages: no user, password, path or query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or "?"
    except ValueError:
        return "?"
    return f"{parts.scheme or 'http'}://{f'[{host}]' if ':' in host else host}{port}"
