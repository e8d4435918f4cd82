"""A row's story as its page shows it: texts, pictures and sounds, each cut to what a page can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infermesh.exact_json import dumps

__all__ = ["DATA_URL", "Block", "StageShown", "shown_stages", "shown_values"]

_MOST = 20_000  # characters of a text
_MOST_MEDIA = 8_000_000  # characters of a data URL
_NUMBERS = 8  # of a vector
# Pictures and sounds that browsers show and run nothing of. SVG is none of them.
DATA_URL = re.compile(
    r"data:(image/(?:png|jpeg|gif|webp|avif|bmp)|audio/[\w.+-]+|video/(?:mp4|webm));base64,([A-Za-z0-9+/=\s]+)\Z"
)
_FILE = re.compile(r"[^\n\x00]{1,900}\.(png|jpe?g|gif|webp|avif|bmp|wav|mp3|m4a|ogg|oga|opus|flac|webm|mp4)\Z", re.I)
_PICTURES = ("png", "jpg", "jpeg", "gif", "webp", "avif", "bmp")
_FIRST = ("messages", "input", "prompt", "instructions", "file")  # of a request: what a person reads first
_APART = ("kind", "status", "where", "request", "request_as_sent", "request_problem", "outputs", "attempts")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a value.

    Attributes
    ----------
    kind
        ``text``, ``code`` (JSON), ``image``, ``audio``, ``video``, or ``none`` for NULL.
    text
        What it says; of a picture or a sound, what it is.
    source
        Of a picture or a sound: its address, or itself as a data URL.
    left
        How many characters are left out.
    """

    kind: str
    text: str
    source: str = ""
    left: int = 0


@dataclass(frozen=True, slots=True)
class StageShown:
    """A stage of the story, with what its template names.

    Attributes
    ----------
    parts
        The request: ``(role or field, blocks)``.
    parameters
        The rest of the request.
    facts
        Name and value of the other columns that every stage has.
    """

    name: str
    kind: str
    status: str
    where: str | None
    error_type: str | None
    error: Block | None
    url: str | None
    deployment: str | None
    fact: str
    problem: str | None
    parts: list[tuple[str, list[Block]]] = field(default_factory=list)
    parameters: str = ""
    outputs: list[tuple[str, list[Block]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)


def shown_values(values: Mapping[str, Any], media: Callable[[str], str]) -> list[tuple[str, list[Block]]]:
    """The row's columns. ``media``: column → the address of the file that the column's value names."""
    return [(name, list(_blocks(value, media(name)))) for name, value in values.items()]


def shown_stages(stages: Mapping[str, Mapping[str, Any]]) -> list[StageShown]:
    """The stages, from the story as plain values."""
    return [_stage(name, stage) for name, stage in stages.items()]


def _stage(name: str, stage: Mapping[str, Any]) -> StageShown:
    state = {key: value for key, value in stage.items() if key not in _APART}
    request = stage["request"]
    payload = request["payload"] if request else {}
    attempts = stage["attempts"] if isinstance(stage["attempts"], list) else []
    error = state.pop("error", None)
    fact = {
        True: "as it was sent",
        False: "as it would be sent now: a prompt or a parameter has changed since it was sent",
        None: "as it would be sent",
    }[stage["request_as_sent"]]
    return StageShown(
        name,
        stage["kind"],
        stage["status"],
        stage["where"],
        state.pop("error_type", None),
        None if error is None else _text(error),
        request["url"] if request else None,
        request["deployment"] if request else None,
        fact,
        stage["request_problem"],
        list(_payload(payload)) if isinstance(payload, Mapping) else [],
        _json({key: value for key, value in payload.items() if key not in _FIRST}) if payload else "",
        [(column, list(_blocks(value))) for column, value in stage["outputs"].items() if value is not None],
        {key: value for key, value in state.items() if value is not None},
        attempts,
    )


def _payload(payload: Mapping[str, Any]) -> Iterator[tuple[str, list[Block]]]:
    for key in _FIRST:
        value = payload.get(key)
        if value is None:
            continue
        if key in ("messages", "input") and isinstance(value, list) and all(isinstance(m, Mapping) for m in value):
            for message in value:
                rest = {name: part for name, part in message.items() if name not in ("role", "content")}
                blocks = list(_content(message.get("content")))
                yield str(message.get("role", key)), blocks + ([Block("code", _json(rest))] if rest else [])
        else:
            yield key, list(_content(value))


def _content(content: Any) -> Iterator[Block]:
    """A message's content: a text, or parts of texts, pictures, sounds."""
    if not isinstance(content, list):
        yield from _blocks(content)
        return
    for part in content:
        if not isinstance(part, Mapping):
            yield from _blocks(part)
        elif isinstance(text := part.get("text"), str):
            yield _text(text)
        elif isinstance(image := part.get("image_url"), Mapping | str):
            yield from _blocks(image.get("url") if isinstance(image, Mapping) else image)
        elif isinstance(sound := part.get("input_audio"), Mapping) and isinstance(sound.get("data"), str):
            yield from _blocks(f"data:audio/{sound.get('format', 'wav')};base64,{sound['data']}")
        else:
            yield Block("code", _json(part))


def _blocks(value: Any, media: str = "") -> Iterator[Block]:
    if value is None:
        yield Block("none", "NULL")
    elif isinstance(value, str):
        if value.startswith("data:") and (found := DATA_URL.match(value)) is not None and len(value) <= _MOST_MEDIA:
            kind = found[1].partition("/")[0]
            yield Block(kind, f"{found[1]}, {len(found[2]) * 3 // 4:,} bytes", value)
            return
        yield _text(value)
        if media and (named := _FILE.match(value)) is not None and "://" not in value:
            suffix = named[1].lower()
            kind = "image" if suffix in _PICTURES else "video" if suffix == "mp4" else "audio"
            yield Block(kind, value, media)
    elif isinstance(value, list | tuple) and len(value) > _NUMBERS and all(isinstance(n, float) for n in value):
        first = ", ".join(f"{number:.4g}" for number in value[:_NUMBERS])
        yield Block("text", f"{first}, … ({len(value):,} numbers)")
    elif isinstance(value, dict | list | tuple):
        text = _json(value)
        yield Block("code", text[:_MOST], left=max(0, len(text) - _MOST))
    else:
        yield Block("text", str(value))


def _text(text: str) -> Block:
    return Block("text", text[:_MOST], left=max(0, len(text) - _MOST))


def _json(value: Any) -> str:
    """JSON that a person reads, in lines where it is long."""
    flat = dumps(value, default=str).decode()
    if len(flat) <= 100 or len(flat) > 200_000:
        return flat[: 10 * _MOST]
    return json.dumps(json.loads(flat), indent=2, ensure_ascii=False)
