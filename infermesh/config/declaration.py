"""What one job is made from, as one value: the composed config, checked once where it enters, and what came with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infermesh.config.compose import Composed, check_chosen
from infermesh.config.load import config_hash, load
from infermesh.config.references import Taken, taken
from infermesh.config.schema import Experiment
from infermesh.config.secrets import refuse_inline_keys
from infermesh.config.short_form import LongForm, long_form
from infermesh.config.understood import source_of
from infermesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Declaration:
    """One job as it was declared. Make it with :func:`declare`; pass it on whole.

    Attributes
    ----------
    mapping
        The config as it was composed, in the long form: plain dicts, lists and scalars. It is stored with the run.
        What comes from environment variables stands in it by their names.
    experiment
        The same with the variables' values, validated.
    roots
        The folders that relative paths are relative to; the first one that holds a file wins.
    overrides
        What the caller changed, in Hydra's syntax. ``None`` where nobody said: a resumed run keeps those it has.
    taken
        What hides the variables' values in what is stored of the experiment.
    long_form
        How the keys that were added to the mapping were written, for messages.
    """

    mapping: Mapping[str, Any]
    experiment: Experiment
    roots: tuple[Path, ...]
    overrides: tuple[str, ...] | None = None
    taken: Taken = field(default=Taken({}), repr=False)
    long_form: LongForm = field(default=LongForm({}, {}), repr=False)

    @property
    def hash(self) -> str:
        """The hash of the mapping, whatever the order of its keys."""
        return config_hash(self.mapping)

    def reading(self, path: Path) -> Declaration:
        """The same job over another source file."""
        source = {**self.mapping["source"], "path": str(path)}
        experiment = self.experiment.model_copy(
            update={"source": self.experiment.source.model_copy(update={"path": str(path)})}
        )
        return replace(self, mapping={**self.mapping, "source": source}, experiment=experiment)


def declare(
    mapping: Mapping[str, Any],
    roots: Sequence[Path],
    overrides: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Declaration:
    """Check a composed config, and put it together with what came with it.

    This is the one place where a config is validated: whoever holds a :class:`Declaration` need not do it again.

    Parameters
    ----------
    environ
        Where the variables that the config names are looked up.

    Raises
    ------
    ConfigError
        No experiment was chosen, a key stands in the config, a variable that it names is not set, or the config is
        wrong; one line per problem.

    Examples
    --------
    >>> from pathlib import Path
    >>> job = declare(
    ...     {
    ...         "name": "mine",
    ...         "source": {"path": "rows.jsonl"},
    ...         "deployments": {"gpu": {"model": "hosted_vllm/llama", "api_base": "http://127.0.0.1:8000/v1"}},
    ...         "models": {"llama": {"deployments": ["gpu"]}},
    ...         "stages": {"answers": {"kind": "generate", "model": "llama", "prompt": "{{ text }}"}},
    ...     },
    ...     [Path.cwd()],
    ... )
    >>> job.experiment.stages["answers"].max_parallel_requests
    64
    """
    mapping = _text_keys(mapping, "")
    if isinstance(mapping.get("source"), str):
        mapping = {**mapping, "source": source_of(mapping["source"])}
    check_chosen(mapping)
    refuse_inline_keys(mapping)  # before a missing variable is told
    long = long_form(mapping, environ)
    with long.told():
        values, hides = taken(long.mapping, environ)
        experiment = load(values, long.mapping)
    changed = None if overrides is None else tuple(overrides)
    return Declaration(long.mapping, experiment, tuple(roots), changed, hides, long)


_DEEPEST = 200  # levels; Python's own limit comes soon after
_JSON_NAMES = {True: "true", False: "false", None: "null"}


def _text_keys(node: Any, path: str, depth: int = 0) -> Any:
    """The config with every key as JSON would write it: token ids, as in ``logit_bias``, are integers in YAML."""
    if depth > _DEEPEST:
        raise ConfigError(f"{path[:80]}…: nested more than {_DEEPEST} levels deep. Is it a value that holds itself?")
    if isinstance(node, Mapping):
        texts: dict[str, Any] = {}
        for key, value in node.items():
            if isinstance(key, bool | None):
                name = _JSON_NAMES[key]
            elif isinstance(key, str | int | float):
                name = str(key)
            else:
                raise ConfigError(f"{path or 'config'}: the key {key!r} has no JSON form: expected text or a number")
            if name in texts:
                raise ConfigError(f"{path or 'config'}: the key {name!r} stands there twice, once as text")
            texts[name] = _text_keys(value, f"{path}.{name}" if path else name, depth + 1)
        return texts
    if isinstance(node, list | tuple):
        return [_text_keys(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node)]
    return node


def declared(composed: Composed, environ: Mapping[str, str] = os.environ) -> Declaration:
    """What :func:`~infermesh.config.compose.compose` has composed, checked."""
    return declare(composed.mapping, composed.roots, composed.overrides, environ=environ)
