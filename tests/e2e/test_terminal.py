"""What servers, models, rows and functions say reaches a terminal as text: it gives the terminal no orders."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.support import COMMAND_S, command, environment, infermesh, write_experiment, write_jsonl

ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e\ud83d"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e"
FUNCTIONS = f"""
import logging
ORDERS = {ORDERS!a}
def f(row):
    if row["n"] == 0:
        logging.getLogger("infermesh").warning("first%s\\n2026-01-01 00:00:00,000 ERROR forged", ORDERS)
        raise ValueError(ORDERS + "bad")
    return {{"said": ORDERS[:-1] + "good"}}
"""
FOLDER = "outputs/here"
QUERY = "select said, error from f order by row_id"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project whose run has ended, and what a terminal got of the run."""
    project = tmp_path_factory.mktemp("project")
    (project / "fn.py").write_text(FUNCTIONS)
    write_jsonl(project / "rows.jsonl", [{"n": 0}, {"n": 1}])
    stage = {"kind": "python", "function": "fn:f", "max_retries": 0, "columns": {"said": "VARCHAR"}}
    write_experiment(project, {"source": {"path": "rows.jsonl"}, "stages": {"f": stage}})
    return project, on_terminal(*RUN, cwd=project)


def on_terminal(*arguments: str, cwd: Path, **variables: str) -> str:
    """Run a command whose streams are a terminal; return what the terminal got."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(TERM="xterm", **variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        found = b""
        try:
            while data := os.read(ours, 65536):
                found += data
        except OSError:  # Linux's end of a terminal
            pass
        process.wait(COMMAND_S)
    os.close(ours)
    return found.decode("utf-8", "surrogateescape")


def orders_in(text: str) -> list[str]:
    return [order for order in ("\x1b]", "\x07", "\x1b[2J\x9b", "\x9b", "\x7f", "\u202e", "\udced") if order in text]


def test_a_run_writes_them_out(ran: tuple[Path, str]) -> None:
    project, found = ran
    assert orders_in(found) == []
    assert "1 × f: function" in found
    assert SHOWN in found
    log = (project / FOLDER / "run.log").read_text(encoding="utf-8")
    assert orders_in(log) == []
    assert rf"first{SHOWN}\ud83d\n2026-01-01 00:00:00,000 ERROR forged" in log
    assert not any(line.startswith("2026-01-01 00:00:00,000 ERROR") for line in log.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [("status", FOLDER), ("sql", QUERY, "--run", FOLDER), ("sql", QUERY, "--run", FOLDER, "--format", "csv")],
)
def test_a_command_writes_them_out(ran: tuple[Path, str], arguments: tuple[str, ...]) -> None:
    found = on_terminal(*arguments, cwd=ran[0])
    assert orders_in(found) == []
    assert r"\x9b31m" in found


def test_in_a_pipe_data_stays_exact_and_words_do_not(ran: tuple[Path, str]) -> None:
    query = "select said from f where status = 'done'"
    found = infermesh("sql", query, "--run", FOLDER, "--format", "json", cwd=ran[0])
    assert json.loads(found.stdout) == [{"said": ORDERS[:-1] + "good"}]
    found = infermesh("status", FOLDER, cwd=ran[0])
    assert orders_in(found.stdout) == []
    assert SHOWN in found.stdout


def test_a_terminal_that_knows_few_characters(ran: tuple[Path, str]) -> None:
    variables = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    query = "select chr(8211) || chr(26085) as x"
    found = on_terminal("sql", query, "--run", FOLDER, cwd=ran[0], **variables)
    assert "Traceback" not in found
    assert r"\u65e5" in found
    piped = infermesh("sql", query, "--run", FOLDER, cwd=ran[0], **variables)
    assert piped.stdout == "x\n–日\n"


@pytest.mark.parametrize("arguments", [("status", FOLDER), ("sql", "select 1", "--run", FOLDER)])
def test_stdout_that_cannot_be_written(ran: tuple[Path, str], arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            command(*arguments),
            cwd=ran[0],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: stdout: no space left on device: ")
