"""No key in a config: a run writes its config into its folder and its database."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.errors import ConfigError
from infermesh.redaction import looks_secret, names_config_secret, names_secret

__all__ = ["refuse_inline_keys"]

_HEADERS = frozenset({"headers", "extra_headers", "default_headers"})
_BEARER = re.compile(r"\s*bearer\s+\S", re.IGNORECASE)
_WHY = (
    "would end up in files and run folders. Put it in the environment (or a file for --env-file) and name the variable"
)


def refuse_inline_keys(mapping: Mapping[str, Any]) -> None:
    """Refuse a config that holds a key.

    A key is known by the name that it stands under (``api_key``, a header ``x-goog-api-key``) or by its shape
    (:func:`~infermesh.redaction.looks_secret`). More names count in headers than elsewhere, because a header's value
    can be taken from an environment variable.

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
    elif isinstance(node, str) and looks_secret(node):
        yield f"{'.'.join(path)}: this value holds what looks like a key or a password. It {_WHY}: {_remedy(path)}."


def _stands_under_secret_name(value: Any, path: tuple[str, ...]) -> bool:
    *parents, name = path
    if _is_header(path):
        text = isinstance(value, str) and _BEARER.match(value) is not None
        return text or (names_secret(name) and isinstance(value, str | int | float) and value != "")
    if parents == ["simulator"]:  # its key is no secret: it guards a server that ends with the run
        return False
    if parents[:1] == ["stages"] and parents[-1] == "columns":  # a column may be called token; this is its type
        return False
    return isinstance(value, str) and names_config_secret(name)


def _is_header(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[-2] in _HEADERS


def _remedy(path: tuple[str, ...]) -> str:
    if _is_header(path):
        return f"{path[-1]}: {{env: NAME}}. A bearer key needs no header: api_key_env: NAME"
    if path[-1:] == ("api_base",):
        return "api_key_env: NAME; for a user and password, headers: {authorization: {env: NAME}}"
    return "api_key_env: NAME"
