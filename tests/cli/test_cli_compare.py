"""``infermesh sql --all`` and ``--runs``, ``diff`` and ``export``, on real runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.config.declaration import declare
from infermesh.runs.execute import execute
from infermesh.simulator import Simulator
from tests.support import Lab, Watch, embed, experiment, generate, here, texts

JOBS = "outputs/lab/2025-01-01_10-00-00"
OTHER = "outputs/lab/2025-01-02_10-00-00"


def run(root: Path, folder: str, mapping: Mapping[str, Any], overrides: list[str]) -> None:
    execute(declare(mapping, [root], overrides), root / folder, observer=Watch(), environ={})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two jobs; a run with another prompt, a failed row, one source row fewer and one more."""
    root = tmp_path_factory.mktemp("project")
    lab = Lab(root)
    rows = texts(10)
    lab.rows(rows)
    lab.rows([*rows[:9], {"n": 99, "text": "A new one."}], "others.jsonl")
    with Simulator() as service:
        for job, slots in enumerate((1, 4)):
            stages = {"a": generate(max_parallel_requests=slots), "v": embed(params={"dimensions": 2})}
            overrides = ["+experiment=lab", f"stages.a.max_parallel_requests={slots}"]
            run(root, f"{JOBS}/{job}", experiment(service.url, stages), overrides)
        prompt = "{{ text if n != 3 else 'Something else.' }} {{ 1 / n if n == 0 else '' }}"
        stages = {"a": generate(prompt, max_parallel_requests=64), "w": embed()}
        run(root, OTHER, experiment(service.url, stages, source={"path": "others.jsonl"}), ["+experiment=lab"])
    return root


def output(root: Path, *arguments: str) -> str:
    found = here(*arguments, cwd=root)
    assert found.returncode == 0, found.stderr
    return found.stdout


