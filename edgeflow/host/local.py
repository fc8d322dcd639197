"""A cluster of one's own for tests and scripts: starts in a folder, on free ports, and can be hurt.

What it is: `up` and `down` as a context manager, with pids, kills and waits by PoP and process name.
What it is not: another way to run things; it is the same supervisor, started with the same files.
"""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from edgeflow.host.discover import Cluster, PopAccess, find
from edgeflow.host.errors import NoSuchPop, StartTimeout
from edgeflow.host.files import ensure_dir, read_json, write_json
from edgeflow.host.layout import DEFAULT_POPS, Home
from edgeflow.host.lifecycle import START_S, Say, down, silent, up, wait_ready
from edgeflow.host.linkfile import change_link
from edgeflow.host.supervisor import Commands

ProcessName = Literal["redis", "broker", "data", "control"]
POLL_S = 0.02
KILL_S = 30.0
"""Longest wait for a process that is to get a signal: one that ends again and again is started with growing pauses."""


class LocalCluster:
    """An embedded cluster in `home` (None = a temporary folder, removed at the end).

    `settings` is merged over every PoP's pop.json, e.g. {"limits": {"gate_timeout_ms": 1000}}. `ports="any"` uses whatever is free.
    """

    def __init__(
        self,
        pops: Sequence[str] = DEFAULT_POPS,
        *,
        home: Path | None = None,
        settings: dict[str, Any] | None = None,
        commands: Commands | None = None,
        ports: Literal["any", "default"] = "any",
    ) -> None:
        self._temporary = home is None
        self.home = Home(home.absolute() if home else Path(tempfile.mkdtemp(prefix="edgeflow-")))
        self.pops = tuple(pops)
        self._settings = settings
        self._commands = commands
        self._any_ports = ports == "any"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(purge=self._temporary)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(purge=self._temporary)

    def start(self, *, timeout_s: float = START_S, say: Say = silent) -> Cluster:
        """Start it, or start it again with the data it had. Returns when all PoPs are ready."""
        ensure_dir(self.home.root)
        if self._settings is not None:
            write_json(self.home.settings_file, self._settings)
        return up(
            mode="embedded",
            pops=self.pops,
            home=self.home.root,
            say=say,
            yes=False,
            any_ports=self._any_ports,
            commands=self._commands,
            timeout_s=timeout_s,
        )

    def stop(self, *, purge: bool = False) -> None:
        """End it; with `purge` its data and its folder too."""
        down(home=self.home.root, purge=purge)
        if purge:
            shutil.rmtree(self.home.root, ignore_errors=True)

    def find(self) -> Cluster:
        """What runs now. Raises NoCluster."""
        return find(self.home.root)

    def pop(self, pop: str | None = None) -> PopAccess:
        """How to reach a PoP; None = the first."""
        return self.find().pop(pop)

    def process(self, pop: str, name: ProcessName) -> dict[str, Any]:
        """pid (None while down), state, restarts, started_ms, last_exit, log of one process."""
        document = read_json(self.home.cluster_file) or {}
        try:
            entry: dict[str, Any] = document["pops"][pop]["processes"][name]
        except KeyError:
            raise NoSuchPop(f"There is no process {pop}/{name}.") from None
        return entry

    def pid(self, pop: str, name: ProcessName) -> int | None:
        """Its process id; None while it is down."""
        pid: int | None = self.process(pop, name)["pid"]
        return pid

    def restarts(self, pop: str, name: ProcessName) -> int:
        """How often it was started again since the cluster's start."""
        return int(self.process(pop, name)["restarts"])

    def kill(self, pop: str, name: ProcessName, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal (default -9) to one process; its pid. Waits for it to run first."""

        def sent() -> int | None:
            pid = self.pid(pop, name)
            # One that has just ended is still written down: the next one gets it.
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, number)
                    return pid
            return None

        return int(self._until(sent, f"{pop}/{name} runs", KILL_S))

    def wait_restarted(self, pop: str, name: ProcessName, old_pid: int, *, timeout_s: float = 30.0) -> int:
        """Until a process with another pid than `old_pid` runs (and answers, for Redis and the broker); the new pid."""

        def restarted() -> int | None:
            entry = self.process(pop, name)
            up_again = entry["state"] in ("running", "failing") and entry["pid"] not in (None, old_pid)
            return entry["pid"] if up_again else None

        return int(self._until(restarted, f"{pop}/{name} runs again", timeout_s))

    def wait_ready(self, *, timeout_s: float = START_S) -> Cluster:
        """Until every PoP is ready."""
        return wait_ready(self.home, timeout_s=timeout_s)

    def set_link(
        self, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None, kbit_s: float | None = None,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        """Change the link between two PoPs: one-way delay, cut, width (0 = no bound). It is so when this returns.

        `one_way`: only what goes from `a` to `b`.
        """
        change_link(self.home.wan_file, a, b, delay_ms=delay_ms, cut=cut, kbit_s=kbit_s, one_way=one_way)

    def kill_supervisor(self) -> int:
        """SIGKILL the supervisor (which ends its processes); its pid."""
        pid = self.find().supervisor_pid or 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    @staticmethod
    def _until(condition: Any, what: str, timeout_s: float) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline_s:
                raise StartTimeout(f"Not within {timeout_s:.0f} s: {what}.")
            time.sleep(POLL_S)
