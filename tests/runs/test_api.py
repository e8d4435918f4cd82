"""Runs from Python: in scripts, threads, event loops; asked while they go on, stopped, gone on with."""

from __future__ import annotations

import asyncio
import doctest
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

import infermesh
import infermesh.runs.api
from infermesh import ConfigError, Run, StoreError
from infermesh.simulator import Simulator
from tests.support import (
    COMMAND_S,
    Lab,
    Watch,
    ask,
    environment,
    experiment,
    generate,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

Start = Callable[..., Simulator]


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Iterator[Path]:
    write_jsonl(tmp_path / "rows.jsonl", texts(20))
    write_experiment(tmp_path, experiment(simulator.url, {"a": generate(max_parallel_requests=4)}))
    with chdir(tmp_path):
        yield tmp_path


@pytest.fixture
def slow(tmp_path: Path, start_simulator: Start) -> Iterator[tuple[dict[str, Any], Simulator]]:
    """A declaration of 60 rows that takes more than a second, and its service."""
    simulator = start_simulator(latency_s=0.05)
    write_jsonl(tmp_path / "rows.jsonl", texts(60))
    with chdir(tmp_path):
        yield experiment(simulator.url, {"a": generate(max_parallel_requests=2)}), simulator


def test_the_examples_in_the_docstrings(tmp_path: Path) -> None:
    with chdir(tmp_path):
        found = doctest.testmod(infermesh.runs.api)
    assert found.attempted > 0
    assert found.failed == 0


def test_an_experiment(project: Path, simulator: Simulator) -> None:
    lines: list[str] = []
    run = infermesh.run("mine", ["stages.a.max_parallel_requests=2"], progress=lines.append)
    assert (run.status, run.exit_code) == ("done", 0)
    assert run.folder.parent == project / "outputs" / "mine"
    assert (run.folder / ".hydra" / "config.yaml").exists()
    assert (project / "outputs" / "mine" / "latest").resolve() == run.folder
    assert run.outcome is not None
    assert run.outcome.totals["requests"] == 20
    assert run.sql("SELECT count(*) FROM results WHERE a_status = 'done'").fetchall() == [(20,)]
    assert [row["n"] for row in run.results("rows")] == list(range(20))
    assert run.failures().fetchall() == []
    assert re.match(r"a 20/20  \|  .* · 20 requests · ", lines[-1])
    assert "done; a: 20 done>" in repr(run)
    assert "<td>20 done</td>" in run._repr_html_()
    assert ask(run.folder, "SELECT run_id, overrides->>1 FROM run") == [
        (run.run_id, "++stages.a.max_parallel_requests=2")
    ]


def test_overrides_as_a_dict_and_progress_as_a_word(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = {"stages.a.prompt": "It's {{ text }}, {n}", "limit": 2}
    done = infermesh.run("mine.yaml", given, progress=True)
    assert done.sql("SELECT count(*) FROM results WHERE a_text = 'It''s ' || text || ', {n}'").fetchone() == (2,)
    said = capfd.readouterr()
    assert said.out == ""
    assert "limit=2 is taken as source.limit=2" in said.err
    assert "2 rows" in said.err
    with pytest.raises(ConfigError, match="progress='yes': expected True, a function such as print, or an Observer"):
        infermesh.run("mine", progress="yes")  # type: ignore[arg-type]


def test_an_experiment_of_another_folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with chdir(tmp_path_factory.mktemp("elsewhere")):
        assert infermesh.run("mine", config_dir=project / "conf").status == "done"


def test_a_declaration_and_rows_of_ones_own(tmp_path: Path, simulator: Simulator) -> None:
    config = experiment(simulator.url, {"a": generate()})
    del config["source"]

    def rows(count: int) -> Iterator[dict[str, Any]]:
        yield from texts(count)

    with chdir(tmp_path):
        run = infermesh.run(config=config, rows=rows(5), folder="here")
        assert run.folder == tmp_path / "here"
        assert totals(simulator, "chat")["received"] == 5
        again = infermesh.run(config=config, rows=rows(7), folder="here")
    assert again.run_id == run.run_id
    assert totals(simulator, "chat")["received"] == 7  # the five are known by their content
    assert again.sql("SELECT count(*) FROM results").fetchone() == (7,)


@pytest.mark.parametrize(
    ("rows", "words"),
    [([{"text": "x"}, 3], "row 1 is a int"), ([{"text": object()}], "row 0 cannot be written as JSON")],
)
def test_rows_that_are_none(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        infermesh.run(config=experiment("http://127.0.0.1:9/v1", {"a": generate()}), rows=rows, folder=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ["mine"])
    with pytest.raises(ConfigError, match="would be overwritten"):
        infermesh.run(config=experiment("http://127.0.0.1:9/v1", {"a": generate()}), rows=texts(2), folder=tmp_path)
    assert (tmp_path / "rows.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("wait", [True, False])
def test_mistakes_are_raised_to_the_caller(project: Path, simulator: Simulator, wait: bool) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        infermesh.run("min", wait=wait)
    with pytest.raises(ConfigError, match="Did you mean 'max_parallel_requests'"):
        infermesh.run("mine", ["stages.a.max_paralel_requests=3"], wait=wait)
    with pytest.raises(ConfigError, match="'txt' is neither a column"):
        infermesh.run("mine", ["stages.a.prompt='{{ txt }}'"], wait=wait).wait()
    with pytest.raises(ConfigError, match="no experiment was chosen"):
        infermesh.run(wait=wait)
    with pytest.raises(ConfigError, match="give either config"):
        infermesh.run("mine", config={}, wait=wait)
    with pytest.raises(ConfigError, match="is neither a column"):
        infermesh.run("mine", rows=[{"n": 1}], wait=wait).wait()
    assert totals(simulator)["received"] == 0
    assert not (project / "outputs").exists() or not list((project / "outputs").glob("*/2*"))


def test_a_run_that_failed_says_so(project: Path) -> None:
    run = infermesh.run("mine", ["stages.a.prompt='{{ txt }}'"], wait=False)
    with pytest.raises(ConfigError):
        run.wait()
    assert (run.status, run.exit_code, run.outcome) == ("crashed", 1, None)
    assert isinstance(run.error, ConfigError)
    assert "crashed" in repr(run)
    with pytest.raises(StoreError, match="no database"):
        run.sql("SELECT 1")


def test_failed_rows_are_told(project: Path, start_simulator: Start) -> None:
    simulator = start_simulator(filter_marker="number 3 ")
    run = infermesh.run("mine", [f"deployments.d.api_base={simulator.url}"])
    assert (run.status, run.exit_code) == ("failed_rows", 3)
    (failure,) = run.failures().rows()
    assert (failure["stage"], failure["error_type"]) == ("a", "content_filter")


def test_a_live_run_answers_and_stops(slow: tuple[dict[str, Any], Simulator]) -> None:
    config, simulator = slow
    run = infermesh.run(config=config, folder="r", wait=False)
    assert run.status == "running"
    assert run.exit_code is None
    with pytest.raises(TimeoutError):
        run.wait(0.01)
    seen = wait_until(lambda: (run.sql("SELECT count(*) FROM a").fetchone() or (0,))[0], "a committed row")
    assert 0 < seen < 60
    assert infermesh.open_run("r").status == "running"
    with pytest.raises(StoreError, match="expected one SELECT"):
        run.sql("DELETE FROM a")
    with pytest.raises(StoreError, match="another run of this process uses this folder"):
        infermesh.run(config=config, folder="r")
    run.stop()
    run.stop()
    assert run.wait().status == "interrupted"
    assert run.exit_code == 130
    assert totals(simulator)["abandoned"] == 0
    done = totals(simulator)["answered"]
    assert 0 < done < 60
    assert run.sql("SELECT count(*) FROM a WHERE status = 'done'").fetchone() == (done,)
    found = infermesh.open_run(run.folder / "run.duckdb")
    assert (found.status, found.run_id, found.outcome) == ("interrupted", run.run_id, None)
    with pytest.raises(StoreError, match="no run is going on there"):
        found.stop()
    assert infermesh.run(config=config, folder="r").status == "done"
    assert totals(simulator)["received"] == 60


def test_stopped_before_its_first_request(slow: tuple[dict[str, Any], Simulator]) -> None:
    config, simulator = slow
    run = infermesh.run(config=config, folder="r", wait=False)
    run.stop()
    assert run.wait().status == "interrupted"
    assert totals(simulator)["received"] == totals(simulator)["answered"] <= 2


async def test_awaited_without_blocking_the_loop(slow: tuple[dict[str, Any], Simulator]) -> None:
    config = slow[0] | {"source": {"path": "rows.jsonl", "limit": 8}}
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    run = infermesh.run(config=config, folder="r", wait=False)
    same = await run
    task.cancel()
    assert same is run
    assert run.status == "done"
    assert turns > 100


async def test_waited_for_where_a_loop_runs(project: Path) -> None:
    assert infermesh.run("mine").status == "done"


async def test_a_cancelled_await_leaves_the_run(slow: tuple[dict[str, Any], Simulator]) -> None:
    config = slow[0] | {"source": {"path": "rows.jsonl", "limit": 20}}
    run = infermesh.run(config=config, folder="r", wait=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run, 0.05)
    assert run.status == "running"
    assert (await run).status == "done"


def test_several_at_once_from_threads(project: Path, simulator: Simulator) -> None:
    found: list[Run] = []

    def one(number: int) -> None:
        found.append(infermesh.run("mine", folder=f"r{number}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.status for run in found] == ["done"] * 3
    assert totals(simulator)["answered"] == 60


@pytest.mark.long
def test_each_run_has_a_folder_of_its_own(project: Path) -> None:
    runs = [infermesh.run("mine", ["source.limit=1"]) for _ in range(3)]  # within a second or two
    assert len({run.folder for run in runs}) == 3
    assert [run.status for run in runs] == ["done"] * 3


def test_the_link_to_the_latest_run_is_followed(project: Path, simulator: Simulator) -> None:
    first = infermesh.run("mine")
    simulator.reset()
    again = infermesh.run("mine", folder=project / "outputs" / "mine" / "latest")
    assert (again.folder, again.status, totals(simulator)["received"]) == (first.folder, "done", 0)


def test_keys(tmp_path: Path, start_simulator: Start) -> None:
    config = experiment(start_simulator(api_key="correct-horse").url, {"a": generate()})
    config["deployments"]["d"]["api_key_env"] = "SERVICE_KEY"
    (tmp_path / "keys").write_text("SERVICE_KEY=correct-horse\n")
    given: list[dict[str, str] | Path] = [{"SERVICE_KEY": "correct-horse"}, tmp_path / "keys"]
    for number, env in enumerate(given):
        run = infermesh.run(config=config, rows=texts(2), folder=tmp_path / str(number), env=env)
        assert run.status == "done", run.failures()
    with pytest.raises(ConfigError, match="SERVICE_KEY"):
        infermesh.run(config=config, rows=texts(2), folder=tmp_path / "none")
    with pytest.raises(ConfigError, match="no file"):
        infermesh.run(config=config, rows=texts(2), folder=tmp_path / "none", env="nowhere")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with Simulator() as service:
        config = experiment(service.url, {"a": generate(max_parallel_requests=4)})
        return infermesh.run(config=config, rows=texts(20), folder=tmp_path_factory.mktemp("run"))


class TestTables:
    def test_arrow(self, finished: Run) -> None:
        pytest.importorskip("pyarrow")
        table = finished.results()
        assert table.num_rows == 20
        assert table.column("a_status").to_pylist() == ["done"] * 20

    def test_pandas(self, finished: Run) -> None:
        pytest.importorskip("pandas")
        assert list(finished.results("pandas")["n"]) == list(range(20))

    def test_json_is_read(self, finished: Run) -> None:
        """In dicts and in frames; what DuckDB itself gives stays text."""
        query = "SELECT '{\"topic\": [1, null]}'::JSON AS parsed, NULL::JSON AS none, '{}' AS text"
        result = finished.sql(query)
        assert result.rows() == [{"parsed": {"topic": [1, None]}, "none": None, "text": "{}"}]
        assert result.fetchall() == [('{"topic": [1, null]}', None, "{}")]
        pytest.importorskip("pandas")
        assert list(result.df()["parsed"]) == [{"topic": [1, None]}]

    def test_polars(self, finished: Run) -> None:
        pytest.importorskip("polars")
        assert finished.results("polars").shape[0] == 20

    def test_a_package_that_is_missing_is_named(self, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match="pip install pyarrow"):
            finished.results()
        with pytest.raises(ImportError, match="pip install pandas"):
            finished.sql("SELECT 1").df()

    def test_an_unknown_format(self, finished: Run) -> None:
        with pytest.raises(ValueError, match="expected one of arrow"):
            finished.results("csv")  # type: ignore[arg-type]

    def test_a_result(self, finished: Run) -> None:
        result = finished.sql("SELECT n, text FROM source ORDER BY n")
        assert (result.columns, result.types) == (["n", "text"], ["BIGINT", "VARCHAR"])
        assert result.fetchone() == (0, "Parcel number 0 came late.")
        assert len(list(result)) == 20
        assert "Parcel number 0" in repr(result)
        assert "<th>n</th>" in result._repr_html_()

    @pytest.mark.parametrize("query", ["SELECT * FROM nowhere", "SELEC 1", "SELECT 1; SELECT 2", "DROP TABLE a", ""])
    def test_a_wrong_query(self, finished: Run, query: str) -> None:
        with pytest.raises(StoreError):
            finished.sql(query)


def test_a_run_is_opened_by_any_of_its_names(lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the commands take it; a sweep's folder names its jobs."""
    lab.rows(texts(1))
    lab.folder = lab.root / "outputs" / "lab" / "2026-01-01_10-00-00" / "0"
    lab.run(experiment(simulator.url, {"a": generate()}))
    monkeypatch.chdir(lab.root)
    run_id = infermesh.open_run("lab").run_id
    assert infermesh.open_run(run_id).folder == infermesh.open_run("outputs/lab/latest").folder == lab.folder.resolve()
    with pytest.raises(StoreError, match=r"is a folder of 1 run: open one of them, as .*10-00-00/0"):
        infermesh.open_run(lab.folder.parent)
    with pytest.raises(StoreError, match="or an experiment's name"):
        infermesh.open_run("labs")


def test_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run is there"):
        infermesh.open_run(tmp_path)


SCRIPT = """
import sys, threading
import infermesh

def main():
    run = infermesh.run("mine", wait={wait}, progress=lambda line: print(line, flush=True))
    print(run.status, flush=True)

{start}
"""


def script(root: Path, *, wait: bool, thread: bool = False) -> subprocess.Popen[str]:
    start = "thread = threading.Thread(target=main)\nthread.start()\nthread.join()" if thread else "main()"
    (root / "script.py").write_text(SCRIPT.format(wait=wait, start=start))
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=root,
        env=environment(PYTHONPATH=str(Path(infermesh.__file__).parent.parent)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("thread", [False, True])
def test_a_script(project: Path, simulator: Simulator, thread: bool) -> None:
    with script(project, wait=True, thread=thread) as process:
        out, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "done"
    assert totals(simulator)["answered"] == 20


def test_ctrl_c_drains_and_is_raised(project: Path, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.1)
    write_experiment(project, experiment(simulator.url, {"a": generate(max_parallel_requests=1)}))
    with script(project, wait=True) as process:
        wait_until(lambda: totals(simulator)["answered"] >= 3, "3 answers")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == -signal.SIGINT, err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert totals(simulator)["abandoned"] == 0
    run = infermesh.open_run("outputs/mine/latest")
    assert run.status == "interrupted"
    assert run.sql("SELECT count(*) FROM a").fetchone() == (totals(simulator)["answered"],)


def test_a_script_that_ends_drains_its_run(project: Path, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.1)
    write_experiment(project, experiment(simulator.url, {"a": generate(max_parallel_requests=1)}))
    with script(project, wait=False) as process:
        out, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "running" in out.splitlines()
    assert totals(simulator)["abandoned"] == 0
    run = infermesh.open_run("outputs/mine/latest")
    assert run.status == "interrupted"


@pytest.mark.long
def test_a_run_of_another_process_is_asked_and_stopped(project: Path, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.4)
    write_experiment(project, experiment(simulator.url, {"a": generate(max_parallel_requests=1)}))
    with script(project, wait=True) as process:
        wait_until(lambda: totals(simulator)["answered"] >= 3, "3 answers")
        run = infermesh.open_run("outputs/mine/latest")
        assert (run.status, run.exit_code) == ("running", None)
        count = run.sql("SELECT count(*) AS c, sum(row_id) AS s FROM a WHERE status = 'done'")
        assert (count.columns, count.types) == (["c", "s"], ["BIGINT", "HUGEINT"])
        seen = wait_until(lambda: (count.fetchone() or (0,))[0], "a committed row")
        assert 0 < seen < 20
        assert len(run.results("rows")) == 20
        assert "running; a: " in repr(run)
        with pytest.raises(StoreError, match="expected one SELECT"):
            run.sql("DELETE FROM a")
        with pytest.raises(StoreError, match="nope"):
            run.sql("SELECT nope FROM a")
        run.stop()
        _, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, err
    assert totals(simulator)["abandoned"] == 0
    assert run.status == "interrupted"
    assert count.fetchone() == (totals(simulator)["answered"], sum(range(totals(simulator)["answered"])))


class _Broken(Watch):
    """An observer one of whose methods ends in an error."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__()
        self._method, self._error = method, error

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "_method"):
            raise object.__getattribute__(self, "_error")
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        *((method, RuntimeError("no")) for method in ("note", "start", "tick", "stop")),
        ("tick", SystemExit(3)),
        ("stop", KeyboardInterrupt()),
    ],
)
def test_what_an_observer_ends_in_costs_that_call(
    slow: tuple[dict[str, Any], Simulator], method: str, error: BaseException
) -> None:
    mapping, simulator = slow
    done = infermesh.run(
        config=mapping | {"guards": {"max_duration": "0.6 s"}}, folder="run", progress=_Broken(method, error)
    )
    assert done.status == "stopped"  # the guard is asked all the same
    assert done.sql("SELECT count(*) FROM attempts").fetchall() == [(totals(simulator)["received"],)]
    if method != "note":  # which may come before the log is open
        assert Path("run/run.log").read_text().count(f"progress: {method} ended in {type(error).__name__}") == 1
