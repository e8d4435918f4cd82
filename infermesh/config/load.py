"""Validate a composed mapping: it becomes an :class:`~infermesh.config.schema.Experiment`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from infermesh.config.schema import (
    RESERVED_TABLES,
    STAGE_KINDS,
    STAGE_NAME,
    Experiment,
    GenerateStage,
    ModelEntry,
    ModelStageConfig,
    SqlStage,
    StageConfig,
)
from infermesh.config.secrets import refuse_inline_keys
from infermesh.config.short_form import DEPLOYMENT_KEYS
from infermesh.config.understood import SHORT
from infermesh.errors import ConfigError
from infermesh.hints import near, nearest
from infermesh.wire.requests import FOREIGN_PARAMETERS

# pydantic's types of mistakes, in the words of somebody who writes YAML.
_SAID = {
    "string_type": "expected text",
    "list_type": "expected a list",
    "dict_type": "expected keys with values below it",
    "model_type": "expected keys with values below it",
    "model_attributes_type": "expected keys with values below it",
    "dataclass_type": "expected keys with values below it",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "too_short": "expected at least 1 entry",
}


def load(mapping: Mapping[str, Any], written: Mapping[str, Any] | None = None) -> Experiment:
    """Validate a composed config. Pure: it reads no file and no environment variable, and takes some milliseconds.

    Parameters
    ----------
    mapping
        Plain dicts, lists and scalars. It is not changed.
    written
        The same as it is stored and may be shown, where variables' values stand in ``mapping``.

    Raises
    ------
    ConfigError
        One line for each problem: its path in the config, what was expected, the nearest valid name.
    """
    written = mapping if written is None else written
    refuse_inline_keys(written)
    try:
        experiment = Experiment.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(written, detail) for detail in error.errors())) from None
    problems = list(_references(experiment))
    if problems:
        raise ConfigError("\n".join(problems))
    return experiment


def _explain(mapping: Mapping[str, Any], detail: ErrorDetails) -> str:
    loc = [str(part) for part in detail["loc"]]
    if len(loc) > 2 and loc[0] == "stages" and loc[2] in STAGE_KINDS:
        del loc[2]  # pydantic's path names the kind, the user's does not
    path = ".".join(part if part.isprintable() and part.strip() else repr(part) for part in loc)
    given = _at(mapping, detail["loc"], detail.get("input"))
    if (words := _who_serves(loc, detail["type"], given)) is not None:
        return f"{path}: {words}"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: unknown key.{_meant(loc, _valid_keys(mapping, loc))}"
    if detail["type"] == "union_tag_not_found":
        named = [name for name, stage in mapping["stages"].items() if isinstance(stage, Mapping) and "kind" in stage]
        close = near(loc[-1], named)
        hint = f" Did you mean 'stages.{close}'?" if close else ""
        return f"{path}: a stage needs a 'kind': {', '.join(STAGE_KINDS)}.{hint}"
    if detail["type"] == "union_tag_invalid":
        kind = str(detail["ctx"]["tag"])
        return f"{path}.kind: no kind '{kind}'.{nearest(kind, STAGE_KINDS)}"
    if detail["type"] == "missing":
        return f"{path}: missing; it is required."
    if detail["type"] == "string_pattern_mismatch":  # only the experiment's name has a pattern
        example = _plain(str(given), "._-", between="-").lstrip("._-") or "mine"
        words = "it names a folder: letters from a to z, digits, '.', '_' and '-', the first a letter or a digit"
        return f"{path}: {words} (got {given!r}). Write {path}: {example}"
    message = _SAID.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    tells = isinstance(given, str | int | float | bool | None) and "headers" not in loc  # a header may hold a key
    shown = f" (got {given!r})" if tells else ""
    if detail["type"] == "list_type" and isinstance(given, str) and tells:
        shown = f": [{given}]"
    if detail["type"] == "string_type" and isinstance(detail["input"], list | dict):
        shown = f", got {'a list' if isinstance(detail['input'], list) else 'keys with values'}"
    return f"{path or 'config'}: {message[0].lower()}{message[1:]}{shown}"


# Other tools' words for keys, and ours.
_OTHER_WORDS = {
    **dict.fromkeys(("file", "files", "filename", "data", "csv", "jsonl"), "path"),
    **dict.fromkeys(("template", "input", "user"), "prompt"),
    **dict.fromkeys(("schema", "output_schema", "json_schema"), "response_format"),
    **dict.fromkeys(("concurrency", "parallelism", "workers", "num_workers"), "max_parallel_requests"),
    **dict.fromkeys(("type", "task"), "kind"),
    **dict.fromkeys(("filter", "condition"), "where"),
    **dict.fromkeys(("base_url", "url", "endpoint_url"), "api_base"),
    "query": "sql",
}


def _meant(loc: Sequence[str], valid: Sequence[str]) -> str:
    """The end of a message about an unknown key: where it belongs, what it is called here, or the nearest one."""
    if len(loc) == 1 and loc[0] in SHORT:
        return f" Did you mean '{SHORT[loc[0]]}'?"
    ours = _OTHER_WORDS.get(loc[-1])
    return f" Did you mean '{ours}'?" if ours in valid else nearest(loc[-1], [*valid])


def _who_serves(loc: Sequence[str], kind: str, given: Any) -> str | None:
    """What to write instead, where it is said in the wrong place or shape who serves a model."""
    match loc:
        case ["stages", _, key] if kind == "extra_forbidden" and key in DEPLOYMENT_KEYS:
            return f"it belongs to the model that the stage names: write it as models.NAME.{key}."
        case ["models", _, "deployments"] if kind == "missing":
            return "missing, and no 'model': nobody serves it. Write model: provider/name, or name its deployments."
        case ["models", _] if isinstance(given, str):
            return f"expected a mapping, such as {{model: {given}}}."
        case ["deployments", _, "api_base"] if isinstance(given, list):
            return "a deployment is one server. A list stands in a model: models.NAME.api_base, beside its 'model'."
        case ["deployments", _, "api_base"] if kind == "string_type" and isinstance(given, str):
            return "the variable holds a list, and is one URL here. Write a list of variables, one for each URL."
    return None


def _at(mapping: Mapping[str, Any], loc: Sequence[str | int], given: Any) -> Any:
    """What was given, as it is written: a reference to a variable, and not its value."""
    node: Any = mapping
    for part in loc:
        if isinstance(node, Mapping):
            node = node.get(str(part), node)  # pydantic's path also names a stage's kind
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
    return node if isinstance(node, str) and "${oc." in node else given


def _valid_keys(mapping: Mapping[str, Any], loc: Sequence[str]) -> list[str]:
    """The keys that may stand where the last part of ``loc`` stands."""
    node: Any = mapping
    annotation: Any = Experiment
    for part in loc[:-1]:
        node = node.get(part) if isinstance(node, Mapping) else None
        annotation = get_args(annotation)[1] if get_origin(annotation) is dict else _keys(annotation)[part]
        if annotation is StageConfig:
            annotation = STAGE_KINDS.get(str(node.get("kind")) if isinstance(node, Mapping) else "", GenerateStage)
    return [*_keys(annotation), *(DEPLOYMENT_KEYS if annotation is ModelEntry else ())]


def _keys(annotation: Any) -> dict[str, Any]:
    """Key → annotation, of the one mapping that an annotation such as ``Limits | str | None`` allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    if dataclasses.is_dataclass(annotation):
        return {field.name: field.type for field in dataclasses.fields(annotation)}
    return next((keys for argument in get_args(annotation) if (keys := _keys(argument))), {})


