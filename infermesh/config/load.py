"""From a composed mapping to a validated :class:`~infermesh.config.schema.Experiment`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from infermesh.config.schema import (
    _NAME,
    RESERVED_TABLES,
    STAGE_KINDS,
    DeploymentEntry,
    Experiment,
    GenerateStage,
    GuardsConfig,
    LimitsConfig,
    ModelEntry,
    ModelStageConfig,
    SinkConfig,
    SourceConfig,
    SqlStage,
    StoreConfig,
)
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.redaction import _SECRET_KEYS, looks_secret
from infermesh.simulator.settings import SimulatorSettings
from infermesh.wire.requests import FOREIGN_PARAMETERS


def load(mapping: Mapping[str, Any]) -> Experiment:
    """Validate a composed config.

    Parameters
    ----------
    mapping
        Plain dicts, lists and scalars.

    Raises
    ------
    ConfigError
        One line per problem: the config path, what was expected, the nearest valid name.
    """
    refuse_inline_keys(mapping)
    try:
        experiment = Experiment.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(mapping, detail) for detail in error.errors())) from None
    problems = list(_references(experiment))
    if problems:
        raise ConfigError("\n".join(problems))
    return experiment


def refuse_inline_keys(mapping: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` where a value is a key or looks like one; the message does not repeat it."""
    secrets = list(_inline_secrets(mapping, ()))
    if secrets:
        raise ConfigError("\n".join(secrets))


def _inline_secrets(node: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = (*path, str(key))
            if str(key).lower() in _SECRET_KEYS and isinstance(value, str) and path[:1] != ("simulator",):
                yield (
                    f"{'.'.join(here)}: a key in the config would end up in files and run folders. Put it in the "
                    f"environment (or a file for --env-file) and name the variable: api_key_env: OPENAI_API_KEY."
                )
            else:
                yield from _inline_secrets(value, here)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _inline_secrets(value, (*path, str(index)))
    elif isinstance(node, str) and looks_secret(node):
        yield f"{'.'.join(path)}: this value holds what looks like a key or password. Use api_key_env instead."


def _explain(mapping: Mapping[str, Any], detail: ErrorDetails) -> str:
    loc = [str(part) for part in detail["loc"]]
    if len(loc) > 2 and loc[0] == "stages" and loc[2] in STAGE_KINDS:
        del loc[2]  # pydantic names the union's member, the user's config does not
    path = ".".join(loc)
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key.{nearest(loc[-1], _valid_keys(mapping, loc))}"
    if detail["type"] == "union_tag_not_found":
        named = [name for name, stage in mapping["stages"].items() if isinstance(stage, Mapping) and "kind" in stage]
        close = difflib.get_close_matches(loc[-1], named, n=1)
        hint = f" Did you mean 'stages.{close[0]}'?" if close else ""
        return f"{path}: a stage needs a 'kind': {', '.join(STAGE_KINDS)}.{hint}"
    if detail["type"] == "union_tag_invalid":
        given = str(detail["ctx"]["tag"])
        return f"{path}.kind: no kind '{given}'.{nearest(given, STAGE_KINDS)}"
    if detail["type"] == "missing":
        return f"{path}: missing; it is required."
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool | None) else ""
    return f"{path or 'config'}: {message[0].lower()}{message[1:]}{shown}"


def _valid_keys(mapping: Mapping[str, Any], loc: list[str]) -> set[str]:
    """Field names of the model at ``loc``'s parent."""
    parent: type[BaseModel] = Experiment
    node: Any = mapping
    groups: dict[str, type[BaseModel]] = {
        "source": SourceConfig,
        "store": StoreConfig,
        "simulator": SimulatorSettings,
        "limits": LimitsConfig,
        "deployments": DeploymentEntry,
        "models": ModelEntry,
        "guards": GuardsConfig,
        "sinks": SinkConfig,
    }
    for depth, part in enumerate(loc[:-1]):
        node = node.get(part, {}) if isinstance(node, Mapping) else {}
        if depth == 0 and part in groups:
            parent = groups[part]
        elif depth == 1 and loc[0] == "stages":
            parent = STAGE_KINDS.get(str(node.get("kind")), GenerateStage)
        elif depth == 2 and part == "limits":
            parent = LimitsConfig
        elif part in parent.model_fields:
            nested = parent.model_fields[part].annotation
            if isinstance(nested, type) and issubclass(nested, BaseModel):
                parent = nested
    return set(parent.model_fields)


def _references(experiment: Experiment) -> Iterator[str]:
    """Names that must exist elsewhere in the config."""
    for label, deployment in experiment.deployments.items():
        if isinstance(deployment.limits, str) and deployment.limits not in experiment.limits:
            hint = nearest(deployment.limits, experiment.limits)
            yield f"deployments.{label}.limits: no account '{deployment.limits}' in limits.{hint}"
    for path, params in [
        *((f"models.{name}", model.params) for name, model in experiment.models.items()),
        *(
            (f"stages.{name}", stage.params)
            for name, stage in experiment.stages.items()
            if isinstance(stage, ModelStageConfig)
        ),
    ]:
        for name in sorted(FOREIGN_PARAMETERS.keys() & params.keys()):
            yield f"{path}.params.{name}: no wire parameter: {FOREIGN_PARAMETERS[name]}. Remove it here."
    for name, model in experiment.models.items():
        for label in model.deployments:
            if label not in experiment.deployments:
                hint = nearest(label, experiment.deployments)
                yield f"models.{name}.deployments: no deployment '{label}'.{hint}"
    seen: dict[str, str] = {}
    for name in experiment.stages:
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield f"stages.{name}: differs from stages.{other} in case only, which SQL cannot tell. Rename one."
    for name, stage in experiment.stages.items():
        if not _NAME.fullmatch(name):
            yield f"stages.{name}: a stage's name is a table's name: letters, digits and _, not first a digit."
        elif name.lower() in RESERVED_TABLES:
            yield f"stages.{name}: '{name}' is a table of every run. Choose another name."
        elif (origin := seen.get(name.lower().removesuffix("_results"), name)) != name and isinstance(
            experiment.stages[origin], SqlStage
        ):
            yield f"stages.{name}: '{name}' is the view over the rows of stages.{origin}. Choose another name."
        if isinstance(stage, ModelStageConfig) and stage.model not in experiment.models:
            yield f"stages.{name}.model: no model '{stage.model}'.{nearest(stage.model, experiment.models)}"


def config_hash(mapping: Mapping[str, Any]) -> str:
    """What tells two declarations apart, whatever the order of their keys."""
    ordered = orjson.dumps(mapping, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(ordered, digest_size=16).hexdigest()
