"""Which libraries are imported late, and what starting costs; import-linter holds the layers (pyproject.toml)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "infermesh"
HEAVY = {"datasets", "litellm", "pyarrow", "uvloop", "hydra", "omegaconf", "vl_convert"}


def imports_on_loading(path: Path) -> Iterator[str]:
    """The modules that a file imports when it is imported itself: not in functions, not for the type checker."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}, line {child.lineno}: write imports with their full name"
                yield str(child.module)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def test_heavy_libraries_are_imported_late() -> None:
    by_file = {path.relative_to(PACKAGE): set(imports_on_loading(path)) for path in PACKAGE.rglob("*.py")}
    assert "duckdb" in by_file[Path("store/writer.py")]  # the walk finds what there is
    early = {str(path) for path, names in by_file.items() if HEAVY & {name.split(".")[0] for name in names}}
    assert early == {"cli/hydra_callback.py"}, (
        "only Hydra's callback, which Hydra itself imports, may need them at once"
    )


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("infermesh", {"litellm", "pydantic", "duckdb", "hydra", "aiohttp", "jinja2", "python_socks"}),
        ("infermesh.cli.app", {"litellm", "duckdb", "hydra", "omegaconf", "aiohttp", "jinja2", "python_socks"}),
        ("infermesh.config.compose", {"litellm", "hydra", "omegaconf", "duckdb", "typer", "jinja2"}),
        ("infermesh.runs.api", {"litellm", "hydra", "omegaconf", "typer", "aiohttp", "openai", "pyarrow", "pandas"}),
        ("infermesh.runs.execute", {"litellm", "hydra", "omegaconf", "typer", "aiohttp", "openai"}),
    ],
)
def test_importing_costs_no_more_than_it_must(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*(name for name in {sorted(absent)!r} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert found.stdout.split() == []
