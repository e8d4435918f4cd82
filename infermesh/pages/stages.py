"""The graph of a run's stages: which reads which, from what the run stores of itself, with counts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from infermesh.errors import ConfigError
from infermesh.hints import counted
from infermesh.inputs.templates import Template
from infermesh.pages.svg import Node
from infermesh.query.overview import Overview
from infermesh.store.reshape import stage_tables, tables_named
from infermesh.store.schema import SOURCE

__all__ = ["edges", "nodes"]

_NO_TEMPLATES = {"kind", "where", "model", "endpoint", "response_format", "code", "mapper_code", "function", "columns"}
_COUNTS = {"done": "done", "error": "failed", "skipped": "skipped", "pending": "pending"}


def edges(overview: Overview) -> dict[str, list[str]]:
    """Stage → what it reads: other stages, and the source where it reads no stage.

    The templates' texts are in the run, as what decides the answers; a query of a sql stage is read from its file if
    that is still there. What a mapper reads is not known here.
    """
    stages = list(overview.details.stages)
    found: dict[str, list[str]] = {SOURCE: []}
    for stage in stages:
        others = [other for other in stages if other != stage]
        config = _config(overview, stage)
        facts = overview.facts.get(stage, {})
        tables = _tables(_query(config, overview.roots), stages)
        where = facts.get("where") or ""
        names = {name for text in _texts(facts) for name in _names(text)} | set(facts.get("reads") or ())
        read = [other for other in others if other in names | tables or re.search(rf"\b{re.escape(other)}\b", where)]
        found[stage] = read or [config.get("rows") or overview.origins.get(stage) or SOURCE]
        if SOURCE in tables:
            found[stage] = [SOURCE, *read]
    return found


def nodes(overview: Overview) -> list[Node]:
    """The boxes of the graph: the source, then the stages in their order."""
    source = Node(SOURCE, "the rows", [counted(overview.source_rows, "row")])
    return [source, *(_node(overview, stage, counts) for stage, counts in overview.details.stages.items())]


def _node(overview: Overview, stage: str, counts: Mapping[str, int]) -> Node:
    config = _config(overview, stage)
    about = " · ".join(
        str(part) for part in (config.get("kind"), config.get("model") or config.get("function")) if part
    )
    words = [f"{counts[name]:,} {word}" for name, word in _COUNTS.items() if counts.get(name)] or ["no rows"]
    settled = not counts.get("pending")
    state = "bad" if counts.get("error") else "good" if settled else "busy" if overview.live else "open"
    sign = {"bad": "✕ ", "good": "✓ ", "busy": "… ", "open": "… "}[state]
    return Node(stage, about, [sign + words[0], ", ".join(words[1:])], state)


def _config(overview: Overview, stage: str) -> dict[str, Any]:
    found = (overview.config.get("stages") or {}).get(stage)
    return found if isinstance(found, dict) else {}


def _texts(node: Any, key: str = "") -> Iterator[str]:
    """The texts in a stage's facts that may be templates."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            if name not in _NO_TEMPLATES and not name.startswith("params."):
                yield from _texts(value, name)


def _names(text: str) -> set[str]:
    try:
        return Template(text, "").names
    except ConfigError:  # no template after all
        return set()


def _tables(query: str, stages: Collection[str]) -> set[str]:
    """The stages that a query names, and the source; none where it is no query."""
    try:
        return {*stage_tables(tables_named(query, ""), stages)} if query else set()
    except ConfigError:
        return set()


def _query(config: Mapping[str, Any], roots: list[str]) -> str:
    query = str(config.get("query") or "")
    if not query.endswith(".sql"):
        return query
    for root in roots:
        try:
            return (Path(root) / query).read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    return ""
