"""Gather a plan's facts: pending rows, rendered sample requests, measurements of earlier runs. Sends nothing."""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infermesh.config.declaration import Declaration
from infermesh.config.schema import Experiment, ModelStageConfig
from infermesh.dispatch.fleet import Fleet
from infermesh.dispatch.pricing import asked_params
from infermesh.hints import counted
from infermesh.limits import DayUsage, Limits
from infermesh.plan.estimate import Estimate, estimate, helpful_workers
from infermesh.plan.facts import Certainty, DeploymentFacts, Latency, QuotaFacts, ServiceFacts, StageFacts
from infermesh.plan.rehearsal import Rehearsal, Sent, StageRehearsal, rehearse
from infermesh.plan.rows import PlannedRows
from infermesh.query.reader import ask_run
from infermesh.query.survey import Measured, measured
from infermesh.results import TokenUsage
from infermesh.runs.assemble import assembled
from infermesh.runs.crew.engine import workers_of
from infermesh.runs.remarks import all_left_out, job_remarks, missing_keys
from infermesh.simulator.settings import SimulatorSettings
from infermesh.stages import Stage
from infermesh.stages.graph import Pipeline, Wave
from infermesh.store.connection import in_words
from infermesh.store.folders import outputs_of
from infermesh.store.schema import DATABASE
from infermesh.store.usage import used_today
from infermesh.types import LIMITS
from infermesh.wire.usage import tier_named

__all__ = ["SIMULATOR_URL", "Options", "Plan", "make_plan"]

SIMULATOR_URL = "http://simulator/v1"  # the embedded simulator's URL in displayed requests; nothing is sent there
ASSUMED_OUTPUT_TOKENS = 256  # of an answer, where nothing else is known
_LOOPBACK_S = 0.004  # the round trip to the embedded simulator, on one machine


