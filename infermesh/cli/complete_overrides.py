"""What may stand in the place of an override, for a shell that completes it.

Most TABs are for one, and a TAB has to be answered at once: this needs neither Typer nor DuckDB, and Hydra only where
its answer is not kept from before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infermesh.errors import ConfigError
from infermesh.store.folders import LATEST, OUTPUTS, run_folders

if TYPE_CHECKING:
    from infermesh.config.compose import Composed

_MOST_RUNS = 200  # the newest; nobody reads more
_FOLDER_OPTIONS = ("--config-dir", "-cd", "--config-path", "-cp")
_CFG = ("job", "hydra", "all")


def overrides_like(begun: str, before: list[str]) -> list[str]:
    """Experiments, groups, keys and values, as Hydra takes them: ``+experiment=NAME``, ``stages.x.model=``.

    Parameters
    ----------
    begun
        The word that is completed.
    before
        The words before it, behind the command.
    """
    if before[-1:] and before[-1] in _FOLDER_OPTIONS:
        return []  # the shell's own completion of paths
    if before[-1:] and before[-1] in ("--cfg", "-c"):
        return list(_CFG)
    folder = _config_dir(before)
    name = begun.lstrip("+~")
    marks = begun.removesuffix(name)
    key, equals, value = name.partition("=")
    if equals:
        return [f"{marks}{key}={each}" for each in _values(key, value, before, folder)]
    found = [f"{marks}{each}" for each in _keys(before, folder)]
    if marks in ("", "+") and not any("experiment=" in each for each in before):
        # A bare name is the experiment, too: `infermesh run quickstart`.
        names = [] if marks else _options("experiment", folder)
        found = ["+experiment=", *names, *found]
    return found


def runs_like(begun: str) -> list[str]:
    """Names of experiments that have runs, and the runs' folders once a path is begun."""
    if "/" not in begun:
        return [path.parent.name for path in sorted(OUTPUTS.glob(f"*/{LATEST}"))]
    latest = [path.as_posix() for path in sorted(OUTPUTS.glob(f"*/{LATEST}"))]
    return latest + [folder.as_posix() for folder in run_folders()[:_MOST_RUNS]]


def _values(key: str, value: str, before: list[str], folder: Path | None) -> list[str]:
    """What may stand behind ``key=``: a group's options, a run's folder, a key's present value, or files."""
    if key == "hydra.run.dir":
        return runs_like(value or "/")
    if found := _options(key.partition("@")[0], folder):
        return found
    present = _composed(before, folder).get(key)
    if isinstance(present, bool):
        return ["true", "false"]
    files = list(_paths(value)) if value or key.endswith("path") else []
    return files or ([] if present is None or isinstance(present, dict | list) else [str(present)])


def _keys(before: list[str], folder: Path | None) -> Iterator[str]:
    """Every key of the composed config: sections end in a point, values in an equals sign."""
    for key, value in _composed(before, folder).items():
        yield f"{key}." if isinstance(value, dict) and value else f"{key}="
        if "." not in key and _options(key, folder):
            yield f"{key}="  # a config group
    yield "hydra.run.dir="


def _paths(begun: str) -> Iterator[str]:
    head, _, tail = begun.rpartition("/")
    parent = f"{head}/" if head else "/" if begun.startswith("/") else ""
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(parent or "."), key=lambda each: each.name):
            if entry.name.startswith(tail) and (tail or not entry.name.startswith(".")):
                yield f"{parent}{entry.name}{'/' if entry.is_dir() else ''}"


def _config_dir(before: list[str]) -> Path | None:
    for word, following in zip(before, [*before, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd") and Path(value if equals else following).is_dir():
            return Path(value if equals else following)
    return None


def _options(group: str, folder: Path | None) -> list[str]:
    """The names in a config group, such as ``experiment`` or ``source``."""
    from infermesh.config.project import options_of

    return options_of(group, Path.cwd(), folder)


def _composed(before: list[str], folder: Path | None) -> dict[str, Any]:
    """Dotted key → value of the config that the line composes so far.

    Hydra takes half a second, so what it made is kept, until a file of the configs changes.
    """
    from infermesh.config.project import config_folders

    chosen = [word for word in before if "=" in word and "." not in word.partition("=")[0].partition("@")[0]]
    if before[:1] and before[0] in _options("experiment", folder):
        chosen = [f"+experiment={before[0]}", *chosen]
    folders = config_folders(Path.cwd(), folder)
    files = [file for each in folders for file in each.rglob("*.yaml")]
    state = sorted([str(file), file.stat().st_mtime_ns] for file in files)
    place = _kept_at(repr((chosen, folders)))
    with contextlib.suppress(OSError, ValueError, KeyError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["state"] == state:
            return dict(kept["keys"])
    from infermesh.config.compose import compose

    for words in (chosen, []):
        with contextlib.suppress(ConfigError):
            keys = _every_key(compose(words, config_dir=folder))
            with contextlib.suppress(OSError, TypeError):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(json.dumps({"state": state, "keys": keys}), encoding="utf-8")
            return keys
    return {}


def _every_key(composed: Composed) -> dict[str, Any]:
    """The keys of a composed config, and those that it leaves at their defaults."""
    from infermesh.config.declaration import declare

    defaults: dict[str, Any] = {}
    with contextlib.suppress(ConfigError):
        defaults = declare(composed.mapping, composed.roots).experiment.model_dump(mode="json")
    # The mapping's values come last: they hold the names of variables, and the experiment what those held.
    return {**dict(_flattened(defaults)), **dict(_flattened(composed.mapping))}


def _kept_at(what: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.blake2b(what.encode(), digest_size=12).hexdigest()
    return Path(cache) / "infermesh" / "completion" / f"{name}.json"


def _flattened(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        yield f"{above}{key}", value
        if isinstance(value, dict):
            yield from _flattened(value, f"{above}{key}.")
