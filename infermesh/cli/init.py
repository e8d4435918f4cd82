"""``infermesh init``: create a project that runs at once, against the simulator."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.config.project import shipped_project
from infermesh.hints import named

_EXPERIMENT = """\
# @package _global_
# Run it: infermesh run +experiment={name}
# Show every key with its value: infermesh run +experiment={name} --cfg job
defaults:
  - /deployment@deployments.local: simulator
  - /model@models.llama: default
  - /model@models.minilm: default
  - /stage@stages.summaries: generate
  - /stage@stages.vectors: embed
  - _self_

name: {name}
source:
  path: pipelines/{name}/data/rows.jsonl

deployments:
  local:
    # The embedded simulator answers all requests. For a server of yours, write instead:
    #   model: hosted_vllm/meta-llama/Meta-Llama-3-8B-Instruct
    #   api_base: http://localhost:8000/v1
    # For a provider (its key in the environment, or in a file given as --env-file):
    #   model: openai/gpt-4.1-mini
    #   api_base: null
    # A deployment serves one model: for embeddings, add a deployment and name it at models.minilm.
    max_parallel_requests: 16

models:
  llama:
    deployments: [local]
    params: {{temperature: 0.2, max_tokens: 200}}
  minilm:
    deployments: [local]

stages:
  summaries:
    model: llama
    prompt: pipelines/{name}/prompts/summary.jinja
    response_format: pipelines.{name}.schema:Summary
  vectors:
    model: minilm
    text: "{{{{ summaries.parsed.summary }}}}"

simulator:
  latency_s: 0.2
  latency_spread: 0.4
"""

_PROMPT = """\
Summarise the text in one sentence and say what it is about.
Answer with JSON only.

<text>
{{ text }}
</text>
"""

_SCHEMA = '''\
"""The schema that the model's answers must fit."""

from pydantic import BaseModel, Field


class Summary(BaseModel):
    """A summary of one text."""

    summary: str = Field(description="One sentence")
    topic: str = Field(description="One or two words")
'''

_ENV = """\
# Copy to .env and pass it: infermesh run --env-file .env +experiment=NAME
# Keys are read from the environment. A key written into a config is refused.
#OPENAI_API_KEY=
#ANTHROPIC_API_KEY=
#HOSTED_VLLM_API_KEY=
"""

_README = """\
# {name}

    infermesh run +experiment={name}
    infermesh sql "select row_id, summaries_parsed, summaries_status from results"

| path | what it holds |
| --- | --- |
| `conf/experiment/{name}.yaml` | the experiment: source, deployments, models, stages |
| `pipelines/{name}/` | its prompt, its output schema, its data |
| `outputs/{name}/` | its runs, one folder each; `latest` links to the newest |

The experiment runs against the embedded simulator. Comments in its YAML file show how to use a server or a provider.
"""

_ROWS = """\
{"id": 1, "text": "The new tram line opens in May. It links the harbour with the university in twelve minutes."}
{"id": 2, "text": "Bakers knead the dough twice. The second rest decides how open the crumb will be."}
{"id": 3, "text": "The probe sent its first pictures of the comet on Tuesday. Its surface is darker than coal."}
"""


def init_project(folder: Path) -> None:
    """Write the project's files. A file that exists is kept, and a line on stderr says so."""
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_").lower() or "project"
    if name[0].isdigit():
        name = f"project_{name}"
    if folder.exists() and not folder.is_dir():
        fail(f"{folder} is a file; name a folder")
    files = {
        f"conf/experiment/{name}.yaml": _EXPERIMENT.format(name=name),
        f"pipelines/{name}/prompts/summary.jinja": _PROMPT,
        f"pipelines/{name}/schema.py": _SCHEMA,
        f"pipelines/{name}/data/rows.jsonl": _ROWS,
        "outputs/.gitignore": "*\n!.gitignore\n",
        ".env.example": _ENV,
        ".gitignore": ".env\n__pycache__/\n",
        "README.md": _README.format(name=name),
    }
    for path, text in files.items():
        target = folder / path
        if target.exists():
            print(f"kept    {target}", file=sys.stderr)
            continue
        _write(target, text.encode())
        print(f"wrote   {target}", file=sys.stderr)
    for group in ("source", "limits", "deployment", "model", "stage"):
        target = folder / "conf" / group
        if not target.exists():
            for file in sorted((shipped_project() / "conf" / group).glob("*.yaml")):
                _write(target / file.name, file.read_bytes())
            print(f"wrote   {target}/", file=sys.stderr)
    print(f"\ncd {folder} && infermesh run +experiment={name}", file=sys.stderr)


def _write(target: Path, content: bytes) -> None:
    with named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
