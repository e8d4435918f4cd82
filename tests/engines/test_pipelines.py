"""One run over several engines: speech, text, a schema, embeddings; a killed one goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import KEY, Engine
from tests.engines.install import WHISPER
from tests.support import (
    ask,
    command,
    committed,
    environment,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 60
FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def pipeline(vllm: Engine, llamacpp: Engine, embedder: Engine) -> dict[str, Any]:
    return {
        "source": {"path": "rows.jsonl"},
        "deployments": {
            "vllm": {"model": "hosted_vllm/tiny", "api_base": vllm.base, "api_key_env": "ENGINES_KEY"},
            "llama": {"model": "openai/smollm2", "api_base": llamacpp.base, "api_key_env": "ENGINES_KEY"},
            "vectors": {"model": "openai/smollm2", "api_base": embedder.base, "api_key_env": "ENGINES_KEY"},
        },
        "models": {
            "draft": {"deployments": ["vllm"]},
            "judge": {"deployments": ["llama"]},
            "embedder": {"deployments": ["vectors"]},
        },
        "stages": {
            "a": {
                "kind": "generate",
                "model": "draft",
                "prompt": "{{ text }}",
                "params": {"max_tokens": 6, "temperature": 0},
            },
            "b": {
                "kind": "generate",
                "model": "judge",
                "prompt": "Which city fits: {{ a.text }}? As JSON.",
                "params": {"max_tokens": 40, "temperature": 0},
                "response_format": SCHEMA,
            },
            "c": {"kind": "embed", "model": "embedder", "text": "{{ a.text }} {{ b.parsed.city }}"},
        },
    }


@pytest.fixture
def project(tmp_path: Path, vllm: Engine, llamacpp: Engine, llamacpp_embeddings: Engine) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", ({"n": n, "text": f"Row {n} is about a city."} for n in range(ROWS)))
    write_experiment(tmp_path, pipeline(vllm, llamacpp, llamacpp_embeddings))
    return tmp_path


def whole_run(root: Path) -> subprocess.CompletedProcess[str]:
    environ = environment(ENGINES_KEY=KEY)
    return subprocess.run(
        command(*RUN), cwd=root, env=environ, capture_output=True, text=True, timeout=400, check=False
    )


def check_whole(folder: Path) -> None:
    for stage in ("a", "b", "c"):
        found = ask(folder, f"SELECT status, count(*), count(DISTINCT row_id) FROM {stage} GROUP BY ALL")
        assert found == [("done", ROWS, ROWS)], stage
    assert ask(folder, "SELECT count(*) FROM b WHERE parsed->>'city' NOT IN ('Rome', 'Oslo')") == [(0,)]
    assert ask(folder, "SELECT count(DISTINCT len(embedding)) FROM c") == [(1,)]
    assert ask(folder, "SELECT status FROM run") == [("done",)]


def test_text_then_a_schema_then_embeddings_killed_and_resumed(project: Path) -> None:
    folder = project / FOLDER
    run = subprocess.Popen(
        command(*RUN), cwd=project, env=environment(ENGINES_KEY=KEY), stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: run.poll() is not None or committed(folder, "c") >= 5, "five rows with their vectors", 240)
    assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    before = committed(folder, "c")
    assert 5 <= before < ROWS
    found = whole_run(project)
    assert found.returncode == 0, found.stderr
    check_whole(folder)
    asked = ask(folder, "SELECT count(*) FROM attempts")
    assert whole_run(project).returncode == 0
    assert ask(folder, "SELECT count(*) FROM attempts") == asked  # nothing was left to do


def test_speech_to_text_to_vectors(tmp_path: Path, whisper: Engine, vllm: Engine, llamacpp_embeddings: Engine) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng, which speaks, is not installed: apt-get install espeak-ng")
    cities = ("Rome", "Oslo", "Paris", "London", "Berlin", "Madrid")
    for number, city in enumerate(cities):
        words = f"The train goes to {city} in the morning."
        subprocess.run(["espeak-ng", "-s", "130", "-w", str(tmp_path / f"{number}.wav"), words], check=True)
    (tmp_path / "6.wav").write_bytes(b"RIFF of nothing")
    write_jsonl(tmp_path / "rows.jsonl", ({"clip": f"{number}.wav"} for number in range(7)))
    mapping = pipeline(vllm, vllm, llamacpp_embeddings)
    ear = {"model": f"openai/{WHISPER}", "api_base": whisper.base, "api_key_env": "ENGINES_KEY"}
    mapping["deployments"]["ear"] = ear
    mapping["models"]["whisper"] = {"deployments": ["ear"]}
    mapping["stages"] = {
        "heard": {"kind": "transcribe", "model": "whisper", "audio": "{{ clip }}"},
        "a": mapping["stages"]["a"] | {"prompt": "{{ heard.text }}"},
        "c": mapping["stages"]["c"] | {"text": "{{ heard.text }}"},
    }
    write_experiment(tmp_path, mapping)
    found = whole_run(tmp_path)
    assert found.returncode == 3, found.stderr
    folder = tmp_path / FOLDER
    assert ask(folder, "SELECT row_id FROM heard WHERE status = 'error'") == [(6,)]
    assert ask(folder, "SELECT count(*) FROM heard WHERE text ILIKE '%train%'")[0][0] >= 4
    assert ask(folder, "SELECT count(*) FROM c WHERE status = 'done'") == [(6,)]
