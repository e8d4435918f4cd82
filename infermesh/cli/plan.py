"""``infermesh plan``: print what a run would send, cost and take. The report goes to stdout, notes go to stderr."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from infermesh.cli.common import fail, split_config_dir, warnings_muted
from infermesh.config.compose import compose
from infermesh.config.declaration import declared
from infermesh.config.understood import FLAGS, WITH_VALUE, UsageError
from infermesh.errors import InfermeshError
from infermesh.hints import command, counted
from infermesh.plan import Options, Plan, QuotaFacts, Resource, StageEstimate, make_plan
from infermesh.runs.progress import duration

_HEADINGS = ("stage", "rows", "requests", "prompt tokens", "answer tokens", "cost", "a request takes")
_MOST_RESOURCES = 6


def run_plan(
    argv: list[str], show: int, sample: int, json: bool, latency_s: float | None, output_tokens: int | None
) -> None:
    """Compose the config as ``infermesh run`` does, estimate the run and print the report.

    Parameters
    ----------
    argv
        ``+experiment=NAME`` and overrides.
    show
        How many requests of each stage to print in full.
    sample
        How many rows to render.
    json
        Print JSON instead of the report.
    latency_s, output_tokens
        Seconds of a request and tokens of an answer, in place of the estimates. ``None`` keeps these.
    """
    overrides, config_dir = _split_arguments(argv)
    if sys.stderr.isatty():
        print("reading the source …", file=sys.stderr)
    try:
        composed = compose(overrides, config_dir=config_dir)
        job = declared(composed)
        assert composed.folder is not None  # a declaration that validates has a name, so it has a folder
        options = Options(show, sample, latency_s, output_tokens)
        with warnings_muted():
            plan = make_plan(job, composed.folder, options=options)
    except InfermeshError as error:
        fail(str(error), code=2 if isinstance(error, UsageError) else 1)
    as_written = job.long_form.as_written
    plan = dataclasses.replace(plan, notes=[*map(as_written, plan.notes)])
    for note in (*composed.notes, *plan.notes):
        print(note, file=sys.stderr)
    if json:
        sys.stdout.buffer.write(orjson.dumps(as_json(plan), option=orjson.OPT_INDENT_2) + b"\n")
        sys.stdout.flush()
    else:
        _print_report(plan, argv, as_written)


def _split_arguments(argv: list[str]) -> tuple[list[str], Path | None]:
    """Split off the folder of ``--config-dir``, and exit with an error on another option of Hydra's."""
    if not argv:
        fail("which experiment? infermesh plan NAME", code=2)
    overrides, config_dir = split_config_dir(argv)
    for argument in overrides:
        if argument in ("-m", "--multirun"):
            fail("plan estimates one job: leave -m out, and give one value for each key", code=2)
        if argument.partition("=")[0] in FLAGS | WITH_VALUE:
            fail(f"{argument}: no such option of plan; see infermesh plan --help", code=2)
    return overrides, config_dir


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the whole plan as plain values; ``None`` where something is unknown."""
    found = plan.estimate
    binding = found.binding
    return {
        "experiment": plan.experiment,
        "folder": None if plan.folder is None else str(plan.folder),
        "rows": plan.rows,
        "wall_s": found.wall_s,
        "wall_is_lower_bound": not found.complete,
        "days": found.days,
        "binding": None if binding is None else binding.name,
        "requests": _sum_if_known(stage.requests for stage in found.stages),
        "prompt_tokens": _sum_if_known(stage.prompt_tokens for stage in found.stages),
        "completion_tokens": _sum_if_known(stage.completion_tokens for stage in found.stages),
        "cost_usd": _sum_if_known(stage.cost_usd for stage in found.stages),
        "stages": [
            dataclasses.asdict(stage.facts)
            | {
                "requests": stage.requests,
                "total_prompt_tokens": stage.prompt_tokens,
                "total_completion_tokens": stage.completion_tokens,
                "total_cost_usd": stage.cost_usd,
            }
            for stage in found.stages
        ],
        "resources": [dataclasses.asdict(resource) for resource in found.resources],
        "quotas": [dataclasses.asdict(quota) for quota in plan.quotas.values()],
        "shown": {
            name: [{"deployment": sent.deployment, "url": sent.url, "payload": sent.payload} for sent in listed]
            for name, listed in plan.requests.items()
        },
        "notes": plan.notes,
        "workers": plan.workers,
        "helpful_workers": plan.helpful_workers,
    }


def _sum_if_known(values: Iterator[float | None]) -> float | None:
    listed = list(values)
    return None if None in listed else sum(value or 0 for value in listed)


def _print_report(plan: Plan, argv: Sequence[str], as_written: Callable[[str], str]) -> None:
    for name, listed in plan.requests.items():
        for number, sent in enumerate(listed, 1):
            print(f"{name}, request {number}: POST {sent.url} (deployment {sent.deployment})")
            print(orjson.dumps(sent.payload, option=orjson.OPT_INDENT_2).decode())
            print()
    what = "a new run" if plan.folder is None else f"what is left to do in {plan.folder}"
    print(f"{plan.experiment}: {what}, {counted(plan.rows, 'row')}. Nothing was sent.")
    _print_table([_HEADINGS, *(_stage_row(stage) for stage in plan.estimate.stages), _total_row(plan)])
    for line in _basis_lines(plan.estimate.stages):
        print(line)
    print()
    for line in (*_batch_lines(plan.estimate.stages), *_time_lines(plan)):
        print(as_written(line))
    print(f"\nrun it: {command('run', *argv)}")


def _stage_row(stage: StageEstimate) -> tuple[str, ...]:
    facts = stage.facts
    if facts.rows is None:
        return (facts.name, "not known before the run", *[""] * (len(_HEADINGS) - 2))
    sure = {"exact": "", "estimated": "about ", "at most": "at most "}.get(facts.certainty, "")
    if not facts.deployments:
        return (facts.name, f"{sure}{facts.rows:,}", f"none: {facts.kind}", *[""] * (len(_HEADINGS) - 3))
    latency = "unknown" if facts.latency is None else f"{facts.latency.mean_s:.3g} s"
    return (
        facts.name,
        f"{sure}{facts.rows:,}",
        _count_text(stage.requests),
        _count_text(stage.prompt_tokens),
        _count_text(stage.completion_tokens),
        _cost_text(stage.cost_usd),
        latency if facts.rows else "",
    )


def _total_row(plan: Plan) -> tuple[str, ...]:
    figures = as_json(plan)
    return (
        "total",
        "",
        *(_count_text(figures[key]) for key in ("requests", "prompt_tokens", "completion_tokens")),
        _cost_text(figures["cost_usd"]),
        "",
    )


def _count_text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _cost_text(value: float | None) -> str:
    return "unknown" if value is None else f"${value:,.4f}" if value < 1 else f"${value:,.2f}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, aligned lines elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.table import Table

        from infermesh.cli.console import SafeConsole

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, heading in enumerate(rows[0]):
            table.add_column(heading, justify="right" if number else "left")
        for number, row in enumerate(rows[1:], 2):
            table.add_row(*row, end_section=number == len(rows) - 1)
        SafeConsole().print(table)
        return
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())


def _basis_lines(stages: Sequence[StageEstimate]) -> Iterator[str]:
    """What tokens and seconds are based on, and which stages could not be rendered."""
    sources: dict[str, list[str]] = {}
    for stage in stages:
        facts = stage.facts
        if facts.rows and facts.tokens_source:
            sources.setdefault(f"tokens: {facts.tokens_source}", []).append(facts.name)
        if facts.rows and facts.latency is not None:
            sources.setdefault(f"seconds: {facts.latency.source}", []).append(facts.name)
    busy = sum(1 for stage in stages if stage.facts.rows)
    for source, names in sorted(sources.items(), reverse=True):
        yield f"  {source}" + ("" if len(names) == busy else f" ({', '.join(names)})")
    for stage in stages:
        for line in (stage.facts.note, stage.facts.problem):
            if line:
                yield f"  {stage.facts.name}: {line}"


def _batch_lines(stages: Sequence[StageEstimate]) -> Iterator[str]:
    """What batches cost, what they save, and how long they may take."""
    batched = [stage for stage in stages if stage.facts.batched and stage.facts.rows]
    if not batched:
        return
    names = {stage.facts.name for stage in batched}
    rounds = dict.fromkeys(names, 1)
    for stage in batched:  # each after those that it requires
        before = [rounds[other] for other in stage.facts.requires if other in names]
        rounds[stage.facts.name] = 1 + max(before, default=0)
    most = max(rounds.values())
    cost = _sum_if_known(stage.cost_usd for stage in batched)
    each = [(stage.facts.live_cost_usd, stage.facts.rows or 0) for stage in batched]
    live = _sum_if_known(None if one is None else one * rows for one, rows in each)
    price = "no price is known"
    if cost is not None and live:
        price = f"{_cost_text(cost)} instead of {_cost_text(live)} live ({cost / live - 1:+.0%})"
    wait = "one after the other, each takes up to a day" if most > 1 else "takes up to a day"
    yield (
        f"batches: {', '.join(stage.facts.name for stage in batched)}: {price}; {counted(most, 'round')}, {wait}, and "
        "often much less"
    )


def _time_lines(plan: Plan) -> Iterator[str]:
    found = plan.estimate
    if found.binding is None and any(stage.facts.batched and stage.facts.rows for stage in found.stages):
        yield "time: as long as the batches take"
        return
    if all(stage.facts.rows == 0 for stage in found.stages):
        yield "time: none, nothing is left to send"
        return
    if found.binding is None and found.unknown:
        yield f"time: unknown: {'; '.join(found.unknown)}"
        return
    if found.wall_s is None or found.binding is None:
        yield "time: unknown: no limit is set, and the time of a request is not known (give --latency SECONDS)"
        return
    bound = "about" if found.complete else "at least"
    yield f"time: {bound} {_time_text(found.wall_s)}, bound by {found.binding.name}: {found.binding.detail}"
    least = max(0.1, 0.01 * max((each.seconds for each in found.resources if each.days is None), default=0.0))
    listed = [resource for resource in found.resources[1:] if resource.seconds >= least]
    if plan.helpful_workers:
        yield f"      engine.workers={plan.helpful_workers} would send from several processes, a processor for each"
    others = [f"{resource.name} {_time_text(resource.seconds)}" for resource in listed[:_MOST_RESOURCES]]
    if others:
        yield f"      alone would take: {', '.join(others)}"
    if not found.complete:
        slow = [stage.facts.name for stage in found.stages if stage.facts.rows and stage.facts.latency is None]
        if slow:
            yield (
                f"      from the limits alone: the time of a request of {', '.join(slow)} is not known. "
                "Give --latency SECONDS, or run the experiment once on a few rows"
            )
    for unknown in found.unknown:
        yield f"      {unknown}"
    yield from _quota_lines(found.resources, plan.quotas)


def _quota_lines(resources: Sequence[Resource], quotas: dict[str, QuotaFacts]) -> Iterator[str]:
    for resource in resources:
        if resource.days is not None:
            yield f"quota: {resource.name}: {resource.detail}: a job of {counted(resource.days, 'day')}"
    for quota in quotas.values():
        for unit, limit, used in (("rpd", quota.rpd, quota.used_requests), ("tpd", quota.tpd, quota.used_tokens)):
            if limit is not None and not any(
                resource.days and resource.name.startswith(unit) and quota.name in resource.name
                for resource in resources
            ):
                yield f"quota: {unit} of {quota.name}: {used:,.0f} of {limit:,.0f} used today, enough is left"


def _time_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else duration(seconds)
