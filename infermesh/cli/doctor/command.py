"""``infermesh doctor``: look at everything at once, and print a line for each thing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import orjson

from infermesh.cli.common import split_config_dir
from infermesh.cli.doctor.findings import Finding, Probe, State, together, waits_still
from infermesh.cli.doctor.machine import descriptors, disk, places, terminal, versions
from infermesh.cli.doctor.servers import AT_ONCE, deployments, keys
from infermesh.config.compose import compose
from infermesh.config.declaration import Declaration, declared
from infermesh.config.project import config_folders, experiments, shipped_project
from infermesh.config.schema import Experiment
from infermesh.errors import ConfigError
from infermesh.hints import counted, one_line
from infermesh.runs.assemble import requests_at_once
from infermesh.runs.remarks import misspelt_models
from infermesh.store.folders import OUTPUTS, outputs_of

_LOCAL_S = 5.0  # for what the machine itself answers
_SLACK_S = 30.0  # beside the requests' own time: names are looked up, LiteLLM is loaded
_LONGEST = 1000  # characters of a line
_SHOWN = 20  # deployments that are well
_STYLES: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def run_doctor(overrides: Sequence[str], *, timeout: float, send: bool, as_json: bool) -> int:
    """Print what was found.

    Parameters
    ----------
    overrides
        ``+experiment=NAME`` and overrides, as ``infermesh run`` takes them; empty looks at the machine alone.
    timeout
        Seconds that a deployment may take for its list of models, and with ``send`` for an answer.
    send
        Ask each deployment for one tiny answer as well.

    Returns
    -------
    int
        The exit code: 1 if something fails.
    """
    found, job, outputs = _config(overrides)
    experiment = None if job is None else job.experiment
    probes: list[tuple[str, Probe, float]] = [
        ("versions", versions, _LOCAL_S),
        ("config", lambda: found, _LOCAL_S),
        ("keys", lambda: keys(experiment, os.environ), _LOCAL_S),
    ]
    if experiment is not None and experiment.deployments:
        probes.append(("models", lambda: _doubts(experiment), _LOCAL_S))
        rounds = 1 + len(experiment.deployments) // AT_ONCE
        bound = timeout * rounds * (4 if send else 1) + _SLACK_S
        ask = partial(deployments, experiment, os.environ, timeout=timeout, send=send)
        probes.append(("deployments", ask, bound))
    at_once = None if experiment is None else requests_at_once(experiment)
    probes += [
        ("outputs folder", lambda: places(outputs), _LOCAL_S),
        ("disk", lambda: disk(outputs), _LOCAL_S),
        ("file descriptors", lambda: descriptors(at_once), _LOCAL_S),
        ("terminal", terminal, _LOCAL_S),
    ]
    findings = together(probes)
    if job is not None:  # what was declared in the short form is told in it
        written = job.long_form.as_written
        findings = [replace(each, words=written(each.words), do=written(each.do)) for each in findings]
    _print(findings, as_json)
    code = int(any(each.state == "fail" for each in findings))
    if waits_still():  # what it waits for may keep the process
        sys.stdout.flush()
        os._exit(code)
    return code


def _config(overrides: Sequence[str]) -> tuple[list[Finding], Declaration | None, Path]:
    """What is said of the config, the job, and the folder of its runs."""
    words, config_dir = split_config_dir(overrides)
    findings = list(_where(Path.cwd(), config_dir))
    if not words:
        cure = "infermesh doctor +experiment=NAME looks at its deployments, too"
        return [*findings, Finding("experiment", "ok", f"none given: {cure}")], None, OUTPUTS
    try:
        composed = compose(words, config_dir=config_dir)
        job = declared(composed)
    except ConfigError as error:
        cure = "mend it; infermesh run … --cfg job shows what is composed"
        return (
            [*findings, *(Finding("experiment", "fail", line, cure) for line in str(error).splitlines())],
            None,
            OUTPUTS,
        )
    experiment = job.experiment
    words_of = (
        f"stages {', '.join(experiment.stages)}",
        f"deployments {', '.join([*experiment.deployments][:_SHOWN])}",
    )
    findings.append(Finding("experiment", "ok", f"{experiment.name}: {'; '.join(words_of)}"))
    findings += [Finding("experiment", "ok", note) for note in composed.notes]
    folder = composed.folder
    return findings, job, OUTPUTS if folder is None else outputs_of(folder)


def _where(home: Path, config_dir: Path | None) -> Iterator[Finding]:
    """Which folders of configs are found."""
    shipped = shipped_project() / "conf"
    own = [folder for folder in config_folders(home, config_dir) if folder.is_dir() and folder != shipped]
    names = experiments(home, config_dir)
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    if own:
        yield Finding("config", "ok", f"{', '.join(map(str, own))}; experiments: {shown}")
    elif home / "conf" == shipped:
        yield Finding("config", "ok", f"{shipped}, the shipped one; experiments: {shown}")
    else:
        words = f"there is no conf/ in {home}; shipped experiments: {shown}"
        yield Finding("config", "warn", words, "cd into your project, or make one: infermesh init my-project")
    if not shipped.is_dir():
        yield Finding("config", "fail", f"the shipped configs are missing: {shipped}", "install infermesh again")
    if (home / ".env").is_file():
        yield Finding("config", "ok", ".env is here; it is read where --env-file .env says so")


def _doubts(experiment: Experiment) -> Iterator[Finding]:
    """Models whose names are probably misspelt."""
    for line in misspelt_models(experiment):
        yield Finding("models", "warn", line, "write the name as the provider does, unless it is newer than that list")


def _few(findings: Sequence[Finding]) -> list[Finding]:
    """Without the deployments that are well beyond some: a cluster has hundreds, and one that fails is looked for."""
    well = [each for each in findings if each.about.startswith("deployment ") and each.state == "ok"][_SHOWN:]
    shown = [each for each in findings if each not in well]
    return (
        [*shown, Finding("deployments", "ok", counted(len(well), "more line") + " of deployments that are well")]
        if well
        else shown
    )


def _print(findings: Sequence[Finding], as_json: bool) -> None:
    counts = {state: sum(each.state == state for each in findings) for state in _STYLES}
    if as_json:
        listed = [asdict(each) for each in findings]
        print(orjson.dumps({"ok": not counts["fail"], "counts": counts, "findings": listed}).decode())
        return
    shown = _few(findings)
    if sys.stdout.isatty():
        _print_table(shown)
    else:
        width = max(len(each.about) for each in shown)
        for each in shown:
            print(f"{each.state:4}  {each.about:{width}}  {one_line(each.words, _LONGEST)}")
            if each.do:
                print(f"{'':6}{'':{width}}  → {one_line(each.do, _LONGEST)}")
    print(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")


def _print_table(findings: Sequence[Finding]) -> None:
    """The same lines folded to the terminal's width, in colour."""
    from rich.table import Table
    from rich.text import Text

    from infermesh.cli.console import SafeConsole

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        words = one_line(each.words, _LONGEST) + (f"\n→ {one_line(each.do, _LONGEST)}" if each.do else "")
        table.add_row(Text(each.state, _STYLES[each.state]), Text(each.about), Text(words))
    SafeConsole().print(table)
