"""Output rows that carry columns of the input."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.simulator import Simulator
from tests.e2e.oneshot_shell import Shell
from tests.support import totals, wav, write_jsonl

ROWS: list[dict[str, Any]] = [
    {"id": n, "prompt": f"Say {n}.", "text": f"Text {n}.", "error": f"mine {n}", "path": "a.wav", "my note": 'é, "q"'}
    for n in range(5)
]


@pytest.fixture
def shell(tmp_path: Path, simulator: Simulator) -> Shell:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    with duckdb.connect() as connection:
        for name in ("in.csv", "in.parquet"):
            connection.execute(f"COPY (FROM read_json('{tmp_path / 'in.jsonl'}')) TO '{tmp_path / name}'")
    (tmp_path / "a.wav").write_bytes(wav("Good morning."))
    return Shell(tmp_path, simulator.url)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["_index"])
    with duckdb.connect() as connection:
        found = connection.execute(f"FROM '{path}' ORDER BY _index")
        return [dict(zip([name for name, *_ in found.description], row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize(
    ("given", "output"), [("in.jsonl", "out.jsonl"), ("in.csv", "out.parquet"), ("in.parquet", "out.jsonl")]
)
def test_columns_of_every_format(shell: Shell, given: str, output: str) -> None:
    files = ("--input-jsonl", given, "--output", output)
    done = shell.here("generate", *files, "--prompt", "{{ prompt }}", "--keep-columns", 'id,error,"my note"')
    assert done.returncode == 0, done.stderr
    assert "'error' is a field of ours, so the input's column is 'input_error' there" in done.stderr
    for row, source in zip(read(shell.folder / output), ROWS, strict=True):
        assert row["output_text"] == source["prompt"]
        assert str(row["id"]) == str(source["id"])  # CSV is text
        assert (row["error"], row["input_error"], row["my note"]) == (None, source["error"], source["my note"])
        assert not row.keys() & {"text", "prompt", "path"}


def test_all_columns_of_every_command(shell: Shell) -> None:
    for command, ours in (("generate", {"error"}), ("embed", {"error"}), ("transcribe", {"error", "path", "text"})):
        more = () if command != "generate" else ("--prompt", "{{ prompt }}")
        done = shell.here(command, "--input-jsonl", "in.jsonl", "--keep-columns", "all", *more)
        assert done.returncode == 0, done.stderr
        for row in map(json.loads, done.stdout.splitlines()):
            source = ROWS[row["_index"]]
            for name, value in source.items():
                assert row[f"input_{name}" if name in ours else name] == value


def test_an_unknown_column_is_one_error_and_nothing_is_sent(shell: Shell, simulator: Simulator) -> None:
    files = ("--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl")
    before = sorted(shell.folder.iterdir())
    done = shell.here("generate", *files, "--keep-columns", "id,notes")
    assert (done.returncode, totals(simulator)["received"]) == (1, 0)
    assert "--keep-columns: the input has no column 'notes'. Did you mean 'my note'?" in done.stderr
    assert sorted(shell.folder.iterdir()) == before
    done = shell.here("generate", *files, "--keep-columns", " ,")
    assert (done.returncode, "--keep-columns: expected names" in done.stderr) == (2, True)
    done = shell.here("generate", "--prompt", "Hello", "--keep-columns", "id")
    assert (done.returncode, "needs --input-jsonl" in done.stderr) == (2, True)


@pytest.mark.long
def test_a_resumed_run_may_keep_other_columns(shell: Shell, simulator: Simulator) -> None:
    """The answers stay, and the whole file is written again: all its lines have the same columns."""
    files = ("--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl", "--prompt", "{{ prompt }}")
    assert shell.here("generate", *files).returncode == 0
    simulator.reset()
    for more, names in ((("--keep-columns", "id"), {"id"}), (("--keep-columns", "my note,id"), {"my note", "id"})):
        done = shell.here("generate", *files, *more, "--resume")
        assert done.returncode == 0, done.stderr
        assert "out.jsonl is written again" in done.stderr
        assert [row.keys() & {"id", "my note"} for row in read(shell.folder / "out.jsonl")] == [names] * len(ROWS)
        again = shell.here("generate", *files, *more, "--resume")
        assert "written again" not in again.stderr
    write_jsonl(shell.folder / "in.jsonl", [*ROWS, {"id": 9, "prompt": "Say 9.", "new": 1}])
    done = shell.here("generate", *files, "--keep-columns", "all", "--resume")
    assert done.returncode == 0, done.stderr
    found = read(shell.folder / "out.jsonl")
    assert [row["new"] for row in found] == [None] * len(ROWS) + [1]
    assert totals(simulator)["received"] == 1


def test_a_torn_line_of_ours_is_mended(shell: Shell) -> None:
    """Also where other columns are to be kept from now on: the line that a kill cut off has those of before."""
    files = ("generate", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl", "--prompt", "{{ prompt }}")
    output = shell.folder / "out.jsonl"
    assert shell.here(*files, "--keep-columns", "id,error").returncode == 0
    for columns in ("id,error", "id"):
        *before, last = output.read_bytes().splitlines(keepends=True)
        with duckdb.connect(str(shell.folder / "out.jsonl.infermesh/run.duckdb")) as connection:
            told = (sum(map(len, before)), hashlib.blake2b(b"".join(before), digest_size=16).hexdigest())
            connection.execute("UPDATE output_file SET bytes = ?, digest = ?", told)
        output.write_bytes(b"".join(before) + last[:-4])
        done = shell.here(*files, "--keep-columns", columns, "--resume")
        assert done.returncode == 0, done.stderr
        assert [row["id"] for row in read(output)] == [row["id"] for row in ROWS]
        assert all(("input_error" in row) == ("error" in columns) for row in read(output))
