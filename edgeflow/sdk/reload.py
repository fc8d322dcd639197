"""An instance whose code may change while it runs: `python -m edgeflow.sdk.reload`, what `edgeflow dev` has the PoP start.

What it is: the process that the runner sees. It watches the folder of the function and keeps three children at most: the one that serves, a spare that is
warm for the next change, and, for a moment, the one that loads changed code.
What it is not: an instance: it never speaks to the agent, and never imports the function's code or packages.
What must stay true: code that cannot be loaded takes nobody's place; the old code leaves the socket before the new code takes it; an
instance that is told to stop stops; this process has one thread, so it may fork.

Environment: as edgeflow.sdk.runtime, and EDGEFLOW_FAILURES, the folder for failed invocations. Log events: code_loaded, code_refused, code_ended.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeflow.core.endings import how_ended
from edgeflow.sdk.ending import EXIT_BAD_HANDLER, EXIT_KILLED, EXIT_NO_AGENT, EXIT_STOPPED
from edgeflow.sdk.live import live
from edgeflow.sdk.log import Log
from edgeflow.sdk.started import told
from edgeflow.sdk.watching import Folder

LEAVE_S = 1.0
"""How long the old code may finish what it does; then it is ended, and what it did is tried again with the new code."""
RESTART_S = (0.2, 5.0)
"""First and longest wait before code that ended by itself is started again."""
STEADY_S = 10.0


@dataclass(eq=False, slots=True)
class Life:
    """One child."""

    pid: int
    channel: socket.socket
    is_loaded: bool = False
    was_refused: bool = False
    began_s: float = field(default_factory=time.monotonic)
    end_by_s: float | None = None

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.channel.send(json.dumps(message).encode())
        except OSError:
            pass  # its end is seen by the closed channel

    def signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass


class Keeper:
    """Keeps the newest code that can be loaded at work."""

    def __init__(self, socket_path: str, folder: Path, failures: Path | None) -> None:
        self._socket_path = socket_path
        self._path = folder
        self._failures = failures
        self._folder = Folder(folder)
        self._log = Log({"logger": "dev"})
        self._packages: Sequence[str] = ()
        self._inputs: Sequence[str] | None = None
        self._serving: Life | None = None
        self._loading: Life | None = None
        self._spare: Life | None = None
        self._changed: Sequence[str] = ()
        self._changed_s = 0.0
        self._again_s: float | None = None
        self._ends = 0
        self._is_stopping = False
        self._status: int | None = None
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)

    def run(self) -> int:
        """Until told to stop; returns the exit status."""
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._stop())
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # it wakes `_wait`
        self._load(())
        while self._status is None:
            self._wait()
            now_s = time.monotonic()
            if self._is_stopping:
                continue
            for life in self._lives():
                if life.end_by_s is not None and now_s > life.end_by_s:
                    life.signal(signal.SIGKILL)
            changed = self._folder.changed()
            if changed:
                self._ends = 0
                self._load(changed)
            elif self._again_s is not None and now_s >= self._again_s:
                self._load(())
        return self._status

    # -- what happens --------------------------------------------------------------------------------------------------

    def _load(self, changed: Sequence[str]) -> None:
        """Have the code as it is now loaded, by the spare if there is one."""
        self._again_s = None
        if self._loading is not None:
            # What it loads is out of date, and may never end.
            self._loading.signal(signal.SIGKILL)
            os.waitpid(self._loading.pid, 0)
            self._loading.channel.close()
        self._changed, self._changed_s = changed, time.monotonic()
        self._loading, self._spare = self._spare or self._fork(), None
        self._loading.send({"inputs": self._inputs})

    def _heard(self, life: Life, message: dict[str, Any]) -> None:
        if "inputs" in message:
            self._inputs = message["inputs"]
        elif "refused" in message:
            life.was_refused = True
            self._log.error("code_refused", **message["refused"], old_code=self._serving not in (None, life))
        elif "loaded" in message and life is self._loading:
            self._packages = message["loaded"]
            life.is_loaded = True
            if self._serving is None:
                self._change_over()
            else:
                self._serving.signal(signal.SIGTERM)
                self._serving.end_by_s = time.monotonic() + LEAVE_S

    def _change_over(self) -> None:
        assert self._loading is not None
        self._serving, self._loading = self._loading, None
        self._serving.began_s = time.monotonic()
        self._serving.send({"serve": True})
        took_ms = round((time.monotonic() - self._changed_s) * 1000)
        self._log.info("code_loaded", changed=list(self._changed), took_ms=took_ms)
        self._spare = self._fork()

    def _ended(self, life: Life, status: int) -> None:
        if self._is_stopping:
            if life is self._serving:
                self._status = EXIT_STOPPED
            self._serving, self._loading, self._spare = (
                None if life is one else one for one in (self._serving, self._loading, self._spare)
            )
        elif life is self._serving:
            self._serving = None
            if self._loading is not None and self._loading.is_loaded:
                self._change_over()
            elif self._loading is None and not life.was_refused:
                self._served_its_last(life, status)
        elif life is self._loading:
            self._loading = None
            if not life.was_refused:
                self._log.error(
                    "code_refused", error=f"it {how_ended(status)} while it was loaded", hint="Modules of a handler may not end the process.",
                    file=None, line=None, shown="", old_code=self._serving is not None,
                )  # fmt: skip
            if self._spare is None:
                self._spare = self._fork()
        elif life is self._spare:
            self._spare = None  # what it was to import ended it; the next load begins cold
            self._packages = ()

    def _served_its_last(self, life: Life, status: int) -> None:
        """The code that served has ended without being asked to."""
        if status in (EXIT_STOPPED, EXIT_NO_AGENT):
            self._status = status  # it was drained, or the PoP is gone
            return
        if time.monotonic() - life.began_s > STEADY_S:
            self._ends = 0
        first_s, longest_s = RESTART_S
        wait_s = 0.0 if status == EXIT_KILLED else min(longest_s, first_s * 2**self._ends)
        self._ends += 1
        self._log.error("code_ended", how=how_ended(status), again_in_s=wait_s)
        self._again_s = time.monotonic() + wait_s

    def _stop(self) -> None:
        self._is_stopping = True
        for life in (self._loading, self._spare):
            if life is not None:
                life.signal(signal.SIGKILL)
        if self._serving is None:
            self._status = EXIT_STOPPED
        else:
            self._serving.signal(signal.SIGTERM)

    # -- children ------------------------------------------------------------------------------------------------------

    def _lives(self) -> list[Life]:
        return [life for life in (self._serving, self._loading, self._spare) if life is not None]

    def _wait(self) -> None:
        """Until a child says something or ends, a signal comes, or it is time to look at the folder."""
        by_channel = {life.channel: life for life in self._lives()}
        readable, _, _ = select.select([*by_channel, self._woken], [], [], self._folder.pause_s)
        if self._woken in readable:
            self._woken.recv(64)
        for life in self._lives():
            # Not by the end of the channel: what a handler has forked may hold it open.
            pid, status = os.waitpid(life.pid, os.WNOHANG)
            self._hear_all(life)
            if pid:
                life.channel.close()
                self._ended(life, os.waitstatus_to_exitcode(status))

    def _hear_all(self, life: Life) -> None:
        while True:
            try:
                data = life.channel.recv(1 << 18, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not data:
                return
            self._heard(life, json.loads(data))

    def _fork(self) -> Life:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        pid = os.fork()
        if pid:
            theirs.close()
            return Life(pid, ours)
        status = EXIT_BAD_HANDLER
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Else a sibling would keep the channel of one that has ended open.
            for one in (ours, self._wake, self._woken, *(life.channel for life in self._lives())):
                one.close()
            status = live(theirs, parent, self._socket_path, self._path, self._packages, self._failures)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass
            os._exit(status)


def main() -> int:
    """Entry point of `python -m edgeflow.sdk.reload`; returns the exit status."""
    if (given := told("EDGEFLOW_SOCKET", "EDGEFLOW_HANDLER")) is None:
        return EXIT_BAD_HANDLER
    socket_path, folder = given
    failures = os.environ.get("EDGEFLOW_FAILURES")
    return Keeper(socket_path, Path(folder), Path(failures) if failures else None).run()


if __name__ == "__main__":
    sys.exit(main())
