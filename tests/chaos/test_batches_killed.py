"""20,000 rows through two stages in batches, killed thirty times at random moments: no line is made twice."""

from __future__ import annotations

import random
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.support import ask, assert_holds, command, environment, experiment, generate, texts, write_experiment
from tests.support import write_jsonl as write

ROWS = 20_000
KILLS = 30
Start = Callable[..., Simulator]
FAULTS = [
    {},
    {"lost_creates": 0.3, "lost_uploads": 0.2, "not_found": 0.2},
    {"cut_downloads": 0.3, "short_downloads": 0.2, "shuffle": True, "doubled_lines": 0.02, "loose_lines": True},
    {"failed_lines": 0.005, "refused_lines": 0.002},
]


@pytest.mark.parametrize("faults", FAULTS, ids=["none", "calls", "results", "lines"])
def test_thirty_kills(
    tmp_path: Path, start_simulator: Start, chance: random.Random, faults: dict[str, float | bool]
) -> None:
    simulator = start_simulator(batches={"processing_s": 3.0, **faults})
    write(tmp_path / "rows.jsonl", texts(ROWS))
    mapping = experiment(simulator.url, {"a": generate(), "b": generate("{{ a.text }} Once more.")})
    batch = {"enabled": True, "poll": 0.3, "max_requests": 4_000}
    mapping["deployments"] = {"d": {"model": "openai/gpt-4.1-mini", "api_base": simulator.url, "batch": batch}}
    mapping["models"]["m"]["max_retries"] = 5
    write_experiment(tmp_path, mapping)
    kills, last = 0, ""
    while True:
        arguments = command("run", "+experiment=mine", "hydra.run.dir=outputs/here")
        env = environment(OPENAI_API_KEY="sk-of-nobody")
        with subprocess.Popen(arguments, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                _, last = process.communicate(timeout=chance.uniform(1.0, 5.0) if kills < KILLS else 300)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
    run = tmp_path / "outputs" / "here"
    counts = simulator.stats()["batches"]
    print(f"\n{kills} kills: {counts['created']} batches, {counts['lines']} lines; {process.returncode}", flush=True)
    assert process.returncode in ((0, 3) if "refused_lines" in faults else (0,)), last
    for stage in ("a", "b"):
        assert ask(run, f"SELECT count(*), count(DISTINCT row_id) FROM {stage}") == [(ROWS, ROWS)]
    assert counts["repeated_requests"] == counts["repeated_answers"] == 0
    assert counts["answered_lines"] == ask(run, "SELECT count(*) FROM attempts WHERE error_type IS NULL")[0][0]
    assert not re.search(r"Traceback", last)
    assert_holds(run)
