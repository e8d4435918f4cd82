"""Quotas of an account that several processes of this machine share, by the server's own clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from infermesh import LMClient
from infermesh.errors import ConfigError
from infermesh.limits.keeper import quota_path
from tests.counting import CountingServer
from tests.support import (
    COMMAND_S,
    Lab,
    command,
    environment,
    experiment,
    generate,
    texts,
    wait_until,
    write_experiment,
    write_jsonl,
)

CLIENT = """
import sys
from infermesh import LMClient

with LMClient(
    "hosted_vllm/any", api_base=sys.argv[1], api_key="k-1", max_parallel_requests=64, shared_limits="team", {limits}
) as client:
    n = 0
    while True:
        client.generate_batch([f"From the client: {{n + each}}." for each in range(20_000)], progress=False)
        n += 20_000
"""


class Processes:
    """Runs and clients of one account, each a process that leads a group."""

    def __init__(self, root: Path, url: str, limits: dict[str, Any], stack: ExitStack) -> None:
        self.root, self._url, self._limits, self._stack = root, url, limits, stack
        # Not below pytest's own folder, whose path is too long for a socket.
        self._runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="im")))
        self._environ = environment(XDG_RUNTIME_DIR=str(self._runtime), MY_KEY="k-1")
        write_jsonl(root / "rows.jsonl", texts(100_000))

    def run(self, name: str, *more: str, limits: dict[str, Any] | None = None) -> subprocess.Popen[str]:
        mapping = experiment(self._url, {"a": generate(f"{name}: {{{{ text }}}}", max_parallel_requests=64)})
        mapping["limits"] = {"team": {"shared": True, **(limits or self._limits)}}
        mapping["deployments"] = {
            label: {"model": "hosted_vllm/any", "api_base": self._url, "api_key_env": "MY_KEY", "limits": "team"}
            for label in "de"
        }
        mapping["models"]["m"]["deployments"] = ["d", "e"]
        write_experiment(self.root, mapping | {"name": name}, name)
        return self._start(command("run", f"+experiment={name}", f"hydra.run.dir=outputs/{name}", *more))

    def client(self) -> subprocess.Popen[str]:
        given = ", ".join(f"{name}={value}" for name, value in self._limits.items())
        return self._start([sys.executable, "-c", CLIENT.format(limits=given), self._url])

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            arguments,
            cwd=self.root,
            env=self._environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process

    def keeper(self) -> int:
        """The process that has the lock, as the kernel says."""
        (lock,) = (self._runtime / "infermesh").glob("*.lock")
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and fields[5].endswith(f":{inode}"):
                return int(fields[4])
        return 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def rate(times: Sequence[float], begin: float, end: float) -> float:
    inside = [at for at in times if begin <= at <= end]
    return (len(inside) - 1) / (inside[-1] - inside[0])


@pytest.mark.long
@pytest.mark.breaks_runs
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who has a lock is told by /proc")
@pytest.mark.parametrize(
    ("limits", "a_minute"),
    [({"rpm": 6000}, 6000), ({"tpm": 80_000, "default_output_tokens": 3}, 10_000)],
)
def test_two_runs_and_a_client_keep_to_one_quota_though_its_keeper_is_killed(
    tmp_path: Path, stack: ExitStack, limits: dict[str, Any], a_minute: float
) -> None:
    server = stack.enter_context(CountingServer(0.05))
    all_of = Processes(tmp_path, server.url, limits, stack)
    found = [all_of.run("one"), all_of.run("two"), all_of.client()]

    def of(mark: str, since: int = 0) -> int:
        return sum(mark in text for _, text in server.seen[since:])

    wait_until(lambda: min(map(of, ("one:", "two:", "client"))) > 20, "requests of all three", COMMAND_S)
    keeper = all_of.keeper()
    assert keeper in {process.pid for process in found}
    begin = server.seen[-1][0] + 3
    wait_until(lambda: server.seen[-1][0] > begin + 15, "fifteen seconds", 40)
    before = rate([at for at, _ in server.seen], begin, begin + 15)
    os.kill(keeper, signal.SIGKILL)
    killed = len(server.seen)
    at = server.seen[-1][0]
    wait_until(lambda: all_of.keeper() not in (0, keeper), "another keeper", 5)
    wait_until(lambda: server.seen[-1][0] > at + 50, "fifty seconds", 80)
    after = rate([at for at, _ in server.seen], at + 5, at + 50)
    left = [mark for mark, process in zip(("one:", "two:", "client"), found, strict=True) if process.poll() is None]
    assert len(left) == 2
    assert all(of(mark, killed) > 0.3 * (len(server.seen) - killed) for mark in left)
    assert server.most_within(60.0) <= a_minute
    assert before >= 0.97 * a_minute / 60
    assert after >= 0.97 * a_minute / 60


@pytest.mark.long
@pytest.mark.breaks_runs
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who has a lock is told by /proc")
def test_while_the_keeper_is_frozen_each_has_its_part(tmp_path: Path, stack: ExitStack) -> None:
    server = stack.enter_context(CountingServer(0.05))
    all_of = Processes(tmp_path, server.url, {"rpm": 3000}, stack)
    found = {"one:": all_of.run("one"), "two:": all_of.run("two"), "three:": all_of.run("three", "engine.workers=2")}

    def times(mark: str) -> list[float]:
        return [at for at, text in server.seen if mark in text]

    wait_until(lambda: min(len(times(mark)) for mark in found) > 20, "requests of all three", COMMAND_S)
    keeper = all_of.keeper()
    (frozen,) = (mark for mark, process in found.items() if process.pid == keeper)
    os.kill(keeper, signal.SIGSTOP)
    at = server.seen[-1][0]
    wait_until(lambda: server.seen[-1][0] > at + 20, "twenty seconds", 40)
    for mark in found.keys() - {frozen}:
        assert 0.9 * 1000 / 60 < rate(times(mark), at + 6, at + 20) <= 1000 / 60
    os.kill(keeper, signal.SIGCONT)
    wait_until(lambda: server.seen[-1][0] > at + 45, "it to go on", 60)
    assert rate([at for at, _ in server.seen], at + 25, at + 45) >= 0.97 * 3000 / 60
    assert min(rate(times(mark), at + 30, at + 45) for mark in found) > 0.8 * 1000 / 60
    assert server.most_within(60.0) <= 3000


@pytest.mark.breaks_runs
def test_of_two_quotas_the_lower_holds_and_both_say_so(tmp_path: Path, stack: ExitStack) -> None:
    server = stack.enter_context(CountingServer(0.05))
    all_of = Processes(tmp_path, server.url, {"rpm": 6000}, stack)
    one = all_of.run("one")
    wait_until(lambda: len(server.seen) > 20, "requests", COMMAND_S)
    two = all_of.run("two", limits={"rpm": 600})
    wait_until(lambda: any("two:" in text for _, text in server.seen), "requests of the second", COMMAND_S)
    at, sent = server.seen[-1][0], len(server.seen)
    wait_until(lambda: server.seen[-1][0] > at + 3, "three seconds", COMMAND_S)
    assert len(server.seen) - sent <= 4 * 10
    for process in (one, two):
        process.send_signal(signal.SIGINT)
    told = [process.communicate(timeout=COMMAND_S)[1] for process in (one, two)]
    assert "limits.team is declared otherwise by others that share it: the lower holds, rpm 600" in told[1]


@pytest.mark.breaks_runs
def test_a_day_is_shared(tmp_path: Path, stack: ExitStack) -> None:
    server = stack.enter_context(CountingServer(0.05))
    all_of = Processes(tmp_path, server.url, {"rpd": 40}, stack)
    found = [all_of.run(name, "guards.max_duration=6") for name in ("one", "two")]
    for process in found:
        process.communicate(timeout=COMMAND_S)
    assert len(server.seen) == 40


def test_workers_share_no_quota_a_day(lab: Lab) -> None:
    lab.rows(texts(1))
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()}) | {"engine": {"workers": 2}}
    mapping["limits"] = {"team": {"rpd": 5, "shared": True}}
    mapping["deployments"]["d"]["limits"] = "team"
    with pytest.raises(ConfigError, match=r"limits.team.shared: a quota a day is shared by runs of one process each"):
        lab.run(mapping)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "infermesh").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="a folder of your own that nobody else can enter"):
        quota_path("team", "k-1")


def test_accounts_of_one_name_are_told_apart_by_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="im") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        paths = {quota_path(name, key) for name in ("team", "lab") for key in ("k-1", "k-2")}
        assert len(paths) == 4
        assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in paths)
        monkeypatch.setenv("XDG_RUNTIME_DIR", f"{folder}/{'long' * 30}")
        Path(f"{folder}/{'long' * 30}").mkdir()
        with pytest.raises(ConfigError, match="is too long for a socket"):
            quota_path("team", "k-1")


def test_a_client_that_shares_needs_something_to_share() -> None:
    with pytest.raises(ConfigError, match="shared_limits: expected a limit to share"):
        LMClient("hosted_vllm/any", api_base="http://127.0.0.1:9/v1", shared_limits="team")
