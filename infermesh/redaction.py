"""Keeping keys out of what is shown, logged or stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["origin", "redact", "secret_values"]

_REDACTED = "[redacted]"

_KEY_SHAPES = re.compile(
    r"(?i:\bbearer\s+)[^\s\"',;]+"
    r"|\b(?:sk|pk|rk|gsk|xai|hf|nvapi|fw|csk|pplx|r8|tgp)[-_][\w*.\-]{6,}"
    r"|\bAIza[\w\-*]{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
_SECRET_NAME = re.compile(r"authorization|cookie|(?:^|[-_])(?:api)?(?:key|token|secret|password)s?$", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
_QUERY = re.compile(r"(https?://[^\s?#\"'<>]+)\?[^\s\"'<>)]*")


def redact(text: str, *secrets: str | None) -> str:
    """Take the keys out of a text that will be shown, logged or stored.

    Parameters
    ----------
    text
        Something a server or a library said; servers echo keys.
    secrets
        The keys at hand, also where only their beginning is quoted. Whatever has the shape of a provider's key, a
        bearer token, a URL's user and password, or a URL's query goes in any case.
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
    text = _KEY_SHAPES.sub(_REDACTED, text)
    text = _USERINFO.sub(f"{_REDACTED}@", text)
    return _QUERY.sub(rf"\1?{_REDACTED}", text)


def secret_values(named: Mapping[str, str]) -> list[str]:
    """The values of those headers or environment variables that are secret by their name."""
    values: list[str] = []
    for name, value in named.items():
        if _SECRET_NAME.search(name) and value:
            values += [value, *value.split()[1:]]  # "Bearer x": the scheme alone is no secret
    return values


def origin(url: str) -> str:
    """``scheme://host:port`` of a URL, for messages: no user, password, path or query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or "?"
    except ValueError:
        return "?"
    return f"{parts.scheme or 'http'}://{f'[{host}]' if ':' in host else host}{port}"


_SECRET_KEYS = frozenset({"api_key", "authorization", "x-api-key", "api-key", "cookie", "token", "password", "secret"})
_SECRET_VALUE = re.compile(r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|Bearer\s+[A-Za-z0-9._-]{16,})")


def looks_secret(text: str) -> bool:
    """Whether a text holds what looks like a key, or a password in a URL."""
    return bool(_SECRET_VALUE.search(text) or re.search(r"://[^/\s:@]+:[^/\s@]+@", text))
