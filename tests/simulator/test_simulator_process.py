"""Simulators in threads and in child processes: they start, and nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from infermesh.simulator import Faults, Simulator, SimulatorProcess, SimulatorSettings
from infermesh.simulator.server import serve

Ask = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-W", "error", "-m", "infermesh.simulator"]


def accepts(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((str(address.hostname), address.port or 0), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_thread_leaves_nothing_behind(chat: Ask) -> None:
    chat_once = SimulatorSettings(latency_s=0.001)
    with Simulator(chat_once) as simulator:
        chat(simulator)
    gc.collect()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(3):
        with Simulator(SimulatorSettings(faults=Faults(hang=1.0, endpoints=["responses"]))) as simulator:
            chat(simulator)
            address = urlsplit(simulator.url)
            # A request that hangs must not keep the simulator from closing.
            with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
                connection.sendall(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
                while not simulator.stats()["endpoints"]["responses"]["in_flight"]:
                    pass
                simulator.close()
                assert connection.recv(1) == b""
        assert not accepts(simulator.url)
    gc.collect()
    assert threading.active_count() == threads
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == files


def test_a_simulator_can_start_again_but_not_twice(chat: Ask) -> None:
    simulator = Simulator()
    with simulator:
        with pytest.raises(RuntimeError, match="already"):
            simulator.start()
        assert chat(simulator).status == 200
    with simulator:
        assert chat(simulator).status == 200
    simulator.close()


def test_it_runs_beside_a_loop(chat: Ask) -> None:
    async def main() -> int:
        with Simulator() as simulator:
            return int((await asyncio.to_thread(chat, simulator)).status)

    assert asyncio.run(main()) == 200


def test_a_child_serves_with_its_settings(chat: Ask) -> None:
    with SimulatorProcess(SimulatorSettings(models=["only"], faults=Faults(server_error=1.0))) as simulator:
        assert simulator.pid != os.getpid()
        assert chat(simulator).status == 404
        assert chat(simulator, model="only").status == 500
        assert simulator.stats()["endpoints"]["chat"]["received"] == 2
        simulator.reset()
        assert simulator.stats()["endpoints"]["chat"]["received"] == 0
    assert not accepts(simulator.url)
    with pytest.raises(ProcessLookupError):
        os.kill(simulator.pid, 0)
    simulator.close()


def test_a_child_dies_with_its_parent() -> None:
    script = (
        "from infermesh.simulator import SimulatorProcess\n"
        "simulator = SimulatorProcess()\n"
        "print(simulator.url, simulator.pid, flush=True)\n"
        "input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    with parent:
        assert parent.stdout is not None
        url, pid = parent.stdout.readline().split()
        assert accepts(url)
        handle = os.pidfd_open(int(pid)) if sys.platform == "linux" else None
        parent.kill()
        parent.wait()
    if handle is None:
        pytest.skip("waiting for a process that is not a child needs a pidfd")
    try:
        assert select.select([handle], [], [], 5)[0], "the simulator outlived its parent"
    finally:
        os.close(handle)
    assert not accepts(url)


def start_child(*options: str) -> tuple[subprocess.Popen[str], str]:
    child = subprocess.Popen(
        [*COMMAND, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    assert child.stdout is not None
    return child, json.loads(child.stdout.readline())["url"]


def test_the_parent_decides_about_interrupts() -> None:
    child, url = start_child("--exit-with-stdin")
    with child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            child.send_signal(number)
        assert accepts(url)
        assert child.poll() is None
        out, errors = child.communicate(timeout=5)
    assert (child.returncode, out, errors) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_server_of_its_own(number: signal.Signals) -> None:
    child, url = start_child()
    with child:
        child.send_signal(number)
        out, errors = child.communicate(timeout=5)
    assert (child.returncode, out, errors) == (0, "", "")
    assert not accepts(url)


@pytest.mark.parametrize("settings", ["{", '{"unknown": 1}'])
def test_bad_settings_are_a_usage_error(settings: str) -> None:
    command = [*COMMAND, "--settings", settings]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert "--settings" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            serve(SimulatorSettings(), port=port)
        command = [*COMMAND, "--port", str(port)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_child_that_does_not_come_up() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        SimulatorProcess(start_timeout_s=0)


def test_settings_are_cheap_to_import() -> None:
    script = (
        "import sys\n"
        "from infermesh.simulator.settings import SimulatorSettings\n"
        "from infermesh.simulator import SimulatorProcess\n"
        "print([name for name in ('aiohttp', 'uvloop') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=10, check=True
    )
    assert done.stdout == "[]\n"


def test_unknown_names_are_attribute_errors() -> None:
    import infermesh.simulator

    with pytest.raises(AttributeError, match="nothing"):
        infermesh.simulator.nothing  # noqa: B018
