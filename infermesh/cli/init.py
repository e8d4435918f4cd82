"""``infermesh init``: create a project that runs at once, against the simulator."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.config.project import shipped_files, shipped_project
from infermesh.hints import counted, named, nearest

TEMPLATES = {
    "reviews": "a summary and an embedding of each row",
    "classify": "a label for each row, and how many are right",
    "extract": "fields out of free text, as a pydantic class",
    "embed": "vectors, and the nearest rows by SQL",
    "transcribe": "what is said in a folder of clips",
    "judge": "one model answers, another one scores",
}
"""What ``--template`` offers: a folder of ``examples/``, whose experiment has its name."""

_ENV = """\
# Copy to .env and pass it: infermesh run --env-file .env +experiment=NAME
# Keys are read from the environment. A key written into a config is refused.
#OPENAI_API_KEY=
#ANTHROPIC_API_KEY=
#HOSTED_VLLM_API_KEY=
"""
_COMMON = {
    "outputs/.gitignore": "*\n!.gitignore\n",
    ".env.example": _ENV,
    ".gitignore": ".env\n__pycache__/\n",
}
_SCHEMA_LINE = b"# yaml-language-server: $schema=../experiment.schema.json"  # for editors


def init_project(folder: Path, template: str) -> None:
    """Write a template's files. A file that exists is kept, and a line on stderr says so."""
    if template not in TEMPLATES:
        fail(f"--template {template}: no such template.{nearest(template, TEMPLATES)}", code=2)
    if folder.exists() and not folder.is_dir():
        fail(f"{folder} is a file; name a folder")
    files = _files_of(template) | {path: text.encode() for path, text in _COMMON.items()}
    kept = [_written(folder / path, content) for path, content in files.items()].count(False)
    if kept:
        print(
            counted(kept, "file was there before and is as it was", "files were there before and are as they were"),
            file=sys.stderr,
        )
    others = ", ".join(name for name in TEMPLATES if name != template)
    print(f"\n{template}: {TEMPLATES[template]}. Other templates: {others}", file=sys.stderr)
    go_there = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"\n{go_there}infermesh run +experiment={template}", file=sys.stderr)


def _files_of(template: str) -> dict[str, bytes]:
    """Path in the project → content."""
    start = f"examples/{template}/"
    listed = sorted(name for name in shipped_files() if name.startswith(start))
    found = {name.removeprefix(start): (shipped_project() / name).read_bytes() for name in listed}
    experiment = f"conf/experiment/{template}.yaml"
    first, about_it, rest = found[experiment].split(b"\n", 2)
    found[experiment] = b"\n".join((first, about_it, _SCHEMA_LINE, rest))
    found["conf/experiment.schema.json"] = (shipped_project() / "conf" / "experiment.schema.json").read_bytes()
    return found


def _written(target: Path, content: bytes) -> bool:
    """Write a file, unless there is one."""
    with named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                file.write(content)
        except FileExistsError:
            print(f"kept    {target}", file=sys.stderr)
            return False
    print(f"wrote   {target}", file=sys.stderr)
    return True
