"""What LiteLLM refuses by itself: told as what it is, once, with what to do, and never sent."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import InputError
from infermesh.transports import make_transport
from infermesh.wire.requests import generation_request

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize(
    ("model", "base", "params", "said"),
    [
        ("anthropic/claude-sonnet-4-5", "http://127.0.0.1:9", {"seed": 3}, "seed.*drop_params: true"),
        ("azure/gpt-4.1-mini", None, {}, "set the deployment's api_base"),
    ],
)
async def test_it_is_an_input_error(
    model: str, base: str | None, params: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_API_BASE", "AZURE_OPENAI_ENDPOINT", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    transport = make_transport(DeploymentConfig(model, base, api_key="k"), label="d")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=f"nothing was sent: .*{said}") as caught:
            await transport.send(generation_request("chat_completion", "hi", params), 5.0)
        await transport.aclose()
    assert (caught.value.retryable, caught.value.status_code) == (False, None)
