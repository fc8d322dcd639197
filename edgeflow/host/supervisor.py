"""Keeps the processes of an embedded cluster running.

What it is: one process (`python -m edgeflow.host.supervisor`, or the foreground of `edgeflow up`) that starts Redis, the broker, the data and the
control process of every PoP and the link proxy, starts again what dies, and writes what it knows into `cluster.json`.
What it is not: provisioning (the files are there when it starts), or a part of the flow of events: killing it loses no event.
What must stay true: one supervisor per folder (a lock held by the process); its end ends every child; on request children end in order: control,
instances, data, broker, Redis, so that each can still reach what it needs to finish.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import structlog

from edgeflow.host import probes
from edgeflow.host.access import public_access
from edgeflow.host.children import Child, ChildSpec, rotate_log, watch_children
from edgeflow.host.errors import AlreadyRunning
from edgeflow.host.files import ensure_dir, read_json, write_json
from edgeflow.host.layout import Home
from edgeflow.host.programs import require

log = structlog.get_logger()

PROCESSES = ("redis", "broker", "data", "control")
"""Per PoP, in the order of their start; they end in the opposite order."""
STOP_S = {"redis": 10.0, "broker": 3.0, "data": 10.0, "control": 20.0, "wan": 2.0}
INSTANCE_STOP_S = 10.0
READY_CHECK_S = 0.25
READY_CHECK_LONG_S = 2.0

Commands = Mapping[str, Sequence[str]]
"""Command per process name; `{config}` stands for the PoP's pop.json, `{dir}` for its folder."""


def default_commands() -> dict[str, list[str]]:
    """What runs in a PoP."""
    return {
        "redis": [str(require("redis-server")), "{dir}/redis.conf"],
        "broker": [str(require("mosquitto")), "-c", "{dir}/mosquitto.conf"],
        "data": [sys.executable, "-m", "edgeflow.pop", "--config", "{config}"],
        "control": [sys.executable, "-m", "edgeflow.api", "--config", "{config}"],
    }


