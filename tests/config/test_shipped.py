"""What a project has of the shipped one, and what it has not: a clone that is in use holds files of its owner's."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from infermesh.config.compose import compose
from infermesh.config.project import shipped_files, shipped_project
from tests.support import experiment, generate, here, run_folders, write_experiment, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]
MAPPING = experiment("simulator", {"a": generate()})


def test_an_experiment_of_ones_own_looks_for_nothing_in_the_shipped_folder(tmp_path: Path) -> None:
    write_experiment(tmp_path, MAPPING)
    write_experiment(tmp_path, {"defaults": ["quickstart", "_self_"]}, "further")
    assert compose(["mine"], cwd=tmp_path).roots == [tmp_path]
    assert compose(["further"], cwd=tmp_path).roots == [tmp_path, shipped_project()]
    assert compose(["quickstart"], cwd=tmp_path).roots == [tmp_path, shipped_project()]
    assert compose(["+experiment=[quickstart,mine]"], cwd=tmp_path).roots == [tmp_path, shipped_project()]
    write_experiment(tmp_path, MAPPING, "quickstart")  # one's own, whatever its name
    assert compose(["quickstart"], cwd=tmp_path).roots == [tmp_path]


@pytest.mark.parametrize(
    "fields",
    [
        {"source": {"path": "pipelines/quickstart/data/tickets.jsonl"}},
        {"source": {"path": "pipelines/quickstart/data/*.jsonl"}},
        {"stages": {"a": generate("pipelines/quickstart/prompts/summary.jinja", model="m")}},
        {"allow_paths": ["pipelines/quickstart/data"]},
    ],
)
def test_a_file_that_a_project_lacks_is_missing(tmp_path: Path, fields: dict[str, object]) -> None:
    """The shipped project holds a file of that name each time."""
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "One."}])
    write_experiment(tmp_path, MAPPING | fields)
    for command in ("plan", "run"):
        found = here(command, "mine", cwd=tmp_path)
        assert found.returncode == 1
        assert "pipelines/quickstart" in found.stderr
        assert f"Looked in: {tmp_path}." in found.stderr
    assert run_folders(tmp_path) == []


def test_what_is_in_a_clone_of_its_owners_is_not_offered_elsewhere(tmp_path: Path) -> None:
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    for name in ("infermesh", "conf"):
        shutil.copytree(REPOSITORY / name, clone / name)
    write_experiment(clone, MAPPING, "private")
    (clone / "conf" / "source" / "secret.yaml").write_text("path: rows.jsonl\n")
    write_jsonl(clone / "rows.jsonl", [{"text": "One."}])
    write_experiment(elsewhere, MAPPING)
    script = """
import json
from pathlib import Path
from infermesh.config.compose import compose
from infermesh.config.project import options_of, shipped_project
from infermesh.errors import ConfigError
from infermesh.inputs.sources import resolve_source
from infermesh.config.declaration import declared

def told(names, place):
    try:
        job = declared(compose(names, cwd=Path(place)))
        return [*resolve_source(job.experiment.source, job.roots).files]
    except ConfigError as error:
        return str(error)

places = ["../clone", "."]
found = [[options_of(group, Path(place).absolute()) for place in places] for group in ("experiment", "source")]
told_of = [[told([name], place) for place in places] for name in ("private", "mine")]
print(json.dumps([str(shipped_project()), found, *told_of]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    shipped, (experiments, sources), (in_clone, from_elsewhere), (_, own) = json.loads(ran.stdout)
    assert shipped == str(clone)
    assert experiments == [["digest", "private", "quickstart"], ["digest", "mine", "quickstart"]]
    assert sources == [["default", "secret"], ["default"]]
    assert len(in_clone) == 1
    assert f"It is in {clone}: cd {clone}" in from_elsewhere
    assert "no file matches 'rows.jsonl'" in own


def test_the_listed_files_are_those_of_the_repository() -> None:
    """What is packed is listed, so that nothing of a clone's owner is. A new file has to be named there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "conf", "pipelines", "examples"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("this is no clone")
    there = {name for name in listed.stdout.decode().split("\0") if name and (REPOSITORY / name).exists()}
    assert there == shipped_files(), "infermesh/config/shipped.txt: git ls-files conf pipelines examples, one a line"


@pytest.mark.parametrize(("target", "inside"), [("wheel", "infermesh/_project/"), ("sdist", "")])
def test_a_build_packs_the_listed_files_alone(monkeypatch: pytest.MonkeyPatch, target: str, inside: str) -> None:
    """The build is hatchling's, which need not be installed here: it is asked what is added to it."""
    plugin = ModuleType("hatchling.builders.hooks.plugin.interface")
    monkeypatch.setattr(plugin, "BuildHookInterface", dict, raising=False)
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    hook = runpy.run_path(str(REPOSITORY / "hatch_build.py"))["Shipped"]()
    hook.root, hook.target_name = str(REPOSITORY), target
    packed: dict[str, dict[str, str]] = {"force_include": {}}
    hook.initialize("standard", packed)
    assert packed["force_include"] == {str(REPOSITORY / name): f"{inside}{name}" for name in shipped_files()}
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    whole = [*build["targets"]["sdist"]["include"], *build["targets"]["wheel"].get("force-include", ())]
    assert not {"conf", "pipelines", "examples"} & {name.strip("/") for name in whole}
