"""The hash by which a sweep knows the jobs that it has done."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.config.load import config_hash

DECLARED: dict[str, Any] = {"name": "a", "simulator": {"seed": 1}, "stages": {"s": {"prompt": "{{ text }}"}}}


@pytest.mark.parametrize(
    "more",
    [
        {"report": False},
        {"notify": {"done": "say done"}},
        {"telemetry": {"prometheus": 9464}},
        {"engine": {"kind": "local", "workers": 8}},
        {"simulator": {"seed": 1, "batches": {"processing_s": 0.0}}},
    ],
    ids=str,
)
def test_what_changes_no_answer_does_not_count(more: dict[str, Any]) -> None:
    assert config_hash(DECLARED | more) == config_hash(DECLARED)


@pytest.mark.parametrize(
    "more", [{"simulator": {"seed": 2}}, {"simulator": {}}, {"name": "b"}, {"reports": 1}], ids=str
)
def test_all_else_does(more: dict[str, Any]) -> None:
    assert config_hash(DECLARED | more) != config_hash(DECLARED)


def test_it_is_that_of_earlier_versions() -> None:
    assert config_hash(DECLARED | {"report": True}) == "4e8df58bd1916f1cf1fe086ae4d817a4"
