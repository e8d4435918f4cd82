"""Sixty slips of a first hour and more, and the line that each gets: what a newcomer types, and what is said.

A slip that is clear works as it is meant (``WORKS``). Each other one gets one line that begins with ``error:`` and says
what to write; ``…`` stands for anything. None brings a traceback, or the page of another project.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import here, infermesh, run_folders

PROMPT = 'prompt: "Classify: {{ review }}"'
YAML = f"""# @package _global_
name: mine
source: {{path: data/reviews.csv}}
deployments: {{local: {{model: hosted_vllm/any, api_base: simulator}}}}
models: {{m: {{deployments: [local]}}}}
stages:
  label:
    kind: generate
    model: m
    {PROMPT}
"""
SOURCE, MODELS = "source: {path: data/reviews.csv}", "models: {m: {deployments: [local]}}"
TYPED = "source: {path: data/reviews.csv, types:"
FILE = "conf/experiment/mine.yaml"
WORKS = "mine: a new run, …"


class Slip(NamedTuple):
    """What is typed behind ``infermesh plan``, in which project, and what comes."""

    typed: str | list[str]
    line: str
    edit: tuple[str, str] = ("", "")  # of the YAML: this text, and what stands there instead
    file: str = FILE  # where the YAML is


def yaml(old: str, new: str, line: str) -> Slip:
    return Slip("mine", line, (old, new))


NAMES = [
    Slip("mine", WORKS),
    Slip("mine.yaml", WORKS),
    Slip(FILE, WORKS),
    Slip("experiment=mine", WORKS),
    Slip("+experiment mine", WORKS),
    Slip("--experiment mine", WORKS),
    Slip("mien", "+experiment=mien: there is no such experiment. Did you mean 'mine'?"),
    Slip("mine other", "other: neither KEY=VALUE nor an option. An override is one word: source.limit=5"),
    Slip("mine quickstart", "quickstart: a run takes one experiment, and experiment=mine is there already."),
    Slip("data/reviews.csv", "…that names a file of rows. An experiment's rows are source.path=data/reviews.csv"),
    Slip("mine", "…Looked in …. conf/mine.yaml has to be conf/experiment/mine.yaml: mkdir …", file="conf/mine.yaml"),
    Slip("mine", "…mv mine.yaml conf/experiment/mine.yaml", file="mine.yaml"),
    Slip("mine", "…mv conf/experiment/mine.yml conf/experiment/mine.yaml", file="conf/experiment/mine.yml"),
]  # fmt: skip
OVERRIDES = [
    Slip("mine limit=5", f"limit=5 is taken as source.limit=5\n{WORKS}"),
    Slip("mine --limit 5", f"limit=5 is taken as source.limit=5\n{WORKS}"),
    Slip("mine --source.limit=5", WORKS),
    Slip(["mine", "source.limit = 5"], WORKS),
    Slip("mine source.limit 5", "source.limit: a key and its value are one word: source.limit=5"),
    Slip("mine source.limit:5", "source.limit:5: a key takes = and not a colon: source.limit=5"),
    Slip("mine --resume", "--resume: no such option. Instead, a run is continued by infermesh resume RUN."),
    Slip("mine --dry-run", "--dry-run: no such option. Instead, nothing is sent by infermesh plan, …"),
    Slip("mine -n 5", "-n: no such option. Instead, the first rows alone are source.limit=N."),
    Slip("mine prompt=x", "prompt: unknown key. Did you mean 'stages.label.prompt'?"),
    Slip("mine label.prompt=x", "label.prompt: unknown key. Did you mean 'stages.label.prompt'?"),
    Slip("mine temperature=0", "temperature: unknown key. Did you mean 'stages.label.params.temperature'?"),
    Slip("mine keep_error=true", "keep_error: unknown key. Did you mean 'keep_errors'?"),
    Slip("mine stages.label.promt=x", "stages.label.promt: unknown key. Did you mean 'prompt'?"),
    Slip(["mine", "stages.label.prompt=Say {{ review }}"], WORKS),
    Slip(["mine", "stages.label.prompt=It's {{ review }}, isn't it?"], WORKS),
    Slip(["mine", "stages.label.where=stars::int < 3"], WORKS),
    Slip(["mine", 'stages.label.params={"temperature": 0}'], WORKS),
    Slip("mine stages.label.max_parallel_requests=1,2", "…=1,2: a job for each value takes -m; a list is written …"),
    Slip("mine source=data/reviews.csv", WORKS),
    Slip(["mine", "stages.label.where=${x}"], "stages.label.where: ${x} refers to a key of the config, …"),
    Slip("mine source.sql=x", "source: give either … path and sql are given: set one to null"),
    Slip("mine source=none", "source=none: there is no such config in the folder source/ of conf/. There is: default."),
    Slip(
        "mine hydra/launcher=none",
        "hydra/launcher=none: there is no such config in the folder hydra/launcher/ of conf/. There is: basic.",
    ),
    Slip("mine source.path=data", "source.path: 'data' is a folder. Name a file of it, data/reviews.csv, or all: …"),
    Slip("mine source.path=data/review.csv", "…no file matches 'data/review.csv'. Did you mean 'data/reviews.csv'?"),
]
IN_YAML = [
    yaml(PROMPT, "prompt: {{ review }}", f'{FILE}, line 10: …{{{{ needs quotes…: prompt: "{{{{ review }}}}"'),
    yaml(PROMPT, "prompt: Say: {{ review }}", f'{FILE}, line 10: …needs quotes…: prompt: "Say: {{{{ review }}}}"'),
    yaml(PROMPT, 'prompt: "Say {{ review }}', f"{FILE}, line 10: the quote that opens there is not closed: …"),
    yaml(PROMPT, "prompt: |\n    Say {{ review }}", f"{FILE}, line 11: the text of 'prompt' must be indented more …"),
    yaml(PROMPT, "prompt:Say", f"{FILE}, line 10: a blank is missing behind the colon: prompt: Say"),
    yaml(PROMPT, "prompt [x]", f"{FILE}, line 10: 'prompt [x]' is no key …Is a colon missing: prompt: [x]"),
    yaml(PROMPT, f"where: @x\n    {PROMPT}", f'{FILE}, line 10: …begins with @ needs quotes around it: where: "@x"'),
    yaml("    model: m", '    params: {stop: ["x, y]}\n    model: m', f"{FILE}, line 9: a quote in it is not …"),
    yaml("    model: m", "    params: {stop: ['it's', y]}\n    model: m", f"{FILE}, line 9: a quote in it is not …"),
    yaml("    model: m", '    params: {stop: ["x" y]}\n    model: m', f"{FILE}, line 9: between the entries …"),
    yaml("    model: m", "    params: {stop: [x}\n    model: m", f"{FILE}, line 9: the [ that opens there …"),
    yaml("    model: m", "    params: {stop: [x]]}\n    model: m", f"{FILE}, line 9: …"),
    yaml("    model: m", "   model: m", f"{FILE}, line 9: the indentation does not fit: 3 blanks before 'model: m', …"),
    yaml("    model: m", "\tmodel: m", f"{FILE}, line 9: a tab stands there: …"),
    yaml("    model: m", "    model: m\n    model: n", f"{FILE}, line 10: duplicate key model: …"),
    yaml("# @package _global_\n", "", "…Its file must begin with the line: # @package _global_"),
    yaml(YAML, "", f"{FILE}: an experiment is keys with values …; nothing is in it."),
    yaml("  label:\n    kind", "  - name: label\n    kind", "stages: expected names …, not a list: …"),
    yaml(SOURCE, "source: data/reviews.csv", WORKS),
    yaml(SOURCE, "source: {file: data/reviews.csv}", "source.file: unknown key. Did you mean 'path'?"),
    yaml(SOURCE, f"limit: 5\n{SOURCE}", "limit: unknown key. Did you mean 'source.limit'?"),
    yaml("# @package", "\ufeff# @package", f"{FILE}: it begins with a byte order mark. Save it as UTF-8 …"),
    yaml(SOURCE, "source: {path: [data/reviews.csv]}", "source.path: expected text, got a list"),
    yaml(MODELS, "models: {m: {deployments: local}}", "models.m.deployments: expected a list: [local]"),
    yaml(PROMPT, 'messages: [{role: user, content: "{{ review }}"}]', WORKS),
    yaml(PROMPT, "messages: few_shot.yaml", WORKS),
    yaml(PROMPT, "messages: few-shot.yaml", "…messages: no file 'few-shot.yaml'. Did you mean 'few_shot.yaml'?"),
    yaml(PROMPT, "messages: {role: user}", "…messages: expected messages, such as [{role: user, …"),
    yaml(PROMPT, 'prompt: ""', "stages.label: the prompt is empty. …"),
]  # fmt: skip
COLUMNS = [
    yaml(PROMPT, 'prompt: "{{ my text }}"', "…A column whose name has blanks is written {{ row['my text'] }}"),
    yaml(PROMPT, 'prompt: "{{ my_text }}"', "…'my_text' is neither a column … Did you mean {{ row['my text'] }}?"),
    yaml(PROMPT, 'prompt: "{{ a.b }}"', "…A column whose name is no identifier is written {{ row['a.b'] }}."),
    yaml(PROMPT, "prompt: \"{{ row['my text'] }}\"\n    where: row['a.b'] = '1'", WORKS),
    yaml(PROMPT, f"{PROMPT}\n    where: my text = 'x'", '…A column whose name has blanks is written "my text"'),
    yaml(PROMPT, f"{PROMPT}\n    where: stars < 3", "…where: stars is text … Write stars::DOUBLE in its place; …"),
    yaml(SOURCE, f"{TYPED} {{stars: int}}}}", WORKS),
    yaml(SOURCE, f"{TYPED} {{star: int}}}}", "source.types: no column 'star'. Did you mean 'stars'?"),
    yaml(SOURCE, f"{TYPED} {{stars: number}}}}", "source.types.stars: 'number' is no type of DuckDB. …"),
    yaml(SOURCE, f"{TYPED} numbers}}", "source.types: expected text, auto, or a type for each column: …"),
]  # fmt: skip
SLIPS = [*NAMES, *OVERRIDES, *IN_YAML, *COLUMNS]


def project(root: Path, content: str = YAML, file: str = FILE) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content)
    (root / "data").mkdir()
    (root / "data" / "reviews.csv").write_text("review,stars,my text,a.b\nGood,5,x y,1\nBad,2,z,2\n")
    (root / "few_shot.yaml").write_text('- {role: user, content: "{{ review }}"}\n')


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), text) is not None


def shown(slip: Slip) -> str:
    typed = slip.typed if isinstance(slip.typed, str) else " ".join(slip.typed)
    return typed if slip.edit == ("", "") else slip.edit[1].strip()[:60] or "empty"


# What works is tried for its pieces elsewhere; here, it is read and planned whole, which takes longer.
CASES = [
    pytest.param(slip, id=shown(slip), marks=[pytest.mark.long] if slip.line.endswith(WORKS) else []) for slip in SLIPS
]


@pytest.mark.parametrize("slip", CASES)
def test_the_line_that_a_slip_gets(tmp_path: Path, slip: Slip) -> None:
    assert slip.edit[0] in YAML
    project(tmp_path, YAML.replace(*slip.edit) if slip.edit[0] else YAML, slip.file)
    typed = slip.typed.split() if isinstance(slip.typed, str) else slip.typed
    found = here("plan", *typed, cwd=tmp_path)
    works = slip.line.endswith(WORKS)
    said = found.stderr + (found.stdout.splitlines()[0] if found.stdout else "")
    wanted = slip.line if works else f"error: {slip.line}\n"
    assert matches(wanted, said), said
    assert found.returncode == 0 if works else found.returncode in (1, 2)
    for word in ("hydra.cc", "omegaconf", "pydantic", "Traceback", "Lexer", "dictionary"):
        assert word not in said


def test_there_are_sixty() -> None:
    assert len(SLIPS) >= 60


def test_in_a_wrong_folder_it_says_where_to_go(tmp_path: Path) -> None:
    project(tmp_path)
    said = here("run", "mine", cwd=tmp_path / "data").stderr
    assert f"Looked in {tmp_path}/data/conf/experiment (no such folder). It is in {tmp_path}: cd {tmp_path}" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["mine", "--limit", "1"], "limit=1 is taken as source.limit=1"),
        (["mine", "stages.label.prompt=It's {{ review }}"], "label     2"),
        (["mine", "-m", "stages.label.prompt='Say {{ review }}','Tell {{ review }}'"], "jobs"),
        (["mine", "--experimental", "x"], "--experimental: no such option"),
    ],
)
def test_a_process_of_its_own_says_the_same(tmp_path: Path, typed: list[str], words: str) -> None:
    project(tmp_path)
    found = infermesh("run", *typed, cwd=tmp_path)
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_hydras_help_names_the_command_that_works(tmp_path: Path) -> None:
    said = here("run", "--hydra-help", cwd=tmp_path).stdout
    assert 'eval "$(infermesh run -sc install=bash)"' in said
    assert "infermesh -sc" not in said
    assert "hydra.cc" not in said


def test_a_run_without_warnings_leaves_no_log(tmp_path: Path) -> None:
    project(tmp_path)
    assert here("run", "mine", cwd=tmp_path).returncode == 0
    (folder,) = run_folders(tmp_path)
    assert not (folder / "run.log").exists()
