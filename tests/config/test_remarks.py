"""What a valid declaration says that is probably a slip is said in a line."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.config.load import load
from infermesh.config.parameters import doubts
from infermesh.config.remarks import remarks
from tests.support import embed, experiment, generate

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
        ({"logit_bias": [1]}, "logit_bias: expected a map or a list of pairs, got [1]."),
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


OF_SERVERS = {
    "vllm": "thinking_token_budget include_reasoning watermarking truncation_side logprob_token_ids media_io_kwargs "
    "session_id routed_experts_prompt_start return_token_offsets return_prompt_text return_mm_kwargs "
    "ec_transfer_params kv_transfer_params repetition_detection stream_interval",
    "sglang": "task return_hidden_states return_routed_experts routed_experts_start_len return_cached_tokens_details "
    "return_prompt_token_ids return_meta_info stop_regex session_id session_params max_dynamic_patch "
    "min_dynamic_patch use_audio_in_video images_config custom_logit_processor custom_params input_ids rid extra_key "
    "ngram_corpus_id priority bootstrap_host bootstrap_port bootstrap_room routed_dp_rank data_parallel_rank",
    "llama.cpp": "n_indent n_keep n_cmpl n_cache_reuse dry_sequence_breakers min_keep t_max_predict_ms id_slot "
    "return_tokens timings_per_token parse_tool_calls",
}


@pytest.mark.parametrize("server", OF_SERVERS)
def test_no_parameter_of_a_server_is_taken_for_a_slip(server: str) -> None:
    assert list(doubts(dict.fromkeys(OF_SERVERS[server].split()), {})) == []


def test_no_parameter_of_openai_is_taken_for_a_slip() -> None:
    from openai.types import chat, completion_create_params, embedding_create_params, responses
    from openai.types.audio import transcription_create_params

    classes = (
        chat.completion_create_params.CompletionCreateParamsBase,
        completion_create_params.CompletionCreateParamsBase,
        responses.response_create_params.ResponseCreateParamsBase,
        embedding_create_params.EmbeddingCreateParams,
        transcription_create_params.TranscriptionCreateParamsBase,
    )
    names = {name for each in classes for name in each.__annotations__}
    assert len(names) > 40
    assert list(doubts(dict.fromkeys(names), {"model": "a stage"})) == [
        ("model", "a key of a stage, and no parameter.")
    ]


@pytest.mark.parametrize(
    "params",
    [
        {"reasoning_effort": 0.4},  # SGLang
        {"logit_bias": [[15043, 1.0], ["Hello", False]]},  # llama.cpp
        {"logit_bias": {"15043": -100}},
        {"cache_salt": ["a", "b"]},  # SGLang
        {"return_hidden_states": "last"},  # SGLang
    ],
)
def test_kinds_of_values_that_servers_take(params: dict[str, Any]) -> None:
    assert list(doubts(params, {})) == []


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


def test_one_server_for_chat_and_embeddings() -> None:
    entry = {"model": "hosted_vllm/llama", "api_base": URL}
    models = {"m": {"deployments": ["d", "e"]}, "v": {"deployments": ["d", "e"]}}
    job = experiment(URL, {"a": generate(), "b": embed(model="v"), "c": embed(model="v")}, models=models)
    assert list(remarks(load({**job, "deployments": {"d": entry, "e": entry}}))) == [
        "deployments.d: stages a (generate) and c (embed) share one model, hosted_vllm/llama, and few servers "
        "answer all of that: give each a model of its own"
    ]
    simulated = entry | {"api_base": "simulator"}
    assert list(remarks(load({**job, "deployments": {"d": simulated, "e": simulated}}))) == []
