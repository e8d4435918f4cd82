"""``infermesh verify``: it finds what is lost, doubled and changed, and nothing where all is well."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.query.verify import verify
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.support import Lab, embed, experiment, generate, here, texts, totals


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows, of which two fail, through a query and two more stages, with a sink of each format."""
    lab = Lab(tmp_path_factory.mktemp("whole"))
    with Simulator() as simulator:
        _run(lab, simulator)
    return lab.root


@pytest.fixture
def run(lab: Lab, whole: Path) -> Lab:
    """A copy of that run, to be damaged."""
    shutil.copytree(whole, lab.root, dirs_exist_ok=True)
    return lab


def _run(lab: Lab, simulator: Simulator) -> None:
    lab.rows([*texts(8), {"n": 8}, {"n": 9, "text": 4}])
    stages: dict[str, Any] = {
        "a": generate("{{ text.upper() }}"),
        "v": embed("{{ a.text }}", micro_batch_size=3),
        "q": {"kind": "sql", "query": "SELECT n, text FROM source WHERE n < 4"},
        "b": generate("{{ text }}", rows="q"),
    }
    declared = experiment(simulator.url, stages)
    del declared["stages"]["q"]["model"]
    sinks = {name: {"path": f"{name}.{name}"} for name in ("jsonl", "csv", "parquet")}
    assert lab.run(declared | {"sinks": sinks}).status == "failed_rows"


def wrong(folder: Path) -> dict[str, str]:
    return {found.about: found.words for found in verify(folder) if not found.ok}


def test_a_whole_run(run: Lab) -> None:
    found = {finding.about: finding.words for finding in verify(run.folder)}
    assert wrong(run.folder) == {}
    assert found["source"] == "10 rows, each once"
    assert found["a"] == "10 rows have settled, 8 of them done, each once"
    assert found["status"].startswith("failed_rows: ")
    assert [name for name in found if name.startswith("sinks.")] == ["sinks.jsonl", "sinks.csv", "sinks.parquet"]


@pytest.mark.parametrize(
    ("change", "about", "words"),
    [
        ("INSERT INTO a SELECT * FROM a WHERE row_id = 3", "a", "there twice: 1 row, row_id 3"),
        (
            "INSERT INTO source SELECT * FROM source WHERE row_id < 2",
            "source",
            "there twice: 2 rows",
        ),
        ("UPDATE source SET row_key = 'x' WHERE row_id < 2", "source", "their row_key is there twice: 1 row"),
        ("DELETE FROM source WHERE row_id = 5", "a", "not among those of source: 1 row, row_id 5"),
        ("DELETE FROM a WHERE row_id = 5", "status", "it says failed_rows, but 1 row is pending"),
        ("UPDATE a SET status = 'don' WHERE row_id = 1", "a", "no known status: 1 row"),
        ("UPDATE a SET error_type = 'x' WHERE row_id = 1", "a", "done, and an error: 1 row"),
        ("UPDATE a SET request_key = NULL WHERE row_id = 1", "a", "an answer without request_key: 1 row"),
        ("UPDATE a SET attempts = 0 WHERE row_id = 1", "a", "answered by no request: 1 row"),
        (
            "UPDATE a SET sole_request = NULL WHERE row_id = 2",
            "attempts",
            "a: fewer requests in attempts than",
        ),
        ("DELETE FROM attempts_log WHERE stage = 'v'", "attempts", "v: 8 rows were sent, by requests for 0 rows"),
        ("INSERT INTO attempts_log SELECT * FROM attempts LIMIT 1", "attempts", "there twice: 1 request"),
        (
            "INSERT INTO attempts_log SELECT * REPLACE (77 AS row_id) FROM attempts WHERE stage = 'a' AND row_id = 2",
            "attempts",
            "a: of no row: 1 request",
        ),
        ("UPDATE run SET status = 'done'", "status", "it says done, but 0 rows are pending and 2 have failed"),
        ("UPDATE sessions SET status = 'done'", "status", "it says failed_rows, its last session done"),
        ("DELETE FROM run", "run", "no rows, expected one"),
        ("UPDATE run SET config_hash = 'x'", "run", "its declaration is not the one"),
        ("UPDATE a SET text = 'other' WHERE row_id = 1", "sinks.csv", "differs from the tables"),
    ],
)
def test_what_is_wrong_is_found(run: Lab, change: str, about: str, words: str) -> None:
    with duckdb.connect(str(run.folder / DATABASE)) as connection:
        connection.execute(change)
    assert words in wrong(run.folder)[about]


