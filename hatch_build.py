"""What sdist and wheel hold of the shipped project. Read by the build alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Shipped(BuildHookInterface[Any]):
    """Packs the listed files of ``conf/``, ``pipelines/`` and ``examples/``, and nothing else that lies there.

    A clone that is in use holds experiments, keys and data of its owner's in these folders. In a wheel they are inside
    the package, so that an installed one finds them.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build."""
        if version == "editable":  # it reads them where they are
            return
        root = Path(self.root)
        inside = "" if self.target_name == "sdist" else "infermesh/_project/"
        listed = (root / "infermesh" / "config" / "shipped.txt").read_text(encoding="utf-8").split()
        build_data["force_include"] |= {str(root / name): f"{inside}{name}" for name in listed}