@dataclass(frozen=True, slots=True)
class Options:
    """Options of ``infermesh plan``.

    Attributes
    ----------
    show
        How many requests of each stage to keep in full.
    sample
        How many rows of each stage to render.
    latency_s, output_tokens
        Seconds per request and tokens per answer, instead of measured or assumed ones; ``None`` to use those.
    """

    show: int = 0
    sample: int = 200
    latency_s: float | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan of a job.

    Attributes
    ----------
    folder
        The run that it would resume; ``None`` for a new run.
    rows
        Rows of the source.
    requests
        Stage → the requests to show.
    notes
        What the user should know besides, a line each.
    workers
        How many send the requests; 0: the run's own process does.
    """

    experiment: str
    folder: Path | None
    rows: int
    estimate: Estimate
    requests: dict[str, list[Sent]]
    quotas: dict[str, QuotaFacts]
    notes: list[str]
    workers: int = 0

    @property
    def helpful_workers(self) -> int:
        """How many workers would make the job shorter, where it has none; 0: none would."""
        return 0 if self.workers else helpful_workers(self.estimate)


def make_plan(
    declaration: Declaration,
    folder: Path,
    *,
    options: Options | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Plan:
    """Plan a job: render sample rows, count pending ones, estimate. Sends nothing and changes no run.

    Parameters
    ----------
    folder
        Where it would run. If it holds a run, the plan is that of resuming it.
    options
        ``None`` is the defaults.
    environ
        Where ``api_key_env`` is looked up.

    Raises
    ------
    ConfigError
        The declaration is wrong, with the message of ``infermesh run``.
    StoreError
        The run's database cannot be read, or a process is running it.
    """
    experiment, options = declaration.experiment, options or Options()
    with in_words(folder / DATABASE), ExitStack() as stack:
        fleet, pipeline = stack.enter_context(assembled(declaration, environ, simulator_url=SIMULATOR_URL))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infermesh-plan-")))
        rows, notes = PlannedRows(experiment, pipeline, folder, place), list[str]()
        stack.callback(rows.close)
        rows.load(declaration.roots, notes.append, declaration.overrides)
        notes += [*missing_keys(experiment, environ), *job_remarks(experiment, fleet, pipeline, rows.origins)]
        return _Planner(experiment, fleet, pipeline, rows, folder, options, notes).plan()


class _Planner:
    """Gathers the facts of each wave and computes the plan."""

    def __init__(
        self,
        experiment: Experiment,
        fleet: Fleet,
        pipeline: Pipeline,
        rows: PlannedRows,
        folder: Path,
        options: Options,
        notes: list[str],
    ) -> None:
        self._experiment = experiment
        self._fleet = fleet
        self._pipeline = pipeline
        self._signatures = pipeline.signatures
        self._rows = rows
        self._folder = folder
        self._options = options
        self.notes = notes
        outputs = outputs_of(folder)
        self._embedded = {label for label, entry in experiment.deployments.items() if entry.api_base == "simulator"}
        found = measured(outputs, experiment.name, pipeline.stages, self.notes.append)
        now = experiment.model_dump()
        # Of other models, and of the simulator for a real one, nothing that was measured holds.
        self._measured = {name: one for name, one in found.items() if _served(one.config, name) == _served(now, name)}
        self._used = used_today(experiment, None, outputs, None, self.notes.append, live=ask_run)

    def plan(self) -> Plan:
        """Rehearse, count and estimate, wave after wave, as a run does."""
        rehearsal = self._rehearsal()
        waves: list[list[StageFacts]] = []
        for wave in self._pipeline.waves:
            if not self._rows.make_rows(wave):
                unknown = [name for name in self._experiment.stages if name in (wave.origin, *wave.graph.stages)]
                waves.append([StageFacts(name, self._kind(name), None, "unknown") for name in unknown])
                continue
            self._rehearse(rehearsal, wave)
            found: list[StageFacts] = []
            for name, stage in wave.graph.stages.items():
                facts = self._stage(stage, rehearsal.found[name], wave)
                found.append(replace(facts, note=self._answers_read(facts, rehearsal)))
            waves.append(found)
        quotas = _quotas(self._experiment, self._used)
        settings = self._experiment.simulator
        service = ServiceFacts(settings.capacity, settings.rpm, settings.tpm) if self._embedded else None
        midnight = 86400 - time.time() % 86400
        workers = workers_of(self._experiment, self._pipeline.stages, self.notes.append)
        shown = {name: found.requests[: self._options.show] for name, found in rehearsal.found.items()}
        return Plan(
            self._experiment.name,
            self._folder if self._rows.resumed else None,
            self._rows.total,
            _add_waves(
                [
                    estimate(stages, self._deployments(), quotas, service, until_midnight_s=midnight, workers=workers)
                    for stages in [[facts for stages in waves for facts in stages], *waves]
                ]
            ),
            {name: listed for name, listed in shown.items() if listed},
            quotas,
            self.notes,
            workers,
        )

    def _kind(self, name: str) -> str:
        return self._experiment.stages[name].kind

    def _rehearsal(self) -> Rehearsal:
        known = {name: self._expected(name)[0] for name in self._pipeline.stages}
        expected = {name: ASSUMED_OUTPUT_TOKENS if tokens is None else tokens for name, tokens in known.items()}
        return Rehearsal(self._fleet, (self._experiment.simulator, self._embedded), expected, self._options.show)

    def _rehearse(self, rehearsal: Rehearsal, wave: Wave) -> None:
        for name in wave.graph.stages:
            rehearsal.begin(name)
        rehearsing = rehearse(
            rehearsal,
            wave.graph,
            self._rows.sample(wave, self._options.sample),
            filters=self._rows.filters,
            stale=self._rows.stale,
            keep_errors=self._experiment.keep_errors,
            known=self._rows.known,
        )
        asyncio.run(rehearsing)

    def _expected(self, name: str) -> tuple[float | None, str]:
        """Completion tokens per row as known before rendering, and their source; ``None`` if unknown."""
        if self._options.output_tokens is not None:
            return float(self._options.output_tokens), "--output-tokens"
        before = self._measured.get(name)
        if before is not None and before.completion_tokens is not None:
            return before.completion_tokens, f"measured in {_short_path(before.folder)}"
        return None, ""

    def _stage(self, stage: Stage, found: StageRehearsal, wave: Wave) -> StageFacts:
        config = self._experiment.stages[stage.name]
        rows, certainty = self._count(stage, found)
        if left_out := self._rows.all_left_out(stage):
            self.notes.append(all_left_out(stage.name, left_out))
        facts = StageFacts(
            stage.name,
            config.kind,
            rows,
            certainty,
            stage.window,
            stage.batch_size,
            requires=tuple(sorted(wave.graph.requires[stage.name])),
            problem=_problem(found),
        )
        if not isinstance(config, ModelStageConfig):
            return facts
        labels = tuple(self._experiment.models[config.model].deployments)
        batched = tuple(label for label in labels if self._experiment.deployments[label].batch.enabled)
        prompt, completion, source = self._tokens(stage, found, labels)
        live = self._cost(labels, prompt, completion, tier_named(asked_params(self._experiment, config)))
        cost = self._cost(batched, prompt, completion, {"service_tier": "batch"}) if batched else live
        return replace(
            facts,
            batch=1 if batched else facts.batch,
            deployments=labels,
            prompt_tokens=prompt,
            completion_tokens=completion,
            tokens_source=source,
            cost_usd=cost,
            latency=self._latency(stage, found, labels),
            batched=bool(batched),
            live_cost_usd=live if batched else None,
        )

    def _count(self, stage: Stage, found: StageRehearsal) -> tuple[int | None, Certainty]:
        """How many rows a stage will send, and how sure that is: scaled up from the sample to all pending rows."""
        pending, by_answers = self._rows.pending(stage), self._rows.depends_on_answers(stage)
        if pending is None:  # DuckDB cannot count the rows that match the condition
            pending, by_answers = self._rows.total, True
        looked_at = found.looked_at + (found.left_out if by_answers else 0)
        going = found.sent + found.blind
        if not looked_at:
            return pending, "estimated" if pending else "exact"
        guessed = found.on_stand_ins or found.blind > 0
        if by_answers and guessed:
            return math.ceil(pending * going / max(found.looked_at, 1)), "at most"
        if looked_at == pending and not guessed:
            return going, "exact"
        # Rows that would be kept are known for the sample alone: the other rows' requests were not rendered.
        compared = by_answers or stage.name in self._rows.stale or self._rows.knows(stage)
        sure = going == looked_at and not compared and not found.blind
        return round(pending * going / looked_at), "exact" if sure else "estimated"

    def _tokens(
        self, stage: Stage, found: StageRehearsal, labels: Sequence[str]
    ) -> tuple[float | None, float | None, str]:
        """Prompt and completion tokens per row, and their source.

        The embedded simulator's counts are exact. For other servers prompts are measured if the stage is unchanged,
        else estimated from the rendered sample.
        """
        requests, rendered = found.requests, found.answered
        before = self._measured.get(stage.name)
        if requests and rendered and set(labels) <= self._embedded:
            prompt = sum(sent.counted_prompt_tokens for sent in requests) / rendered
            return prompt, sum(sent.completion_tokens for sent in requests) / rendered, "as the simulator counts"
        same = before is not None and before.signature == self._signatures[stage.name]
        if before is not None and same and before.prompt_tokens is not None:
            prompt, source = before.prompt_tokens, f"measured in {_short_path(before.folder)}"
        elif requests and rendered:
            prompt, source = sum(sent.prompt_tokens for sent in requests) / rendered, "prompts: UTF-8 bytes / 4"
        else:
            return None, None, ""
        completion, answer_source = self._expected(stage.name)
        if self._experiment.stages[stage.name].kind != "generate":
            completion, answer_source = completion or 0.0, ""
        elif completion is None:
            completion, answer_source = _assumed_tokens(self._experiment, requests, labels)
        if answer_source and answer_source != source:
            source += f"; answers: {answer_source}"
        return prompt, completion, source

    def _answers_read(self, facts: StageFacts, rehearsal: Rehearsal) -> str | None:
        """How long the answers are taken to be that a stage's prompts hold and that do not exist yet."""
        if not facts.deployments or facts.tokens_source.startswith("measured"):
            return None
        taken = []
        for name in facts.requires:
            if (mean := rehearsal.found[name].assumed_tokens) is not None:
                source = "max_tokens" if mean < rehearsal.expected[name] else self._expected(name)[1] or "assumed"
                taken.append(f"an answer of {name} counts as {counted(round(mean), 'token')} ({source})")
        return f"in its prompts {', '.join(taken)}" if taken else None

    def _cost(
        self, labels: Sequence[str], prompt: float | None, completion: float | None, tier: dict[str, float | str]
    ) -> float | None:
        """US dollars per row, the mean over the deployments that may answer it; ``None`` if a price is unknown.

        ``tier`` is what the parameters ask to be served by; a server that serves by another one bills that.
        """
        if prompt is None or completion is None:
            return None
        thousand = TokenUsage(round(prompt * 1000), round(completion * 1000), details=tier or None)
        one = TokenUsage(round(prompt), round(completion), details=tier or None)
        costs = []
        for label in labels:
            price = self._fleet.deployments[label].price
            cost = None if price is None else price(one)
            if price is None or cost is None:
                return None
            # Tokens are whole numbers, so a thousandth of a thousand rows' cost is more precise than one row's. If the
            # two differ much, the price has tiers, and the large number has reached another one.
            many = (price(thousand) or 0.0) / 1000
            costs.append(many if abs(many - cost) <= 0.05 * cost + 1e-6 else cost)
        return sum(costs) / len(costs)

    def _latency(self, stage: Stage, found: StageRehearsal, labels: Sequence[str]) -> Latency | None:
        """How long a request takes: as the user says, else as measured, else by the embedded simulator's settings."""
        given = self._options.latency_s
        if given is not None:
            return Latency(given, given, "--latency")
        before, embedded = self._measured.get(stage.name), set(labels) <= self._embedded
        declared = _declared(self._experiment.simulator, found.requests) if embedded else None
        if before is not None and (not embedded or self._comparable(before)):
            source = f"measured in {_short_path(before.folder)}"
            window = (before.config.get("stages") or {}).get(stage.name, {}).get("max_parallel_requests")
            if window is not None and window != stage.window:
                source += f" with {window} at once"
            return Latency(before.mean_s, before.p95_s, source, declared.hold_s if declared else None)
        return declared

    def _comparable(self, before: Measured) -> bool:
        """Whether a latency measured at an embedded simulator holds now: same settings, and no request waited in it."""
        settings = self._experiment.simulator
        if SimulatorSettings.model_validate(before.config.get("simulator") or {}) != settings:
            return False
        at_once = sum(stage.window for stage in self._pipeline.stages.values())
        slots = [self._experiment.deployments[label].max_parallel_requests for label in self._embedded]
        if None not in slots:
            at_once = min(at_once, sum(slot or 0 for slot in slots))
        return settings.capacity is None or at_once <= settings.capacity

    def _deployments(self) -> dict[str, DeploymentFacts]:
        found = {}
        for label, entry in self._experiment.deployments.items():
            quota = None
            if entry.limits is not None:
                quota = f"account {entry.limits}" if isinstance(entry.limits, str) else f"deployment {label}"
            found[label] = DeploymentFacts(label, entry.max_parallel_requests, quota, label in self._embedded)
        return found


