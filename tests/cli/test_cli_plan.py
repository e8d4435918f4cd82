"""``infermesh plan`` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.support import experiment, generate, here, run_folders, texts, totals, write_experiment, write_jsonl


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", texts(12))
    write_experiment(tmp_path, declared(simulator))
    return tmp_path


def declared(simulator: Simulator) -> dict[str, Any]:
    mapping = experiment(simulator.url, {"a": generate(params={"max_tokens": 50})})
    mapping["deployments"]["d"]["limits"] = {"rpd": 5, "rpm": 600}
    return mapping


def test_the_embedded_simulators_address_is_shown(project: Path, simulator: Simulator) -> None:
    """Its key is none of a user's, and no word of it is taken out."""
    mapping = declared(simulator)
    mapping["deployments"]["d"]["api_base"] = "simulator"
    write_experiment(project, mapping)
    found = here("plan", "+experiment=mine", "--show", "1", cwd=project)
    assert "POST http://simulator/v1/chat/completions (deployment d)" in found.stdout


def test_the_report(project: Path, simulator: Simulator) -> None:
    found = here("plan", "+experiment=mine", "--show", "1", cwd=project)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert lines[0] == f"a, request 1: POST {simulator.url}/chat/completions (deployment d)"
    assert '      "content": "Parcel number 0 came late."' in lines
    assert "mine: a new run, 12 rows. Nothing was sent." in lines
    (line,) = [line.split() for line in lines if line.startswith("  a ")]
    assert line == ["a", "12", "12", "132", "600", "unknown", "unknown"]
    assert any(line.startswith("time: at least ") and "bound by rpd of deployment d" in line for line in lines)
    assert any("the time of a request of a is not known. Give --latency SECONDS" in line for line in lines)
    quota = "quota: rpd of deployment d: 12 requests, 5 a day, 0 used today: a job of 3 days"
    assert quota in lines
    assert lines[-1] == "run it: infermesh run +experiment=mine"
    assert totals(simulator)["received"] == 0
    assert not (project / "outputs").exists()


def test_json(project: Path) -> None:
    found = here("plan", "+experiment=mine", "--json", "--latency", "2", "--output-tokens", "9", cwd=project)
    figures = json.loads(found.stdout)
    assert (figures["rows"], figures["requests"], figures["completion_tokens"]) == (12, 12, 108)
    assert (figures["binding"], figures["days"]) == ("rpd of deployment d", 3)
    assert figures["cost_usd"] is None
    (stage,) = figures["stages"]
    assert (stage["name"], stage["certainty"], stage["latency"]["source"]) == ("a", "exact", "--latency")
    assert figures["shown"] == {}


def test_a_function_takes_no_tokens(project: Path, simulator: Simulator) -> None:
    mapping = declared(simulator)
    mapping["stages"]["scores"] = {"kind": "python", "function": "tests.functions:length", "reads": ["a"]}
    write_experiment(project, mapping)
    found = here("plan", "+experiment=mine", "--json", cwd=project)
    figures = json.loads(found.stdout)
    assert (figures["requests"], figures["prompt_tokens"], figures["completion_tokens"]) == (12, 132, 600)


def test_what_is_left_of_a_run(project: Path, simulator: Simulator) -> None:
    run = "hydra.run.dir=outputs/here"
    assert here("run", "+experiment=mine", "source.limit=4", run, cwd=project).returncode == 0
    found = here("plan", "+experiment=mine", run, cwd=project)
    assert "mine: what is left to do in outputs/here, 12 rows. Nothing was sent." in found.stdout
    assert json.loads(here("plan", "+experiment=mine", run, "--json", cwd=project).stdout)["requests"] == 8
    assert "4 used today" in found.stdout
    done = here("plan", "+experiment=mine", "source.limit=4", run, cwd=project)
    assert "time: none, nothing is left to send" in done.stdout
    assert len(run_folders(project)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["+experiment=mien"],
        ["+experiment=mine", "stages.a.promt=x"],
        ["+experiment=mine", "stages.a.prompt='{{ txet }}'"],
        ["+experiment=mine", "source.path=nothing.jsonl"],
        ["+experiment=mine", "++models.m.params.api_key=sk-abcdefghijklmnopqrstuv"],
        ["source.path=rows.jsonl"],
    ],
)
def test_mistakes_are_told_as_run_tells_them(project: Path, arguments: list[str]) -> None:
    planned, run = here("plan", *arguments, cwd=project), here("run", *arguments, cwd=project)
    assert planned.returncode == run.returncode == 1
    assert planned.stdout == ""
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert planned.stderr.splitlines() == errors
    assert errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which experiment?"),
        (["-m", "+experiment=mine"], "leave -m out"),
        (["+experiment=mine", "--jsn"], "--jsn: no such option"),
        (["+experiment=mine", "--sample", "0"], "--sample"),
    ],
)
def test_wrong_usage(project: Path, arguments: list[str], said: str) -> None:
    found = here("plan", *arguments, cwd=project)
    assert found.returncode == 2
    assert said in found.stderr


def test_configs_of_another_folder(project: Path, tmp_path: Path) -> None:
    other = project / "elsewhere"
    write_experiment(other, json.loads((project / "conf/experiment/mine.yaml").read_text().split("\n", 1)[1]), "theirs")
    found = here("plan", "--config-dir", "elsewhere/conf", "+experiment=theirs", cwd=project)
    assert found.returncode == 0, found.stderr
    assert "theirs: a new run, 12 rows" in found.stdout
