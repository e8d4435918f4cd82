"""``infermesh attach`` and ``logs``: a run that goes on somewhere else, seen from here."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from infermesh.cli.common import Progress, fail
from infermesh.cli.detach import SAID, is_saying
from infermesh.cli.find_run import find_run
from infermesh.cli.progress import make_observer
from infermesh.cli.query import live_run
from infermesh.errors import StoreError
from infermesh.hints import command
from infermesh.query.reader import is_live, watch_run
from infermesh.query.summary import describe
from infermesh.runs.outcome import EXIT_CODES
from infermesh.runs.watched import as_stats
from infermesh.store.folders import LOG

_LOOK_S = 0.2


def attach_to(run: str | None, progress: Progress) -> int:
    """Show a live run's progress as ``run`` does, until it ends.

    Returns
    -------
    int
        Its exit code; 130 after Ctrl-C, which leaves the run alone.
    """
    folder = live_run(run)
    if not is_live(folder):
        return _ended(folder)
    observer = make_observer(progress)
    stats, code = None, None
    try:
        print(f"attached to {folder}; Ctrl-C leaves it running", file=sys.stderr)
        for news in watch_run(folder):
            if "note" in news:
                observer.note(str(news["note"]))
            elif "stats" in news:
                first, stats = stats is None, as_stats(news["stats"])
                (observer.start if first else observer.tick)(stats)
            elif "over" in news:
                code = int(news["over"])
    except KeyboardInterrupt:
        if stats is not None:
            observer.stop(stats)
        print(f"detached: the run goes on. {command('attach', folder)}   {command('stop', folder)}", file=sys.stderr)
        return 130
    except StoreError as error:
        fail(str(error))
    if stats is not None:
        observer.stop(stats)
    return _ended(folder, code)


def _ended(folder: Path, code: int | None = None) -> int:
    """Say how a run has ended; its exit code, as far as its status tells it."""
    info = describe(folder)
    print(f"{folder}: {info.status}: {info.done} done, {info.failed} failed, {info.pending} pending", file=sys.stderr)
    if info.unfinished or info.failed:
        print(f"  resume: {command('resume', folder)}", file=sys.stderr)
    return code if code is not None else EXIT_CODES.get(info.status, 1)


def show_logs(run: str | None, follow: bool) -> None:
    """Print what a detached run says, else its ``run.log``; with ``follow`` until the run ends."""
    folder = find_run(run)
    path = next((folder / name for name in (SAID, LOG) if (folder / name).exists()), None)
    if path is None:
        print(f"{folder}: it has logged nothing", file=sys.stderr)
        return
    print(f"{path}:", file=sys.stderr)
    with open(path, encoding="utf-8", errors="replace") as lines:
        while True:
            # Asked before the last look: what it says at its end is in it.
            live = follow and (is_saying(lines) if path.name == SAID else is_live(folder))
            while text := lines.read(1 << 16):
                sys.stdout.write(text)
            sys.stdout.flush()
            if not live:
                return
            time.sleep(_LOOK_S)
