"""A logical model: which timeout its requests have."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.config.load import load
from infermesh.dispatch.fleet import Fleet
from infermesh.types import USE_CLIENT_DEFAULT, Audio
from tests.fakes import ScriptedTransport, reply, virtual
from tests.support import experiment, generate

CHAT = reply({"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]})
VECTOR = reply({"data": [{"embedding": [1.0]}]})
WORDS = reply({"text": "Yes."})


def fleet(**model: Any) -> tuple[Any, ScriptedTransport]:
    """The model of a declaration, over a scripted transport."""
    models = {"m": {"deployments": ["d"], **model}}
    built = Fleet(load(experiment("http://127.0.0.1:9/v1", {"s": generate()}, models=models)))
    transport = ScriptedTransport([CHAT, VECTOR, WORDS])
    built.deployments["d"].transport = transport
    return built.models["m"], transport


FOREVER: list[dict[str, Any]] = [{"timeout": None}, {"timeout": float("inf")}]


@pytest.mark.parametrize(
    ("declared", "holds"), [({}, 600.0), ({"timeout": 5}, 5.0), *((each, None) for each in FOREVER)]
)
@pytest.mark.parametrize(("options", "own"), [({}, None), ({"timeout": 2.0}, [2.0]), *((e, [None]) for e in FOREVER)])
@virtual
async def test_a_models_timeout_holds_unless_the_request_has_its_own(
    declared: dict[str, Any], holds: float | None, options: dict[str, Any], own: list[float | None] | None
) -> None:
    model, transport = fleet(**declared)
    await model.generate(model.generation_request("Is it?", {}), **options)
    await model.embed(["Is it?"], {}, **options)
    await model.transcribe(Audio(b"", "clip.wav"), {}, **options)
    assert transport.timeouts == 3 * (own or [holds])


@virtual
async def test_to_ask_for_the_default_is_to_say_nothing() -> None:
    model, transport = fleet(timeout=None)
    await model.generate(model.generation_request("Is it?", {}), timeout=USE_CLIENT_DEFAULT)
    assert transport.timeouts == [None]
