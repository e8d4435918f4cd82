"""``infermesh show``: one row's story."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from infermesh.cli.common import fail, warnings_muted
from infermesh.cli.find_run import asked_run, find_run
from infermesh.errors import ConfigError, StoreError
from infermesh.exact_json import dumps
from infermesh.hints import command, counted, nearest, one_line
from infermesh.plan.rehearsal import Sent
from infermesh.plan.story import RowStory, StageStory, row_story
from infermesh.query.finding import named_run
from infermesh.query.one_row import find_row

_MOST_LINES = 40  # of a value; --json has all of it
_OF_A_PARAMETER = 100  # characters
_MOST_OF_A_NAME = 30
_MOST_NUMBERS = 4  # of a vector
_IN_REQUEST = ("messages", "input", "prompt", "instructions", "file")  # what a person reads first


def show_row(words: Sequence[str], origin: str, stage: str | None, *, json: bool) -> None:
    """Print the story of a row; ``words`` is ``[RUN] ROW``."""
    if len(words) not in (1, 2):
        fail("which row? infermesh show [RUN] ROW, such as: infermesh show quickstart 0", code=2)
    name, row = (None, words[0]) if len(words) == 1 else words
    if len(words) == 1 and not row.isdecimal() and "=" not in row:
        fail(f"'{row}' is no row: infermesh show [RUN] ROW, such as: {command('show', row, 0)}", code=2)
    folder = find_run(name, lambda job: command("show", job, row))
    try:
        with warnings_muted():
            story = row_story(folder, find_row(folder, row, origin), origin)
    except ConfigError as error:
        fail(f"{error} {asked_run(name, folder, 'infermesh show RUN ROW')}")
    except StoreError as error:
        fail(str(error))
    if stage is not None:
        names = [each.name for each in story.stages]
        if stage not in names:
            fail(f"--stage {stage}: no stage over these rows.{nearest(stage, names)}", code=2)
        story.stages = [each for each in story.stages if each.name == stage]
    if json:
        sys.stdout.flush()
        sys.stdout.buffer.write(dumps(as_json(story)) + b"\n")
        sys.stdout.buffer.flush()
        return
    for line in _lines(story):
        print(line)


def as_json(story: RowStory) -> dict[str, Any]:
    """The story as plain values, nothing left out."""
    return {
        "run_id": story.run_id,
        "experiment": story.experiment,
        "folder": str(story.folder),
        "row_id": story.row_id,
        "columns": story.columns,
        "unreadable": story.unreadable,
        "stages": {stage.name: _stage_json(stage) for stage in story.stages},
    }


def _stage_json(stage: StageStory) -> dict[str, Any]:
    sent = stage.request
    request = None if sent is None else {"url": sent.url, "deployment": sent.deployment, "payload": sent.payload}
    return {
        "kind": stage.kind,
        "status": stage.status,
        "where": stage.where,
        "request": request,
        "request_as_sent": stage.as_sent,
        "request_problem": stage.problem,
        "outputs": stage.outputs,
        **stage.state,
        "attempts": [{key: value for key, value in each.items() if key not in _OF_ROW} for each in stage.attempts],
    }


_OF_ROW = ("stage", "row_id")


def _lines(story: RowStory) -> Iterator[str]:
    yield f"row {story.row_id} of {story.folder} ({story.experiment}, run {story.run_id})"
    if story.unreadable is not None:
        yield f"  this line of the source could not be read: {story.unreadable}"
    yield from _values(story.columns, "  ")
    for stage in story.stages:
        yield ""
        yield f"{stage.name}: {stage.status}  ({_about(stage)})"
        yield from _stage_lines(stage)


def _about(stage: StageStory) -> str:
    """The stage's kind, and who answered at what price."""
    state = stage.state
    tokens = [state.get("prompt_tokens"), state.get("completion_tokens")]
    cost = state.get("cost_usd")
    parts = [
        stage.kind,
        f"deployment {state['deployment']}" if state.get("deployment") else "",
        f"model {state['model_id']}" if state.get("model_id") else "",
        f"{tokens[0] or 0} + {counted(tokens[1] or 0, 'token')}" if any(tokens) else "",
        f"${cost:.6f}" if cost is not None else "",
        f"{state['service_s']:.2f} s at the server" if state.get("service_s") is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _stage_lines(stage: StageStory) -> Iterator[str]:
    state = stage.state
    if stage.status == "skipped" and state.get("error_type") is None:
        yield f"  left out by where: {stage.where}"
        return
    if (reused := state.get("reused_from")) is not None:
        yield f"  reused from  {_run_words(reused)}"
    yield from _request_lines(stage)
    if state.get("error_type") is not None:
        yield from _value("error", f"{state['error_type']}: {state.get('error') or ''}", "  ")
    yield from _values({name: value for name, value in stage.outputs.items() if value is not None}, "  ")
    yield from _attempt_lines(stage)


def _run_words(run_id: str) -> str:
    """A run that an answer came from: its folder, if it is still there."""
    folder = named_run(run_id)
    return f"run {run_id}" if folder is None else f"{folder} (run {run_id})"


def _request_lines(stage: StageStory) -> Iterator[str]:
    if stage.problem is not None:
        yield f"  request      cannot be rendered here: {stage.problem}"
    if stage.request is None:
        return
    sent = stage.request
    fact = {
        True: "as it was sent",
        False: "as it would be sent now: a prompt or a parameter has changed since it was sent",
        None: "as it would be sent",
    }[stage.as_sent]
    yield f"  request      POST {sent.url}, {fact}"
    yield from _payload_lines(sent)


def _payload_lines(sent: Sent) -> Iterator[str]:
    """The parameters in one line, then each text of the request."""
    rest = {key: _json(value) for key, value in sent.payload.items() if key not in _IN_REQUEST}
    short = (
        f"{key}={text if len(text) <= _OF_A_PARAMETER else text[:_OF_A_PARAMETER] + '…'}" for key, text in rest.items()
    )
    yield f"    {'  '.join(short)}"
    for key in _IN_REQUEST:
        value = sent.payload.get(key)
        if key == "messages" and isinstance(value, list):
            for message in value:
                content = message.get("content") if isinstance(message, Mapping) else message
                role = message.get("role", key) if isinstance(message, Mapping) else key
                yield from _value(str(role), content, "    ")
        elif value is not None:
            yield from _value(key, value[0] if isinstance(value, list) and len(value) == 1 else value, "    ")


def _attempt_lines(stage: StageStory) -> Iterator[str]:
    for each in stage.attempts:
        code = f"{each['status_code']} " if each.get("status_code") else ""
        ended = f"{code}{each['error_type']}" if each.get("error_type") else f"{code}answered"
        error = f": {one_line(each['error'], 300)}" if each.get("error") else ""
        rows = f", for {counted(each['request_rows'], 'row')}" if (each.get("request_rows") or 1) > 1 else ""
        yield (
            f"  attempt {each['attempt']}    {_time(each.get('started_at'))}  {each['deployment']}  {ended}{error}  "
            f"(waited {each.get('queue_s') or 0:.2f} s, took {each.get('service_s') or 0:.2f} s{rows})"
        )
    made = stage.state.get("attempts") or 0
    if made and not stage.attempts:
        yield f"  attempts     {made}, in a request with other rows: the table attempts has it under the first of them"


def _values(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    width = max([11, *(len(name) for name in values if len(name) <= _MOST_OF_A_NAME)])
    for name, value in values.items():
        yield from _value(name, value, indent, width)


def _value(name: str, value: Any, indent: str, width: int = 11) -> Iterator[str]:
    """A name and its value: short ones beside each other, texts of several lines below."""
    text = _text(value)
    lines = text.split("\n")
    if len(lines) == 1:
        yield f"{indent}{name:<{width}}  {text}"
        return
    yield f"{indent}{name}"
    yield from (f"{indent}  {line}".rstrip() for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"{indent}  … {counted(len(lines) - _MOST_LINES, 'more line')} (--json has all)"


def _text(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return value.rstrip("\n")
    if isinstance(value, list | tuple) and len(value) > _MOST_NUMBERS and all(isinstance(n, float) for n in value):
        first = ", ".join(f"{number:.4g}" for number in value[:_MOST_NUMBERS])
        return f"{counted(len(value), 'number')}: {first}, …"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return _json(value) if isinstance(value, dict | list | tuple) else str(value)


def _json(value: Any) -> str:
    text = dumps(value).decode()
    return text if len(text) <= 2000 else f"{text[:2000]} … (--json has all)"


def _time(value: Any) -> str:
    return f"{value:%H:%M:%S}.{value.microsecond // 1000:03d}" if isinstance(value, datetime) else "-"
