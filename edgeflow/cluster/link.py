"""The link to one peer: its connections, one after the other, for as long as the process lives.

What it is: dialling with backoff (or waiting to be dialled), identity, and what `link_state` says.
What it is not: the protocol (session.py) or the socket (tls.py).
What must stay true: of a pair the smaller id dials; at most one connection is in use, the newest; no failure here reaches the loop, another
link, or anything that does not cross PoPs.
"""

import random
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from edgeflow.cluster import tls
from edgeflow.cluster.calls import Answerer, Done
from edgeflow.cluster.dial import Dial
from edgeflow.cluster.measures import Measures
from edgeflow.cluster.ports import Handle, Heads, LinkStore, Reactor
from edgeflow.cluster.rates import RateOf
from edgeflow.cluster.session import CALL_ANSWERS_BYTES, Gossip, Session, last_words
from edgeflow.cluster.snapshots import Imports
from edgeflow.cluster.standing import Standing
from edgeflow.cluster.tail import Tail
from edgeflow.cluster.wants import Wants
from edgeflow.core.failpoints import hit
from edgeflow.errors import EdgeflowError, LinkRefused, Replaced, Unavailable
from edgeflow.settings import Peer, PopSettings
from edgeflow.store.records import LogId

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

log = structlog.get_logger(__name__)

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STEADY_S = 1.0
"""A connection that lasted this long resets the backoff."""
PAST_RUNS = 1000
"""Lives of a peer's process that are remembered: one that comes again after another is a second PoP of that id."""
CONTESTED_S = 30.0
"""For so long the last of two PoPs with one id keeps it, though the other one tries."""
HEARD_S = 1.0
"""Several pings long: a peer that says nothing for this long is gone round."""


@dataclass(slots=True)
class Site:
    """What all links of a PoP share."""

    settings: PopSettings
    store: LinkStore
    reactor: Reactor
    on_released: Callable[[str], None]
    heads: Callable[[], Heads]
    tail: Tail
    standing: Standing
    answerer: Answerer
    on_pong: Callable[[], None] = lambda: None
    wants: Wants = field(default_factory=Wants)
    imports: Imports = field(default_factory=Imports)
    members: set[str] = field(default_factory=set)
    """All that are or were PoPs of the cluster: of these entries are taken."""
    gossip: Gossip | None = None
    run: str = ""
    """Names this life of the process."""
    check_certificate: Callable[[str, int], None] = lambda _peer, _valid_ms: None
    """Raises Replaced for a certificate (of whom, valid from when on) that a newer PoP of that id has made void."""
    rate_of: RateOf = lambda _name: None
    """Bytes a second that may be sent of a namespace to each peer; None = no bound."""
    clock: Callable[[], float] = time.monotonic


