"""``infermesh doctor``: look at everything at once, and print a line for each thing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from infermesh.cli.common import split_config_dir
from infermesh.cli.doctor.findings import Finding, Probe, State, together, waits_still
from infermesh.cli.doctor.machine import descriptors, disk, places, terminal, versions
from infermesh.cli.doctor.servers import deployments, keys
from infermesh.config.compose import compose
from infermesh.config.declaration import declare
from infermesh.config.project import config_folders, experiments, shipped_project
from infermesh.config.schema import Experiment
from infermesh.errors import ConfigError
from infermesh.hints import visible
from infermesh.runs.execute import requests_at_once
from infermesh.store.folders import OUTPUTS, outputs_of

_LOCAL_S = 5.0  # for what the machine itself answers
_SLACK_S = 30.0  # beside the requests' own time: names are looked up, LiteLLM is loaded
_AT_ONCE = 64  # deployments, see servers.py


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
    found, experiment, outputs = _config(overrides)
    probes: list[tuple[str, Probe, float]] = [
        ("versions", versions, _LOCAL_S),
        ("config", lambda: found, _LOCAL_S),
        ("keys", lambda: keys(experiment, os.environ), _LOCAL_S),
    ]
    if experiment is not None and experiment.deployments:
        rounds = 1 + len(experiment.deployments) // _AT_ONCE
        bound = timeout * rounds * (4 if send else 1) + _SLACK_S
        declared = experiment
        ask = lambda: deployments(declared, os.environ, timeout=timeout, send=send)  # noqa: E731
        probes.append(("deployments", ask, bound))
    at_once = None if experiment is None else requests_at_once(experiment)
    probes += [
        ("outputs folder", lambda: places(outputs), _LOCAL_S),
        ("disk", lambda: disk(outputs), _LOCAL_S),
        ("file descriptors", lambda: descriptors(at_once), _LOCAL_S),
        ("terminal", terminal, _LOCAL_S),
    ]
    findings = together(probes)
    _print(findings, as_json)
    code = int(any(each.state == "fail" for each in findings))
    if waits_still():  # what it waits for may keep the process
        sys.stdout.flush()
        os._exit(code)
    return code


def _config(overrides: Sequence[str]) -> tuple[list[Finding], Experiment | None, Path]:
    """What is said of the config, the experiment, and the folder of its runs."""
    words, config_dir = split_config_dir(overrides)
    findings = list(_where(Path.cwd(), config_dir))
    if not words:
        cure = "infermesh doctor +experiment=NAME looks at its deployments, too"
        return [*findings, Finding("experiment", "ok", f"none given: {cure}")], None, OUTPUTS
    try:
        composed = compose(_named(words, config_dir), config_dir=config_dir)
        experiment = declare(composed.mapping, composed.roots, composed.overrides).experiment
    except ConfigError as error:
        cure = "mend it; infermesh run … --cfg job shows what is composed"
        return (
            [*findings, *(Finding("experiment", "fail", line, cure) for line in str(error).splitlines())],
            None,
            OUTPUTS,
        )
    stages, servers = len(experiment.stages), len(experiment.deployments)
    findings.append(Finding("experiment", "ok", f"{experiment.name}: {stages} stages, {servers} deployments"))
    folder = composed.folder
    return findings, experiment, OUTPUTS if folder is None else outputs_of(folder)


def _named(words: list[str], config_dir: Path | None) -> list[str]:
    """A bare name in the first place is the experiment."""
    first = words[0]
    return [f"+experiment={first}", *words[1:]] if first in experiments(Path.cwd(), config_dir) else words


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


_SHOWN = 20  # deployments that are well


def _few(findings: Sequence[Finding]) -> list[Finding]:
    """Without the deployments that are well beyond some: a cluster has hundreds, and one that fails is looked for."""
    well = [each for each in findings if each.about.startswith("deployment ") and each.state == "ok"][_SHOWN:]
    shown = [each for each in findings if each not in well]
    return (
        [*shown, Finding("deployments", "ok", f"{len(well)} more lines of deployments that are well")]
        if well
        else shown
    )


_COLOURS: dict[State, str] = {"ok": "32", "warn": "33", "fail": "31"}


def _print(findings: Sequence[Finding], as_json: bool) -> None:
    counts = {state: sum(each.state == state for each in findings) for state in _COLOURS}
    if as_json:
        listed = [asdict(each) for each in findings]
        print(orjson.dumps({"ok": not counts["fail"], "counts": counts, "findings": listed}).decode())
        return
    findings = _few(findings)
    width = max(len(each.about) for each in findings)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for each in findings:
        state = f"\033[{_COLOURS[each.state]}m{each.state:4}\033[0m" if coloured else f"{each.state:4}"
        print(f"{state}  {visible(each.about):{width}}  {visible(each.words)}")
        if each.do:
            print(f"{'':6}{'':{width}}  → {visible(each.do)}")
    print(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
