"""``infermesh sql``, ``status``, ``runs`` and ``resume``."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import duckdb
import pytest

from infermesh.simulator import Simulator
from tests.support import (
    COMMAND_S,
    Lab,
    Watch,
    command,
    embed,
    environment,
    experiment,
    generate,
    here,
    infermesh,
    texts,
    totals,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one experiment: an old one that is complete, a newer one with a failed row."""
    root = tmp_path_factory.mktemp("project")
    lab = Lab(root)
    lab.rows([{"n": n, "text": f"Parcel {n}, «late».\nSorry.", "tags": ["a", n], "code": "007"} for n in range(4)])
    with Simulator() as service:
        lab.folder = root / "outputs" / "lab" / "2025-01-01_10-00-00"
        lab.run(experiment(service.url, {"a": generate(), "v": embed(params={"dimensions": 2})}))
        lab.folder = root / "outputs" / "lab" / "2025-01-02_10-00-00"
        lab.run(experiment(service.url, {"a": generate("{{ text }} {{ 1 / n }}")}))
    return root


def sql(root: Path, query: str, *options: str) -> str:
    found = here("sql", query, *options, cwd=root)
    assert found.returncode == 0, found.stderr
    assert found.stderr == "" or re.fullmatch(r"asked \S+( \(the newest run\))?\n", found.stderr)
    return found.stdout


OLD = "outputs/lab/2025-01-01_10-00-00"
QUERY = """
    SELECT n, text, tags, code, v_embedding, a_error, a_prompt_tokens / 2 AS half, a_finished_at IS NOT NULL AS at
    FROM results ORDER BY n LIMIT 2
"""


