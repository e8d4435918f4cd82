"""The names of wire parameters and the kinds of their values: what a typo is held against before anything is sent.

A name that is not here is sent like any other: servers have parameters of their own. Only one that nearly is another is
worth a word, as many servers ignore what they do not know.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.config.references import FromEnvironment

__all__ = ["doubts", "is_parameter"]

_NUMBER, _INTEGER, _FLAG, _TEXT, _LIST, _MAPPING = "a number", "an integer", "true or false", "text", "a list", "a map"
_PAIRS = "a map or a list of pairs"

# Names and kinds are those of OpenAI's Python SDK (the classes *CreateParams* in openai.types), of vLLM's and SGLang's
# entrypoints/openai/protocol.py, and of llama.cpp's tools/server/README.md, as of November 2026. What Ollama, Mistral,
# OpenRouter, Groq, xAI, Cohere, Anthropic and LiteLLM add was not held against their sources. A name that two of them
# give different kinds stands under _ANY.
_OF_KIND: dict[str, str] = {
    _NUMBER: "dry_base dry_multiplier dynatemp_exponent dynatemp_range frequency_penalty length_penalty min_p "
    "mirostat_eta mirostat_tau presence_penalty repeat_penalty repetition_penalty temperature top_n_sigma top_p "
    "typical_p xtc_probability xtc_threshold",
    _INTEGER: "best_of dimensions dry_allowed_length dry_penalty_last_n id_slot max_completion_tokens "
    "max_output_tokens max_tokens max_tool_calls min_keep min_tokens mirostat n n_cache_reuse n_cmpl n_indent n_keep "
    "n_predict n_probs num_ctx num_predict priority random_seed repeat_last_n seed t_max_predict_ms "
    "thinking_token_budget top_k top_logprobs truncate_prompt_tokens",
    _FLAG: "add_generation_prompt add_special_tokens background cache_prompt continue_final_message drop_params echo "
    "enable_thinking ignore_eos include_reasoning include_stop_str_in_output no_stop_trim parallel_tool_calls "
    "parse_tool_calls return_meta_info return_prompt_text return_prompt_token_ids return_token_ids return_tokens "
    "return_tokens_as_token_ids safe_prompt separate_reasoning skip_special_tokens spaces_between_special_tokens store "
    "stream stream_reasoning timings_per_token use_beam_search watermarking",
    _TEXT: "api_version chat_template ebnf encoding_format grammar guided_decoding_backend guided_grammar guided_regex "
    "guided_whitespace_pattern input_type language previous_response_id prompt_cache_key prompt_cache_retention "
    "prompt_mode reasoning_format regex request_id safety_identifier service_tier session_id structural_tag suffix "
    "truncation truncation_side user verbosity",
    _LIST: "allowed_openai_params allowed_token_ids bad_words dry_sequence_breakers functions guided_choice include "
    "input_ids keywords known_speaker_names known_speaker_references languages logprob_token_ids modalities models "
    "plugins safety_settings samplers stop_sequences stop_token_ids timestamp_granularities tools transforms",
    _MAPPING: "audio chat_template_kwargs custom_params ec_transfer_params extra_body kv_transfer_params "
    "media_io_kwargs metadata mm_processor_kwargs moderation options prediction prompt_cache_options provider "
    "reasoning repetition_detection search_parameters session_params stream_options structured_outputs text vllm_xargs "
    "web_search_options",
    _PAIRS: "logit_bias",  # llama.cpp takes [[token, bias], …] as well
}
_ANY = (
    "cache_salt chunking_strategy conversation custom_llm_provider documents format function_call guided_json "
    "instructions json_schema keep_alive logprobs lora_path prompt prompt_logprobs reasoning_effort "
    "response_format return_hidden_states stop stop_regex think thinking tool_choice truncate usage"
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


def is_parameter(name: str) -> bool:
    """Whether a name is a wire parameter that is known."""
    return name in _KINDS


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
    if kind == _PAIRS and isinstance(value, list | tuple):
        return all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    types = {_FLAG: bool, _TEXT: str, _MAPPING: Mapping, _PAIRS: Mapping}
    return kind not in types or isinstance(value, types[kind])
