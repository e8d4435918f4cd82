"""What all kinds of answers have: an id, and a way to say that one is none."""

from __future__ import annotations

from typing import Any, NoReturn

from infermesh.errors import MalformedResponseError
from infermesh.exact_json import shown
from infermesh.redaction import redact
from infermesh.types import Reply

__all__ = ["malformed", "request_id_of", "text_or_none"]

_EXCERPT = 200


def text_or_none(value: Any) -> str | None:
    """A value that has to be a text; ``None`` where it is none."""
    return value if isinstance(value, str) else None


def request_id_of(reply: Reply) -> str | None:
    """The provider's id of the request, in the body or in a header."""
    value = reply.body.get("id")
    return value if isinstance(value, str) and value else reply.header("x-request-id")


def malformed(expected: str, reply: Reply) -> NoReturn:
    """Raise ``MalformedResponseError``: what was expected, and the beginning of what came."""
    answer = redact(shown(reply.body)[: 10 * _EXCERPT])
    if len(answer) > _EXCERPT:
        answer = answer[:_EXCERPT] + "…"
    raise MalformedResponseError(
        f"expected {expected}, but the server answered {answer}. Check that api_base is an OpenAI-compatible endpoint",
        status_code=reply.status_code,
        request_id=request_id_of(reply),
    )
