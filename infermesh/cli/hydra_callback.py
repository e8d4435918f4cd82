"""A Hydra callback that tells the sweep its folder.

Hydra resolves ``hydra.sweep.dir`` only when a multirun starts, and shows the result to callbacks before the first job.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict

from infermesh.cli import sweep
from infermesh.cli.common import print_error
from infermesh.config.overrides import addable
from infermesh.config.secrets import refuse_inline_keys
from infermesh.errors import ConfigError


class Announcer(Callback):
    """Passes the composed config to the sweep of this process. Hydra creates it by its name."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Called once, before any job, in the process that launches the jobs."""
        if sweep.current_sweep is not None:
            _refuse_inline_keys(config)
            _let_params_add(config)
            sweep.current_sweep.prepare(config)


def _let_params_add(config: Any) -> None:
    """Let ``hydra.sweeper.params`` set keys that the YAML does not have, as overrides of the command line do."""
    params = config.hydra.sweeper.get("params")
    if params:
        with open_dict(config):
            config.hydra.sweeper.params = {addable(f"{key}=").removesuffix("="): params[key] for key in params}


def _refuse_inline_keys(config: Any) -> None:
    """End the command before Hydra writes the config into the sweep's folder (multirun.yaml)."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    sweep_folder, overrides = plain["hydra"]["sweep"], plain["hydra"]["overrides"]["task"]
    try:
        refuse_inline_keys(plain)
        if "override_dirname" in str(sweep_folder) and any("${oc.env:" in override for override in overrides):
            raise ConfigError(
                "hydra.sweep: the folders' names would hold the values of environment variables that overrides name: "
                "take override_dirname out of them, or put the reference into the experiment's YAML"
            )
    except ConfigError as error:
        print_error(error)
        raise SystemExit(1) from None  # Hydra turns any other exception of a callback into a warning
