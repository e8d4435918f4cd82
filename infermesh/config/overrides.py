"""Overrides as Hydra's grammar takes them: plain text that it refuses, values from Python, keys that are not there yet.

With :mod:`infermesh.config.compose`, the only module outside the command line that knows Hydra.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from infermesh.config.schema import STAGE_KINDS, Experiment, SourceConfig
from infermesh.config.secrets import refuse_inline_keys
from infermesh.errors import ConfigError

EXPERIMENT = "experiment"
SECTIONS = (
    *("source", "limits", "deployments", "models", "stages", "store", "engine", "simulator", "guards", "sinks"),
    *("notify", "telemetry"),
)
OVERRIDE = re.compile(r"(?P<mark>\+{0,2})\s*(?P<key>[^=\s]+)\s*=(?P<text>.*)", re.DOTALL)
_SWEEPABLE = re.compile(rf"(?:{'|'.join(SECTIONS)})\.[^=@/~+]+=")


def from_mapping(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides that are given as a mapping, as Hydra writes them. Each value arrives as it is.

    Raises
    ------
    ConfigError
        A value has no form in YAML.

    Examples
    --------
    >>> from_mapping({"stages.a.prompt": "Say {{ x }}", "source": {"limit": 5}})
    ["stages.a.prompt='Say {{ x }}'", 'source.limit=5']
    """
    found = []
    for key, value in overrides.items():
        if isinstance(value, Mapping) and key in SECTIONS:
            found += [f"{key}.{name}={_of_key(f'{key}.{name}', item)}" for name, item in value.items()]
        else:
            found.append(f"{key}={_of_key(str(key), value)}")
    return found


def _of_key(key: str, value: Any) -> str:
    if key.lstrip("+") == EXPERIMENT and isinstance(value, str | Path):
        return str(value)
    try:
        return as_written(value)
    except ConfigError as error:
        raise ConfigError(f"overrides: {key}: {error}") from None


def as_written(value: Any) -> str:
    """A value in Hydra's grammar.

    Examples
    --------
    >>> as_written({"role": "user", "content": "It's {{ x }}"})
    "{role: 'user', content: 'It\\\\'s {{ x }}'}"
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # Within quotes, a backslash counts only before a quote.
        text = re.sub(r"(\\*)'", r"\1\1\\'", str(value))
        return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_written_key(key)}: {as_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_written, value)) + "]"
    raise ConfigError(f"a {type(value).__name__} has no form in YAML: expected text, a number, a list or a dict")


def _written_key(key: Any) -> str:
    text = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key))
    if not text or not re.fullmatch(r"(?:[\w/\-+.$%*@?|]|\\.)+", text, re.ASCII):
        raise ConfigError(f"the key {key!r} cannot stand in an override: put it into the YAML, or pass config=")
    return text


def readable(key: str, text: str, *, sweeps: bool) -> str:
    """An override's value, as Hydra's grammar takes it. Plain text that it refuses is put into quotes.

    Parameters
    ----------
    key
        What it is the value of. One that takes text alone makes text of whatever it is.
    sweeps
        Whether values with commas between them are a sweep.

    Raises
    ------
    ConfigError
        It may be a sweep or a text with commas. The message says how to write either.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if _is_group_key(key):
        return text
    try:
        (parsed,) = OverridesParser.create().parse_overrides([f"{key}={text}"])
    except HydraException:
        return _literal(key, text, sweeps=sweeps)
    if parsed.is_sweep_override():
        return text if sweeps or key.startswith("hydra.") else _no_sweep(key, text)
    plain = parsed.value() is None or isinstance(parsed.value(), str)
    return text if plain or not _takes_text(key) else as_written(text)


def _literal(key: str, text: str, *, sweeps: bool) -> str:
    """A value that the grammar refuses: JSON or YAML where it is that and may be, else the text itself."""
    if sweeps and "," in text:
        raise ConfigError(
            f"{key}={text}: with -m, a comma stands between values. Quote each value: "
            + shlex.quote(f"{key}='FIRST','SECOND'")
        )
    if text[:1] in "{[" and not _takes_text(key):
        try:
            return as_written(yaml.safe_load(text))
        except (yaml.YAMLError, TypeError, ConfigError):  # it only begins like a mapping or a list
            pass
    return as_written(text)


def _no_sweep(key: str, text: str) -> str:
    if _takes_text(key) and re.search(r",\s", text):
        return as_written(text)
    raise ConfigError(
        f"{key}={text}: a job for each value takes -m; a list is written {shlex.quote(f'{key}=[{text}]')}, "
        f"a text {shlex.quote(f'{key}={as_written(text)}')}"
    )


def _takes_text(key: str) -> bool:
    """Whether a key of the schema takes nothing but text."""
    parts = key.split(".")
    if parts[0] == "stages" and len(parts) == 3:
        kinds = [kind.model_fields[parts[2]] for kind in STAGE_KINDS.values() if parts[2] in kind.model_fields]
    elif parts[0] == "source" and len(parts) == 2:
        kinds = [SourceConfig.model_fields[parts[1]]] if parts[1] in SourceConfig.model_fields else []
    else:
        kinds = [Experiment.model_fields[key]] if key in Experiment.model_fields else []
    return bool(kinds) and all(
        {str, type(None)} >= set(get_args(kind.annotation) or (kind.annotation,)) for kind in kinds
    )


def _is_group_key(key: str) -> bool:
    return "/" in key or "@" in key


def addable(argument: str) -> str:
    """An override with ``++`` before it, so that it sets a key whether or not the YAML has it.

    Validation then catches a misspelt key. Overrides of other keys stay as they are.
    """
    return f"++{argument}" if _SWEEPABLE.match(argument) else argument


def refuse_inline(overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` if an override, or one value of a sweep, holds a key. The message does not repeat it."""
    for override in overrides:
        for mapping in _as_mappings(override):
            refuse_inline_keys(mapping)


def _as_mappings(argument: str) -> Iterator[dict[str, Any]]:
    """``a.b=c`` as nested dicts, one for each value that it sweeps over. Nothing for other arguments."""
    name, equals, text = argument.lstrip("+~").partition("=")
    if not equals:
        return
    for value in _values(argument, text):
        node: Any = value
        for part in reversed(name.split(".")):
            node = {part: node}
        yield node


def _values(override: str, text: str) -> list[Any]:
    """The values of an override as Hydra reads them; its text if Hydra cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Sweep
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException:
        return [text]
    value = parsed.value()
    if isinstance(value, ChoiceSweep):
        return [_unquoted(choice) for choice in value.list]
    return [text] if isinstance(value, Sweep) else [value]


def _unquoted(value: Any) -> Any:
    """A choice of a sweep without Hydra's quotes."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {_unquoted(name): _unquoted(item) for name, item in value.items()}
    return [_unquoted(item) for item in value] if isinstance(value, list) else value
