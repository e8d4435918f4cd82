"""The OpenAI wire format, answers: decoded JSON → typed results.

An answer that does not follow the protocol raises :class:`~infermesh.errors.MalformedResponseError`. Its message says
what was expected, and shows the beginning of the answer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn

from infermesh.errors import (
    ContentFilterError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    UnfinishedError,
)
from infermesh.exact_json import dumps, read
from infermesh.redaction import redact
from infermesh.results import GenerationResult, ToolCall, TranscriptionResult
from infermesh.types import Operation, Reply
from infermesh.wire.endings import ending
from infermesh.wire.error_bodies import said_by
from infermesh.wire.languages import language_code
from infermesh.wire.parts import read_content, thoughts_in, thoughts_of
from infermesh.wire.refusals import implied_status, meaning_of
from infermesh.wire.replies import malformed, request_id_of, text_or_none
from infermesh.wire.usage import usage_of

_EXCERPT = 200


def parse_generation(operation: Operation, reply: Reply) -> GenerationResult:
    """Read the answer to a chat, text or Responses request. Only the first choice is read.

    A refusal (``message.refusal``, or a ``refusal`` part) is the answer's text where there is no other, as is the
    transcript of a spoken answer; either leaves the finish reason as the server gave it. A Responses status becomes the
    chat finish reason of the same meaning: ``stop``, ``tool_calls``, ``length`` or ``content_filter``.

    Raises
    ------
    MalformedResponseError
        The body is not that endpoint's answer.
    ContentFilterError
        The provider's filter left no text.
    UnfinishedError
        The server did not bring the answer to a good end (see :mod:`infermesh.wire.endings`), or ended one that has
        nothing in it.
    RequestError
        A Responses answer with status ``failed``; the class follows its error code.

    Every error holds the tokens that the answer cost in ``usage``, where the body tells them.
    """
    body = reply.body
    if operation == "chat_completion":
        result = _chat(body, reply)
    elif operation == "text_completion":
        result = _text(body, reply)
    elif operation == "responses":
        result = _responses(body, reply)
    else:
        raise ValueError(f"{operation} is not a generation")
    if result.finish_reason != "stop" or not result.output_text:
        _check_ending(result, reply)
    result.request_id = request_id_of(reply)
    model = body.get("model")
    result.model_id = _shared(model) if type(model) is str else None
    result.token_usage = usage_of(body)
    result.raw_body = reply.data or body
    return result


@lru_cache(maxsize=64)
def _shared_short(text: str) -> str:
    return text


def _shared(text: str) -> str:
    """The same text for all results that say it, so that a batch keeps it once."""
    return _shared_short(text) if len(text) <= _EXCERPT else text


def _check_ending(result: GenerationResult, reply: Reply) -> None:
    """Raise where the answer did not come to a good end."""
    reason = result.finish_reason
    meaning = ending(reason)
    if meaning == "cut" or (meaning in ("complete", "filtered") and (result.output_text or result.tool_calls)):
        return
    if meaning == "complete":
        if result.reasoning or _carries_more(reply.body):
            return
        raise _unfinished("the answer is empty: no text and no tool call came, though the model ended it", reply)
    if meaning == "filtered":
        error = ContentFilterError(
            "the provider's content filter left no text in the answer: change the prompt or the filter's settings",
            status_code=reply.status_code,
            request_id=request_id_of(reply),
        )
        error.usage = usage_of(reply.body)
        raise error
    if meaning == "broken":
        raise _unfinished(f"the server broke the answer off: its finish reason is {reason!r}", reply)
    text = redact(repr(result.output_text[:_EXCERPT])) if result.output_text else "no text"
    raise _unfinished(
        f"the answer ended for a reason that is not known to be a good one, {reason!r:.80}, with {text}. "
        "Look the reason up in the provider's documentation",
        reply,
        retryable=False,
    )


def _unfinished(message: str, reply: Reply, *, retryable: bool | None = None) -> UnfinishedError:
    error = UnfinishedError(
        message, status_code=reply.status_code, request_id=request_id_of(reply), retryable=retryable
    )
    error.usage = usage_of(reply.body)
    return error


def _carries_more(body: dict[str, Any]) -> bool:
    """Whether an answer without text holds something that is no text: a picture, sound, a call of a built-in tool."""
    output = body.get("output")
    if isinstance(output, list):
        return any(isinstance(item, dict) and item.get("type") not in ("message", "reasoning") for item in output)
    choices = body.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and isinstance(choices[0], dict) else None
    return isinstance(message, dict) and any(message.get(name) for name in ("audio", "images"))


def _check_upstream(choice: dict[str, Any], reply: Reply) -> None:
    """Raise the error that a gateway put into the choice when its upstream failed (OpenRouter, "API errors")."""
    message = choice.get("message")
    failure = choice.get("error") or (message.get("error") if isinstance(message, dict) else None)
    if failure:
        raise _hidden_error("the server's upstream failed in mid-answer", failure, reply, UnfinishedError)


def _hidden_error(what: str, failure: Any, reply: Reply, failed: type[RequestError]) -> RequestError:
    """The error that an error object in a success means; ``failed`` is the class where the server failed itself."""
    said = said_by(failure)
    kind, retryable, advice = meaning_of(implied_status(said), said)
    if issubclass(kind, ServerError | RequestTimeoutError):
        kind, retryable, advice = failed, None, "The same request may succeed later"
    advice = advice.format(model=text_or_none(reply.body.get("model")) or "?", where="", origin="")
    code = f"{said.codes[0]}: " if said.codes else ""
    error = kind(
        f"{what}: {redact(code + said.message)[:500]}. {advice}",
        status_code=reply.status_code,
        request_id=request_id_of(reply),
        retryable=retryable,
    )
    error.usage = usage_of(reply.body)
    return error


def _first_choice(body: dict[str, Any], reply: Reply, expected: str) -> dict[str, Any]:
    try:
        choice = body["choices"][0]
    except (KeyError, IndexError, TypeError):
        malformed(expected, reply)
    if not isinstance(choice, dict):
        malformed(expected, reply)
    return choice


def _chat(body: dict[str, Any], reply: Reply) -> GenerationResult:
    try:  # what nearly every answer looks like
        choice = body["choices"][0]
        message = choice["message"]
        text, reason = message["content"], choice["finish_reason"]
        get = message.get
        rest = (
            get("reasoning_content") or get("reasoning") or get("tool_calls") or get("error") or choice.get("logprobs")
        )
        more = get("reasoning_details") or get("thinking") or get("function_call") or _names_its_own(choice)
        if type(text) is str and text and type(reason) is str and not rest and not more and "error" not in choice:
            return GenerationResult(output_text=text, finish_reason=_shared(reason))
    except (KeyError, IndexError, TypeError, AttributeError):
        pass
    expected = "a chat completion with choices[0].message"
    choice = _first_choice(body, reply, expected)
    _check_upstream(choice, reply)
    message, reason = choice.get("message"), _reason(choice)
    if message is None and ending(reason) in ("filtered", "broken"):
        message = {}  # Azure and Gemini leave it out where nothing is to be said
    if not isinstance(message, dict):
        malformed(expected, reply)
    if reply.data is not None and _holds_values(message):
        choice = read(reply.data)["choices"][0]
        message = choice["message"]
    try:
        text, refusal, thoughts = read_content(message.get("content"))
        text = text or refusal or read_content(message.get("refusal")).text or _spoken(message)
    except TypeError:
        malformed("choices[0].message.content as text", reply)
    calls = message.get("tool_calls")
    if not calls and message.get("function_call"):  # the name of old
        calls = [{"function": message["function_call"]}]
    return GenerationResult(
        output_text=text,
        reasoning=thoughts_of(message) or thoughts or None,
        tool_calls=_tool_calls(calls, reply) if calls else None,
        finish_reason=reason,
        logprobs=choice.get("logprobs") or None,
    )


def _names_its_own(choice: dict[str, Any]) -> Any:
    """The reason of the provider behind a gateway: OpenRouter's place for it, or LiteLLM's."""
    native = choice.get("native_finish_reason")
    if native is None and (apart := choice.get("provider_specific_fields")):
        native = apart.get("native_finish_reason") if isinstance(apart, dict) else None
    return native


def _reason(choice: dict[str, Any]) -> str | None:
    """Why the answer ended; in the provider's own word where the gateway's hides a filter or a failure."""
    reason, native = choice.get("finish_reason"), _names_its_own(choice)
    if isinstance(reason, dict):  # {"type": "length", "length": 5}
        reason = reason.get("type")
    reason = text_or_none(reason)
    own = ending(native) if isinstance(native, str) else None
    return native if own in ("filtered", "broken") and own != ending(reason) else reason


def _holds_values(message: dict[str, Any]) -> bool:
    """Whether something that is to be text came as JSON. It is decoded anew then, with integers of any size exact."""
    calls = message.get("tool_calls")
    made = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    made.append(message.get("function_call"))
    return isinstance(message.get("content"), dict | list) or any(
        isinstance(each, dict) and isinstance(each.get("arguments"), dict | list) for each in made
    )


def _spoken(message: dict[str, Any]) -> str:
    """What a spoken answer says, which OpenAI's audio models put beside the sound."""
    audio = message.get("audio")
    return text_or_none(audio.get("transcript")) or "" if isinstance(audio, dict) else ""


