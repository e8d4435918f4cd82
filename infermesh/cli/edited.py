"""Whether the files that a run took its config from were edited since, and the command that takes them as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from infermesh.config.declaration import Declaration, declared
from infermesh.config.project import EXPERIMENTS, shown_path
from infermesh.errors import ConfigError
from infermesh.exact_json import dumps, loads
from infermesh.hints import command, one_line
from infermesh.store.folders import CONFIG_FOLDER

_SHOWN = 3  # keys, of those that differ


def run_command(folder: Path, *, without: str | None = None) -> str:
    """The command that runs the experiment again on the same folder; ``resume`` reads the stored config.

    Parameters
    ----------
    without
        A key to set to null.
    """
    overrides = _overrides(folder)
    named = ["+experiment=NAME"] if overrides is None else overrides
    others = [item for item in named if item.lstrip("+").partition("=")[0] not in (without, "hydra.run.dir")]
    unset = [] if without is None else [f"{without}=null"]
    return command("run", *others, *unset, f"hydra.run.dir={folder}")


def edited_since(folder: Path, stored: Declaration) -> str | None:
    """The line that tells of an edit of the config which a resumed run does not see; ``None`` if there is none.

    Parameters
    ----------
    stored
        What the run in the folder keeps. Files that it names, such as prompts and schemas, are read anew by a resume.
    """
    overrides = _overrides(folder)
    source = str(stored.mapping.get("source", {}).get("path") or "")
    if overrides is None or (folder.absolute() in Path(source).parents):  # rows that were given from Python
        return None
    experiment = next((item.partition("=")[2] for item in overrides if item.lstrip("+").startswith("experiment=")), "")
    written = Path("conf") / EXPERIMENTS / f"{experiment}.yaml"
    home = next((root for root in stored.roots if (root / written).is_file()), None)
    files = [] if home is None else _newer(home / "conf", folder)
    if home is None or not files:  # to compose takes half a second
        return None
    from infermesh.config.compose import compose

    own = home / written
    named = [own] if own in files else files[:_SHOWN]  # other experiments' files are beside it
    edited = f"edited since this run's config was composed: {', '.join(map(shown_path, named))}"
    kept = "The run goes on with the config that it keeps"
    try:
        now = declared(compose(overrides, cwd=home)).mapping
    except ConfigError as error:
        return f"{edited}, where something is wrong: {one_line(error, 200)} {kept}."
    differing = _differing(stored.mapping, loads(dumps(now)))
    keys = [key for key in differing if not key.startswith("engine.")]  # a resume may have changed it
    if not keys:
        return None
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{edited} ({', '.join(keys[:_SHOWN])}{more}). {kept}; to apply the edit: {run_command(folder)}"


def _overrides(folder: Path) -> list[str] | None:
    """What was chosen and changed when the config was last composed; ``None`` where it was not composed."""
    try:
        kept = yaml.safe_load((folder / CONFIG_FOLDER / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return [f"+{item}" if item.startswith("experiment=") else item for item in map(str, kept or ())]


def _newer(configs: Path, folder: Path) -> list[Path]:
    """The config files that were written after the run's config was last composed."""
    taken = (folder / CONFIG_FOLDER / "overrides.yaml").stat().st_mtime_ns
    found = []
    for file in sorted(configs.rglob("*.yaml")):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime_ns > taken:
                found.append(file)
    return found


def _differing(before: Any, now: Any) -> list[str]:
    """The keys, dotted, whose values are not the same."""
    first, second = dict(_leaves(before)), dict(_leaves(now))
    nothing = object()
    return [key for key in {**first, **second} if first.get(key, nothing) != second.get(key, nothing)]


def _leaves(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, node
