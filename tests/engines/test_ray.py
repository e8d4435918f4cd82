"""engine=ray on a real Ray: one that a run starts for itself, and a cluster of two nodes on this machine."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from infermesh.simulator.process import SimulatorProcess
from infermesh.simulator.settings import SimulatorSettings
from tests.counting import CountingServer, repeated
from tests.e2e.test_crew import every_kind, stored
from tests.support import (
    ask,
    assert_holds,
    command,
    committed,
    environment,
    experiment,
    generate,
    infermesh,
    texts,
    wait_until,
    write_experiment,
    write_jsonl,
)

pytest.importorskip("ray", reason="Ray is not installed: pip install 'infermesh[ray]'")

ROOT = Path(__file__).resolve().parents[2]
ROWS, WINDOW = 600, 32
HERE = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={HERE}")
RAY = (*RUN, "engine=ray", "engine.workers=2", "engine.silence=3s")
SECRET = "sk-" + "0123456789abcdef" * 3
RUN_S, BEGIN_S = 90.0, 60.0


class Cluster:
    """A head and a second node, as ``ray start`` makes them; both processes lead a group, which ends as one."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        self.logs = folder
        self.environ = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        small = ("--num-cpus=2", "--object-store-memory=100000000", "--block")
        workers = ("--min-worker-port=0", "--max-worker-port=0")  # any: the head's own port may be among the usual ones
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        self.head = self._start(*head, *small, *workers)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, "the head", BEGIN_S)
        self.second = self._start(f"--address=127.0.0.1:{port}", *small, *workers)
        self.address = f"127.0.0.1:{port}"
        wait_until(lambda: self._nodes() == 2, "two nodes", BEGIN_S)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        return subprocess.Popen(
            [ray, "start", *arguments],
            env=environment(**self.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _nodes(self) -> int:
        code = (
            "import ray, sys\n"
            f"ray.init(address={self.address!r}, log_to_driver=False)\n"
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment(**self.environ), capture_output=True, text=True, timeout=RUN_S
        )
        return int(found.stdout or 0)

    @staticmethod
    def end(node: subprocess.Popen[bytes]) -> None:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="im", ignore_cleanup_errors=True) as folder:  # its sockets' paths are long
        made = Cluster(Path(folder))
        try:
            yield made
        finally:
            made.end(made.second)
            made.end(made.head)


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer(0.3) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, server: CountingServer) -> Iterator[Path]:
    """Two stages, so that some rows are half done when a worker is lost."""
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    stages = {
        "a": generate(max_parallel_requests=WINDOW),
        "b": generate("{{ a.text }} Once more.", max_parallel_requests=WINDOW),
    }
    mapping = experiment(server.url, stages)
    mapping["deployments"]["d"]["api_key_env"] = "MY_KEY"
    write_experiment(tmp_path, mapping)
    (tmp_path / ".env").write_text(f"MY_KEY={SECRET}\n")
    yield tmp_path
    assert_holds(tmp_path / HERE)


Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch() -> Iterator[Launch]:
    with ExitStack() as stack:

        def start(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                command(*arguments, "--env-file", ".env"),
                cwd=cwd,
                env=environment(**(environ or {})),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def actors() -> set[int]:
    """The processes of all Ray workers of this machine."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {int(line.split()[0]) for line in found.splitlines() if "ray::RayWorker" in line}


def begun(process: subprocess.Popen[str], server: CountingServer, before: set[int], requests: int = 150) -> list[int]:
    """Wait until a run's two workers send, and return their processes."""

    def sends() -> bool:
        assert process.poll() is None, process.communicate()
        return len(server.seen) > requests

    wait_until(sends, "requests of workers", BEGIN_S)
    mine = sorted(actors() - before)
    assert len(mine) == 2
    return mine


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_all_done(folder: Path, server: CountingServer, *, sent_again: int) -> None:
    for stage in ("a", "b"):
        found = ask(folder, f"SELECT count(*), count(DISTINCT row_id) FROM {stage} WHERE status = 'done'")
        assert found == [(ROWS, ROWS)]
    assert len(server.counts) == 2 * ROWS
    assert repeated(server.counts, [*server.counts]) <= sent_again


def of_ray(told: str) -> list[str]:
    """Lines on stderr that are Ray's own: its C++ begins them with a time in brackets, its Python with a name."""
    return [line for line in told.splitlines() if re.match(r"\[\d{4}-|.*\(raylet\)|.*\bray\S*\.py:\d", line)]


def test_three_engines_give_the_same_of_every_kind_of_stage(tmp_path: Path, launch: Launch) -> None:
    with SimulatorProcess(SimulatorSettings()) as simulator:
        write_experiment(tmp_path, every_kind(tmp_path, simulator.url))
        (tmp_path / ".env").touch()
        found = []
        for engine in ("process", "local", "ray"):
            more = () if engine == "process" else ("engine.workers=2",)
            here = f"outputs/{engine}"
            process = launch(
                "run", "+experiment=mine", f"hydra.run.dir={here}", f"engine={engine}", *more, cwd=tmp_path
            )
            out, told = process.communicate(timeout=RUN_S)
            assert process.returncode == 3, told  # the function refuses row 3
            assert out == ""
            assert of_ray(told) == []
            found.append(stored(tmp_path / here))
            assert_holds(tmp_path / here)
    assert found[0] == found[1] == found[2]


def test_the_quickstart_is_the_same(tmp_path: Path) -> None:
    found = []
    for engine in ("process", "ray"):
        folder = tmp_path / engine
        done = infermesh(
            "run", "+experiment=quickstart", f"hydra.run.dir={folder}", f"engine={engine}", "source.limit=20", cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        found.append(stored(folder, ("source", "transcripts", "summaries", "vectors")))
    assert found[0] == found[1]


def test_a_worker_is_killed(project: Path, server: CountingServer, launch: Launch) -> None:
    before = actors()
    process = launch(*RAY, cwd=project)
    os.kill(begun(process, server, before)[0], signal.SIGKILL)
    out, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, told
    assert out == ""
    assert of_ray(told) == []
    assert re.search(r"worker \d \(process \d+ on \S+\) has ended; its \d+ rows in hand will be sent by others", told)
    assert_all_done(project / HERE, server, sent_again=2 * 2 * WINDOW)


def test_a_worker_is_frozen(project: Path, server: CountingServer, launch: Launch) -> None:
    before = actors()
    process = launch(*RAY, cwd=project)
    frozen = begun(process, server, before)[0]
    os.kill(frozen, signal.SIGSTOP)
    _, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, told
    assert "has said nothing for 3 s" in told
    assert gone(frozen)
    assert_all_done(project / HERE, server, sent_again=2 * 2 * WINDOW)


def test_the_hub_is_killed_and_its_run_goes_on_with_another_engine(
    project: Path, server: CountingServer, launch: Launch
) -> None:
    before = actors()
    process = launch(*RAY, cwd=project)
    mine = begun(process, server, before)
    process.kill()
    process.communicate(timeout=RUN_S)
    wait_until(lambda: all(map(gone, mine)), "the workers to end", 10.0)
    sent = len(server.seen)
    assert committed(project / HERE, "a") > 0
    assert sent == len(server.seen)
    resumed = launch("resume", HERE, "engine=local", "engine.workers=2", cwd=project)
    _, told = resumed.communicate(timeout=RUN_S)
    assert resumed.returncode == 0, told
    assert_all_done(project / HERE, server, sent_again=6 * 2 * WINDOW)


def test_workers_of_a_frozen_hub_end_by_themselves(project: Path, server: CountingServer, launch: Launch) -> None:
    before = actors()
    process = launch(*RAY, cwd=project)
    mine = begun(process, server, before)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(map(gone, mine)), "the workers to end", 10.0)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, told
    assert_all_done(project / HERE, server, sent_again=3 * 2 * WINDOW)


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_it_is_asked_interrupted_and_resumed_by_another_engine(
    project: Path, server: CountingServer, launch: Launch, by: str
) -> None:
    before = actors()
    process = launch(*RAY, cwd=project)
    begun(process, server, before)
    asked = infermesh("sql", "select count(*) from a where status = 'done'", "--run", HERE, cwd=project)
    assert int(re.findall(r"\d+", asked.stdout)[-1]) > 0
    if by == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it, to the hub and to all that Ray has started
    else:
        process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 130, told
    assert of_ray(told) == []
    assert "SIGTERM" not in told
    done = ask(project / HERE, "SELECT count(*) FROM attempts")[0][0]
    assert len(server.seen) == done
    resumed = launch("resume", HERE, "engine=process", cwd=project)
    _, told = resumed.communicate(timeout=RUN_S)
    assert resumed.returncode == 0, told
    assert_all_done(project / HERE, server, sent_again=0)
    assert len(server.seen) == 2 * ROWS


def test_a_node_is_lost_and_no_key_is_left_on_the_cluster(
    project: Path, server: CountingServer, launch: Launch, cluster: Cluster
) -> None:
    before = actors()
    process = launch(*RAY, f"engine.address={cluster.address}", cwd=project, environ=cluster.environ)
    begun(process, server, before)
    cluster.end(cluster.second)
    _, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 0, told
    assert re.search(r"engine: 2 workers on Ray at \S+, 2 nodes", told)
    assert re.search(r"worker \d \(.*\) (cannot be reached|was lost with its node|has ended); its \d+ rows", told)
    assert of_ray(told) == []
    assert_all_done(project / HERE, server, sent_again=2 * 2 * WINDOW)
    files = [file for file in cluster.logs.rglob("*") if file.is_file() and not file.is_symlink()]
    assert any("raylet" in file.name for file in files)
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert "rows.jsonl" in {file.name for file in files}, "the project's folder was shipped"
    assert ".env" not in {file.name for file in files}


def test_what_a_cluster_cannot_do_is_told(tmp_path: Path, launch: Launch, cluster: Cluster) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(3))
    write_experiment(tmp_path, experiment("simulator", {"a": generate()}))
    (tmp_path / ".env").touch()
    at = f"engine.address={cluster.address}"
    process = launch(*RUN, "engine=ray", at, cwd=tmp_path, environ=cluster.environ)
    _, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 1
    assert "api_base: simulator is a server of this machine alone, and Ray has 2 nodes" in told
    process = launch(*RUN, "engine=ray", at, cwd=tmp_path, environ=cluster.environ | {"RAY_AUTH_TOKEN": "wrong" * 8})
    _, told = process.communicate(timeout=RUN_S)
    assert process.returncode == 1
    assert f"engine.address: {cluster.address}: no Ray there" in told