class Connection:
    """One connection: a stream, and a session once the peer is known.

    `claim` gives the link of the PoP that the certificate names, or raises LinkRefused. `link` is set at once when this side dialled.
    """

    def __init__(self, site: Site, claim: "Callable[[str], Link]", *, link: "Link | None" = None) -> None:
        self._site = site
        self._claim = claim
        self._link = link
        self._opened_s = 0.0
        self.is_accepted = False
        self.stream: tls.TlsStream | None = None
        self.session: Session | None = None
        self.on_known: Callable[[], None] = lambda: None
        """Called when the peer is known or the connection has ended."""

    @property
    def age_s(self) -> float:
        """Since the peer's hello was accepted; 0 before."""
        return self._site.clock() - self._opened_s if self._opened_s else 0.0

    def guard(self, step: Callable[[Session], None]) -> None:
        """Runs a step of the session; what it raises ends this connection and nothing else."""
        session = self.session
        if session is None:
            return
        try:
            step(session)
        except Exception as error:
            self._fail(error)
        released, session.receiver.released = session.receiver.released, set()
        for namespace in released:
            try:
                self._site.on_released(namespace)
            except Exception:
                log.exception("link_release_failed", namespace=namespace)

    # tls.Owner

    def on_open(self, peer: str, valid_ms: int) -> None:
        self.on_known()
        try:
            link = self._link = self._claim(peer)
            self._site.check_certificate(peer, valid_ms)
            self.session = link.begin(self)
        except Exception as error:
            self._fail(error)

    def on_data(self, data: bytes) -> None:
        if self._link is not None:
            self._link.measures.received_bytes += len(data)

        def step(session: Session) -> None:
            was_open, pongs = session.is_open, session.pongs
            try:
                session.receive(data, self._site.clock())
            finally:
                if session.is_open and not was_open and self._link is not None:
                    self._opened_s = self._site.clock()
                    self._link.came_up(self, session.run)
            if session.pongs != pongs:
                self._site.on_pong()

        self.guard(step)

    def next_output(self) -> bytes:
        output = b""

        def step(session: Session) -> None:
            nonlocal output
            output = session.output(self._site.clock())

        self.guard(step)
        if self._link is not None:
            self._link.measures.sent_bytes += len(output)
        return output

    def on_closed(self, reason: str) -> None:
        self.on_known()
        self._retire()
        if self._link is not None:
            self._link.lost(self, reason)
        else:
            log.warning("link_not_accepted", reason=reason)

    def _fail(self, error: Exception) -> None:
        link = self._link
        if link is None or link.last_error != str(
            error
        ):  # a peer that keeps coming with the same trouble is logged once
            log.warning(
                "link_ended", peer=link.peer if link else None, reason=str(error), exc_info=None if isinstance(error, EdgeflowError) else error
            )  # fmt: skip
        if link is not None:
            link.last_error = str(error)
        self._retire()
        if self.stream is not None:
            self.stream.end(last_words(error))

    def _retire(self) -> None:
        session, self.session = self.session, None
        if session is not None and session.sender is not None and self._link is not None:
            self._link.acked = session.sender.acked
            self._link.relayed += session.sender.relayed
            self._link.snapshots += session.sender.snapshots
            self._link.saved_bytes += session.sender.saved_bytes
        if session is not None:
            session.calls.close()


