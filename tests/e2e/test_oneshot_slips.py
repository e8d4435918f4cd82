"""A first try that cannot work costs one message, and the corrected command then works."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from infermesh.simulator import Simulator
from tests.e2e.oneshot_shell import Shell
from tests.support import totals, write_jsonl

ROWS = [{"id": n, "question": f"Question {n}?", "clip": f"{n}.wav"} for n in range(3)]
FILES = ("--output-jsonl", "out.jsonl")
BENCH = ("--requests", "2", "--warmup", "0", "--concurrency", "1")


@pytest.fixture
def shell(tmp_path: Path, simulator: Simulator) -> Shell:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    with duckdb.connect() as connection:
        for name in ("in.csv", "in.parquet"):
            connection.execute(f"COPY (FROM read_json('{tmp_path / 'in.jsonl'}')) TO '{tmp_path / name}'")
    return Shell(tmp_path, simulator.url)


@pytest.mark.parametrize(
    ("command", "form", "said"),
    [
        (("generate",), "jsonl", "--prompt: the input has no column prompt, messages or responses_input"),
        (("generate",), "csv", "--prompt: the input has no column prompt, messages or responses_input"),
        (("generate",), "parquet", "--prompt: the input has no column prompt, messages or responses_input"),
        (("embed",), "csv", "--text: the input has no column text"),
        (("transcribe",), "parquet", "--mapper: the input has no column path"),
        (("bench", "embed", *BENCH), "jsonl", "--text: the input has no column text"),
    ],
)
def test_a_file_without_the_column_is_one_error(
    shell: Shell, simulator: Simulator, command: tuple[str, ...], form: str, said: str
) -> None:
    before = {item.name for item in shell.folder.iterdir()}
    more = () if command[0] == "bench" else FILES
    done = shell.here(*command, "--input-jsonl", f"in.{form}", *more)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert "It has: id, question, clip." in line
    assert "'{{ question }}'" in line or "'clip'" in line or "module:function" in line
    assert totals(simulator)["received"] == 0
    assert {item.name for item in shell.folder.iterdir()} == before
    if command == ("generate",):
        done = shell.here(*command, "--input-jsonl", f"in.{form}", *FILES, "--prompt", "{{ question }}")
        assert done.returncode == 0, done.stderr
        assert {row["output_text"] for row in shell.lines("out.jsonl")} == {row["question"] for row in ROWS}


def test_bench_names_an_unknown_column_before_it_sends(shell: Shell, simulator: Simulator) -> None:
    done = shell.here("bench", "generate", *BENCH, "--input-jsonl", "in.csv", "--prompt", "{{ questoin }}")
    assert (done.returncode, totals(simulator)["received"]) == (1, 0)
    assert "Did you mean 'question'?" in done.stderr


class TestTheCorrectedCommand:
    """The first try fails in every row."""

    @pytest.fixture(autouse=True)
    def failed(self, shell: Shell) -> None:
        (shell.folder / "mine_slip.py").write_text("def asked(row):\n    return {'input': row['qestion']}\n")

    def asked(self, shell: Shell, output: str, *more: str) -> tuple[int, str]:
        done = shell.here("generate", "--input-jsonl", "in.csv", "--output-jsonl", output, *more)
        return done.returncode, done.stderr

    @pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
    def test_takes_the_place_of_what_holds_no_answer(self, shell: Shell, output: str) -> None:
        assert self.asked(shell, output, "--mapper", "mine_slip:asked")[0] == 3
        code, said = self.asked(shell, output, "--prompt", "{{ question }}")
        assert code == 0, said
        assert f"{output} and {output}.infermesh from before: no answer is in there (3 failed rows)" in said
        with duckdb.connect() as connection:
            found = connection.execute(f"SELECT _index, output_text FROM '{shell.folder / output}' ORDER BY 1")
            assert found.fetchall() == [(n, row["question"]) for n, row in enumerate(ROWS)]

    def test_is_taken_with_resume_too(self, shell: Shell) -> None:
        assert self.asked(shell, "out.jsonl", "--mapper", "mine_slip:asked")[0] == 3
        code, said = self.asked(shell, "out.jsonl", "--prompt", "{{ question }}", "--resume")
        assert code == 0, said
        assert "mapper: 'mine_slip:asked' → none" in said
        assert len(shell.lines("out.jsonl")) == len(ROWS)

    def test_leaves_an_output_that_somebody_has_written_to(self, shell: Shell) -> None:
        assert self.asked(shell, "out.jsonl", "--mapper", "mine_slip:asked")[0] == 3
        with open(shell.folder / "out.jsonl", "a") as file:
            file.write("mine\n")
        before = (shell.folder / "out.jsonl").read_bytes()
        code, said = self.asked(shell, "out.jsonl", "--prompt", "{{ question }}")
        assert (code, "out.jsonl exists" in said) == (1, True)
        assert (shell.folder / "out.jsonl").read_bytes() == before

    def test_leaves_answers(self, shell: Shell, simulator: Simulator) -> None:
        assert self.asked(shell, "out.jsonl", "--prompt", "{{ question }}")[0] == 0
        before = (shell.folder / "out.jsonl").read_bytes()
        simulator.reset()
        code, said = self.asked(shell, "out.jsonl", "--prompt", "Say: {{ question }}")
        assert (code, "--resume continues it" in said) == (1, True)
        (shell.folder / "out.jsonl").unlink()
        code, said = self.asked(shell, "out.jsonl", "--prompt", "Say: {{ question }}")
        assert (code, "holds the checkpoint of an earlier run" in said) == (1, True)
        (shell.folder / "out.jsonl").write_bytes(before)
        assert totals(simulator)["received"] == 0

    def test_takes_an_empty_file(self, shell: Shell) -> None:
        (shell.folder / "out.jsonl").touch()
        code, said = self.asked(shell, "out.jsonl", "--prompt", "{{ question }}")
        assert code == 0, said
        assert "out.jsonl from before: no answer is in there, so this command starts anew" in said
