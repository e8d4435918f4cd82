"""The row of table ``run``: what was run, from which revision, with which versions."""

from __future__ import annotations

import subprocess


def git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
