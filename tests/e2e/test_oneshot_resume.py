"""Each resume case with a real kill -9."""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.runs.session import RunSession
from infermesh.simulator import Simulator
from tests.e2e.oneshot_shell import Shell
from tests.support import COMMAND_S, totals, wait_until, write_jsonl

GENERATE = ("generate", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl")
ROWS = 200


def prompts(count: int = ROWS) -> list[dict[str, Any]]:
    return [{"prompt": f"Parcel number {n} came late."} for n in range(count)]


@pytest.fixture
def slow(start_simulator: Callable[..., Simulator]) -> Simulator:
    """Three hundred rows a second at most, so that a kill lands in the middle."""
    return start_simulator(latency_s=0.03, capacity=9)


@pytest.fixture
def shell(tmp_path: Path, slow: Simulator) -> Shell:
    write_jsonl(tmp_path / "in.jsonl", prompts())
    return Shell(tmp_path, slow.url)


def sent(simulator: Simulator) -> int:
    return int(totals(simulator)["received"])


def check_whole(shell: Shell, count: int = ROWS) -> None:
    rows = shell.lines("out.jsonl")
    assert [row["_index"] for row in rows] == list(range(count))
    assert all(row["error"] is None for row in rows)
    assert {row["_index"]: row["output_text"] for row in rows} == {
        n: f"Parcel number {n} came late." for n in range(count)
    }


def test_a_killed_run_goes_on_and_sends_no_settled_row_again(shell: Shell, slow: Simulator) -> None:
    written = shell.kill_when(30, "out.jsonl", *GENERATE)
    assert written < ROWS
    slow.reset()
    second = shell.here(*GENERATE, "--resume")
    assert second.returncode == 0, second.stderr
    check_whole(shell)
    assert sent(slow) <= ROWS - written
    again = shell.here(*GENERATE, "--resume")
    assert again.returncode == 0
    assert sent(slow) <= ROWS - written


@pytest.mark.long
def test_an_interrupted_run_leaves_every_settled_row_in_the_output(shell: Shell) -> None:
    written = shell.kill_when(30, "out.jsonl", *GENERATE, number=signal.SIGINT, code=130)
    with duckdb.connect(str(shell.folder / "out.jsonl.infermesh/run.duckdb"), read_only=True) as connection:
        known = [row_id for (row_id,) in connection.execute("SELECT row_id FROM generate ORDER BY 1").fetchall()]
    assert 30 <= written < ROWS
    assert [row["_index"] for row in shell.lines("out.jsonl")] == known
    assert shell.here(*GENERATE, "--resume").returncode == 0
    check_whole(shell)


@pytest.mark.long
def test_an_interrupt_keeps_the_answers_it_waits_for(tmp_path: Path, start_simulator: Callable[..., Simulator]) -> None:
    """Rows between two attempts leave attempts without a state; the rows in flight come after them."""
    service = start_simulator(latency_s=3.0, faults={"unavailable": 0.5, "retry_after_s": None})
    write_jsonl(tmp_path / "in.jsonl", prompts(16))
    shell = Shell(tmp_path, service.url)
    process = subprocess.Popen(
        shell.argv(GENERATE), cwd=tmp_path, env=shell.environ, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    wait_until(lambda: totals(service)["status"].get("503", 0) >= 4 and totals(service)["in_flight"], "a row in flight")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=COMMAND_S)[1].decode()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    wait_until(lambda: totals(service)["in_flight"] == 0, "the service to be idle")
    assert len(shell.lines("out.jsonl")) == totals(service)["status"]["200"] > 0


def test_the_output_never_holds_what_the_checkpoint_does_not(shell: Shell) -> None:
    shell.kill_when(40, "out.jsonl", *GENERATE)
    with duckdb.connect(str(shell.folder / "out.jsonl.infermesh/run.duckdb"), read_only=True) as connection:
        known = dict(connection.execute("SELECT row_id, text FROM generate WHERE status = 'done'").fetchall())
    whole = (shell.folder / "out.jsonl").read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    (shell.folder / "whole.jsonl").write_bytes(whole)
    assert {row["_index"]: row["output_text"] for row in shell.lines("whole.jsonl")}.items() <= known.items()


@pytest.mark.long
def test_a_torn_line_of_ours_is_mended(shell: Shell) -> None:
    shell.kill_when(40, "out.jsonl", *GENERATE)
    output = shell.folder / "out.jsonl"
    record = shell.folder / "out.jsonl.infermesh/run.duckdb"
    whole = output.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    *before, last = whole.splitlines(keepends=True)
    size, digest = _of(b"".join(before))
    with duckdb.connect(str(record)) as connection:  # as if killed between the line and the note of it
        connection.execute("UPDATE output_file SET bytes = ?, digest = ?", [size, digest])
    output.write_bytes(b"".join(before) + last[: len(last) // 2])
    second = shell.here(*GENERATE, "--resume")
    assert second.returncode == 0, second.stderr
    check_whole(shell)


def test_a_kill_between_the_replaced_file_and_the_note_of_it(tmp_path: Path, simulator: Simulator) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", prompts(10))
    assert shell.here(*GENERATE).returncode == 0
    size, digest = _of((tmp_path / "out.jsonl").read_bytes())
    with duckdb.connect(str(tmp_path / "out.jsonl.infermesh/run.duckdb")) as connection:
        connection.execute(
            "UPDATE output_file SET bytes = 7, digest = 'old', next_bytes = ?, next_digest = ?, dirty = true",
            [size, digest],
        )
    (tmp_path / ".out.jsonl.new").write_text("left over\n")
    second = shell.here(*GENERATE, "--resume")
    assert second.returncode == 0, second.stderr
    check_whole(shell, 10)
    assert not (tmp_path / ".out.jsonl.new").exists()


def _of(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.blake2b(data, digest_size=16).hexdigest()


def test_a_reordered_file_is_safe_and_duplicates_are_kept_apart(shell: Shell, slow: Simulator) -> None:
    rows = [{"prompt": "The same."}] * 3 + prompts(80)
    write_jsonl(shell.folder / "in.jsonl", rows)
    written = shell.kill_when(20, "out.jsonl", *GENERATE)
    write_jsonl(shell.folder / "in.jsonl", reversed(rows))
    slow.reset()
    second = shell.here(*GENERATE, "--resume")
    assert second.returncode == 0, second.stderr
    found = shell.lines("out.jsonl")
    assert [row["_index"] for row in found] == list(range(83))
    assert [row["output_text"] for row in found] == [row["prompt"] for row in rows]
    assert sent(slow) <= 83 - written


def test_added_rows_are_run_and_removed_ones_leave_the_output(tmp_path: Path, simulator: Simulator) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", prompts())
    assert shell.here(*GENERATE).returncode == 0
    write_jsonl(shell.folder / "in.jsonl", [{"prompt": "New."}, *prompts()[10:]])
    simulator.reset()
    second = shell.here(*GENERATE, "--resume")
    assert second.returncode == 0, second.stderr
    assert "10 rows are no longer in the input" in second.stderr
    found = shell.lines("out.jsonl")
    assert [row["_index"] for row in found] == list(range(10, ROWS + 1))
    assert found[-1]["output_text"] == "New."
    assert sent(simulator) == 1


def test_failed_rows_are_tried_again_and_replaced(tmp_path: Path, start_simulator: Callable[..., Simulator]) -> None:
    broken = start_simulator(filter_marker="number 7 ", latency_s=0.01)
    write_jsonl(tmp_path / "in.jsonl", prompts(20))
    first = Shell(tmp_path, broken.url).here(*GENERATE)
    assert first.returncode == 3, first.stderr
    shell = Shell(tmp_path, start_simulator(latency_s=0.01).url)
    before = (tmp_path / "out.jsonl").read_bytes()
    kept = shell.here(*GENERATE, "--resume", "--keep-errors")
    assert kept.returncode == 3
    assert (tmp_path / "out.jsonl").read_bytes() == before
    again = shell.here(*GENERATE, "--resume")
    assert again.returncode == 0, again.stderr
    check_whole(shell, 20)


@pytest.mark.long
def test_a_kill_while_failed_rows_are_tried_again_loses_nothing(
    tmp_path: Path, start_simulator: Callable[..., Simulator]
) -> None:
    broken = start_simulator(filter_marker="Parcel", latency_s=0.0)
    write_jsonl(tmp_path / "in.jsonl", [*prompts(60), *({"prompt": f"Letter {n}."} for n in range(100))])
    first = Shell(tmp_path, broken.url).here(*GENERATE, "--max-retries", "0")
    assert first.returncode == 3, first.stderr
    write_jsonl(
        tmp_path / "in.jsonl",
        [
            *prompts(60),
            *({"prompt": f"Letter {n}."} for n in range(100)),
            *({"prompt": f"Card {n}."} for n in range(90)),
        ],
    )
    shell = Shell(tmp_path, start_simulator(latency_s=0.03, capacity=9).url)
    written = shell.kill_when(190, "out.jsonl", *GENERATE, "--resume")
    assert 190 <= written < 250
    assert {row["_index"] for row in shell.lines("out.jsonl")} >= set(range(160))
    again = shell.here(*GENERATE, "--resume")
    assert again.returncode == 0, again.stderr
    found = shell.lines("out.jsonl")
    assert len(found) == 250
    assert all(row["error"] is None for row in found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.replace(b"late", b"soon", 1), "are not what was written"),
        (lambda data: data[: len(data) // 2], "bytes were written"),
        (lambda data: data + b'{"mine": true}\n', "not written by infermesh"),
        (lambda data: data + b"half a li", "not written by infermesh"),
        (lambda data: b"", "were written"),
    ],
)
def test_a_file_that_was_touched_is_left_alone(
    tmp_path: Path, simulator: Simulator, change: Callable[[bytes], bytes], says: str
) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", prompts(10))
    assert shell.here(*GENERATE).returncode == 0
    output = tmp_path / "out.jsonl"
    touched = change(output.read_bytes())
    output.write_bytes(touched)
    write_jsonl(tmp_path / "in.jsonl", prompts(12))
    second = shell.here(*GENERATE, "--resume")
    assert second.returncode == 1
    assert says.replace("bytes were", "were") in second.stderr
    assert "move the file away" in second.stderr
    assert output.read_bytes() == touched
    output.unlink()
    third = shell.here(*GENERATE, "--resume")
    assert third.returncode == 0, third.stderr
    check_whole(shell, 12)


def test_a_changed_declaration_is_named_and_refused(tmp_path: Path, simulator: Simulator) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", prompts(5))
    assert shell.here(*GENERATE, "--temperature", "0.2").returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    asked = ("--temperature", "0.7", "--system", "Be brief.", "--model", "hosted_vllm/other", "--api-base", shell.url)
    simulator.reset()
    second = shell.here(*GENERATE, "--resume", *asked, model=False)
    assert second.returncode == 1
    for change in ("temperature: 0.2 → 0.7", "system: none → 'Be brief.'", "'hosted_vllm/any' → 'hosted_vllm/other'"):
        assert change in second.stderr
    assert "--rerun-changed" in second.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert sent(simulator) == 0
    third = shell.here(*GENERATE, "--resume", "--rerun-changed", *asked, model=False)
    assert third.returncode == 0, third.stderr
    assert sent(simulator) == 5
    check_whole(shell, 5)


@pytest.mark.long
def test_a_changed_mapper_is_named(tmp_path: Path, simulator: Simulator) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", [{"n": n} for n in range(5)])
    mapper = tmp_path / "mine.py"
    body = 'def ask(row):\n    return {"input": f"Number %s.", "metadata": {"n": row["n"]}}\n'
    mapper.write_text(body % "{row['n']}")
    assert shell.run(*GENERATE, "--mapper", "mine:ask").returncode == 0
    mapper.write_text(body.replace("Number", "Nummer") % "{row['n'] if row['n'] < 3 else 9 // 0}")
    refused = shell.run(*GENERATE, "--mapper", "mine:ask", "--resume")
    assert refused.returncode == 1
    assert "mapper: its code has changed" in refused.stderr
    third = shell.run(*GENERATE, "--mapper", "mine:ask", "--resume", "--rerun-changed")
    assert third.returncode == 3, third.stderr
    found = shell.lines("out.jsonl")
    assert [row["output_text"] for row in found] == ["Nummer 0.", "Nummer 1.", "Nummer 2.", None, None]
    assert found[1]["metadata"] == {"n": 1}
    assert "ZeroDivisionError" in found[4]["error"]


def test_an_earlier_output_is_not_touched_without_resume(tmp_path: Path, simulator: Simulator) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", prompts(3))
    (tmp_path / "out.jsonl").write_text("mine\n")
    for more in ((), ("--resume",)):
        refused = shell.here(*GENERATE, *more)
        assert refused.returncode == 1
        assert "out.jsonl exists" in refused.stderr
        assert (tmp_path / "out.jsonl").read_text() == "mine\n"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert sent(simulator) == 0


@pytest.mark.long
def test_an_embedding_file_is_resumed_after_a_kill(shell: Shell, slow: Simulator) -> None:
    write_jsonl(shell.folder / "in.jsonl", [{"text": f"Parcel {n}."} for n in range(ROWS)])
    command = ("embed", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl", "--micro-batch-size", "1")
    shell.kill_when(30, "out.jsonl", *command)
    with open(shell.folder / "out.jsonl", "ab") as file:  # kill -9 may as well have torn the next line
        file.write(b'{"_ind')
    second = shell.run(*command, "--resume")
    assert second.returncode == 0, second.stderr
    found = shell.lines("out.jsonl")
    assert [row["_index"] for row in found] == list(range(ROWS))
    assert {len(row["embedding"]) for row in found} == {64}


def test_ctrl_c_before_the_first_request_keeps_what_came_on_stdin(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: RunSession, *arguments: object) -> None:
        raise KeyboardInterrupt

    command = ("generate", "--input-jsonl", "-", "--output-jsonl", "out.jsonl")
    kept = shell.folder / "out.jsonl.infermesh" / "stdin.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(RunSession, "load", interrupt)
        patched.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((shell.folder / "in.jsonl").read_bytes())))
        assert shell.here(*command).returncode == 130
    assert kept.read_bytes() == (shell.folder / "in.jsonl").read_bytes()
    again = shell.run(*command, "--resume")
    assert again.returncode == 0, again.stderr
    check_whole(shell)
