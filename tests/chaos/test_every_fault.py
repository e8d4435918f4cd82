"""Every fault of a service, seldom, often and always, alone and together: the run ends, and tells the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.support import ask, embed, experiment, generate, infermesh, texts, totals, write_experiment, write_jsonl

ROWS = 60
FAULTS = ["rate_limit", "unavailable", "server_error", "hang", "drop", "truncate", "malformed", "invalid_json_content"]
FOLDER = "outputs/here"
_BOUND_S = 120.0


def run(root: Path, simulator: Simulator) -> None:
    write_jsonl(root / "rows.jsonl", texts(ROWS))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    stages = {
        "a": generate(response_format=schema, on_invalid="retry"),
        "v": embed("{{ a.text }}", micro_batch_size=5),
    }
    mapping = experiment(simulator.url, stages)
    mapping["models"]["m"] |= {"max_retries": 2, "timeout": 0.5, "max_pause": 0.3, "max_wait_unreachable": 3.0}
    write_experiment(root, mapping)
    started = time.monotonic()
    found = infermesh("run", "+experiment=mine", f"hydra.run.dir={FOLDER}", cwd=root)
    assert time.monotonic() - started < _BOUND_S
    folder = root / FOLDER
    assert "Traceback" not in found.stderr
    (status,) = ask(folder, "SELECT status FROM run")[0]
    assert found.returncode == {"done": 0, "failed_rows": 3, "stopped": 4}[status], found.stderr
    assert ask(folder, "SELECT count(*) FROM attempts") == [(totals(simulator)["received"],)]
    # What has failed says how, and what is pending has no state.
    assert ask(folder, "SELECT count(*) FROM results WHERE a_status = 'error' AND a_error IS NULL") == [(0,)]
    if status != "stopped":
        assert ask(folder, "SELECT count(*) FROM progress WHERE status = 'pending'") == [(0,)]


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("fault", FAULTS)
def test_alone(tmp_path: Path, start_simulator: Callable[..., Simulator], fault: str, share: float) -> None:
    run(tmp_path, start_simulator(faults={fault: share, "retry_after_s": 0.1}, seed=3))


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_together(tmp_path: Path, start_simulator: Callable[..., Simulator], share: float) -> None:
    each = {fault: share / len(FAULTS) for fault in FAULTS}
    run(tmp_path, start_simulator(faults={**each, "retry_after_s": None}, seed=4))