class TestSql:
    def test_csv_is_the_default_off_a_terminal(self, project: Path) -> None:
        rows = list(csv.reader(io.StringIO(sql(project, QUERY, "--run", OLD))))
        assert rows[0] == ["n", "text", "tags", "code", "v_embedding", "a_error", "half", "at"]
        assert rows[1][:4] == ["0", "Parcel 0, «late».\nSorry.", '["a",0]', "007"]
        assert len(json.loads(rows[1][4])) == 2
        assert rows[1][5] == ""
        assert len(rows) == 3

    @pytest.mark.parametrize("format", ["json", "jsonl"])
    def test_json_keeps_types(self, project: Path, format: str) -> None:
        text = sql(project, QUERY, "--run", OLD, "--format", format)
        rows = json.loads(text) if format == "json" else [json.loads(line) for line in text.splitlines()]
        assert [row["n"] for row in rows] == [0, 1]
        assert rows[0]["tags"] == ["a", 0]
        assert rows[0]["code"] == "007"
        assert rows[0]["a_error"] is None
        assert rows[0]["at"] is True
        assert len(rows[0]["v_embedding"]) == 2
        assert isinstance(rows[0]["half"], float)

    def test_json_of_no_rows(self, project: Path) -> None:
        assert json.loads(sql(project, "SELECT 1 WHERE false", "--format", "json")) == []
        assert sql(project, "SELECT 1 WHERE false", "--format", "jsonl") == ""
        assert sql(project, "SELECT 1 AS one WHERE false") == "one\n"

    def test_json_of_everything(self, project: Path) -> None:
        """Timestamps, nested values, embeddings: whatever the tables hold can be written."""
        for table in ("results", "attempts", "run", "source", "progress"):
            for line in sql(project, f"FROM {table}", "--run", OLD, "--format", "jsonl").splitlines():
                assert isinstance(json.loads(line), dict)

    def test_parquet(self, project: Path, tmp_path: Path) -> None:
        found = subprocess.run(
            command("sql", f"{QUERY.strip()};", "--run", OLD, "--format", "parquet"),
            cwd=project,
            env=environment(),
            capture_output=True,
            timeout=COMMAND_S,
            check=True,
        )
        (tmp_path / "r.parquet").write_bytes(found.stdout)
        with duckdb.connect() as connection:
            assert connection.execute(f"SELECT n, code, len(v_embedding) FROM '{tmp_path}/r.parquet'").fetchall() == [
                (0, "007", 2),
                (1, "007", 2),
            ]

    def test_a_table_for_eyes(self, project: Path) -> None:
        text = sql(project, "SELECT text, a_error FROM results ORDER BY n", "--run", OLD, "--format", "table")
        assert "NULL" in text
        assert "«late».⏎Sorry." in text

    def test_a_row_as_a_block(self, project: Path) -> None:
        text = sql(project, "SELECT n, text, a_error FROM results ORDER BY n LIMIT 2", "--run", OLD, "--record")
        assert "text     Parcel 0, «late».\n         Sorry.\n" in text
        assert text.count("a_error  NULL") == 2

    @pytest.mark.parametrize(("run", "said"), [(None, "(the newest run)"), ("lab", "outputs/lab/"), (OLD, "")])
    def test_the_run_that_was_asked_is_said_where_its_name_does_not(
        self, project: Path, run: str | None, said: str
    ) -> None:
        found = here("sql", "SELECT 1", *([] if run is None else ["--run", run]), cwd=project)
        assert found.stderr.startswith("asked outputs/lab/2025-01-02_10-00-00" if said else "")
        assert said in found.stderr
        assert len(found.stderr.splitlines()) == bool(said)

    @pytest.mark.parametrize(
        "run", ["outputs/lab/latest", "outputs/lab/2025-01-02_10-00-00", "lab", "2025-01-02_10-00-00", None]
    )
    def test_a_run_by_any_of_its_names(self, project: Path, run: str | None) -> None:
        """The newest where none is named: it has a failed row, the older one has not."""
        options = [] if run is None else ["--run", run]
        assert sql(project, "SELECT count(*) AS c FROM a WHERE status = 'error'", *options) == "c\n1\n"

    def test_a_run_by_its_id(self, project: Path) -> None:
        run_id = sql(project, "SELECT run_id FROM run", "--run", OLD).split()[1]
        assert sql(project, "SELECT count(*) AS c FROM v", "--run", run_id) == "c\n4\n"

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ("SELECT * FROM resulst", "resulst"),
            ("SELEC 1", "syntax error"),
            ("DELETE FROM a", "read-only"),
            ("SELECT nn FROM results", "nn"),
            ("SELECT code::INT / 0, text::INT FROM results", "Could not convert"),
        ],
    )
    def test_a_wrong_query(self, project: Path, query: str, words: str) -> None:
        found = here("sql", query, cwd=project)
        assert found.returncode == 1
        assert found.stderr.startswith("error: ")
        assert words in found.stderr
        assert "Traceback" not in found.stderr
        assert found.stdout == ""

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ("SELECT txt FROM results", 'column "txt" not found in FROM clause. Did you mean "text"'),
            ("SELECT customer FROM results", 'column "customer" not found in FROM clause LINE 1'),
            ('SELECT "my customer" FROM results', 'column "my customer" not found in FROM clause LINE 1'),
            ("SELECT * FROM resulst", 'name resulst does not exist. Did you mean "results"?'),
            ("SELECT * FROM customers", "name customers does not exist LINE 1"),
        ],
    )
    def test_an_unknown_name_and_the_run_that_was_asked(self, project: Path, query: str, words: str) -> None:
        """DuckDB guesses at anything. Perhaps the name is another run's."""
        found = here("sql", query, cwd=project).stderr
        assert words in found
        assert "(in outputs/lab/2025-01-02_10-00-00, the newest run; --run NAME asks another)" in found
        assert "the newest" not in here("sql", query, "--run", "lab", cwd=project).stderr

    def test_show_says_so_too(self, project: Path) -> None:
        found = here("show", "customer=3", cwd=project)
        assert found.returncode == 1
        assert "the newest run; infermesh show RUN ROW asks another)" in found.stderr

    def test_a_format_that_there_is_not(self, project: Path) -> None:
        found = here("sql", "SELECT 1", "--format", "jsn", cwd=project)
        assert found.returncode == 2
        assert "Did you mean 'json'?" in found.stderr

    def test_a_run_that_there_is_not(self, project: Path, tmp_path: Path) -> None:
        found = here("sql", "SELECT 1", "--run", "nothing", cwd=project)
        assert (found.returncode, found.stdout) == (1, "")
        assert "no run 'nothing'" in found.stderr
        found = here("sql", "SELECT 1", cwd=tmp_path)
        assert found.returncode == 1
        assert "infermesh run" in found.stderr

    @pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet"])
    def test_a_reader_that_leaves_is_no_error(self, project: Path, format: str) -> None:
        with subprocess.Popen(
            command("sql", "SELECT range AS n, repeat('x', 100) AS t FROM range(300000)", "--format", format),
            cwd=project,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            said = process.stderr.read()
        assert said == b""
        assert process.returncode in (0, 1)

    def test_ctrl_c_ends_a_query(self, project: Path) -> None:
        with subprocess.Popen(
            command("sql", "FROM range(10_000_000_000)", "--run", OLD),
            cwd=project,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.read(8) == b"range\n0\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=COMMAND_S)
        assert (process.returncode, said) == (130, b"")

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory in /proc")
    @pytest.mark.long
    def test_rows_are_not_held(self, tmp_path: Path) -> None:
        """More text comes out of the command than it takes memory, also where nobody is in a hurry to read it."""
        with duckdb.connect(str(tmp_path / "run.duckdb")) as connection:
            connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(1500000)")
        query = "SELECT i, repeat(chr(97 + (i % 26)::INTEGER), 240) AS text FROM t"
        asking = command("sql", query, "--run", str(tmp_path), "--format", "jsonl")
        size = pages = 0
        with subprocess.Popen(asking, env=environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            memory = Path(f"/proc/{process.pid}/statm")
            while block := process.stdout.read(1 << 16):
                size += len(block)
                pages = max(pages, int(memory.read_text().split()[1]))
        assert (process.returncode, size // 10**6) == (0, 394)
        assert pages * os.sysconf("SC_PAGE_SIZE") < 350e6


class TestStatusAndRuns:
    def test_status(self, project: Path) -> None:
        found = here("status", cwd=project)
        assert found.returncode == 0
        assert "a: 3 done, 1 error of 4" in found.stdout
        assert "input" in found.stdout
        assert "infermesh resume" in found.stdout
        assert found.stderr == ""

    def test_status_of_a_complete_run(self, project: Path) -> None:
        found = here("status", OLD, cwd=project)
        assert "v: 4 done of 4" in found.stdout
        assert "resume" not in found.stdout

    def test_runs_newest_first(self, project: Path) -> None:
        found = here("runs", cwd=project)
        assert found.returncode == 0
        newest, oldest = found.stdout.splitlines()
        assert "2025-01-02_10-00-00" in newest
        assert "3 done, 1 failed, 0 pending" in newest
        assert "2025-01-01_10-00-00" in oldest
        assert "8 done" in oldest

    @pytest.mark.parametrize(
        ("options", "folders"),
        [
            (["--state", "done"], ["2025-01-01_10-00-00"]),
            (
                ["--state", "failed_rows", "--state", "done", "--sort", "done"],
                ["2025-01-01_10-00-00", "2025-01-02_10-00-00"],
            ),
            (["--sort", "failed", "--limit", "1"], ["2025-01-02_10-00-00"]),
            (["--experiment", "lab", "--limit", "1"], ["2025-01-02_10-00-00"]),
            (["--experiment", "other"], []),
        ],
    )
    def test_runs_filtered_sorted_and_as_json(self, project: Path, options: list[str], folders: list[str]) -> None:
        found = here("runs", *options, "--json", cwd=project)
        assert found.returncode == 0, found.stderr
        runs = json.loads(found.stdout)
        assert [Path(run["folder"]).name for run in runs] == folders
        assert all(run["experiment"] == "lab" and run["started_at"].endswith("Z") for run in runs)
        assert len(here("runs", *options, cwd=project).stdout.splitlines()) == len(folders)

    def test_status_as_json(self, project: Path) -> None:
        found = json.loads(here("status", "--json", cwd=project).stdout)
        assert (found["status"], found["done"], found["failed"], found["requests"]) == ("failed_rows", 3, 1, 3)
        assert found["stages"] == {"a": {"done": 3, "error": 1, "skipped": 0, "pending": 0}}
        assert [(each["stage"], each["rows"]) for each in found["failures"]] == [("a", 1)]

    def test_status_of_the_newest_in_a_state(self, project: Path) -> None:
        assert OLD in here("status", "--state", "done", cwd=project).stdout

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["runs", "--state", "failed"], 2, "Did you mean 'failed_rows'?"),
            (["runs", "--sort", "price"], 2, "--sort price: no such order"),
            (["status", "--state", "killed"], 1, "no run below outputs/ of state killed"),
            (["status", OLD, "--experiment", "other"], 1, "is lab, done: it is no run of experiment other"),
        ],
    )
    def test_a_filter_that_leaves_nothing(self, project: Path, arguments: list[str], code: int, words: str) -> None:
        found = here(*arguments, cwd=project)
        assert (found.returncode, found.stdout) == (code, "")
        assert words in found.stderr

    def test_no_runs(self, tmp_path: Path) -> None:
        found = here("runs", cwd=tmp_path)
        assert (found.returncode, found.stdout) == (0, "")
        assert "no run" in found.stderr

    def test_a_damaged_run_does_not_hide_the_others(self, tmp_path: Path, simulator: Simulator) -> None:
        lab = Lab(tmp_path)
        lab.rows(texts(1))
        lab.run(experiment(simulator.url, {"a": generate()}))
        broken = tmp_path / "outputs" / "lab" / "broken"
        broken.mkdir()
        (broken / "run.duckdb").write_bytes(b"x" * 10_000)
        found = here("runs", cwd=tmp_path)
        assert found.returncode == 0
        assert "1 done" in found.stdout
        assert "damaged" in found.stdout

    def test_a_run_that_is_going_on(self, project: Path) -> None:
        """Its database cannot be opened meanwhile, not even to read: that is said plainly."""
        with duckdb.connect(str(project / OLD / "run.duckdb")):
            found = infermesh("status", OLD, cwd=project)
            assert found.returncode == 0
            assert "running" in found.stdout
            found = infermesh("sql", "SELECT 1", "--run", OLD, cwd=project)
            assert found.returncode == 1
            assert "is in use by" in found.stderr


class TestResume:
    @pytest.fixture
    def interrupted(self, lab: Lab, simulator: Simulator) -> Lab:
        """A run with three rows left, in a project that has a complete one too."""
        lab.rows(texts(2))
        mapping = experiment(simulator.url, {"a": generate()})
        lab.folder = lab.root / "outputs" / "lab" / "complete"
        lab.run(mapping, watch=Watch())
        lab.folder = lab.root / "outputs" / "lab" / "left"
        lab.run(mapping)
        lab.rows(texts(5))
        with duckdb.connect(str(lab.folder / "run.duckdb")) as connection:
            connection.execute("UPDATE run SET status = 'interrupted'")
        simulator.reset()
        return lab

    @pytest.mark.parametrize("name", [None, "outputs/lab/left", "left", "lab"])
    def test_a_run_goes_on(self, interrupted: Lab, simulator: Simulator, name: str | None) -> None:
        found = here("resume", *([] if name is None else [name]), cwd=interrupted.root)
        assert found.returncode == 0, found.stderr
        assert found.stdout == ""
        assert "outputs/lab/left" in found.stderr
        assert totals(simulator)["received"] == 3
        assert interrupted.one("SELECT count(*) FROM a WHERE status = 'done'") == 5

    def test_nothing_to_go_on_with(self, interrupted: Lab, simulator: Simulator) -> None:
        assert here("resume", cwd=interrupted.root).returncode == 0
        simulator.reset()
        found = here("resume", cwd=interrupted.root)
        assert found.returncode == 0
        assert "nothing to resume" in found.stderr
        assert totals(simulator)["received"] == 0

    def test_an_older_run_is_named_and_not_resumed(self, interrupted: Lab, simulator: Simulator) -> None:
        """Nobody named it, and it may be of another experiment: on a terminal it is asked, and here refused."""
        interrupted.folder = interrupted.root / "outputs" / "lab" / "newest"
        interrupted.run(experiment(simulator.url, {"a": generate()}))
        simulator.reset()
        found = here("resume", cwd=interrupted.root)
        assert found.returncode == 2
        assert "outputs/lab/left (lab: interrupted, 0 row states pending) is unfinished, but older" in found.stderr
        assert "the newest run, outputs/lab/newest (lab: done)" in found.stderr
        assert "infermesh resume outputs/lab/left" in found.stderr
        assert totals(simulator)["received"] == 0

    def test_a_run_with_nothing_pending_is_left_aside_for_one_with_pending_rows(
        self, interrupted: Lab, simulator: Simulator
    ) -> None:
        """It was interrupted after its last row, and can only be closed."""
        with duckdb.connect(str(interrupted.folder / "run.duckdb")) as connection:
            connection.execute("UPDATE a SET status = 'pending' WHERE row_id = 0")
        newest = interrupted.root / "outputs" / "lab" / "newest"
        interrupted.folder = newest
        interrupted.run(experiment(simulator.url, {"a": generate()}))
        with duckdb.connect(str(newest / "run.duckdb")) as connection:
            connection.execute("UPDATE run SET status = 'interrupted'")
        found = here("resume", cwd=interrupted.root)
        assert found.returncode == 2
        assert "left aside, as nothing is pending there: outputs/lab/newest (lab: interrupted)" in found.stderr
        assert "outputs/lab/left (lab: interrupted, 1 row state pending) is unfinished, but older" in found.stderr
        assert "infermesh resume outputs/lab/left" in found.stderr

    def test_no_run_at_all(self, tmp_path: Path) -> None:
        found = here("resume", cwd=tmp_path)
        assert found.returncode == 1
        assert "there is no run below outputs/ yet" in found.stderr

    def test_no_such_run(self, tmp_path: Path) -> None:
        found = here("resume", "nothing", cwd=tmp_path)
        assert found.returncode == 1
        assert "no run 'nothing'" in found.stderr

    def test_failed_rows_are_left_where_that_is_asked(self, interrupted: Lab, simulator: Simulator) -> None:
        with duckdb.connect(str(interrupted.folder / "run.duckdb")) as connection:
            connection.execute("UPDATE a SET status = 'error', error_type = 'timeout' WHERE row_id = 0")
        found = here("resume", "left", "--keep-errors", cwd=interrupted.root)
        assert found.returncode == 3, found.stderr
        assert totals(simulator)["received"] == 3
        retried = here("retry", "left", "--stage", "a", "--dry-run", cwd=interrupted.root)
        assert "1 row of a where status = 'error'" in retried.stderr
        assert here("retry", "left", "--stage", "a", cwd=interrupted.root).returncode == 0
        assert totals(simulator)["received"] == 4

    def test_from_another_folder(
        self, interrupted: Lab, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The run remembers where its files were."""
        found = here("resume", str(interrupted.folder), cwd=tmp_path_factory.mktemp("elsewhere"))
        assert found.returncode == 0, found.stderr
        assert totals(simulator)["received"] == 3


@pytest.mark.parametrize("link", ["outputs", "parent", "experiment"])
def test_runs_on_another_disk_are_found(
    project: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, link: str
) -> None:
    """On clusters ``outputs``, the folder that it is in, or an experiment's folder is a link to scratch space."""
    disk = tmp_path_factory.mktemp("scratch")
    shutil.copytree(project / "outputs", disk / "outputs", symlinks=True)
    home, outputs = tmp_path, "outputs"
    if link == "outputs":
        (home / "outputs").symlink_to(disk / "outputs")
    elif link == "parent":
        (home / "team").symlink_to(disk)
        outputs = str(home / "team" / "outputs")
        home = home / "team"
    else:
        (home / "outputs").mkdir()
        (home / "outputs" / "lab").symlink_to(disk / "outputs" / "lab")
    listed = here("runs", "--outputs", outputs, cwd=home)
    assert listed.stdout.count("2025-01-0") == 2, listed.stderr
    every = here("sql", "SELECT count(*) FROM source", "--all", "--outputs", outputs, cwd=home)
    assert every.stdout.split() == ["count_star()", "8"], every.stderr
    for words in (["status"], ["sql", "SELECT 1 AS one"], ["sql", "SELECT 1 AS one", "--run", "2025-01-01_10-00-00"]):
        found = here(*words, cwd=home)
        assert found.returncode == 0, found.stderr
    assert "no run is going on" in here("stop", cwd=home).stderr
    resumed = here("resume", cwd=home)
    assert resumed.returncode == 0
    assert "nothing to resume" in resumed.stderr
