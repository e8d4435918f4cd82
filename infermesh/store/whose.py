"""Whose run a database holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from infermesh.config.schema import NO_NAME
from infermesh.errors import ConfigError
from infermesh.hints import command
from infermesh.store.database import RunStore

__all__ = ["refuse_other"]


def refuse_other(store: RunStore, experiment: str, overrides: Sequence[str] | None, folder: Path) -> None:
    """Refuse to put an experiment onto the run of another, whose rows would be taken for its own.

    Parameters
    ----------
    experiment, overrides
        Its name, and what was changed on the command line. Where it has no name of its own, it is called by the file
        that was chosen there.
    folder
        What the run's folder is called in the message.

    Raises
    ------
    ConfigError
        The database holds the run of another experiment.
    """
    if store.is_new:
        return
    stored = store.run_value("experiment")
    if stored == experiment == NO_NAME:
        stored = _chosen(orjson.loads(store.run_value("overrides") or "null") or ())
        experiment = _chosen(overrides or ()) or NO_NAME
        if stored is None or experiment == NO_NAME:
            return
    if stored != experiment:
        raise ConfigError(
            f"{folder} holds the run of another experiment: '{stored}', and this one is '{experiment}'. Name another "
            f"folder (hydra.run.dir=FOLDER), or go on with the run that is there: {command('resume', folder)}"
        )


def _chosen(overrides: Sequence[str]) -> str | None:
    """The experiment's file that overrides in Hydra's syntax choose."""
    named = [value for key, _, value in (each.partition("=") for each in overrides) if key.lstrip("+") == "experiment"]
    return named[-1] if named else None
