"""``sinks``: files that a run writes when it ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError
from infermesh.runs.execute import execute
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.support import Lab, Watch, experiment, generate, here, texts, totals, write_experiment


def declared(url: str, sinks: dict[str, Any] | None = None, prompt: str = "{{ text }}") -> dict[str, Any]:
    return experiment(url, {"a": generate(prompt)}, sinks=sinks or {})


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_they_are_written_when_the_run_ends_and_replaced_when_it_ends_again(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(3))
    sinks = {
        "answers": {"path": "out/answers.jsonl", "columns": ["n", "a_text"]},
        "late": {"path": str(lab.root / "late.csv"), "table": "a", "columns": ["row_id"], "where": "row_id > 1"},
    }
    outcome = lab.run(declared(simulator.url, sinks))
    answers, late = lab.folder / "out" / "answers.jsonl", lab.root / "late.csv"
    assert [(file.path, file.rows) for file in outcome.files.written] == [(answers, 3), (late, 1)]
    assert (outcome.status, outcome.exit_code) == ("done", 0)
    assert lines(answers) == [{"n": n, "a_text": f"Parcel number {n} came late."} for n in range(3)]
    assert late.read_text() == "row_id\n2\n"
    lab.rows(texts(5))
    lab.run(declared(simulator.url, sinks))
    assert [row["n"] for row in lines(answers)] == list(range(5))
    assert late.read_text() == "row_id\n2\n3\n4\n"


def test_failed_rows_do_not_keep_them(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(3))
    failed = {"path": "failed.csv", "columns": ["n"], "where": "a_status = 'error'"}
    outcome = lab.run(declared(simulator.url, {"failed": failed}, "{{ 1 / n }}"))
    assert (outcome.status, outcome.exit_code) == ("failed_rows", 3)
    assert (lab.folder / "failed.csv").read_text() == "n\n0\n"


def test_a_guard_does_not_keep_them(lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    service = start_simulator(faults={"server_error": 1.0})
    lab.rows(texts(50))
    mapping = declared(service.url, {"all": {"path": "all.csv", "columns": ["n"]}})
    mapping["stages"]["a"]["max_parallel_requests"] = 1
    mapping["models"]["m"]["max_retries"] = 0
    outcome = lab.run(mapping | {"guards": {"max_errors": 1}})
    assert (outcome.status, outcome.exit_code) == ("stopped", 4)
    assert [(file.path.name, file.rows) for file in outcome.files.written] == [("all.csv", 50)]


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        ({"path": "a.xls"}, "sinks.s.path: the format of 'a.xls' cannot be told"),
        ({"path": "a.csv", "table": "b"}, "sinks.s.table: no table 'b'."),
        (
            {"path": "a.csv", "columns": ["a_txt"]},
            "sinks.s.columns: results has no column 'a_txt'. Did you mean 'a_text'?",
        ),
        ({"path": "a.csv", "where": "m = 1"}, "sinks.s.where: Binder Error"),
    ],
)
def test_a_wrong_one_is_refused_before_anything_is_sent(
    lab: Lab, simulator: Simulator, sink: dict[str, Any], words: str
) -> None:
    lab.rows(texts(2))
    with pytest.raises(ConfigError) as caught:
        lab.run(declared(simulator.url, {"s": sink}))
    assert words in str(caught.value)
    assert totals(simulator)["received"] == 0
    assert not (lab.folder / DATABASE).exists()


def test_a_wrong_one_leaves_a_finished_run_as_it_was(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    lab.run(declared(simulator.url))
    before = lab.sql("SELECT status, config FROM run")
    with pytest.raises(ConfigError, match=r"sinks\.s\.table"):
        lab.run(declared(simulator.url, {"s": {"path": "a.csv", "table": "b"}}))
    assert lab.sql("SELECT status, config FROM run") == before


def test_one_that_cannot_be_written_does_not_lose_the_run(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    (lab.root / "file").write_text("")
    bad, good = {"path": str(lab.root / "file" / "a.csv")}, {"path": "b.csv"}
    outcome = lab.run(declared(simulator.url, {"bad": bad, "good": good}))
    assert (outcome.status, outcome.exit_code) == ("done", 1)
    assert [file.path.name for file in outcome.files.written] == ["b.csv"]
    (problem,) = outcome.files.errors
    assert problem.startswith(f"sinks.bad: {lab.root}/file/a.csv could not be written: ")
    assert lab.one("SELECT status FROM run") == "done"
    (lab.root / "file").unlink()
    assert lab.run(declared(simulator.url, {"bad": bad, "good": good})).exit_code == 0
    assert totals(simulator)["received"] == 2


def test_an_interrupted_run_writes_none(lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    service = start_simulator(latency_s=0.02)
    lab.rows(texts(500))
    sent: list[int] = []

    def interrupt(stats: Any) -> None:
        if not sent and any(stage.done for stage in stats.stages.values()):
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    mapping = declared(service.url, {"s": {"path": "a.csv"}})
    mapping["stages"]["a"]["max_parallel_requests"] = 2
    outcome = lab.run(mapping, watch=Watch(interrupt))
    assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
    assert not (lab.folder / "a.csv").exists()


def test_the_closing_words_name_the_files(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    (lab.root / "file").write_text("")
    sinks = {"good": {"path": "a.jsonl"}, "bad": {"path": str(lab.root / "file" / "b.csv")}}
    write_experiment(lab.root, declared(simulator.url, sinks))
    found = here("run", "+experiment=mine", "hydra.run.dir=outputs/mine/x", cwd=lab.root)
    assert (found.returncode, found.stdout) == (1, "")
    assert "  written   outputs/mine/x/a.jsonl (2 rows, " in found.stderr
    assert f"error: sinks.bad: {lab.root}/file/b.csv could not be written: " in found.stderr
    assert "infermesh resume outputs/mine/x writes the files again" in found.stderr


def test_a_function_that_changes_the_directory(lab: Lab) -> None:
    lab.rows([{"n": n} for n in range(3)])
    stage = {"kind": "python", "function": "tests.functions:leaving"}
    mapping = {"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": stage}}
    mapping["sinks"] = {"all": {"path": "all.csv"}}
    with chdir(lab.root):
        folder = lab.folder.relative_to(lab.root)
        outcome = execute(declare(mapping, [lab.root]), folder, observer=Watch(), environ={})
    assert outcome.status == "done"
    assert [file.path for file in outcome.files.written] == [folder / "all.csv"]
    assert (lab.folder / "all.csv").exists()
