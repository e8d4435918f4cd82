"""What a shell is offered at TAB: commands, options, experiments, keys of the config, runs and their stages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infermesh.cli.app import app
from infermesh.cli.completion import LINE, SCRIPTS, SHELL, answer, split_line
from infermesh.store.schema import DATABASE
from tests.support import command, environment, generate, here, infermesh, write_experiment
from tests.support import experiment as declaration


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment, and what two runs leave for those who look without the database."""
    root = tmp_path_factory.mktemp("project")
    mine = declaration("http://127.0.0.1:9/v1", {"label": generate(), "judge": generate("{{ label.text }}")})
    write_experiment(root, mine)
    (root / "conf" / "deployment").mkdir()
    for folder in ("2026-01-01", "2026-01-02"):
        (root / "outputs" / "mine" / folder / ".hydra").mkdir(parents=True)
        (root / "outputs" / "mine" / folder / DATABASE).touch()
        (root / "outputs" / "mine" / folder / ".hydra" / "config.yaml").write_text("stages: {label: {}, judge: {}}")
    (root / "outputs" / "mine" / "latest").symlink_to("2026-01-02")
    (root / "data").mkdir()
    (root / "data" / "rows.jsonl").touch()
    return root


@pytest.fixture
def offered(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    for name in ("COMP_WORDS", "COMP_CWORD", "_INFERMESH_COMPLETE"):
        monkeypatch.setenv(name, "")  # set by what is tested; taken back afterwards

    def ask(line: str) -> list[str]:
        os.environ.update({LINE: line, SHELL: "zsh"})
        answer(lambda: app)
        return capsys.readouterr().out.splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("st", ["status", "stop"]),
        ("bench tr", ["transcribe"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("retry --dry", ["--dry-run"]),
        ("sql --format=js", ["--format=json", "--format=jsonl"]),
        ("sql --format js", ["json", "jsonl"]),
        ("run +experiment=m", ["+experiment=mine"]),
        ("run mi", ["mine"]),
        ("plan +experiment=mine stages.", ["stages.label.", "stages.judge."]),
        ("run mine stages.label.max", ["stages.label.max_parallel_requests="]),
        ("run --env-file x +experiment=mine ++stages.j", ["++stages.judge."]),
        ("run mine keep_errors=", ["keep_errors=true", "keep_errors=false"]),
        ("run mine models.m.timeout=", ["models.m.timeout=20.0"]),
        ("run mine source.path=da", ["source.path=data/"]),
        ("run mine source.path=data/r", ["source.path=data/rows.jsonl"]),
        ("run mine source=", ["source=default"]),
        ("run +experiment=mine hydra.run.dir=outputs/mine/la", ["hydra.run.dir=outputs/mine/latest"]),
        ("status m", ["mine"]),
        ("status outputs/mine/2026-01-0", ["outputs/mine/2026-01-01", "outputs/mine/2026-01-02"]),
        ("export mine out.csv --table ju", ["judge"]),
        ("retry --stage ", ["label", "judge"]),
        ("simulate faults.h", ["faults.hang=", "faults.hang_s="]),
        ("run --env-file da", []),  # the shell's own paths
    ],
)
def test_what_is_offered(line: str, words: list[str], offered: object) -> None:
    assert callable(offered)
    assert sorted(offered(f"infermesh {line}")) == sorted(words)


def test_an_edit_of_the_experiment_is_seen_at_once(tmp_path: Path, offered: object) -> None:
    assert callable(offered)
    os.chdir(tmp_path)  # the fixture goes back
    url = "http://127.0.0.1:9/v1"
    for stage in ("first", "second_one"):
        write_experiment(tmp_path, declaration(url, {stage: generate()}))
        assert offered("infermesh run mine stages.") == [f"stages.{stage}."]
        assert offered("infermesh run mine stages.") == [f"stages.{stage}."]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("infermesh ", ([], "")),
        ("infermesh ru", ([], "ru")),
        ("infermesh run 'a b' c", (["run", "a b"], "c")),
        ("infermesh sql 'select 1 fr", (["sql"], "select 1 fr")),
    ],
)
def test_a_line_is_split_as_a_shell_does(line: str, found: tuple[list[str], str]) -> None:
    assert split_line(line) == found


BASH = """\
eval "$(infermesh completion bash)"
COMP_LINE='infermesh run +experiment=m' COMP_WORDS=(infermesh run +experiment = m) COMP_CWORD=4
COMP_POINT=${#COMP_LINE}
_infermesh_completion infermesh
printf '[%s]' "${COMPREPLY[@]}"
"""
ZSH = """\
compdef() { }
_files() { print -n files }
compadd() { print -n -- "[$@]" "${(P)@[-1]}" }
eval "$(infermesh completion zsh)"
words=(infermesh run +experiment=m) CURRENT=3
_infermesh
words=(infermesh run --env-file d) CURRENT=4
_infermesh
"""
FISH = 'infermesh completion fish | source; complete -C "infermesh run +experiment=m"'


@pytest.mark.parametrize(
    ("shell", "script", "expected"),
    [("bash", BASH, "[mine ]"), ("zsh", ZSH, "[-a whole] +experiment=minefiles"), ("fish", FISH, "+experiment=mine\n")],
)
def test_a_real_shell_completes(shell: str, script: str, expected: str, project: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{Path(command()[0]).parent}:{os.environ['PATH']}"
    found = subprocess.run(
        [shell, "-c", script],
        cwd=project,
        env=environment(PATH=path, XDG_CACHE_HOME=str(project / "cache"), HOME=str(project)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.stdout == expected, found.stderr


@pytest.mark.parametrize(
    ("line", "offered", "heavy"),
    [
        ("status m", "mine", {"duckdb", "hydra", "rich", "jinja2", "litellm"}),
        ("run +experiment=m", "+experiment=mine", {"duckdb", "hydra", "typer", "pydantic"}),
        ("run mine keep_errors=t", "keep_errors=true", {"duckdb", "hydra", "typer", "pydantic"}),
    ],
)
def test_a_tab_loads_nothing_heavy(project: Path, line: str, offered: str, heavy: set[str]) -> None:
    code = f"import sys; from infermesh.cli import main; main(); print(*({heavy!r} & sys.modules.keys()))"
    words = environment(XDG_CACHE_HOME=str(project / "cache"), **{LINE: f"infermesh {line}"})
    for _ in range(2):  # what the config says is kept by the first
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=project, env=words, capture_output=True, text=True, check=True
        )
    assert found.stdout == f"{offered} \n\n"


def test_the_script_is_printed_and_hydras_way_prints_it_too(tmp_path: Path) -> None:
    assert here("completion", "zsh", cwd=tmp_path).stdout.strip() == SCRIPTS["zsh"]
    assert infermesh("run", "-sc", "install=bash", cwd=tmp_path).stdout.strip() == SCRIPTS["bash"]
    unknown = here("completion", "tcsh", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "bash, zsh, fish" in unknown.stderr
