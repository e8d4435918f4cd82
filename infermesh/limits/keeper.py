"""Who keeps a quota that several processes of this machine share, and how the others reach it.

One of them is the keeper: it holds a lock on a file, listens on a socket beside it, and deals credit. The others ask it
twenty times a second. The system lets go of the lock when the keeper ends, in whatever way; who then takes it is the
next one. Lock and socket are in a folder that only their user can enter, under the account's name and a hash of who it
is, so that two accounts of one name are two.

A message is a line of JSON. First both say who they are; then each line asks, and is answered.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import os
import re
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from infermesh.errors import ConfigError
from infermesh.limits.base import DayUsage
from infermesh.limits.day import EPOCH, DayCount
from infermesh.limits.dealing import Ask, Credit, Dealer
from infermesh.runtime.guarded import start_thread
from infermesh.types import LIMITS, Limits

__all__ = ["Asked", "Hello", "KeeperLink", "quota_path", "reach"]

_DEAL_S = 0.025
_BEAT_S = 0.25  # how often a keeper says, by the lock's time, that it deals
# A new keeper knows nothing of the last credit of the one before. It deals once that has been used, or has lapsed.
_PAUSE_S = 1.0
_LATER_S = 0.2  # what a run with workers needs to deal it on
_ANSWER_S = 1.0  # a keeper that says nothing for so long is not waited for
_LONGEST = 100  # bytes of a Unix socket's path; systems take 103 or 107
_QUOTAS = ("rpm", "tpm", "rpd", "tpd")


def quota_path(name: str, identity: str) -> Path:
    """The socket of an account's quota, in this user's own folder. Raises ``ConfigError``: somebody else has it."""
    if sys.platform == "win32":
        raise ConfigError(f"limits.{name}.shared needs a system with Unix sockets; leave it out on Windows")
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base, "infermesh") if base else Path(tempfile.gettempdir(), f"infermesh-quotas-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"limits.{name}.shared: the folder for its socket cannot be made: {error}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"limits.{name}.shared: {folder} has to be a folder of your own that nobody else can enter (mode 700): "
            "remove it, or set XDG_RUNTIME_DIR"
        )
    plain = re.sub(r"\W+", "-", name)[:20]
    digest = hashlib.blake2b(f"{name}\n{identity}".encode(), digest_size=8).hexdigest()
    path = folder / f"{plain}-{digest}"
    if len(os.fsencode(path)) > _LONGEST:
        raise ConfigError(
            f"limits.{name}.shared: {path} is too long for a socket ({_LONGEST} bytes): set XDG_RUNTIME_DIR to a "
            "shorter path"
        )
    return path


class Asked:
    """A keeper's answer: credit, how many share the quota, and what is used of today's."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.credit = Credit(**message["credit"])
        self.members: int = message["members"]
        self.used = _usage(message["used"])


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client says of itself.

    Attributes
    ----------
    limits
        The quotas, as it has declared them.
    used
        What it knows of today's use; ``None``: it has no quota a day.
    deals_on
        Whether it deals what it gets to workers.
    """

    limits: Limits
    used: DayUsage | None
    deals_on: bool


class KeeperLink:
    """A client's end of the socket; it blocks, and is used by one thread. Raises ``OSError`` or ``ValueError``.

    Attributes
    ----------
    keeper
        The keeper's process.
    told
        What it has to say of the quotas that this client has declared; empty: nothing.
    """

    def __init__(self, path: Path, hello: Hello, patience_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(patience_s)
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            quotas = {name: getattr(hello.limits, name) for name in LIMITS}
            answer = self._call({"limits": quotas, "used": _stated(hello.used), "deals_on": hello.deals_on})
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(_ANSWER_S)
        self.keeper: int = answer["pid"]
        self.told: str = answer["told"]

    def _call(self, message: Mapping[str, Any]) -> Any:
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        if not (line := self._lines.readline()).endswith(b"\n"):
            raise ConnectionError("the keeper has ended")
        return json.loads(line)

    def ask(self, ask: Ask) -> Asked:
        """Ask for credit."""
        return Asked(self._call(asdict(ask)))

    def close(self) -> None:
        self._socket.close()


def reach(path: Path, name: str, hello: Hello, patience_s: float = _ANSWER_S) -> KeeperLink:
    """Connect to an account's keeper; where there is none, be it. Raises ``OSError`` or ``ValueError``: try again."""
    try:
        return KeeperLink(path, hello, patience_s)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    import fcntl

    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: another has just got it
        silent_s = time.time() - os.stat(lock).st_mtime
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        os.chmod(path, 0o600)
        listening.listen()
    except BaseException:
        os.close(lock)
        raise
    pause_s = _PAUSE_S + _BEAT_S if -_PAUSE_S < silent_s < _PAUSE_S + _BEAT_S and os.fstat(lock).st_size else 0.0
    os.truncate(lock, 1)  # from now on it has had a keeper
    keeper = _Keeper(name, lock, hello.limits, pause_s)
    start_thread("infermesh-quota-keeper", lambda: asyncio.run(keeper.serve(listening)), died=lambda _: os.close(lock))
    return KeeperLink(path, hello, _ANSWER_S)


