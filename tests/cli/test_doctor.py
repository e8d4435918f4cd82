"""``infermesh doctor``: each thing that stands between a user and a run has a line, and what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from infermesh.cli.doctor import machine
from infermesh.cli.doctor.findings import Finding, together
from infermesh.simulator.server import Simulator
from tests.support import (
    Lab,
    command,
    embed,
    environment,
    experiment,
    generate,
    here,
    totals,
    transcribe,
    write_experiment,
)

Found = dict[str, tuple[str, str]]


def doctor(*arguments: str, cwd: Path, code: int = 0, **variables: str) -> Found:
    """About → state, and words with what to do."""
    ended = here("doctor", "--json", *arguments, cwd=cwd, **variables)
    assert ended.returncode == code, ended.stdout + ended.stderr
    said = json.loads(ended.stdout)
    assert said["ok"] is (code == 0)
    assert all(each["do"] for each in said["findings"] if each["state"] != "ok"), said
    return {each["about"]: (each["state"], f"{each['words']} → {each['do']}") for each in said["findings"]}


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def test_outside_any_project(tmp_path: Path) -> None:
    ended = here("doctor", cwd=tmp_path, OPENAI_API_KEY="sk-not-a-real-one-0123456789")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no conf/ in" in ended.stdout
    assert "set: OPENAI_API_KEY" in ended.stdout
    assert "sk-not" not in ended.stdout + ended.stderr
    assert "0 failed" in ended.stdout
    assert not (tmp_path / "outputs").exists()


def test_each_deployment_says_what_it_serves_and_a_wrong_name_is_told(
    lab: Lab, start_simulator: Callable[..., Simulator]
) -> None:
    server = start_simulator(models=["llama-3-8b", "minilm"], api_key="right")
    bad = "http://127.0.0.1:9/v1"
    entry = {"model": "hosted_vllm/llama-3-8b", "api_base": server.url, "api_key_env": "RIGHT_KEY"}
    write_experiment(
        lab.root,
        experiment(
            server.url,
            {"a": generate()},
            deployments={
                "good": entry,
                "typo": {**entry, "model": "hosted_vllm/llama-3-8"},
                "locked": {**entry, "api_key_env": "WRONG_KEY"},
                "unset": {**entry, "api_key_env": "NO_KEY"},
                "closed": {**entry, "api_base": bad},
                "path": {**entry, "api_base": f"{server.url}/chat"},
            },
            models={"m": {"deployments": ["good", "typo", "locked", "unset", "closed", "path"]}},
        ),
    )
    found = doctor("+experiment=mine", cwd=lab.root, code=1, RIGHT_KEY="right", WRONG_KEY="wrong'")
    assert found["deployment good"][0] == "ok"
    assert "serves llama-3-8b" in found["deployment good"][1]
    assert found["deployment typo"][0] == "fail"
    assert "It serves: llama-3-8b, minilm" in found["deployment typo"][1]
    assert found["deployment locked"][0] == "fail"
    assert "401" in found["deployment locked"][1]
    assert "NO_KEY" in found["deployment unset"][1]
    assert "connection refused" in found["deployment closed"][1]
    assert found["deployment path"][0] == "fail"
    assert f"{server.url}" in found["deployment path"][1]
    assert found["keys"] == ("warn", "WRONG_KEY begins or ends with a quote or a blank → export WRONG_KEY without it")
    assert found["clock"][0] == "ok"
    assert totals(server)["received"] == 0, "nothing was asked for an answer"


def test_send_asks_once_for_what_the_stages_ask_for(lab: Lab, simulator: Simulator) -> None:
    stages: dict[str, Any] = {"a": generate(), "b": generate(), "v": embed(), "t": transcribe()}
    write_experiment(lab.root, experiment(simulator.url, stages))
    ended = here("doctor", "+experiment=mine", "--send", cwd=lab.root)
    assert ended.returncode == 0, ended.stdout
    for what in ("chat completion", "embedding", "transcription"):
        assert f"{what}: answered in" in ended.stdout
    assert totals(simulator)["received"] == 3


@pytest.fixture
def lists() -> Iterator[Callable[[Any], str]]:
    """Start servers that answer every prompt, and say this of their models; gives their URLs."""
    with ExitStack() as stack:

        def start(body: Any) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self._say(body)

                def do_POST(self) -> None:
                    self._say({"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]})

                def _say(self, what: Any) -> None:
                    data = json.dumps(what).encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

                def date_time_string(self, timestamp: float | None = None) -> str:
                    return "Thu, 01 Jan 2026 00:00:00 GMT"

                def log_message(self, *_: Any) -> None:
                    pass

            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/v1"

        yield start


def listed(*names: str) -> dict[str, Any]:
    return {"data": [{"id": name} for name in names]}


def test_lists_of_models_as_servers_write_them(lab: Lab, lists: Callable[[Any], str]) -> None:
    urls = {
        "ollama": lists(listed("two:latest")),
        "google": lists(listed("models/two")),
        "proxy": lists(listed("openai/*")),
        "none": lists({"status": "up"}),
        "other": lists(listed("one")),
    }
    servers = {label: {"model": "hosted_vllm/two", "api_base": url} for label, url in urls.items()}
    job = experiment("", {"a": generate()}, deployments=servers, models={"m": {"deployments": [*servers]}})
    write_experiment(lab.root, job)
    found = doctor("mine", cwd=lab.root, code=1)
    states = {label: found[f"deployment {label}"][0] for label in servers}
    assert states == {"ollama": "ok", "google": "ok", "proxy": "ok", "none": "warn", "other": "fail"}
    assert found["clock"][0] == "warn"
    ended = here("doctor", "mine", "--send", cwd=lab.root)
    assert ended.returncode == 0, "each has answered to that name, so that no list says otherwise"
    assert ended.stdout.count("answered in") == len(servers)


def test_a_misspelt_model(lab: Lab) -> None:
    job = experiment("", {"a": generate()}, models={"m": {"model": "openai/gpt-4.1-mni"}}, deployments={})
    write_experiment(lab.root, job)
    found = doctor("mine", cwd=lab.root, code=1)
    words = "models.m: openai/gpt-4.1-mni is not known to the price list: did you mean openai/gpt-4.1-mini?"
    assert (found["models"][0], found["models"][1].partition(" → ")[0]) == ("warn", words)


def test_a_provider_without_its_key(lab: Lab) -> None:
    servers = {"o": {"model": "openai/gpt-4.1-mini"}}
    job = experiment("", {"a": generate()}, deployments=servers, models={"m": {"deployments": [*servers]}})
    write_experiment(lab.root, job)
    found = doctor("mine", cwd=lab.root, code=1)
    assert found["keys"][0] == "fail"
    assert found["keys"][1].startswith("OPENAI_API_KEY is not set → export it")
    assert "export OPENAI_API_KEY=" in found["deployment o"][1]
    assert found["deployment o"][0] == "fail"


@pytest.mark.long  # it loads LiteLLM
def test_a_provider_of_litellm_without_its_key(lab: Lab) -> None:
    servers = {"a": {"model": "anthropic/claude-sonnet-4-5"}}
    job = experiment("", {"a": generate()}, deployments=servers, models={"m": {"deployments": ["a"]}})
    write_experiment(lab.root, job)
    assert "export ANTHROPIC_API_KEY" in doctor("mine", cwd=lab.root, code=1)["deployment a"][1]
    keyed = doctor("mine", cwd=lab.root, ANTHROPIC_API_KEY="x")
    assert keyed["deployment a"][0] == "ok"


def test_nothing_hangs(lab: Lab, hanging: str) -> None:
    write_experiment(lab.root, experiment(hanging, {"a": generate()}))
    begun = time.monotonic()
    found = doctor("+experiment=mine", "--timeout", "0.3", "--send", cwd=lab.root, code=1)
    assert time.monotonic() - begun < 10
    assert found["deployment d"][0] == "fail"
    assert "within 0.3 s" in found["deployment d"][1]


def test_a_probe_that_does_not_end_is_left_behind_and_one_that_breaks_is_told() -> None:
    gate = socket.socketpair()

    def waits() -> Iterator[Finding]:
        gate[0].recv(1)
        yield Finding("mount", "ok", "")

    def breaks() -> Iterator[Finding]:
        raise OSError("no such thing")
        yield

    found = together([("mount", waits, 0.05), ("disk", breaks, 5), ("well", lambda: [Finding("well", "ok", "")], 5)])
    gate[1].send(b"x")
    for each in gate:
        each.close()
    assert [(each.about, each.state) for each in found] == [("mount", "fail"), ("disk", "warn"), ("well", "ok")]
    assert "no answer within 0.05 s" in found[0].words


def test_a_config_that_is_wrong_is_a_finding(lab: Lab, simulator: Simulator) -> None:
    write_experiment(lab.root, experiment(simulator.url, {"a": generate(promt="x")}))
    found = doctor("+experiment=mine", cwd=lab.root, code=1)
    assert "stages.a.promt: unknown key" in found["experiment"][1]
    assert "no such experiment" in doctor("+experiment=other", cwd=lab.root, code=1)["experiment"][1]


def test_a_folder_that_cannot_be_written_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs").write_text("a file in its place")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    (found,) = [each for each in machine.disk(tmp_path / "outputs") if "free" in each.words]
    assert (found.state, found.words[:7]) == ("fail", "0.0 GiB")

    def refuses(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    assert [each.state for each in machine.places(tmp_path)] == ["fail", "fail"]


def test_more_requests_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allow_requests", lambda _: "sending 300 at once takes 556. Raise its hard limit")
    (found,) = machine.descriptors(300)
    assert (found.state, found.do) == ("fail", "Raise its hard limit")


def test_versions_that_are_missing_wrong_or_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "orjson":
            raise metadata.PackageNotFoundError(name)
        return {"litellm": "1.82.8", "duckdb": "1.4.1"}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    failed = [each for each in machine.versions() if each.state == "fail"]
    assert sorted(each.words.split()[0] for each in failed) == ["duckdb", "litellm", "orjson"]
    assert all(each.do for each in failed)


def test_a_proxy_is_named_without_its_password(lab: Lab) -> None:
    write_experiment(lab.root, experiment("http://gpu.example.com/v1", {"a": generate()}))
    proxy = "http://ada:geheim1234@127.0.0.1:9"
    ended = here("doctor", "mine", cwd=lab.root, http_proxy=proxy, HTTP_PROXY=proxy)
    assert ended.returncode == 1
    assert "through the proxy http://127.0.0.1:9" in ended.stdout
    assert "geheim" not in ended.stdout + ended.stderr


def test_what_is_written_in_the_short_form_is_told_in_it(lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    server = start_simulator(models=["one"])
    job = experiment("", {"a": generate()}) | {
        "deployments": {},
        "models": {"m": {"model": "hosted_vllm/two", "api_base": server.url}},
    }
    write_experiment(lab.root, job)
    found = doctor("mine", "limit=1", cwd=lab.root, code=1)
    assert "write one of these as models.m.model" in found["deployment m"][1]


def test_on_a_terminal_lines_are_folded_and_coloured(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    environ = environment(TERM="xterm", COLUMNS="80")
    environ.pop("NO_COLOR")
    ended = subprocess.run(command("doctor"), cwd=tmp_path, env=environ, stdout=follower, timeout=60, check=False)
    os.close(follower)
    said = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert ended.returncode == 0
    assert "\x1b[33mwarn" in said
    assert "→ cd into your project" in said
    assert "\\x1b" not in said
