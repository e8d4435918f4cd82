"""A plan beside the run that it was made for, both as commands, on the embedded simulator."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import experiment, generate, here, infermesh, run_folders, texts, write_experiment, write_jsonl

TOLERANCE = 0.25  # benchmarks/plan.py holds it to 0.15, on a machine that does nothing else
SERVICE = {"latency_s": 0.15, "latency_spread": 0.3}


def planned(project: Path) -> dict[str, Any]:
    found = here("plan", "+experiment=mine", "--json", cwd=project)
    assert found.returncode == 0, found.stderr
    figures: dict[str, Any] = json.loads(found.stdout)
    return figures


def taken(project: Path) -> float:
    """Seconds, as the run tells them."""
    found = infermesh("run", "+experiment=mine", cwd=project)
    assert found.returncode == 0, found.stderr
    told = re.search(r"mine: complete in ([0-9.]+) s", found.stderr)
    assert told is not None
    return float(told[1])


@pytest.mark.parametrize(
    ("rows", "window", "limits", "binding"),
    [
        (160, 8, {}, "concurrency of stage a"),
        (100, 32, {"rpm": 2000}, "rpm of deployment d"),
    ],
)
@pytest.mark.long
def test_the_estimate_is_near_the_truth(
    tmp_path: Path, rows: int, window: int, limits: dict[str, Any], binding: str
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(rows))
    mapping = experiment("simulator", {"a": generate(max_parallel_requests=window)}, simulator=SERVICE)
    mapping["deployments"]["d"]["limits"] = limits
    write_experiment(tmp_path, mapping)
    before = planned(tmp_path)
    assert before["binding"] == binding
    assert not (tmp_path / "outputs").exists()
    truth = taken(tmp_path)
    assert before["wall_s"] == pytest.approx(truth, rel=TOLERANCE)
    (folder,) = run_folders(tmp_path)
    again = planned(tmp_path)
    assert f"measured in {folder.relative_to(tmp_path)}" == again["stages"][0]["latency"]["source"]
    assert again["wall_s"] == pytest.approx(truth, rel=TOLERANCE)
