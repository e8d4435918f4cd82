"""Telling others how a run has ended: JSON by POST to a URL, or on the stdin of a command.

It is another process that tells, which nobody waits for: a run ends when it ends, and with its own exit code. What that
process says goes to ``notify.log`` in the run's folder. A URL, which may be all that it takes to write somewhere, goes
to it over a pipe, and stands neither on a command line nor in that file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infermesh.config.schema import NotifyConfig
from infermesh.hints import command, one_line
from infermesh.redaction import redact
from infermesh.runs.outcome import EXIT_CODES, RunOutcome

__all__ = ["NOTIFY_LOG", "facts_of", "notify"]

NOTIFY_LOG = "notify.log"
_KINDS = {"done": "done", "failed_rows": "failed", "crashed": "failed"}  # any other status: stopped
_URL = re.compile(r"https?://", re.IGNORECASE)
_POST_S = 30.0
_FAILURES, _CHARACTERS = 5, 300


def facts_of(
    experiment: str, folder: Path, status: str, *, outcome: RunOutcome | None = None, reason: str | None = None
) -> dict[str, Any]:
    """How a run has ended, as JSON has it; without keys in what servers have said."""
    place = str(folder.absolute())
    facts: dict[str, Any] = {
        "experiment": experiment,
        "status": status,
        "folder": place,
        "exit_code": EXIT_CODES.get(status, 1),
        "reason": None if reason is None else redact(one_line(reason, _CHARACTERS)),
        "resume": command("resume", place),
    }
    counts: Mapping[str, Mapping[str, int]] = {}
    if outcome is not None:
        counts = outcome.counts
        facts |= {
            "exit_code": outcome.exit_code,
            "elapsed_s": round(outcome.elapsed_s, 3),
            "stages": outcome.counts,
            **outcome.totals,
            "failures": [
                {
                    "stage": stage,
                    "error_type": kind,
                    "rows": rows,
                    "example": redact(one_line(words or "", _CHARACTERS)),
                }
                for stage, kind, rows, words in outcome.failures[:_FAILURES]
            ],
            "report": None if outcome.report is None else str(outcome.report.absolute()),
        }
    total = {name: sum(stage.get(name, 0) for stage in counts.values()) for name in ("done", "error", "pending")}
    facts |= {"done": total["done"], "failed": total["error"], "pending": total["pending"]}
    why = f": {facts['reason']}" if facts["reason"] else ""
    # Slack, Mattermost, Teams and others show the field `text` of what is posted to them.
    facts["text"] = (
        f"{experiment}: {status}{why} ({facts['done']:,} done, {facts['failed']:,} failed, "
        f"{facts['pending']:,} pending) in {place}"
    )
    return facts


def notify(config: NotifyConfig, facts: Mapping[str, Any], folder: Path) -> str | None:
    """Start what tells of a run's end, if anybody is to be told; returns why that could not be started, in words."""
    kind = _KINDS.get(facts["status"], "stopped")
    target: str | None = getattr(config, kind)
    if not target:
        return None
    sent = json.dumps({**facts, "event": kind}, default=str)
    is_url = _URL.match(target) is not None
    told = json.dumps({"url": target, "facts": sent}) if is_url else sent
    variables = {
        f"INFERMESH_{name.upper()}": "" if value is None else str(value)
        for name, value in facts.items()
        if not isinstance(value, list | dict)
    }
    try:
        with open(folder / NOTIFY_LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "infermesh.runs.notify"] if is_url else target,
                shell=not is_url,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **variables, "INFERMESH_EVENT": kind},
                start_new_session=True,
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(told.encode())  # less than a pipe holds
        process.returncode = 0  # nobody waits for it
    except OSError as error:
        return f"notify.{kind}: it could not be started: {redact(one_line(error, _CHARACTERS))}"
    return None


def _post() -> None:
    """The process that posts: what to post, and where, comes on stdin."""
    told = json.load(sys.stdin)
    request = urllib.request.Request(
        told["url"], told["facts"].encode(), {"Content-Type": "application/json", "User-Agent": "infermesh"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_POST_S) as answer:
            print(f"posted: {answer.status}")
    except urllib.error.HTTPError as error:
        print(f"not posted: HTTP {error.code}")
    except (OSError, ValueError) as error:
        print(f"not posted: {type(error).__name__}: {redact(one_line(getattr(error, 'reason', error), _CHARACTERS))}")


if __name__ == "__main__":
    _post()