def refusal_of(result: GenerationResult) -> str | None:
    """The model's refusal, where it is all that an answer says."""
    body = result.raw_response or {}
    try:
        if isinstance(body.get("output"), list):
            found = [read_content(item["content"]) for item in body["output"] if item.get("type") == "message"]
            refusal = "".join(each.refusal for each in found)
        else:
            message = body["choices"][0]["message"]
            refusal = read_content(message.get("content")).refusal or message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return refusal if refusal and refusal == result.output_text else None


def _tool_calls(calls: Any, reply: Reply) -> list[ToolCall]:
    try:
        # A call of a custom tool has a text of any form in the place of the arguments.
        return [_tool_call(call.get("id"), call.get("function") or call["custom"]) for call in calls]
    except (KeyError, TypeError, AttributeError):
        malformed("tool_calls as a list of {id, function: {name, arguments}}", reply)


def _tool_call(call_id: Any, function: dict[str, Any]) -> ToolCall:
    arguments = function.get("arguments", function.get("input"))
    if arguments is None:
        arguments = "{}"
    elif not isinstance(arguments, str):  # some servers send the object itself
        arguments = dumps(arguments).decode()
    name = function["name"]
    if not isinstance(name, str):
        raise TypeError
    return ToolCall(text_or_none(call_id), name, arguments)


