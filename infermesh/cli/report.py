"""``infermesh report``: the page of a run or of a sweep, as one file."""

from __future__ import annotations

import sys
from pathlib import Path

from infermesh.bench.sweep_page import SWEEP_PAGE, picture_of, write_page
from infermesh.bench.sweeps import advise, figures_scope, measure, stored_jobs
from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run, say_run, sweep_command
from infermesh.errors import StoreError
from infermesh.hints import command, system_words
from infermesh.pages.run import write_report
from infermesh.pages.sweep import Picture
from infermesh.query.finding import group_words, runs_in
from infermesh.store.folders import is_sweep


def report_on(name: str | None, output: Path | None) -> None:
    """Write the page of a run, live or not, or of a sweep; its path goes to stdout.

    Parameters
    ----------
    name
        A run as elsewhere, or a sweep's folder. ``None``: the newest run.
    output
        The file; ``None`` is ``report.html`` in the run's folder, ``sweep.html`` in the sweep's.
    """
    if output is not None and output.is_dir():
        fail(f"--output {output} is a folder: name a file in it, such as {output / 'report.html'}", code=2)
    try:
        group = runs_in(name)
        if group is not None and is_sweep(group[0]):
            path = _report_sweep(group[0], output)
        elif group is not None:
            fail(f"{group_words(*group)}, and a page is of one run or sweep: {command('report', group[1][-1])}", code=2)
        else:
            folder = find_run(name)
            path = write_report(folder, output)
            say_run(name, folder)
    except StoreError as error:
        fail(str(error))
    except OSError as error:
        fail(system_words(error, output))
    print(path)


def _report_sweep(folder: Path, output: Path | None) -> Path:
    path = folder / SWEEP_PAGE if output is None else output
    write_page(path, sweep_picture(folder))
    return path


def sweep_picture(folder: Path) -> Picture:
    """What a sweep's page shows. Raises ``StoreError`` if the sweep keeps no record of its jobs."""
    records, keys = stored_jobs(folder)
    if not records:
        raise StoreError(f"{folder} keeps no record of its jobs: {command('report', folder / '0')} takes one of them")
    jobs = measure(records, keys)
    if running := [str(job.record.number) for job in jobs if job.status == "in use"]:
        print(f"left out, as they are running: job {', '.join(running)}", file=sys.stderr)
    return picture_of(f"{folder}: {figures_scope(keys)}", jobs, keys, advise(jobs, keys), sweep_command(folder))
