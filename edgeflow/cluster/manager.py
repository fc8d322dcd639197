"""All links of a PoP: the listener, one link per peer, the second hand, and what `link_state` says.

What it is: the one class of this package that the data process uses.
What it is not: membership. Peers come from the settings.
What must stay true: what happens to one link, or to a stranger at the listener, does not touch the others.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from selectors import EVENT_READ
from typing import Any, Protocol

import structlog

from edgeflow.cluster import tls
from edgeflow.cluster.link import Connection, Link, Site
from edgeflow.cluster.ports import Handle, Heads, LinkStore, Reactor
from edgeflow.cluster.tail import Tail
from edgeflow.errors import LinkRefused, Unavailable
from edgeflow.settings import PopSettings
from edgeflow.store.records import LogId

log = structlog.get_logger(__name__)

TICK_S = 1.0
MAX_STRANGERS = 32
"""Accepted connections whose peer is not known yet."""


class LocalDocs(Protocol):
    """Where `link_state` goes."""

    def put_doc(self, kind: str, id: str, document: dict[str, Any]) -> None: ...
    def delete_doc(self, kind: str, id: str) -> None: ...
    def docs(self, kind: str) -> dict[str, dict[str, Any]]: ...


class ManagedStore(LinkStore, Protocol):
    """The store as the manager needs it."""

    @property
    def local(self) -> LocalDocs: ...


class Links:
    """The links of this PoP. `on_released(namespace)` is called when entries or blobs from a peer may have opened gates."""

    def __init__(
        self, settings: PopSettings, store: ManagedStore, reactor: Reactor, on_released: Callable[[str], None], *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._store = store
        self._reactor = reactor
        self._site = Site(settings, store, reactor, on_released, self._heads, Tail(store), clock=clock)
        self._links: dict[str, Link] = {}
        self._server_context: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._strangers: set[Connection] = set()
        self._timer: Handle | None = None
        self._written: dict[str, dict[str, Any]] = {}

    @property
    def port(self) -> int:
        """The port that the listener has."""
        return int(self._listener.getsockname()[1]) if self._listener else self._settings.link.port

    def start(self) -> None:
        """Listens and dials. Raises Unavailable when the address cannot be bound or a certificate file cannot be used."""
        link = self._settings.link
        try:
            client_context, self._server_context = tls.contexts(link)
        except OSError as error:
            raise Unavailable(
                f"the link certificates cannot be used ({link.ca}, {link.cert}, {link.key}): {error}"
            ) from error
        try:
            self._listener = socket.create_server(
                (link.host, link.port), family=socket.AF_INET6 if ":" in link.host else socket.AF_INET
            )
        except OSError as error:
            raise Unavailable(f"cannot listen for links on {link.host}:{link.port}: {error.strerror}") from error
        self._listener.setblocking(False)
        self._reactor.register(self._listener, EVENT_READ, self._accept)
        for peer, address in link.peers.items():
            if peer == self._settings.pop:
                continue
            self._links[peer] = Link(self._site, peer, address, client_context)
        for gone in set(self._store.local.docs("link_state")) - set(self._links):
            self._store.local.delete_doc("link_state", gone)
        for one in self._links.values():
            one.start()
        self._tick()

    def notify(self, namespaces: Iterable[str]) -> None:
        """Something was appended to this PoP's own logs of these namespaces."""
        namespaces = set(namespaces)
        for link in self._links.values():
            link.notify(namespaces)

    def states(self) -> dict[str, dict[str, Any]]:
        """`link_state` per peer, as of now."""
        return {peer: link.document() for peer, link in self._links.items()}

    def acknowledged(self, namespace: str) -> dict[LogId, int]:
        """Per own log of a namespace: the seq that every peer has on disk. What lies beyond must be kept; a log that is not named, whole."""
        cursors = [link.acked.get(namespace, {}) for link in self._links.values()]
        known = set(cursors[0]).intersection(*cursors[1:]) if cursors else set()
        return {
            log_id: min(cursor[log_id] for cursor in cursors) for log_id in known if log_id.origin == self._settings.pop
        }

    def stop(self) -> None:
        """Closes everything. What was not acknowledged is sent at the next start."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._reactor.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for stranger in list(self._strangers):
            if stranger.stream is not None:
                stranger.stream.close("this PoP stops")
        for link in self._links.values():
            link.stop()

    def _heads(self) -> Heads:
        return {name: self._store.namespace(name).logs() for name in self._store.namespaces()}

    def _tick(self) -> None:
        self._timer = self._reactor.call_later(TICK_S, self._tick)
        try:
            self._site.tail.forget()
            heads = self._heads()
            now_s = self._site.clock()
            for name in heads:
                self._site.wants.settle(name, self._store.namespace(name).missing_blobs(), now_s)
            self._site.wants.tick(now_s)
            for link in self._links.values():
                link.tick(heads)
            for peer, document in self.states().items():
                if self._written.get(peer) != document:
                    self._store.local.put_doc("link_state", peer, document)
                    self._written[peer] = document
        except Exception:  # the next tick tries again; the loop goes on
            log.exception("link_tick_failed")

    def _accept(self, _events: int) -> None:
        listener = self._listener
        if listener is None or self._server_context is None:
            return
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors, for one: leave the listener alone for a moment
            log.error("link_accept_failed", error=str(error))
            self._reactor.unregister(listener)
            self._reactor.call_later(TICK_S, self._listen_again)
            return
        if len(self._strangers) >= MAX_STRANGERS:
            log.warning("link_accept_refused", address=address[0], reason="too many handshakes under way")
            sock.close()
            return
        connection = Connection(self._site, self._link_of)
        self._strangers.add(connection)
        connection.on_known = lambda: self._strangers.discard(connection)
        try:
            connection.stream = tls.TlsStream(
                self._reactor, sock, self._server_context, connection, server_hostname=None
            )
        except OSError as error:  # it went away already
            self._strangers.discard(connection)
            sock.close()
            log.warning("link_not_accepted", reason=tls.reason_of(error))

    def _listen_again(self) -> None:
        if self._listener is not None:
            self._reactor.register(self._listener, EVENT_READ, self._accept)

    def _link_of(self, peer: str) -> Link:
        link = self._links.get(peer)
        if link is None:
            raise LinkRefused(f"{peer!r} is not a peer of {self._settings.pop}")
        if link.dials:
            raise LinkRefused(f"{self._settings.pop} dials {peer}, not the other way: the smaller id dials")
        return link
