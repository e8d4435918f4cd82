"""Large files pass through the simulator in blocks: its memory does not grow by their size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anthropic
import openai
import pytest

from infermesh.simulator import SimulatorProcess, SimulatorSettings
from tests.support import wait_until

MB = 10**6


def peak_mb(pid: int) -> float:
    """The most memory that a process had."""
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / MB


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_uploads_and_results(tmp_path: Path) -> None:
    text = "word " * 25_000
    (tmp_path / "in.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": f"r{number}",
                    "method": "POST",
                    "url": "/v1/embeddings",
                    "body": {"model": "m", "input": text, "dimensions": 24_576, "encoding_format": "base64"},
                }
            )
            + "\n"
            for number in range(400)
        )
    )
    with (
        SimulatorProcess(SimulatorSettings()) as simulator,
        openai.OpenAI(base_url=simulator.url, api_key="any") as sdk,
        anthropic.Anthropic(base_url=simulator.url.removesuffix("/v1"), api_key="any") as other,
    ):
        before = peak_mb(simulator.pid)
        with (tmp_path / "in.jsonl").open("rb") as file:
            stored = sdk.files.create(file=file, purpose="batch")
        assert stored.bytes > 45 * MB
        batch = sdk.batches.create(input_file_id=stored.id, endpoint="/v1/embeddings", completion_window="24h")
        output = wait_until(lambda: sdk.batches.retrieve(batch.id).output_file_id, "the results")
        with sdk.files.with_streaming_response.content(output) as response:
            assert sum(map(len, response.iter_bytes())) > 45 * MB
        message = {"role": "user", "content": text}
        requests = [
            {"custom_id": f"r{number}", "params": {"model": "m", "max_tokens": 9, "messages": [message]}}
            for number in range(400)
        ]
        listed = other.messages.batches.create(requests=requests)  # type: ignore[arg-type]
        assert listed.request_counts.processing == 400
        assert peak_mb(simulator.pid) < before + 35
