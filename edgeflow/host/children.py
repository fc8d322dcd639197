"""One supervised process: started, watched, started again with backoff, ended.

What it is: the life of a child as a small asyncio task, and the pure rule for how long to wait before it is started again.
What it is not: knowledge of what the child does; whether it is ready is a function that is handed in.
What must stay true: a child never outlives its supervisor, even if that is killed with -9 (the kernel sends SIGKILL then); the first restart comes
at once (0.2 s), a crash loop never spins; the supervisor's own terminal signals never reach a child.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from edgeflow.core.endings import signal_name

log = structlog.get_logger()

State = Literal["waiting", "starting", "running", "backoff", "failing", "off", "stopped"]

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
HEALTHY_S = 30.0
"""After so long without an end, the next one counts as the first again."""
QUICK_S = 5.0
FAILING_ENDS = 3
"""So many ends in a row, each after less than QUICK_S or before it was ready, are called failing."""
READY_POLL_S = 0.05
HOLD_POLL_S = 0.1
LOG_BYTES = 32 * 1024 * 1024
LOG_CHECK_S = 10.0

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Backoff:
    """Counts ends in a row and says how long to wait. Times are monotonic seconds."""

    ends_in_row: int = 0
    quick_in_row: int = 0

    def ended(self, ran_s: float, *, was_ready: bool = True) -> float:
        """Note an end after `ran_s` seconds; the delay (s) before the next start. One that never was ready counts as quick (slow machine)."""
        self.ends_in_row = 1 if ran_s >= HEALTHY_S else self.ends_in_row + 1
        self.quick_in_row = self.quick_in_row + 1 if ran_s < QUICK_S or not was_ready else 0
        return float(min(FIRST_DELAY_S * 2 ** min(self.ends_in_row - 1, 10), LONGEST_DELAY_S))

    @property
    def failing(self) -> bool:
        return self.quick_in_row >= FAILING_ENDS


@dataclass(frozen=True)
class ChildSpec:
    """What to run."""

    owner: str
    """The PoP it belongs to, or the cluster's name for its own processes."""
    name: str
    """redis, broker, data, control or wan."""
    argv: Sequence[str]
    log_file: Path
    stop_s: float
    """How long it may take to end after SIGTERM before it is killed."""
    ready: Callable[[], Awaitable[bool]] | None = None
    """Asked after each start until true; None = ready as soon as it runs."""
    env: Mapping[str, str] = field(default_factory=dict)
    hold_file: Path | None = None
    """While there is such a file it is not started again."""

    @property
    def label(self) -> str:
        return f"{self.owner}/{self.name}"