def test_files_that_are_not_what_was_written(run: Lab) -> None:
    (run.folder / "csv.csv").unlink()
    (run.folder / "jsonl.jsonl").write_text("{}\n")
    found = wrong(run.folder)
    assert "is not there" in found.pop("sinks.csv")
    assert "was edited" in found.pop("sinks.jsonl")
    assert found == {}


def test_variables_that_are_not_set_here(lab: Lab, simulator: Simulator) -> None:
    """A run is checked where its keys and places are not known; the sink that cannot be found says so."""
    lab.rows(texts(3))
    declared = experiment("${oc.env:SERVER}", {"a": generate()})
    declared["sinks"] = {"named": {"path": "${oc.env:PLACE}.jsonl"}, "plain": {"path": "plain.jsonl"}}
    assert lab.run(declared, environ={"SERVER": simulator.url, "PLACE": "here"}).status == "done"
    found = {finding.about: finding for finding in verify(lab.folder)}
    assert [finding.words for finding in found.values() if not finding.ok] == []
    assert "left out: " in found["sinks.named"].words
    assert "PLACE" in found["sinks.named"].words
    assert "left out" not in found["sinks.plain"].words


def test_a_declaration_that_was_edited(run: Lab) -> None:
    with duckdb.connect(str(run.folder / DATABASE)) as connection:
        connection.execute("UPDATE run SET config = json_merge_patch(config, '{\"seed\": 77}')")
    assert "config_hash" in wrong(run.folder)["run"]


def test_a_folder_in_a_sinks_place(run: Lab) -> None:
    (run.folder / "csv.csv").unlink()
    (run.folder / "csv.csv").mkdir()
    assert "is a folder" in wrong(run.folder)["sinks.csv"]


def test_a_damaged_block(run: Lab) -> None:
    with open(run.folder / DATABASE, "r+b") as file:
        size = file.seek(0, 2)
        for place in range(3 * 4096, size, 4096):
            file.seek(place + 100)
            file.write(bytes(64))
    code = here("verify", str(run.folder), cwd=run.root).returncode
    assert code == 1


def test_the_command(run: Lab, simulator: Simulator) -> None:
    fine = here("verify", str(run.folder), cwd=run.root)
    assert fine.returncode == 0, fine.stdout
    assert "  ok     attempts: " in fine.stdout
    with duckdb.connect(str(run.folder / DATABASE)) as connection:
        connection.execute("UPDATE a SET sole_request = NULL")
    broken = here("verify", str(run.folder), cwd=run.root)
    assert broken.returncode == 1
    assert "  WRONG  attempts: " in broken.stdout


@pytest.fixture
def outputs(tmp_path: Path, simulator: Simulator) -> Path:
    (tmp_path / "o").mkdir()
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    done = here(
        *("generate", "--model", "hosted_vllm/any", "--api-base", simulator.url),
        *("--input-jsonl", "in.jsonl", "--output-jsonl", "o/out.jsonl", "--checkpoint-dir", "kept"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert totals(simulator)["answered"] == 2
    return tmp_path


def test_the_output_of_a_command(outputs: Path) -> None:
    (database,) = outputs.rglob(DATABASE)
    assert wrong(database.parent) == {}
    output = outputs / "o" / "out.jsonl"
    output.write_bytes(output.read_bytes()[:-4])
    assert "it was edited or cut" in wrong(database.parent)["o/out.jsonl"]
