"""What Hydra calls when a multirun begins: it alone knows the sweep's folder before any job."""

from __future__ import annotations

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from infermesh.cli import sweep
from infermesh.config.secrets import refuse_inline_keys
from infermesh.errors import ConfigError


class Announcer(Callback):
    """Tells the sweep of this process that its jobs are about to start."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Before any job, in the process that starts them."""
        if sweep.current is not None:
            _refuse_inline_keys(config)
            sweep.current.begin(config)


def _refuse_inline_keys(config: Any) -> None:
    """End the command before Hydra writes the config into the sweep's folder (multirun.yaml)."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    try:
        refuse_inline_keys(plain)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None  # Hydra turns any other exception of a callback into a warning
