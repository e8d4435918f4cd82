"""The lines a resumed run starts with: what an edit has changed, which rows are kept, which are done again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infermesh.exact_json import dumps, loads
from infermesh.hints import counted
from infermesh.store import RunStore

FACT_CHARACTERS = 70  # of a value, where the old and the new one are shown


def changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Describe, for each stage in ``now``, what has changed in its declaration.

    Parameters
    ----------
    before, now
        Stage → its facts (:attr:`Stage.facts <infermesh.stages.Stage>`): as the last session stored them, and now.
    """
    found = {}
    for name, facts in now.items():
        new = loads(dumps(facts, default=str))
        words = changed_facts(before.get(name, new), new)
        found[name] = (
            ", ".join(words) or "a stage that it reads has changed, or the last session did not come to its end"
        )
    return found


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``name: old → new`` for each fact that differs; long values are cut around the first difference."""
    found = []
    for name in (*before, *(name for name in now if name not in before)):
        old, new = before.get(name), now.get(name)
        if old != new:
            if name in _CODE:
                found.append(f"{_CODE[name]}: its code has changed")
            else:
                found.append(f"{name}: {_pair(old, new)}")
    return found


_CODE = {"mapper_code": "mapper", "code": "function"}  # facts that are hashes: showing old → new would help nobody


def _pair(old: object, new: object) -> str:
    first, second = ("none" if value is None else repr(value) for value in (old, new))
    same = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
    start = max(same - FACT_CHARACTERS // 3, 0)
    return " → ".join(
        _cut(text, start if max(len(first), len(second)) > FACT_CHARACTERS else 0) for text in (first, second)
    )


def _cut(text: str, start: int) -> str:
    shown = text[start : start + FACT_CHARACTERS]
    return f"{'…' if start else ''}{shown}{'…' if start + FACT_CHARACTERS < len(text) else ''}"


def opening_lines(
    store: RunStore, stages: Sequence[str], changes: Mapping[str, str], *, keep_errors: bool
) -> Iterator[str]:
    """The lines a session starts with. ``changes`` is the result of :func:`changes`."""
    if store.is_new:
        yield f"{counted(store.total(), 'row')} × {counted(len(stages), 'stage')}"
        return
    counts = {name: found for name, found in store.counts().items() if name in stages}
    total = sum(sum(found.values()) for found in counts.values())
    settled = sum(_settled(found) for name, found in counts.items() if name not in changes)
    yield f"resuming: {settled:,} of {counted(total, 'row state is', 'row states are')} settled"
    added, gone = store.source_change
    if added or gone:
        yield f"source: {counted(added, 'row is', 'rows are')} new, {gone:,} gone (still in the tables, out of results)"
    for name in stages:
        found = counts[name]
        if name in changes:
            rows = sum(found.values()) - found.get("pending", 0)
            again = counted(rows, "row is", "rows are")
            yield f"{name}: {changes[name]}: {again} looked at again, those whose request is the same are kept"
            continue
        parts = [f"{_settled(found)} kept"] if _settled(found) else []
        if failed := found.get("error", 0):
            parts.append(f"{failed} failed and {'left so' if keep_errors else 'tried again'}")
        if pending := found.get("pending", 0):
            parts.append(f"{pending} to do")
        yield f"{name}: {', '.join(parts) or 'no rows yet'}"


def _settled(found: Mapping[str, int]) -> int:
    return found.get("done", 0) + found.get("skipped", 0)