class Child:
    """A process that is kept running until it is told to end."""

    def __init__(self, spec: ChildSpec, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.state: State = "waiting"
        self.pid: int | None = None
        self.restarts = 0
        self.started_ms = 0
        self.last_exit: str | None = None
        self.ready = asyncio.Event()
        self._changed = changed
        self._backoff = Backoff()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self.spec.label)

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL for its whole process group after `stop_s`. Returns when it is gone."""
        self._stopping.set()
        process = self._process
        if process is not None and process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self.spec.stop_s):
                    await process.wait()
            except TimeoutError:
                log.warning("process_killed", process=self.spec.label, after_s=self.spec.stop_s)
                self._kill_group(process.pid)
        if self._task is not None:
            await self._task

    def kill(self) -> None:
        """SIGKILL without waiting; nothing is started again."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._kill_group(self._process.pid)

    def _set(self, state: State) -> None:
        self.state = state
        self._changed()

    async def _run(self) -> None:
        try:
            await self._keep_running()
        except Exception as error:
            log.exception("supervision_failed", process=self.spec.label)
            self.last_exit = f"supervision failed: {error!r}"
            self.kill()
            self._set("failing")

    async def _keep_running(self) -> None:
        while not self._stopping.is_set():
            if self._is_held():
                await self._until_let_go()
                continue
            began_s = time.monotonic()
            try:
                process = await self._spawn()
            except OSError as error:
                self.last_exit = f"cannot start {self.spec.argv[0]}: {error.strerror}"
            else:
                await self._watch(process)
                self.last_exit = describe_exit(process.returncode)
                self._kill_group(process.pid)  # whatever it left behind in its group
            was_ready = self.ready.is_set()
            self.ready.clear()
            self.pid = None
            if self._stopping.is_set():
                break
            if self._is_held():
                self.restarts += 1
                continue  # it did not end by itself
            ran_s = time.monotonic() - began_s
            delay_s = self._backoff.ended(ran_s, was_ready=was_ready)
            failing = self._backoff.failing
            log.warning(
                "process_ended",
                process=self.spec.label,
                exit=self.last_exit,
                ran_s=round(ran_s, 2),
                in_row=self._backoff.ends_in_row,
                restart_in_s=delay_s,
            )
            self._set("failing" if failing else "backoff")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
            self.restarts += 1
        self._set("stopped")

    def _is_held(self) -> bool:
        return self.spec.hold_file is not None and self.spec.hold_file.exists()

    async def _until_let_go(self) -> None:
        self._set("off")
        while self._is_held() and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_POLL_S):
                    await self._stopping.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        rotate_log(self.spec.log_file)
        parent = os.getpid()

        def bind_to_parent() -> None:
            # Only async-signal-safe work here: between fork and exec.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)  # the parent died before the line above

        descriptor = os.open(self.spec.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                preexec_fn=bind_to_parent,
                env={**os.environ, **self.spec.env},
                umask=0o077,
            )
        finally:
            os.close(descriptor)
        self._process = process
        self.pid = process.pid
        self.started_ms = time.time_ns() // 1_000_000
        log.info("process_started", process=self.spec.label, pid=process.pid, restarts=self.restarts)
        self._set("failing" if self._backoff.failing else "starting")
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        return process

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Until the process ends. Meanwhile: notice readiness, the end of a crash loop, and cut its log file."""
        ended = asyncio.ensure_future(process.wait())
        began_s = time.monotonic()
        log_checked_s = began_s
        try:
            while not ended.done():
                if not self.ready.is_set() and await self._is_ready():
                    self.ready.set()
                    self._set("running" if self.state == "starting" else self.state)
                now_s = time.monotonic()
                if self.state == "failing" and self.ready.is_set() and now_s - began_s >= QUICK_S:
                    self._set("running")
                if now_s - log_checked_s >= LOG_CHECK_S:
                    log_checked_s = now_s
                    rotate_log(self.spec.log_file)
                settled = self.ready.is_set() and self.state == "running"
                await asyncio.wait([ended], timeout=LOG_CHECK_S if settled else READY_POLL_S)
        finally:
            if not ended.done():
                ended.cancel()

    async def _is_ready(self) -> bool:
        return self.spec.ready is None or await self.spec.ready()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                self._process.send_signal(number)

    @staticmethod
    def _kill_group(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def watch_children() -> None:
    """To be called once in the running loop: children are waited for by descriptor, not by a thread for each."""
    if sys.version_info < (3, 12):  # later versions choose it by themselves
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def describe_exit(returncode: int | None) -> str:
    """An exit status in words."""
    if returncode is None:
        return "unknown"
    return f"exit status {returncode}" if returncode >= 0 else f"killed by {signal_name(-returncode)}"


def rotate_log(file: Path, *, limit_bytes: int = LOG_BYTES) -> None:
    """Copy a log that grew beyond `limit_bytes` to `<name>.1` and empty it. The writer appends, so it goes on at the new start."""
    try:
        if file.stat().st_size <= limit_bytes:
            return
        shutil.copyfile(file, file.with_name(file.name + ".1"))
        os.truncate(file, 0)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            print(f"log {file} could not be cut: {error}", file=sys.stderr)
