"""Runs of a program in a container of its own (Docker mode): by the launcher there, over loopback.

What it is: this end of the frames of deploy/launcher/launcher.c.
What it is not: trusted: whatever is in that container may connect here; it can spoil its own function's work only.
What must stay true: one run at a time, and one launcher; when the launcher is gone its instance ends, to be replaced as a pair.

Frames, both ways: type (1 byte), length (4 bytes, big endian), payload. To the launcher: R run (environment variables, a zero byte behind each),
I a piece of the input, E its end, K kill. From it: O and X a piece of the output or the errors, S the status (4 bytes, negative: a signal).
"""

import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, Never

from edgeflow.sdk.adapters.answers import ProgramFailed
from edgeflow.sdk.adapters.ports import HOST
from edgeflow.sdk.adapters.runs import PIECE_BYTES, Ended, Taken
from edgeflow.sdk.connection import ConnectionLost
from edgeflow.sdk.ending import Stop

_HEAD = struct.Struct(">cI")
_STATUS = struct.Struct(">i")
KILLED_S = 5.0
"""How long a launcher may take to say that what was killed has ended."""
READ_BYTES = 256 * 1024


class LauncherGone(ProgramFailed):
    """The launcher has closed its connection."""


class LaunchedRuns:
    """Runs by the launcher that connects to this port."""

    def __init__(self, port: int, stop: Stop) -> None:
        """Listen. Raises OSError when the port is taken."""
        self._stop = stop
        self._listener = socket.create_server((HOST, port))
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    def start(self) -> None:
        """Wait for the launcher."""
        self._listener.setblocking(False)
        while self._socket is None:
            waited: list[Any] = [self._listener, self._stop.read_fd]
            select.select(waited, [], [], 1.0)
            if self._stop.requested:
                raise ConnectionLost("stopped before the program's container was there")
            try:
                self._socket, _ = self._listener.accept()
            except BlockingIOError:
                continue
        self._listener.close()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, variables: Mapping[str, str], data: bytes, timeout_s: float) -> Ended:
        """See Runs."""
        taken, end_s, timed_out = Taken(), time.monotonic() + timeout_s, False
        sending = _frames(variables, data)
        out: memoryview | None = next(sending, None)
        while True:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or (taken.too_large and not timed_out):
                if timed_out or out is not None:
                    # Half a frame may be out, or killing it did not help: the container is replaced.
                    self._lost("was not ended in time")
                timed_out = True
                out, end_s = memoryview(_frame(b"K", b"")), time.monotonic() + KILLED_S
                continue
            readable, writable = self._wait(left_s, out is not None)
            if writable and out is not None:
                out = self._send(out) or next(sending, None)
            if readable:
                for kind, payload in self._receive():
                    if kind == b"O":
                        taken.output(payload)
                    elif kind == b"X":
                        taken.error(payload)
                    elif kind == b"S":
                        return taken.ended(_STATUS.unpack(payload)[0], timed_out=timed_out and not taken.too_large)

    def kill(self) -> None:
        """See Runs: without its adapter a launcher kills what runs, and ends."""
        self.close()

    def close(self) -> None:
        """See Runs."""
        self._listener.close()
        if self._socket is not None:
            self._socket.close()

    def _wait(self, timeout_s: float, writing: bool) -> tuple[bool, bool]:
        assert self._socket is not None
        try:
            readable, writable, _ = select.select(
                [self._socket], [self._socket] if writing else [], [], min(timeout_s, 60.0)
            )
        except (OSError, ValueError):
            self._lost("was closed")
        return bool(readable), bool(writable)

    def _send(self, out: memoryview) -> memoryview | None:
        assert self._socket is not None
        try:
            rest = out[self._socket.send(out) :]
        except BlockingIOError:
            return out
        except OSError as error:
            self._lost(error.strerror or str(error))
        return rest or None

    def _receive(self) -> Iterator[tuple[bytes, bytes]]:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
        if not data:
            self._lost("has ended")
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._buffer)
            if size > PIECE_BYTES:
                self._lost(f"sent a frame of {size} bytes")
            if len(self._buffer) < _HEAD.size + size:
                return
            payload = bytes(self._buffer[_HEAD.size : _HEAD.size + size])
            del self._buffer[: _HEAD.size + size]
            yield kind, payload

    def _lost(self, why: str) -> Never:
        """Raises LauncherGone."""
        self._stop.request()
        self.close()
        raise LauncherGone(f"the launcher in the program's container {why}")


def _frame(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def _frames(variables: Mapping[str, str], data: bytes) -> Iterator[memoryview]:
    """What starts a run: its environment and its input."""
    env = b"".join(f"{name}={value}".encode("utf-8", "replace") + b"\0" for name, value in variables.items())
    yield memoryview(_frame(b"R", env))
    for at in range(0, len(data), PIECE_BYTES):
        yield memoryview(_frame(b"I", data[at : at + PIECE_BYTES]))
    yield memoryview(_frame(b"E", b""))
