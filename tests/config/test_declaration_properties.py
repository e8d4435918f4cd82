"""Whatever stands in a config: a declaration, or a ``ConfigError`` that names something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infermesh.config.declaration import Declaration, declare
from infermesh.config.schema import STAGE_KINDS
from infermesh.errors import ConfigError
from tests.mutations import clean_text, json_values, mutated

_VALID: dict[str, Any] = {
    "name": "mine",
    "source": {"path": "rows.jsonl", "limit": 5, "format": "csv", "types": "text"},
    "limits": {"shared": {"rpm": 60, "tpm": 1000}},
    "deployments": {
        "gpu": {
            "model": "hosted_vllm/llama",
            "api_base": "${oc.env:BASE}/v1",
            "headers": {"x-team": {"env": "TEAM"}, "x-more": "${oc.env:TEAM}"},
            "limits": "shared",
            "max_parallel_requests": 8,
        },
        "cpu": {"model": "hosted_vllm/llama", "api_base": "http://127.0.0.1:8000/v1", "limits": {"rpd": 10}},
    },
    "models": {"m": {"deployments": ["gpu", "cpu"], "params": {"temperature": 0, "logit_bias": {5: 1}}, "timeout": 5}},
    "stages": {
        "a": {"kind": "generate", "model": "m", "prompt": "{{ text }}", "params": {"max_tokens": 5}},
        "b": {"kind": "embed", "model": "m", "text": "{{ a.text }}", "where": "a.text is not null"},
        "c": {"kind": "transcribe", "model": "m", "audio": "{{ audio }}"},
        "d": {"kind": "python", "function": "pipelines.f:g", "columns": {"x": "DOUBLE"}},
        "e": {"kind": "sql", "query": "select * from source"},
    },
    "sinks": {"out": {"path": "out.jsonl"}},
    "store": {"memory_limit": "1GB", "commit_interval": 0.1},
    "reuse": "none",
}
_ENVIRON = {"BASE": "http://127.0.0.1:1", "TEAM": "t"}
_KEYS = sorted(
    {key for section in _VALID.values() if isinstance(section, dict) for key in section}
    | {key for stage in _VALID["stages"].values() for key in stage}
    | set(_VALID)
)
_VALUES = [*STAGE_KINDS, "m", "gpu", "shared", "source", "${oc.env:MISSING}", "${oc.env:TEAM,x}", "${", "???", "${a.b}"]
_names = st.sampled_from(_KEYS) | clean_text
_odd_names = _names | st.integers() | st.booleans() | st.none() | st.floats() | st.tuples(st.integers())
_values = json_values(_odd_names) | st.sampled_from(_VALUES) | st.sampled_from(list(_VALID.values())) | st.binary()


def declared(mapping: Any) -> None:
    try:
        made = declare(mapping, [Path("/nowhere")], environ=_ENVIRON)
    except ConfigError as error:
        lines = str(error).splitlines()
    else:
        assert isinstance(made, Declaration)
        assert made.hash == made.hash
        return
    assert lines
    assert all(line.partition(":")[0].strip() for line in lines), lines


@pytest.mark.parametrize("wrap", [lambda inner: {"a": inner}, lambda inner: [inner], lambda inner: (inner,)])
@pytest.mark.parametrize("path", ["name", "models", "stages"])
def test_what_holds_itself_is_refused(wrap: Callable[[Any], Any], path: str) -> None:
    value: Any = 1
    for _ in range(5000):
        value = wrap(value)
    with pytest.raises(ConfigError, match=rf"^{path}.*nested more than 200 levels deep"):
        declare({**_VALID, path: value}, [Path("/nowhere")])


def test_the_config_is_right_as_it_stands() -> None:
    assert declare(_VALID, [Path("/nowhere")], environ=_ENVIRON).experiment.name == "mine"


@given(mutated(st.just(_VALID), _values, _odd_names))
def test_a_changed_config_is_declared_or_refused(mapping: dict[str, Any]) -> None:
    declared(mapping)


@given(st.dictionaries(st.sampled_from(list(_VALID)) | _odd_names, _values, max_size=4))
def test_any_mapping_is_declared_or_refused(mapping: dict[str, Any]) -> None:
    declared(mapping)
