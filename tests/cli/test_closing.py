"""The message at the end of a command that was stopped: the flag that stopped it, the server's words, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from infermesh.cli.closing import oneshot_closing
from infermesh.runs.outcome import RunOutcome


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (
            "guards.first_errors is 20: the first 20 rows of embed have all failed with auth: see the source, "
            "guards.md and models.model.card",
            "--first-errors is 20: the first 20 rows of embed have all failed with auth: see the source, "
            "guards.md and models.model.card; correct the command and give it again; --first-errors 0 goes on all the "
            "same",
        ),
        (
            "models.model.max_wait_unreachable is 600 s, and nobody answers: d: connection refused",
            "--max-wait-unreachable is 600 s, and nobody answers: d: connection refused; start what it waited for to "
            "continue",
        ),
    ],
)
def test_why_a_command_stopped(tmp_path: Path, reason: str, line: str) -> None:
    counts = {"embed": {"error": 20, "pending": 5}}
    totals = {"requests": 20, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": None}
    failures = [("embed", "auth", 20, "see the source at https://models.model.example/")]
    outcome = RunOutcome(tmp_path, "embed", "stopped", counts, failures, totals, 1.0, reason=reason)
    said = oneshot_closing(outcome, tmp_path / "out.jsonl", tmp_path)
    assert f"  stopped   {line}\n" in said
    assert "auth: see the source at https://models.model.example/" in said
    assert "the same command with --resume" in said
