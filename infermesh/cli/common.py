"""What the commands share: options, the environment file, and how an error ends a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

RUNS = "Runs"
PROJECT = "Project"
EnvFile = Annotated[
    Path | None, typer.Option("--env-file", help="Read keys from this file of NAME=value lines.", exists=True)
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="table, csv, json, jsonl or parquet; table on a terminal, else csv.")
]
OutputsOption = Annotated[Path, typer.Option("--outputs", help="The folder that holds the runs.")]
RunArgument = Annotated[str | None, typer.Argument(help="A run's folder or id; the newest where none is named.")]


def print_error(error: object) -> None:
    """Say on stderr what is wrong, one line per problem."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say on stderr what is wrong, and exit."""
    print_error(message)
    raise typer.Exit(code)


def split_config_dir(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments without ``--config-dir DIR`` (or ``-cd DIR``), and its absolute folder; the last one wins."""
    found, others, rest = None, [], iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            found = value if equals else next(rest, "")
        else:
            others.append(argument)
    if found is not None and not Path(found).is_dir():
        fail(f"--config-dir {found}: no such folder")
    return others, None if found is None else Path(found).resolve()


def load_env(env_file: Path | None) -> None:
    """Put the file's variables into the environment; what is set there already stays."""
    if env_file is not None:
        from dotenv import load_dotenv

        load_dotenv(env_file, override=False)