def _references(experiment: Experiment) -> Iterator[str]:
    """A line for each name that stands nowhere else in the config, though it must, or that is taken."""
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
        known = [experiment.deployments[label] for label in model.deployments if label in experiment.deployments]
        if known and not any(entry.weight for entry in known):
            yield f"models.{name}: all its deployments have weight 0, so that nobody would answer. Give one more."
    seen: dict[str, str] = {}
    for name in experiment.stages:
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield f"stages.{name}: differs from stages.{other} in case alone, which SQL ignores. Rename one."
    for name, stage in experiment.stages.items():
        if not STAGE_NAME.fullmatch(name):
            example = _plain(name, "_", between="_")
            example = f"_{example}" if example[:1].isdigit() else example
            hint = f" Write {example}" if example else ""
            yield f"stages.{name}: a stage's name is a table's name: letters, digits and _, not first a digit.{hint}"
        elif name.lower() in RESERVED_TABLES:
            yield f"stages.{name}: '{name}' is a table of every run. Choose another name."
        elif (origin := seen.get(name.lower().removesuffix("_results"), name)) != name and isinstance(
            experiment.stages[origin], SqlStage
        ):
            yield f"stages.{name}: '{name}' is the view over the rows of stages.{origin}. Choose another name."
        if isinstance(stage, ModelStageConfig) and stage.model not in experiment.models:
            hint = nearest(stage.model, experiment.models)
            direct = "" if hint.startswith(" Did") else " What a provider serves is written provider/name."
            yield f"stages.{name}.model: no model '{stage.model}'.{hint}{direct}"


def _plain(name: str, kept: str, *, between: str) -> str:
    """A name of plain letters, digits and what is ``kept``: accents are dropped, anything else is ``between`` then."""
    ascii_letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(rf"[^A-Za-z0-9{kept}]+", between, ascii_letters).strip(between)


def _without(mapping: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


# Keys that came after runs whose folders are kept. They change no answer, and those runs' hashes stay what they are.
_CHANGES_NO_ANSWER = {
    "": ("report", "engine", "detach_batches", "notify", "telemetry"),
    "simulator": ("batches",),
    "deployment": ("batch",),
}


def config_hash(mapping: Mapping[str, Any]) -> str:
    """A hash of a declaration that does not depend on the order of its keys, nor on what changes no answer."""
    mapping = _without(mapping, _CHANGES_NO_ANSWER[""])
    if isinstance(simulator := mapping.get("simulator"), Mapping):
        mapping["simulator"] = _without(simulator, _CHANGES_NO_ANSWER["simulator"])
    if isinstance(deployments := mapping.get("deployments"), Mapping):
        mapping["deployments"] = {
            label: _without(entry, _CHANGES_NO_ANSWER["deployment"]) if isinstance(entry, Mapping) else entry
            for label, entry in deployments.items()
        }
    try:
        ordered = orjson.dumps(mapping, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer over 64 bits
        ordered = json.dumps(mapping, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.blake2b(ordered, digest_size=16).hexdigest()
