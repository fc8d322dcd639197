"""One process for each invocation (contract `stdio`): its input given, its output taken, its time bounded.

What it is: `Runs`, which `LocalRuns` is for child processes (embedded mode) and launched.py for processes of the program's own container.
What it is not: what goes in and what the end means (stdio.py).
What must stay true: nothing that an invocation has started outlives it, but for what leaves its process group and session on purpose; what it writes to
standard error is in the log, whatever becomes of it.
"""

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from edgeflow.errors import BadHandler
from edgeflow.sdk.adapters.program import end_group, environment, spawn
from edgeflow.sdk.adapters.warden import Warden
from edgeflow.sdk.inputs import MAX_VALUE_BYTES

PIECE_BYTES = 64 * 1024
TAIL_BYTES = 4096
"""How much of what a process said last on its standard error is kept for the message."""
DRAIN_S = 0.5
"""How long what a process has left behind may hold its output open."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one process ended."""

    status: int
    """Exit status; negative: the signal."""
    stdout: bytes
    stderr: bytes
    """The last of it."""
    timed_out: bool = False
    too_large: bool = False
    """It wrote more than an event can hold, and was killed."""


class Runs(Protocol):
    """Runs the program, once for each invocation."""

    def start(self) -> None:
        """Return when programs can be run. Raises BadHandler, ConnectionLost when the instance is to end first."""

    def run(self, variables: Mapping[str, str], data: bytes, timeout_s: float) -> Ended:
        """Run it with these environment variables added, and this input."""

    def kill(self) -> None:
        """End what runs, at once."""

    def close(self) -> None:
        """No more runs."""


class Taken:
    """What a process writes: all of its output up to the limit, the end of its errors."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.errors = b""

    def output(self, piece: bytes) -> None:
        """A piece of standard output."""
        self._size += len(piece)
        if not self.too_large:
            self._pieces.append(piece)

    def error(self, piece: bytes) -> None:
        """A piece of standard error."""
        self.errors = (self.errors + piece)[-TAIL_BYTES:]

    @property
    def too_large(self) -> bool:
        """Whether it has written more than an event can hold."""
        return self._size > MAX_VALUE_BYTES

    def ended(self, status: int, *, timed_out: bool = False) -> Ended:
        """What was taken of a process that has ended."""
        data = b"" if self.too_large else b"".join(self._pieces)
        return Ended(status, data, self.errors, timed_out, self.too_large)


class LocalRuns:
    """Child processes of this one."""

    def __init__(self, command: Sequence[str], added: Mapping[str, str]) -> None:
        """`added`: environment variables of every run."""
        self._command = command
        self._environment = environment(added)
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: Warden | None = None

    def start(self) -> None:
        """Raises BadHandler when there is no such program."""
        if shutil.which(self._command[0], path=self._environment.get("PATH", os.defpath)) is None:
            raise BadHandler(
                f"there is no program {self._command[0]!r}",
                hint="`command:` names a program in the function's folder, in its requirements or on PATH; it is not a shell.",
            )
        self._warden = Warden()

    def run(self, variables: Mapping[str, str], data: bytes, timeout_s: float) -> Ended:
        """See Runs."""
        pipe = subprocess.PIPE
        process = spawn(
            self._command, {**self._environment, **variables}, stdin=pipe, stdout=pipe, stderr=pipe, is_bound=False
        )
        self._process = process
        taken, end_s, timed_out = Taken(), time.monotonic() + timeout_s, False
        with _Pipes(process, data, taken) as pipes:
            while not pipes.process_ended:
                left_s = end_s - time.monotonic()
                timed_out = left_s <= 0
                if timed_out or taken.too_large:
                    end_group(process)
                    break
                pipes.work(left_s)
            # Not reaped yet, so its group id cannot belong to anyone else: end what it left behind.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            end_group(process)
            pipes.drain()
        self._process = None
        return taken.ended(process.wait(), timed_out=timed_out)

    def kill(self) -> None:
        """See Runs."""
        if (process := self._process) is not None:
            end_group(process, signal.SIGKILL)

    def close(self) -> None:
        """Nothing runs between invocations."""
        if self._warden is not None:
            self._warden.close()


class _Pipes:
    """The three pipes of a process, worked off as they are ready, and its end."""

    def __init__(self, process: "subprocess.Popen[bytes]", data: bytes, taken: Taken) -> None:
        self._input = memoryview(data)
        self._taken = taken
        self._files: list[IO[bytes]] = [
            file for file in (process.stdin, process.stdout, process.stderr) if file is not None
        ]
        self.process_ended = False
        self._selector = selectors.DefaultSelector()
        self._process_fd = os.pidfd_open(process.pid)
        self._selector.register(self._process_fd, selectors.EVENT_READ, self._see_end)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for file in self._files:
            os.set_blocking(file.fileno(), False)
        self._selector.register(process.stdin, selectors.EVENT_WRITE, self._give)
        self._selector.register(process.stdout, selectors.EVENT_READ, self._take_output)
        self._selector.register(process.stderr, selectors.EVENT_READ, self._take_error)

    def __enter__(self) -> "_Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        os.close(self._process_fd)
        for file in self._files:
            _close(file)

    @property
    def are_open(self) -> bool:
        """Whether the process may still write."""
        return any(key.events & selectors.EVENT_READ for key in self._selector.get_map().values())

    def work(self, wait_s: float) -> bool:
        """Do what can be done within `wait_s`; whether there was anything."""
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            key.data(key.fileobj)
        return bool(ready)

    def drain(self) -> None:
        """Take what is still in the pipes."""
        end_s = time.monotonic() + DRAIN_S
        while self.are_open and (left_s := end_s - time.monotonic()) > 0:
            self.work(left_s)

    def _see_end(self, process_fd: int) -> None:
        self.process_ended = True
        self._selector.unregister(process_fd)

    def _give(self, file: IO[bytes]) -> None:
        try:
            sent = os.write(file.fileno(), self._input[:PIECE_BYTES]) if self._input else 0
            self._input = self._input[sent:]
        except BlockingIOError:
            return
        except OSError:
            self._input = memoryview(b"")  # it does not read on
        if not self._input:
            self._forget(file)

    def _take_output(self, file: IO[bytes]) -> None:
        if piece := self._read(file):
            self._taken.output(piece)

    def _take_error(self, file: IO[bytes]) -> None:
        if piece := self._read(file):
            self._taken.error(piece)
            say(piece)

    def _read(self, file: IO[bytes]) -> bytes:
        try:
            piece = os.read(file.fileno(), PIECE_BYTES)
        except BlockingIOError:
            return b""
        if not piece:
            self._forget(file)
        return piece

    def _forget(self, file: IO[bytes]) -> None:
        self._selector.unregister(file)
        _close(file)


def say(piece: bytes) -> None:
    """What a program writes to its standard error goes to the instance's log."""
    try:
        sys.stderr.buffer.write(piece)
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        pass  # a line that is lost does not fail the work it tells of


def _close(file: IO[bytes]) -> None:
    try:
        file.close()
    except OSError:
        pass
