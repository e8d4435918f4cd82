"""A small laboratory for whole runs: rows and configs in a folder, a silent observer, SQL over the result."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb

from infermesh.config.declaration import declare
from infermesh.query.reader import ask_run
from infermesh.query.verify import verify
from infermesh.runs.execute import execute
from infermesh.runs.outcome import RunOutcome
from infermesh.runs.stats import RunStats
from infermesh.runtime.signals import TOGETHER_S
from infermesh.store.schema import DATABASE, literal

DEADLINE_S = 20.0


class Watch:
    """An observer that says nothing, keeps what it was told, and can act on a tick."""

    def __init__(self, on_tick: Callable[[RunStats], None] | None = None) -> None:
        self.notes: list[str] = []
        self.stats: RunStats | None = None
        self.ended = False
        self._on_tick = on_tick

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, stats: RunStats) -> None:
        self.stats = stats

    def tick(self, stats: RunStats) -> None:
        if self._on_tick is not None:
            self._on_tick(stats)

    def stop(self, stats: RunStats) -> None:
        self.ended = True


# A row of `run`, for a store without a run.
RECORD: dict[str, Any] = {
    "run_id": "run-1",
    "experiment": "test",
    "config": '{"name": "test"}',
    "config_hash": "abc",
    "git_revision": None,
    "versions": "{}",
    "started_at": datetime(2025, 1, 1),
    "signatures": "{}",
    "roots": "[]",
    "overrides": None,
}


def experiment(url: str, stages: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """A declaration over one deployment at ``url``, with a model ``m`` that retries fast; sections replace its own."""
    mapping: dict[str, Any] = {
        "name": "lab",
        "source": {"path": "rows.jsonl"},
        "deployments": {"d": {"model": "hosted_vllm/any", "api_base": url}},
        "models": {"m": {"deployments": ["d"], "max_retries": 2, "timeout": 20.0}},
        "stages": {name: {"model": "m", **stage} for name, stage in stages.items()},
        "store": {"commit_interval": 0.01},
        "report": False,  # a tenth of a second for each of some thousand runs; tests/pages has those that write it
    }
    return mapping | sections


def generate(prompt: str = "{{ text }}", **fields: Any) -> dict[str, Any]:
    return {"kind": "generate", "prompt": prompt, **fields}


def embed(text: str = "{{ text }}", **fields: Any) -> dict[str, Any]:
    return {"kind": "embed", "text": text, **fields}


def transcribe(audio: str = "{{ audio }}", **fields: Any) -> dict[str, Any]:
    return {"kind": "transcribe", "audio": audio, **fields}


def texts(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Rows with a number and a text that no other row has."""
    return [{"n": n, "text": f"Parcel number {n} came late.", **fields} for n in range(count)]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Rows as lines; a string stands for a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


class Lab:
    """A folder with a source, and runs in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "outputs" / "lab" / "run"

    def rows(self, rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        return write_jsonl(self.root / name, rows)

    def run(
        self,
        mapping: Mapping[str, Any],
        *,
        watch: Watch | None = None,
        environ: Mapping[str, str] | None = None,
        roots: Sequence[Path] | None = None,
    ) -> RunOutcome:
        """Run in the folder, or go on with the run that is there."""
        job = declare(mapping, roots or [self.root], environ=os.environ if environ is None else environ)
        return execute(job, self.folder, observer=watch or Watch(), environ=environ or {})

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        return ask(self.folder, query)

    def one(self, query: str) -> Any:
        ((value,),) = self.sql(query)
        return value

    def statuses(self, stage: str) -> dict[int, str]:
        """Row number ``n`` → status."""
        return dict(self.sql(f'SELECT n, t.status FROM source s JOIN "{stage}" t USING (row_id) ORDER BY n'))


def assert_holds(folder: Path) -> None:
    """Nothing of a run is lost, doubled or changed."""
    wrong = [f"{found.about}: {found.words}" for found in verify(folder) if not found.ok]
    assert not wrong, f"{folder}: {wrong}"


def totals(simulator: Any, endpoint: str | None = None) -> dict[str, Any]:
    """The simulator's counts, of one endpoint or of all."""
    stats = simulator.stats()
    found: dict[str, Any] = stats["totals"] if endpoint is None else stats["endpoints"][endpoint]
    return found


