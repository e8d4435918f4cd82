"""What README.md shows is what a user sees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def infermesh(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infermesh", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "100"},
        check=False,
    )


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_the_similarity_search_gives_what_the_readme_says(tmp_path: Path) -> None:
    block = re.search(
        r"```console\n\$ infermesh sql \"(.*?)\"\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    query, shown = block.groups()
    ran = infermesh("run", "+experiment=quickstart", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    asked = infermesh("sql", query, "--format", "table", folder=tmp_path)
    assert lines(asked.stdout) == lines(shown)


def test_the_experiment_it_writes_out_runs(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(# @package _global_.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(block[1], encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    bases = [f"deployments.gpu-{number}.api_base=simulator" for number in (0, 1)]
    ran = infermesh("run", "+experiment=mine", *bases, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    counted = infermesh("sql", "select count(*) as n from answers where status = 'done'", folder=tmp_path)
    assert counted.stdout == "n\n2\n"
