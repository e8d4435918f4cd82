"""The client among threads, loops and processes: what is shared, what a cancellation reaches, what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infermesh import LMClient
from infermesh.simulator import Faults, Simulator
from tests.support import totals, wait_until

Start = Callable[..., Simulator]
MODEL = "hosted_vllm/any"
WINDOW = 4
ROOT = Path(__file__).resolve().parents[2]


def prompts(count: int) -> list[str]:
    return [f"Parcel number {n} came late." for n in range(count)]


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "infermesh-client"]


def open_sockets() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def test_threads_share_the_slots_and_the_limits(start_simulator: Start) -> None:
    service = start_simulator(latency_s=0.002)
    with (
        LMClient(MODEL, api_base=service.url, max_parallel_requests=WINDOW, rpd=1000) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        batches = list(pool.map(lambda _: client.generate_batch(prompts(20)), range(8)))
        singles = list(pool.map(lambda n: client.generate(f"Single {n}."), range(20)))
        used = client._loop._deployments[0].limiter.used_today  # type: ignore[attr-defined]
    assert [len(batch.failures) for batch in batches] == [0] * 8
    assert [str(single) for single in singles] == [f"Single {n}." for n in range(20)]
    assert totals(service)["max_in_flight"] == WINDOW
    assert used.requests == 180


def test_several_deployments_share_the_clients_slots(start_simulator: Start) -> None:
    services = [start_simulator(latency_s=0.002) for _ in range(2)]
    bases = [service.url for service in services]
    with LMClient(MODEL, api_base=bases, max_parallel_requests=WINDOW) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(client.generate, prompts(60)))
    assert sum(totals(service)["max_in_flight"] for service in services) <= 2 * WINDOW
    assert max(totals(service)["max_in_flight"] for service in services) <= WINDOW
    waits = [result.metrics.queue_s for result in results if result.metrics]
    assert max(waits) > 0.002  # behind somebody else's request


def test_the_clients_slots_serve_each_loop_that_it_is_opened_with(start_simulator: Start) -> None:
    bases = [start_simulator(latency_s=0.002).url for _ in range(2)]
    client = LMClient(MODEL, api_base=bases, max_parallel_requests=1)
    for _ in range(3):
        with client, ThreadPoolExecutor(4) as pool:
            assert [str(result) for result in pool.map(client.generate, prompts(8))] == prompts(8)


async def test_the_synchronous_face_works_where_a_loop_runs(simulator: Simulator) -> None:
    heard: list[int] = []
    with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=WINDOW) as client:
        assert client.generate("Hello.").output_text == "Hello."
        assert not client.generate_batch(iter(prompts(20)), on_result=lambda i, r, e: heard.append(i)).failures
        assert len(list(client.generate_stream(prompts(20)))) == 20
        assert (await client.agenerate("Hello.")).output_text == "Hello."
    assert sorted(heard) == list(range(20))


def test_one_client_serves_any_number_of_loops(simulator: Simulator) -> None:
    async def main(client: LMClient) -> int:
        batch, one = await asyncio.gather(client.agenerate_batch(prompts(10)), client.agenerate("Hello."))
        return len(batch) + len(one.output_text)

    with LMClient(MODEL, api_base=simulator.url) as client, ThreadPoolExecutor(4) as pool:
        assert asyncio.run(main(client)) == 16
        assert list(pool.map(lambda _: asyncio.run(main(client)), range(4))) == [16] * 4
        assert client.generate("Hello.").output_text == "Hello."


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_closing_leaves_no_thread_and_no_connection(simulator: Simulator) -> None:
    before = open_sockets()
    for _ in range(5):
        with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=16) as client:
            client.generate_batch(prompts(50))
            assert len(client_threads()) == 1
            assert open_sockets() - before
        assert not client_threads()
    wait_until(lambda: not open_sockets() - before, "sockets to close")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
async def test_an_async_client_leaves_nothing_either(simulator: Simulator) -> None:
    before = open_sockets()
    async with LMClient(MODEL, api_base=simulator.url) as client:
        await client.agenerate_batch(prompts(20))
    assert not client_threads()
    wait_until(lambda: not open_sockets() - before, "sockets to close")


def test_a_client_that_was_never_used_starts_nothing() -> None:
    with LMClient(MODEL, api_base="http://127.0.0.1:9/v1"):
        assert not client_threads()


def test_a_forgotten_client_is_a_warning_and_its_thread_ends(simulator: Simulator) -> None:
    client = LMClient(MODEL, api_base=simulator.url)
    client.generate("Hello.")
    held = [client]
    del client
    with pytest.warns(ResourceWarning, match="not closed"):
        held.clear()
    gc.collect()
    wait_until(lambda: not client_threads(), "the thread to end")


def test_closing_ends_calls_in_other_threads(start_simulator: Start) -> None:
    stuck = start_simulator(faults=Faults(hang=1.0))
    client = LMClient(MODEL, api_base=stuck.url, max_parallel_requests=WINDOW)
    calls: list[Callable[[], Any]] = [
        lambda: client.generate("Hello."),
        lambda: client.generate_batch(prompts(10)),
        lambda: client.generate_batch(iter(prompts(10)), on_progress=print),
        lambda: list(client.generate_stream(prompts(10))),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        wait_until(lambda: totals(stuck)["in_flight"] == WINDOW, "requests to hang")
        wait_until(lambda: len(asyncio.all_tasks(client._loop.thread.loop)) >= len(calls), "all to have begun")
        client.close()
        for future in futures:
            with pytest.raises(RuntimeError, match="closed"):
                future.result(timeout=10)
    assert totals(stuck)["in_flight"] == 0


@pytest.mark.parametrize("how", ["plain", "watched", "stream"])
def test_ctrl_c_ends_the_requests_and_keeps_the_client(start_simulator: Start, how: str) -> None:
    stuck = start_simulator(faults=Faults(hang=1.0))

    def press() -> None:
        wait_until(lambda: totals(stuck)["in_flight"] == WINDOW, "requests to hang")
        os.kill(os.getpid(), signal.SIGINT)

    with LMClient(MODEL, api_base=stuck.url, max_parallel_requests=WINDOW) as client:
        finger = threading.Thread(target=press)
        finger.start()
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: client.generate_batch(prompts(50)),
            "watched": lambda: client.generate_batch(prompts(50), on_progress=print),
            "stream": lambda: list(client.generate_stream(prompts(50))),
        }
        with pytest.raises(KeyboardInterrupt):
            ways[how]()
        finger.join()
        assert not asyncio.all_tasks(client._loop.thread.loop)
        wait_until(lambda: totals(stuck)["in_flight"] == 0, "requests to end")
        assert totals(stuck)["received"] == WINDOW


async def test_a_cancelled_call_ends_its_request(start_simulator: Start) -> None:
    stuck = start_simulator(faults=Faults(hang=1.0))
    async with LMClient(MODEL, api_base=stuck.url) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.agenerate("Hello."), 0.2)
        await asyncio.to_thread(wait_until, lambda: totals(stuck)["in_flight"] == 0, "the request to end")
        assert not asyncio.all_tasks(client._loop.thread.loop)


@pytest.mark.parametrize("how", ["plain", "watched", "stream", "left early", "failing", "async"])
def test_a_batch_leaves_the_garbage_collector_as_it_was(simulator: Simulator, how: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    def failing() -> None:
        with pytest.raises(OSError, match="full"):
            client.generate_batch(prompts(200), on_result=fail)

    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: client.generate_batch(prompts(200)),
        "watched": lambda: client.generate_batch(prompts(200), on_progress=lambda *_: None),
        "stream": lambda: list(client.generate_stream(prompts(200))),
        "left early": lambda: next(client.generate_stream(prompts(200))),
        "failing": failing,
        "async": lambda: asyncio.run(client.agenerate_batch(prompts(200))),
    }
    before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)
    with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=WINDOW) as client:
        ways[how]()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: client.generate_batch(prompts(50)), range(8)))
        assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)) == before


def test_what_a_program_sets_of_the_collector_while_a_batch_runs_stands(simulator: Simulator) -> None:
    before = gc.get_threshold()
    seen = []

    def on_progress(done: int, total: int | None) -> None:
        seen.append(gc.get_threshold())
        if done == 10:
            gc.set_threshold(1_234, 5, 6)
            gc.disable()

    try:
        with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=WINDOW) as client:
            client.generate_batch(prompts(50), on_progress=on_progress)
            assert (gc.get_threshold(), gc.isenabled()) == ((1_234, 5, 6), False)
    finally:
        gc.enable()
        gc.set_threshold(*before)
    assert seen[0] != before
    assert seen[-1] == (1_234, 5, 6)


def script(simulator: Simulator, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    code = f"from infermesh import LMClient\nURL = {simulator.url!r}\n{textwrap.dedent(text)}"
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("options", [(), ("-W", "error")])
def test_the_interpreter_ends_though_nobody_closed(simulator: Simulator, options: tuple[str, ...]) -> None:
    ran = script(
        simulator,
        """
        client = LMClient("hosted_vllm/any", api_base=URL)
        print(client.generate("Hello."))
        stream = client.generate_stream(f"Parcel {n}." for n in range(1000))
        next(stream)
        """,
        *options,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "Hello.\n", "")


def test_clients_made_in_threads_that_end_do_not_break_the_next(simulator: Simulator) -> None:
    ran = script(
        simulator,
        """
        import threading

        def work():
            with LMClient("hosted_vllm/any", api_base=URL, max_parallel_requests=16) as client:
                assert not client.generate_batch(["Hello."] * 100).failures

        for _ in range(6):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        work()
        """,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_told_to_make_its_own_client(simulator: Simulator) -> None:
    ran = script(
        simulator,
        """
        import os, warnings
        warnings.simplefilter("ignore")
        client, unused = LMClient("hosted_vllm/any", api_base=URL), LMClient("hosted_vllm/any", api_base=URL)
        client.generate("Hello.")
        if os.fork():
            os.wait()
            print("parent", client.generate("Hello."), flush=True)
        else:
            try:
                client.generate("Hello.")
            except RuntimeError as error:
                print("child", error, flush=True)
            client.close()
        """,
    )
    assert ran.stderr == ""
    assert "child this process was forked" in ran.stdout
    assert "parent Hello." in ran.stdout


def test_a_synchronous_call_on_the_clients_own_loop_is_refused(simulator: Simulator) -> None:
    with LMClient(MODEL, api_base=simulator.url) as client:

        async def inputs() -> Any:
            with pytest.raises(RuntimeError, match="own loop"):
                client.generate("Hello.")
            with pytest.raises(RuntimeError, match="own loop"):
                list(client.generate_stream(["Hello."]))
            yield "Hello."

        assert not client.generate_batch(inputs()).failures  # pulled on the client's loop
