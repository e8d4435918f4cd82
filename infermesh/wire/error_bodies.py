"""What an error body says: its codes, its message, its id, from any of the shapes in which servers write one. Pure.

What that means is told by :mod:`infermesh.wire.refusals`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

from infermesh.exact_json import shown

__all__ = ["Said", "is_error", "said_by"]

_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


class Said(NamedTuple):
    """What a server says in an error body: its codes, the likeliest first, its message and the request's id."""

    codes: tuple[str, ...]
    message: str
    request_id: str | None


def is_error(body: dict[str, Any]) -> bool:
    """Whether a body that has no answer in it tells of an error: vLLM's and FastAPI's have no key ``error``."""
    return body.get("object") == "error" or body.get("type") == "error" or isinstance(_first_message(body), str | list)


def said_by(body: Any) -> Said:
    """Read an error body of any of the usual shapes: decoded, as it came (str, bytes), or the error object itself."""
    if isinstance(body, bytes | bytearray | memoryview):
        body = bytes(body).decode("utf-8", "replace")
    if isinstance(body, str):
        text = body.strip().removeprefix("\ufeff")
        if not text.startswith(("{", "[")):
            return Said((), _one_line(text), None)
        try:
            body = orjson.loads(text)
        except ValueError:
            return Said((), _one_line(text), None)
    if isinstance(body, list) and len(body) == 1:  # Gemini puts its error into a list
        body = body[0]
    if not isinstance(body, dict):
        return Said((), _one_line(str(body or "")), None)
    detail = body.get("detail")  # FastAPI wraps what its handlers raise
    if isinstance(detail, dict) and (detail.get("error") or detail.get("message")):
        body = {**body, **detail}
    raw = body.get("error")
    error: dict[str, Any] = raw if isinstance(raw, dict) else body
    message = raw if isinstance(raw, str) else _first_message(error) or _first_message(body)
    metadata = error.get("metadata")  # where OpenRouter says what the provider said
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str) and isinstance(message, str):
        message = f"{message}: {metadata['raw']}"
    request_id = body.get("request_id") or body.get("id")
    if not message:
        message = shown(body)
    elif not isinstance(message, str):
        message = _detail(message)
    return Said(_codes(error), _one_line(message), request_id if isinstance(request_id, str) else None)


def _codes(error: dict[str, Any]) -> tuple[str, ...]:
    codes = [error.get(name) for name in ("code", "type", "error_type", "status", "reason", "__type")]
    for name in ("details", "errors"):  # google.rpc.ErrorInfo, and Google's older APIs
        several = error.get(name)
        codes += [item.get("reason") for item in several if isinstance(item, dict)] if isinstance(several, list) else []
    inner = error.get("innererror")  # where Azure says which filter it was
    if isinstance(inner, dict):
        codes.append(inner.get("code"))
    return tuple(str(code).rpartition("#")[2] for code in codes if code and isinstance(code, str | int))


def _first_message(holder: dict[str, Any]) -> Any:
    """What a body says, under whichever name; of a list of errors, the first."""
    for name in ("message", "detail", "msg", "Message", "error_message"):
        if holder.get(name):
            return holder[name]
    several = holder.get("errors")
    if isinstance(several, list) and several:
        return _first_message(several[0]) if isinstance(several[0], dict) else str(several[0])
    return None


def _detail(value: Any) -> str:
    """FastAPI's validation errors: a list of {loc, msg}."""
    if isinstance(value, list) and all(isinstance(item, dict) and "msg" in item for item in value):
        return "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item['msg']}" for item in value)
    return shown(value)


def _one_line(text: str) -> str:
    """A text on one line; of an HTML page, its title."""
    if text[:200].lstrip().lower().startswith(("<!doctype", "<html", "<head")) and (title := _HTML_TITLE.search(text)):
        text = title[1]
    return " ".join(text[:4000].split()).rstrip(".")
