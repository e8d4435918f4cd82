"""An emulator that keeps real quotas, says what they are, and judges its clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.engines.conftest import Engine
from tests.support import infermesh, write_jsonl


def test_a_limit_that_the_server_says_is_kept_without_any_flag(tmp_path: Path, llmock: Callable[..., Engine]) -> None:
    server = llmock("--rpm", "600")
    write_jsonl(tmp_path / "rows.jsonl", ({"prompt": f"row {n}"} for n in range(300)))
    found = infermesh(
        *("generate", "--model", "openai/gpt-4.1-mini", "--api-base", server.base, "--max-tokens", "20"),
        *("--input-jsonl", "rows.jsonl", "--output-jsonl", "out.jsonl"),
        cwd=tmp_path,
        OPENAI_API_KEY="x",
    )
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 300
    assert all(row["output_text"] for row in rows)