class TestSqlAcross:
    def test_all_runs_are_one(self, project: Path) -> None:
        query = (
            "SELECT max_parallel_requests AS slots, count(*) AS c FROM a WHERE status = 'done' GROUP BY ALL ORDER BY 1"
        )
        assert output(project, "sql", "--all", query) == "slots,c\n1,10\n4,10\n64,9\n"

    def test_old_databases_join_in(self, project: Path, tmp_path: Path) -> None:
        """Made before there were sessions and overrides."""
        shutil.copytree(project / "outputs", tmp_path / "outputs", symlinks=True)
        with duckdb.connect(str(tmp_path / JOBS / "0" / "run.duckdb")) as connection:
            connection.execute("DROP TABLE sessions")
            connection.execute("ALTER TABLE run DROP COLUMN overrides")
        query = "SELECT max_parallel_requests AS slots FROM run ORDER BY ALL"
        assert output(tmp_path, "sql", "--all", query) == "slots\n1\n4\n64\n"
        assert output(tmp_path, "sql", "--all", "SELECT count(*) AS c FROM sessions") == "c\n2\n"
        lines = output(tmp_path, "diff", f"{JOBS}/0", f"{JOBS}/1", "--format", "jsonl")
        assert lines == ""

    @pytest.mark.parametrize(
        ("patterns", "runs"),
        [
            (["outputs/lab/*"], 3),
            ([JOBS], 2),
            ([f"{JOBS}/*"], 2),
            ([f"{JOBS}/0", OTHER], 2),
            ([f"{JOBS}/1/run.duckdb"], 1),
            (["outputs/**"], 3),
            (["outputs/lab/latest"], 1),
        ],
    )
    def test_runs_by_globs_each_once(self, project: Path, patterns: list[str], runs: int) -> None:
        options = [word for pattern in patterns for word in ("--runs", pattern)]
        assert output(project, "sql", *options, "SELECT count(DISTINCT run_id) AS c FROM a") == f"c\n{runs}\n"

    def test_parquet_and_tables(self, project: Path) -> None:
        text = output(project, "sql", "--all", "FROM progress ORDER BY ALL LIMIT 1", "--format", "table")
        assert "max_parallel_requests" in text

    def test_a_run_that_cannot_be_read_is_named_and_left_out(self, project: Path, tmp_path: Path) -> None:
        shutil.copytree(project / "outputs", tmp_path / "outputs", symlinks=True)
        damaged = tmp_path / "outputs" / "damaged"
        damaged.mkdir()
        (damaged / "run.duckdb").write_text("hello")
        found = here("sql", "--all", "SELECT count(*) AS c FROM run", cwd=tmp_path)
        assert (found.returncode, found.stdout) == (0, "c\n3\n")
        assert found.stderr.startswith("left out: outputs/damaged/run.duckdb cannot be opened: ")
        assert len(found.stderr.splitlines()) == 1

    def test_a_live_run_is_named_and_left_out(self, project: Path, tmp_path: Path) -> None:
        shutil.copytree(project / "outputs", tmp_path / "outputs", symlinks=True)
        code = (
            f"import duckdb; c = duckdb.connect({str(tmp_path / OTHER / 'run.duckdb')!r}); print(flush=True); input()"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            found = here("sql", "--all", "SELECT count(*) AS c FROM run", cwd=tmp_path)
            holder.communicate(b"\n")
        assert (found.returncode, found.stdout) == (0, "c\n2\n")
        words = f"left out: {OTHER}/run.duckdb is in use by process {holder.pid}: a run that is still going?"
        assert found.stderr.startswith(words)

    def test_a_killed_runs_last_commits_are_there(self, project: Path, tmp_path: Path) -> None:
        """They stand in DuckDB's log, beside the database."""
        shutil.copytree(project / JOBS, tmp_path / "runs")
        file = tmp_path / "runs" / "0" / "run.duckdb"
        code = (
            f"import duckdb, os; c = duckdb.connect({str(file)!r}); "
            "c.execute(\"INSERT INTO attempts_log (stage) VALUES ('late')\"); os._exit(9)"
        )
        subprocess.run([sys.executable, "-c", code], check=False)
        assert file.with_name("run.duckdb.wal").exists()
        assert (
            output(tmp_path, "sql", "--runs", "runs", "SELECT count(*) AS c FROM attempts WHERE stage = 'late'")
            == "c\n1\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["--all", "FROM resulst"], 1, 'Did you mean "results"?'),
            (["--all", "SELECT nn FROM results"], 1, "(in 3 runs)"),
            (["--all", "--run", "lab", "FROM a"], 2, "give one of the three"),
            (["--all", "--runs", "x", "FROM a"], 2, "give one of the three"),
            (["--runs", "nowhere/*", "FROM a"], 1, "no run matches nowhere/*"),
            (["--all", "--outputs", "nowhere", "FROM a"], 1, "there is no run below nowhere/"),
            (["--all", "--format", "cvs", "FROM a"], 2, "Did you mean 'csv'?"),
            (["--all", "DROP TABLE run_0.a"], 1, "read-only"),
        ],
    )
    def test_what_cannot_be_is_told(self, project: Path, arguments: list[str], code: int, words: str) -> None:
        found = here("sql", *arguments, cwd=project)
        assert (found.returncode, found.stdout) == (code, "")
        assert words in found.stderr