class _Keeper:
    """Deals an account's quotas, in a thread of one of the processes that use it, until that process ends."""

    def __init__(self, name: str, lock: int, limits: Limits, pause_s: float) -> None:
        self._name, self._lock = name, lock
        self._limits = limits
        self._pause_s = pause_s
        self._from = 0.0
        self._numbers = 0
        self._members: set[int] = set()
        daily = limits.rpd is not None or limits.tpd is not None
        self._count = DayCount(limits.rpd, limits.tpd, time.time) if daily else None
        self._later_s = 0.0
        self._dealer = self._new_dealer()

    def _new_dealer(self) -> Dealer:
        return Dealer(self._limits, self._count, later_s=self._later_s)

    async def serve(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._from = loop.time() + self._pause_s
        await asyncio.start_unix_server(self._answer, sock=listening)
        beat = 0.0
        while True:
            await asyncio.sleep(_DEAL_S if self._members else _BEAT_S)
            if self._members and loop.time() >= self._from:
                self._dealer.deal()
            if self._members and loop.time() > beat:
                beat = loop.time() + _BEAT_S
                os.utime(self._lock)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._numbers += 1
        number = self._numbers
        loop = asyncio.get_running_loop()

        def send(message: Mapping[str, Any]) -> None:
            writer.write(json.dumps(message).encode() + b"\n")

        try:
            hello = json.loads(await reader.readline())
            if hello["deals_on"] and not self._later_s:
                self._later_s = _LATER_S
                self._begin_anew()
            send({"pid": os.getpid(), "told": self._agree(Limits(**hello["limits"]))})
            used = _usage(hello["used"])
            if self._count is not None and used is not None and used.date == (now := self._count.used).date:
                self._count.used = DayUsage(used.date, max(used.requests, now.requests), max(used.tokens, now.tokens))
            self._members.add(number)
            while line := await reader.readline():
                self._dealer.take(number, Ask(**json.loads(line)))
                credit = self._dealer.credit(number) if loop.time() >= self._from else Credit()
                today = None if self._count is None else self._count.used
                send({"credit": asdict(credit), "members": len(self._members), "used": _stated(today)})
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it has ended, or is of another version
        finally:
            self._members.discard(number)
            self._dealer.leave(number)
            with suppress(Exception):
                writer.close()

    def _begin_anew(self) -> None:
        """Deal by other quotas, once what was dealt by the earlier ones is used."""
        self._dealer = self._new_dealer()
        self._from = asyncio.get_running_loop().time() + _PAUSE_S

    def _agree(self, theirs: Limits) -> str:
        """Keep the lower of two quotas, and return what there is to say of that."""
        lower = {
            name: min(each for each in (mine, other) if each is not None)
            for name in _QUOTAS
            if (mine := getattr(self._limits, name)) != (other := getattr(theirs, name))
        }
        if not lower:
            return ""
        before = {name: getattr(self._limits, name) for name in lower}
        if lower != before:
            self._limits = replace(self._limits, **lower)
            daily = self._limits.rpd is not None or self._limits.tpd is not None
            used = None if self._count is None else self._count.used
            self._count = DayCount(self._limits.rpd, self._limits.tpd, time.time) if daily else None
            if self._count is not None and used is not None:
                self._count.used = used
            self._begin_anew()
        kept = ", ".join(f"{name} {value:g}" for name, value in lower.items())
        return f"limits.{self._name} is declared otherwise by others that share it: the lower holds, {kept}"


def _stated(used: DayUsage | None) -> list[Any] | None:
    return None if used is None else [(used.date - EPOCH).days, used.requests, used.tokens]


def _usage(stated: list[Any] | None) -> DayUsage | None:
    return None if stated is None else DayUsage(EPOCH + dt.timedelta(days=stated[0]), stated[1], stated[2])
