"""All links of a PoP: the listener, one link per peer, the second hand, and what `link_state` says.

What it is: the one class of this package that the data process uses.
What it is not: membership. Who the peers are is told (`roster.py`), and looked at once a second.
What must stay true: what happens to one link, or to a stranger at the listener, does not touch the others; a member that left holds nothing back.
"""

import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from selectors import EVENT_READ
from typing import Any, Protocol

import structlog

from edgeflow.cluster import tls
from edgeflow.cluster.calls import Done
from edgeflow.cluster.desk import Desk
from edgeflow.cluster.link import Connection, Link, Site
from edgeflow.cluster.membership import Membership
from edgeflow.cluster.ports import Handle, Heads, LinkStore, Reactor
from edgeflow.cluster.rates import RateOf
from edgeflow.cluster.relays import Relays
from edgeflow.cluster.roster import Book, Roster
from edgeflow.cluster.standing import Stand, Standing
from edgeflow.cluster.tail import Tail
from edgeflow.cluster.upkeep import Kept, Upkeep
from edgeflow.errors import BadRequest, HasLeft, LinkRefused, Unavailable
from edgeflow.settings import PopSettings
from edgeflow.store.mailbox import Asked
from edgeflow.store.records import LogId, Receipt

log = structlog.get_logger(__name__)

TICK_S = 1.0
BEAT_S = 0.25
"""How often peers are asked where they stand."""
MAX_STRANGERS = 32
"""Accepted connections whose peer is not known yet."""


class LocalDocs(Protocol):
    """Where `link_state` goes."""

    def put_doc(self, kind: str, id: str, document: dict[str, Any], *, wake: bool = True) -> None: ...
    def delete_doc(self, kind: str, id: str) -> None: ...
    def docs(self, kind: str) -> dict[str, dict[str, Any]]: ...


class Mail(Protocol):
    """Where the control process's questions come from."""

    def take(self) -> list[Asked]: ...


class ManagedStore(LinkStore, Protocol):
    """The store as the manager needs it."""

    @property
    def local(self) -> LocalDocs: ...
    @property
    def mailbox(self) -> Mail: ...


