"""What the commands share: options, the environment file, and error messages."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from infermesh.cli.completers import complete_format, complete_override, complete_run
from infermesh.errors import InfermeshError
from infermesh.hints import one_line, system_words

RUNS = "Runs"
PROJECT = "Project"


class Progress(StrEnum):
    """How a run's progress is shown."""

    AUTO = "auto"
    TABLE = "table"
    LINES = "lines"
    JSON = "json"


ProgressOption = Annotated[
    Progress,
    typer.Option(
        "--progress",
        help="A live table, plain lines (the default where stderr is no terminal), or lines of JSON on stdout.",
    ),
]
EnvFile = Annotated[
    Path | None,
    typer.Option("--env-file", help="Read API keys from this file of NAME=value lines.", exists=True, dir_okay=False),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="table, record, csv, json, jsonl or parquet. Default: table on a terminal, else csv.",
        autocompletion=complete_format,
    ),
]
RecordOption = Annotated[bool, typer.Option("--record", help="Show a row as a block of lines, with all its columns.")]
BackgroundOption = Annotated[
    bool,
    typer.Option("--detach", help="Run in the background, and give the terminal back once the run has begun."),
]
DetachOption = Annotated[
    bool,
    typer.Option(
        "--detach-batches", help="End, with code 5, once every batch is submitted; infermesh resume collects them."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExperimentOption = Annotated[str | None, typer.Option("--experiment", help="Only runs of this experiment.")]
StateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help="Only runs in this state: running, done, failed_rows, interrupted, stopped, crashed, killed, empty or "
        "damaged; repeatable.",
    ),
]
OutputsOption = Annotated[Path, typer.Option("--outputs", help="The folder that holds the runs.")]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="A run's folder or id, or an experiment's name; default: the newest.", autocompletion=complete_run
    ),
]
LiveRunArgument = Annotated[
    str | None,
    typer.Argument(
        help="A run's folder or id, or an experiment's name; default: the running one.", autocompletion=complete_run
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="+experiment=NAME KEY=VALUE",
        help="The experiment and changes to its config, in Hydra's syntax.",
        autocompletion=complete_override,
        show_default=False,
    ),
]


class Commands(TyperGroup):
    """The commands. An error that their surroundings make ends them in words; a bug of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read has enough
        except Exception as error:
            if isinstance(error, RuntimeError) and str(error) == "Query interrupted":  # DuckDB's word for Ctrl-C
                raise KeyboardInterrupt from None
            if (words := words_of(error)) is None:
                raise
            fail(words)


def words_of(error: BaseException, place: Path | None = None) -> str | None:
    """What to print for an error that is no bug of ours: one of our own, the system's, or DuckDB's. Else ``None``.

    Parameters
    ----------
    place
        The path to name where the error names none.
    """
    if isinstance(error, InfermeshError):
        return str(error)
    if isinstance(error, OSError):
        return system_words(error, place)
    from infermesh.store.connection import DatabaseError  # late: DuckDB takes its time, and most errors are none of its

    return one_line(error, 600) if isinstance(error, DatabaseError) else None


def print_error(error: object) -> None:
    """Print each line of a message to stderr, with ``error:`` before it."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print a message as :func:`print_error` does and exit with ``code``."""
    print_error(message)
    raise typer.Exit(code)


def split_config_dir(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take ``--config-dir DIR`` (or ``-cd DIR``) out of ``argv``; DIR is made absolute, and the last one wins."""
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
    """Load a file of variables into the environment. Variables that are already set keep their value."""
    if env_file is not None:
        from dotenv import load_dotenv

        try:
            load_dotenv(env_file, override=False)
        except UnicodeDecodeError:
            fail(f"--env-file {env_file}: it is no text in UTF-8")


@contextlib.contextmanager
def warnings_muted() -> Iterator[None]:
    """Mute warnings: a made-up answer that does not fit its schema is no news to the user."""
    logger = logging.getLogger("infermesh")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
