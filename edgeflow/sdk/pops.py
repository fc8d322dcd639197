"""The PoPs that a client knows: the address of each, its HTTP connections, and a way to cut them.

What must stay true: a token is sent to the PoP that it was given for, and to no other; what hangs can be cut from another thread.
"""

import socket
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from edgeflow.sdk.trust import trusted

_CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})


class Lines:
    """The open connections to one PoP."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def watch(self, request: httpx.Request) -> None:
        """Take note of the connection that a request makes; a hook of httpx."""
        request.extensions["trace"] = self._happened

    def cut(self) -> None:
        """Whoever waits for an answer there gets an error now; idle connections are made anew."""
        with self._lock:
            sockets = list(self._sockets)
            self._sockets.clear()
        for one in sockets:
            cut(one)

    def _happened(self, name: str, info: dict[str, Any]) -> None:
        if name in _CONNECTED:
            found = info["return_value"].get_extra_info("socket")
            if found is not None:
                with self._lock:
                    self._sockets.add(found)


def cut(one: socket.socket) -> None:
    """End a connection under whoever reads it, in whatever thread."""
    with suppress(OSError):
        # Past TLS, whose state belongs to the thread that reads.
        socket.socket.shutdown(one, socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Pop:
    """One PoP's API, as a client reaches it."""

    url: str
    http: httpx.Client
    lines: Lines = field(default_factory=Lines, compare=False)


def make_pop(url: str, token: str, timeout_s: float, transport: httpx.BaseTransport | None, *, is_watched: bool) -> Pop:
    """A PoP that is asked with its own token. `is_watched`: its connections can be cut."""
    url, lines = url.rstrip("/"), Lines()
    http = httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=timeout_s, transport=transport, trust_env=False,
        event_hooks={"request": [lines.watch] if is_watched else []}, verify=trusted(url),
    )  # fmt: skip
    return Pop(url, http, lines)
