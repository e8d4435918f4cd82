"""What a declaration takes from environment variables: ``${oc.env:NAME}`` and ``${oc.env:NAME,default}``.

Such a reference is stored as it was written, and never with its value: a run's folder, its database and its overrides
hold the name of the variable. The value is put in when the declaration is read; where requests are described
(:data:`_LATE`), not before a request is sent. There it does not count as an edit when it changes, as a key's does.

With :mod:`infermesh.config.compose` and the command line, the only module that knows OmegaConf.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.errors import ConfigError

__all__ = ["FromEnvironment", "Taken", "keeping_references", "restored", "taken", "without_references"]

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_REFERENCE = re.compile(
    r"(?P<escape>\\)?(?P<decode>\$\{oc\.decode:\s*)?"
    rf"\$\{{oc\.env:\s*(?P<name>[^,{{}}\s]+)\s*(?P<comma>,\s*(?P<default>{_QUOTED}|[^{{}}]*?)\s*)?\}}(?(decode)\s*\}})"
)
_ANY = re.compile(r"\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_SIMPLE = re.compile(r"[\w./:@+-]+")
# Where a value is needed only when a request is sent. `*` is any name, and what is below counts as well.
_LATE = (
    ("deployments", "*", "api_base"),
    ("deployments", "*", "headers"),
    ("models", "*", "params"),
    ("stages", "*", "params"),
)
_HIDDEN_LENGTH = 6  # a shorter value is no key, and may be a part of any word


class FromEnvironment(str):
    """A text with references whose values are put in when a request is sent.

    As a text it is what was written, so whatever is hashed, stored or shown of it holds no value. A row's text is never
    one, whatever it says.
    """

    __slots__ = ()

    def value(self, environ: Mapping[str, str]) -> Any:
        """The text with the variables' values; another type where ``oc.decode`` makes one.

        Raises
        ------
        ConfigError
            A variable is not set.
        """
        return _value(self, environ, [])

    def values(self, environ: Mapping[str, str]) -> list[str]:
        """The values of its variables alone, to be kept out of messages."""
        used: list[tuple[str, str]] = []
        _value(self, environ, used)
        return [value for value, _ in used]


class Taken:
    """The values that stand in a declaration now, to be hidden again where something of it is stored."""

    def __init__(self, used: Mapping[str, str]) -> None:
        self._used = {value: name for value, name in used.items() if len(value) >= _HIDDEN_LENGTH}

    def hidden(self, node: Any) -> Any:
        """A value of JSON in which each of the values is its reference, with a mark that changes when it does."""
        if not self._used:
            return node
        if isinstance(node, Mapping):
            return {self.hidden(name): self.hidden(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.hidden(item) for item in node]
        if isinstance(node, str):
            for value, name in self._used.items():
                if value in node:
                    mark = hashlib.blake2b(value.encode(), digest_size=3).hexdigest()
                    node = node.replace(value, f"${{oc.env:{name}}}#{mark}")
        return node


def taken(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], Taken]:
    """Put the values of environment variables into a composed config.

    Returns
    -------
    tuple
        The config as it is to be validated, in which late references are :class:`FromEnvironment`; and what hides the
        values again.

    Raises
    ------
    ConfigError
        One line for each place that names a variable which is not set.
    """
    used: list[tuple[str, str]] = []
    problems: list[str] = []
    found = _taken(mapping, (), environ, used, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return found, Taken(dict(used))


def _taken(
    node: Any, path: tuple[str, ...], environ: Mapping[str, str], used: list[tuple[str, str]], problems: list[str]
) -> Any:
    if isinstance(node, Mapping):
        return {key: _taken(value, (*path, str(key)), environ, used, problems) for key, value in node.items()}
    if isinstance(node, list):
        return [_taken(item, (*path, str(index)), environ, used, problems) for index, item in enumerate(node)]
    if not isinstance(node, str) or "${oc." not in node:
        return node
    try:
        own: list[tuple[str, str]] = []
        value = _value(node, environ, own)
    except ConfigError as error:
        problems.append(f"{'.'.join(path)}: {error}")
        return node
    if own and _is_late(path) and isinstance(value, str if path[-1] == "api_base" else str | dict | list):
        return FromEnvironment(node)
    used += own
    return value


def _is_late(path: tuple[str, ...]) -> bool:
    return any(
        len(path) >= len(late) and all(want in ("*", part) for want, part in zip(late, path, strict=False))
        for late in _LATE
    )


def _value(text: str, environ: Mapping[str, str], used: list[tuple[str, str]]) -> Any:
    """A text with the values of its references. A reference that is all of it may be of any type."""
    whole = _REFERENCE.fullmatch(text)
    if whole is not None and whole["escape"] is None:
        return _looked_up(whole, environ, used)
    return _REFERENCE.sub(lambda match: _in_text(match, environ, used), text)


def _in_text(match: re.Match[str], environ: Mapping[str, str], used: list[tuple[str, str]]) -> str:
    return match[0][1:] if match["escape"] else str(_looked_up(match, environ, used))


def _looked_up(match: re.Match[str], environ: Mapping[str, str], used: list[tuple[str, str]]) -> Any:
    name, value = match["name"], environ.get(match["name"])
    if value is None and match["comma"] is None:
        raise ConfigError(
            f"the environment variable {name} is not set: export it, or put it into the --env-file, or give a default: "
            f"${{oc.env:{name},DEFAULT}}"
        )
    if value is not None:
        used.append((value, name))
    else:
        default = _unquoted(match["default"] or "")
        value = None if default is None else _value(default, environ, used)
    return _decoded(value) if match["decode"] and isinstance(value, str) else value


def _unquoted(default: str) -> str | None:
    if re.fullmatch(_QUOTED, default):
        return re.sub(r"\\(.)", r"\1", default[1:-1])
    return None if default == "null" else default


def _decoded(text: str) -> Any:
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.create({"given": text, "found": "${oc.decode:${given}}"})["found"]
    except OmegaConfBaseException:
        raise ConfigError("the variable's value cannot be decoded: expected a number, a list, a mapping …") from None
    return OmegaConf.to_container(found, resolve=True) if isinstance(found, Container) else found


def without_references(text: str) -> str:
    """A text without its interpolations, of which the literal defaults are left: they are what may be a key."""
    if "${" not in text:
        return text
    return _ANY.sub("", _REFERENCE.sub(lambda match: _unquoted(match["default"] or "") or "", text))


def keeping_references(config: Any) -> Any:
    """An OmegaConf config that resolves as ``config`` does, but for references, which come out as they were written.

    One by which another interpolation chooses a key is resolved. See :func:`restored`.
    """
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("kept.env", _written, replace=True)
    OmegaConf.register_new_resolver("kept.decode", lambda text: f"${{oc.decode:{text}}}", replace=True)
    return OmegaConf.create(_each_text(OmegaConf.to_container(config, resolve=False), _renamed))


def restored(node: Any) -> Any:
    """What came out of such a config, where a text that only reads like a reference is marked as one that is none."""
    return _each_text(node, lambda text: text.replace("${kept.", "\\${oc."))


def _written(name: Any, *default: Any) -> str:
    if not default:
        return f"${{oc.env:{name}}}"
    text = "null" if default[0] is None else str(default[0])
    if default[0] is not None and (not _SIMPLE.fullmatch(text) or text == "null"):
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"${{oc.env:{name},{text}}}"


def _each_text(node: Any, change: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _each_text(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [_each_text(item, change) for item in node]
    return change(node) if isinstance(node, str) and "${" in node else node


def _renamed(text: str) -> str:
    """The text with our own resolvers in the place of ``oc.env`` and ``oc.decode``, as far as they are outermost."""
    return "".join(_pieces(text))


_TOKEN = re.compile(
    r"(?:\\\\)+(?=\$\{)|(?:\\\\)*\\\$\{(?:oc\.(?:env|decode):)?|\$\{oc\.env:|\$\{oc\.decode:(?=\s*\$\{oc\.env:)|\$\{|\}|[^$}\\]+|.",
    re.DOTALL,
)


def _pieces(text: str) -> Iterator[str]:
    ours: list[bool] = []  # of each interpolation that is open, whether it is one of these
    before = ""
    for token in _TOKEN.findall(text):
        # What another one chooses a key by is its first argument; what it hands on as it is stands behind a comma.
        if token.endswith(":") and token.startswith("${oc.") and (all(ours) or before.rstrip().endswith(",")):
            ours.append(True)
            yield token.replace("oc.", "kept.")
        else:
            if token.startswith("\\"):  # an interpolation that is none
                token = token.replace("${oc.", "${kept.")
            elif token.startswith("${"):
                ours.append(False)
            elif token == "}" and ours:
                ours.pop()
            yield token
        before = token
