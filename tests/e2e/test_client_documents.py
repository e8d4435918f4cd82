"""The client's first examples run as users know them, with only the server exchanged; the guide's tree of errors."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

import infermesh
from infermesh.simulator import Simulator

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "client.md"

# The quick start that users of the client know, word for word.
QUICK_START = """
from infermesh import LMClient

prompts = [
    "Summarize section 1 in two bullet points.",
    "Summarize section 2 in two bullet points.",
    "Summarize section 3 in two bullet points.",
]

with LMClient(
    model="openai/gpt-4.1-mini",
    max_parallel_requests=32,
    rpm=500,
    tpm=100_000,
) as client:
    batch = client.generate_batch(prompts)

retry_prompts: list[str] = []

for i, result in enumerate(batch):
    if result is None:
        print(f"FAILED: {prompts[i]}\\n  {batch.errors[i]}")
        retry_prompts.append(prompts[i])
    else:
        print(result.output_text)
        if result.token_usage is not None:
            print("tokens:", result.token_usage.total_tokens)

if retry_prompts:
    with LMClient(model="openai/gpt-4.1-mini") as retry_client:
        retry_batch = retry_client.generate_batch(retry_prompts)

with LMClient(model="openai/gpt-4.1-mini") as client:
    result = client.generate("What is the capital of France?")
    print(result.output_text)
"""

ASYNC_API = """
import asyncio
from infermesh import LMClient

async def main():
    async with LMClient(model="openai/gpt-4.1-mini") as client:
        result = await client.agenerate("Hello")
        batch  = await client.agenerate_batch(["prompt A", "prompt B", "prompt C"])
        emb    = await client.aembed("The quick brown fox")
        embs   = await client.aembed_batch(["text a", "text b"])
        txs    = await client.atranscribe_batch(["a.wav", "b.wav"])
        print(result.output_text, len(batch), len(emb.embedding), len(embs), txs.failures.keys())

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _somewhere_else(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with OpenAI's URL pointing to the simulator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", simulator.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def run(code: str, names: dict[str, Any] | None = None) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<example>", "exec"), {} if names is None else names)
    return printed.getvalue()


def test_the_quick_start_works_unchanged() -> None:
    printed = run(QUICK_START)
    assert "FAILED" not in printed
    assert printed.count("tokens:") == 3
    assert printed.endswith("What is the capital of France?\n")


def test_the_async_example_works_unchanged() -> None:
    assert run(ASYNC_API) == "Hello 3 64 2 dict_keys([0, 1])\n"


def test_the_tree_of_errors_in_the_guide_is_that_of_the_classes() -> None:
    tree = re.findall(r"^((?:[│├└─ ]{4})*)(\w+Error)\b", GUIDE.read_text(encoding="utf-8"), re.M)
    above: list[type] = []
    for indent, name in tree:
        kind = getattr(infermesh, name)
        del above[len(indent) // 4 :]
        assert kind.__bases__[0] is (above[-1] if above else Exception)
        above.append(kind)
    assert {name for _, name in tree} == {name for name in infermesh.__all__ if name.endswith("Error")}
