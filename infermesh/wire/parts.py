"""What the content of an answer says, in whatever parts it comes.

Content is a text, a list of texts or parts, or one part. A part names its kind in ``type`` (OpenAI's Chat Completions
and Responses, Anthropic, Mistral, which nests the text of its ``thinking`` parts once more, Databricks, OpenRouter's
``reasoning_details``), or names none, and holds its text in one of a few fields.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from infermesh.exact_json import dumps

__all__ = ["Content", "read_content", "thoughts_in", "thoughts_of"]

_KINDS = {
    **dict.fromkeys(("text", "output_text"), "text"),
    "refusal": "refusal",
    **dict.fromkeys(
        ("thinking", "reasoning", "reasoning_text", "reasoning.text", "reasoning.summary", "summary_text"), "thoughts"
    ),
}
_FIELDS = ("text", "content", "output_text", "thinking", "reasoning", "summary", "refusal", "value")
_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")


class Content(NamedTuple):
    """The texts of one content, each empty where there is none."""

    text: str
    refusal: str
    thoughts: str


def read_content(content: Any) -> Content:
    """Read a content. Some servers send the JSON that was asked for as a value: it becomes text again.

    Raises
    ------
    TypeError
        It is neither text nor parts nor JSON of its own.
    """
    if _is_value(content):
        return Content(dumps(content).decode(), "", "")
    found: dict[str, list[str]] = {"text": [], "refusal": [], "thoughts": []}
    _collect(content, found, "text")
    return Content(*("".join(texts) for texts in found.values()))


def thoughts_of(message: dict[str, Any]) -> str | None:
    """The reasoning that a message holds beside its content, in any of the fields and forms that servers use."""
    return next((found for name in _REASONING if (value := message.get(name)) and (found := thoughts_in(value))), None)


def thoughts_in(value: Any) -> str:
    """The text of thoughts, in whatever parts; what cannot be read is left out: no answer is lost for its thoughts."""
    found: dict[str, list[str]] = {"text": [], "refusal": [], "thoughts": []}
    try:
        _collect(value, found, "thoughts")
    except TypeError:
        return ""
    return "".join(found["thoughts"])


def _collect(value: Any, found: dict[str, list[str]], kind: str) -> None:
    """Add the texts in a value to those of their kind. A part within thoughts is thoughts as well."""
    if isinstance(value, str):
        found[kind].append(value)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found, kind)
    elif isinstance(value, dict):
        name = value.get("type")
        if isinstance(name, str):
            own = _KINDS.get(name)
            if own is None:  # a picture, sound, a tool
                return
            kind = own if kind == "text" else kind
        held = next((value[field] for field in _FIELDS if value.get(field)), None)
        if held is not None:
            _collect(held, found, kind)
    elif value is not None:
        raise TypeError


def _is_value(content: Any) -> bool:
    """Whether a content is JSON of its own, and no parts."""
    if isinstance(content, list):
        return bool(content) and not any(
            item is None or isinstance(item, str) or (isinstance(item, dict) and ("type" in item or "text" in item))
            for item in content
        )
    return isinstance(content, dict) and str(content.get("type")) not in _KINDS
