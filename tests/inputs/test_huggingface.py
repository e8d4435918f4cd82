"""``source.dataset``: folders that the package datasets reads. Nothing here asks the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.config.schema import SourceConfig
from infermesh.errors import ConfigError, InputError
from infermesh.inputs.row_files import RowFiles
from infermesh.inputs.sources import resolve_source
from infermesh.simulator import Simulator
from infermesh.store.ingest import ingest, row_columns
from infermesh.store.schema import SOURCE_ERRORS_DDL
from tests.support import Lab, experiment, generate, texts, totals, wav, write_jsonl


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'infermesh\[datasets\]'"):
        resolve_source(SourceConfig(dataset="org/name"), [tmp_path])


def load(root: Path, **config: Any) -> tuple[dict[str, str], list[tuple[Any, ...]], str]:
    """Column → type, the rows without their keys, and the source's fingerprint."""
    source = resolve_source(SourceConfig(**config), [root])
    with duckdb.connect() as connection:
        connection.execute(SOURCE_ERRORS_DDL)
        ingest(connection, source)
        rows = connection.execute("SELECT * EXCLUDE (row_id, row_key) FROM source ORDER BY row_id").fetchall()
        return {column.name: column.type for column in row_columns(connection)}, rows, source.fingerprint


@pytest.mark.filterwarnings("default")  # of a library that is not ours
class TestDatasets:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def test_a_saved_one_with_its_types(self, tmp_path: Path) -> None:
        import datasets

        columns = {
            "text": ["a", None],
            "n": [1, 2],
            "x": [0.5, None],
            "tags": [["p", "q"], []],
            "who": [{"a": 1}, None],
        }
        datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
        types, rows, _ = load(tmp_path, dataset="saved")
        assert types == {
            "text": "VARCHAR",
            "n": "BIGINT",
            "x": "DOUBLE",
            "tags": "VARCHAR[]",
            "who": "STRUCT(a BIGINT)",
        }
        assert rows == [("a", 1, 0.5, ["p", "q"], {"a": 1}), (None, 2, None, [], None)]

    def test_splits_of_a_saved_one(self, tmp_path: Path) -> None:
        import datasets

        both = datasets.DatasetDict({name: datasets.Dataset.from_dict({"t": [name]}) for name in ("train", "test")})
        both.save_to_disk(str(tmp_path / "saved"))
        train, test = (load(tmp_path, dataset="saved", split=name) for name in ("train", "test"))
        assert (train[1], test[1]) == ([("train",)], [("test",)])
        assert train[2] != test[2]
        with pytest.raises(ConfigError, match=r"source\.split: no split 'tets'\. Did you mean 'test'\?"):
            load(tmp_path, dataset="saved", split="tets")

    def test_a_folder_of_files(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "loose" / "train.jsonl", texts(5))
        write_jsonl(tmp_path / "loose" / "test.jsonl", texts(2))
        assert [len(load(tmp_path, dataset="loose", **more)[1]) for more in ({}, {"split": "test"}, {"limit": 3})] == [
            5,
            2,
            3,
        ]
        with pytest.raises(ConfigError, match=r"source\.dataset: the folder .*loose could not be loaded: .*validation"):
            load(tmp_path, dataset="loose", split="validation")

    def test_an_unchanged_one_has_the_same_fingerprint(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "loose" / "train.jsonl", texts(5))
        first, second = load(tmp_path, dataset="loose"), load(tmp_path, dataset="loose")
        write_jsonl(tmp_path / "loose" / "train.jsonl", texts(6))
        assert first[2] == second[2] != load(tmp_path, dataset="loose")[2]

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"dataset": "nowhere/none"}, "'nowhere/none' could not be loaded"),
            ({"dataset": "loose", "revision": "main"}, "source.revision: "),
            ({"dataset": "loose", "subset": "other"}, "could not be loaded: ValueError"),
        ],
    )
    def test_what_is_not_there_is_told(self, tmp_path: Path, config: dict[str, Any], words: str) -> None:
        write_jsonl(tmp_path / "loose" / "train.jsonl", texts(1))
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, **config)
        assert words in str(caught.value)

    def test_why_a_folder_does_not_load_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_jsonl(tmp_path / "odd" / "train-0.jsonl", [{"id": 1, "note": None}])
        write_jsonl(tmp_path / "odd" / "train-1.jsonl", [{"id": 2, "note": "late", "tags": [{"k": 1}]}])
        with pytest.raises(ConfigError, match=r"because of .*tags"):
            load(tmp_path, dataset="odd")

    def test_clips_are_paths_of_files(self, tmp_path: Path) -> None:
        """A file that is there keeps its place; bytes within the dataset become a file named by their content."""
        import datasets
        import pyarrow

        clip = tmp_path / "clip.wav"
        clip.write_bytes(wav("hello"))
        audio = [
            {"bytes": None, "path": str(clip)},
            {"bytes": wav("bye"), "path": "b.wav"},
            {"bytes": wav("bye"), "path": None},
        ]
        features = datasets.Features({"audio": datasets.Audio(), "n": datasets.Value("int64")})
        table = pyarrow.table({"audio": [*audio, None], "n": range(4)}, schema=features.arrow_schema)
        made = datasets.Dataset(datasets.table.InMemoryTable(table))
        made.save_to_disk(str(tmp_path / "saved"))
        types, rows, _ = load(tmp_path, dataset="saved")
        paths = [path for path, _ in rows]
        assert types == {"audio": "VARCHAR", "n": "BIGINT"}
        assert paths[3] is None
        assert [Path(path).read_bytes() for path in paths[:3]] == [wav("hello"), wav("bye"), wav("bye")]
        files = RowFiles([tmp_path / "project"], SourceConfig(dataset=str(tmp_path / "saved")))
        files.judge(Path(paths[1]))  # the library's cache is no strange place
        with pytest.raises(InputError, match="allow_paths"):
            files.judge(clip)
        assert paths[1] == paths[2]
        assert Path(paths[1]).suffix == ".wav"
        assert paths == [path for path, _ in load(tmp_path, dataset="saved")[1]]

    def test_a_run_resumes_without_reading_it_again(
        self, lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_jsonl(lab.root / "loose" / "train.jsonl", texts(4))
        mapping = experiment(simulator.url, {"a": generate()}, source={"dataset": "loose"})
        lab.run(mapping)
        assert lab.sql("SELECT n, a_text FROM results ORDER BY n")[3] == (3, "Parcel number 3 came late.")
        with monkeypatch.context() as patch:
            patch.setattr("infermesh.inputs.huggingface.HubDataset.write_parquet", lambda *_: pytest.fail("read again"))
            assert lab.run(mapping).status == "done"
        write_jsonl(lab.root / "loose" / "train.jsonl", texts(5))
        assert lab.run(mapping).counts == {"a": {"done": 5}}
        assert totals(simulator)["received"] == 5
