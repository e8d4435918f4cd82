"""What surrounds a start of Ray: its environment, its noise, its folders, and its errors in words."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from infermesh.hints import one_line

__all__ = ["FOLDERS", "no_prints", "prepare", "quieten", "refusal", "sweep"]

FOLDERS = "infermesh-ray-"  # and the hub's process: the folder of a Ray that a run has started for itself
logger = logging.getLogger("infermesh")


def prepare(address: str) -> bool:
    """Set what Ray reads from the environment, before it is imported; return whether calls carry a token."""
    environ = os.environ
    environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":
        environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        environ.setdefault("RAY_AUTH_MODE", "token")
        if environ["RAY_AUTH_MODE"] == "token" and not _has_token():
            environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif _has_token():
        environ.setdefault("RAY_AUTH_MODE", "token")
    return environ.get("RAY_AUTH_MODE", "").lower() not in ("", "disabled")


def _has_token() -> bool:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or (Path.home() / ".ray" / "auth_token").exists()


def quieten() -> None:
    """Let Ray's Python log to ``run.log``, and there only what it warns of. While it starts, it removes handlers."""
    theirs = logging.getLogger("ray")
    theirs.handlers[:] = [handler for handler in theirs.handlers if isinstance(handler, _ToLog)] or [_ToLog()]
    theirs.propagate = False
    theirs.setLevel(logging.WARNING)


def no_prints() -> Callable[[], None]:
    """Let what Ray would print on stdout of lost workers go to ``run.log``; returns what takes that back."""
    from ray._private import worker as theirs

    before = getattr(theirs, "print_to_stdstream", None)
    if before is None:
        return lambda: None

    def log(data: Any, *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            logger.info("ray: %s", one_line(line))

    vars(theirs)["print_to_stdstream"] = log
    return lambda: vars(theirs).update(print_to_stdstream=before)


def sweep() -> None:
    """Remove the folders of private Rays whose run was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with suppress(OSError, ValueError):
            if folder.stat().st_uid == os.getuid() and not _lives(int(folder.name.split("-")[2])):
                shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class _ToLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.log(logging.INFO, "ray: %s", one_line(record.getMessage()))


def refusal(address: str, error: Exception) -> str:
    said = one_line(str(error) or type(error).__name__)
    if "Version mismatch" in said:
        return f"engine.address: {address}: the cluster runs another Ray or Python: {said}"
    if "uthenticat" in said:
        return (
            f"engine.address: {address}: the cluster asks for a token that is not here: {said} Set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH, to the one that it was started with"
        )
    if address == "local":
        return f"engine.kind: ray: Ray does not start on this machine: {said}"
    if "exceeds" in said or ("size" in said and "working_dir" in said):
        return (
            f"engine.working_dir: ship: the project's folder is too large to be sent to the cluster: {said} "
            "Put engine.working_dir: shared where every node sees the folder under the same path"
        )
    token = "" if _has_token() else " It may ask for a token, and RAY_AUTH_TOKEN is not set."
    return (
        f"engine.address: {address}: no Ray there that this machine is part of: {said}.{token} Start one with ray "
        "start --head, run on one of its nodes, or use engine.address: local"
    )
