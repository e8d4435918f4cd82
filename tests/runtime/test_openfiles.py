"""Many requests in flight where the limit on open files is low. Real processes: a limit is a process's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.support import (
    COMMAND_S,
    ask,
    command,
    environment,
    experiment,
    generate,
    texts,
    totals,
    write_experiment,
    write_jsonl,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")

AT_ONCE = 400
CLIENT = """
import sys
from infermesh import LMClient
with LMClient("hosted_vllm/any", api_base=sys.argv[1], max_parallel_requests=int(sys.argv[2]), max_retries=0) as client:
    batch = client.generate_batch(["Hello."] * int(sys.argv[2]), return_exceptions=True)
    print(sum(isinstance(each, Exception) for each in batch))
"""


@pytest.fixture
def service(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=0.5)


def limited(*arguments: str, cwd: Path, soft: int, hard: int | None = None) -> subprocess.CompletedProcess[str]:
    """A command under a low limit."""
    shell = f"ulimit -Sn {soft}; " + (f"ulimit -Hn {hard}; " if hard else "") + 'exec "$@"'
    return subprocess.run(
        ["sh", "-c", shell, "sh", *arguments],
        cwd=cwd,
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run(root: Path, service: Simulator, soft: int, hard: int | None = None) -> subprocess.CompletedProcess[str]:
    write_jsonl(root / "rows.jsonl", texts(AT_ONCE))
    mapping = experiment(service.url, {"a": generate(max_parallel_requests=AT_ONCE)})
    mapping["models"]["m"]["max_retries"] = 0
    write_experiment(root, mapping)
    return limited(*command("run", "+experiment=mine", "hydra.run.dir=outputs/r"), cwd=root, soft=soft, hard=hard)


@pytest.mark.long
def test_a_run_raises_the_soft_limit(tmp_path: Path, service: Simulator) -> None:
    found = run(tmp_path, service, soft=128)
    assert found.returncode == 0, found.stderr
    assert "descriptors" not in found.stderr
    assert totals(service)["max_in_flight"] > 128


def test_a_client_raises_it(tmp_path: Path, service: Simulator) -> None:
    found = limited(sys.executable, "-c", CLIENT, service.url, str(AT_ONCE), cwd=tmp_path, soft=128)
    assert (found.returncode, found.stdout, found.stderr) == (0, "0\n", "")
    assert totals(service)["max_in_flight"] > 128


@pytest.mark.long
def test_a_hard_limit_that_is_too_low_is_told_once(tmp_path: Path, service: Simulator) -> None:
    found = run(tmp_path, service, soft=128, hard=300)
    assert (
        found.stderr.count("sending 400 at once takes 656 file descriptors, and the system allows this process 300")
        == 1
    )
    assert found.stderr.index("descriptors") < found.stderr.index("loading")
    assert "ulimit -n 656" in found.stderr
    assert "lower max_parallel_requests to 44" in found.stderr
    assert "Traceback" not in found.stderr
    assert found.returncode in (0, 3)
    assert ask(tmp_path / "outputs/r", "SELECT count(*) FROM a") == [(AT_ONCE,)]
    found = limited(sys.executable, "-c", CLIENT, service.url, str(AT_ONCE), cwd=tmp_path, soft=128, hard=300)
    assert found.stderr.count("lower max_parallel_requests to 44") == 1
    assert found.returncode == 0
