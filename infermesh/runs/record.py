"""The row of table ``run``: the declaration, the git revision, the versions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
import uuid
from collections.abc import Mapping
from typing import Any

from infermesh.config.declaration import Declaration
from infermesh.exact_json import dumps
from infermesh.store.database import utcnow

_VERSIONS_OF = ("infermesh", "duckdb")


def run_record(
    declaration: Declaration, signatures: Mapping[str, str], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Make the values of a ``run`` row: column name → value, JSON columns as text.

    Parameters
    ----------
    signatures
        Stage → the hash of everything that decides its answers.
    facts
        Stage → the same as names and values, so that a later session can report what an edit has changed.
    """
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
    overrides = declaration.overrides
    return {
        "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
        "experiment": declaration.experiment.name,
        "config": _json(declaration.mapping),  # not sorted: the order of stages and columns has a meaning
        "config_hash": declaration.hash,
        "git_revision": _git_revision(),
        "versions": _json(versions | {"python": platform.python_version()}),
        "started_at": utcnow(),
        "signatures": _json(signatures),
        "facts": dumps(facts, default=str).decode(),
        "roots": _json([str(root) for root in declaration.roots]),
        "overrides": None if overrides is None else _json(list(overrides)),
    }


def _json(value: Any) -> str:
    return dumps(value).decode()


def _git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
