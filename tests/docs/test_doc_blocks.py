"""The test of pages fails where a page does not do what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sybil.example import SybilFailure

from infermesh.simulator import Simulator
from tests.docs.blocks import length
from tests.docs.pages import Page

Run = Callable[..., int]
ROWS = '```json title="rows.jsonl"\n{"text": "One."}\n```\n'
MINE = """```yaml title="conf/experiment/mine.yaml"
# @package _global_
name: mine
source: rows.jsonl
models: {m: {model: simulator/m}}
stages:
  a: {kind: generate, model: m, prompt: "{{ text }}"}
```
"""


@pytest.fixture
def run(tmp_path: Path, programs: Path, simulator: Simulator) -> Run:
    """Run a page with this text; how many of its blocks ran."""

    def page(text: str, long: bool = True) -> int:
        path, folder = tmp_path / "page.md", tmp_path / "page"
        path.write_text(text)
        folder.mkdir()
        return Page(path, folder, programs, simulator.url).run(long)[0]

    return page


def console(text: str, marks: str = "") -> str:
    return f"<!-- test: {marks} -->\n```console\n{text}\n```\n" if marks else f"```console\n{text}\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        console("$ echo one"),
        console("$ echo one\none"),
        console("$ printf 'one\\ntwo\\nthree\\n'\n…\nthree"),
        console("$ echo it took 3 s\nit took … s"),
        console("$ echo took 3.25 s, 1,234 rows\ntook 0.1 s, 7 rows", "numbers vary"),
        console("$ echo 9637 tokens/s\n10.8k tokens/s", "numbers vary"),
        console("$ exit 3", "exit 3"),
        console("$ (exit 1)\n$ true\n$ (exit 130)", "exit 1 0 130"),
        console("$ echo 7\n3\n$ (exit 4)", "numbers vary, exit 4"),
        "    echo one\n",
        "    cat > a <<END\n    one\n    END\n    grep one a\n",
        '```text title="a/b.txt"\none\n```\n\n    grep one a/b.txt\n',
        "    mkdir a\n    cd a\n    export WORD=one\n\n" + console("$ pwd; echo $WORD\n…/a\none"),
        '```python\nprint(1 + 1)\n```\n\n```text title="output"\n2\n```\n',
        "<!-- invisible-code-block: bash\necho one > a\n-->\n\n    cat a\n",
        "    mkdir -p o/2026-01-01_00-00-00 o/2026-01-02_00-00-00\n\n"
        + console("$ ls -d o/TIME\no/TIME\n$ ls -d o/TIME | grep -c 02\n1"),
    ],
)
def test_a_page_that_does_what_it_says_passes(text: str, run: Run) -> None:
    assert run(text) > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (console("$ echo two\none"), "it should say\n    one"),
        (console("$ printf 'one\\ntwo\\n'\none"), "two"),
        (console("$ echo one\none\ntwo"), "two"),
        (console("$ echo 7\n3"), "it says\n    7"),
        (console("$ echo seven\n3", "numbers vary"), "seven"),
        (console("$ (exit 3)"), "exit code 3, not 0"),
        (console("$ (exit 3)\n$ true"), "exit code 3, not 0"),
        (console("$ true", "exit 3"), "exit code 0, not 3"),
        (console("$ (exit 3)\n$ (exit 3)", "exit 3"), "exit code 3, not 0"),
        ("    true\n    (exit 3)\n    true\n", "exit code 3, not 0"),
        ("    summaries: 4 done\n", "exit code 127"),
        ('```python\nprint(1)\n```\n\n```text title="output"\n2\n```\n', "it should say\n    2"),
    ],
)
def test_a_page_that_does_something_else_fails(text: str, said: str, run: Run) -> None:
    with pytest.raises(SybilFailure) as failed:
        run(text)
    assert said in str(failed.value)


@pytest.mark.parametrize(
    ("fence", "language"), [("", "no language"), ("text", "text"), ("sql", "sql"), ("json", "json"), ("py", "py")]
)
def test_a_block_that_nothing_runs_is_refused(fence: str, language: str, run: Run) -> None:
    with pytest.raises(SybilFailure, match=f"nothing runs this block of {language}"):
        run(f"```{fence}\none\n```\n")


def test_a_session_without_a_command_is_refused(run: Run) -> None:
    with pytest.raises(SybilFailure, match="no line of it begins with"):
        run(console("one"))


def test_what_python_raises_fails_the_page(run: Run) -> None:
    with pytest.raises(ZeroDivisionError):
        run("```python\n1 / 0\n```\n")


def test_a_mark_without_a_meaning_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="'numbers may vary' is no mark"):
        run(console("$ true", "exit 0, numbers may vary"))


def test_a_block_may_be_left_out(run: Run) -> None:
    assert run('<!-- skip: next "why" -->\n\n    false\n\nAnd:\n\n    true\n') == 1


class TestYaml:
    def test_it_is_a_part_of_an_experiment(self, run: Run) -> None:
        part = "```yaml\nguards: {max_errors: 3}\n```\n"
        deep = "```yaml\n    where: text is not null\n```\n"
        assert run(f"{ROWS}{MINE}<!-- test: in mine -->\n{part}\n<!-- test: in mine stages.a -->\n{deep}") == 4

    def test_one_that_belongs_to_nothing_is_refused(self, run: Run) -> None:
        with pytest.raises(SybilFailure, match="nothing checks this YAML"):
            run("```yaml\nguards: {max_errors: 3}\n```\n")

    @pytest.mark.parametrize(
        ("part", "said"),
        [
            ("gards: {max_errors: 3}", "unknown key"),
            ("stages: {a: {where: txt is null}}", "txt"),
        ],
    )
    def test_one_that_cannot_be_planned_fails(self, part: str, said: str, run: Run) -> None:
        with pytest.raises(SybilFailure) as failed:
            run(f"{ROWS}{MINE}<!-- test: in mine -->\n```yaml\n{part}\n```\n")
        assert said in str(failed.value)

    def test_a_quotation_is_what_the_experiment_has(self, run: Run) -> None:
        same = "<!-- test: of mine stages -->\n```yaml\n  a:\n    model: m\n```\n"
        assert run(ROWS + MINE + same) == 3

    def test_a_quotation_that_is_not_what_it_has_fails(self, run: Run) -> None:
        with pytest.raises(SybilFailure) as failed:
            run(f"{ROWS}{MINE}<!-- test: of mine stages.a -->\n```yaml\n    prompt: Another\n```\n")
        assert "prompt: Another" in str(failed.value)


class TestLong:
    BLOCK = "<!-- test: long -->\n\n    false\n\nAnd:\n\n    true\n"

    def test_a_long_block_is_left_out_of_the_short_run(self, run: Run) -> None:
        assert run(self.BLOCK, long=False) == 1

    def test_it_is_run_in_the_long_one(self, run: Run) -> None:
        with pytest.raises(SybilFailure):
            run(self.BLOCK)

    @pytest.mark.parametrize(
        ("text", "runs"),
        [("    true\n", (True, False)), (BLOCK, (True, True)), ("<!-- test: long -->\n\nText.\n", (False, True))],
    )
    def test_a_page_has_the_runs_that_it_needs(self, text: str, runs: tuple[bool, bool], tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(text)
        assert length(page) == runs


def test_a_page_may_start_a_server_of_its_own(run: Run) -> None:
    asked = "$ curl -s -o answer -w '%{http_code}' http://localhost:8000/v1/models\n401"
    assert run(f"    infermesh simulate --port 8000 api_key=one\n\n{console(asked)}") == 2
