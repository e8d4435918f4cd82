"""What stands behind ``infermesh run``: what is clear becomes what Hydra takes, the rest is told what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infermesh.config.compose import compose
from infermesh.config.overrides import as_written, from_mapping
from infermesh.config.understood import FLAGS, INFO, WITH_VALUE, UsageError, understood
from infermesh.errors import ConfigError
from tests.support import experiment, generate, write_experiment

CHOSEN = "+experiment=mine"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_experiment(tmp_path, experiment("http://127.0.0.1:9/v1", {"a": generate()}))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["mine"], [CHOSEN]),
        (["mine.yaml"], [CHOSEN]),
        (["conf/experiment/mine.yaml"], [CHOSEN]),
        (["./conf/experiment/mine.yml"], [CHOSEN]),
        (["+experiment", "mine"], [CHOSEN]),
        (["+experiment", "=", "mine"], [CHOSEN]),
        (["experiment=mine"], [CHOSEN]),
        (["--experiment", "mine"], [CHOSEN]),
        (["--experiment=mine.yaml"], [CHOSEN]),
        (["limit=5", "mine"], ["source.limit=5", CHOSEN]),
        (["mine", "--limit", "5"], [CHOSEN, "source.limit=5"]),
        (["mine", "--source.limit=5"], [CHOSEN, "source.limit=5"]),
        (["mine", "--max-errors", "3"], [CHOSEN, "guards.max_errors=3"]),
        (["mine", "source.limit = 5"], [CHOSEN, "source.limit= 5"]),
        (["mine", "source=data/x.csv"], [CHOSEN, "source.path=data/x.csv"]),
        (["mine", "stages.a.where=stars < 3"], [CHOSEN, "stages.a.where='stars < 3'"]),
        (["mine", "stages.a.prompt=It's {{ x }}"], [CHOSEN, "stages.a.prompt='It\\'s {{ x }}'"]),
        (["mine", "stages.a.prompt=Zoë"], [CHOSEN, "stages.a.prompt='Zoë'"]),
        (["mine", "stages.a.prompt={x}"], [CHOSEN, "stages.a.prompt='{x}'"]),
        (["mine", "stages.a.system=Be short, be kind"], [CHOSEN, "stages.a.system='Be short, be kind'"]),
        (["mine", "stages.a.prompt='kept {{ x }}'"], [CHOSEN, "stages.a.prompt='kept {{ x }}'"]),
        (["mine", "stages.a.prompt=null"], [CHOSEN, "stages.a.prompt=null"]),
        (["mine", "stages.a.prompt=7"], [CHOSEN, "stages.a.prompt='7'"]),
        (["mine", 'stages.a.params={"stop": ["a b"]}'], [CHOSEN, "stages.a.params={stop: ['a b']}"]),
        (["mine", "++stages.a.new=1", "~guards"], [CHOSEN, "++stages.a.new=1", "~guards"]),
        (["mine,other", "-m"], ["+experiment=mine,other"]),
    ],
)  # fmt: skip
def test_what_is_clear_is_taken_as_it_is_meant(project: Path, typed: list[str], meant: list[str]) -> None:
    found = understood(typed, project)
    assert found.overrides == meant
    if not found.options:
        compose(typed, cwd=project)  # Hydra takes it


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["mine", "mine"], "takes one experiment"),
        (["mine", "other"], "neither KEY=VALUE nor an option"),
        (["mine", "source.limit", "5"], "one word: source.limit=5"),
        (["mine", "limit:5"], "takes = and not a colon: source.limit=5"),
        (["mine", "--resume"], "infermesh resume RUN"),
        (["mine", "--dry-run"], "infermesh plan"),
        (["mine", "-n", "5"], "source.limit=N"),
        (["mine", "--multi-run"], "Did you mean '--multirun'?"),
        (["mine", "--limit"], "no value"),
        (["mine", "prompt=x"], "Did you mean 'stages.a.prompt'?"),
        (["mine", "model=m"], "Did you mean 'stages.a.model'?"),
        (["mine", "temperature=0"], "Did you mean 'stages.a.params.temperature'?"),
        (["mine", "a.prompt=x"], "Did you mean 'stages.a.prompt'?"),
        (["mine", "limt=5"], "Did you mean 'source.limit'?"),
        (["mine", "output=x"], "There is: allow_paths"),
        (["mine", "memory_limits=x"], "Did you mean 'store.memory_limit'?"),
        (["mine", "stages.a.prompt=a.jinja,b.jinja"], "takes -m"),
        (["mine", "stages.a.max_parallel_requests=1,2"], "'stages.a.max_parallel_requests=[1,2]'"),
        (["mine", "-m", "stages.a.prompt=Say {{ x }},Tell {{ x }}"], "Quote each value"),
    ],
)
def test_what_is_not_clear_is_told(project: Path, typed: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        understood(typed, project)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_is_not_repeated(project: Path) -> None:
    for typed in (["mine", "sk-0123456789abcdefghijABCDEF"], ["mine", "--api-key", "sk-0123456789abcdefghijABCDEF"]):
        with pytest.raises(ConfigError) as caught:
            understood(typed, project)
        assert "0123456789abcdef" not in str(caught.value)


def test_the_options_are_hydras(project: Path) -> None:
    from hydra._internal.utils import get_args_parser  # there is no public list

    theirs = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert {*FLAGS, *WITH_VALUE, *INFO} == theirs
    found = understood(["mine", "-m", "--cfg", "job", "--info", "config", "-p", "stages"], project)
    assert found.options == ["-m", "--cfg", "job", "--info=config", "-p", "stages"]
    with pytest.raises(UsageError, match="--experimental: no such option"):  # which argparse would take for another
        understood(["--experimental", "x"], project)


def test_a_shared_default_experiment_is_replaced(project: Path) -> None:
    (project / "conf" / "config.yaml").write_text("defaults: [source: default, experiment: mine, _self_]\n")
    assert understood(["mine"], project).overrides == ["experiment=mine"]


def test_a_source_that_is_one_text_keeps_it_beside_other_keys(project: Path) -> None:
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()}, source="data/*.csv")
    write_experiment(project, mapping)
    (project / "conf" / "experiment" / "child.yaml").write_text("# @package _global_\ndefaults: [mine]\nname: child\n")
    for name in ("mine", "child"):
        source = compose([name, "limit=5"], cwd=project).mapping["source"]
        assert (source["path"], source["limit"]) == ("data/*.csv", 5)
        assert compose([name, "source.path=other.csv"], cwd=project).mapping["source"]["path"] == "other.csv"


VALUES: list[Any] = [
    *("Say {{ x }}", "It's", 'a "b"', "back\\", "\\'", "a,b", "", " x ", "null", "true", "5", "Zoë\nline", "{a}", "[1"),
    *(None, True, 5, 0.5, [1, "a b", None], {"a b": {"c": ["d,e"]}, "f:g": "h=i"}),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_from_python_arrives_as_it_is(project: Path, value: Any) -> None:
    mapping = compose(["mine", f"stages.a.params.k={as_written(value)}"], cwd=project).mapping
    assert mapping["stages"]["a"]["params"]["k"] == value


def test_a_mapping_of_overrides(project: Path) -> None:
    given = {"stages": {"a": {"prompt": "Say {{ x }}"}}, "limit": 5, "experiment": "mine", "source.path": Path("x.csv")}
    mapping = compose(from_mapping(given), cwd=project).mapping
    assert mapping["stages"]["a"]["prompt"] == "Say {{ x }}"
    assert (mapping["source"]["limit"], mapping["source"]["path"]) == (5, "x.csv")
    with pytest.raises(ConfigError, match=r"overrides: source\.path: a set has no form in YAML"):
        from_mapping({"source.path": {1}})
    with pytest.raises(ConfigError, match="cannot stand in an override"):
        from_mapping({"stages.a.params": {"'": 1}})
