"""The user's program as a child process (embedded mode).

What it is: start, end and words for both; a process group of its own, so that what the program has started ends with it.
What it is not: what the program is asked (the adapters), or a shell: `command` is a program and its arguments.
What must stay true: the program ends when its adapter does, however that ends: the kernel sends it SIGKILL with the death of the thread that started it,
so only the main thread starts one.
"""

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgeflow.core.endings import signal_name
from edgeflow.errors import BadHandler
from edgeflow.sdk.adapters.setting import VARIABLE

GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""
_OURS = ("EDGEFLOW_SOCKET", "EDGEFLOW_HANDLER", VARIABLE)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def environment(added: Mapping[str, str]) -> dict[str, str]:
    """The adapter's own environment without what is for the adapter only, and `added`."""
    return {name: value for name, value in os.environ.items() if name not in _OURS} | dict(added)


def spawn(
    command: Sequence[str], env: Mapping[str, str], *, stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None, stderr: int | IO[bytes] | None = None, is_bound: bool = True,
) -> "subprocess.Popen[bytes]":  # fmt: skip
    """Start a program in a process group of its own. `is_bound`: it dies with this thread, and its start takes a copy of this process.

    Raises BadHandler when it cannot be started.
    """
    parent = os.getpid()

    def bind_to_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    try:
        return subprocess.Popen(
            list(command), env=dict(env), stdin=stdin, stdout=stdout, stderr=stderr, process_group=0,
            preexec_fn=bind_to_parent if is_bound else None,
        )  # fmt: skip
    except OSError as error:
        raise BadHandler(
            f"the program {command[0]!r} cannot be started: {error.strerror or error}",
            hint=f"`command:` names a program in the function's folder ({Path.cwd()}), in its requirements or on PATH; it is not a shell.",
        ) from None


def end_group(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a program and all that it has started in its group."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def in_words(status: int) -> str:
    """How a program ended."""
    return f"with status {status}" if status >= 0 else f"by {signal_name(-status)}"


class Program:
    """A program that runs as long as the instance does."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], on_end: Callable[[], None]) -> None:
        """Start it, from the main thread. `on_end` is called from another one when it ends by itself. Raises BadHandler."""
        self._process = spawn(command, env)
        self._on_end = on_end
        self._stopping = False
        self._gone = threading.Event()
        self.ended_by_itself: int | None = None
        """Its status (negative: a signal) when nobody had asked it to end."""
        threading.Thread(target=self._wait, name="program", daemon=True).start()

    def _wait(self) -> None:
        # Not reaped yet, so its group id cannot belong to anyone else: end what it left behind.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        end_group(self._process)
        status = self._process.wait()
        self._gone.set()
        if not self._stopping:
            self.ended_by_itself = status
            self._on_end()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for all of its group when it does not end in time."""
        self._stopping = True
        if not self._gone.is_set():
            end_group(self._process, signal.SIGTERM)
        if not self._gone.wait(GRACE_S):
            end_group(self._process)

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._stopping = True
        if not self._gone.is_set():
            end_group(self._process)

    def exit_status(self) -> int:
        """What the instance ends with when the program has ended by itself. Statuses that mean something of the runtime's own are not passed on."""
        status = self.ended_by_itself or 0
        if status < 0:
            return 128 - status
        return 1 if status in (75, 78) else status
