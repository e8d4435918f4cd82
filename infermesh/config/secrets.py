"""No key in a config: a run writes its config into its folder and its database."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.config.references import without_references
from infermesh.errors import ConfigError
from infermesh.redaction import looks_secret, names_config_secret, names_secret

__all__ = ["refuse_inline_keys"]

_HEADERS = frozenset({"headers", "extra_headers", "default_headers", "env_set"})
_URLS = (("api_base",), ("base_url",), ("proxy",))
_USER = re.compile(r"://[^/\s@?#]+@")
# What may stand beside a reference to a variable: how the key is sent, or the name of a cookie.
_SCHEME = re.compile(r"^\s*(?:bearer|basic|token|digest|negotiate|key|apikey|\w{1,30}=)?\s*;?\s*$", re.IGNORECASE)
_BEARER = re.compile(r"\s*bearer\s+\S", re.IGNORECASE)
# URLs whose path is all that it takes to write there.
_WEBHOOK = re.compile(
    r"https?://(?:hooks\.slack\.com|(?:\w+\.)?discord(?:app)?\.com/api/webhooks|[\w.-]+\.webhook\.office\.com)/", re.I
)
_WHY = (
    "would end up in files and run folders. Put it in the environment (or a file for --env-file) and name the variable"
)


def refuse_inline_keys(mapping: Mapping[str, Any]) -> None:
    """Refuse a config that holds a key.

    A key is known by the name that it stands under (``api_key``, a header ``x-goog-api-key``) or by its shape
    (:func:`~infermesh.redaction.looks_secret`). More names count in headers than elsewhere. A value that comes from an
    environment variable is none, since only its name is stored; but the literal default of a reference may be one.

    Raises
    ------
    ConfigError
        One line for each key, with its path in the config and what to do. The key itself is not repeated.
    """
    problems = list(_problems(mapping, ()))
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(node: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            here = (*path, str(name))
            if looks_secret(str(name)):
                yield f"{'.'.join((*path, '…'))}: this name holds what looks like a key, which {_WHY}."
            elif _stands_under_secret_name(value, here):
                yield f"{'.'.join(here)}: a key in the config {_WHY}: {_remedy(here)}."
            else:
                yield from _problems(value, here)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _problems(value, (*path, str(index)))
    elif isinstance(node, str) and _looks_secret(node, path):
        yield f"{'.'.join(path)}: this value holds what looks like a key or a password. It {_WHY}: {_remedy(path)}."


def _looks_secret(text: str, path: tuple[str, ...]) -> bool:
    if looks_secret(without_references(text)):
        return True
    if path[0] in ("notify", "telemetry") and (_WEBHOOK.search(text) or _USER.search(text)):
        return "${" not in text
    found = _USER.search(text) if _is_url(path) else None
    return found is not None and "${" not in found[0]


def _stands_under_secret_name(value: Any, path: tuple[str, ...]) -> bool:
    *parents, name = path
    if isinstance(value, str):
        value = _SCHEME.sub("", without_references(value)) if "${" in value else value
    if _is_header(path):
        text = isinstance(value, str) and _BEARER.match(value) is not None
        return text or (names_secret(name) and isinstance(value, str | int | float) and value != "")
    if parents == ["simulator"]:  # its key is no secret: it guards a server that ends with the run
        return False
    if parents[:1] == ["stages"] and parents[-1] == "columns":  # a column may be called token; this is its type
        return False
    return isinstance(value, str) and value != "" and names_config_secret(name)


def _is_url(path: tuple[str, ...]) -> bool:
    """Whether a URL stands there, or one of a list of them."""
    return path[-1:] in _URLS or (path[-2:-1] in _URLS and path[-1].isdecimal())


def _is_header(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[-2] in _HEADERS


def _remedy(path: tuple[str, ...]) -> str:
    if path[-2:-1] == ("env_set",):
        return "export it before the command"
    serves = path[0] == "deployments" or (path[0] == "models" and path[2:3] != ("params",))
    if _is_header(path) and serves:
        return f"{path[-1]}: {{env: NAME}} or ${{oc.env:NAME}}. A bearer key needs no header: api_key_env: NAME"
    if _is_url(path):
        return "${oc.env:NAME} in the key's place, or api_key_env: NAME"
    if serves or path[-1] == "api_key":
        return "api_key_env: NAME"
    return "${oc.env:NAME} in its place. A deployment's own key: api_key_env: NAME"
