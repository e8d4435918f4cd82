"""What a finish reason means: one closed table for every dialect that reaches infermesh.

A gateway may hand on the reason of the provider behind it, so the names of all dialects are understood in every answer,
in any case (``MAX_TOKENS``, ``maxTokens``, ``FinishReason.MAX_TOKENS``); of ``content_filter: SAFETY`` either half. A
reason that stands in no list is no good end: what it means is not known, and an answer is not taken for complete on a
guess.

Sources: OpenAI's API reference (Chat Completions, Completions; the Responses API has a status in its place), vLLM
(``FINISH_REASON_STRINGS`` in ``vllm/v1/engine``), SGLang (``managers/schedule_batch.py``), TGI (``FinishReason`` in its
OpenAPI document), Anthropic (``stop_reason`` of the Messages API), Gemini (``FinishReason`` of ``generateContent``),
Mistral, DeepSeek, Z.ai (GLM), Cohere, AI21, Together, Ollama (``done_reason``), watsonx, LM Studio (``stopReason``) and
Bedrock (``stopReason`` of Converse, ``completionReason`` of Titan), each in its API reference, and OpenRouter ("API
errors": ``finish_reason: error``).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

__all__ = ["Ending", "ending"]

Ending = Literal["complete", "cut", "filtered", "broken", "unknown"]

_REASONS: dict[Ending, str] = {
    # The model came to its end, called a tool, or met a stop sequence.
    "complete": "stop eos eos_token end end_turn stop_sequence complete completed tool_calls tool_call tool_use"
    " function_call done finish finished stop_criteria_met endoftext end_of_text eos_found stop_string_found"
    " unspecified null none",
    # The text is real, and ends too early: a limit of the request or of the server, or a model that repeats itself.
    "cut": "length max_tokens max_output_tokens model_length max_length model_context_window_exceeded repetition"
    " pause_turn incomplete error_limit token_limit max_tokens_reached max_predicted_tokens_reached"
    " context_length_reached time_limit max_tool_calls compaction",
    # A filter of the provider's, or the model's own refusal.
    "filtered": "content_filter content_filtered content_filtering safety recitation blocklist prohibited_content spii"
    " language image_safety image_prohibited_content image_recitation sensitive refusal guardrail_intervened"
    " error_toxic violation model_armor",
    # The server did not finish its work. The same request may succeed.
    "broken": "error abort aborted cancelled canceled user_cancel network_error timeout insufficient_system_resource"
    " load unload other malformed_function_call unexpected_tool_call malformed_response no_image image_other"
    " malformed_tool_use malformed_model_output in_progress queued failed not_finished too_many_tool_calls"
    " missing_thought_signature function_call_filter model_unloaded user_stopped",
}
_NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s.-]+")
_ENDINGS = {reason: meaning for meaning, reasons in _REASONS.items() for reason in reasons.split()}


def ending(finish_reason: str | None) -> Ending:
    """What a finish reason says of the answer.

    Parameters
    ----------
    finish_reason
        As the server gave it. ``None``: some servers send none; it is no complaint.

    Examples
    --------
    >>> ending("MAX_TOKENS"), ending("insufficient_system_resource"), ending(None)
    ('cut', 'broken', 'complete')
    """
    if finish_reason is None:
        return "complete"
    return _ENDINGS.get(finish_reason) or _looked_up(finish_reason)


@lru_cache(maxsize=256)
def _looked_up(reason: str) -> Ending:
    if not reason.strip():
        return "complete"
    before, _, after = reason.partition(":")
    for name in (reason, after, before):
        word = _NEW_WORD.sub("_", name.strip()).lower().removeprefix("finish_reason_")
        if word in _ENDINGS:
            return _ENDINGS[word]
    return "unknown"
