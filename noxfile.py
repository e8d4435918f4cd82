"""Every check of the project in one command: ``nox``. One of them: ``nox -s lint``; the quick ones: ``nox -t quick``.

The checks run in the environment that holds nox, the one that ``pip install -e '.[dev]'`` filled, so that nothing is
installed twice. Only ``tests`` and ``package`` make environments of their own: the suite under every supported Python
(``nox -s tests``; one that is not installed is skipped), and the built wheel on its own (``nox -s package``). So does
``nox -s audit``, which needs the network and is skipped without it.
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "layers", "changes", "coverage"]

PYTHONS = nox.project.python_versions(nox.project.load_toml())


@nox.session(python=False, tags=["quick"])
def lint(session: nox.Session) -> None:
    """Style and format, by ruff. To mend what can be mended: ruff check --fix . && ruff format ."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=False, tags=["quick"])
def types(session: nox.Session) -> None:
    """Types, by mypy in strict mode."""
    session.run("mypy")


@nox.session(python=False, tags=["quick"])
def layers(session: nox.Session) -> None:
    """Who may import whom, by import-linter; the contracts are in pyproject.toml."""
    session.run("lint-imports")


@nox.session(python=False, tags=["quick"])
def changes(session: nox.Session) -> None:
    """The fragments in changelog.d/ make a changelog."""
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session(python=False, tags=["quick"])
def docs(session: nox.Session) -> None:
    """The site of docs/, with every link."""
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(python=False)
def coverage(session: nox.Session) -> None:
    """The tests under this Python, and how much of the package they run; the floor is in pyproject.toml."""
    session.run("pytest", "-m", "long or not long", "--cov", "--cov-report=term:skip-covered", *session.posargs)


@nox.session(python=False)
def browser(session: nox.Session) -> None:
    """The pages in a real Chromium: pip install -e '.[browser]' and, on Debian, apt-get install chromium."""
    session.run("pytest", "-m", "browser", "tests/pages", *session.posargs)


@nox.session(python=False)
def long(session: nox.Session) -> None:
    """The tests that ``pytest`` leaves out, since they take seconds each; and the trials with kills at random."""
    session.run("pytest", "-m", "long", *session.posargs)
    session.run("pytest", "-m", "chaos", "tests/chaos", "-n", "0", "-s", "-o", "faulthandler_timeout=900")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, in an environment for each Python. Arguments go to pytest: nox -s tests-3.12 -- tests/limits"""
    session.install("-e", ".[dev]")
    session.run("pytest", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """The wheel, built from the sdist and installed alone, runs the quickstart away from the sources."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)
        session.install("--force-reinstall", str(next(Path(folder).glob("*.whl"))))
        session.chdir(folder)
        session.run("infermesh", "run", "+experiment=quickstart")


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what the package depends on, by pip-audit and the package index's own list."""
    try:
        urllib.request.urlopen("https://pypi.org/pypi/pip/json", timeout=10).close()
    except (urllib.error.URLError, TimeoutError) as error:
        session.skip(f"https://pypi.org, which lists vulnerabilities, cannot be asked: {error}")
    found = Path(session.create_tmp()) / "audit.json"
    try:
        session.install("pip-audit")
        session.run("pip-audit", "--progress-spinner", "off", "-f", "json", "-o", str(found), ".", success_codes=[0, 1])
        report = json.loads(found.read_text())["dependencies"]
    except (nox.command.CommandFailed, OSError, ValueError) as error:
        session.skip(f"pip-audit could not ask the index: {error}")
    known = [(each["name"], each["version"], one["id"]) for each in report for one in each.get("vulns", ())]
    looked_up = sum("vulns" in each for each in report)
    if not looked_up:
        session.skip(f"the index has no list for any of the {len(report)} packages")
    session.log(f"{looked_up} of {len(report)} packages looked up, {len(known)} known vulnerabilities")
    if known:
        session.error("; ".join(f"{name} {version}: {one}" for name, version, one in known))
