"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import ROOT

_PACKAGES = (
    *("pyreqwest", "pyqwest", "aiohttp", "openai", "litellm", "flexllm"),
    *("httptools", "uvloop", "orjson", "duckdb", "pydantic", "jinja2"),
)


def describe() -> list[list[str]]:
    """Label and value of everything that decides the numbers."""
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    return [
        ["date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"],
        ["infermesh", _revision()],
        ["CPU", f"{_cpu_model()}, {os.cpu_count()} cores"],
        ["memory", _memory()],
        ["operating system", f"{_system()}, {platform.machine()}"],
        ["Python", f"{platform.python_implementation()} {platform.python_version()}"],
        ["packages", packages],
        ["static endpoint", _nginx() or "the Python server of benchmarks/endpoint.py"],
        ["load before", _load()],
    ]


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def _output(*command: str) -> str:
    """What a command says, stderr included; empty where there is no such command."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if not done.returncode else ""


def _revision() -> str:
    from infermesh import __version__

    revision, changed = _output("git", "rev-parse", "--short", "HEAD"), _output("git", "status", "--porcelain", "-uno")
    return " ".join(filter(None, [__version__, revision, "with changes" if changed else ""]))


def _fields(path: str) -> dict[str, str]:
    """``name: value`` lines of a file of the kernel's; empty elsewhere."""
    with suppress(OSError):
        lines = (line.partition(":") for line in Path(path).read_text().splitlines())
        return {name.strip(): value.strip() for name, _, value in lines if value}
    return {}


def _cpu_model() -> str:
    mac = _output("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else ""
    return _fields("/proc/cpuinfo").get("model name") or mac or platform.processor() or "unknown"


def _memory() -> str:
    kilobytes = _fields("/proc/meminfo").get("MemTotal", "").removesuffix(" kB")
    return f"{int(kilobytes) / 1e6:.0f} GB" if kilobytes else "unknown"


def _system() -> str:
    with suppress(OSError):
        release = platform.freedesktop_os_release()
        return f"{release.get('PRETTY_NAME', 'Linux')}, kernel {platform.release()}"
    return f"{platform.system()} {platform.release()}"


def _nginx() -> str:
    return _output("nginx", "-v").removeprefix("nginx version: ") if shutil.which("nginx") else ""


def _load() -> str:
    try:
        minute, *_ = os.getloadavg()
    except OSError:
        return "unknown"
    return f"{minute:.2f} processes, over the last minute"
