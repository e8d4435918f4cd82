"""The examples in docstrings run, against a simulator in place of the server that they name."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import infermesh
from infermesh import LMClient
from infermesh.simulator import Simulator
from tests.support import wav

SERVER = "http://localhost:8000/v1"
CLIENT = ("client.client", "client.generation", "client.embedding", "client.transcription")
MODULES = (*CLIENT, "errors", "inputs.formats", "inputs.images", "results", "types")
# Their docstrings are without an example.
WITHOUT = {"DeploymentConfig", "Run", "__version__", "open_run", "run"}


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(f"infermesh.{name}"))]
    return [test for test in found if test.examples]


@pytest.fixture
def names(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What examples take for granted: an open client, and a recording in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recording.wav").write_bytes(wav("Good morning."))
    with LMClient("hosted_vllm/llama-3-8b", api_base=simulator.url) as client:
        yield {"client": client}


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name.removeprefix("infermesh."))
def test_an_example_runs_and_shows_what_it_says(
    test: doctest.DocTest, names: dict[str, Any], simulator: Simulator
) -> None:
    for example in test.examples:
        example.source = example.source.replace(SERVER, simulator.url)
    test.globs = names
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(test, out=said.append, clear_globs=False).failed
    assert not failed, "".join(said)


def test_public_names_have_an_example() -> None:
    shown = {test.name.rpartition(".")[2] for test in examples()}
    for name in set(infermesh.__all__) - WITHOUT:
        value = getattr(infermesh, name)
        family = inspect.getmro(value) if inspect.isclass(value) else [type(value)]
        assert shown & {name, *(cls.__name__ for cls in family)}, f"{name} has no example"
