"""Rehearse a job without network: take sample rows through the stages, with answers made up in this process.

The answers come from the simulator's code. For the embedded simulator they are the ones it will give. For other servers
they are stand-ins: of the right shape, and of the expected length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from infermesh.dispatch.fleet import Fleet
from infermesh.errors import BadRequestError, InputError, RequestError
from infermesh.hints import counted
from infermesh.limits import OpenLimiter
from infermesh.runs.gate import Gate
from infermesh.runs.row import StageOutputs, answered_by_its_state, take_stored, to_be_redone
from infermesh.simulator.answers import Answer, Answers
from infermesh.simulator.errors import ApiError
from infermesh.simulator.settings import SimulatorSettings
from infermesh.stages import Prepared, Stage, answers, prepare
from infermesh.stages.base import Result
from infermesh.stages.graph import StageGraph
from infermesh.stages.transcribe import Transcribe
from infermesh.store import Row
from infermesh.store.filter import RowFilter
from infermesh.store.known import KnownAnswers
from infermesh.transports import LateValues, NativeTransport
from infermesh.types import Operation, Reply, Request, Transport
from infermesh.wire.requests import estimate_tokens, request_body

__all__ = ["Rehearsal", "Sent", "StageRehearsal", "rehearse"]

CHARS_PER_TOKEN = 4
# Audio clips are large and read whole: of more sample rows than this, only some are read, and represent the others.
_MOST_CLIPS = 20
_SIMULATED = {
    "chat_completion": Answers.chat,
    "text_completion": Answers.completions,
    "responses": Answers.responses,
    "embedding": Answers.embeddings,
}


@dataclass(slots=True)
class Sent:
    """A request that would be sent.

    Attributes
    ----------
    payload
        The body as it would be sent; empty beyond the requests to show.
    prompt_tokens
        As the client estimates them.
    counted_prompt_tokens, completion_tokens
        As the made-up answer's usage reports them.
    decoded_tokens
        Tokens that the simulator would take time to produce.
    output_limit
        ``max_tokens``; ``None`` if the request sets none.
    assumed_tokens
        How long its stand-in was made; ``None`` where the answer itself says it: the simulator's, and JSON.
    """

    operation: Operation
    deployment: str
    url: str
    payload: dict[str, Any]
    prompt_tokens: int
    counted_prompt_tokens: int
    completion_tokens: int
    decoded_tokens: int
    output_limit: int | None
    assumed_tokens: float | None = None


@dataclass(slots=True)
class StageRehearsal:
    """The result of the rehearsal in one stage, in sample rows.

    Attributes
    ----------
    looked_at
        Rows that reached the stage and were not left out; the sum of the next four.
    kept
        Rows whose stored or known answer would be used.
    sent
        Rows that would be sent.
    lost
        Rows that would not be sent: they cannot be made into a request, or their upstream row cannot.
    blind
        Rows that would be sent, but could not be rendered, because a stand-in they read is unlike a real answer.
    left_out
        Rows that do not match the stage's ``where``.
    answered
        Sent rows that were answered; ``requests`` are theirs.
    on_stand_ins
        Whether a row's condition or request read a stand-in, so that these numbers are not certain.
    reasons
        Reason → rows: why they were lost or blind, or got an error for an answer.
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

    @property
    def assumed_tokens(self) -> float | None:
        """How long its stand-ins are in the mean, where that was assumed."""
        lengths = [sent.assumed_tokens for sent in self.requests if sent.assumed_tokens is not None]
        return sum(lengths) / len(lengths) if lengths else None

    def count_reason(self, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


class _StandInTransport:
    """A deployment's transport that sends nothing and answers as the simulator would."""

    def __init__(
        self, label: str, real: Transport, settings: SimulatorSettings | None, log: Callable[[Sent], float | None]
    ) -> None:
        self._label = label
        self._real = real
        self._embedded = settings is not None
        self._answers = Answers(settings or SimulatorSettings())
        self._log = log

    async def send(self, request: Request, timeout: float | None) -> Reply:
        try:
            answer = self._answer(request)
        except Exception as error:  # a request that the real server accepts may be more than the simulator knows
            self._log(self._sent(request, {}, 0))
            status, message = (error.status, error.message) if isinstance(error, ApiError) else (400, str(error))
            raise BadRequestError(message, status_code=status) from None
        text = answer.body.decode()
        body: dict[str, Any] = orjson.loads(text) if answer.content_type == "application/json" else {"text": text}
        sent = self._sent(request, body.get("usage") or {}, answer.decode_tokens)
        expected = self._log(sent)
        if not self._embedded and expected is not None and _stretch(request, body, round(expected * CHARS_PER_TOKEN)):
            sent.assumed_tokens = expected
        return Reply(200, body, lambda name: None)

    def _answer(self, request: Request) -> Answer:
        if request.operation == "transcription":
            clip = b"" if request.audio is None else request.audio.data
            return self._answers.transcriptions({"model": "any", **request.payload, "file": clip})
        return _SIMULATED[request.operation](self._answers, {"model": "any", **request.payload})

    def _sent(self, request: Request, usage: Mapping[str, Any], decoded: int) -> Sent:
        real: Any = self._real.transport if isinstance(self._real, LateValues) else self._real
        url = real.shown_url(request.operation) if isinstance(real, NativeTransport) else "(by LiteLLM)"
        if request.operation == "transcription":
            clip = request.audio
            shown: dict[str, Any] = {"model": real.model, **request.payload}
            shown["file"] = None if clip is None else f"{clip.filename} ({counted(len(clip.data), 'byte')})"
        else:
            shown = orjson.loads(b"".join(request_body(request, real.model)))
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
        """Nothing to close."""


def _stretch(request: Request, body: dict[str, Any], size: int) -> bool:
    """Repeat or cut a free text to ``size`` characters: whether it is one. Structured answers stay as they are."""
    payload = request.payload
    if payload.get("response_format") or payload.get("text") or payload.get("tools") or size <= 0:
        return False
    if request.operation == "chat_completion":
        holder, key = body["choices"][0]["message"], "content"
    elif request.operation == "text_completion":
        holder, key = body["choices"][0], "text"
    elif request.operation == "responses":
        holder, key = body["output"][-1]["content"][0], "text"
    else:
        return False
    text = f"{holder[key]} "
    holder[key] = (text * (size // len(text) + 1))[:size].strip() or text
    return True


class Rehearsal:
    """Replaces a fleet's transports by stand-ins and its limiters by none, and collects what stages send.

    Parameters
    ----------
    fleet
        Its deployments send nothing from now on.
    embedded
        The embedded simulator's settings, and the labels of the deployments that it serves.
    expected
        Stage → expected completion tokens of a row's answer; a request's own limit may be less.
    keep
        How many requests of each stage to keep in full.

    Attributes
    ----------
    found
        Stage → its result so far.
    expected
        As given.
    """

    def __init__(
        self, fleet: Fleet, embedded: tuple[SimulatorSettings, set[str]], expected: Mapping[str, float], keep: int
    ) -> None:
        settings, labels = embedded
        self.expected = expected
        self._keep = keep
        self._stage = ""
        self._labels = labels
        self._fleet = fleet
        self.found: dict[str, StageRehearsal] = {}
        for label, deployment in fleet.deployments.items():
            mine = settings if label in labels else None
            deployment.transport = _StandInTransport(label, deployment.transport, mine, self._log)
            deployment.limiter = OpenLimiter()

    def _log(self, sent: Sent) -> float | None:
        """Keep a request, and return the tokens that its answer is taken to have, if anybody has said so."""
        listed = self.found[self._stage].requests
        if len(listed) >= self._keep:
            sent.payload = {}
        listed.append(sent)
        expected = self.expected.get(self._stage)
        return expected if expected is None or sent.output_limit is None else min(expected, sent.output_limit)

    def real_answers(self, stage: Stage) -> bool:
        """Whether a stage's answers are those that the run will get: all its deployments are the embedded simulator."""
        return stage.model is not None and all(label in self._labels for label in stage.model.labels)

    def begin(self, stage: str) -> StageRehearsal:
        """Log the requests from now on under this stage."""
        self._stage = stage
        return self.found.setdefault(stage, StageRehearsal())


class _Sample:
    """A sample row, and the stages that have a stand-in for its answer."""

    __slots__ = ("made_up", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.made_up: dict[str, bool] = {}  # stage → its answer is a stand-in, or depends on one

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
    """Take sample rows through the stages of a wave as a run would, stage after stage; stage → its result.

    Parameters
    ----------
    rows
        The sample; rows that could not be parsed are skipped.
    filters
        Stage → its ``where``, compiled.
    stale
        Stages whose stored states do not count as settled.
    keep_errors
        Failed rows count as settled.
    known
        Answers of retired rows and of earlier runs; ``None`` for none.
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
            _count_function_rows(todo, stage, found)
        else:
            await _answer(rehearsal, stage, graph.requires[name], todo, gate, outputs, found)
    return rehearsal.found


def _through_filter(
    samples: list[_Sample],
    stage: Stage,
    requires: set[str],
    gate: Gate,
    outputs: StageOutputs,
    found: StageRehearsal,
) -> list[_Sample]:
    """Return the rows that have their upstream answers and match the stage's ``where``; count the others."""
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
                found.count_reason(f"stage {other}: {failed[other]}")
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


def _count_function_rows(samples: list[_Sample], stage: Stage, found: StageRehearsal) -> None:
    """Count the rows of a python stage. Its function is not called, so the stages that read it cannot be rendered."""
    found.looked_at += len(samples)
    found.sent += len(samples)
    for sample in samples:
        sample.row.failed[stage.name] = f"what {stage.name} makes of a row is not known before the run"
        sample.made_up[stage.name] = True


async def _answer(
    rehearsal: Rehearsal,
    stage: Stage,
    requires: set[str],
    samples: list[_Sample],
    gate: Gate,
    outputs: StageOutputs,
    found: StageRehearsal,
) -> None:
    """Answer the rows that would be sent with stand-ins, for the stages that read this one."""
    ready = await _to_send(stage, requires, samples, gate, outputs, found)
    found.sent += len(ready)
    every = max(1, len(ready) // _MOST_CLIPS) if isinstance(stage, Transcribe) else 1
    first = ready[::every]
    results: list[Result | RequestError] = []
    for start in range(0, len(first), stage.batch_size):
        results += await answers(stage, [item for _, item in first[start : start + stage.batch_size]])
    found.answered += len(first)
    for number, (sample, item) in enumerate(ready):
        result = results[number // every % len(results)]
        sample.made_up[stage.name] = sample.reads_stand_ins(requires) or not rehearsal.real_answers(stage)
        if isinstance(result, RequestError):
            found.count_reason(result.message)
            sample.row.failed[stage.name] = result.message
        else:
            sample.row.context[stage.name] = outputs.done((*stage.outputs(result), *item.carried))


async def _to_send(
    stage: Stage,
    requires: set[str],
    samples: list[_Sample],
    gate: Gate,
    outputs: StageOutputs,
    found: StageRehearsal,
) -> list[tuple[_Sample, Prepared[Any]]]:
    """Return the rows that would be sent, with their requests. Count the others, and give them their known answer."""
    found.looked_at += len(samples)
    ready: list[tuple[_Sample, Prepared[Any]]] = []
    for sample in samples:
        row, invented = sample.row, sample.reads_stand_ins(requires)
        found.on_stand_ins |= invented
        try:
            item = await prepare(stage, row.context)
        except Exception as error:  # a user's mapper may raise anything
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            found.count_reason(message)
            row.failed[stage.name] = message
            sample.made_up[stage.name] = invented
            found.blind += invented
            found.lost += not invented
            continue
        # A request rendered from a stand-in is not the one the run will render: it is not compared with stored keys.
        if not invented and answered_by_its_state(row, stage.name, item):
            row.context[stage.name] = row.states[stage.name].outputs | {"status": "done"}
            found.kept += 1
        elif (
            not invented and not to_be_redone(row, stage.name) and (answer := gate.known_answers([item])[0]) is not None
        ):
            row.context[stage.name] = outputs.done(answer.outputs)
            found.kept += 1
        else:
            ready.append((sample, item))
    return ready
