"""Sending nothing: a transport that answers in this process, and sample rows walked through the stages over it.

The answers are the simulator's own texts. For the embedded simulator they are what it will answer; for every other
server they are stand-ins of the right shape, stretched or cut to the length that is expected of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from infermesh.dispatch.fleet import Fleet
from infermesh.errors import BadRequestError, InputError, RequestError
from infermesh.limits import NullLimiter
from infermesh.simulator.answers import Answer, Answers
from infermesh.simulator.errors import ApiError
from infermesh.simulator.settings import SimulatorSettings
from infermesh.stages import Stage
from infermesh.stages.graph import StageGraph
from infermesh.stages.transcribe import Transcribe
from infermesh.store import StoredRow
from infermesh.store.filter import RowFilter
from infermesh.store.known import KnownAnswers
from infermesh.transports import NativeTransport
from infermesh.types import Operation, Reply, Request, Transport
from infermesh.wire.requests import estimate_tokens, request_body

__all__ = ["Rehearsal", "Sent", "StageRehearsal", "rehearse"]

CHARS_PER_TOKEN = 4
# Clips are read whole, and are large: of more sample rows than this, some stand for the others.
_MOST_CLIPS = 20
_SIMULATED = {
    "chat_completion": Answers.chat,
    "text_completion": Answers.completions,
    "responses": Answers.responses,
    "embedding": Answers.embeddings,
}


@dataclass(slots=True)
class Sent:
    """One request that would have gone out. ``prompt_tokens`` as this side estimates them, the others as answered."""

    operation: Operation
    deployment: str
    url: str
    payload: dict[str, Any]
    prompt_tokens: int
    counted_prompt_tokens: int
    completion_tokens: int
    decoded_tokens: int
    output_limit: int | None


@dataclass(slots=True)
class StageRehearsal:
    """What became of the sample rows in one stage.

    ``looked_at`` rows were candidates; of these ``kept`` would be left as they are, ``sent`` would go out, ``lost``
    would not, for the reasons counted in ``reasons`` (a row that cannot be made into a request, or whose upstream
    stage cannot). ``blind`` rows would go out, but could not be rendered on stand-ins. ``left_out`` rows, which are no
    candidates, do not satisfy the stage's condition. ``requests`` are those of ``answered`` rows.
    """

    looked_at: int = 0
    kept: int = 0
    sent: int = 0
    lost: int = 0
    blind: int = 0
    left_out: int = 0
    answered: int = 0
    on_stand_ins: bool = False
    requests: list[Sent] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def because(self, reason: str) -> None:
        """Count a reason."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


