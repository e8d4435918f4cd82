"""A batch of hundreds of megabytes passes through a run without ever being in its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infermesh.simulator import SimulatorProcess, SimulatorSettings
from tests.support import ask, command, embed, environment, experiment, texts, write_experiment, write_jsonl

MB = 10**6
ROWS, LONG = 2_000, "The parcel came late, and the box was wet. " * 1_200


def peak_mb(folder: Path, url: str, name: str, rows: int) -> float:
    """The most memory of a run in one batch."""
    mapping = experiment(url, {"v": embed(LONG + "{{ text }}")})
    batch = {"enabled": True, "poll": 0.2}
    mapping["deployments"] = {"d": {"model": "openai/gpt-4.1-mini", "api_base": url, "batch": batch}}
    mapping["source"] = {"path": "rows.jsonl", "limit": rows}
    write_experiment(folder, mapping)
    script = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stderr=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    arguments = command("run", "+experiment=mine", f"hydra.run.dir=outputs/{name}")
    env = environment(OPENAI_API_KEY="sk-of-nobody")
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024 / MB


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes are Linux's")
def test_prompts_of_a_hundred_megabytes_and_their_answers(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    settings = SimulatorSettings.model_validate({"embedding_dimensions": 16_384})
    with SimulatorProcess(settings) as simulator:
        few = peak_mb(tmp_path, simulator.url, "few", ROWS // 2)
        many = peak_mb(tmp_path, simulator.url, "many", ROWS)
    run = tmp_path / "outputs" / "many"
    ((sent, answered),) = ask(run, "SELECT (SELECT sum(bytes) FROM batches), (SELECT 4 * sum(len(embedding)) FROM v)")
    print(f"\n{sent / MB:.0f} MB sent, {answered / MB:.0f} MB of vectors: peaks of {few:.0f} and {many:.0f} MB")
    assert sent > 100 * MB
    assert answered > 100 * MB
    assert many - few < 100  # DuckDB has filled its memory limit by then
