"""Composing without the command line: the same search path, overrides and errors, any number of times, anywhere."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.compose import compose
from infermesh.config.load import load
from infermesh.config.project import shipped_project
from infermesh.errors import ConfigError
from tests.support import experiment, generate, write_experiment


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_experiment(tmp_path, experiment("http://127.0.0.1:9/v1", {"a": generate()}))
    return tmp_path


def test_a_shipped_experiment_in_an_empty_folder(tmp_path: Path) -> None:
    with chdir(tmp_path):
        found = compose(["+experiment=quickstart", "stages.summaries.max_parallel_requests=3"])
    assert load(found.mapping).name == "quickstart"
    assert found.mapping["stages"]["summaries"]["max_parallel_requests"] == 3
    assert "hydra" not in found.mapping
    assert found.roots == [tmp_path, shipped_project()]
    assert found.overrides == ["+experiment=quickstart", "++stages.summaries.max_parallel_requests=3"]
    assert re.fullmatch(r"outputs/quickstart/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(found.folder))


def test_a_projects_own_experiment_and_folder(project: Path) -> None:
    found = compose(["+experiment=mine", "hydra.run.dir=here/now"], cwd=project)
    assert found.mapping["name"] == "mine"
    assert found.folder == project / "here" / "now"
    assert found.overrides == ["+experiment=mine"]


def test_config_dir_goes_first_and_is_forgotten_afterwards(project: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other") / "configs"
    (other / "experiment").mkdir(parents=True)
    (other / "experiment" / "mine.yaml").write_text("# @package _global_\nname: theirs\nstages: {a: {kind: sql}}\n")
    found = compose(["+experiment=mine"], config_dir=other, cwd=project)
    assert found.mapping["name"] == "theirs"
    assert found.roots == [project, other.parent]
    assert compose(["+experiment=mine"], cwd=project).mapping["name"] == "mine"


def test_a_key_that_the_yaml_does_not_spell_out(project: Path) -> None:
    found = compose(["+experiment=mine", "models.m.params.seed=4", "guards.max_errors=2"], cwd=project)
    assert found.mapping["models"]["m"]["params"] == {"seed": 4}
    assert load(found.mapping).guards.max_errors == 2


def test_missing_values_are_left_out(project: Path) -> None:
    found = compose(["+experiment=mine", "stages.a.prompt='???'"], cwd=project)
    assert "prompt" not in found.mapping["stages"]["a"]


def test_no_name_no_folder(project: Path) -> None:
    assert compose(["+experiment=mine", "name='???'"], cwd=project).folder is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+experiment=min"], ["no such experiment. Did you mean 'mine'?"]),
        (["-m", "+experiment=mine"], ["-m: an option of infermesh run alone"]),
        (["+experiment=mine", "keep_error=true"], ["keep_error: unknown key. Did you mean 'keep_errors'?"]),
        (["+experiment=mine", "stages.a.max_parallel_requests=1,2"], ["1,2"]),
        (["+experiment=mine", "a b"], ["a b"]),
        (["deployments.d.api_key=sk-0123456789abcdefghij"], ["deployments.d.api_key", "api_key_env"]),
    ],
)
def test_mistakes_are_told_in_one_line(project: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, cwd=project)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert "sk-0123456789abcdefghij" not in text
    assert compose(["+experiment=mine"], cwd=project).mapping["name"] == "mine"


def test_in_threads_and_with_hydra_in_use(project: Path) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def one(number: int) -> Any:
        return compose(["+experiment=mine", f"stages.a.max_parallel_requests={number}"], cwd=project).mapping["stages"]

    with initialize_config_dir(str(project / "conf"), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(one, range(1, 7)))
        assert GlobalHydra.instance().hydra is theirs
    assert [stages["a"]["max_parallel_requests"] for stages in found] == [1, 2, 3, 4, 5, 6]
    assert not GlobalHydra.instance().is_initialized()
