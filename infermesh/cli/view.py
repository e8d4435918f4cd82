"""``infermesh view``: the local web app over the runs below outputs/."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import webbrowser
from html import escape
from pathlib import Path
from typing import Any

from infermesh.cli.common import fail, warnings_muted
from infermesh.cli.find_run import find_run
from infermesh.cli.report import sweep_picture
from infermesh.cli.show import as_json
from infermesh.hints import system_words
from infermesh.pages.app.access import Access, is_loopback
from infermesh.pages.app.server import listen, serve
from infermesh.pages.app.site import Site, link
from infermesh.plan.story import row_story
from infermesh.query.finding import runs_in
from infermesh.store.folders import is_sweep, outputs_of

_ONE_AT_A_TIME = threading.Lock()


def view_runs(name: str | None, outputs: Path, host: str, port: int, *, allow_remote: bool, open_browser: bool) -> None:
    """Serve the app until Ctrl-C. Its address goes to stdout.

    Parameters
    ----------
    name
        A run as elsewhere, or a sweep's folder, whose page is opened. ``None``: the list of runs.
    allow_remote
        Listen on an address that other machines reach.
    """
    if not is_loopback(host) and not allow_remote:
        fail(
            f"--host {host} lets other machines in: whoever has the address that is printed reads every row, prompt "
            "and answer below outputs/, and asks SQL. If that is meant, add --allow-remote. From a machine of yours, "
            "ssh -L is enough: infermesh view --port 8600 --no-open, and there: ssh -L 8600:127.0.0.1:8600 HOST",
            code=2,
        )
    place, root = opened(name, outputs)
    if not root.is_dir():
        fail(f"--outputs {root}: no such folder. There is no run yet: infermesh run +experiment=quickstart")
    try:
        sock = listen(host, port)
    except OSError as error:
        fail(f"--host {host} --port {port}: {system_words(error)}")
    access = Access(host, sock.getsockname()[1])
    site = Site(root, story_of, sweep_picture)
    address = f"{access.url}{place}{'&' if '?' in place else '?'}token={access.token}"

    def ready() -> None:
        print(address, flush=True)
        if not is_loopback(host):
            print(
                f"listening on {host}: whoever has this address, or reads it on the way (it is http), reads all rows "
                "below outputs/",
                file=sys.stderr,
            )
        print("Ctrl-C ends it", file=sys.stderr)
        if open_browser and _has_screen():
            leading.append(_open(address))

    leading: list[Path] = []
    try:
        serve(sock, site, access, ready)
    finally:
        for file in leading:
            file.unlink(missing_ok=True)


def opened(name: str | None, outputs: Path) -> tuple[str, Path]:
    """The page to open, and the folder that holds the runs."""
    if name is None:
        return "/", outputs
    group = runs_in(name)
    folder = group[0] if group is not None else find_run(name)
    root = next((each for each in (outputs, outputs_of(folder)) if _below(folder, each)), folder.parent)
    shown = folder.absolute().relative_to(root.absolute()).as_posix()
    if group is not None and not is_sweep(folder):
        return link("", q=shown), root
    return link("overview" if group is None else "sweep", shown), root


def _below(folder: Path, root: Path) -> bool:
    return root.absolute() in folder.absolute().parents


def story_of(folder: Path, row: int, origin: str) -> dict[str, Any]:
    with _ONE_AT_A_TIME, warnings_muted():  # a user's code may run in it
        return as_json(row_story(folder, row, origin))


def _has_screen() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(address: str) -> Path:
    """Open the browser by a file that leads to the address: every user of a machine sees the commands that run."""
    with tempfile.NamedTemporaryFile("w", prefix="infermesh-", suffix=".html", delete=False) as file:  # mode 0600
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">')
    path = Path(file.name)
    threading.Thread(target=webbrowser.open, args=(path.as_uri(),), daemon=True).start()  # some of them take their time
    return path