def _add_waves(estimates: Sequence[Estimate]) -> Estimate:
    """Combine the estimate of the whole job, which comes first, with those of its waves.

    Waves run one after another, so their durations add up; a daily quota spans them and is estimated over the whole.
    """
    whole, *waves = estimates
    walls = [wave.wall_s for wave in waves if wave.wall_s]
    if whole.days is not None or len(walls) < 2:
        return whole
    longest = max(waves, key=lambda wave: wave.wall_s or 0.0)
    return replace(whole, wall_s=sum(walls), resources=longest.resources)


def _quotas(experiment: Experiment, used: Mapping[str, DayUsage]) -> dict[str, QuotaFacts]:
    """Name → the limits of an account or a deployment, with their use today."""
    found = {}
    for name, config in experiment.limits.items():
        labels = experiment.members_of(name)
        found[f"account {name}"] = _quota(f"account {name}", config, [used[label] for label in labels if label in used])
    for label, entry in experiment.deployments.items():
        if isinstance(entry.limits, Limits):
            name = f"deployment {label}"
            found[name] = _quota(name, entry.limits, [used[label]] if label in used else [])
    return found


def _quota(name: str, limits: Limits, used: Sequence[DayUsage]) -> QuotaFacts:
    return QuotaFacts(
        name,
        sum(count.requests for count in used),
        sum(count.tokens for count in used),
        **{limit: getattr(limits, limit) for limit in LIMITS},
    )