class TestDiff:
    def test_equal_answers(self, project: Path) -> None:
        found = here("diff", f"{JOBS}/0", f"{JOBS}/1", "--format", "jsonl", cwd=project)
        assert (found.returncode, found.stdout) == (0, "")
        assert "a: 10 rows in both; 10 same answer, 0 different answer\n" in found.stderr
        assert "v: 10 rows in both; 10 same answer, 0 different answer\n" in found.stderr

    def test_rows_are_matched_by_content(self, project: Path) -> None:
        """Row 3 was asked otherwise, row 0 failed, row 9 is only in A and another is only in B."""
        found = here("diff", f"{JOBS}/0", OTHER, "--format", "jsonl", cwd=project)
        assert found.returncode == 0
        summary = "a: 9 rows in both; 7 same answer, 1 different answer, 1 done in one and not in the other, "
        assert f"{summary}1 only in A, 1 only in B\n" in found.stderr
        assert "only in A: stage v\nonly in B: stage w\n" in found.stderr
        failed, changed = map(json.loads, found.stdout.splitlines())
        assert (failed["row_id_a"], failed["status_a"], failed["status_b"]) == (0, "done", "error")
        assert failed["answer_a"]["text"] == "Parcel number 0 came late."
        assert "division by zero" in failed["answer_b"]["error"]
        assert changed["differs"] == "text"
        assert (changed["row_id_a"], changed["answer_a"]) == (3, {"text": "Parcel number 3 came late."})
        assert changed["answer_b"] == {"text": "Something else."}

    def test_the_other_way_round(self, project: Path) -> None:
        rows = list(csv.DictReader(io.StringIO(output(project, "diff", OTHER, f"{JOBS}/0", "--limit", "1"))))
        assert [(row["stage"], row["status_a"], row["status_b"]) for row in rows] == [("a", "error", "done")]

    def test_what_it_took_is_beside_each_other(self, project: Path) -> None:
        text = here("diff", f"{JOBS}/0", OTHER, cwd=project).stderr
        lines = (re.fullmatch(r" (\S.*?) {2,}(\S+) +(\S+) *(\S*) *", line) for line in text.splitlines())
        measures = {line[1]: line.groups()[1:] for line in lines if line}
        with duckdb.connect(str(project / OTHER / "run.duckdb"), read_only=True) as connection:
            ((requests, p95),) = connection.execute(
                "SELECT count(*), quantile_disc(service_s, 0.95) FROM attempts WHERE stage = 'a'"
            ).fetchall()
        assert measures["requests"] == ("10", str(requests), f"{requests / 10:.2f}")
        assert measures["p95 service, s"][1] == f"{p95:.3f}"
        assert float(measures["rows/s"][0]) > 0

    def test_retired_rows_are_out(self, project: Path, tmp_path: Path) -> None:
        for name, folder in (("a", f"{JOBS}/0"), ("b", f"{JOBS}/1")):
            shutil.copytree(project / folder, tmp_path / name)
        with duckdb.connect(str(tmp_path / "b" / "run.duckdb")) as connection:
            connection.execute("INSERT INTO retired (row_id) VALUES (4), (5)")
        text = here("diff", "a", "b", "--stage", "a", cwd=tmp_path).stderr
        assert "a: 8 rows in both; 8 same answer, 0 different answer, 2 only in A\n" in text

    def test_a_stage_without_answers_is_passed_over(self, project: Path, tmp_path: Path) -> None:
        """Such as a query's rows, which have no status."""
        for name in ("a", "b"):
            shutil.copytree(project / f"{JOBS}/0", tmp_path / name)
            with duckdb.connect(str(tmp_path / name / "run.duckdb")) as connection:
                connection.execute('UPDATE run SET config = replace(config, \'"stages":{\', \'"stages":{"rows":{},\')')
                connection.execute("CREATE TABLE rows AS SELECT row_id, row_key, n FROM source")
        assert "a: 10 rows in both; 10 same" in here("diff", "a", "b", cwd=tmp_path).stderr
        assert output(tmp_path, "sql", "--runs", "a", "SELECT count(*) AS c FROM rows") == "c\n10\n"
        assert here("export", "a", "r.csv", "--table", "rows", cwd=tmp_path).returncode == 0

    def test_stages_over_a_querys_rows(self, lab: Lab, simulator: Simulator) -> None:
        """Two texts to a row of the source; the first row's have changed, and all row_ids with them."""
        rows = [{"n": n, "parts": [f"Row {n}, part {part}." for part in range(2)]} for n in range(4)]
        query = "SELECT n, unnest(json_transform(parts, '[\"VARCHAR\"]')) AS part FROM source"
        stages = {
            "chunks": {"kind": "sql", "query": query},
            "a": {"model": "m", **generate("{{ chunks.part }}")},
        }
        mapping = experiment(simulator.url, {}, sinks={"s": {"path": "a.csv", "table": "chunks_results"}})
        mapping["stages"] = stages
        for name in ("a", "b"):
            lab.folder = lab.root / name
            lab.rows(rows)
            files = lab.run(mapping).files
            assert [(file.path.name, file.rows) for file in files.written] == [("a.csv", 8)]
            rows = [*rows[1:], {"n": 0, "parts": ["New.", "Newer."]}]
        text = here("diff", "a", "b", cwd=lab.root).stderr
        assert "a: 6 rows in both; 6 same answer, 0 different answer, 2 only in A, 2 only in B\n" in text

    def test_eyes_see_values(self, project: Path) -> None:
        text = output(project, "diff", f"{JOBS}/0", OTHER, "--format", "table")
        assert "Something else." in text
        same = here("diff", f"{JOBS}/0", f"{JOBS}/1", "--format", "table", cwd=project)
        assert (same.stdout, same.stderr.splitlines()[-1]) == ("", "no row differs")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([f"{JOBS}/0", OTHER, "--stage", "b"], "--stage b: no stage of both runs. There is: a."),
            ([f"{JOBS}/0", "nowhere"], "no run 'nowhere'"),
        ],
    )
    def test_what_cannot_be_is_told(self, project: Path, arguments: list[str], words: str) -> None:
        found = here("diff", *arguments, cwd=project)
        assert (found.returncode, found.stdout) == (1, "")
        assert words in found.stderr


