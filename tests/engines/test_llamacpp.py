"""llama.cpp with a real, small model: answers, structured output, errors, embeddings, and a server that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from infermesh import ContextLengthError, LMClient, ServerError
from tests.engines.conftest import Engine
from tests.support import (
    ask,
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

FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "n": {"type": "integer"}},
    "required": ["city", "n"],
    "additionalProperties": False,
}


@pytest.fixture
def client(llamacpp: Engine) -> LMClient:
    return LMClient("hosted_vllm/smollm2", api_base=llamacpp.base, timeout=120, max_retries=0)


def test_all_three_endpoints(client: LMClient) -> None:
    with client:
        for endpoint in ("chat_completion", "text_completion", "responses"):
            result = client.generate("Say hello.", endpoint=endpoint, max_tokens=8, temperature=0)
            assert result.output_text
            assert result.token_usage is not None
            assert result.token_usage.completion_tokens > 0


def test_structured_output(client: LMClient) -> None:
    with client:
        result = client.generate("Give a city as JSON.", response_format=SCHEMA, max_tokens=60, temperature=0)
    assert result.output_parsed["city"] in ("Rome", "Oslo")


def test_errors(client: LMClient) -> None:
    with client:
        with pytest.raises(ContextLengthError):
            client.generate("word " * 9000, max_tokens=4)
        with pytest.raises(ServerError) as caught:
            client.embed("hello")
        assert (caught.value.status_code, caught.value.retryable) == (501, False)


def test_embeddings(llamacpp_embeddings: Engine) -> None:
    with LMClient("hosted_vllm/smollm2", api_base=llamacpp_embeddings.base, timeout=120) as client:
        batch = client.embed_batch(["a", "b", "word " * 9000, "c"], micro_batch_size=4)
    assert list(batch.failures) == [2]


def test_killed_and_started_again_costs_no_row(tmp_path: Path, llamacpp: Engine) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(120))
    stage = generate(params={"max_tokens": 4}, max_parallel_requests=8)
    write_experiment(tmp_path, experiment(llamacpp.base, {"a": stage}))
    run = subprocess.Popen(command(*RUN), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    wait_until(lambda: committed(tmp_path / FOLDER, "a") >= 10, "ten rows", 120)
    llamacpp.kill()
    wait_until(lambda: "cannot be reached" in (tmp_path / FOLDER / "run.log").read_text(), "the run to notice", 60)
    llamacpp.start()
    said = run.communicate(timeout=300)[1].decode()
    assert run.returncode == 0, said
    assert ask(tmp_path / FOLDER, "SELECT status, count(*) FROM a GROUP BY ALL") == [("done", 120)]


def test_a_run_that_is_killed_is_resumed(tmp_path: Path, llamacpp: Engine) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(120))
    stage = generate(params={"max_tokens": 4}, max_parallel_requests=8)
    write_experiment(tmp_path, experiment(llamacpp.base, {"a": stage}))
    run = subprocess.Popen(
        command(*RUN),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder = tmp_path / FOLDER
    wait_until(lambda: committed(folder, "a") >= 10, "ten rows", 120)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert 10 <= ask(folder, "SELECT count(*) FROM a")[0][0] < 120
    assert infermesh("resume", str(folder), cwd=tmp_path).returncode == 0
    assert ask(folder, "SELECT status, count(*) FROM a GROUP BY ALL") == [("done", 120)]
    assert ask(folder, "SELECT count(*) FROM (SELECT row_id FROM a GROUP BY ALL HAVING count(*) > 1)") == [(0,)]
