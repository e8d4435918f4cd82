"""A run in its folder, with its config beside it: what the command line, a sweep and the Python API start."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from infermesh.compose import check_chosen
from infermesh.config import load
from infermesh.control import Control
from infermesh.errors import InfermeshError
from infermesh.execution import DATABASE, Observer, RunOutcome, execute
from infermesh.loopthread import import_for_good
from infermesh.store.database import Redo

_OURS = frozenset({".hydra", "run.log"})


def fixed(folder: Path) -> Path:
    """The folder that a path over ``latest`` means now: the link moves when a run starts."""
    if "latest" not in folder.parts:
        return folder
    real = folder.resolve()
    return real.relative_to(Path.cwd()) if not folder.is_absolute() and real.is_relative_to(Path.cwd()) else real


def made(folder: Path) -> Path:
    """Make ``folder``, or ``folder-2`` and so on where it is taken: two runs may start within a second."""
    for number in itertools.count(2):
        taken = folder if number == 2 else folder.with_name(f"{folder.name}-{number - 1}")
        with contextlib.suppress(FileExistsError):
            taken.mkdir(parents=True)
            return taken
    raise AssertionError("unreachable")


def launch(
    mapping: Mapping[str, Any],
    folder: Path,
    roots: Sequence[Path],
    *,
    observer: Observer,
    overrides: Sequence[str] | None = None,
    redo: Redo | None = None,
    environ: Mapping[str, str] = os.environ,
    control: Control | None = None,
    written: Collection[str] = (),
) -> RunOutcome:
    """Run an experiment in a folder, or go on with the run that is there; parameters as :func:`execute` takes them.

    Where nothing was run, a new folder is gone again, with the files in it that the caller has ``written`` for the run,
    and an old one's config is what it was.

    Raises
    ------
    ConfigError
        No experiment was chosen, or the declaration is wrong.
    StoreError
        The database cannot be opened or written.
    KeyboardInterrupt
        Before the first request; later, it drains the run.
    """
    fresh = not (folder / DATABASE).exists()
    kept = {file: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}
    if threading.current_thread() is not threading.main_thread():
        import_for_good("pyreqwest.client")
    try:
        check_chosen(mapping)
        load(mapping)  # before anything is written: an inline key must not reach the folder
        _write_config(folder, mapping, overrides)
        return execute(
            mapping,
            folder,
            roots=roots,
            observer=observer,
            overrides=overrides,
            redo=redo,
            environ=environ,
            control=control,
        )
    except (InfermeshError, KeyboardInterrupt) as error:
        if fresh:
            _discard(folder, {*_OURS, *written})
        elif not isinstance(error, KeyboardInterrupt):
            for file, content in kept.items():  # what stands there is what was run
                file.write_bytes(content)
        raise


def _write_config(folder: Path, mapping: Mapping[str, Any], overrides: Sequence[str] | None) -> None:
    target = folder / ".hydra"
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.yaml").write_text(yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))
    if overrides is not None:
        (target / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


def _discard(folder: Path, ours: Collection[str]) -> None:
    """Remove a folder in which nothing ran, unless it holds something that is not ours."""
    if folder.is_dir() and all(item.name in ours for item in folder.iterdir()):
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
