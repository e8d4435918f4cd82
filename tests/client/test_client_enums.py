"""An enumeration of the caller's whose member cannot say its value costs its own request, and never the process."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

import infermesh
from infermesh import ConfigError, InputError, LMClient
from infermesh.simulator import Simulator

armed = False


class Closed(enum.Enum):
    """pydantic asks for the value when a class is defined; this one fails after that."""

    A = "a"

    @property
    def value(self) -> Any:
        if armed:
            raise ValueError("not now")
        return self._value_


class Exits(enum.Enum):
    A = "a"

    @property
    def value(self) -> Any:
        raise SystemExit("not now")


class ClosedText(enum.StrEnum):
    A = "a"

    @property
    def value(self) -> Any:
        raise ValueError("not now")


class Note(BaseModel):
    kind: Closed


@dataclasses.dataclass
class Holder:
    held: Any


GOOD = [{"role": "user", "content": "hi"}]
ASKED: dict[str, tuple[Any, dict[str, Any]]] = {
    "content": ([{"role": "user", "content": Closed.A}], {}),
    "role": ([{"role": Closed.A, "content": "hi"}], {}),
    "exit": ([{"role": "user", "content": Exits.A}], {}),
    "part": ([{"role": "user", "content": [{"type": "text", "text": "hi", "more": Holder(Closed.A)}]}], {}),
    "payload": ({"messages": GOOD, "user": Closed.A}, {}),
    "responses": ([{"role": "user", "content": Closed.A}], {"endpoint": "responses"}),
    "text": (ClosedText.A, {}),
}


@pytest.fixture
def client(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[LMClient]:
    monkeypatch.setattr(f"{__name__}.armed", True)
    with LMClient("hosted_vllm/any", api_base=simulator.url, max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize("where", ASKED)
def test_it_is_the_error_of_its_own_request(client: LMClient, where: str) -> None:
    bad, options = ASKED[where]
    batch = client.generate_batch([GOOD, bad, GOOD], **options)
    assert [result and result.output_text for result in batch] == ["hi", None, "hi"]
    assert isinstance(batch.errors[1], InputError)
    assert ": not now" in str(batch.errors[1])
    streamed = {item.index: item.error for item in client.generate_stream([GOOD, bad], **options)}
    assert (streamed[0], type(streamed[1])) == (None, InputError)


@pytest.mark.parametrize("params", [{"user": Closed.A}, {"metadata": {Closed.A: 1}}, {"metadata": Holder(Exits.A)}])
def test_a_parameter_is_the_error_of_each_request(client: LMClient, params: dict[str, Any]) -> None:
    for inputs in (["hi", "ho"], [GOOD, GOOD]):
        assert [type(error) for error in client.generate_batch(inputs, **params).errors] == [InputError] * 2
    assert [type(error) for error in client.embed_batch(["hi", "ho"], **params).errors] == [InputError] * 2
    with pytest.raises(InputError, match="not now"):
        client.generate("hi", **params)
    with pytest.raises(InputError, match="not now"):
        client.transcribe(b"RIFF0000WAVEfmt ", **params)


def test_a_text_to_embed_is_the_members_text(client: LMClient) -> None:
    assert client.embed(ClosedText.A).embedding == client.embed("a").embedding


@pytest.mark.parametrize("spec", [Note, {"type": "object", "properties": {"kind": {"enum": [Closed.A]}}}])
def test_a_schema_that_cannot_be_made_is_a_wrong_option(client: LMClient, spec: Any) -> None:
    """As any other response_format that is wrong: nothing is sent."""
    with pytest.raises(ConfigError, match=r"response_format: no schema can be made of it: ValueError: not now"):
        client.generate_batch(["hi"], response_format=spec)


def test_a_row_of_a_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(f"{__name__}.armed", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"rows: row 1 cannot be written as JSON: ValueError: not now"):
        infermesh.run("quickstart", rows=[{"text": "hi"}, {"text": Closed.A}])
