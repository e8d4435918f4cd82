"""Keys reach the endpoint and nothing else, whatever a server makes of them."""

from __future__ import annotations

import base64
import html
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from infermesh import DeploymentConfig, LMClient, RequestError
from tests.support import ask, experiment, generate, here, run_folders, texts, write_experiment, write_jsonl

PLANTED = "plantedENVkey-01+23456789"
ENVIRON = {"PLANTED": PLANTED, "NUMBER": "7"}
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


def chat(text: str = "Yes.", **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}


class Server:
    """A server that keeps what it was sent, and answers as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answer: Answer = lambda body: (200, chat())
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                status, said = server.answer(body)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("x-request-id", f"request {PLANTED}" if status >= 400 else "request")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                """Nothing is printed."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def holding(folder: Path, value: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]


@pytest.fixture
def project(tmp_path: Path, server: Server) -> Path:
    """An experiment that takes values from the environment wherever it can."""
    strange = "${oc.env:PLANTED} ${oc.decode:${oc.env:PLANTED}}"
    write_jsonl(tmp_path / "rows.jsonl", [*texts(1), {"n": 1, "text": strange}])
    mapping = experiment(f"http://me:${{oc.env:PLANTED}}@{server.place}/v1?key=${{oc.env:PLANTED}}", {"a": generate()})
    mapping["deployments"]["d"]["headers"] = {"X-Sub": "${oc.env:PLANTED}", "x-api-key": "Key ${oc.env:PLANTED}"}
    mapping["models"]["m"] |= {"params": {"user": "${oc.env:PLANTED}", "seed": "${oc.decode:${oc.env:NUMBER}}"}}
    mapping["models"]["m"] |= {"max_retries": 0, "max_wait_unreachable": 0}
    mapping["stages"]["a"] |= {"params": {"deep": [{"any": "${oc.env:PLANTED}"}]}, "where": "'${oc.env:PLANTED}' <> ''"}
    mapping["stages"]["a"]["system"] = "Not ${oc.env:PLANTED}."
    write_experiment(tmp_path, mapping)
    return tmp_path


def test_what_comes_from_the_environment_is_sent_and_written_nowhere(project: Path, server: Server) -> None:
    found = here("run", "+experiment=mine", cwd=project, **ENVIRON)
    assert found.returncode == 0, found.stderr
    (folder,) = run_folders(project)
    assert ask(folder, "SELECT count(*) FROM a WHERE status = 'done'") == [(2,)]
    for path, headers, body in server.seen:
        assert path.endswith(f"?key={PLANTED}")
        assert headers["authorization"] == f"Basic {base64.b64encode(f'me:{PLANTED}'.encode()).decode()}"
        assert (headers["x-sub"], headers["x-api-key"]) == (PLANTED, f"Key {PLANTED}")
        assert body["user"] == body["deep"][0]["any"] == PLANTED
        assert body["seed"] == 7
        assert body["messages"][0]["content"] == f"Not {PLANTED}."
    asked = {body["messages"][1]["content"] for _, _, body in server.seen}
    assert "${oc.env:PLANTED} ${oc.decode:${oc.env:PLANTED}}" in asked, "a row's text names no variable"
    assert not holding(project, PLANTED)
    assert PLANTED not in found.stdout + found.stderr


def test_another_key_is_no_edit_and_another_prompt_is_one(project: Path, server: Server) -> None:
    assert here("run", "+experiment=mine", cwd=project, **ENVIRON).returncode == 0
    (folder,) = run_folders(project)
    asked = len(server.seen)
    again = [f"hydra.run.dir={folder}", "+experiment=mine", "stages.a.system=null", "stages.a.where=null"]
    assert here("run", *again, cwd=project, **ENVIRON).returncode == 0
    assert len(server.seen) == asked + 2, "the prompt has changed"
    found = here("resume", str(folder), cwd=project, PLANTED="another-key/456789", NUMBER="7")
    assert found.returncode == 0, found.stderr
    assert len(server.seen) == asked + 2
    found = here("resume", str(folder), cwd=project, NUMBER="7")
    assert found.returncode == 1
    assert "models.m.params.user: the environment variable PLANTED is not set" in found.stderr


