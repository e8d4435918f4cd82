"""Workers that are actors of Ray, on any node of a cluster.

Of Ray this takes places to run, the shipping of code, and calls that only who has the cluster's token can make. What
the hub does itself is not left to it: an actor is not restarted, a call is not repeated, and a worker that says nothing
is lost by the hub's own clock, since Ray does not notice one that is frozen.

Keys travel in the hub's first message, in pieces that Ray passes on within the call. In an environment, in an actor's
arguments or in its object store they would be in the cluster's tables, on a page, or on a disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from infermesh.config.schema import EngineConfig
from infermesh.errors import ConfigError
from infermesh.hints import counted, one_line
from infermesh.runs.crew.channel import QueueChannel
from infermesh.runs.crew.links import LostError
from infermesh.runs.crew.links.ray_quirks import FOLDERS, no_prints, prepare, quieten, refusal, sweep
from infermesh.runs.crew.messages import Start
from infermesh.runtime.guarded import start_thread

__all__ = ["RayLink", "RayLinks", "RayWorker"]

T = TypeVar("T")

_PIECE, _MOST_PIECES = (
    64_000,
    100,
)  # Ray puts an argument of over 100 kB, and ten megabytes in all, into its object store
_OBJECTS = 200_000_000  # bytes of that store; long rows pass through it
_KILL_S, _LEAVE_S = 10.0, 20.0
_AVOID_S = 30.0  # a node that was lost gets no worker for so long: Ray counts on it for a while
_NOT_SHIPPED = (".env", ".env.*", "*.env", "outputs/", ".git/", ".venv/", "venv/", "__pycache__/", "run.duckdb*")
logger = logging.getLogger("infermesh")


class RayWorker:
    """The actor: a worker in a thread of its own, and calls that it answers. Its methods are called by Ray."""

    def __init__(self, shipped: str | None) -> None:
        self._channel = _Channel(shipped)
        self._running = False

    def where(self) -> tuple[str, str, int]:
        """Its node, host and process."""
        import socket

        import ray

        return ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid()

    def call(self, *pieces: bytes) -> bytes:
        """Take a pickled message and return the pickled answer."""
        if not self._running:
            from infermesh.runs.crew import worker

            self._running = True
            start_thread("infermesh-worker", lambda: worker.run(self._channel), died=lambda _: os._exit(1))
        return self._channel.call(b"".join(pieces))


class _Channel(QueueChannel):
    """Calls of Ray. The first message is fitted to this machine.

    Parameters
    ----------
    shipped
        The hub's project folder, of which this process's working directory is a copy; ``None``: it is there itself.
    """

    def __init__(self, shipped: str | None) -> None:
        super().__init__()
        self._shipped = shipped

    def receive(self, timeout_s: float | None) -> Any:
        message = super().receive(timeout_s)
        if not isinstance(message, Start):
            return message
        more = [path for path in message.path if path not in sys.path and Path(path).exists()]
        declaration = message.declaration
        if self._shipped is not None:
            home, here = Path(self._shipped), Path.cwd()
            roots = [here / root.relative_to(home) if root.is_relative_to(home) else root for root in declaration.roots]
            declaration = replace(declaration, roots=tuple(roots))
        return replace(message, path=[*sys.path, *more], declaration=declaration)


class RayLink:
    """An actor. Its place is waited for at the first call, however long the cluster has no room."""

    def __init__(self, links: RayLinks, number: int) -> None:
        self._links = links
        self._number = number
        self._actor: Any = None
        self._node, self._pid = "", 0
        self._silent = False
        self.name = f"worker {number}"

    async def call(self, message: Any, timeout_s: float) -> Any:
        if self._actor is None:
            await self._place()
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        size = max(_PIECE, math.ceil(len(body) / _MOST_PIECES))
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        try:
            async with asyncio.timeout(timeout_s):
                return pickle.loads(await self._actor.call.remote(*pieces))
        except TimeoutError:
            self._silent = True
            raise LostError(f"has said nothing for {timeout_s:g} s") from None
        except self._links.errors as error:
            raise LostError(self._why(error)) from None

    async def _place(self) -> None:
        """Wait until it runs somewhere. Raises ``ConfigError`` where infermesh is not there."""
        while True:
            avoided = self._links.avoided()
            self._actor = await self._links.make(avoided)
            try:
                async with asyncio.timeout(_AVOID_S if avoided else None):
                    self._node, host, self._pid = await self._actor.where.remote()
                self.name = f"worker {self._number} (process {self._pid} on {host})"
                return
            except TimeoutError:  # there may be no other node
                await self._links.kill(self._actor)
            except self._links.errors as error:
                if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
                    raise ConfigError(
                        f"a worker on Ray does not find what it needs: {_last_line(error)}. Install the same infermesh "
                        "on every node of the cluster"
                    ) from None
                raise LostError(self._why(error)) from None

    def _why(self, error: BaseException) -> str:
        words = str(error)
        logger.info("%s: %s", self.name, one_line(words))
        node = "node" in words and any(each in words for each in ("NODE_DIED", "node died", "node was terminated"))
        gone = type(error).__name__ == "ActorUnavailableError"
        if self._node and (node or gone):
            self._links.avoid(self._node)
        if node:
            return "was lost with its node"
        return "cannot be reached" if gone else "has ended"

    async def end(self) -> None:
        actor, self._actor = self._actor, None
        if actor is None:
            return
        await self._links.kill(actor)
        if self._silent and self._node == self._links.own_node:  # frozen, it would hear no request to end
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)


class RayLinks:
    """A cluster, or a private Ray of this machine, and the workers on it.

    Parameters
    ----------
    engine
        As it was declared.
    home
        The project's folder, which is shipped to a cluster.
    embedded
        Whether requests go to the embedded simulator, which other machines do not reach.
    note
        Tells the user a line.
    """

    def __init__(self, engine: EngineConfig, home: Path, *, embedded: bool, note: Callable[[str], None]) -> None:
        self._engine = engine
        self._home, self._embedded, self._note = home, embedded, note
        # Processes that Ray starts end with the thread that started them. So it is one, and lives as long as they.
        self._thread = ThreadPoolExecutor(1, "infermesh-ray")
        self._ray: Any = None
        self._private: str | None = None  # the folder of a Ray of our own
        self._connected = False
        self._unpatch: Callable[[], None] = lambda: None
        self._shipped: str | None = None
        self._avoided: dict[str, float] = {}
        self.own_node = ""
        self.errors: type[BaseException] = LostError

    async def open(self, workers: int) -> tuple[int, int]:
        found = await self._do(self._open, workers)
        own = signal.getsignal(signal.SIGTERM)
        if own is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)  # Ray has put one before it, which writes a trace on stderr
        return found

    async def _do(self, what: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what, *arguments)

    def _open(self, workers: int) -> tuple[int, int]:
        engine = self._engine
        token = prepare(engine.address)
        import ray  # a second, and it reads the environment

        self._ray, self.errors = ray, ray.exceptions.RayError
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        if ray.is_initialized():
            raise ConfigError(
                "engine.kind: ray: this process is connected to Ray already, by the script that started the run. "
                "Call ray.shutdown() before, or start the run as a process of its own"
            )
        self._unpatch = no_prints()
        self._connect(workers)
        self._connected = True
        quieten()
        self.own_node = ray.get_runtime_context().get_node_id()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if self._embedded and len(nodes) > 1:
            raise ConfigError(
                f"api_base: simulator is a server of this machine alone, and Ray has {len(nodes)} nodes. Start one "
                "that all of them reach (infermesh simulate --host …) and give its URL, or use engine.kind: local"
            )
        if engine.address == "local":
            return workers, workers
        if not token:
            self._note(
                "engine: this Ray asks for no token: whoever reaches its ports runs code on it. RAY_AUTH_MODE=token on "
                "every side turns that off (https://docs.ray.io/en/latest/ray-security/token-auth.html)"
            )
        return self._room(workers, len(nodes))

    def _connect(self, workers: int) -> None:
        engine, ray = self._engine, self._ray
        common = {"log_to_driver": False, "configure_logging": False}
        try:
            if engine.address == "local":
                sweep()
                # For this user alone; Ray opens its own folder to all.
                self._private = tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-")
                ray.init(
                    address="local",
                    num_cpus=max(math.ceil(engine.cpus * workers), 1),
                    resources={name: amount * workers for name, amount in engine.resources.items()} or None,
                    include_dashboard=False,
                    object_store_memory=_OBJECTS,
                    _temp_dir=f"{self._private}/ray",
                    **common,
                )
                return
            environment: dict[str, Any] = {}
            if engine.working_dir == "ship":
                self._shipped = str(self._home)
                environment = {"working_dir": self._shipped, "excludes": list(_NOT_SHIPPED)}
            ray.init(address=engine.address, runtime_env=environment, **common)
        except Exception as error:  # Ray's are of many kinds
            raise ConfigError(refusal(engine.address, error)) from None

    def _room(self, workers: int, nodes: int) -> tuple[int, int]:
        """How many workers the cluster has room for now; with ``workers: auto`` no more are started."""
        engine = self._engine
        free = self._ray.available_resources()
        needs = {"CPU": engine.cpus, **engine.resources}
        room = min((int(free.get(name, 0.0) // need) for name, need in needs.items() if need), default=workers)
        where = f"Ray at {self._ray.get_runtime_context().gcs_address}, {counted(nodes, 'node')}"
        if engine.workers == "auto":
            if not room:
                raise ConfigError(f"engine.workers is auto, and {where}, has no room: each worker takes {_of(needs)}")
            workers = min(workers, room)
        if room < workers:
            self._note(
                f"engine: {where}, has room for {room} of {counted(workers, 'worker')}, each with {_of(needs)}; the "
                "others start when there is more. engine.cpus says what one takes"
            )
        else:
            self._note(f"engine: {counted(workers, 'worker')} on {where}")
        return workers, max(min(workers, room), 1)

    def avoid(self, node: str) -> None:
        """Place no worker on a node for a while."""
        self._avoided[node] = asyncio.get_running_loop().time() + _AVOID_S

    def avoided(self) -> list[str]:
        """The nodes that get no worker now."""
        now = asyncio.get_running_loop().time()
        return [node for node, until in self._avoided.items() if until > now]

    async def start(self, number: int) -> RayLink:
        return RayLink(self, number)

    async def make(self, avoided: list[str]) -> Any:
        """An actor that has no place yet."""
        return await self._do(self._make, avoided)

    def _make(self, avoided: list[str]) -> Any:
        engine = self._engine
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if avoided:
            options = {"label_selector": {"ray.io/node-id": f"!in({','.join(avoided)})"}}
        actor = self._ray.remote(RayWorker).options(
            num_cpus=engine.cpus,
            resources=dict(engine.resources) or None,
            max_restarts=0,
            max_task_retries=0,
            **options,
        )
        return actor.remote(self._shipped)

    async def kill(self, actor: Any) -> None:
        """End an actor, as far as Ray is there to do it."""
        with suppress(Exception):
            async with asyncio.timeout(_KILL_S):
                await self._do(self._ray.kill, actor)

    async def aclose(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(_LEAVE_S):
                await self._do(self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._connected or self._private is not None:
            self._ray.shutdown()
            self._unpatch()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)


def _of(needs: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in needs.items())


def _last_line(error: BaseException) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
