"""A Hydra callback that tells the sweep its folder.

Hydra resolves ``hydra.sweep.dir`` only when a multirun starts, and shows the result to callbacks before the first job.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback

from infermesh.cli import sweep


class Announcer(Callback):
    """Passes the composed config to the sweep of this process. Hydra creates it by its name."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Called once, before any job, in the process that launches the jobs."""
        if sweep.current_sweep is not None:
            sweep.current_sweep.prepare(config)
