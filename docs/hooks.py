"""What the site has besides the pages of this folder: references made of the program itself, and the project's pages.

MkDocs calls the functions by their names. Nothing made here is a file of the repository, so none can be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import griffe
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click

import infermesh
from infermesh.cli.app import app
from infermesh.config.schema import STAGE_KINDS, Experiment
from infermesh.store.schema import AFTER_OUTPUTS, BEFORE_OUTPUTS, COMMON_DDL

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_COMMENT = re.compile(r"<!-- (?:test|skip|invisible-code-block):.*?-->\n?", re.DOTALL)
_ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):`(?:[^`<]*<)?~?\.?([\w.]+)>?`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder where the navigation names the folder."""
    config.nav = [_expanded(entry) for entry in config.nav or []]
    return config


def _expanded(entry: Any) -> Any:
    ((title, target),) = entry.items()
    if isinstance(target, str) and target.endswith("/"):
        folder = Path(__file__).parent / target
        pages = sorted(folder.glob("*.md"), key=lambda page: (page.name not in ("index.md", "README.md"), page.name))
        return {title: [f"{target}{page.name}" for page in pages]}
    return entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {
        "reference/keys.md": keys_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "reference/tables.md": tables_page(),
    } | {f"project/{name}": (ROOT / name).read_text(encoding="utf-8") for name in PROJECT}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out the words to the tests, and lead links to where the site has the page; what it has not becomes text."""
    home = ROOT if page.file.src_uri.startswith("project/") else ROOT / "docs" / Path(page.file.src_uri).parent
    depth = page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        there = (home / path).resolve()
        inside = _place(there)
        if inside is None or files.get_file_from_path(inside) is None:
            return words
        return f"[{words}]({'../' * depth}{inside}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, _COMMENT.sub("", markdown))


def _place(file: Path) -> str | None:
    """Where the site has a file of the repository."""
    if file.parent == ROOT and file.name in PROJECT:
        return f"project/{file.name}"
    if file == ROOT / "README.md":
        return "index.md"
    if file.is_dir():
        file = file / "README.md"
    return file.relative_to(ROOT / "docs").as_posix() if file.is_relative_to(ROOT / "docs") else None


def commands_page() -> str:
    """Of the parsers of the command line, by Typer's own generator."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="infermesh", obj={"TYPER_RICH_MARKUP_MODE": "rich"})
    text = get_docs_for_click(obj=command, ctx=context, name="infermesh", title="Commands")
    return re.sub(r"^# Commands\n", "# Commands\n\nWhat `infermesh COMMAND --help` says.\n", text)


def keys_page() -> str:
    """Of the schema: every key, its type, its default and what it means."""
    lines = [
        "# Every key",
        "",
        "Made of the schema that experiments are checked against. [Configuration](../configuration.md) says more.",
    ]
    for path, model in sections():
        lines += ["", f"## {path}", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(name, field) for name, field in model.model_fields.items()]
    return "\n".join(lines) + "\n"


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """The parts of an experiment: their path, and the model that checks them."""
    yield "An experiment", Experiment
    for name, field in Experiment.model_fields.items():
        if name == "stages":
            yield from ((f"stages.NAME, kind: {kind}", model) for kind, model in STAGE_KINDS.items())
            continue
        for model in _models(field.annotation):
            mapping = get_origin(field.annotation) is dict
            yield (f"{name}.NAME" if mapping else name), model
            for inner, part in model.model_fields.items():
                yield from ((f"{name}.{inner}", each) for each in _models(part.annotation) if each is not model)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _row(name: str, field: Any) -> str:
    default = "required" if field.is_required() else _default(field)
    return f"| `{name}` | {_type(field.annotation)} | {default} | {_cell(field.description or '')} |"


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        value = field.default_factory()
    if value is None:
        return "null"
    if isinstance(value, BaseModel) or (isinstance(value, Mapping) and not value):
        return "`{}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{_cell(str(value))}`"


def _type(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true, false", type(None): ""}
    if annotation in names:
        return names[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(word for word in map(_type, parts) if word))
    if origin in (list, tuple):
        return "list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    if parts and all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return _type(parts[0]) if parts else "mapping"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def tables_page() -> str:
    """Of the store: each table's columns and types."""
    lines = [
        "# Tables",
        "",
        "Made of the statements that make a run's database. What each column holds is in",
        "[Configuration](../configuration.md#the-tables).",
        "",
        "## Every stage's table",
        "",
        "Between the two groups stand the columns of the stage's kind.",
        "",
        "| column | type |",
        "| --- | --- |",
        *(f"| `{column.name}` | {column.type} |" for column in (*BEFORE_OUTPUTS, *AFTER_OUTPUTS)),
    ]
    for statement in COMMON_DDL:
        if found := re.match(r"\s*CREATE TABLE (?:IF NOT EXISTS )?(\w+)\s*\((.*)\)", statement, re.DOTALL):
            lines += ["", f"## `{found[1]}`", "", "| column | type |", "| --- | --- |"]
            lines += [f"| `{name}` | {kind} |" for name, kind in re.findall(r"(\w+) ([A-Z]+(?:\[\])?)", found[2])]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """What ``import infermesh`` offers, each from its docstring."""
    lines = ["# Python API", "", "Made of the docstrings."]
    for name in sorted(infermesh.__all__, key=str.lower):
        if name != "__version__":
            value = getattr(infermesh, name)
            where = getattr(value, "__module__", "infermesh.types")
            where = where if where.startswith("infermesh") else "infermesh.types"
            lines += ["", f"::: {where}.{name}"]
    return "\n".join(lines) + "\n"


class Roles(griffe.Extension):
    """Docstrings name things as Sphinx does; the site shows the names."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each thing that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", obj.docstring.value)
