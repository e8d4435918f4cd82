"""What a valid declaration says that is probably a slip is said in a line."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.config.load import load
from infermesh.config.parameters import doubts
from infermesh.config.remarks import remarks
from tests.support import experiment, generate

URL = "http://127.0.0.1:9/v1"


def said(stage: dict[str, Any] | None = None, **sections: Any) -> list[str]:
    return list(remarks(load(experiment(URL, {"a": stage or generate()}, **sections))))


def test_nothing_is_said_of_a_declaration_without_slips() -> None:
    params = {"temperature": 0, "max_tokens": 10.0, "stop": ["x"], "seed": None, "top_a": 0.1, "guided_json": {}}
    extra = {"chat_template": "{{ messages }}", "repetition_penalty": 1.1, "reasoning": {"effort": "low"}}
    assert said(generate(params={**params, "extra_body": extra})) == []


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"temprature": 0.2}, "temprature: not a parameter that is known. Did you mean 'temperature'? It is sent"),
        ({"max_token": 5}, "max_token: not a parameter that is known. Did you mean 'max_tokens'?"),
        ({"top-p": 0.5}, "Did you mean 'top_p'?"),
        ({"maxTokens": 5}, "Did you mean 'max_tokens'?"),
        ({"max_new_tokens": 5}, "Did you mean 'max_tokens'?"),
        ({"extra_body": {"guided_jsn": {}}}, "params.extra_body.guided_jsn: not a parameter that is known"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'."),
        ({"temperature": True}, "temperature: expected a number, got True."),
        ({"max_tokens": 1.5}, "max_tokens: expected an integer, got 1.5."),
        ({"seed": "7"}, "seed: expected an integer, got '7'."),
        ({"logit_bias": [1]}, "logit_bias: expected a map, got [1]."),
        ({"timeout": 3}, "timeout: a key of the model, and no parameter."),
        ({"rpm": 3}, "rpm: a key of limits, and no parameter."),
        ({"system": "Be short."}, "system: a key of the stage, and no parameter."),
        ({"user": "{{ id }}"}, "params.user: {{ id }} is sent as it stands: parameters are the same for all rows"),
    ],
)
def test_a_parameter_that_is_a_slip(params: dict[str, Any], line: str) -> None:
    (of_stage,) = said(generate(params=params))
    assert of_stage.startswith("stages.a.params.")
    assert line in of_stage
    models = {"m": {"deployments": ["d"], "params": params}}
    (of_model,) = said(models=models)
    assert of_model == of_stage.replace("stages.a", "models.m")


def test_every_known_name_is_near_none_but_itself() -> None:
    names = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "n_predict", "stop"]
    assert [name for name, words in doubts(dict.fromkeys(names), {}) if words] == []


def test_a_limit_that_nobody_uses() -> None:
    (line,) = said(limits={"team": {"rpm": 60}})
    assert line == "limits.team: no deployment uses it, so it limits nothing. Write deployments.d.limits: team"
    deployments = {"d": {"model": "hosted_vllm/any", "api_base": URL, "limits": "team"}}
    assert said(limits={"team": {"rpm": 60}}, deployments=deployments) == []


def test_a_deployment_that_no_model_uses() -> None:
    entry = {"model": "hosted_vllm/any", "api_base": URL}
    (line,) = said(deployments={"d": entry, "e": entry})
    assert line == "deployments.e: no model uses it, so it gets no request. Add it to models.m.deployments"


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"response_format": {"type": "json_object"}}, "stages.a.response_format, and 'parsed' is filled"),
        ({"extra_body": {"prompt_logprobs": 1}}, "stages.a: params.prompt_logprobs is sent, but what the server"),
    ],
)
def test_what_is_asked_for_and_goes_nowhere(params: dict[str, Any], line: str) -> None:
    (found,) = said(generate(params=params))
    assert line in found