class _Stand:
    """A deployment's transport that sends nothing."""

    def __init__(
        self, label: str, real: Transport, settings: SimulatorSettings | None, log: Callable[[Sent], float | None]
    ) -> None:
        self._label = label
        self._real = real
        self._embedded = settings is not None
        self._answers = Answers(settings or SimulatorSettings())
        self._log = log

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Answer as the simulator would."""
        try:
            answer = self._answer(request)
        except Exception as error:  # what another server takes may be more than the simulator knows
            self._log(self._sent(request, {}, 0))
            status, message = (error.status, error.message) if isinstance(error, ApiError) else (400, str(error))
            raise BadRequestError(message, status_code=status) from None
        text = answer.body.decode()
        body: dict[str, Any] = orjson.loads(text) if answer.content_type == "application/json" else {"text": text}
        wanted = self._log(self._sent(request, body.get("usage") or {}, answer.decode_tokens))
        if not self._embedded and wanted is not None:
            _stretch(request, body, round(wanted * CHARS_PER_TOKEN))
        return Reply(200, body, lambda name: None)

    def _answer(self, request: Request) -> Answer:
        if request.operation == "transcription":
            clip = b"" if request.audio is None else request.audio.data
            return self._answers.transcriptions({"model": "any", **request.payload, "file": clip})
        return _SIMULATED[request.operation](self._answers, {"model": "any", **request.payload})

    def _sent(self, request: Request, usage: Mapping[str, Any], decoded: int) -> Sent:
        real: Any = self._real
        # A query may hold a key.
        url = real.url(request.operation).partition("?")[0] if isinstance(real, NativeTransport) else "(by LiteLLM)"
        if request.operation == "transcription":
            clip = request.audio
            shown: dict[str, Any] = {"model": real.model, **request.payload}
            shown["file"] = None if clip is None else f"{clip.filename} ({len(clip.data)} bytes)"
        else:
            shown = orjson.loads(request_body(request, real.model))
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
        return Sent(
            request.operation,
            self._label,
            url,
            shown,
            estimate_tokens(request),
            prompt,
            completion,
            decoded,
            request.output_tokens,
        )

    async def aclose(self) -> None:
        """There is nothing to close."""


def _stretch(request: Request, body: dict[str, Any], size: int) -> None:
    """Give a free text the expected length; JSON that was asked for stays as it is."""
    payload = request.payload
    if payload.get("response_format") or payload.get("text") or payload.get("tools") or size <= 0:
        return
    if request.operation == "chat_completion":
        holder, key = body["choices"][0]["message"], "content"
    elif request.operation == "text_completion":
        holder, key = body["choices"][0], "text"
    elif request.operation == "responses":
        holder, key = body["output"][-1]["content"][0], "text"
    else:
        return
    text = f"{holder[key]} "
    holder[key] = (text * (size // len(text) + 1))[:size].strip() or text


class Rehearsal:
    """Puts stand-ins in the place of a fleet's transports, and limits aside.

    Parameters
    ----------
    fleet
        Its deployments will send nothing from now on.
    embedded
        The embedded simulator's settings, and the labels of the deployments that it serves.
    expected
        Stage → completion tokens to expect of a row's answer, where they are known.
    keep
        How many requests of each stage to keep in full.
    """

    def __init__(
        self, fleet: Fleet, embedded: tuple[SimulatorSettings, set[str]], expected: Mapping[str, float], keep: int
    ) -> None:
        settings, labels = embedded
        self._expected = expected
        self._keep = keep
        self._stage = ""
        self._labels = labels
        self._fleet = fleet
        self.found: dict[str, StageRehearsal] = {}
        for label, deployment in fleet.deployments.items():
            mine = settings if label in labels else None
            deployment.transport = _Stand(label, deployment.transport, mine, self._take)
            deployment.limiter = NullLimiter()

    def _take(self, sent: Sent) -> float | None:
        listed = self.found[self._stage].requests
        if len(listed) >= self._keep:
            sent.payload = {}
        listed.append(sent)
        return self._expected.get(self._stage)

    def real_answers(self, stage: Stage) -> bool:
        """Whether the answers are those that the run will get."""
        model = getattr(stage, "model", None)
        return model is not None and all(label in self._labels for label in model.labels)

    def at(self, stage: str) -> StageRehearsal:
        """Let what is sent from now on belong to a stage."""
        self._stage = stage
        return self.found.setdefault(stage, StageRehearsal())


class _Walker:
    """A sample row on its way: what templates see, and which stages have none of a run's own answers."""

    __slots__ = ("context", "failed", "made_up", "row")

    def __init__(self, row: StoredRow) -> None:
        self.row = row
        self.context: dict[str, Any] = dict(row.values)
        self.failed: dict[str, str] = {}
        self.made_up: dict[str, bool] = {}  # stage → whether its answer is a stand-in that the run will not see


async def rehearse(
    rehearsal: Rehearsal,
    graph: StageGraph,
    rows: Sequence[StoredRow],
    *,
    filters: Mapping[str, RowFilter],
    stale: set[str],
    keep_errors: bool,
    known: KnownAnswers | None = None,
) -> dict[str, StageRehearsal]:
    """Take sample rows through the stages as a run would, stage after stage.

    Returns
    -------
    dict
        Stage → what became of the rows there.
    """
    walkers = [_Walker(row) for row in rows if row.error is None]
    for name, stage in graph.stages.items():
        found = rehearsal.at(name)
        todo = [walker for walker in walkers if not _take_stored(walker, stage, name in stale, keep_errors)]
        todo = _through_filter(todo, stage, graph.requires[name], filters.get(name), found)
        if getattr(stage, "model", None) is None:
            _unasked(todo, stage, found)
        else:
            answers = known if known is not None and known.knows(name) else None
            await _ask(rehearsal, stage, graph.requires[name], todo, found, answers)
    return rehearsal.found


