"""A stage's rows as JSON lines or Parquet, in a file or on stdout, with the run's database as their checkpoint.

A line is written in the writer's thread, after the commit of its row, so the output never holds a row that the
checkpoint does not. The checkpoint stores the size and the hash of what was written (table ``output_file``). With them
a resumed run detects a file that was edited, truncated or replaced, and repairs one whose last line a kill cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from infermesh.config.schema import OWN_FIELDS
from infermesh.errors import ConfigError, StoreError
from infermesh.hints import counted
from infermesh.runs.explain import changed_facts
from infermesh.store import RunStore, StageTable
from infermesh.store.kept_columns import kept_names
from infermesh.store.output_file import OutputRecord, OutputTable, digest_of, own_names

Note = Callable[[str], None]
_BLOCK = 1 << 20
_EXCERPT_BYTES = 70
_KEPT = "keep_columns"  # in the stored facts: it decides no answer, and is not compared with them
_INDEX = re.compile(rb'\{"_index":(\d+)[,}]')


class Sink(Protocol):
    """An output for one stage's rows besides the store.

    A session calls the methods in this order. All but :meth:`committed` are called while the writer is idle.
    """

    def admit(self, store: RunStore, stage: StageTable, facts: dict[str, Any], note: Note) -> None:
        """Compare output, checkpoint and declaration before anything is changed.

        Raises
        ------
        ConfigError
            The declaration differs from the one the checkpoint was made with.
        StoreError
            The output file is not the one the checkpoint describes.
        """
        ...

    def check(self, columns: Sequence[str]) -> None:
        """Called with the source's columns before it is kept. Raises ``ConfigError`` for one that is not there."""
        ...

    def open(self, *, stale: bool, keep_errors: bool) -> None:
        """Called once the source is loaded: write the rows that are settled and missing in the output."""
        ...

    def committed(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Called in the writer's thread after each commit, with the new rows of each table that has some.

        A commit may hold attempts alone, whose row has not settled.
        """
        ...

    def finish(self) -> None:
        """Called after the last commit: leave the output with every settled row exactly once."""
        ...

    def close(self) -> None:
        """Close files and connections; called even after a failure, and without :meth:`finish`."""
        ...


class _RowSet:
    """A set of row numbers, in one byte per source row."""

    def __init__(self) -> None:
        self._marks = bytearray()

    def __contains__(self, row_id: int) -> bool:
        return row_id < len(self._marks) and self._marks[row_id] == 1

    def update(self, row_ids: Iterable[int]) -> None:
        for row_id in row_ids:
            if row_id >= len(self._marks):
                self._marks.extend(bytes(max(row_id + 1 - len(self._marks), len(self._marks), 1024)))
            self._marks[row_id] = 1


class _StageSink:
    """The part all sinks share: the stage's rows, and the check of the declaration they were made with.

    Parameters
    ----------
    kind
        ``generate``, ``embed`` or ``transcribe``.
    rerun_changed
        Accept another declaration than the one that the checkpoint was made with.
    keep
        Columns of the source that the rows carry: their names, or ``all`` alone.
    """

    def __init__(self, kind: str, *, rerun_changed: bool = False, keep: Sequence[str] = ()) -> None:
        self._kind = kind
        self._keep = keep
        self._kept: dict[str, str] = {}
        self._kept_before: dict[str, str] = {}
        self._rerun_changed = rerun_changed
        self._table: OutputTable | None = None
        self._name = ""
        self._facts: dict[str, Any] = {}
        self._record: OutputRecord | None = None
        self._note: Note = lambda text: None

    @property
    def table(self) -> OutputTable:
        """The stage's rows; set by :meth:`admit`."""
        assert self._table is not None
        return self._table

    def admit(self, store: RunStore, stage: StageTable, facts: dict[str, Any], note: Note) -> None:
        mapped = facts.get("mapper") not in (None, OWN_FIELDS)
        self._table = store.output(stage, self._kind, metadata=mapped)
        self._name, self._facts, self._note = stage.name, facts, note
        self._record = None if store.is_new else self._table.record()
        if self._record is not None:
            self._kept_before = dict(self._record.facts.pop(_KEPT, ()))
        if self._record is not None and not self._rerun_changed:
            changes = changed_facts(self._record.facts, facts)
            if changes and self._table.has_answers:
                raise ConfigError(
                    f"what decides the answers has changed since {store.path.parent} was made:\n"
                    + "\n".join(f"  {change}" for change in changes)
                    + "\n--rerun-changed sends again the rows whose request has changed. Or undo the change, or choose "
                    "another output."
                )

    def check(self, columns: Sequence[str]) -> None:
        """Find the columns to keep, and say which have another name in the output."""
        if not self._keep:
            return
        self._kept = kept_names(self._keep, columns, own_names(self._kind))
        for name, shown in self._kept.items():
            if name != shown:
                self._note(f"--keep-columns: '{name}' is a field of ours, so the input's column is '{shown}' there")

    @property
    def _stored_facts(self) -> dict[str, Any]:
        """What decides the answers, and which columns stand beside them."""
        return {**self._facts, _KEPT: [*self._kept.items()]} if self._kept else self._facts

    def _report_retired(self) -> None:
        if self._record is not None and (retired := self.table.retired):
            gone = counted(retired, "row is", "rows are")
            self._note(f"{gone} no longer in the input: out of the output, kept in the checkpoint")

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None


class LineStream(_StageSink):
    """JSON lines on a stream that cannot be read back, such as stdout.

    Each session writes every settled row once: rows that may change only after they have settled again, or in
    :meth:`finish`.
    """

    def __init__(self, kind: str, stream: BinaryIO, *, rerun_changed: bool = False, keep: Sequence[str] = ()) -> None:
        super().__init__(kind, rerun_changed=rerun_changed, keep=keep)
        self._stream = stream
        self._sent = _RowSet()

    def open(self, *, stale: bool, keep_errors: bool) -> None:
        """Write the rows of earlier sessions that this one will not change."""
        self.table.keep(self._kept)
        if self._record is None:
            self.table.begin(Path("-"), self._stored_facts, "")
        else:
            self.table.update(facts=self._stored_facts)
            self._report_retired()
            for chunk in self.table.settled(standing=(stale, keep_errors)):
                self._send(chunk)

    def committed(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        self._send(self.table.lines([row[0] for row in rows.get(self._name, ())]))

    def finish(self) -> None:
        """Write the other settled rows: those that were to be done again, but were not reached."""
        for chunk in self.table.settled():
            self._send([item for item in chunk if item[0] not in self._sent])

    def _send(self, lines: Sequence[tuple[int, bytes]]) -> None:
        if lines:
            self._stream.write(b"".join(line for _, line in lines))
            self._stream.flush()
            self._sent.update(row_id for row_id, _ in lines)


class _FileSink(_StageSink):
    """An output file whose size and hash are in the checkpoint."""

    def __init__(self, kind: str, path: Path, *, rerun_changed: bool = False, keep: Sequence[str] = ()) -> None:
        super().__init__(kind, rerun_changed=rerun_changed, keep=keep)
        self._path = path
        self._place = path.absolute()  # a mapper may change the working directory

    def _check_new(self) -> None:
        if self._record is None and self._path.exists():
            raise StoreError(
                f"{self._path} exists, and is not in the checkpoint. Move it away, or choose another output"
            )

    def _replace(self, write: Callable[[Path], tuple[int, str]]) -> None:
        """Write the whole file to a temporary one, and rename it over the old one.

        The checkpoint first records the new size and hash as ``next_…``, then the file is renamed, then they become
        ``bytes`` and ``digest``. A session killed in between finds a file that matches one of the two pairs.
        """
        target = self._place.resolve()  # so that a symbolic link stays a link
        temporary = target.with_name(f".{target.name}.new")
        temporary.unlink(missing_ok=True)  # a killed session's: the checkpoint's lock admits one session at a time
        try:
            size, digest = write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            self.table.update(next_bytes=size, next_digest=digest)
            os.replace(temporary, target)
        except OSError as error:
            raise _unwritable(self._path, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        self.table.update(bytes=size, digest=digest, next_bytes=None, next_digest=None, dirty=False)

    def _differs(self, what: str) -> StoreError:
        return StoreError(
            f"{self._path} has changed since infermesh wrote it: {what}. Nothing was changed now. Every result is in "
            "the checkpoint: move the file away and run again with --resume, and it is written again. To keep your "
            "version, choose another output."
        )


class LineFile(_FileSink):
    """JSON lines in a file; a line is appended after its row's commit.

    A row that settles again has an old line in the file. Then the file is marked ``dirty`` in the checkpoint, nothing
    is appended for that row, and :meth:`finish` writes the whole file again.
    """

    def __init__(self, kind: str, path: Path, *, rerun_changed: bool = False, keep: Sequence[str] = ()) -> None:
        super().__init__(kind, path, rerun_changed=rerun_changed, keep=keep)
        self._file: BinaryIO | None = None
        self._hash = hashlib.blake2b(digest_size=16)
        self._size = 0
        self._written = _RowSet()
        self._tail = b""
        self._dirty = False

    def admit(self, store: RunStore, stage: StageTable, facts: dict[str, Any], note: Note) -> None:
        """Also compare the file with the size and hash in the checkpoint.

        The file may be longer than the recorded size: a kill between appending and recording leaves whole lines, or a
        part of one. That tail is kept for :meth:`open`, which compares it with the rows.
        """
        super().admit(store, stage, facts, note)
        self._check_new()
        record = self._record
        if record is None:
            return
        if not self._path.exists():
            if record.bytes:
                note(f"{self._path} is missing: it is written again from the checkpoint")
            return
        with open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if record.next_bytes == size:
                if self._read_lines(file, size) == record.next_digest:
                    return
                self._reset()
                file.seek(0)
            if size < record.bytes:
                raise self._differs(f"it has {counted(size, 'byte')}, {record.bytes:,} were written")
            if self._read_lines(file, record.bytes) != record.digest:
                raise self._differs(f"its first {counted(record.bytes, 'byte is', 'bytes are')} not what was written")
            self._tail = file.read()

    def _read_lines(self, file: BinaryIO, size: int) -> str:
        """Hash the next ``size`` bytes, and record which rows have a line there."""
        rest = b""
        left = size
        while left and (block := file.read(min(_BLOCK, left))):
            left -= len(block)
            self._hash.update(block)
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if found := _INDEX.match(line):
                    self._written.update((int(found[1]),))
        self._size = size - left
        return self._hash.hexdigest()

    def _reset(self) -> None:
        self._hash, self._size = hashlib.blake2b(digest_size=16), 0
        self._written = _RowSet()

    def open(self, *, stale: bool, keep_errors: bool) -> None:
        """Create the file; on a resumed run cut its uncertain tail off and append the missing lines."""
        self.table.keep(self._kept if self._record is None else self._kept_before)
        try:
            if self._record is None:
                self.table.begin(self._path, self._stored_facts, self._hash.hexdigest())
                self._file = open(self._path, "xb")  # noqa: SIM115
                return
            self._check_tail()
            self.table.update(bytes=self._size, digest=self._hash.hexdigest(), next_bytes=None, next_digest=None)
            self._file = open(self._path, "r+b" if self._path.exists() else "w+b")  # noqa: SIM115
            self._file.truncate(self._size)
            self._file.seek(self._size)
        except FileExistsError:
            raise StoreError(f"{self._path} exists. Move it away, or choose another output.") from None
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._report_retired()
        redone = self.table.redone(stale=stale, keep_errors=keep_errors)
        other = self._other_columns()
        self._dirty = self._record.dirty or stale or other or any(row_id in self._written for row_id in redone)
        self.table.update(dirty=self._dirty, facts=self._stored_facts, path=str(self._path))
        for chunk in self.table.settled(standing=(stale, keep_errors)):
            self._append([item for item in chunk if item[0] not in self._written])

    def _other_columns(self) -> bool:
        """Whether lines have other columns of the input from now on; the file is then written again at the end."""
        self.table.keep(self._kept)
        if self._kept == self._kept_before or not self._size:
            return False
        names = ", ".join(self._kept) or "none"
        self._note(f"--keep-columns: they are {names} now, so {self._path} is written again at the end")
        return True

    def _check_tail(self) -> None:
        """Check that the bytes after the recorded size are lines of the checkpoint; the last line may be incomplete."""
        if not self._tail:
            return
        *lines, torn = self._tail.split(b"\n")
        numbers = [_INDEX.match(line) for line in lines]
        known = dict(self.table.lines([int(number[1]) for number in numbers if number]))
        for line, number in zip(lines, numbers, strict=True):
            if number is None or known.get(int(number[1])) != line + b"\n" or int(number[1]) in self._written:
                raise self._differs(f"it has lines at its end that were not written by infermesh: {_excerpt(line)}")
        if torn and not self._is_torn(torn):
            raise self._differs(f"it ends in something that was not written by infermesh: {_excerpt(torn)}")
        self._tail = b""

    def _is_torn(self, torn: bytes) -> bool:
        number = _INDEX.match(torn)
        if number is None:
            return re.fullmatch(rb'\{"_index":\d*', torn) is not None or b'{"_index":'.startswith(torn)
        return any(line.startswith(torn) for _, line in self.table.lines([int(number[1])]))

    def committed(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        self._append(self.table.lines([row[0] for row in rows.get(self._name, ())]))

    def _append(self, lines: Sequence[tuple[int, bytes]]) -> None:
        new = [item for item in lines if item[0] not in self._written]
        if len(new) < len(lines) and not self._dirty:
            self._dirty = True
            self.table.update(dirty=True)
        if not new:
            return
        assert self._file is not None
        data = b"".join(line for _, line in new)
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._hash.update(data)
        self._size += len(data)
        self._written.update(row_id for row_id, _ in new)
        self.table.update(bytes=self._size, digest=self._hash.hexdigest())

    def finish(self) -> None:
        """Append the missing lines, or write the whole file again if it is dirty."""
        if self._dirty:
            self._replace(self._write)
            return
        for chunk in self.table.settled():
            self._append([item for item in chunk if item[0] not in self._written])

    def _write(self, path: Path) -> tuple[int, str]:
        digest, size = hashlib.blake2b(digest_size=16), 0
        with open(path, "xb") as file:
            if self._path.exists():
                os.fchmod(file.fileno(), self._path.stat().st_mode & 0o777)
            for chunk in self.table.settled():
                data = b"".join(line for _, line in chunk)
                file.write(data)
                digest.update(data)
                size += len(data)
        return size, digest.hexdigest()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        super().close()


class ParquetFile(_FileSink):
    """One Parquet file, written when the command ends: the format has no appending."""

    def admit(self, store: RunStore, stage: StageTable, facts: dict[str, Any], note: Note) -> None:
        """Also compare the file with the sizes and hashes in the checkpoint."""
        super().admit(store, stage, facts, note)
        self._check_new()
        if self._record is None or not self._path.exists():
            return
        found = digest_of(self._path)
        known = [(self._record.bytes, self._record.digest), (self._record.next_bytes, self._record.next_digest)]
        if found not in known:
            size = counted(found[0], "byte is", "bytes are")
            raise self._differs(f"its {size} not what was written ({self._record.bytes:,})")

    def open(self, *, stale: bool, keep_errors: bool) -> None:
        self.table.keep(self._kept)
        if self._record is None:
            self.table.begin(self._path, self._stored_facts, "")
        else:
            self.table.update(facts=self._stored_facts, path=str(self._path))
            self._report_retired()

    def committed(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Nothing: :meth:`finish` writes the file."""

    def finish(self) -> None:
        self._replace(self._write)

    def _write(self, path: Path) -> tuple[int, str]:
        self.table.write_parquet(path)
        return digest_of(path)


def _excerpt(line: bytes) -> str:
    return repr(line[:_EXCERPT_BYTES].decode("utf-8", "replace"))


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} could not be written: {error.strerror or error}")
