"""Files, modules and names that documents and docstrings refer to exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
MODULES = [path for folder in ("infermesh", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
TESTS = list((ROOT / "tests").rglob("*.py"))
FILES = [*DOCUMENTS, *MODULES, *TESTS]
# Files that a recipe of CONTRIBUTING.md makes.
MADE = re.compile(r"KIND|stages/find\.py")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (*MODULES, *TESTS))


def found(pattern: str, path: Path) -> set[str]:
    return set(re.findall(pattern, path.read_text(encoding="utf-8")))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def exists(dotted: str) -> bool:
    """Whether ``package.module.Class.field`` does."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if part in getattr(value, "__annotations__", {}):
                return True
            value = getattr(value, part, None)  # type: ignore[assignment]
        return value is not None
    return False


def names_in(path: Path) -> set[str]:
    """All that a module defines or imports, at any depth."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name)}
    imported = {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    return defined | assigned | imported


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_exist(path: Path) -> None:
    folders = {folder.name for base in (ROOT, ROOT / "infermesh") for folder in base.iterdir() if folder.is_dir()}
    for file in found(r"(?<![\w./-])[\w-]+/[\w./-]*\w\.py\b", path):
        if file.partition("/")[0] in folders and not MADE.search(file):
            assert any((base / file).exists() for base in (ROOT, ROOT / "infermesh", path.parent)), file


@pytest.mark.parametrize("path", [*DOCUMENTS, *MODULES], ids=name)
def test_modules_and_what_is_in_them_exist(path: Path) -> None:
    telemetry = (ROOT / "infermesh" / "runs" / "telemetry.py").read_text(encoding="utf-8")
    told = tuple(re.findall(r'"(infermesh\.[a-z_]+)', telemetry))  # what names of metrics and attributes begin with
    for dotted in found(r"(?<![\w./])(?:infermesh|benchmarks)(?:\.[A-Za-z_]\w*)+", path):
        if not dotted.endswith((".md", ".FindStage")) and not dotted.startswith(told):
            assert exists(dotted), dotted


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_what_docstrings_link_to_exists(path: Path) -> None:
    linked = found(r":(?:func|class|meth|attr|mod|data|exc):`(?:[^`<]*<)?~?\.?([\w.]+)>?`", path)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    known = names_in(path)
    for target in linked:
        assert target in known or exists(f"{module}.{target}") or exists(target), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_private_names_exist(path: Path) -> None:
    for private in found(r"`(_[A-Za-z]\w*)`", path):
        assert re.search(rf"\b{private}\b", CODE), private


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = found(r"\| \[\d+\]\(([^)]+)\) \|", folder / "README.md")
    assert listed == {path.name for path in folder.glob("0*.md")}