def _take_stored(walker: _Walker, stage: Stage, stale: bool, keep_errors: bool) -> bool:
    """Whether the row's stored state stands, as :class:`~infermesh.runs.runner.Runner` decides it."""
    state = walker.row.states.get(stage.name)
    if state is None or stale:
        return False
    if state.status == "done":
        walker.context[stage.name] = state.outputs | {"status": "done"}
        return True
    if state.status == "skipped" and state.error_type is None:
        walker.context[stage.name] = _nothing(stage)
        return True
    if keep_errors:
        walker.failed[stage.name] = "failed in an earlier session"
    return keep_errors


def _nothing(stage: Stage) -> dict[str, Any]:
    return {column.name: None for column in stage.table.outputs} | {"status": "skipped"}


def _through_filter(
    walkers: list[_Walker], stage: Stage, requires: set[str], condition: RowFilter | None, found: StageRehearsal
) -> list[_Walker]:
    """Those whose upstream is there and that pass the stage's condition; the others are counted."""
    todo = []
    for walker in walkers:
        above = requires & walker.failed.keys()
        if above:
            other = min(above)
            found.looked_at += 1
            if walker.made_up.get(other):
                found.blind += 1
                walker.made_up[stage.name] = True
                found.because(f"stage {other}: {walker.failed[other]}")
            else:
                found.lost += 1
            walker.failed[stage.name] = walker.failed[other]
        else:
            todo.append(walker)
    if condition is None or not todo:
        return todo
    found.on_stand_ins |= any(walker.made_up.get(other) for walker in todo for other in requires)
    passing = condition.passing([walker.context for walker in todo])
    kept = []
    for walker, passes in zip(todo, passing, strict=True):
        if passes is True:
            kept.append(walker)
        else:
            found.left_out += 1
            walker.context[stage.name] = _nothing(stage)
            if isinstance(passes, InputError):
                walker.failed[stage.name] = passes.message
    return kept


def _unasked(walkers: list[_Walker], stage: Stage, found: StageRehearsal) -> None:
    """A stage that asks no model: what it would make of a row is not known without doing it."""
    found.looked_at += len(walkers)
    found.sent += len(walkers)
    for walker in walkers:
        walker.failed[stage.name] = f"what {stage.name} makes of a row is not known before the run"
        walker.made_up[stage.name] = True


async def _ask(
    rehearsal: Rehearsal,
    stage: Stage,
    requires: set[str],
    walkers: list[_Walker],
    found: StageRehearsal,
    known: KnownAnswers | None,
) -> None:
    found.looked_at += len(walkers)
    ready: list[tuple[_Walker, Any]] = []
    for walker in walkers:
        invented = any(walker.made_up.get(other) for other in requires)
        found.on_stand_ins |= invented
        try:
            item = stage.prepare(walker.context)
        except Exception as error:  # a mapper of the user's may raise anything
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            found.because(message)
            walker.failed[stage.name] = message
            walker.made_up[stage.name] = invented
            found.blind += invented
            found.lost += not invented
            continue
        state = walker.row.states.get(stage.name)
        # What is rendered on a stand-in is not what the run will render: it counts as changed.
        if state is not None and state.status == "done" and state.request_key == item.key and not invented:
            walker.context[stage.name] = state.outputs | {"status": "done"}
            found.kept += 1
        elif known is not None and not invented and (answer := known.look_up(stage.name, [item.key])[0]) is not None:
            walker.context[stage.name] = _readable(stage, answer.outputs)
            found.kept += 1
        else:
            ready.append((walker, item))
    found.sent += len(ready)
    every = max(1, len(ready) // _MOST_CLIPS) if isinstance(stage, Transcribe) else 1
    first = ready[::every]
    results: list[Any] = []
    for start in range(0, len(first), stage.batch_size):
        batch = [item for _, item in first[start : start + stage.batch_size]]
        results += await stage.answer(batch)
    found.answered += len(first)
    for number, (walker, item) in enumerate(ready):
        result = results[number // every % len(results)]
        invented = any(walker.made_up.get(other) for other in requires)
        walker.made_up[stage.name] = invented or not rehearsal.real_answers(stage)
        if isinstance(result, RequestError):
            found.because(result.message)
            walker.failed[stage.name] = result.message
        else:
            walker.context[stage.name] = _readable(stage, (*stage.outputs(result), *item.carried))


def _readable(stage: Stage, outputs: tuple[Any, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {"status": "done"}
    for column, value in zip(stage.table.outputs, outputs, strict=True):
        values[column.name] = orjson.loads(value) if column.type == "JSON" and value is not None else value
    return values
