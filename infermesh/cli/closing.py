"""The message at the end of a run: how it ended, where the results are, what failed, how to continue."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from infermesh.cli.edited import run_command
from infermesh.cli.status import batch_lines
from infermesh.errors import StoreError
from infermesh.hints import command, counted, one_line
from infermesh.query.glance import first_query_of
from infermesh.query.reader import RunReader
from infermesh.runs.outcome import RunOutcome, StageTotals
from infermesh.runs.progress import short

_STATUS_WORDS = {
    "done": "complete",
    "failed_rows": "finished, with failed rows",
    "interrupted": "interrupted",
    "stopped": "stopped by a guard",
    "waiting": "waits for its batches",
}
_COUNT_WORDS = {"done": "done", "error": "failed", "skipped": "skipped", "pending": "pending"}
_FIGURES: dict[str, Callable[[StageTotals], str]] = {
    "reused": lambda found: f"{found.reused:,}" if found.reused else "",
    "rows/s": lambda found: "" if found.rows_per_s is None else short(found.rows_per_s),
    "tokens": lambda found: f"{found.tokens:,}" if found.tokens else "",
    "cost": lambda found: "" if found.cost_usd is None else f"${found.cost_usd:.4f}",
}
_EXAMPLE_CHARACTERS = 160
_FAILURE_LINES = 5


def run_closing(outcome: RunOutcome, *, brief: bool = False) -> str:
    """The message of ``infermesh run``, ``resume`` and ``retry``; ``brief`` leaves out what to do next."""
    lines = [
        f"{_ending(outcome)} ({_totals(outcome)})",
        *_stage_table(outcome),
        *([f"  kept      {counted(outcome.kept, 'answer')} whose request is unchanged"] if outcome.kept else []),
        *([f"  reused    {counted(outcome.reused, 'answer')} to identical requests"] if outcome.reused else []),
        *_invalid_lines(outcome),
    ]
    if outcome.batches is not None:
        lines += [f"  batches   {line}" for line in batch_lines(outcome.batches)]
        if outcome.batches.out:
            lines.append(f"            they take up to a day: {command('batches', outcome.folder)}")
    if outcome.status == "stopped":
        lines.insert(1, f"  stopped   {outcome.reason}; {_how_to_continue(outcome)}")
    if brief:
        return "\n".join(lines)
    lines += [f"  folder    {outcome.folder}", _query_line(outcome, outcome.folder)]
    lines += [f"  report    {outcome.report}"] if outcome.report is not None else []
    lines += [f"  written   {file}" for file in outcome.files.written]
    if outcome.invalid:
        again = command("retry", outcome.folder, "--stage", outcome.invalid[0][0], "--where", "invalid is not null")
        lines.append(f"  again     {again}")
    if outcome.failures:
        stage = outcome.failures[0][0]
        lines += _failure_lines(outcome, _FAILURE_LINES)
        lines.append(
            f'            infermesh sql "select row_id, error_type, error from {stage} '
            f"where status = 'error'\" {_run_option(outcome.folder)}"
        )
    if outcome.status != "stopped" or _waited(outcome) or _at_once(outcome):
        lines.append(f"  resume    {command('resume', outcome.folder)}   ({_what_resuming_does(outcome)})")
    if _at_once(outcome):
        lines.append(f"  rerun     {run_command(outcome.folder)}   (after an edit of the experiment; as resume does)")
    if outcome.status == "stopped" and not _waited(outcome):
        lines.append(f"  continue  {run_command(outcome.folder, without=_guard(outcome))}")
    return "\n".join(lines)


def oneshot_closing(outcome: RunOutcome, output: Path | None, checkpoint: Path | None) -> str:
    """The message of ``generate``, ``embed`` and ``transcribe`` over a file of rows.

    Parameters
    ----------
    output
        The file that was written; ``None`` for stdout.
    checkpoint
        The run's folder; ``None`` if it is temporary.
    """
    counts = outcome.counts[outcome.experiment]
    lines = [f"{_ending(outcome)}: {_count_words(counts)} ({_totals(outcome)})"]
    if outcome.status == "stopped":
        lines.append(f"  stopped   {_stopped_command(outcome)}")
    if output is not None:
        lines.append(f"  output    {output}")
    if checkpoint is not None:
        lines.append(_query_line(outcome, checkpoint))
    lines += _invalid_lines(outcome)
    lines += _failure_lines(outcome, _FAILURE_LINES)
    if outcome.status != "done" and checkpoint is not None:
        lines.append(f"  resume    the same command with --resume   ({_what_resuming_does(outcome)})")
    return "\n".join(lines)


def _stopped_command(outcome: RunOutcome) -> str:
    """Why a command stopped, with the flag that says so in the place of the key."""
    key, _, words = (outcome.reason or "").partition(" ")
    if _at_once(outcome):
        return f"--first-errors {words}; correct the command and give it again; --first-errors 0 goes on all the same"
    return f"--{key.rpartition('.')[2].replace('_', '-')} {words}; {_how_to_continue(outcome)}"


def _ending(outcome: RunOutcome) -> str:
    return f"{outcome.experiment}: {_STATUS_WORDS[outcome.status]} in {outcome.elapsed_s:.1f} s"


def _totals(outcome: RunOutcome) -> str:
    totals = outcome.totals
    cost = "" if totals["cost_usd"] is None else f", ${totals['cost_usd']:.4f}"
    tokens = totals["prompt_tokens"] + totals["completion_tokens"]
    return f"{counted(totals['requests'], 'request')}, {counted(tokens, 'token')}{cost}"


def _count_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[key]} {word}" for key, word in _COUNT_WORDS.items() if counts.get(key)) or "no rows"


def _stage_table(outcome: RunOutcome) -> Iterator[str]:
    """A line for each stage, under a heading. A column that no stage has anything in is left out."""
    columns: list[list[str]] = [["stage", *outcome.counts]]
    for status, word in _COUNT_WORDS.items():
        values = [counts.get(status, 0) for counts in outcome.counts.values()]
        if any(values) or status == "done":
            columns.append([word, *(f"{value:,}" for value in values)])
    further = [outcome.stages.get(name) for name in outcome.counts]
    for word, shown in _FIGURES.items():
        texts = ["" if found is None else shown(found) for found in further]
        if any(texts):
            columns.append([word, *texts])
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        cells = [f"{line[0]:<{widths[0]}}"]
        cells += [f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True)]
        yield f"  {'  '.join(cells)}".rstrip()


def _run_option(folder: Path) -> str:
    return f"--run {shlex.quote(str(folder))}"  # the query beside it is quoted as people quote one


def _query_line(outcome: RunOutcome, folder: Path) -> str:
    try:
        with RunReader(folder) as reader:
            query = first_query_of(reader, outcome.counts)
    except StoreError:  # another process has opened it meanwhile
        query = "from progress"
    shown = shlex.quote(query) if '"' in query else f'"{query}"'
    return f"  query     infermesh sql {shown} {_run_option(folder)}"


def _failure_lines(outcome: RunOutcome, most: int) -> Iterator[str]:
    for stage, kind, rows, example in outcome.failures[:most]:
        yield f"  failures  {rows} × {stage}: {kind}: {one_line(example or '', _EXAMPLE_CHARACTERS)}"
    if left := outcome.failures[most:]:
        rows = sum(rows for _, _, rows, _ in left)
        yield f"  failures  {rows} of {counted(len(left), 'further kind')} (infermesh status)"


def _invalid_lines(outcome: RunOutcome) -> Iterator[str]:
    for stage, rows, example in outcome.invalid:
        yield f"  invalid   {rows} × {stage}: answers without 'parsed': {one_line(example, _EXAMPLE_CHARACTERS)}"


def _what_resuming_does(outcome: RunOutcome) -> str:
    if outcome.status == "done":
        return "nothing is left to send"
    if outcome.status == "failed_rows":
        return "retries the failed rows"
    if _at_once(outcome):
        return "sends the failed rows and what is left, under the stored config"
    if outcome.status == "waiting":
        return "collects what is back, and waits for the rest"
    return "sends only what is left"


def _waited(outcome: RunOutcome) -> bool:
    """Whether the run stopped since nobody answered: no guard has to go then."""
    return (outcome.reason or "").startswith("models.")


def _at_once(outcome: RunOutcome) -> bool:
    """Whether the run stopped since its first rows all failed alike: once that is mended, the guard may stay."""
    return (outcome.reason or "").startswith("guards.first_errors")


def _how_to_continue(outcome: RunOutcome) -> str:
    if _waited(outcome):
        return "start what it waited for to continue"
    if _at_once(outcome):
        return "mend it and go on, or go on all the same without that guard"
    return "raise or remove that guard to continue"


def _guard(outcome: RunOutcome) -> str:
    return (outcome.reason or "guards").split()[0].rstrip(":")
