"""What may stand in a place of the command line, for a shell that completes it. Quick: no DuckDB, Hydra only at need.

Each function is an option's or an argument's ``autocompletion``. Typer keeps what begins with the word so far.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from infermesh.cli.complete_overrides import overrides_like, runs_like
from infermesh.store.folders import CONFIG_FOLDER, LATEST, OUTPUTS, run_folders

SHELLS = ("bash", "zsh", "fish")
FORMATS = ("table", "record", "csv", "json", "jsonl", "parquet")
TABLES = ("results", "progress", "source", "attempts", "run")


def complete_stage(ctx: typer.Context) -> list[str]:
    """The stages of the run that the line names, else of the newest one."""
    return list(_declared(ctx).get("stages") or {})


def complete_table(ctx: typer.Context) -> list[str]:
    """The tables of a run."""
    return [*TABLES, *complete_stage(ctx)]


def complete_format() -> list[str]:
    """Forms of printed rows."""
    return list(FORMATS)


def complete_shell() -> list[str]:
    """The shells that can complete."""
    return list(SHELLS)


def complete_setting(incomplete: str) -> list[str]:
    """The simulator's settings."""
    from infermesh.simulator.settings import all_settings

    return [f"{name}=" for name, _, _ in all_settings()] if "=" not in incomplete else []


def complete_run(incomplete: str) -> list[str]:
    """Names of experiments that have runs, and the runs' folders once a path is begun."""
    return runs_like(incomplete)


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Experiments, groups, keys and values, as Hydra takes them."""
    return overrides_like(incomplete, list(map(str, ctx.params.get("overrides") or [])))


def _declared(ctx: typer.Context) -> Mapping[str, Any]:
    """The config beside the run that the line names: read as YAML, since the database would need DuckDB."""
    import yaml

    name = next((str(ctx.params[each]) for each in ("run", "run_a") if ctx.params.get(each)), None)
    places = [Path(name), OUTPUTS / name / LATEST] if name else run_folders()[:1]
    for place in places:
        with contextlib.suppress(OSError, yaml.YAMLError):
            text = (place / CONFIG_FOLDER / "config.yaml").read_text(encoding="utf-8")
            found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            if isinstance(found, Mapping):
                return found
    return {}
