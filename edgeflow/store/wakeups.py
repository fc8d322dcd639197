"""Wake-ups: hints that something changed in the store, as one socket to wait on.

What it is: a subscription to the channel that operations publish on, read without redis-py, since each round of a PoP says something there.
What it is not: a promise. Hints get lost with the connection; whoever waits for one asks now and then as well.
What must stay true: while Redis is away nothing here raises or blocks; it comes back by itself with the next look.
"""

import select
import socket
from pathlib import Path
from typing import Any

import hiredis
import msgpack

WAKE_CHANNEL = "ef:wake"
_READ_BYTES = 64 * 1024
_CONNECT_S = 5.0


class Wakeups:
    """Hints that something changed: a file descriptor to wait on, and the names of what changed. Hints can be lost; poll as well.

    What rounds of this Store's own namespaces released is not among them: their results have said it already.
    """

    def __init__(self, path: Path, own_token: str) -> None:
        self._path = path
        self._own = own_token.encode()
        self._reader = hiredis.Reader()
        self._socket: socket.socket | None = None
        self._closed = False
        self._is_new = False
        self._subscribe()

    def fileno(self) -> int:
        """The descriptor to select on, -1 while Redis is away. It changes when the connection does."""
        return -1 if self._socket is None else self._socket.fileno()

    def drain(self) -> dict[str, set[str]]:
        """Namespaces (or "local") that changed since the last call, with the inboxes ("function:revision") that got work; reconnects by itself."""
        changed: dict[str, set[str]] = {}
        sock = self._socket if self._socket is not None or self._subscribe() else None
        while sock is not None:
            try:
                data = sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._drop()
                break
            self._reader.feed(data)
            self._note(changed)
            if len(data) < _READ_BYTES:
                break
        return changed

    def wait(self, timeout_s: float) -> set[str]:
        """Block until something changes, at most `timeout_s`; for threads. Returns at once, with nothing, when it listens anew: what was missed is not known."""
        if (self._socket is None and not self._subscribe()) or self._is_new:
            self._is_new = False
            return set()
        ready = select.poll()  # not select(): the API has more descriptors than that takes
        ready.register(self.fileno(), select.POLLIN)
        ready.poll(timeout_s * 1000)
        return set(self.drain())

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._drop()

    def _note(self, changed: dict[str, set[str]]) -> None:
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, list) and reply[0] == b"message":
                name, by, inboxes = msgpack.unpackb(reply[2], raw=True)
                if by != self._own:
                    changed.setdefault(name.decode(), set()).update(inbox.decode() for inbox in inboxes)

    def _subscribe(self) -> bool:
        if self._closed:
            return False
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT_S)
            sock.connect(str(self._path))
            command: tuple[Any, ...] = ("SUBSCRIBE", WAKE_CHANNEL)
            sock.sendall(hiredis.pack_command(command))
            # What is published after this returns is heard.
            reader = hiredis.Reader()
            reply: Any = False
            while reply is False:
                data = sock.recv(_READ_BYTES)
                if not data:
                    raise ConnectionError
                reader.feed(data)
                reply = reader.gets()
            if not isinstance(reply, list):  # Redis is still loading
                raise ConnectionError
            sock.setblocking(False)
        except OSError:
            sock.close()
            return False
        self._socket, self._reader, self._is_new = sock, reader, True
        return True

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
