"""Hydra's ways: its settings in YAML, options in any place, and projects in any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import infermesh as package
from infermesh.config.project import shipped_project
from infermesh.simulator import Simulator
from tests.support import (
    COMMAND_S,
    ask,
    environment,
    experiment,
    generate,
    here,
    infermesh,
    run_folders,
    texts,
    write_experiment,
    write_jsonl,
)

SWEPT = "stages.a.max_parallel_requests=1,2"


def project(root: Path, simulator: Simulator, **more: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_jsonl(root / "rows.jsonl", texts(2))
    write_experiment(root, {**experiment(simulator.url, {"a": generate()}), **more})
    return root


def done(root: Path) -> list[int]:
    """Rows that are done, of each run."""
    return [ask(folder, "SELECT count(*) FROM a WHERE status = 'done'")[0][0] for folder in run_folders(root)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("+experiment=mine", "-m", SWEPT),
        ("+experiment=mine", SWEPT, "-m"),
        ("-m", "+experiment=mine", SWEPT, "hydra.job.chdir=true"),
        ("+experiment=mine", SWEPT, "hydra.mode=MULTIRUN"),
    ],
)
@pytest.mark.long
def test_a_sweep_is_asked_for_in_any_of_hydras_ways(
    tmp_path: Path, simulator: Simulator, arguments: tuple[str, ...]
) -> None:
    project(tmp_path, simulator)
    found = here("run", *arguments, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert done(tmp_path) == [2, 2]
    assert len(list((tmp_path / "outputs").rglob("sweep.parquet"))) == 1


@pytest.mark.parametrize("mode", [{"mode": "MULTIRUN"}, {}])
@pytest.mark.long
def test_a_sweep_that_stands_in_the_yaml(tmp_path: Path, simulator: Simulator, mode: dict[str, str]) -> None:
    params = {"stages.a.max_parallel_requests": "1,2"}
    project(tmp_path, simulator, hydra={**mode, "sweeper": {"params": params}})
    found = here("run", "+experiment=mine", *([] if mode else ["-m"]), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert done(tmp_path) == [2, 2]
    assert len(list((tmp_path / "outputs").rglob("sweep.parquet"))) == 1


def test_chdir_leaves_a_projects_paths_its_own(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path, simulator)
    before = os.getcwd()
    found = here("run", "+experiment=mine", "hydra.job.chdir=true", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert done(tmp_path) == [2]
    assert os.getcwd() == before


def test_options_behind_overrides(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path / "other", simulator)
    write_jsonl(tmp_path / "rows.jsonl", texts(1))
    found = here("run", "+experiment=mine", "--config-dir", "other/conf", "source.limit=1", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    shown = here("run", "+experiment=mine", "--config-dir", "other/conf", "--cfg", "job", cwd=tmp_path)
    assert yaml.safe_load(shown.stdout)["name"] == "mine"


@pytest.mark.parametrize("name", ["é #1 +b%20", "it's", "a=b,c [x]"])
def test_a_project_in_any_folder(tmp_path: Path, simulator: Simulator, name: str) -> None:
    root = project(tmp_path / name, simulator)
    found = here("run", "+experiment=mine", cwd=root)
    assert found.returncode == 0, found.stderr
    elsewhere = here(
        "run", "+experiment=mine", "--config-dir", f"{name}/conf", f"source.path='{root}/rows.jsonl'", cwd=tmp_path
    )
    assert elsewhere.returncode == 0 or "'" in name, elsewhere.stderr
    assert done(root) == [2]


@pytest.mark.long
def test_a_printed_command_can_be_pasted(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path, simulator)
    found = here("run", "+experiment=mine", "hydra.run.dir='my runs/1'", cwd=tmp_path)
    line = next(line for line in found.stderr.splitlines() if "infermesh resume" in line)
    command = line.split("resume    ")[1].partition("   (")[0]
    pasted = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m {command}"],
        cwd=tmp_path,
        env=environment(),
        timeout=COMMAND_S,
        check=False,
    )
    assert pasted.returncode == 0


def test_a_nested_experiment_is_listed_and_found(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path, simulator)
    nested = tmp_path / "conf" / "experiment" / "deep" / "one.yaml"
    nested.parent.mkdir()
    nested.write_text((tmp_path / "conf" / "experiment" / "mine.yaml").read_text())
    assert "Did you mean 'deep/one'?" in here("run", "+experiment=deep/onne", cwd=tmp_path).stderr
    assert here("run", "+experiment=deep/one", cwd=tmp_path).returncode == 0


@pytest.mark.long
def test_installed_below_a_folder_with_a_blank(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path, simulator)
    library = tmp_path / "my lib"
    source = Path(package.__file__).parent
    shutil.copytree(source, library / "infermesh", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("conf", "pipelines"):
        shutil.copytree(shipped_project() / folder, library / folder, dirs_exist_ok=True)
    found = infermesh("run", "+experiment=mine", cwd=tmp_path, PYTHONPATH=str(library))
    assert found.returncode == 0, found.stderr
    assert done(tmp_path) == [2]


def test_numbers_as_keys_of_parameters(tmp_path: Path, simulator: Simulator) -> None:
    project(tmp_path, simulator)
    file = tmp_path / "conf" / "experiment" / "numbers.yaml"
    mapping = json.loads((tmp_path / "conf" / "experiment" / "mine.yaml").read_text().partition("\n")[2])
    mapping["stages"]["a"]["params"] = {"logit_bias": {50256: -100, 11: 5}}
    file.write_text("# @package _global_\n" + yaml.safe_dump(mapping))
    assert here("run", "+experiment=numbers", cwd=tmp_path).returncode == 0
    file.write_text(file.read_text().replace("50256:", "null:"))
    refused = here("run", "+experiment=numbers", cwd=tmp_path)
    assert refused.returncode == 1
    assert "logit_bias" in refused.stderr


@pytest.mark.long
def test_a_time_with_a_zone_is_the_same_everywhere(tmp_path: Path, simulator: Simulator) -> None:
    """In prompts, in conditions, in the source's own SQL, in keys of maps, in files and in queries."""
    mapping = experiment(
        simulator.url, {"a": {**generate("At {{ seen }} {{ text }} {{ m }}"), "where": "extract(hour from seen) = 2"}}
    )
    times = "select timestamptz '2024-03-31 02:30:00+00' as seen"
    mapping["source"] = {"sql": f"select seen, seen::varchar as text, map{{seen: 1}} as m from ({times})"}
    mapping["sinks"] = {"s": {"path": "s.jsonl", "table": "source"}}
    write_experiment(tmp_path, mapping)
    found = []
    for zone in ("UTC", "Asia/Tokyo"):
        folder = f"outputs/mine/{zone[:3]}"
        ran = infermesh("run", "+experiment=mine", f"hydra.run.dir={folder}", cwd=tmp_path, TZ=zone)
        assert ran.returncode == 0, ran.stderr
        asked = infermesh("sql", "select seen from source", "--run", folder, "--format", "csv", cwd=tmp_path, TZ=zone)
        stored = ask(tmp_path / folder, "SELECT request_key, status, text FROM a")
        found.append((stored, (tmp_path / folder / "s.jsonl").read_text(), asked.stdout))
    assert found[0] == found[1]
    assert found[0][0][0][1] == "done"


@pytest.mark.parametrize(
    "arguments",
    [("-m", SWEPT, "--cfg", "job"), ("-m", "hydra.sweeper.params={stages.a.max_parallel_requests: '1,2'}")],
)
def test_what_hydra_cannot_do_is_said_in_one_line(
    tmp_path: Path, simulator: Simulator, arguments: tuple[str, ...]
) -> None:
    project(tmp_path, simulator)
    ran = here("run", "+experiment=mine", *arguments, cwd=tmp_path)
    assert "Traceback" not in ran.stderr
    assert ran.returncode == 0 or len([line for line in ran.stderr.splitlines() if line.startswith("error: ")]) == 1
