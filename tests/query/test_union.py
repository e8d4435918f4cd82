"""Many runs as one database: what their columns become, which settings are columns and what those are called."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.query.overrides import column_names
from infermesh.query.union import RunUnion
from infermesh.store.schema import RUN_DDL

RUN = "run_id VARCHAR, experiment VARCHAR, config JSON, started_at TIMESTAMP"


def make(
    folder: Path,
    *statements: str,
    overrides: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    name: str | None = None,
    experiment: str = "lab",
) -> Path:
    """A run's database in ``folder``, with what the statements make; an old one where there are no overrides."""
    folder.mkdir(parents=True)
    with duckdb.connect(str(folder / "run.duckdb")) as connection:
        connection.execute(f"CREATE TABLE run ({RUN}{'' if overrides is None else ', overrides JSON'})")
        values = [name or folder.name, experiment, json.dumps(config or {}), "2025-01-01"]
        if overrides is not None:
            values.append(json.dumps(overrides))
        connection.execute(f"INSERT INTO run VALUES ({', '.join('?' * len(values))})", values)
        for statement in statements:
            connection.execute(statement)
    return folder


def ask(folders: Sequence[Path], query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows."""
    with RunUnion(folders, "run.duckdb") as union:
        assert union.left_out == []
        union.prepare(query)
        union.connection.execute(query)
        return [column[0] for column in union.connection.description or ()], union.connection.fetchall()


class TestNames:
    @pytest.mark.parametrize(
        ("keys", "taken", "names"),
        [
            (["stages.a.max_parallel_requests"], (), ["max_parallel_requests"]),
            (["stages.a.window", "stages.b.window"], (), ["a_window", "b_window"]),
            (["stages.a.where", "models.m.text"], ("where", "text"), ["a_where", "m_text"]),
            (["experiment"], ("experiment",), ["override_experiment"]),
            (["run_id", "a.run_id"], ("run_id",), ["override_run_id", "a_run_id"]),
            (["model@models.llama"], (), ["llama"]),
            (["x.a", "y.x.a"], (), ["x_a", "y_x_a"]),
        ],
    )
    def test_the_shortest_that_is_free(self, keys: list[str], taken: tuple[str, ...], names: list[str]) -> None:
        assert list(column_names(keys, taken).values()) == names


class TestSettings:
    def test_those_that_differ_are_typed_columns(self, tmp_path: Path) -> None:
        folders = [
            make(
                tmp_path / f"r{n}",
                "CREATE TABLE results AS SELECT 7 AS n",
                overrides=[
                    "+experiment=lab",
                    f"a.window={n}",
                    f"++b.rate={rate}",
                    f"c.on={on}",
                    f"d.text={text}",
                    "e.f=1",
                ],
            )
            for n, (rate, on, text) in enumerate([("1e-3", "true", "x"), ("2", "false", "'it''s'")])
        ]
        assert ask(folders, "SELECT * FROM results ORDER BY run_id") == (
            ["run_id", "a_window", "rate", "c_on", "text", "n"],
            [("r0", 0, 0.001, True, "x", 7), ("r1", 1, 2.0, False, "it's", 7)],
        )

    def test_one_that_a_run_was_not_given_comes_from_its_config(self, tmp_path: Path) -> None:
        config = {"stages": {"a": {"slots": 64}}}
        folders = [
            make(tmp_path / "old", config=config),
            make(tmp_path / "plain", overrides=[], config=config),
            make(tmp_path / "swept", overrides=["stages.a.slots=8", "~stages.b"], config=config),
        ]
        assert ask(folders, "SELECT run_id, slots, b FROM run ORDER BY run_id")[1] == [
            ("old", 64, None),
            ("plain", 64, None),
            ("swept", 8, "removed"),
        ]

    def test_other_experiments_are_told_apart(self, tmp_path: Path) -> None:
        folders = [
            make(tmp_path / name, "CREATE TABLE a AS SELECT 1 AS n", experiment=name, overrides=[f"+experiment={name}"])
            for name in ("x", "y")
        ]
        assert ask(folders, "SELECT * FROM a ORDER BY run_id") == (
            ["run_id", "experiment", "n"],
            [("x", "x", 1), ("y", "y", 1)],
        )
        names, rows = ask(folders, "FROM run ORDER BY run_id")
        assert names == ["run_id", "experiment", "config", "started_at", "overrides", "folder"]
        assert [row[-1] for row in rows] == [str(folder) for folder in folders]

    def test_experiment_files_that_share_a_name(self, tmp_path: Path) -> None:
        folders = [
            make(tmp_path / name, "CREATE TABLE a AS SELECT 1 AS n", overrides=[f"+experiment={name}"])
            for name in ("x", "y")
        ]
        assert ask(folders, "FROM a ORDER BY run_id")[1] == [("x", "x", 1), ("y", "y", 1)]
        assert ask(folders, "SELECT experiment, override_experiment FROM run ORDER BY 2")[1] == [
            ("lab", "x"),
            ("lab", "y"),
        ]


class TestColumns:
    @pytest.mark.parametrize(
        ("first", "second", "kind", "values"),
        [
            ("1::INTEGER", "2::BIGINT", "BIGINT", (1, 2)),
            ("1::HUGEINT", "0.5::DOUBLE", "DOUBLE", (1.0, 0.5)),
            ("9007199254740993::BIGINT", "0.5::DOUBLE", "VARCHAR", ("9007199254740993", "0.5")),
            ("1::BIGINT", "'x'", "VARCHAR", ("1", "x")),
            ("true", "1::BIGINT", "VARCHAR", ("true", "1")),
            ("TIMESTAMP '2025-01-01'", "'soon'", "VARCHAR", ("2025-01-01 00:00:00", "soon")),
            ("'{\"a\":1}'::JSON", "'not json'", "JSON", ('{"a":1}', '"not json"')),
            ("'[1]'::JSON", "2::BIGINT", "JSON", ("[1]", "2")),
            ("[0.5]::FLOAT[]", "'none'", "JSON", ("[0.5]", '"none"')),
            ("{'a': 1}", "1::BIGINT", "JSON", ('{"a":1}', "1")),
            ("NULL::JSON", "NULL::VARCHAR", "JSON", (None, None)),
            ("1.5::DECIMAL(3, 1)", "1::INTEGER", "VARCHAR", ("1.5", "1")),
        ],
    )
    def test_types_that_differ_find_one_that_holds_both(
        self, tmp_path: Path, first: str, second: str, kind: str, values: tuple[Any, ...]
    ) -> None:
        folders = [
            make(tmp_path / name, f"CREATE TABLE a AS SELECT {value} AS x", overrides=[])
            for name, value in (("r0", first), ("r1", second))
        ]
        rows = ask(folders, "SELECT typeof(x), x FROM a ORDER BY run_id")[1]
        assert rows == [(kind, value) for value in values]

    def test_columns_and_tables_that_some_runs_lack(self, tmp_path: Path) -> None:
        folders = [
            make(tmp_path / "r0", "CREATE TABLE a AS SELECT 1 AS x, 2 AS y", overrides=[]),
            make(
                tmp_path / "r1",
                "CREATE TABLE a AS SELECT 3 AS z, 4 AS X",
                "CREATE TABLE b AS SELECT 5 AS n",
                overrides=[],
            ),
        ]
        assert ask(folders, "FROM a ORDER BY run_id") == (
            ["run_id", "x", "y", "z"],
            [("r0", 1, 2, None), ("r1", 4, None, 3)],
        )
        assert ask(folders, "FROM b")[1] == [("r1", 5)]

    def test_a_column_of_the_users_called_run_id(self, tmp_path: Path) -> None:
        made = "CREATE TABLE source AS SELECT 'mine' AS run_id, 1 AS source_run_id"
        folders = [make(tmp_path / name, made, overrides=[]) for name in ("r0", "r1")]
        assert ask(folders, "FROM source ORDER BY 1")[0] == ["run_id", "source_source_run_id", "source_run_id"]

    def test_views_see_their_own_runs_tables(self, tmp_path: Path) -> None:
        folders = [
            make(
                tmp_path / f"r{n}",
                f"CREATE TABLE source AS SELECT {n} AS n",
                "CREATE VIEW results AS SELECT s.n AS doubled FROM source s",
                overrides=[],
            )
            for n in range(3)
        ]
        assert ask(folders, "SELECT doubled FROM results ORDER BY run_id")[1] == [(0,), (1,), (2,)]
        assert ("results",) in ask(folders, "SHOW TABLES")[1]


class TestLeftOut:
    def test_damaged_empty_missing_and_copied_runs(self, tmp_path: Path) -> None:
        good = make(tmp_path / "good", overrides=[])
        damaged, empty, copy = tmp_path / "damaged", tmp_path / "empty", make(tmp_path / "copy", name="good")
        damaged.mkdir()
        (damaged / "run.duckdb").write_text("hello")
        empty.mkdir()
        duckdb.connect(str(empty / "run.duckdb")).close()
        with RunUnion([good, damaged, empty, copy, tmp_path / "missing"], "run.duckdb") as union:
            assert [run.folder for run in union.runs] == [good]
            text = "\n".join(union.left_out)
        assert len(union.left_out) == 4
        assert "damaged/run.duckdb cannot be opened" in text
        assert "missing/run.duckdb cannot be opened" in text
        assert f"{empty} holds no rows yet" in text
        assert f"{copy} is a copy of {good}" in text

    def test_more_runs_than_a_process_may_open_files(self, tmp_path: Path) -> None:
        """The limit is raised as far as the system lets it be."""
        source = make(tmp_path / "r", "CREATE TABLE a AS SELECT 1 AS n", overrides=[])
        content = (source / "run.duckdb").read_bytes()
        folders = [tmp_path / f"r{number}" for number in range(60)]
        for folder in folders:
            folder.mkdir()
            (folder / "run.duckdb").write_bytes(content)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (48, limits[1]))
        try:
            with RunUnion(folders, "run.duckdb") as union:
                assert [line for line in union.left_out if "is a copy of" not in line] == []
                assert len(union.left_out) == 59
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# A process at a run: holds its database and answers, with answers of so many bytes at most, until its stdin is closed.
HOLDER = """
import sys
from pathlib import Path
from infermesh.query import server
from infermesh.store.connection import connect
folder = Path(sys.argv[1])
server.LIMIT_BYTES = int(sys.argv[2])
connection = connect(folder / "run.duckdb")
with server.LiveServer(folder, connection.cursor, lambda: None):
    print("ready", flush=True)
    sys.stdin.read()
connection.close()
"""


@contextmanager
def held(folder: Path, limit_bytes: int = 1 << 20) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", HOLDER, str(folder), str(limit_bytes)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def two_runs(root: Path) -> list[Path]:
    """Runs ``x`` and ``y``; a table ``t`` of 1000 rows in each, and a small one ``u``."""
    folders = []
    for name in ("x", "y"):
        folder = root / name
        folder.mkdir()
        with duckdb.connect(str(folder / "run.duckdb")) as connection:
            connection.execute(RUN_DDL)
            connection.execute(
                "INSERT INTO run (run_id, experiment, status, config) VALUES (?, 'e', 'running', '{}')", [name]
            )
            connection.execute(
                "CREATE TABLE t AS SELECT range AS row_id, [range] AS l, md5(range::VARCHAR) AS s FROM range(1000)"
            )
            connection.execute("CREATE TABLE u AS SELECT 1::HUGEINT AS big, '{}'::JSON AS j, NULL::FLOAT[] AS v")
        folders.append(folder)
    return folders


def test_a_live_run_gives_what_is_asked_for(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    with held(folders[0]), RunUnion(folders, "run.duckdb") as union:
        assert union.left_out == []
        query = "SELECT run_id, count(*), sum(l[1])::BIGINT FROM t GROUP BY ALL ORDER BY ALL"
        union.prepare(query)
        total = sum(range(1000))
        assert union.connection.execute(query).fetchall() == [("x", 1000, total), ("y", 1000, total)]
        union.prepare("FROM u")
        found = union.connection.execute("SELECT DISTINCT * EXCLUDE (run_id) FROM u")
        assert [str(column[1]) for column in found.description or ()] == ["HUGEINT", "JSON", "FLOAT[]"]
        assert found.fetchall() == [(1, "{}", None)]


def test_a_live_table_that_is_too_large_leaves_its_run_out(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    with held(folders[0], 5000), RunUnion(folders, "run.duckdb") as union:
        union.prepare("FROM u")
        assert union.connection.execute("SELECT run_id FROM u ORDER BY 1").fetchall() == [("x",), ("y",)]
    with held(folders[0], 5000), RunUnion(folders, "run.duckdb") as union:
        union.prepare("FROM t")
        assert union.connection.execute("SELECT DISTINCT run_id FROM t").fetchall() == [("y",)]
        (line,) = union.left_out
        assert line.startswith(f"{folders[0]}, which goes on: the answer is larger than ")


def test_a_live_run_that_ends_meanwhile_is_read_from_its_file(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    with held(folders[0]) as process, RunUnion(folders, "run.duckdb") as union:
        union.prepare("FROM u")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
        union.prepare("FROM t, u")
        for table, rows in (("t", 1000), ("u", 1)):
            found = union.connection.execute(f"SELECT run_id, count(*) FROM {table} GROUP BY ALL ORDER BY ALL")
            assert found.fetchall() == [("x", rows), ("y", rows)]