class TestExport:
    def test_results_by_default(self, project: Path, tmp_path: Path) -> None:
        found = here("export", f"{JOBS}/0", str(tmp_path / "r.parquet"), cwd=project)
        assert (found.returncode, found.stdout) == (0, "")
        assert found.stderr.startswith(f"written {tmp_path}/r.parquet (10 rows, ")
        with duckdb.connect() as connection:
            rows = connection.execute(
                f"SELECT row_id, n, a_text, len(v_embedding) FROM '{tmp_path}/r.parquet'"
            ).fetchall()
        assert rows == [(n, n, f"Parcel number {n} came late.", 2) for n in range(10)]

    @pytest.mark.long
    def test_every_table_in_every_format(self, project: Path, tmp_path: Path) -> None:
        for table in ("results", "a", "v", "attempts", "run", "source", "progress", "sessions"):
            for ending in ("parquet", "csv", "jsonl"):
                target = tmp_path / f"{table}.{ending}"
                assert here("export", f"{JOBS}/0", str(target), "--table", table, cwd=project).returncode == 0
            lines = (tmp_path / f"{table}.jsonl").read_text().splitlines()
            assert all(isinstance(json.loads(line), dict) for line in lines)
            assert lines
        assert json.loads((tmp_path / "run.jsonl").read_text())["config"]["name"] == "lab"

    def test_columns_and_a_condition(self, project: Path, tmp_path: Path) -> None:
        arguments = ("--columns", "n, a_status", "--where", "a_status <> 'done'")
        here("export", OTHER, str(tmp_path / "r.csv"), *arguments, cwd=project)
        assert (tmp_path / "r.csv").read_text() == "n,a_status\n0,error\n"

    def test_a_query(self, project: Path, tmp_path: Path) -> None:
        query = "SELECT n, a_parsed AS p FROM results ORDER BY n DESC LIMIT 2; "
        here("export", OTHER, str(tmp_path / "r.jsonl"), "--sql", query, cwd=project)
        assert (tmp_path / "r.jsonl").read_text() == '{"n":99,"p":null}\n{"n":8,"p":null}\n'

    def test_a_file_that_is_there_stays_unless_told(self, project: Path, tmp_path: Path) -> None:
        target = tmp_path / "r.csv"
        target.write_text("mine")
        found = here("export", OTHER, str(target), cwd=project)
        assert (found.returncode, target.read_text()) == (1, "mine")
        assert "--overwrite replaces it" in found.stderr
        assert here("export", OTHER, str(target), "--overwrite", "--columns", "n", cwd=project).returncode == 0
        assert target.read_text().startswith("n\n0\n1\n")

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["r.xls"], 1, "expected a name that ends in .parquet"),
            (["r.csv", "--table", "b"], 1, "--table: no table 'b'"),
            (["r.csv", "--columns", "a_txt"], 1, "Did you mean 'a_text'?"),
            (["r.csv", "--where", "nope = 1"], 1, "--where: Binder Error"),
            (["r.csv", "--sql", "SELEC 1"], 1, "syntax error"),
            (["r.csv", "--sql", "SELECT 1", "--table", "a"], 2, "--sql is the whole query"),
        ],
    )
    def test_what_cannot_be_is_told(self, project: Path, arguments: list[str], code: int, words: str) -> None:
        found = here("export", OTHER, *arguments, cwd=project)
        assert (found.returncode, found.stdout) == (code, "")
        assert words in found.stderr
        assert not (project / arguments[0]).exists()


