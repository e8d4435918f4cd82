"""What a key looks like and what it is called, and how it is kept out of what is shown, logged or stored.

The one list for all who ask: the check of configs and command lines (:func:`looks_secret`, :func:`names_secret`,
:func:`names_config_secret`) and the cleaning of messages (:func:`redact`).
"""

from __future__ import annotations

import base64
import binascii
import functools
import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

__all__ = [
    "looks_secret",
    "names_config_secret",
    "names_secret",
    "origin",
    "redact",
    "secret_parts",
    "secret_values",
    "shown_url",
    "url_secrets",
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
    _prefixed("glpat-"),  # GitLab
    _prefixed("xox[abeprs]-"),  # Slack
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
_QUOTED = re.compile(
    rf"(?i:\bbearer\s+)[^\s\"',;]+|(?i:\bbasic\s+)(?=\S*[\d=+/])[\w+/\-]{{8,}}=*"
    rf"|\b(?:{'|'.join(shape.quoted for shape in _KEY_SHAPES)})"
)
_BASIC = re.compile(r"(?i:\bbasic\s+)([A-Za-z0-9+/_\-]{6,}={0,2})(?![A-Za-z0-9+/_\-=])")  # RFC 7617
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)", re.DOTALL)
_SQL_SECRET = re.compile(  # DuckDB's CREATE SECRET and its settings
    r"\bcreate\b[^;]*\bsecret\b[^;]*\b(?:secret|key_id|\w*token|password|\w*key|connection_string)\s*'[^'\s]+'"
    r"|\bset\s+(?:\w+\s+)?\w*(?:secret|token|password|key|connection_string)\w*\s*(?:=|to)\s*'[^'\s]+'",
    re.IGNORECASE,
)
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
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_URL_USER = re.compile(r"://([^/\s:@\"'<>?#]+):?@")
_USERINFO = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
_QUERY = re.compile(r"(https?://[^\s?#\"'<>]+)\?[^\s\"'<>)]*")
_QUERIES = re.compile(r"[a-z][a-z0-9+.\-]*://[^\s?\"'<>]+\?([^\s\"'<>)]+)", re.IGNORECASE)

_SECRET_NAME = re.compile(
    r"authori[sz]ation|cookie|(?:^|[-_.])(?:auth|(?:api)?(?:key|token|secret|password)s?)$|(?:password|secret|apikey)$",
    re.IGNORECASE,
)
_CONFIG_SECRET = re.compile(
    r"authori[sz]ation|cookie|^(?:token|secret)$|passwo?r?d$|passphrase$|connection[-_]?string$"
    r"|(?:api|access|auth|secret|subscription|private|client|account|refresh|security|session|ad|bearer|id|hf|user|sas"
    r"|signing|encryption|master|service|webhook|shared|proxy)[-_]?(?:key|token|secret|password)s?$",
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
        or _PRIVATE_KEY.search(text) is not None
        or any(_is_user_and_password(found[1]) for found in _BASIC.finditer(text))
        or _URL_PASSWORD.search(text) is not None
        or any(len(found[1]) >= _SHORTEST_KEY and _is_random(found[1]) for found in _URL_USER.finditer(text))
        or _query_holds_secret(text)
        or _SQL_SECRET.search(text) is not None
    )


def _is_user_and_password(encoded: str) -> bool:
    """Whether what follows ``Basic`` is base64 of ``user:password``; a word is not."""
    try:
        return ":" in base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return False


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
    """Whether a text is a URL whose query names a key, as in ``?key=…``, or holds one, as a query of a bucket does."""
    alone = text.startswith(("http://", "https://")) and not any(character.isspace() for character in text)
    named = names_secret if alone else names_config_secret
    return any(named(name) and value for found in _QUERIES.finditer(text) for name, value in parse_qsl(found[1]))


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
        if secret:
            text = _plain(secret).sub(_REDACTED, text)
            for part, pattern in _encoded(secret):
                if part in text:
                    text = pattern.sub(_REDACTED, text)
    text = _PRIVATE_KEY.sub(_REDACTED, text)
    text = _QUOTED.sub(_REDACTED, text)
    text = _USERINFO.sub(f"{_REDACTED}@", text)
    return _QUERY.sub(rf"\1?{_REDACTED}", text)


_LONG = 12
_BETWEEN = r"(?:\s|\\[nrt])*"  # where a text was broken into lines, or quoted with its breaks


@functools.lru_cache(maxsize=256)
def _plain(secret: str) -> re.Pattern[str]:
    """What finds a key in a text, as it is and as URLs, JSON and HTML write it.

    Of a long one the beginning is enough, since servers quote keys with stars in them. A short one may be part of an
    ordinary word: only where it stands alone.
    """
    forms = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret)}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    if len(secret) < _LONG:
        return re.compile("|".join(rf"(?<![\w-]){re.escape(form)}(?![\w-])" for form in _longest_first(forms)))
    found = [_BETWEEN.join(map(re.escape, form)) for form in _longest_first(forms)]
    found.append(re.escape(secret[:8]) + r"[^\s\"',;]*")
    return re.compile("|".join(found))


@functools.lru_cache(maxsize=256)
def _encoded(secret: str) -> list[tuple[str, re.Pattern[str]]]:
    """What finds base64 that holds a key, and a part of it by which one sees that there is none."""
    if len(secret) < _LONG:
        return []
    parts = _longest_first({*_in_base64(secret)})
    return [(part, re.compile(rf"[\w+/\-]*{re.escape(part)}[\w+/\-]*=*")) for part in parts]


def _longest_first(forms: set[str]) -> list[str]:
    return sorted(forms, key=len, reverse=True)


def _in_base64(secret: str) -> Iterator[str]:
    """What base64 makes of a key wherever it stands in what is encoded, as in ``user:key``: three ways, two alphabets.

    Only those characters that are decided by the key alone.
    """
    raw = secret.encode()
    for before in range(3):
        bits = 8 * before, 8 * (before + len(raw))
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        part = encoded[-(-bits[0] // 6) : bits[1] // 6]
        yield from (part, part.replace("+", "-").replace("/", "_"))


def url_secrets(url: str) -> list[str]:
    """What a URL holds of keys, for :func:`redact`: its user and password, and the values of telling parameters."""
    try:
        parts = urlsplit(url)
        held = [parts.password, parts.username, parts.netloc.rpartition("@")[0]]
    except ValueError:
        return []
    held += [value for name, value in parse_qsl(parts.query) if names_secret(name)]
    return [form for value in held if value for form in dict.fromkeys((value, unquote(value)))]


def shown_url(url: str | None) -> str | None:
    """A URL to be shown: its user, its password and its query are left out."""
    return url and _QUERY.sub(rf"\1?{_REDACTED}", _USERINFO.sub(f"{_REDACTED}@", url))


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