@pytest.mark.long
def test_a_sweep_and_a_plan_write_and_show_none(project: Path) -> None:
    sweep = ("-m", "+experiment=mine", "deployments.d.headers.X-Sub='${oc.env:PLANTED}'")
    for found in (
        here("run", *sweep, "stages.a.max_parallel_requests=1,2", cwd=project, **ENVIRON),
        here("plan", "+experiment=mine", "stages.a.system=null", "--show", "1", cwd=project, **ENVIRON),
        here("run", "+experiment=mine", "--cfg", "job", cwd=project, **ENVIRON),
    ):
        assert found.returncode == 0, found.stderr
        assert PLANTED not in found.stdout + found.stderr
    assert not holding(project, PLANTED)
    found = here("run", *sweep, "hydra.sweep.subdir=${hydra.job.override_dirname}", cwd=project, **ENVIRON)
    assert found.returncode == 1
    assert "take override_dirname out of them" in found.stderr
    assert not [path for path in project.rglob("*") if PLANTED in path.name]


FORMS = {
    "as it is": PLANTED,
    "in a URL": quote(PLANTED, safe=""),
    "in base64": base64.b64encode(PLANTED.encode()).decode(),
    "in base64 behind a user": base64.b64encode(f"user:{PLANTED}".encode()).decode(),
    "in base64 of URLs": base64.urlsafe_b64encode(f"u:{PLANTED}".encode()).decode(),
    "in two lines": f"{PLANTED[:9]}\n{PLANTED[9:]}",
    "in two lines of JSON": json.dumps(f"{PLANTED[:14]}\n{PLANTED[14:]}"),
    "in HTML": html.escape(PLANTED),
    "its beginning": PLANTED[:12],
}
ECHOES: dict[str, Answer] = {
    "an error": lambda body: (401, {"error": {"message": f"no: {' | '.join(FORMS.values())}", "code": "no"}}),
    "a text": lambda body: (500, f"Traceback … {PLANTED} …".encode()),
    "an error in a success": lambda body: (200, {"error": {"message": f"no: {PLANTED}"}}),
    "an error in the choice": lambda body: (200, chat(error={"message": f"no: {PLANTED}", "code": 502})),
    "a reason": lambda body: (200, chat(finish_reason=f"because of {PLANTED}")),
    "what is no JSON": lambda body: (200, f"<p>{PLANTED}".encode()),
    "what is no answer": lambda body: (200, {"any": PLANTED}),
}


@pytest.mark.parametrize("kind", ECHOES)
def test_an_echo_is_taken_out_of_tables_log_and_messages(project: Path, server: Server, kind: str) -> None:
    server.answer = ECHOES[kind]
    found = here("run", "+experiment=mine", "source.limit=1", cwd=project, **ENVIRON)
    assert server.seen
    (folder,) = run_folders(project)
    said = repr(ask(folder, "SELECT * FROM a") + ask(folder, "SELECT * FROM attempts"))
    assert "[redacted]" in said
    logs = "".join(log.read_text() for log in folder.glob("run.log"))  # there is none where there is nothing to log
    everything = said + found.stdout + found.stderr + logs
    assert not [form for form in FORMS.values() if " ".join(form.split()) in everything]
    assert not holding(project, PLANTED)


def test_a_client_keeps_its_keys_out_of_what_it_says(server: Server) -> None:
    server.answer = lambda body: (200, chat(error={"message": f"no: {PLANTED} {PLANTED[::-1]}", "code": 400}))
    config = DeploymentConfig(
        "hosted_vllm/m",
        f"http://{quote(PLANTED, safe='')}@{server.place}/v1?token={PLANTED[::-1]}",
        headers={"x-any": "${oc.env:HOME}", "x-api-key": PLANTED},
        rpm=600,
    )
    assert repr(config) == (
        f"DeploymentConfig(model='hosted_vllm/m', api_base='http://[redacted]@{server.place}/v1?[redacted]', rpm=600)"
    )
    with LMClient("m", deployments={"d": config}, max_retries=0) as client, pytest.raises(RequestError) as caught:
        client.generate("Hello.")
    assert not [key for key in (PLANTED, PLANTED[::-1]) if key in f"{caught.value!r} {caught.value.__dict__}"]
    ((_, headers, _),) = server.seen
    assert headers["x-any"] == "${oc.env:HOME}", "only a declaration names variables"