class Link:
    """The link to `peer`."""

    def __init__(self, site: Site, peer: str, address: Peer, client_context: ssl.SSLContext) -> None:
        self._site = site
        self._address = address
        self._context = client_context
        self._connection: Connection | None = None
        self._handshake: Connection | None = None
        self._dial: Dial | None = None
        self._timer: Handle | None = None
        self._failures = 0
        self._is_stopped = False
        self._flush_planned = False
        self.acked: dict[str, dict[LogId, int]] = {}
        """How far the peer has each of our own logs, as far as is known here; kept while it is away."""
        self._behind_since_s: float | None = None
        self._entries_behind = 0
        self.peer = peer
        self.dials = site.settings.pop < peer
        self.state = "connecting" if self.dials else "down"
        self.since_ms = int(time.time() * 1000)
        self.last_error = ""
        self.relayed = self.snapshots = self.saved_bytes = 0
        self.measures = Measures()
        self._run = ""
        self._run_seen_s = self._contested_s = float("-inf")
        self._past_runs: OrderedDict[str, None] = OrderedDict()

    def start(self) -> None:
        """Begins to dial, if this side dials."""
        if self.dials and not self._is_stopped:
            self._timer = None
            self._dial = Dial(self._site.reactor, self._address, self._dialled)

    def readdress(self, address: Peer) -> None:
        """Where the peer is from the next dial on."""
        self._address = address

    def stop(self, reason: str = "this PoP stops") -> None:
        """Closes and does not come back."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._dial is not None:
            self._dial.give_up()
        for connection in (self._handshake, self._connection):
            if connection is not None and connection.stream is not None:
                connection.stream.close(reason)

    def notify(self, namespaces: Iterable[str]) -> None:
        """Something was appended to these namespaces; it is sent before the loop waits again."""
        if self._connection is not None:
            self._connection.guard(lambda session: session.notify(namespaces, self._site.clock()))
            self._plan_flush()

    def beat(self) -> None:
        """Several times a second: asks the peer where it stands."""
        if self._connection is not None:
            self._connection.guard(lambda session: session.beat(self._site.clock()))
            self._plan_flush()

    @property
    def silent_s(self) -> float | None:
        """How long ago the peer was heard; None while the link is not up."""
        session = self._connection.session if self._connection is not None else None
        return self._site.clock() - session.heard_s if session is not None and session.is_open else None

    @property
    def is_heard(self) -> bool:
        """Whether the link is up and the peer was heard just now: on a dead line it takes longer until the connection is given up."""
        silent_s = self.silent_s
        return silent_s is not None and silent_s < HEARD_S

    @property
    def relays(self) -> bool:
        """Whether the peer gets logs of others over this link."""
        session = self._connection.session if self._connection is not None else None
        return session is not None and session.sender is not None and session.sender.relays

    @property
    def held_back(self) -> frozenset[str]:
        """Namespaces that wait for their rate."""
        session = self._connection.session if self._connection is not None else None
        return session.sender.held_back if session is not None and session.sender is not None else frozenset()

    def relay(self, origins: list[str], down: list[str], heads: Heads) -> None:
        """Asks the peer for the logs of `origins`, and for no others any more."""
        if self._connection is not None:
            self._connection.guard(lambda session: session.relay(origins, down, heads))

    def call(self, kind: str, ns: str, body: Mapping[str, Any], timeout_s: float, done: Done) -> None:
        """Asks the peer's data process; `done` is called once."""
        connection = self._connection
        session = connection.session if connection is not None else None
        if connection is None or session is None or not session.is_open:
            done(Unavailable(f"the link to {self.peer} is down"))
        elif session.queued_bytes > CALL_ANSWERS_BYTES:
            done(Unavailable(f"the link to {self.peer} is busy"))
        else:
            session.calls.call(kind, ns, body, timeout_s, done, self._site.clock())
            self._plan_flush()

    def tick(self, heads: Heads) -> None:
        """Once a second, with the present heads of all logs."""
        connection = self._connection
        if connection is not None:
            connection.guard(lambda session: session.tick(heads, self._site.clock()))
            if connection.stream is not None:
                connection.stream.flush()
            if connection.session is not None and connection.session.sender is not None:
                self.acked = connection.session.sender.acked
        own = [
            (heads[ns][log_id], ns, log_id)
            for ns in heads
            for log_id in heads[ns]
            if log_id.origin == self._site.settings.pop
        ]
        self._entries_behind = sum(max(0, head - self.acked.get(ns, {}).get(log_id, 0)) for head, ns, log_id in own)
        if self._entries_behind == 0:
            self._behind_since_s = None
        elif self._behind_since_s is None:
            self._behind_since_s = self._site.clock()

    def document(self) -> dict[str, Any]:
        """The `link_state` of this peer; see docs/links.md."""
        session = self._connection.session if self._connection else None
        sender = session.sender if session else None
        now_s = self._site.clock()
        p50_ms, p99_ms = self.measures.quantiles()
        width_bytes_s = self.measures.bandwidth_bytes_s
        stale_s = now_s - self._behind_since_s if self._behind_since_s is not None else 0.0
        return {
            "state": self.state,
            "since_ms": self.since_ms,
            "rtt_ms": _two_digits(session.rtt_ms) if session and session.rtt_ms is not None else None,
            "rtt_p50_ms": _two_digits(p50_ms) if p50_ms is not None else None,
            "rtt_p99_ms": _two_digits(p99_ms) if p99_ms is not None else None,
            "bandwidth_bytes_s": _two_digits(width_bytes_s) if width_bytes_s is not None else None,
            "sent_bytes": self.measures.sent_bytes,
            "received_bytes": self.measures.received_bytes,
            "entries_behind": self._entries_behind,
            "bytes_behind": sender.bytes_behind if sender else 0,
            "staleness_ms": sender.staleness_ms(now_s) if sender else round(stale_s * 1000),
            "corrupt_blobs": session.receiver.corrupt_blobs if session else 0,
            "relayed": self.relayed + (sender.relayed if sender else 0),
            "snapshots_sent": self.snapshots + (sender.snapshots if sender else 0),
            "saved_bytes": self.saved_bytes + (sender.saved_bytes if sender else 0),
            "last_error": (sender.trouble if sender else "")
            or (session.receiver.trouble if session else "")
            or self.last_error,
        }

    # What connections report

    def begin(self, connection: Connection) -> Session:
        """A connection whose peer is known takes over; the one before it is closed first, so that cursors are read after its last entry."""
        if self._is_stopped:
            raise LinkRefused("this PoP stops")
        if self.is_heard and self._site.clock() - self._contested_s < CONTESTED_S:
            raise Replaced(f"two PoPs have the id {self.peer}: one of them is connected")
        before, self._connection, self._handshake = self._connection, connection, None
        if before is not None and before.stream is not None:
            before.stream.close("replaced by a newer connection")
        settings = self._site.settings
        return Session(
            self._site.store, tail=self._site.tail, me=settings.pop, cluster=settings.cluster, peer=self.peer, limits=settings.limits,
            wants=self._site.wants, standing=self._site.standing, answerer=self._site.answerer, heads=self._site.heads(), now_s=self._site.clock(),
            members=self._site.members, imports=self._site.imports, measures=self.measures, gossip=self._site.gossip, run=self._site.run,
            rate_of=lambda name: self._site.rate_of(name),
        )  # fmt: skip

    def came_up(self, connection: Connection, run: str) -> None:
        """The hello of that life of the peer's process was accepted. Raises Replaced for one that another life has followed: both are there at once."""
        now_s = self._site.clock()
        if run and run in self._past_runs and now_s - self._run_seen_s < CONTESTED_S:
            self._contested_s = now_s
            raise Replaced(f"two PoPs have the id {self.peer}: this one was here before another one that came since")
        if self._run and run != self._run:
            self._past_runs[self._run] = None
            while len(self._past_runs) > PAST_RUNS:
                self._past_runs.popitem(last=False)
        self._past_runs.pop(run, None)
        self._run, self._run_seen_s = run, now_s
        connection.is_accepted = True
        self._set_state("up")
        self.last_error = ""
        log.info("link_up", peer=self.peer)

    def lost(self, connection: Connection, reason: str) -> None:
        """A connection has ended; `reason` is empty when this side ended it and said why before."""
        if connection is self._handshake:
            self._handshake = None
        elif connection is self._connection:
            self._connection = None
            if connection.is_accepted:
                self._run_seen_s = self._site.clock()
            self._site.wants.peer_lost(self.peer, self._site.clock())
            self._site.imports.peer_lost(self.peer)
            if connection.age_s > STEADY_S:
                self._failures = 0
        else:
            return
        self._gone(reason)

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._dial = None
        if sock is None:
            self._gone(reason)
            return
        connection = self._handshake = Connection(self._site, self._expected, link=self)
        try:
            connection.stream = tls.TlsStream(
                self._site.reactor, sock, self._context, connection, server_hostname=self.peer
            )
        except OSError as error:  # it went away already
            sock.close()
            self.lost(connection, tls.reason_of(error))

    def _expected(self, peer: str) -> "Link":
        if peer != self.peer:
            raise LinkRefused(f"dialled {self.peer}, the certificate says {peer!r}")
        return self

    def _gone(self, reason: str) -> None:
        if (
            reason
            and reason != self.last_error
            and not (self.last_error and reason == "the peer closed the connection")
        ):
            self.last_error = reason
            log.warning("link_down", peer=self.peer, reason=reason)
        self._set_state("down")
        if self.dials and not self._is_stopped and self._timer is None:
            delay_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**self._failures) * _chance.uniform(0.5, 1.0)
            self._failures = min(self._failures + 1, 10)
            self._timer = self._site.reactor.call_later(delay_s, self.start)

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.since_ms = int(time.time() * 1000)

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._site.reactor.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._connection is not None and self._connection.stream is not None:
            self._connection.stream.flush()
            hit("link-sender-flushed")


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