class HomeLock:
    """The right to run a cluster from a folder. The kernel gives it back when the last process that holds it ends."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, home: Home) -> "HomeLock":
        """Raises AlreadyRunning when another process has it."""
        ensure_dir(home.root)
        descriptor = os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(f"A cluster already runs from {home.root}.") from None
        return cls(descriptor)

    @staticmethod
    def is_held(home: Home) -> bool:
        """Whether a supervisor runs from this folder now."""
        try:
            descriptor = os.open(home.lock_file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def release(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


@dataclass
class Pop:
    """One supervised PoP."""

    pop: str
    settings: dict[str, Any]
    children: dict[str, Child]
    moved: asyncio.Event
    """Set when one of the children changes its state."""
    ready: bool = False
    was_ready: bool = False
    reason: str = "starting"

    @property
    def state(self) -> str:
        states = [child.state for child in self.children.values()]
        if all(state == "stopped" for state in states):
            return "stopped"
        if "failing" in states:
            return "failing"
        if "off" in states:
            return "off"
        if self.ready:
            return "ready"
        return "degraded" if self.was_ready else "starting"


class Supervisor:
    """Runs one cluster. `run` returns after `stop` was asked for and everything has ended."""

    def __init__(
        self,
        home: Home,
        pops: Sequence[str],
        *,
        commands: Commands | None = None,
        changed: Callable[["Supervisor"], None] | None = None,
    ) -> None:
        self.home = home
        self.started_ms = time.time_ns() // 1_000_000
        self.stopping = False
        self._changed = changed
        self._stop = asyncio.Event()
        self._dirty = asyncio.Event()
        self._commands = {**default_commands(), **(commands or {})}
        self.pops = {pop: self._make_pop(pop) for pop in pops}
        self.wan = Child(self._wan_spec(), self._note) if len(self.pops) > 1 else None
        first = next(iter(self.pops.values()))
        self.cluster = str(first.settings["cluster"])

    @property
    def state(self) -> str:
        """The worst of the PoPs' states."""
        if self.stopping:
            return "stopping"
        states = {pop.state for pop in self.pops.values()}
        if self.wan is not None and self.wan.state == "failing":
            states.add("failing")
        order = ("failing", "off", "degraded", "starting", "ready", "stopped")
        worst = next(state for state in order if state in states)
        return "degraded" if worst == "off" else worst

    def request_stop(self) -> None:
        self._stop.set()

    def kill_all(self) -> None:
        """SIGKILL for every child; for a second Ctrl-C."""
        for child in self._children():
            child.kill()

    async def run(self) -> None:
        """Start everything, keep it running until a stop is requested, end everything."""
        helpers = [asyncio.create_task(self._write_state())]
        try:
            if self.wan is not None:
                self.wan.start()
            helpers += [asyncio.create_task(self._start_pop(pop)) for pop in self.pops.values()]
            helpers += [asyncio.create_task(self._watch_ready(pop)) for pop in self.pops.values()]
            await self._stop.wait()
        finally:
            self.stopping = True
            self._note()
            for task in helpers[1:]:
                task.cancel()
            await self._end()
            helpers[0].cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            for pop in self.pops.values():
                remove_run_dir(Path(pop.settings["run_dir"]))
            self.write_now(state="stopped")

    async def _start_pop(self, pop: Pop) -> None:
        """Redis and the broker first: the agent's own retries would be slower than waiting here."""
        for name in ("redis", "broker"):
            pop.children[name].start()
        for name in ("redis", "broker"):
            await pop.children[name].ready.wait()
        for name in ("data", "control"):
            pop.children[name].start()

    async def _end(self) -> None:
        began_s = time.monotonic()
        pops = self.pops.values()
        await asyncio.gather(*(pop.children["control"].stop() for pop in pops))
        # Instances outlive a control process; now that it is gone they end, while the data process can still take their commits.
        await asyncio.gather(*(asyncio.to_thread(_stop_instances_of, pop.settings) for pop in pops))
        for name in ("data", "broker", "redis"):
            await asyncio.gather(*(pop.children[name].stop() for pop in pops))
        if self.wan is not None:
            await self.wan.stop()
        log.info("cluster_stopped", took_s=round(time.monotonic() - began_s, 2))

    async def _watch_ready(self, pop: Pop) -> None:
        api = pop.settings["api"]
        host = "127.0.0.1" if api.get("host", "") in ("", "0.0.0.0", "::") else api["host"]
        while not self.stopping:
            missing = [child for child in pop.children.values() if not child.ready.is_set()]
            if missing:
                ready, reason = False, _waiting_for(missing)
            else:
                status, body = await probes.http_status(host, int(api["port"]), "/readyz")
                ready, reason = status == 200, "" if status == 200 else _why_not_ready(status, body)
            if (ready, reason) != (pop.ready, pop.reason):
                if ready != pop.ready:
                    log.info("pop_ready" if ready else "pop_not_ready", pop=pop.pop, reason=reason)
                pop.ready, pop.reason = ready, reason
                pop.was_ready = pop.was_ready or ready
                self._note()
            with contextlib.suppress(TimeoutError):  # a process that ends must show at once, not at the next check
                async with asyncio.timeout(READY_CHECK_LONG_S if ready else READY_CHECK_S):
                    await pop.moved.wait()
            pop.moved.clear()

    def _children(self) -> list[Child]:
        children = [child for pop in self.pops.values() for child in pop.children.values()]
        return children if self.wan is None else [*children, self.wan]

    def _make_pop(self, pop: str) -> Pop:
        settings = read_json(self.home.config_file(pop)) or {}
        settings.setdefault("api", {}).setdefault("host", "127.0.0.1")
        ensure_dir(self.home.instance_logs_dir(pop))
        run_dir, link_port, api_port = (
            Path(settings["run_dir"]),
            int(settings["link"]["port"]),
            int(settings["api"]["port"]),
        )
        readiness = {
            "redis": lambda: probes.redis_answers(run_dir / "r.sock"),
            "broker": lambda: probes.socket_answers(run_dir / "m.sock"),
            "data": lambda: probes.listens(link_port),
            "control": lambda: probes.listens(api_port),
        }
        moved = asyncio.Event()
        hold_file = self.home.hold_file(pop)
        hold_file.unlink(missing_ok=True)  # a start of the cluster starts all of it

        def note() -> None:
            moved.set()
            self._note()

        children = {
            name: Child(
                ChildSpec(
                    owner=pop,
                    name=name,
                    argv=[self._fill(part, pop) for part in self._commands[name]],
                    log_file=self.home.pop_logs_dir(pop) / f"{name}.log",
                    stop_s=STOP_S[name],
                    ready=readiness.get(name),
                    env={"PYTHONUNBUFFERED": "1"},
                    hold_file=hold_file,
                ),
                note,
            )
            for name in PROCESSES
        }
        return Pop(pop, settings, children, moved)

    def _fill(self, part: str, pop: str) -> str:
        return part.replace("{config}", str(self.home.config_file(pop))).replace("{dir}", str(self.home.pop_dir(pop)))

    def _wan_spec(self) -> ChildSpec:
        ensure_dir(self.home.logs_dir)
        return ChildSpec(
            owner="cluster",
            name="wan",
            argv=[sys.executable, "-m", "edgeflow.host.wan", "--config", str(self.home.wan_file)],
            log_file=self.home.logs_dir / "wan.log",
            stop_s=STOP_S["wan"],
            env={"PYTHONUNBUFFERED": "1"},
        )

    def _note(self) -> None:
        self._dirty.set()
        if self._changed is not None:
            self._changed(self)

    async def _write_state(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self.write_now()
            await asyncio.sleep(0.05)  # several changes at once become one write

    def write_now(self, state: str | None = None) -> None:
        """Write cluster.json without waiting for more changes."""
        write_json(self.home.cluster_file, self.document(state))

    def document(self, state: str | None = None) -> dict[str, Any]:
        """The content of cluster.json."""
        return {
            "cluster": self.cluster,
            "mode": "embedded",
            "state": state or self.state,
            "supervisor": {"pid": os.getpid(), "started_ms": self.started_ms} if state != "stopped" else None,
            "pops": {pop.pop: self._pop_document(pop) for pop in self.pops.values()},
            "wan": None if self.wan is None else {**_child_document(self.wan), "config": str(self.home.wan_file)},
        }

    def _pop_document(self, pop: Pop) -> dict[str, Any]:
        return {
            "id": pop.pop,
            "state": pop.state,
            "reason": pop.reason,
            **public_access(pop.settings),
            "config": str(self.home.config_file(pop.pop)),
            "processes": {name: _child_document(child) for name, child in pop.children.items()},
        }


def _stop_instances_of(settings: Mapping[str, Any]) -> int:
    """End the instances of a PoP, processes or (with `mode: docker` in its settings) containers; how many there were."""
    count = stop_instances(Path(settings["state_dir"]))
    if settings["mode"] != "docker":
        return count
    from edgeflow.errors import EdgeflowError
    from edgeflow.runner import docker

    try:
        return count + docker.stop_all(settings["cluster"], grace_s=INSTANCE_STOP_S, pop=settings["pop"])
    except (EdgeflowError, OSError) as error:
        # They end by themselves when no agent comes back.
        log.error("containers_not_ended", pop=settings["pop"], reason=str(error))
        return count


def stop_instances(state_dir: Path) -> int:
    """End the function instances of a PoP whose control process is gone; how many there were."""
    from edgeflow.runner.process import stop_all  # loaded at the end only: the supervisor stays small

    return stop_all(state_dir, grace_s=INSTANCE_STOP_S)


def _child_document(child: Child) -> dict[str, Any]:
    return {
        "pid": child.pid,
        "state": child.state,
        "restarts": child.restarts,
        "started_ms": child.started_ms,
        "last_exit": child.last_exit,
        "log": str(child.spec.log_file),
    }


def _waiting_for(missing: list[Child]) -> str:
    if any(child.state == "off" for child in missing):
        return "it was taken down, and stays so until `edgeflow lab resume`"
    ended = [
        f"{child.spec.name} ended ({child.last_exit})" for child in missing if child.state in ("backoff", "failing")
    ]
    return ", ".join(ended) or f"waiting for {', '.join(child.spec.name for child in missing)}"


def _why_not_ready(status: int, body: str) -> str:
    if status == 0:
        return f"the API does not answer yet: {body}"
    try:
        problem = json.loads(body)
        return str(problem.get("detail") or problem.get("title") or body)[:300]
    except (ValueError, AttributeError):
        return f"/readyz answers {status}: {body[:200]}"


async def supervise(
    home: Home,
    pops: Sequence[str],
    *,
    commands: Commands | None = None,
    changed: Callable[[Supervisor], None] | None = None,
) -> Supervisor:
    """Run a cluster until SIGTERM or SIGINT (twice = kill at once). The caller holds the HomeLock."""
    watch_children()
    supervisor = Supervisor(home, pops, commands=commands, changed=changed)

    def on_signal() -> None:
        if supervisor.stopping:
            supervisor.kill_all()
        supervisor.request_stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    await supervisor.run()
    return supervisor


def remove_run_dir(run_dir: Path) -> None:
    """Remove a PoP's folder of sockets, and the one around it when it was the last."""
    shutil.rmtree(run_dir, ignore_errors=True)
    with contextlib.suppress(OSError):
        run_dir.parent.rmdir()


def configure_logging(stream: TextIO) -> None:
    """One JSON object per line to `stream`."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )


def detach(log_file: Path) -> None:
    """Go on as a process of its own: the caller's child prints the new pid and ends, so nobody has to wait for us."""
    pid = os.fork()
    if pid > 0:
        print(pid, flush=True)
        os._exit(0)
    os.setsid()
    ensure_dir(log_file.parent)
    rotate_log(log_file)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edgeflow.host.supervisor", description="Run a provisioned embedded cluster."
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--pops", required=True, help="comma-separated")
    parser.add_argument("--lock-fd", type=int, default=None, help="an open, locked lock file that is handed over")
    parser.add_argument(
        "--detach", action="store_true", help="go on in the background; prints the pid, logs to logs/supervisor.log"
    )
    parser.add_argument(
        "--commands", type=Path, default=None, help="JSON: commands instead of the usual ones, by process name"
    )
    args = parser.parse_args(argv)
    home = Home(args.home)
    if args.detach:
        detach(home.logs_dir / "supervisor.log")
    lock = HomeLock(args.lock_fd) if args.lock_fd is not None else HomeLock.take(home)
    os.set_inheritable(lock.descriptor, False)  # children must not keep the lock alive
    configure_logging(sys.stdout)
    commands = json.loads(args.commands.read_text()) if args.commands else None
    asyncio.run(supervise(home, args.pops.split(","), commands=commands))
    return 0


if __name__ == "__main__":
    sys.exit(main())
