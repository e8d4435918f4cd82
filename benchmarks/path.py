"""The files and functions that one warm ``LMClient.generate`` goes through: ``python -m benchmarks.path``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import infermesh
from infermesh import LMClient
from infermesh.simulator import Simulator

PACKAGE = Path(infermesh.__file__).parent


def path() -> dict[str, list[str]]:
    """File → the functions in it that were called, in the order of their calls."""
    found: dict[str, list[str]] = {}
    recording = False

    def record(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if recording and event == "call" and file.is_relative_to(PACKAGE) and "simulator" not in file.parts:
            found.setdefault(str(file.relative_to(PACKAGE)), []).append(frame.f_code.co_name)

    with Simulator() as simulator:
        threading.setprofile(record)  # for the client's thread, which starts with the first call
        try:
            with LMClient("hosted_vllm/any", api_base=simulator.url) as client:
                client.generate("The first call makes the connection.")
                sys.setprofile(record)
                recording = True
                client.generate("Once.")
                recording = False
                sys.setprofile(None)
        finally:
            threading.setprofile(None)
    return found


if __name__ == "__main__":
    files = path()
    for name, functions in files.items():
        print(f"{name:40} {', '.join(dict.fromkeys(functions))}")
    print(f"{len(files)} files, {sum(map(len, files.values()))} calls")
