"""``infermesh simulate``: the simulator as a separate server."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from infermesh.cli.common import fail
from infermesh.hints import nearest
from infermesh.simulator.settings import SimulatorSettings, all_settings


def simulate_server(pairs: list[str], host: str, port: int, list_settings: bool) -> None:
    """Serve until interrupted. The base URL goes to stdout once the server accepts requests."""
    if list_settings:
        for name, default, description in all_settings():
            print(f"{name}={'null' if default is None else default}\n    {description}")
        return
    from infermesh.simulator.server import serve

    def announce(url: str) -> None:
        print(url, flush=True)

    serve(_parse_settings(pairs), host=host, port=port, on_ready=announce)


def _parse_settings(pairs: list[str]) -> SimulatorSettings:
    values: dict[str, Any] = {}
    valid = [name for name, _, _ in all_settings()]
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in valid:
            fail(f"{pair}: expected SETTING=VALUE.{nearest(name, valid)}", code=2)
        target = values
        *outer, last = name.split(".")
        for part in outer:
            target = target.setdefault(part, {})
        target[last] = yaml.safe_load(text)
    try:
        return SimulatorSettings.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
        fail("\n".join(problems), code=2)
