"""A run against a service that fails three times in ten, in every way there is."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.support import (
    ask,
    command,
    embed,
    environment,
    experiment,
    generate,
    here,
    infermesh,
    run_folders,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 40
FAULTS = {
    "rate_limit": 0.06,
    "unavailable": 0.05,
    "server_error": 0.05,
    "drop": 0.05,
    "truncate": 0.04,
    "malformed": 0.04,
    "hang": 0.01,
    "retry_after_s": 0.1,
}


@pytest.mark.parametrize(("retries", "seed"), [(2, 1), (0, 2)])
@pytest.mark.long
def test_every_row_is_settled(
    tmp_path: Path, start_simulator: Callable[..., Simulator], retries: int, seed: int
) -> None:
    simulator = start_simulator(faults=FAULTS, seed=seed)
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    mapping = experiment(simulator.url, {"a": generate(), "v": embed("{{ a.text }}", micro_batch_size=4)})
    # Replicas: a failed request goes to another one at once, and waits only when each has failed it.
    labels = ["d", "e", "f", "g"]
    mapping["deployments"] = {label: dict(mapping["deployments"]["d"]) for label in labels}
    mapping["models"]["m"] = {"deployments": labels, "max_retries": retries, "timeout": 0.5}
    write_experiment(tmp_path, mapping)
    found = infermesh("run", "+experiment=mine", cwd=tmp_path)
    (folder,) = run_folders(tmp_path)

    counts = {(stage, status): rows for stage, status, rows in ask(folder, "FROM progress")}
    assert not any(status == "pending" for _, status in counts)
    assert sum(rows for (stage, _), rows in counts.items() if stage == "a") == ROWS
    assert sum(rows for (stage, _), rows in counts.items() if stage == "v") == ROWS
    failed = counts.get(("a", "error"), 0)
    if retries:
        assert failed < ROWS // 5
    else:
        assert ROWS // 10 < failed < ROWS * 6 // 10
    assert found.returncode == (3 if any(status == "error" for _, status in counts) else 0), found.stderr
    assert "Traceback" not in found.stderr
    # A row that failed upstream is not sent further; whatever failed says how, and what was sent was logged.
    assert ask(folder, "SELECT count(*) FROM results WHERE a_status = 'error' AND v_status <> 'skipped'") == [(0,)]
    assert ask(folder, "SELECT count(*) FROM a WHERE status = 'error' AND (error IS NULL OR error_type IS NULL)") == [
        (0,)
    ]
    assert ask(folder, "SELECT count(*) FROM attempts") == [(totals(simulator)["received"],)]
    kinds = {kind for (kind,) in ask(folder, "SELECT DISTINCT error_type FROM attempts WHERE error_type IS NOT NULL")}
    assert kinds <= {"rate_limit", "server", "connection", "malformed_response", "timeout"}
    assert len(kinds) >= 3
    if not retries:
        # On a service that has recovered, only what failed is sent again.
        simulator.close()
        with Simulator() as recovered:
            urls = [f"deployments.{label}.api_base={recovered.url}" for label in labels]
            again = here("run", "+experiment=mine", f"hydra.run.dir={folder}", *urls, cwd=tmp_path)
            assert again.returncode == 0, again.stderr
            assert totals(recovered, "chat")["received"] == failed
        assert ask(folder, "SELECT count(*) FROM results WHERE a_status = 'done' AND v_status = 'done'") == [(ROWS,)]


@pytest.mark.long
def test_a_server_that_is_killed_and_comes_back_costs_no_row(tmp_path: Path) -> None:
    port = free_port()

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command("simulate", "--port", str(port), "latency_s=0.05"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    write_jsonl(tmp_path / "rows.jsonl", texts(300))
    mapping = experiment(f"http://127.0.0.1:{port}/v1", {"a": generate(max_parallel_requests=8)})
    write_experiment(tmp_path, mapping)
    run = subprocess.Popen(
        command("run", "+experiment=mine"), cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment()
    )  # it begins before there is a server
    server = None
    try:
        assert run.stderr is not None
        said: list[str] = []
        for what in ("cannot be reached", "answers again", "cannot be reached", "answers again"):
            if "again" in what:
                server = serve()
            elif server is not None:
                wait_until(lambda: totals_of(port) > 20, "some answers")
                server.kill()
                server.wait()
            while what not in (line := run.stderr.readline()):
                assert line, said
                said.append(line)
            assert what != "cannot be reached" or "max_wait_unreachable" in line
        rest = run.communicate(timeout=60)[1]
        assert run.returncode == 0, rest
    finally:
        run.kill()
        run.communicate()
        if server is not None:
            server.kill()
            server.wait()
    (folder,) = run_folders(tmp_path)
    assert ask(folder, "SELECT status, count(*) FROM a GROUP BY ALL") == [("done", 300)]


def test_a_server_that_stays_away_stops_the_run_and_its_rows_stay_pending(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(50))
    mapping = experiment(f"http://127.0.0.1:{free_port()}/v1", {"a": generate()})
    mapping["models"]["m"]["max_wait_unreachable"] = 2
    write_experiment(tmp_path, mapping)
    found = here("run", "+experiment=mine", cwd=tmp_path)
    assert found.returncode == 4, found.stderr
    assert "models.m.max_wait_unreachable is 2 s" in found.stderr
    assert "infermesh resume" in found.stderr
    (folder,) = run_folders(tmp_path)
    assert ask(folder, "FROM progress") == [("a", "pending", 50)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def totals_of(port: int) -> int:
    """Requests that the simulator at the port has received."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
        received: int = json.loads(answer.read())["totals"]["received"]
        return received
