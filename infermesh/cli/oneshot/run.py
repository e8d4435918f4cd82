"""The work of ``generate``, ``embed`` and ``transcribe``.

One answer is sent and printed, and nothing is stored. A file of rows becomes an experiment of one stage with a run
folder, the checkpoint, so that ``--resume`` continues it:

- The checkpoint is beside the output, below ``--checkpoint-dir``, or temporary if the rows go to stdout.
- Rows from stdin or from the command line are copied into the checkpoint, because a resumed run reads its source again.
- Without ``--resume``, a command that finds an earlier output or checkpoint changes nothing and ends with an error,
  unless neither holds an answer: then it takes their place, and says so.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import typer

from infermesh.cli.common import fail, load_env
from infermesh.cli.oneshot.declare import as_flags, flags_mapping, is_template, refuse_secrets, without_none
from infermesh.cli.oneshot.options import (
    GenerateOptions,
    InputOptions,
    LimitOptions,
    ModelOptions,
    OutputOptions,
    WindowOption,
)
from infermesh.cli.terminal import discard_stdout
from infermesh.config.declaration import Declaration, declare
from infermesh.config.file_names import row_file
from infermesh.errors import InfermeshError
from infermesh.hints import counted, system_words

if TYPE_CHECKING:
    from infermesh.runs.stats import Observer
    from infermesh.store.output_file import Earlier

# Kind → the option that asks for one answer, the row's field it fills, the stage's key for a template.
ONE_ANSWER = {
    "generate": ("--prompt", "prompt", "prompt"),
    "embed": ("--text", "text", "text"),
    "transcribe": ("an audio file", "path", "audio"),
}
_KEPT_INPUTS = ("stdin.jsonl", "rows.jsonl")


@dataclass(slots=True)
class Command:
    """One call of a one-shot command. ``given`` is the prompt, text or audio files from the command line."""

    kind: str
    rows: InputOptions
    out: OutputOptions
    model: ModelOptions
    limits: LimitOptions
    window: WindowOption
    request: GenerateOptions | None = None
    given: str | list[str] | None = None
    stage: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    param: list[str] | None = None
    allow_paths: list[str] = field(default_factory=list)

    def run(self) -> NoReturn:
        """Send the requests, then exit with the command's exit code."""
        refuse_secrets(self.rows, self.out, self.model, self.request, self)
        load_env(self.model.env_file)
        flag = ONE_ANSWER[self.kind][0]
        if self.rows.input is None and self.given is None:
            fail(f"nothing to do: give {flag}, or --input-jsonl FILE", code=2)
        if self.rows.input is not None and isinstance(self.given, list):
            fail("give either audio files or --input-jsonl", code=2)
        if self.rows.input is None and self.out.output is None:
            if self.out.resume:
                fail("--resume continues a file of rows: it needs --input-jsonl or --output-jsonl", code=2)
            if self.out.keep_columns is not None:
                fail("--keep-columns repeats columns of a file of rows: it needs --input-jsonl", code=2)
            work: Callable[[], int] = self._print_answers
        else:
            work = self._run_file
        try:
            code = work()
        except InfermeshError as error:
            fail(self._as_flags(str(error)))
        except BrokenPipeError:
            exit_quietly()
        except OSError as error:
            fail(system_words(error, self.out.output or self.out.checkpoint_dir or "stdout"))
        raise typer.Exit(code)

    def declaration(self, source: Mapping[str, Any], **stage: Any) -> Declaration:
        """The experiment of one stage that this call describes."""
        mapping = flags_mapping(
            self.kind,
            source,
            self.model,
            self.limits,
            request=self.request,
            flags=self.flags,
            param=self.param or (),
            stage={**self.stage, **stage},
            window=self.window,
            keep_errors=self.out.keep_errors,
            allow_paths=self.allow_paths,
        )
        return declare(mapping, [Path.cwd()])

    def _print_answers(self) -> int:
        from infermesh.cli.oneshot.answer import print_answers

        rows = self._given_rows()
        parse = self.request is not None and self.request.parse_json
        many = isinstance(self.given, list) and len(rows) > 1
        job = self.declaration({"sql": "select 1"}, **row_input(self.kind, self.rows, self.given))
        return print_answers(job, rows, many=many, parse=parse)

    def _given_rows(self) -> list[dict[str, Any]]:
        name = ONE_ANSWER[self.kind][1]
        values = self.given if isinstance(self.given, list) else [self.given]
        return [{name: value} for value in values]

    def _run_file(self) -> int:
        output = self._output_path()
        with _checkpoint(output, self.rows.input, self.out.checkpoint_dir) as folder:
            replaced = self._refuse_earlier_run(output, folder)
            return self._execute(output, folder, replaced)

    def _execute(self, output: Path | None, folder: Path, replaced: str | None) -> int:
        from infermesh.cli.closing import oneshot_closing
        from infermesh.cli.progress import make_observer
        from infermesh.runs.execute import execute
        from infermesh.runs.output_files import LineFile, LineStream, ParquetFile, Sink
        from infermesh.store.folders import discard, remove_database

        how: dict[str, Any] = {"rerun_changed": self.out.rerun_changed, "keep": self._kept_columns()}
        if output is None:
            sink: Sink = LineStream(self.kind, sys.stdout.buffer, **how)
        elif row_file(output).format == "parquet":
            sink = ParquetFile(self.kind, output, **how)
        else:
            sink = LineFile(self.kind, output, **how)
        kept_inputs = () if folder.exists() and replaced is None else _KEPT_INPUTS  # an earlier call's files stay
        try:
            source = without_none({"path": self._source_path(folder), "encoding": self.rows.input_encoding})
            job = self.declaration(source, **row_input(self.kind, self.rows, self.given))
        except InfermeshError:
            discard(folder, kept_inputs, with_parent=False)
            raise
        if replaced is not None:
            print(replaced, file=sys.stderr)
            remove_database(folder)
            if output is not None:
                output.unlink(missing_ok=True)
        observer = _Notes(make_observer(), self._as_flags)
        outcome = execute(job, folder, observer=observer, sink=sink, written=kept_inputs)
        lasting = output is not None or self.out.checkpoint_dir is not None
        print(oneshot_closing(outcome, output, folder if lasting else None), file=sys.stderr)
        return outcome.exit_code

    def _as_flags(self, message: str) -> str:
        return as_flags(message, toml=self.model.deployments_toml is not None)

    def _kept_columns(self) -> list[str]:
        """The names of ``--keep-columns``. As in CSV, one with a comma in it stands in quotes."""
        if self.out.keep_columns is None:
            return []
        names = next(csv.reader([self.out.keep_columns], skipinitialspace=True), [])
        found = [name.strip() for name in names if name.strip()]
        if not found:
            fail("--keep-columns: expected names of columns with commas between them, or all", code=2)
        return found

    def _source_path(self, folder: Path) -> str:
        """The source's path. Rows from stdin or the command line are written into the checkpoint first."""
        given = self.rows.input
        if given is None:
            lines = b"".join(orjson.dumps(row) + b"\n" for row in self._given_rows())
            return str(_write_if_changed(folder / "rows.jsonl", lines).resolve())
        if given == "-":
            return str(_keep_stdin(folder / "stdin.jsonl", resume=self.out.resume).resolve())
        if row_file(given).format is None:
            fail(f"--input-jsonl {given}: expected a .jsonl, .csv, .tsv or .parquet file, or - for stdin", code=2)
        return given

    def _output_path(self) -> Path | None:
        given = self.out.output
        if given is None or given in ("-", "/dev/stdout"):
            if self.out.resume and self.out.checkpoint_dir is None:
                fail("--resume without --output-jsonl needs --checkpoint-dir: there is nothing to continue", code=2)
            return None
        output = Path(given)
        if row_file(output) not in (("jsonl", None), ("parquet", None)):
            fail(f"--output-jsonl {given}: expected a .jsonl or .parquet file", code=2)
        if output.is_dir() or not output.resolve().parent.is_dir():
            fail(
                f"--output-jsonl {given}: {'it is a folder' if output.is_dir() else 'its folder does not exist'}",
                code=2,
            )
        return output

    def _refuse_earlier_run(self, output: Path | None, folder: Path) -> str | None:
        """Exit with an error rather than overwrite answers, or append to an output whose checkpoint is gone.

        Returns
        -------
        str or None
            What an earlier command has left and this one takes the place of, in words; ``None`` if there is nothing
            to replace.
        """
        from infermesh.store.output_file import without_answers
        from infermesh.store.schema import DATABASE

        checkpoint, written = (folder / DATABASE).exists(), output is not None and output.exists()
        if self.out.resume and checkpoint:
            return None
        if not checkpoint and not written:
            return None
        earlier = without_answers(folder / DATABASE) if checkpoint else None
        if (not checkpoint or earlier is not None) and (output is None or _holds_nothing(output, earlier)):
            names = [str(output)] if written else []
            if checkpoint:
                names.append(str(folder))
            failed = f" ({counted(earlier.failed, 'failed row')})" if earlier is not None and earlier.failed else ""
            return f"{' and '.join(names)} from before: no answer is in there{failed}, so this command starts anew"
        if self.out.resume:
            fail(
                f"{output} exists, but its checkpoint {folder} does not. Put the checkpoint back, or move the file "
                "away, or choose another --output-jsonl. Nothing was changed."
            )
        if written:
            fail(f"{output} exists. --resume continues it; or move it away, or choose another --output-jsonl.")
        fail(f"{folder} holds the checkpoint of an earlier run. --resume continues it; or delete the folder.")


