"""The names of wire parameters and the kinds of their values: what a typo is held against before anything is sent.

A name that is not here is sent like any other: servers have parameters of their own. Only one that nearly is another is
worth a word, as many servers ignore what they do not know.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.config.references import FromEnvironment

__all__ = ["doubts"]

_NUMBER, _INTEGER, _FLAG, _TEXT, _LIST, _MAPPING = "a number", "an integer", "true or false", "text", "a list", "a map"

# Each line has its source before it. A name that two of them give different kinds stands under _ANY.
_OF_KIND: dict[str, str] = {
    # OpenAI: https://platform.openai.com/docs/api-reference (chat, completions, responses, embeddings, audio)
    _NUMBER: "frequency_penalty presence_penalty temperature top_p "
    # vLLM: https://docs.vllm.ai/en/stable/serving/openai_compatible_server, SGLang: …/basic_usage/sampling_params
    "min_p repetition_penalty length_penalty "
    # llama.cpp: https://github.com/ggml-org/llama.cpp/tree/master/tools/server
    "repeat_penalty typical_p mirostat_tau mirostat_eta dynatemp_range dynatemp_exponent xtc_probability xtc_threshold "
    "dry_multiplier dry_base top_n_sigma",
    _INTEGER: "max_completion_tokens max_output_tokens max_tokens max_tool_calls n best_of seed top_logprobs "
    "dimensions top_k min_tokens truncate_prompt_tokens priority n_predict n_keep n_probs repeat_last_n mirostat "
    "dry_allowed_length dry_penalty_last_n id_slot random_seed num_ctx num_predict",
    _FLAG: "background echo parallel_tool_calls store stream include_stop_str_in_output ignore_eos skip_special_tokens "
    "spaces_between_special_tokens add_generation_prompt continue_final_message add_special_tokens use_beam_search "
    "return_token_ids return_tokens_as_token_ids no_stop_trim separate_reasoning stream_reasoning cache_prompt "
    "enable_thinking safe_prompt include_reasoning drop_params",
    _TEXT: "encoding_format language previous_response_id prompt_cache_key reasoning_effort safety_identifier "
    "service_tier suffix truncation user verbosity chat_template regex ebnf grammar guided_grammar guided_regex "
    "guided_decoding_backend guided_whitespace_pattern structural_tag request_id cache_salt input_type "
    "reasoning_format prompt_mode api_version",
    _LIST: "include modalities timestamp_granularities tools functions stop_token_ids allowed_token_ids bad_words "
    "guided_choice samplers stop_sequences models transforms plugins safety_settings allowed_openai_params",
    _MAPPING: "audio extra_body logit_bias metadata prediction stream_options web_search_options reasoning text "
    "chat_template_kwargs mm_processor_kwargs structured_outputs kv_transfer_params vllm_xargs options provider "
    "search_parameters",
}
_ANY = (
    "chunking_strategy conversation function_call instructions logprobs prompt prompt_logprobs response_format stop "
    "tool_choice guided_json json_schema documents lora_path session_params keep_alive think thinking format usage "
    "truncate custom_llm_provider"
)
_KINDS = {name: kind for kind, names in _OF_KIND.items() for name in names.split()} | dict.fromkeys(_ANY.split(), "")
# What other libraries call it.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",  # https://huggingface.co/docs/transformers/main_classes/text_generation
    "max_length": "max_tokens",
    "max_gen_toks": "max_tokens",
    "num_return_sequences": "n",
    "stop_words": "stop",
    "temp": "temperature",
}
_NEAR = 0.82  # top_a, which some servers have, is at 0.8 to top_p


def doubts(params: Mapping[str, Any], elsewhere: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """``(name, what is odd)`` for each parameter that looks like a slip.

    Parameters
    ----------
    params
        Wire parameters as they are declared, those in ``extra_body`` too.
    elsewhere
        Keys of the declaration that are no parameters → whose they are.

    Examples
    --------
    >>> for name, words in doubts({"temprature": 0.2, "min_p": 0.1, "max_tokens": "many"}, {}):
    ...     print(f"{name}: {words}")
    temprature: not a parameter that is known. Did you mean 'temperature'?
    max_tokens: expected an integer, got 'many'.
    """
    for name, value in params.items():
        if name == "extra_body" and isinstance(value, Mapping):
            yield from ((f"extra_body.{inner}", words) for inner, words in doubts(value, elsewhere))
        elif name in elsewhere and name not in _KINDS:
            yield name, f"a key of {elsewhere[name]}, and no parameter."
        elif name not in _KINDS:
            if near := _near(name):
                yield name, f"not a parameter that is known. Did you mean '{near}'?"
        elif value is not None and not isinstance(value, FromEnvironment) and not _fits(value, _KINDS[name]):
            yield name, f"expected {_KINDS[name]}, got {value!r:.60}."


def _near(name: str) -> str | None:
    plain = name.lower().replace("-", "_")
    if plain in _ELSEWHERE:
        return _ELSEWHERE[plain]
    return next(iter(difflib.get_close_matches(plain, _KINDS, n=1, cutoff=_NEAR)), None)


def _fits(value: Any, kind: str) -> bool:
    if kind == _NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == _INTEGER:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    if kind == _LIST:
        return isinstance(value, list | tuple)
    types = {_FLAG: bool, _TEXT: str, _MAPPING: Mapping}
    return kind not in types or isinstance(value, types[kind])
