"""Opening a TCP connection without blocking the loop, name resolution included.

What must stay true: `on_done` is called once, from the loop, unless the dial was given up; no socket is left open.
"""

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from selectors import EVENT_WRITE

from edgeflow.cluster.ports import Handle, Reactor
from edgeflow.settings import Peer

DIAL_S = 10.0
_RESOLVE_POLL_S = 0.02


class Dial:
    """One attempt. `on_done(socket, "")` or `on_done(None, reason)` follows."""

    def __init__(self, reactor: Reactor, peer: Peer, on_done: Callable[[socket.socket | None, str], None]) -> None:
        self._reactor = reactor
        self._peer = peer
        self._on_done = on_done
        self._sock: socket.socket | None = None
        self._is_done = False
        self._timer: Handle | None = None
        self._resolved: list[tuple[int, str] | OSError] = []
        self._deadline = reactor.call_later(
            DIAL_S, lambda: self._finish(f"no answer from {peer.host}:{peer.port} within {DIAL_S:g} s")
        )
        try:
            version = ipaddress.ip_address(peer.host).version
        except ValueError:
            threading.Thread(target=self._resolve, name="link-resolve", daemon=True).start()
            self._timer = reactor.call_later(_RESOLVE_POLL_S, self._look)
        else:
            self._connect(socket.AF_INET if version == 4 else socket.AF_INET6, peer.host)

    def give_up(self) -> None:
        """Ends the attempt; `on_done` is not called any more."""
        self._on_done = lambda sock, _reason: sock.close() if sock else None
        self._finish("given up")

    def _resolve(self) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(self._peer.host, self._peer.port, type=socket.SOCK_STREAM)[0]
            self._resolved.append((int(family), str(address[0])))
        except OSError as error:
            self._resolved.append(error)

    def _look(self) -> None:
        if self._is_done:
            return
        if not self._resolved:
            self._timer = self._reactor.call_later(_RESOLVE_POLL_S, self._look)
            return
        found = self._resolved[0]
        if isinstance(found, OSError):
            self._finish(f"{self._peer.host} cannot be resolved: {found.strerror or found}")
        else:
            self._connect(*found)

    def _connect(self, family: int, host: str) -> None:
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        number = self._sock.connect_ex((host, self._peer.port))
        if number in (0, errno.EINPROGRESS):
            self._reactor.register(self._sock, EVENT_WRITE, self._on_writable)
            return
        self._sock.close()
        self._sock = None
        self._reactor.call_soon(lambda: self._finish(os.strerror(number)))

    def _on_writable(self, _events: int) -> None:
        if self._sock is not None:
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._finish(os.strerror(number) if number else "")

    def _finish(self, reason: str) -> None:
        if self._is_done:
            return
        self._is_done = True
        self._deadline.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            self._reactor.unregister(self._sock)
            if reason:
                self._sock.close()
        self._on_done(None if reason else self._sock, reason)