class _Notes:
    """Shows what an observer shows, with notes that name flags where they name keys of a declaration."""

    def __init__(self, observer: Observer, as_flags: Callable[[str], str]) -> None:
        self.start, self.tick, self.stop = observer.start, observer.tick, observer.stop
        self._note, self._as_flags = observer.note, as_flags

    def note(self, text: str) -> None:
        self._note(self._as_flags(text))


def _holds_nothing(output: Path, earlier: Earlier | None) -> bool:
    """Whether an output is missing, empty, or just as a checkpoint without answers describes it."""
    from infermesh.store.output_file import digest_of

    if not output.exists():
        return True
    if output.is_symlink() or not output.is_file():
        return False
    return not output.stat().st_size or (earlier is not None and digest_of(output) == earlier.file)


def row_input(kind: str, rows: InputOptions, given: str | list[str] | None) -> dict[str, str]:
    """The stage's key for the rows' input: a mapper, or the template from the command line."""
    flag, _, key = ONE_ANSWER[kind]
    if rows.input is None or not isinstance(given, str):
        return {"mapper": rows.mapper or "row"}
    if rows.mapper is not None:
        fail(f"give either {flag} or --mapper with --input-jsonl", code=2)
    if not is_template(given):
        fail(
            f"{flag} with --input-jsonl is a template over the rows' columns, as in '{{{{ {key} }}}}', and this one "
            "names none: every row would send the same request",
            code=2,
        )
    return {key: given}