def _text(body: dict[str, Any], reply: Reply) -> GenerationResult:
    expected = "a text completion with choices[0].text"
    choice = _first_choice(body, reply, expected)
    _check_upstream(choice, reply)
    text, reason = choice.get("text"), _reason(choice)
    if text is None and ending(reason) in ("filtered", "broken"):
        text = ""
    if not isinstance(text, str):
        malformed(expected, reply)
    return GenerationResult(output_text=text, finish_reason=reason, logprobs=choice.get("logprobs") or None)


def _responses(body: dict[str, Any], reply: Reply) -> GenerationResult:
    status = body.get("status")
    if status == "failed":
        _failed_response(body, reply)
    output = body.get("output")
    if not isinstance(output, list):
        malformed("a response with a list 'output'", reply)
    if reply.data is not None and any(
        isinstance(item, dict) and isinstance(item.get("arguments"), dict | list) for item in output
    ):
        output = read(reply.data)["output"]
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    logprobs: list[Any] = []
    try:
        for item in output:
            kind = item.get("type")
            if kind == "message":
                text, refusal, thought = read_content(item["content"])
                texts.append(text)
                refusals.append(refusal)
                if thought:
                    thoughts.append(thought)
                if isinstance(item["content"], list):
                    for part in item["content"]:
                        logprobs.extend((isinstance(part, dict) and part.get("logprobs")) or ())
            elif kind == "reasoning":
                thoughts.extend(filter(None, map(thoughts_in, _thoughts(item))))
            elif kind in ("function_call", "custom_tool_call"):
                calls.append(_tool_call(item.get("call_id") or item.get("id"), item))
        text = "".join(texts) or "".join(refusals)
        reasoning = "\n".join(thoughts) or None
    except (KeyError, TypeError, AttributeError):
        malformed("output items of the Responses API", reply)
    return GenerationResult(
        output_text=text,
        reasoning=reasoning,
        tool_calls=calls or None,
        finish_reason=_finish_reason(body, status, bool(calls)),
        logprobs={"content": logprobs} if logprobs else None,
    )


def _thoughts(item: dict[str, Any]) -> list[Any]:
    parts = item.get("content") or item.get("summary") or item.get("text")
    return parts if isinstance(parts, list) else [parts]


def _finish_reason(body: dict[str, Any], status: Any, called: bool) -> str | None:
    if status == "completed":
        return "tool_calls" if called else "stop"
    if status == "incomplete":
        details = body.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return "length" if reason == "max_output_tokens" else text_or_none(reason) or "incomplete"
    return text_or_none(status)


def _failed_response(body: dict[str, Any], reply: Reply) -> NoReturn:
    failure = body.get("error") or {"message": "no reason given"}
    raise _hidden_error("the server answered with status 'failed'", failure, reply, ServerError)


def parse_transcription(reply: Reply) -> TranscriptionResult:
    """Read a transcript. ``language`` is an ISO 639-1 code, also where the server spells the name out.

    Some gateways wrap the transcript into one more object (Cloudflare's ``result``); where there is no text, the
    segments together are it.

    Raises
    ------
    MalformedResponseError
        The body has neither ``text`` nor segments with text.
    """
    body = reply.body
    text = _transcript_text(body)
    if text is None:
        body = next((value for value in body.values() if isinstance(value, dict) and "text" in value), body)
        text = _transcript_text(body)
    if text is None:
        malformed("a transcription with 'text'", reply)
    usage = body.get("usage")
    duration = body.get("duration")
    if duration is None and isinstance(usage, dict):
        duration = usage.get("seconds")
    try:
        seconds = None if duration is None else float(duration)  # some servers send it as text
    except (TypeError, ValueError, OverflowError):
        seconds = None
    language = body.get("language")
    return TranscriptionResult(
        request_id=request_id_of(reply),
        model_id=text_or_none(body.get("model")),
        token_usage=usage_of(body),
        raw_body=reply.data or body,
        text=text,
        language=language_code(language) if isinstance(language, str) and language else None,
        duration_s=seconds,
        words=_list_or_none(body.get("words")),
        segments=_list_or_none(body.get("segments")),
    )


def _transcript_text(body: dict[str, Any]) -> str | None:
    text, segments = body.get("text"), body.get("segments")
    if text is None and isinstance(segments, list) and segments:
        try:
            return "".join(segment["text"] for segment in segments).strip()
        except (TypeError, KeyError):
            return None
    return text if isinstance(text, str) else None


def _list_or_none(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and value else None