def _served(config: Mapping[str, Any], stage: str) -> set[tuple[Any, bool]]:
    """The models that serve a stage, and whether the simulator stands for them, by a stored or a present config."""
    declared = (config.get("stages") or {}).get(stage) or {}
    labels = ((config.get("models") or {}).get(declared.get("model")) or {}).get("deployments") or ()
    entries = [(config.get("deployments") or {}).get(label) or {} for label in labels]
    return {(entry.get("model"), entry.get("api_base") == "simulator") for entry in entries}


def _assumed_tokens(experiment: Experiment, requests: Sequence[Sent], labels: Sequence[str]) -> tuple[float, str]:
    """Completion tokens per row if none were measured, and their source."""
    most = [sent.output_limit for sent in requests if sent.output_limit is not None]
    if most:
        return sum(most) / len(most), "at most max_tokens"
    for label in labels:
        limits = experiment.limits_of(label)
        if limits is not None and limits.default_output_tokens is not None:
            return float(limits.default_output_tokens), "default_output_tokens"
    return float(ASSUMED_OUTPUT_TOKENS), f"assumed {ASSUMED_OUTPUT_TOKENS} (set --output-tokens if you know better)"


def _declared(settings: SimulatorSettings, requests: Sequence[Sent]) -> Latency | None:
    """The latency by the embedded simulator's settings: a lognormal time to the first token, then the answer's tokens.

    The mean of a lognormal with median m and sigma s is m · exp(s² / 2), its 95th percentile m · exp(1.645 s).
    """
    if not requests:
        return None
    factors = {"embedding": settings.embedding_latency_factor, "transcription": settings.audio_latency_factor}
    median = settings.latency_s * factors.get(requests[0].operation, 1.0)
    decoding = 0.0
    if settings.tokens_per_second is not None:
        decoding = sum(sent.decoded_tokens for sent in requests) / len(requests) / settings.tokens_per_second
    hold = median * math.exp(settings.latency_spread**2 / 2) + decoding
    late = median * math.exp(1.645 * settings.latency_spread) + decoding
    return Latency(hold + _LOOPBACK_S, late + _LOOPBACK_S, "the simulator's settings", hold)


def _problem(found: StageRehearsal) -> str | None:
    """Why sample rows would not be sent, could not be rendered, or may fail: how many, and the most frequent reason."""
    if not found.reasons:
        return None
    reason, _ = max(found.reasons.items(), key=lambda item: item[1])
    count, verb = sum(found.reasons.values()), "may be answered with an error"
    if found.blind:
        count, verb = found.blind, "cannot be rendered on stand-ins"
    elif found.lost:
        count, verb = found.lost, "will not be sent"
    return f"{count} of {counted(found.looked_at, 'sample row')} {verb}: {reason}"


def _short_path(folder: Path) -> str:
    absolute, here = folder.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
