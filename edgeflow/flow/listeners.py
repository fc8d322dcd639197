"""One unix socket for each instance that the runner has written down.

What it is: listening for exactly the instances in the local documents "instance", and giving on who connects.
What it is not: what is said on a connection (sessions.py), or starting and stopping instances (the runner).
What must stay true: a socket belongs to one instance, which is known by it; the folder around it holds nothing else.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from edgeflow.flow.reactor import READ, Reactor
from edgeflow.flow.sessions import InstanceSpec

log = structlog.get_logger(__name__)


class Listeners:
    """The sockets of one PoP's instances."""

    def __init__(
        self, reactor: Reactor, on_listening: Callable[[InstanceSpec], None], on_connected: Callable[[InstanceSpec, socket.socket], None],
        on_gone: Callable[[InstanceSpec], None],
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self._on_listening = on_listening
        self._on_connected = on_connected
        self._on_gone = on_gone
        self._open: dict[str, tuple[InstanceSpec, socket.socket]] = {}

    def __contains__(self, instance: str) -> bool:
        return instance in self._open

    def sync(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Listen for exactly these instances."""
        for instance in list(self._open):
            if instance not in wanted:
                self.close(instance)
        for instance, document in wanted.items():
            if instance in self._open:
                continue
            spec = InstanceSpec(
                document["namespace"], document["function"], document["revision"], instance, document["socket"]
            )
            try:
                self._listen(spec)
            except OSError as error:
                log.error("instance_socket_failed", instance=instance, socket=spec.socket, error=str(error))

    def close(self, instance: str) -> None:
        """Stop listening for one of them."""
        spec, listener = self._open.pop(instance)
        self._reactor.unregister(listener)
        listener.close()
        with contextlib.suppress(OSError):
            Path(spec.socket).unlink()
        self._on_gone(spec)

    def all(self) -> list[str]:
        """Whom it listens for."""
        return list(self._open)

    def _listen(self, spec: InstanceSpec) -> None:
        path = Path(spec.socket)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        # The folder holds nothing but this socket and only its instance sees it, under whatever user it runs.
        os.chmod(path, 0o666)
        listener.listen(4)
        listener.setblocking(False)
        self._reactor.register(listener, READ, lambda _events: self._accept(spec, listener))
        self._open[spec.instance] = (spec, listener)
        self._on_listening(spec)

    def _accept(self, spec: InstanceSpec, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        self._on_connected(spec, sock)
