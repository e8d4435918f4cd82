"""The house: imports point downwards, and each library is known to one place (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "infermesh"

# A name stands for the module or folder and all within it.
LEVELS: dict[str, int] = {
    "descriptors": 0,
    "errors": 0,
    "types": 0,
    "audio": 1,
    "collector": 1,
    "config": 1,
    "control": 1,
    "hub": 1,
    "images": 1,
    "languages": 1,
    "limits": 1,
    "loopthread": 1,
    "pricing": 1,
    "redaction": 1,
    "replies": 1,
    "retry": 1,
    "sinks": 1,
    "sources": 1,
    "store": 1,
    "structured": 1,
    "templates": 1,
    "transports": 1,
    "window": 1,
    "wire": 1,
    "compose": 2,
    "dispatch": 2,
    "router": 2,
    "batches": 3,
    "fleet": 3,
    "model": 3,
    "stages": 3,
    "calls": 4,
    "client": 4,
    "execution": 4,
    "explain": 4,
    "guards": 2,
    "runstats": 2,
    "runsession": 4,
    "runner": 4,
    "session": 4,
    "background": 5,
    "bench": 5,
    "bench_plot": 5,
    "launch": 5,
    "oneshot": 5,
    "plan": 5,
    "report": 5,
    "api": 6,
    "sweeps": 6,
    "cli": 7,
}
# These may be imported from anywhere, or import nothing: the facade, and what starts the command line.
ASIDE = {"", "__main__", "simulator"}
SIMULATOR_FOR = {
    "config": {"simulator.settings"},
    "execution": {"simulator.process"},
    "plan.rehearsal": {"simulator.answers", "simulator.errors", "simulator.settings"},  # pure: no server
    "plan.gather": {"simulator.settings"},
}
# Third-party package → where it may be imported.
HOMES: dict[str, set[str]] = {
    "hydra": {"cli", "compose"},
    "typer": {"cli"},
    "omegaconf": {"cli", "compose"},
    "rich": {"cli"},
    "duckdb": {"store", "cli.compare", "cli.output", "cli.query"},
    "datasets": {"hub"},
    "litellm": {"transports"},
    "pyreqwest": {"transports"},
    "httptools": {"transports"},
    "aiohappyeyeballs": {"transports"},
    "aiolimiter": {"limits"},
    "genai_prices": {"pricing"},
    "jinja2": {"templates"},
    "jsonschema": {"structured"},
}


@dataclass(frozen=True)
class Import:
    """One import: by whom, of what, and whether it happens on loading, in a function, or only for the type checker."""

    by: str
    of: str
    line: int
    when: str


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(path: Path) -> Iterator[Import]:
    by = module_name(path)

    def visit(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(by, alias.name, child.lineno, when) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{by}: line {child.lineno}: write imports with their full name"
                for alias in child.names:
                    inner = PACKAGE.parent.joinpath(*f"{child.module}.{alias.name}".split("."))
                    is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                    yield Import(
                        by, f"{child.module}.{alias.name}" if is_module else f"{child.module}", child.lineno, when
                    )
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                for inner_node in child.body:
                    yield from visit(ast.Module([inner_node], []), "checking")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from visit(child, when if when == "checking" else "call")
            else:
                yield from visit(child, when)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), "load")


EVERY = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]
OWN = [
    Import(found.by, found.of.removeprefix("infermesh").lstrip("."), found.line, found.when)
    for found in EVERY
    if found.of.split(".")[0] == "infermesh"
]


def top(module: str) -> str:
    return module.split(".")[0]


def within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_the_walk_finds_what_there_is() -> None:
    assert any(found.by == "store.writer" and found.of == "duckdb" and found.when == "load" for found in EVERY)
    assert any(found.by == "errors" and found.of == "types" and found.when == "checking" for found in OWN)
    assert any(found.by == "cli.app" and found.of == "cli.run" and found.when == "call" for found in OWN)
    assert len({found.by for found in OWN}) > 40


def test_every_module_has_its_level() -> None:
    modules = {top(module_name(path)) for path in PACKAGE.rglob("*.py")}
    assert modules - ASIDE <= LEVELS.keys(), "give the new module a level, here and in docs/architecture.md"


def test_imports_point_to_a_lower_level_or_within_one() -> None:
    wrong = [
        f"{found.by}, level {LEVELS[top(found.by)]}, imports {found.of}, level {LEVELS[top(found.of)]}"
        for found in OWN
        if found.when != "checking"
        and not {top(found.by), top(found.of)} & ASIDE
        and LEVELS[top(found.by)] < LEVELS[top(found.of)]
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for found in OWN:
        # A package's __init__ re-exports its own modules; they do not depend on it when they name each other.
        if found.when == "load" and found.by != found.of:
            graph.setdefault(found.by, set()).add(found.of)
    TopologicalSorter(graph).prepare()


def test_the_simulator_imports_nothing_of_the_package() -> None:
    wrong = [found for found in OWN if top(found.by) == "simulator" and top(found.of) != "simulator"]
    assert not wrong


def test_few_know_the_simulator() -> None:
    wrong = [
        found
        for found in OWN
        if top(found.of) == "simulator"
        and top(found.by) not in ("simulator", "cli")
        and found.of not in SIMULATOR_FOR.get(found.by, ())
    ]
    assert not wrong


def test_our_own_modules_are_imported_on_loading_outside_the_command_line() -> None:
    wrong = [
        found
        for found in OWN
        if found.when == "call"
        and top(found.by) not in ("cli", "simulator", "")
        and not within(found.of, {"transports.litellm"})
    ]
    assert not wrong


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_known_to_one_place(library: str) -> None:
    wrong = [
        f"{found.by}, line {found.line}"
        for found in EVERY
        if top(found.of) == library and not within(found.by, HOMES[library])
    ]
    assert not wrong, f"{library} is imported outside {HOMES[library]}: {', '.join(wrong)}"
    assert any(top(found.of) == library for found in EVERY), f"{library} is imported nowhere: its line here is stale"


@pytest.mark.parametrize("library", ["datasets", "litellm", "pyarrow", "uvloop", "hydra", "omegaconf"])
def test_heavy_libraries_are_imported_late(library: str) -> None:
    wrong = [found for found in EVERY if top(found.of) == library and found.when == "load"]
    assert {found.by for found in wrong} <= {"cli.hydra_callback"}  # which Hydra itself imports


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("infermesh", {"litellm", "pydantic", "duckdb", "hydra", "aiohttp", "jinja2", "pyreqwest"}),
        ("infermesh.cli.app", {"litellm", "duckdb", "hydra", "omegaconf", "aiohttp", "jinja2", "pyreqwest"}),
        ("infermesh.compose", {"litellm", "hydra", "omegaconf", "duckdb", "typer", "jinja2"}),
        ("infermesh.api", {"litellm", "hydra", "omegaconf", "typer", "aiohttp", "openai", "pyarrow", "pandas"}),
        ("infermesh.execution", {"litellm", "hydra", "omegaconf", "typer", "aiohttp", "openai"}),
    ],
)
def test_importing_costs_no_more_than_it_must(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*(name for name in {sorted(absent)!r} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert found.stdout.split() == []
