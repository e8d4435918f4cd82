"""``messages`` in the form of OpenAI's API: a list in YAML, a file, an expression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import ConfigError
from infermesh.inputs.messages import load_messages
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, texts

FEW_SHOT: list[dict[str, Any]] = [
    {"role": "system", "content": "Label."},
    {"role": "user", "content": [{"type": "text", "text": "Is {{ row['my text'] }} good?"}, {"n": 1}]},
    {"role": "user", "content": "{% if n %}Number {{ n }}{% endif %}"},
]
ROW = {"my text": 'a "b" {c}', "n": 3}
RENDERED = [
    {"role": "system", "content": "Label."},
    {"role": "user", "content": [{"type": "text", "text": 'Is a "b" {c} good?'}, {"n": 1}]},
    {"role": "user", "content": "Number 3"},
]


def test_each_text_of_a_list_is_a_template() -> None:
    found = load_messages(FEW_SHOT, "stages.a.messages", [])
    assert found.evaluate(ROW) == RENDERED
    assert {name for template in found.templates for name in template.names} == {"row", "n"}
    assert "stages.a.messages[1].content[0].text" in {template.path for template in found.templates}


@pytest.mark.parametrize("name", ["m.yaml", "m.json", "m.jinja"])
def test_a_file(tmp_path: Path, name: str) -> None:
    texts = {
        "m.yaml": "- role: user\n  content: 'Say {{ n }}'\n",
        "m.json": '[{"role": "user", "content": "Say {{ n }}"}]',
        "m.jinja": '[{"role": "user", "content": "Say " ~ n}]',
    }
    (tmp_path / name).write_text(texts[name])
    assert load_messages(name, "m", [tmp_path]).evaluate(ROW) == [{"role": "user", "content": "Say 3"}]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.yaml", "role: user\n", "expected a list of messages"),
        ("m.json", "[{", "neither YAML nor JSON"),
        ("m.jinja", "user: {{ n }}", r"one expression: \[\{"),
        ("other.yaml", "", "Did you mean 'other.yml'"),
    ],
)
def test_a_file_that_holds_no_messages(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name.replace("other.yaml", "other.yml")).write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_messages(name, "m", [tmp_path])


def test_a_run_sends_them(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    stage = {"kind": "generate", "messages": [{"role": "user", "content": "{{ text }}"}]}
    lab.run(experiment(simulator.url, {"a": stage, "b": {"kind": "generate", "prompt": "{{ a.text }}"}}))
    assert lab.sql("SELECT count(*) FROM results WHERE a_text = text AND b_text = text") == [(2,)]
    wrong = {"kind": "generate", "messages": [{"role": "user", "content": "{{ txt }}"}]}
    with pytest.raises(ConfigError, match=r"stages\.a\.messages\[0\]\.content: 'txt' .* Did you mean 'text'\?"):
        lab.run(experiment(simulator.url, {"a": wrong}))
