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
from infermesh.runs.gate import Gate
from infermesh.runs.row import StageOutputs, answered_by_its_state, take_stored
from infermesh.simulator.answers import Answer, Answers
from infermesh.simulator.errors import ApiError
from infermesh.simulator.settings import SimulatorSettings
from infermesh.stages import Prepared, Stage, answers
from infermesh.stages.graph import StageGraph
from infermesh.stages.transcribe import Transcribe
from infermesh.store import Row
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
        return stage.model is not None and all(label in self._labels for label in stage.model.labels)

    def begin(self, stage: str) -> StageRehearsal:
        """Count what is sent from now on as a stage's."""
        self._stage = stage
        return self.found.setdefault(stage, StageRehearsal())


class _Sample:
    """A sample row on its way, and which stages have none of a run's own answers for it."""

    __slots__ = ("made_up", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.made_up: dict[str, bool] = {}  # stage → whether its answer is a stand-in that the run will not see

    def reads_stand_ins(self, requires: set[str]) -> bool:
        return any(self.made_up.get(other) for other in requires)


async def rehearse(
    rehearsal: Rehearsal,
    graph: StageGraph,
    rows: Sequence[Row],
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
    samples = [_Sample(row) for row in rows if row.error is None]
    for name, stage in graph.stages.items():
        found, outputs = rehearsal.begin(name), StageOutputs(stage.table, graph.needed[name])
        gate = Gate(stage, filters.get(name), known)
        todo = [
            sample
            for sample in samples
            if not take_stored(sample.row, name, outputs, stale=name in stale, keep_errors=keep_errors)
        ]
        todo = _through_filter(todo, stage, graph.requires[name], gate, outputs, found)
        if stage.model is None:
            _unasked(todo, stage, found)
        else:
            await _ask(rehearsal, stage, graph.requires[name], todo, gate, outputs, found)
    return rehearsal.found


def _through_filter(
    samples: list[_Sample],
    stage: Stage,
    requires: set[str],
    gate: Gate,
    outputs: StageOutputs,
    found: StageRehearsal,
) -> list[_Sample]:
    """Those whose upstream is there and that pass the stage's condition; the others are counted."""
    todo = []
    for sample in samples:
        failed = sample.row.failed
        above = requires & failed.keys()
        if above:
            other = min(above)
            found.looked_at += 1
            if sample.made_up.get(other):
                found.blind += 1
                sample.made_up[stage.name] = True
                found.because(f"stage {other}: {failed[other]}")
            else:
                found.lost += 1
            failed[stage.name] = failed[other]
        else:
            todo.append(sample)
    if stage.where is not None:
        found.on_stand_ins |= any(sample.reads_stand_ins(requires) for sample in todo)
    kept = []
    for sample, verdict in zip(todo, gate.passing([sample.row for sample in todo]), strict=True):
        if verdict is True:
            kept.append(sample)
        else:
            found.left_out += 1
            sample.row.context[stage.name] = outputs.skipped
            if isinstance(verdict, InputError):
                sample.row.failed[stage.name] = verdict.message
    return kept


def _unasked(samples: list[_Sample], stage: Stage, found: StageRehearsal) -> None:
    """A stage that asks no model: what it would make of a row is not known without doing it."""
    found.looked_at += len(samples)
    found.sent += len(samples)
    for sample in samples:
        sample.row.failed[stage.name] = f"what {stage.name} makes of a row is not known before the run"
        sample.made_up[stage.name] = True


async def _ask(
    rehearsal: Rehearsal,
    stage: Stage,
    requires: set[str],
    samples: list[_Sample],
    gate: Gate,
    outputs: StageOutputs,
    found: StageRehearsal,
) -> None:
    ready = _to_send(stage, requires, samples, gate, outputs, found)
    found.sent += len(ready)
    every = max(1, len(ready) // _MOST_CLIPS) if isinstance(stage, Transcribe) else 1
    first = ready[::every]
    results: list[Any] = []
    for start in range(0, len(first), stage.batch_size):
        results += await answers(stage, [item for _, item in first[start : start + stage.batch_size]])
    found.answered += len(first)
    for number, (sample, item) in enumerate(ready):
        result = results[number // every % len(results)]
        sample.made_up[stage.name] = sample.reads_stand_ins(requires) or not rehearsal.real_answers(stage)
        if isinstance(result, RequestError):
            found.because(result.message)
            sample.row.failed[stage.name] = result.message
        else:
            sample.row.context[stage.name] = outputs.done((*stage.outputs(result), *item.carried))


def _to_send(
    stage: Stage,
    requires: set[str],
    samples: list[_Sample],
    gate: Gate,
    outputs: StageOutputs,
    found: StageRehearsal,
) -> list[tuple[_Sample, Prepared[Any]]]:
    """The rows that would be sent, with their requests; the others are counted, and get the answer that is there."""
    found.looked_at += len(samples)
    ready: list[tuple[_Sample, Prepared[Any]]] = []
    for sample in samples:
        row, invented = sample.row, sample.reads_stand_ins(requires)
        found.on_stand_ins |= invented
        try:
            item = stage.prepare(row.context)
        except Exception as error:  # a mapper of the user's may raise anything
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            found.because(message)
            row.failed[stage.name] = message
            sample.made_up[stage.name] = invented
            found.blind += invented
            found.lost += not invented
            continue
        # What is rendered on a stand-in is not what the run will render: it counts as changed.
        if not invented and answered_by_its_state(row, stage.name, item):
            row.context[stage.name] = row.states[stage.name].outputs | {"status": "done"}
            found.kept += 1
        elif not invented and (answer := gate.known_answers([item])[0]) is not None:
            row.context[stage.name] = outputs.done(answer.outputs)
            found.kept += 1
        else:
            ready.append((sample, item))
    return ready