@contextlib.contextmanager
def _checkpoint(output: Path | None, given: str | None, parent: Path | None) -> Iterator[Path]:
    """The checkpoint's folder; a temporary one if the rows go to stdout.

    Below ``--checkpoint-dir``, a hash of the path keeps apart two outputs of the same name.
    """
    if parent is not None:
        name = output.name if output is not None else "stdout"
        what = output if output is not None else Path(given or "-")
        digest = hashlib.blake2b(str(what.resolve()).encode(), digest_size=4).hexdigest()
        yield parent / f"{name}-{digest}"
    elif output is not None:
        yield output.with_name(f"{output.name}.infermesh")
    else:
        with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
            yield Path(folder)


def _write_if_changed(path: Path, lines: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != lines:
        path.write_bytes(lines)
    return path


def _keep_stdin(path: Path, *, resume: bool) -> Path:
    """Copy stdin into a file. A resumed run without input keeps what came the first time.

    The copy replaces the file when it is complete: a kill meanwhile must not leave half the rows as the source.
    """
    kept = resume and path.exists()
    if kept and sys.stdin.isatty():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving = path.with_suffix(".part")
    with open(arriving, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if kept and not arriving.stat().st_size:
        arriving.unlink()
    else:
        os.replace(arriving, path)
    return path


def exit_quietly() -> NoReturn:
    """Exit with 0 after the reader of stdout has gone (``| head``)."""
    discard_stdout()
    raise typer.Exit(0)
