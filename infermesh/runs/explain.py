"""What a run says when it starts: what stands, what will be looked at again, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from infermesh.store import RunStore

_SHOWN = 60  # characters of an old and a new value together


def changed(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Stage → what has changed in its declaration, in words.

    Parameters
    ----------
    before, now
        Stage → what decides its answers, as the last session kept it and as it is.
    """
    found = {}
    for name, facts in now.items():
        new = orjson.loads(orjson.dumps(facts, default=str, option=orjson.OPT_NON_STR_KEYS))
        old = before.get(name, new)
        words = []
        for key in {**old, **new}:
            if old.get(key) == new.get(key):
                continue
            step = f"{old.get(key)!r} → {new.get(key)!r}"
            words.append(f"{key} {step}" if len(step) <= _SHOWN else f"{key} has changed")
        found[name] = (
            ", ".join(words) or "a stage that it reads has changed, or the last session did not come to its end"
        )
    return found


def opening(store: RunStore, stages: Sequence[str], changes: Mapping[str, str], *, keep_errors: bool) -> Iterator[str]:
    """The lines that a run starts with; ``changes`` as :func:`changed` gives them."""
    if store.is_new:
        noun = "stage" if len(stages) == 1 else "stages"
        yield f"{store.total()} rows × {len(stages)} {noun}"
        return
    counts = {name: found for name, found in store.counts().items() if name in stages}
    total = sum(sum(found.values()) for found in counts.values())
    standing = sum(_standing(found) for name, found in counts.items() if name not in changes)
    yield f"resuming: {standing} of {total} row states are settled"
    added, gone = store.source_change
    if added or gone:
        yield f"source: {added} rows are new, {gone} are gone (they stay in the tables, out of results)"
    for name in stages:
        found = counts[name]
        if name in changes:
            rows = sum(found.values()) - found.get("pending", 0)
            yield f"{name}: {changes[name]}: {rows} rows are looked at again, those whose request is the same are kept"
            continue
        parts = [f"{_standing(found)} kept"] if _standing(found) else []
        if failed := found.get("error", 0):
            parts.append(f"{failed} failed and {'left so' if keep_errors else 'tried again'}")
        if pending := found.get("pending", 0):
            parts.append(f"{pending} to do")
        yield f"{name}: {', '.join(parts) or 'no rows yet'}"


def _standing(found: Mapping[str, int]) -> int:
    return found.get("done", 0) + found.get("skipped", 0)


_SHOWN = 70


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``name: old → new`` for each fact that differs; long values are cut around the first difference."""
    changes = []
    for name in (*before, *(name for name in now if name not in before)):
        old, new = before.get(name), now.get(name)
        if old != new:
            if name == "mapper_code":
                changes.append("mapper: its code has changed")
            else:
                changes.append(f"{name}: {_pair(old, new)}")
    return changes


def _pair(old: Any, new: Any) -> str:
    first, second = ("none" if value is None else repr(value) for value in (old, new))
    same = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
    start = max(same - _SHOWN // 3, 0)
    return " → ".join(_cut(text, start if max(len(first), len(second)) > _SHOWN else 0) for text in (first, second))


def _cut(text: str, start: int) -> str:
    shown = text[start : start + _SHOWN]
    return f"{'…' if start else ''}{shown}{'…' if start + _SHOWN < len(text) else ''}"
