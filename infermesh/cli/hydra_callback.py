"""What Hydra calls when a multirun begins: it alone knows the sweep's folder before any job."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback

from infermesh.cli import sweep


class Announcer(Callback):
    """Tells the sweep of this process that its jobs are about to start."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Before any job, in the process that starts them."""
        if sweep.current is not None:
            sweep.current.begin(config)
