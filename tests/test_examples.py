"""The examples run as their READMEs say, in a copy of their folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import COMMAND_S, environment, here

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# What the commands of each must have said in the end.
SHOWN = {
    "reviews": ["summaries     4        2", "r3,5,skipped,", "r5,0."],
    "classify": ["labels    12", "accuracy\n0.83\n", "battery,billing,1"],
    "extract": ["orders     5", "2,CK-0077,pump,3,refund", "without\n0\n"],
    "embed": ["vectors     8", "Tides,Harbours,0.", "Ovens,Bread,0.", "vectors.parquet (8 rows"],
    "transcribe": ["transcripts     3", "data/helmet.wav,I was charged twice", "similarity\n1.0\n"],
    "judge": ["verdicts     4", "mean_score\n3.8\n"],
    "pipeline": ["asked: 6 rows", "grounding     6", "Tides,", ",1.0"],
    "client": ["name='Which countries does the river Danube", "input 6: InputError", "Yukon: Which"],
    "local_server": [
        "bound by max_parallel_requests of deployment qwen",
        "http://localhost:8080/v1/chat/completions",
    ],
}


def commands(folder: Path) -> list[list[str]]:
    """The indented lines of a README that are commands; what needs a server of one's own stands in fenced blocks."""
    lines = re.findall(r"^    ((?:infermesh|python) .+)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    return [shlex.split(line) for line in lines]


def run(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = line
    if program == "infermesh":
        return here(*arguments, cwd=folder)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_as_its_readme_says(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    lines = commands(folder)
    assert lines
    said = ""
    for line in lines:
        done = run(line, folder)
        assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}{done.stderr}"
        said += done.stdout + done.stderr
    assert [words for words in SHOWN[name] if words not in said] == []


def test_every_example_is_tried_and_listed() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if (path / "README.md").exists()}
    listed = set(re.findall(r"^\| \[(\w+)/\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.M))
    assert listed == folders == SHOWN.keys()