class TestAFolderOfRuns:
    """A sweep's folder, wherever a run is expected: every command takes it, or says which command works."""

    @pytest.fixture
    def sweep(self, project: Path) -> Path:
        (project / JOBS / ".jobs").mkdir(exist_ok=True)
        return project

    def test_sql_asks_all_its_jobs(self, sweep: Path) -> None:
        found = here(
            "sql", "--run", JOBS, "SELECT max_parallel_requests AS slots, count(*) FROM a GROUP BY 1", cwd=sweep
        )
        assert sorted(found.stdout.splitlines()) == ["1,10", "4,10", "slots,count_star()"]
        assert f"{JOBS} is a sweep of 2 jobs" in found.stderr

    def test_status_lists_its_jobs_with_what_differs(self, sweep: Path) -> None:
        text = output(sweep, "status", JOBS)
        assert "0  max_parallel_requests=1  done" in text
        assert "1  max_parallel_requests=4  done" in text
        assert f"infermesh sql --runs {JOBS}" in text
        assert [job["folder"] for job in json.loads(output(sweep, "status", JOBS, "--json"))] == [
            f"{JOBS}/0",
            f"{JOBS}/1",
        ]

    def test_status_says_how_many_jobs_are_left_to_begin(self, sweep: Path, tmp_path: Path) -> None:
        shutil.copytree(sweep / JOBS, tmp_path / "outputs/s")
        (tmp_path / "outputs/s/.jobs/1.json").write_text('{"of": 5}')
        (tmp_path / "outputs/s/multirun.yaml").write_text("hydra: {overrides: {task: [k=1, 'v=1,2'], hydra: []}}")
        text = output(tmp_path, "status", "outputs/s")
        assert text.startswith("outputs/s is a sweep of 5 jobs, 2 of them begun\n")
        assert "continue: infermesh run -m k=1 v=1,2 hydra.sweep.dir=outputs/s" in text

    def test_status_of_a_job_names_its_sweep(self, sweep: Path) -> None:
        assert f"infermesh status {JOBS}" in output(sweep, "status", f"{JOBS}/1")

    def test_verify_looks_at_each(self, sweep: Path) -> None:
        text = output(sweep, "verify", JOBS)
        assert f"{JOBS}/0\n" in text
        assert f"{JOBS}/1\n" in text

    def test_export_writes_all_with_what_differs(self, sweep: Path) -> None:
        options = ("--table", "a", "--columns", "max_parallel_requests,row_id,text", "--overwrite")
        output(sweep, "export", JOBS, "all.jsonl", *options)
        rows = [json.loads(line) for line in (sweep / "all.jsonl").read_text().splitlines()]
        assert sorted(row["max_parallel_requests"] for row in rows) == [1] * 10 + [4] * 10

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["diff", JOBS, JOBS], f"infermesh diff {JOBS}/0 {JOBS}/1"),
            (["diff", JOBS, OTHER], f"infermesh diff {JOBS}/1 {OTHER}"),
            (["diff", OTHER, JOBS], f"infermesh diff {OTHER} {JOBS}/1"),
            (["stop", JOBS], f"no run is going on below {JOBS}/"),
            (["retry", JOBS, "--stage", "a"], f"infermesh retry {JOBS}/1 --stage a"),
        ],
    )
    def test_where_one_run_is_needed_the_command_is_there(self, sweep: Path, arguments: list[str], words: str) -> None:
        found = here(*arguments, cwd=sweep)
        assert found.returncode in (1, 2)
        assert words in found.stderr
        assert len(found.stderr.splitlines()) == 1

    def test_a_setting_with_another_columns_name_is_told(self, project: Path) -> None:
        """A column has the shortest name that no other setting has, which depends on the runs that are asked."""
        found = here("sql", "--all", "SELECT a.max_parallel_requests, stages FROM results", cwd=project)
        assert "In these runs" not in found.stderr
        found = here("sql", "--all", 'SELECT "a.max_parallel_requests" FROM results', cwd=project)
        assert "is max_parallel_requests (stages.a.max_parallel_requests)" in found.stderr

    def test_a_setting_that_two_stages_have_is_told_with_both_columns(self, project: Path, tmp_path: Path) -> None:
        shutil.copytree(project / JOBS, tmp_path / "runs")
        for job in (0, 1):
            with duckdb.connect(str(tmp_path / "runs" / str(job) / "run.duckdb")) as connection:
                overrides = json.dumps([f"stages.a.prompt=a{job}.jinja", f"stages.v.prompt=v{job}.jinja"])
                connection.execute("UPDATE run SET overrides = ?", [overrides])
        found = here("sql", "--run", "runs", "SELECT prompt FROM results", cwd=tmp_path)
        assert found.returncode == 1
        assert "the setting prompt is a_prompt (stages.a.prompt) or v_prompt (stages.v.prompt)" in found.stderr
        assert output(tmp_path, "sql", "--run", "runs", "SELECT DISTINCT a_prompt FROM results ORDER BY 1").split() == [
            "a_prompt",
            "a0.jinja",
            "a1.jinja",
        ]