class Links:
    """The links of this PoP. `on_released(namespace)` is called when entries or blobs from a peer may have opened gates."""

    def __init__(
        self, settings: PopSettings, store: ManagedStore, reactor: Reactor, on_released: Callable[[str], None], *,
        book: Book | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`book` has the members; without one they are those of the settings, for ever."""
        self._settings = settings
        self._store = store
        self._reactor = reactor
        self._on_released = on_released
        self._roster = Roster(settings, book)
        self.membership = Membership(
            settings.pop, settings.membership, self._roster.records, lambda: self._roster.peers(), clock
        )
        self._standing = Standing(settings.pop, self._roster.peers(), lambda ns: Stand(*store.namespace(ns).standing()))
        self._site = Site(
            settings, store, reactor, self._released, self._heads, Tail(store), self._standing, self._answer_call, self._on_pong,
            gossip=self.membership, run=secrets.token_hex(8), check_certificate=self._roster.check_certificate, clock=clock,
        )  # fmt: skip
        self._desk = Desk(settings.pop, store, self._standing, self._site.wants, self, clock)
        self._links: dict[str, Link] = {}
        self._relays = Relays()
        self._server_context: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._strangers: set[Connection] = set()
        self._timer: Handle | None = None
        self._beat_timer: Handle | None = None
        self._written: dict[tuple[str, str], dict[str, Any]] = {}
        self._upkeep = Upkeep(settings.limits, settings.pop, False)
        self._client_context: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """The port that the listener has."""
        return int(self._listener.getsockname()[1]) if self._listener else self._settings.link.port

    def start(self) -> None:
        """Listens and dials. Raises Unavailable when the address cannot be bound or a certificate file cannot be used."""
        link = self._settings.link
        try:
            self._client_context, self._server_context = tls.contexts(link)
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
        for kind in ("link_state", "member_state"):
            for id in self._store.local.docs(kind):
                self._store.local.delete_doc(kind, id)
        self._tick()
        self._beat()

    def meet(self) -> None:
        """Makes the links of members that are new, and ends those of members that left."""
        peers = self._roster.look()
        if self._client_context is None:
            return
        left = self._roster.left()
        self._site.members.update({self._settings.pop, *peers, *left})
        self._standing.set_members(peers, left)
        self._upkeep.has_peers = bool(peers)
        for peer in [peer for peer in self._links if peer not in peers]:
            link = self._links.pop(peer)
            link.stop(f"{peer} has left")
            log.info("link_removed", peer=peer)
        for peer, address in peers.items():
            known = self._links.get(peer)
            if known is not None:
                known.readdress(address)
                continue
            made = self._links[peer] = Link(self._site, peer, address, self._client_context)
            made.start()
        for kind, id in list(self._written):
            if kind == "link_state" and id not in self._links:
                self._forget(kind, id)

    def has_all(self) -> bool:
        """Whether all that the members which can be heard had written, bodies included, is readable here. Never without any of them, if there are members."""
        heard = [peer for peer, link in self._links.items() if link.is_heard]
        if not heard:
            return not self._links
        spaces = self._store.namespaces()
        complete = all(self._standing.complete_s(name, peer) is not None for name in spaces for peer in heard)
        return complete and len(self._site.wants) == 0

    def limit(self, rate_of: RateOf) -> None:
        """From now on no more than `rate_of(namespace)` bytes a second are sent of a namespace to each peer; None = no bound."""
        self._site.rate_of = rate_of

    def notify(self, namespaces: Iterable[str]) -> None:
        """Something was appended to this PoP's own logs of these namespaces."""
        namespaces = set(namespaces)
        self._standing.touch(namespaces)
        for link in self._links.values():
            link.notify(namespaces)
        for name in namespaces:
            self._desk.changed(name)

    def serve(self) -> None:
        """Takes the control process's questions and answers them, now or later."""
        while asked := self._store.mailbox.take():
            for one in asked:
                self._desk.serve(one)

    def confirm(
        self, namespace: str, receipt: Receipt, copies: int, timeout_s: float, done: Callable[[int], None]
    ) -> None:
        """Tells how many other PoPs have an entry, as soon as `copies` have it or when the time is over. Raises EdgeflowError."""
        log_id = LogId(receipt.origin, receipt.epoch)
        self._desk.confirm(namespace, log_id, receipt.seq, copies, timeout_s, done)

    # Where everybody stands

    def passed(self, namespace: str) -> Mapping[LogId, int]:
        """Per log the seq up to which every member, this PoP included, has applied it."""
        return {LogId(*log_id): seq for log_id, seq in self._standing.passed(namespace).items()}

    def floor(self, namespace: str) -> str:
        """No member gives out a version below this any more, and everything below it is applied here; "" when that is not known."""
        return self._standing.floor(namespace)

    def staleness_ms(self, namespace: str) -> int | None:
        """For how long something may have been written elsewhere that is not readable here; None = this PoP never was complete."""
        return self._standing.staleness_ms(namespace, self._site.clock())

    # What takeover needs (takeover.PeersPort)

    def state(self, pop: str) -> str:
        """The state of a PoP as this one sees it; `left` for one that is no member."""
        return self.membership.state(pop)

    def complete_s(self, namespace: str, peer: str) -> float | None:
        """As of when (own monotonic clock) all that a peer had written is applied here; None = not known."""
        return self._standing.complete_s(namespace, peer)

    # What questions need (desk.Peers)

    def peers(self) -> list[str]:
        """The other PoPs of the cluster."""
        return list(self._links)

    def call(self, peer: str, kind: str, ns: str, body: Mapping[str, Any], timeout_s: float, done: Done) -> None:
        """Asks a peer's data process; `done` is called once."""
        link = self._links.get(peer)
        if link is None:
            done(BadRequest(f"{peer[:40]!r} is not a PoP of this cluster"))
        else:
            link.call(kind, ns, body, timeout_s, done)

    def ping_all(self) -> None:
        """Asks all peers where they stand, now."""
        for link in self._links.values():
            link.beat()

    def push(self, ns: str) -> None:
        """Sends what was appended to a namespace."""
        self.notify({ns})

    def want_body(self, ns: str, digest: str, within_s: float, done: Callable[[], None]) -> None:
        """Has a body come from whichever peer has it; `done` is called when it is here, or the time is over."""
        self._desk.want(ns, digest, within_s, lambda _is_here: done())

    def sync(self, ns: str, within_s: float, done: Callable[[int | None], None]) -> None:
        """Asks all peers how far they are in a namespace; `done` is told `staleness_ms` as it is then. Raises Throttled."""
        self._desk.sync(ns, within_s, done)

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
        for timer in (self._timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
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

    def _answer_call(self, *call: Any) -> None:
        self._desk.answer_call(*call)

    def _released(self, namespace: str) -> None:
        self._standing.touch({namespace})
        self._desk.changed(namespace)
        for link in self._links.values():
            if link.relays:
                link.notify({namespace})
        self._on_released(namespace)

    def _on_pong(self) -> None:
        self._desk.heard()

    def _beat(self) -> None:
        self._beat_timer = self._reactor.call_later(BEAT_S, self._beat)
        try:
            for peer, link in self._links.items():
                link.beat()
                silent_s = link.silent_s
                if silent_s is not None:
                    self.membership.heard(peer, silent_s)
            self.membership.look()
            for pop, document in self.membership.documents().items():
                self._write("member_state", pop, document)
            self._desk.tick()
        except Exception:  # the next beat tries again; the loop goes on
            log.exception("link_beat_failed")

    def _tick(self) -> None:
        self._timer = self._reactor.call_later(TICK_S, self._tick)
        try:
            self.meet()
            self._site.tail.forget()
            heads = self._heads()
            self._standing.touch(heads)
            now_s = self._site.clock()
            for name in heads:
                self._site.wants.settle(name, self._store.namespace(name).missing_blobs(), now_s)
            self._site.wants.tick(now_s)
            for link in self._links.values():
                link.tick(heads)
            self._relay(heads, now_s)
            for name in heads:
                self._store.namespace(name).extend_gate(self._site.wants.on_their_way(name, now_s))
                self._upkeep.run(
                    name,
                    self._store.namespace(name),
                    self.acknowledged(name),
                    self.floor(name),
                    self._standing.passed(name),
                )
            for peer, document in self.states().items():
                self._write("link_state", peer, document)
            for name in heads:
                self._write("lag", name, self._lag(name, heads[name]))
        except Exception:  # the next tick tries again; the loop goes on
            log.exception("link_tick_failed")

    def _write(self, kind: str, id: str, document: dict[str, Any]) -> None:
        if self._written.get((kind, id)) != document:
            self._store.local.put_doc(kind, id, document, wake=kind in ("link_state", "member_state"))
            self._written[kind, id] = document

    def _forget(self, kind: str, id: str) -> None:
        self._store.local.delete_doc(kind, id)
        self._written.pop((kind, id), None)

    def _lag(self, name: str, heads: Mapping[LogId, int]) -> dict[str, Any]:
        """The `lag` of a namespace; see docs/links.md."""
        kept = self._upkeep.kept.get(name, Kept())
        now_s, now_ms = self._site.clock(), time.time_ns() // 1_000_000
        own = [(log_id, head) for log_id, head in heads.items() if log_id.origin == self._settings.pop]
        peers = {}
        for peer, link in self._links.items():
            cursors = link.acked.get(name, {})
            behind = sum(max(0, head - cursors.get(log_id, 0)) for log_id, head in own)
            complete_s = self._standing.complete_s(name, peer)
            peers[peer] = {
                "entries_behind": behind,
                "bytes_behind": round(behind * kept.entry_bytes),
                "held_back": name in link.held_back,
                "complete_ms": None if complete_s is None else now_ms - round((now_s - complete_s) * 1000),
            }
        return {
            "staleness_ms": self._standing.staleness_ms(name, now_s),
            "floor": self.floor(name),
            "log_bytes": kept.size_bytes,
            "log_entries": kept.length,
            "forced_out": kept.forced,
            "parked": self._store.namespace(name).parked_count(),
            "link_bytes_per_s": self._site.rate_of(name),
            "peers": peers,
        }

    def _relay(self, heads: Heads, now_s: float) -> None:
        """Where the link to a PoP is down, another one sends its logs."""

        def reach(peer: str, pop: str) -> int:
            stands = (self._standing.stand_of(peer, ns).applied for ns in heads)
            return sum(seq for stand in stands for log_id, seq in stand.items() if log_id[0] == pop)

        up = {peer: link.is_heard for peer, link in self._links.items()}
        # What members still have of one that left comes as if the link to it were down.
        up |= dict.fromkeys(set().union(*(self._standing.owed(ns) for ns in heads)), False)
        down = sorted(peer for peer, is_up in up.items() if not is_up)
        for peer, origins in self._relays.choose(up, reach, now_s).items():
            self._links[peer].relay(origins, down, heads)

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
        if link is None and peer in self._roster.left():
            raise HasLeft(f"{peer} has left this cluster")
        if link is None:
            raise LinkRefused(f"{peer!r} is not a peer of {self._settings.pop}")
        if link.dials:
            raise LinkRefused(f"{self._settings.pop} dials {peer}, not the other way: the smaller id dials")
        return link
