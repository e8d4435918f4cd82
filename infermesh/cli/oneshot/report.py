"""What a one-shot command says at its end."""

from __future__ import annotations

from pathlib import Path

from infermesh.runs.outcome import RunOutcome

_VERBS = {"done": "complete", "failed_rows": "finished, with failed rows", "interrupted": "interrupted"}
_WORDS = {"done": "done", "error": "failed", "pending": "not done"}


def closing(outcome: RunOutcome, output: Path | None, folder: Path | None) -> str:
    """What was done, where it is, how to ask it, what failed, how to go on. ``folder``: a checkpoint that lasts."""
    totals = outcome.totals
    counts = outcome.counts[outcome.experiment]
    cost = "" if totals["cost_usd"] is None else f", ${totals['cost_usd']:.4f}"
    rows = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts.get(status)) or "no rows"
    lines = [
        f"{outcome.experiment}: {_VERBS[outcome.status]} in {outcome.elapsed_s:.1f} s: {rows} ({totals['requests']} "
        f"requests, {totals['prompt_tokens'] + totals['completion_tokens']} tokens{cost})"
    ]
    if output is not None:
        lines.append(f"  output    {output}")
    if folder is not None:
        lines.append(f'  query     infermesh sql "select * from results limit 5" --run {folder}')
    for _, kind, count, example in outcome.failures[:3]:
        lines.append(f"  failures  {count} × {kind}: {(example or '').splitlines()[0][:160]}")
    if outcome.status != "done" and folder is not None:
        again = "tries the failed rows again" if outcome.status == "failed_rows" else "sends only what is left"
        lines.append(f"  resume    the same command with --resume   ({again})")
    return "\n".join(lines)
