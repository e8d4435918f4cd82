"""End a run's batches at their providers, while no process runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infermesh.config.declaration import Declaration
from infermesh.errors import RequestError
from infermesh.runs.assemble import assembled
from infermesh.runs.batches.make import wire_of
from infermesh.store.batches import batches_at_providers

__all__ = ["cancel_batches"]


async def cancel_batches(
    declaration: Declaration, folder: Path, environ: Mapping[str, str]
) -> list[tuple[str, str, str | None]]:
    """Ask each batch that is not back to end. What it has answered by then is billed, and a resume collects it.

    Returns
    -------
    list
        Deployment, the provider's id, and why it could not be asked; ``None``: it was.

    Raises
    ------
    ConfigError
        The declaration cannot be used, such as without its key.
    """
    ended: list[tuple[str, str, str | None]] = []
    open_batches = batches_at_providers(folder)
    if not open_batches:
        return ended
    with assembled(declaration, environ) as (fleet, _):
        for label, batch_id in open_batches:
            if label not in fleet.deployments:
                ended.append((label, batch_id, f"deployments.{label} is declared no more"))
                continue
            wire = wire_of(label, declaration.experiment, fleet)
            try:
                await wire.cancel(batch_id)
                ended.append((label, batch_id, None))
            except RequestError as error:
                ended.append((label, batch_id, error.message))
            finally:
                await wire.aclose()
    return ended
