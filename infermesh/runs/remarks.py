"""What is said of a job before its first request, by a run and by a plan alike: one line for each likely slip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from infermesh.config.remarks import remarks, used_deployments
from infermesh.config.schema import Experiment
from infermesh.dispatch.fleet import Fleet
from infermesh.dispatch.pricing import asked_tiers, near_model, unlisted_tier
from infermesh.errors import ConfigError
from infermesh.hints import counted
from infermesh.results import TokenUsage
from infermesh.stages import Stage
from infermesh.stages.graph import Pipeline
from infermesh.store import Column, Connection
from infermesh.store.schema import quoted
from infermesh.transports.providers import resolve_deployment

__all__ = [
    "all_left_out",
    "job_remarks",
    "missing_keys",
    "misspelt_models",
    "refuse_missing_keys",
    "where_remarks",
]

_ANSWERS = (TokenUsage(1000, 1000), TokenUsage(details={"audio_seconds": 60.0}))  # clips are priced by the hour


def job_remarks(
    experiment: Experiment, fleet: Fleet, pipeline: Pipeline, origins: Mapping[str, Sequence[Column]]
) -> list[str]:
    """Every line that is to be said of a job.

    Parameters
    ----------
    origins
        ``source`` and the sql stages, each with its columns.
    """
    doubts = misspelt_models(experiment)
    return [
        *remarks(experiment),
        *doubts,
        *_budget(experiment, fleet),
        *_tiers(experiment),
        *pipeline.remarks(origins),
    ]


def misspelt_models(experiment: Experiment) -> Iterator[str]:
    """A line for each deployment that asks a provider itself for a model of nearly another's name."""
    for label in used_deployments(experiment):
        entry = experiment.deployments[label]
        if entry.api_base is None and (near := near_model(entry.model)) is not None:
            yield f"deployments.{label}: {entry.model} is not known to the price list: did you mean {near}?"


def _budget(experiment: Experiment, fleet: Fleet) -> Iterator[str]:
    """A line where a budget is set and a price is not known."""
    if experiment.guards.max_cost_usd is None:
        return
    used = used_deployments(experiment)
    prices = ((label, fleet.deployments[label].price) for label in used)
    unknown = [label for label, price in prices if price is None or all(price(each) is None for each in _ANSWERS)]
    if unknown:
        effect = "it stops nothing" if len(unknown) == len(used) else "what they cost does not count"
        each = "deployments." + (unknown[0] if len(unknown) == 1 else f"{{{','.join(unknown)}}}")
        yield (
            f"guards.max_cost_usd: no price is known for {', '.join(unknown)}: {effect}, unless the server tells what "
            f"it bills. Set input_cost_per_token and output_cost_per_token of {each}"
        )


def _tiers(experiment: Experiment) -> Iterator[str]:
    """A line for each tier that requests ask for, and that the price list does not have for its model."""
    for label, tier in asked_tiers(experiment):
        entry = experiment.deployments[label]
        own = entry.input_cost_per_token is not None and entry.output_cost_per_token is not None
        if not own and (line := unlisted_tier(entry.model, tier)) is not None:
            yield f"deployments.{label}: {line}"


def all_left_out(stage: str, rows: int) -> str:
    """What is said of a stage whose condition no row satisfies."""
    return f"{stage}: where leaves out {'all ' + counted(rows, 'row') if rows > 1 else 'the only row'}"


def where_remarks(connection: Connection, stages: Mapping[str, Stage]) -> Iterator[str]:
    """A line for each stage whose ``where`` has left out every row, malformed lines aside.

    Parameters
    ----------
    connection
        To the database of a run that has come to its end.
    """
    for name, stage in stages.items():
        if stage.where is not None:
            ((left_out, rows),) = connection.execute(
                "SELECT count(*) FILTER (status = 'skipped' AND error_type IS NULL), "
                f"count(*) FILTER (error_type IS DISTINCT FROM 'malformed_input') FROM {quoted(name)}"
            ).fetchall()
            if left_out and left_out == rows:
                yield all_left_out(name, rows)


def missing_keys(experiment: Experiment, environ: Mapping[str, str]) -> list[str]:
    """A line for each deployment that a stage sends to, and whose key is in none of its provider's usual variables."""
    found = []
    for label in used_deployments(experiment):
        entry = experiment.deployments[label]
        if entry.api_base == "simulator":
            continue
        missing = resolve_deployment(entry.deployment_config(), environ, label=label).missing_key
        if missing is not None:
            found.append(
                f"deployments.{label}: no key for {entry.model}: the environment variable {missing} is not set. Export "
                "it, put it into the --env-file, or name another variable in the deployment's api_key_env"
            )
    return found


def refuse_missing_keys(experiment: Experiment, environ: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` with the lines of :func:`missing_keys`, if there are any."""
    if found := missing_keys(experiment, environ):
        raise ConfigError("\n".join(found))
