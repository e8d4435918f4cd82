"""What ``infermesh skill`` tells an agent is true: its files and its commands, tried from first to last."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from infermesh.simulator.server import Simulator
from tests.support import here

FILE = re.compile(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```bash\n(.*?)```", re.DOTALL)
EXPECTED = re.compile(r"# (?:exit (?P<code>\d+) )?→ (?P<words>.*)")


def steps(page: str) -> list[tuple[str, int, str]]:
    """Command, exit code, and what stands in its output."""
    found: list[tuple[str, int, str]] = []
    for line in "\n".join(COMMANDS.findall(page)).splitlines():
        if expected := EXPECTED.fullmatch(line):
            found[-1] = (found[-1][0], int(expected["code"] or 0), expected["words"])
        elif line:
            found.append((line, 0, ""))
    return found


@pytest.mark.long
def test_what_the_page_says_works(tmp_path: Path, simulator: Simulator) -> None:
    page = here("skill", cwd=tmp_path).stdout
    assert page.startswith("---\nname: infermesh\ndescription: ")
    files = FILE.findall(page)
    assert [name for name, _ in files] == ["data/reviews.jsonl", "conf/experiment/reviews.yaml"]
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = text.replace("api_base: simulator", f"api_base: {simulator.url}")  # one for all, as each takes time
        (tmp_path / name).write_text(text, encoding="utf-8")
    tried = steps(page)
    assert len(tried) > 15
    for command, code, words in tried:
        program, *arguments = shlex.split(command)
        assert program == "infermesh"
        ended = here(*arguments, cwd=tmp_path)
        said = ended.stdout + ended.stderr
        assert ended.returncode == code, f"{command}\n{said}"
        assert words in said, f"{command}\n{said}"
    assert (tmp_path / "results.parquet").exists()
