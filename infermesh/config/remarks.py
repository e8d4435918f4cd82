"""What a declaration says that is allowed, and is probably a slip. Pure: one line each, with what to write instead."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.config.parameters import doubts
from infermesh.config.schema import (
    DeploymentEntry,
    EmbedStage,
    Experiment,
    GenerateStage,
    ModelEntry,
    ModelStageConfig,
    TranscribeStage,
)
from infermesh.types import Limits
from infermesh.wire.requests import all_params

__all__ = ["remarks", "used_deployments"]

_ELSEWHERE: dict[str, str] = {
    **dict.fromkeys((field.name for field in dataclasses.fields(Limits)), "limits"),
    **dict.fromkeys(DeploymentEntry.model_fields, "the deployment"),
    **dict.fromkeys(ModelEntry.model_fields, "the model"),
    **{name: "the stage" for kind in (GenerateStage, EmbedStage, TranscribeStage) for name in kind.model_fields},
}
_TEMPLATE = re.compile(r"\{\{.+?\}\}")
_NOWHERE = ("prompt_logprobs", "return_token_ids", "audio")  # the answer has more for them than a stage stores


def remarks(experiment: Experiment) -> Iterator[str]:
    """Say what in a valid declaration has no effect, or hardly the one that was meant.

    Examples
    --------
    >>> from infermesh.config.load import load
    >>> for line in remarks(
    ...     load(
    ...         {
    ...             "name": "mine",
    ...             "source": {"path": "rows.jsonl"},
    ...             "limits": {"team": {"rpm": 60}},
    ...             "deployments": {"gpu": {"model": "hosted_vllm/llama", "api_base": "http://127.0.0.1:8000/v1"}},
    ...             "models": {"llama": {"deployments": ["gpu"], "params": {"max_token": 9}}},
    ...             "stages": {"a": {"kind": "generate", "model": "llama", "prompt": "{{ text }}"}},
    ...         }
    ...     )
    ... ):
    ...     print(line)
    limits.team: no deployment uses it, so it limits nothing. Write deployments.gpu.limits: team
    models.llama.params.max_token: not a parameter that is known. Did you mean 'max_tokens'? It is sent as it stands.
    """
    yield from _unused(experiment)
    for path, params in _all_params(experiment):
        for name, words in doubts(params, _ELSEWHERE):
            yield f"{path}.{name}: {words} It is sent as it stands."
        yield from _unrendered(path, params)
    for name, stage in experiment.stages.items():
        if isinstance(stage, GenerateStage):
            yield from _unread(name, stage, experiment)


def used_deployments(experiment: Experiment) -> list[str]:
    """The labels of the deployments that some stage may send to, in their order."""
    models = {stage.model for stage in experiment.stages.values() if isinstance(stage, ModelStageConfig)}
    used = {label for name in models for label in experiment.models[name].deployments}
    return [label for label in experiment.deployments if label in used]


def _unused(experiment: Experiment) -> Iterator[str]:
    used = used_deployments(experiment)
    for account in experiment.limits:
        if not experiment.members_of(account):
            where = used[0] if len(used) == 1 else "LABEL"
            yield (
                f"limits.{account}: no deployment uses it, so it limits nothing. Write deployments.{where}.limits: "
                f"{account}"
            )
    named = {label for model in experiment.models.values() for label in model.deployments}
    for label in experiment.deployments:
        if label not in named and experiment.models:
            model = next(iter(experiment.models)) if len(experiment.models) == 1 else "NAME"
            yield f"deployments.{label}: no model uses it, so it gets no request. Add it to models.{model}.deployments"


def _all_params(experiment: Experiment) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, model in experiment.models.items():
        yield f"models.{name}.params", model.params
    for name, stage in experiment.stages.items():
        if isinstance(stage, ModelStageConfig):
            yield f"stages.{name}.params", stage.params


def _unrendered(path: str, node: Any) -> Iterator[str]:
    """A line for each template among parameters, which are the same for all rows."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name != "chat_template":  # is one, which the server renders
                yield from _unrendered(f"{path}.{name}", value)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _unrendered(path, item)
    elif isinstance(node, str) and (found := _TEMPLATE.search(node)):
        yield f"{path}: {found[0]} is sent as it stands: parameters are the same for all rows"


def _unread(name: str, stage: GenerateStage, experiment: Experiment) -> Iterator[str]:
    """A line for each part of the answer that is asked for and goes nowhere."""
    params = experiment.models[stage.model].params | stage.params
    asked = all_params(params)
    if stage.response_format is None and not stage.parse_json and asked.get("response_format") is not None:
        yield (
            f"stages.{name}: params.response_format is sent, but no answer is parsed: write it as the stage's own key, "
            f"stages.{name}.response_format, and 'parsed' is filled"
        )
    for each in _NOWHERE:
        if asked.get(each):
            yield f"stages.{name}: params.{each} is sent, but what the server answers to it is not stored"
