"""Telling others how a run has ended, which neither delays nor fails it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError
from infermesh.runs.notify import NOTIFY_LOG, facts_of
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, generate, logged, texts, wait_until


class Hook:
    """A web hook, and what was posted to it."""

    def __init__(self, status: int = 200) -> None:
        self.posted: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_url_gets_the_facts(lab: Lab, simulator: Simulator, hook: Hook) -> None:
    lab.rows(texts(3))
    mapping = experiment(simulator.url, {"a": generate()}, notify={"done": "${oc.env:HOOK}", "failed": "false"})
    assert lab.run(mapping, environ={"HOOK": hook.url}).exit_code == 0
    wait_until(lambda: hook.posted, "the post")
    (facts,) = hook.posted
    assert (facts["event"], facts["status"], facts["exit_code"], facts["done"]) == ("done", "done", 0, 3)
    assert facts["stages"] == {"a": {"done": 3}}
    assert facts["folder"] == str(lab.folder)
    assert facts["text"].startswith("lab: done (3 done, 0 failed, 0 pending) in /")
    wait_until(lambda: logged(lab.folder / NOTIFY_LOG) == "posted: 200\n", "the log")
    assert hook.url not in lab.one("SELECT config::VARCHAR FROM run")
    assert hook.url not in (lab.folder / ".hydra" / "config.yaml").read_text()


def test_a_command_gets_them_on_stdin_and_in_variables(lab: Lab, simulator: Simulator, tmp_path: Path) -> None:
    told, seen = tmp_path / "told.json", tmp_path / "seen"
    command = f'cat > {told}; echo "$INFERMESH_EVENT $INFERMESH_STATUS $INFERMESH_FAILED" > {seen}; echo heard; exit 7'
    lab.rows([*texts(2), "no json"])
    mapping = experiment(simulator.url, {"a": generate()}, notify={"failed": command, "done": "false"})
    assert lab.run(mapping).exit_code == 3
    wait_until(lambda: logged(seen) == "failed failed_rows 1\n", "the command")
    assert json.loads(told.read_text())["failures"][0]["error_type"] == "malformed_input"
    wait_until(lambda: logged(lab.folder / NOTIFY_LOG) == "heard\n", "the log")


def test_a_guards_stop_and_nobody_there(lab: Lab, start_simulator: Any) -> None:
    service = start_simulator(latency_s=0.05)
    lab.rows(texts(50))
    mapping = experiment(
        service.url,
        {"a": generate(max_parallel_requests=1)},
        notify={"stopped": "http://127.0.0.1:9/nobody", "done": "false"},
        guards={"max_duration": 0.2},
    )
    assert lab.run(mapping).exit_code == 4
    wait_until(lambda: "not posted: URLError" in logged(lab.folder / NOTIFY_LOG), "the log")


def test_keys_stay_here(tmp_path: Path) -> None:
    key = "sk-proj-" + "a1B2" * 12
    assert key not in json.dumps(facts_of("x", tmp_path, "crashed", reason=f"refused: Bearer {key}"))
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()})
    for url in ("https://hooks.slack.com/services/T0/B0/abcdef", "https://me:secret@example.org/x"):
        with pytest.raises(ConfigError, match=r"notify\.done: this value holds what looks like a key or a password"):
            declare(mapping | {"notify": {"done": url}}, [tmp_path])
