"""What is installed and where the process runs: versions, disk, places, file descriptors, terminal."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from infermesh import __version__
from infermesh.cli.doctor.findings import Finding
from infermesh.hints import counted, system_words
from infermesh.runtime.openfiles import SPARE, allow_requests

_PYTHON = SpecifierSet(">=3.11")
# Versions that must not be used, whatever else is asked of them, and the page that says so.
_BAD = (
    (
        "litellm",
        SpecifierSet(">=1.82.7,<=1.82.8"),  # https://github.com/BerriAI/litellm/issues/24518
        "its package was replaced by one that steals keys",
        "remove this environment, replace every key that this machine knows, then pip install --upgrade litellm",
    ),
)
_LOW_BYTES, _LEAST_BYTES = 5 << 30, 256 << 20
_LOW_INODES = 1000
_GIB = 1 << 30


def versions() -> Iterator[Finding]:
    """This package, Python, and every library that this package asks for."""
    where = f"{platform.system()} {platform.machine()}, {sys.prefix}"
    yield Finding("infermesh", "ok", f"{__version__} ({Path(__file__).resolve().parents[2]})")
    python = platform.python_version()
    if python not in _PYTHON:
        yield Finding("python", "fail", f"{python} ({where})", "make an environment with Python 3.11 or newer")
    else:
        yield Finding("python", "ok", f"{python} ({where})")
    yield from _libraries()


def _libraries() -> Iterator[Finding]:
    try:
        asked = [Requirement(text) for text in metadata.requires("infermesh") or []]
    except metadata.PackageNotFoundError:
        yield Finding("libraries", "warn", "infermesh is not installed here", "pip install -e . (or the wheel)")
        return
    right = 0
    for requirement in asked:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(
                "libraries", "fail", f"{requirement.name} is missing", f'pip install "{_pip_form(requirement)}"'
            )
            continue
        for name, bad, why, cure in _BAD:
            if name == requirement.name and version in bad:
                yield Finding("libraries", "fail", f"{name} {version}: {why}", cure)
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                "libraries",
                "fail",
                f"{requirement.name} {version}, where {requirement.specifier} is needed",
                f'pip install "{_pip_form(requirement)}"',
            )
            continue
        right += 1
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("duckdb", "hydra-core", "litellm", "pydantic"))
    yield Finding("libraries", "ok", f"{right} of the required ones fit: {shown}, …")


def _pip_form(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def places(outputs: Path) -> Iterator[Finding]:
    """Whether a run can write where it has to."""
    for about, folder, use in (
        ("outputs", outputs, "name another place with hydra.run.dir=DIR, or change its rights"),
        ("temporary", Path(tempfile.gettempdir()), "name another folder with TMPDIR=DIR"),
    ):
        existing = _existing(folder)
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield Finding(f"{about} folder", "fail", system_words(error, existing), use)
        else:
            new = "" if existing == folder.absolute() else " (made by the first run)"
            yield Finding(f"{about} folder", "ok", f"{folder.absolute()} can be written{new}")


def disk(outputs: Path) -> Iterator[Finding]:
    """Free bytes and files where runs land."""
    existing = _existing(outputs)
    usage = shutil.disk_usage(existing)
    words = f"{usage.free / _GIB:,.1f} GiB free at {existing.absolute()}"
    if usage.free < _LEAST_BYTES:
        yield Finding("disk", "fail", words, "make room, or run elsewhere: hydra.run.dir=DIR")
    elif usage.free < _LOW_BYTES:
        yield Finding("disk", "warn", words, "make room before a large run: its rows and answers are stored there")
    else:
        yield Finding("disk", "ok", words)
    if hasattr(os, "statvfs"):
        left = os.statvfs(existing)
        if left.f_files and left.f_favail < _LOW_INODES:
            yield Finding(
                "disk",
                "fail",
                f"{counted(left.f_favail, 'file (inode) is', 'files (inodes) are')} left there",
                "remove some files",
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next((each for each in (absolute, *absolute.parents) if each.is_dir()), Path.cwd())


def descriptors(at_once: int | None) -> Iterator[Finding]:
    """Open files against the requests that may be in flight; ``None``: no experiment says how many."""
    warning = allow_requests(at_once or 1)
    if warning is not None:
        words, _, cure = warning.partition(". ")
        yield Finding("file descriptors", "fail", words, cure)
        return
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard:,}"
    needed = f"; {at_once + SPARE:,} are needed for {counted(at_once, 'request')} at once" if at_once else ""
    low = at_once is None and hard != resource.RLIM_INFINITY and hard < 4096
    yield Finding(
        "file descriptors",
        "warn" if low else "ok",
        f"{most}{needed}",
        f"enough for {counted(max(hard - SPARE, 1), 'request')} at once; for more: ulimit -n 65536" if low else "",
    )


def terminal() -> Iterator[Finding]:
    """Where progress goes, and whether every letter can be shown."""
    encoding = (sys.stderr.encoding or "").lower()
    if encoding.replace("-", "") not in ("utf8", "cp65001"):
        cure = "export PYTHONIOENCODING=utf-8 (or LC_ALL=C.UTF-8)"
        yield Finding("terminal", "warn", f"its encoding is {encoding or 'unknown'}: letters are lost", cure)
    if not sys.stderr.isatty():
        yield Finding("terminal", "ok", "none: progress comes as plain lines")
    elif os.environ.get("TERM") in (None, "", "dumb"):
        yield Finding("terminal", "ok", "TERM is dumb or not set: progress comes as plain lines")
    else:
        columns, lines = shutil.get_terminal_size()
        narrow = columns < 60
        cure = "make the window wider: tables are cut" if narrow else ""
        yield Finding("terminal", "warn" if narrow else "ok", f"{columns} × {lines}, {os.environ['TERM']}", cure)
