"""What of a declaration can be changed while its run goes on. Pure: a declaration and assignments in, another out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infermesh.config.declaration import Declaration, declare
from infermesh.config.schema import Experiment, SqlStage
from infermesh.errors import ConfigError
from infermesh.hints import near
from infermesh.types import Limits

__all__ = ["Change", "changed", "settable"]

_MINUTE, _DAY = ("rpm", "tpm"), ("rpd", "tpd")
_SHOWN = 3  # names of a kind, in a message


@dataclass(frozen=True, slots=True)
class Change:
    """One key's old and new value, as the schema has them. ``path`` are the key's parts."""

    path: tuple[str, ...]
    old: Any
    new: Any

    @property
    def what(self) -> str:
        """The key, dotted."""
        return ".".join(self.path)

    def __str__(self) -> str:
        return f"{self.what}: {in_words(self.old)} → {in_words(self.new)}"


def in_words(value: Any) -> str:
    """A value as one writes it in YAML."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def settable(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Each key that can be changed, dotted → its parts."""
    quotas = (*_MINUTE, *_DAY)
    paths: list[tuple[str, ...]] = [("limits", name, quota) for name in experiment.limits for quota in quotas]
    for label in experiment.deployments:
        paths += [("deployments", label, "weight"), ("deployments", label, "max_parallel_requests")]
        paths += [("deployments", label, "limits", quota) for quota in quotas]
    paths += [
        ("stages", name, "max_parallel_requests")
        for name, stage in experiment.stages.items()
        if not isinstance(stage, SqlStage)
    ]
    paths.append(("guards", "max_cost_usd"))
    return {".".join(path): path for path in paths}


def changed(
    declaration: Declaration, assignments: Sequence[str], environ: Mapping[str, str]
) -> tuple[Declaration, list[Change]]:
    """The declaration with ``KEY=VALUE`` assignments, checked by the same schema; and what differs.

    Parameters
    ----------
    environ
        Where the variables that the config names are looked up.

    Raises
    ------
    ConfigError
        A key cannot be changed while a run goes on, or not so. It is named, and what can be set instead.

    Examples
    --------
    >>> other, changes = changed(declaration, ["limits.team.rpm=2000"], {})  # doctest: +SKIP
    >>> [str(change) for change in changes]  # doctest: +SKIP
    ['limits.team.rpm: 600 → 2000']
    """
    before = declaration.experiment
    keys = settable(before)
    mapping: Any = copy.deepcopy(dict(declaration.mapping))
    paths: dict[tuple[str, ...], None] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"{key}: expected KEY=VALUE, such as {next(iter(keys))}=100")
        if (path := keys.get(key)) is None:
            close = near(key, [*keys])
            meant = f" Did you mean '{close}'?" if close else ""
            raise ConfigError(f"{key}: cannot be set while the run goes on.{meant} {_what_can(before)}")
        value = _value(key, text)
        _refuse(before, path, value)
        _put(mapping, path, value)
        paths[path] = None
    other = declare(mapping, declaration.roots, declaration.overrides, environ=environ)
    changes = [Change(path, _at(before, path), _at(other.experiment, path)) for path in paths]
    return replace(other, long_form=declaration.long_form), [each for each in changes if each.old != each.new]


def _value(key: str, text: str) -> int | float | None:
    text = text.strip()
    if text in ("null", "None", "~"):
        return None
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise ConfigError(f"{key}: expected a number, or null (got {text!r})")


def _refuse(experiment: Experiment, path: tuple[str, ...], value: Any) -> None:
    """Raise ``ConfigError`` for what the schema allows, and a run that goes on does not."""
    what = ".".join(path)
    if path[0] == "deployments":
        entry = experiment.deployments[path[1]]
        if path[2] == "limits" and isinstance(entry.limits, str):
            raise ConfigError(f"{what}: its limits are those of its account: set limits.{entry.limits}.{path[3]}")
        if path[2] == "weight" and entry.batch.enabled:
            raise ConfigError(
                f"{what}: its requests go into batches, which are divided when they are filled. Stop the run, set it "
                "in the config, and resume"
            )
    if path[0] == "limits" and experiment.limits[path[1]].shared:
        raise ConfigError(
            f"{what}: other runs use this account too (limits.{path[1]}.shared), and keep to the same quota. Stop the "
            "run, set it in the config, and resume"
        )
    if path[-1] in _DAY and (value is None or _at(experiment, path) is None):
        raise ConfigError(
            f"{what}: a quota a day can be raised or lowered while the run goes on, and neither added nor removed: "
            "where there is none, nobody counts what today has used. Stop the run, set it in the config, and resume"
        )


def _put(mapping: Any, path: tuple[str, ...], value: Any) -> None:
    *above, last = path
    for part in above:
        if mapping.get(part) is None:
            mapping[part] = {}
        mapping = mapping[part]
    mapping[last] = value


def _at(experiment: Experiment, path: tuple[str, ...]) -> Any:
    node: Any = experiment
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else getattr(node, part, None)
    return node


def _what_can(experiment: Experiment) -> str:
    """What can be set, in a sentence, with the names of this run."""
    labels = [
        label
        for label, entry in experiment.deployments.items()
        if entry.limits is None or isinstance(entry.limits, Limits)
    ]
    parts = [
        (experiment.limits, "limits.{}.rpm (tpm, rpd, tpd)"),
        (labels, "deployments.{}.limits.rpm (tpm, rpd, tpd)"),
        (experiment.deployments, "deployments.{}.weight (max_parallel_requests)"),
        ([*experiment.stages], "stages.{}.max_parallel_requests"),
    ]
    said = [words.format(_names([*names])) for names, words in parts if names]
    return f"What can be set: {', '.join([*said, 'guards.max_cost_usd'])}."


def _names(names: list[str]) -> str:
    more = ["…"] if len(names) > _SHOWN else []
    shown = "|".join(names[:_SHOWN] + more)
    return shown if len(names) == 1 else f"{{{shown}}}"
