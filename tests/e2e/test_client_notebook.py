"""In a notebook, where an event loop runs already, the plain methods work, and callbacks print into their own cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CELLS = [
    """
import asyncio
from infermesh import LMClient
from infermesh.simulator import Simulator

assert asyncio.get_running_loop().is_running()
simulator = Simulator().start()
client = LMClient("hosted_vllm/any", api_base=simulator.url, max_parallel_requests=8)
""",
    'print(client.generate("Hello."))',
    """
prompts = [f"Parcel {n}." for n in range(50)]
batch = client.generate_batch(prompts, on_progress=lambda n, t: n == t and print(n, "of", t))
print(len(batch), batch.failures)
""",
    'print(sum(1 for item in client.generate_stream(f"Parcel {n}." for n in range(50)) if item.error is None))',
    'print(await client.agenerate("Hello from await."))',
    """
with client:
    print(len(client.embed_batch(["one", "two"])))
simulator.close()
""",
]


@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_the_plain_methods_work_where_a_loop_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert printed == ["", "Hello.\n", "50 of 50\n50 {}\n", "50\n", "Hello from await.\n", "2\n"]
