"""The JSON schema of an experiment's file, for editors: what may stand where, with what each key means."""

from __future__ import annotations

from typing import Any

from infermesh.config.schema import Experiment

__all__ = ["experiment_schema"]

_INTERPOLATION = {
    "type": "string",
    "pattern": r"\$\{|^\?\?\?$",
    "description": "A reference, as ${oc.env:NAME} or ${models.m.timeout}; ??? is a value that is still missing",
}
_DURATION = {"type": "string", "pattern": r"^\s*[0-9.]+\s*[smhd]\s*$", "description": "90s, 30m, 2h, 1d"}
_HYDRA = {
    "defaults": {
        "type": "array",
        "description": "Groups of conf/ that this file begins with, in Hydra's syntax: /stage@stages.NAME: generate",
        "items": {"type": ["string", "object"]},
    },
    "hydra": {"type": "object", "description": "Hydra's own settings: hydra.run.dir, a sweep's launcher"},
}


def experiment_schema() -> dict[str, Any]:
    """The schema of what stands in ``conf/experiment/NAME.yaml``.

    It is wider than what a composed experiment has to fulfil: a group in ``defaults`` may bring any key, so that none
    is required, and any value may be a reference. Keys that nothing knows are errors, as they are when it is run.

    Returns
    -------
    dict
        JSON schema, draft 2020-12.

    Examples
    --------
    >>> experiment_schema()["properties"]["name"]["description"]
    'Names the folder below outputs/'
    """
    schema: dict[str, Any] = _loosened(Experiment.model_json_schema())
    schema["$defs"]["Interpolation"] = _INTERPOLATION
    schema["$defs"]["GuardsConfig"]["properties"]["max_duration"]["anyOf"].append(_DURATION)
    schema["properties"] |= _HYDRA
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "infermesh experiment", **schema}


def _loosened(node: Any) -> Any:
    if isinstance(node, list):
        return [_loosened(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {name: value for name, value in node.items() if name not in ("required", "discriminator", "minProperties")}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    loose = {name: _loosened(value) for name, value in kept.items()}
    if isinstance(loose.get("properties"), dict):
        loose["properties"] = {name: _or_reference(each) for name, each in loose["properties"].items()}
    return loose


def _or_reference(value: dict[str, Any]) -> dict[str, Any]:
    """A scalar, or a reference. What is said of the key stays at the top, where editors look for it.

    A section is left as it is: an editor could not say which key of it is wrong.
    """
    said: dict[str, Any] = {name: value[name] for name in ("description", "default") if name in value}
    rest = {name: each for name, each in value.items() if name not in said}
    forms = rest.get("anyOf", [rest])
    if any("$ref" in form or form.get("type") in ("object", "array") for form in forms):
        return value
    return {**said, "anyOf": [*forms, {"$ref": "#/$defs/Interpolation"}]}