def wait_until(true: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Look until it is true, and return what it gave; a failure after the deadline."""
    until = time.monotonic() + deadline_s
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.01)


def wait_for_another_wish() -> None:
    """Wait until a second signal counts as one: those of half a second are one wish to stop."""
    until = time.monotonic() + TOGETHER_S
    wait_until(lambda: time.monotonic() > until, "the time after a signal")


def wav(words: str | None = None, seconds: float = 0.2) -> bytes:
    """A silent clip that the simulator hears these words in."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(2 * int(seconds * 8000)))
    data = buffer.getvalue()
    if words is not None:
        content = words.encode() + b"\0"
        info = b"INFO" + b"ICMT" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        data += b"LIST" + struct.pack("<I", len(info)) + info
    return b"RIFF" + struct.pack("<I", len(data) - 8) + data[8:]


COMMAND_S = 60.0
_SCRIPT = Path(sys.executable).with_name("infermesh")


def command(*arguments: str) -> list[str]:
    """The command line of ``infermesh …``, as installed beside this interpreter."""
    return [str(_SCRIPT), *arguments] if _SCRIPT.exists() else [sys.executable, "-m", "infermesh", *arguments]


def environment(**variables: str) -> dict[str, str]:
    """A terminal-less environment without anybody's keys."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(("_KEY", "_TOKEN")) and not name.startswith(("HYDRA", "INFERMESH_"))
    }
    return kept | {"NO_COLOR": "1", "COLUMNS": "200", "PYTHONWARNINGS": "error::ResourceWarning"} | variables


def infermesh(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``infermesh …`` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def here(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, for commands whose streams and signals are not the point: it is much quicker."""
    found = here_bytes(*arguments, cwd=cwd, **variables)
    return subprocess.CompletedProcess(found.args, found.returncode, found.stdout.decode(), found.stderr.decode())


def here_bytes(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """:func:`here`, for output that is no text."""
    raw = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(each, encoding="utf-8", write_through=True) for each in raw)
    environ = mock.patch.dict(os.environ, environment(**variables), clear=True)
    with chdir(cwd), environ, redirect_stdout(out), redirect_stderr(err):
        try:
            _commands()(list(arguments), prog_name="infermesh")
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return subprocess.CompletedProcess(list(arguments), code, *(each.getvalue() for each in raw))


@functools.cache
def _commands() -> Callable[..., Any]:
    """The command line. Typer makes it anew at each call of the app, which takes longer than many a command."""
    from typer.main import get_command

    from infermesh.cli.app import app

    return get_command(app)


def write_experiment(root: Path, mapping: Mapping[str, Any], name: str = "mine") -> None:
    """``conf/experiment/NAME.yaml`` of a project in ``root``."""
    target = root / "conf" / "experiment" / f"{name}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("# @package _global_\n" + json.dumps({**mapping, "name": name}, indent=1))


def run_folders(root: Path) -> list[Path]:
    """Every run's folder of a project."""
    return sorted(path.parent for path in (root / "outputs").rglob(DATABASE) if not path.parent.is_symlink())


def committed(folder: Path, *stages: str) -> int:
    """How many rows of these stages of a run, live or not, are done in its database; none before it answers."""
    return sum(
        rows[0][0] if (rows := ask_run(folder, f"SELECT count(*) FROM {stage} WHERE status = 'done'")) else 0
        for stage in stages
    )


def logged(log: Path) -> str:
    """A log's text; empty where there is none: a run with nothing to log leaves no file."""
    try:
        return log.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def ask(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """SQL over a run's folder."""
    return ask_file(folder / DATABASE, query)


_ASKED = itertools.count()


def ask_file(path: Path, query: str) -> list[tuple[Any, ...]]:
    """SQL over a database, attached to one that stays open: to open one anew takes DuckDB nine times as long."""
    name = f"asked_{next(_ASKED)}"
    with _open_database().cursor() as connection:
        connection.execute(f"ATTACH {literal(str(path))} AS {name} (READ_ONLY)")
        try:
            connection.execute(f"USE {name}")
            return connection.execute(query).fetchall()
        finally:
            connection.execute("USE memory")
            connection.execute(f"DETACH {name}")


@functools.cache
def _open_database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()
