"""One connection between two PoPs, without I/O: bytes in, bytes out.

What it is: the handshake, the dispatch of messages to sender and receiver, pings.
What it is not: a socket, a timer, a reconnect (link.py). Time is an argument.
What must stay true: nothing but a hello is read before the hello; a peer is who its certificate says, of this cluster, in this version, or it is
refused by name.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Protocol

import structlog

from edgeflow.cluster import linkproto
from edgeflow.cluster.calls import Answerer, Calls
from edgeflow.cluster.linkproto import (
    Ack,
    Answer,
    Blob,
    Call,
    Complete,
    Entries,
    Error,
    Hello,
    Lanes,
    Message,
    NoHave,
    Offer,
    Page,
    Ping,
    Pong,
    Refuse,
    Relay,
    Rewind,
    State,
    Take,
    Want,
    encode,
    in_lists,
)
from edgeflow.cluster.measures import Measures
from edgeflow.cluster.ports import Heads, LinkStore
from edgeflow.cluster.rates import RateOf
from edgeflow.cluster.receiver import Receiver
from edgeflow.cluster.sender import Sender
from edgeflow.cluster.snapshots import Imports, Taker
from edgeflow.cluster.standing import Stand, Standing
from edgeflow.cluster.tail import Tail
from edgeflow.cluster.wants import Wants
from edgeflow.core.wire import FrameReader
from edgeflow.errors import EdgeflowError, LinkRefused, ProtocolError
from edgeflow.settings import Limits
from edgeflow.store.records import LogId

log = structlog.get_logger(__name__)

SILENCE_S = 15.0
"""A peer that says nothing for this long is taken for gone."""
STALL_S = 3.0
"""Ticks further apart than this mean that this process itself stood still; the peer's silence is then counted anew."""
MAX_ANSWERS_BYTES = 8 * 1024 * 1024
CALL_ANSWERS_BYTES = 4 * 1024 * 1024
"""No more calls are made while so much waits to be sent in front of them."""
OUTPUT_BYTES = 256 * 1024
OPEN_PINGS = 100
"""Pings whose pong is still understood."""
RUN_CHARS = 64


class Gossip(Protocol):
    """Who was heard when (edgeflow.cluster.membership)."""

    def heard(self, pop: str, age_s: float = 0.0) -> None: ...
    def hearsay(self, pops: Iterable[str]) -> list[tuple[str, int]]: ...


class Session:
    """One connection. `heads` are the logs that are here when it begins."""

    def __init__(
        self,
        store: LinkStore,
        *,
        tail: Tail,
        me: str,
        cluster: str,
        peer: str,
        limits: Limits,
        wants: Wants,
        standing: Standing,
        answerer: Answerer,
        heads: Heads,
        now_s: float,
        members: Collection[str] = (),
        imports: Imports | None = None,
        measures: Measures | None = None,
        gossip: Gossip | None = None,
        run: str = "",
        rate_of: RateOf = lambda _name: None,
    ) -> None:
        self._store = store
        self._tail = tail
        self._rate_of = rate_of
        self._me = me
        self._cluster = cluster
        self._peer = peer
        self._limits = limits
        self._wants = wants
        self._reader = FrameReader()
        self._answers = bytearray()
        self.heard_s = self._ticked_s = now_s
        self._heads = heads
        self._early: set[str] = set()
        self.sender: Sender | None = None
        """None until the peer's hello came."""
        self._members = members
        self.receiver = Receiver(store, me, peer, limits, wants, self._answer, members)
        self._taker = Taker(store, peer, imports if imports is not None else Imports(), self._answer)
        self._relays: list[str] = []
        self._about: list[str] = []
        self.calls = Calls(peer, self._answer, answerer)
        self._standing = standing
        self._told: dict[str, int] = {}
        self._told_n = self._heard_n = 0
        self._pings: OrderedDict[int, float] = OrderedDict()
        self.pongs = 0
        self._measures = measures if measures is not None else Measures()
        self._gossip = gossip
        self.run = ""
        """The life of the peer's process that this connection is with; empty when it does not say."""
        logs = {ns: [(*log_id, seq) for log_id, seq in logs.items()] for ns, logs in heads.items()}
        self._answer(Hello(linkproto.VERSION, cluster, me, logs, linkproto.MINOR, run))

    @property
    def is_open(self) -> bool:
        """Whether the peer's hello was accepted."""
        return self.sender is not None

    @property
    def rtt_ms(self) -> float | None:
        """Smoothed round-trip time; None before the first."""
        return self._measures.rtt_ms

    @property
    def queued_bytes(self) -> int:
        """What waits to be sent in front of anything new."""
        return len(self._answers)

    def receive(self, data: bytes, now_s: float) -> None:
        """Deals with what came. Raises EdgeflowError when the connection must end."""
        self.heard_s = now_s
        for frame in self._reader.feed(data):
            self._dispatch(linkproto.decode(frame), now_s)
        if self.is_open:
            self.receiver.flush(now_s)
            self._ask(now_s)

    def output(self, now_s: float) -> bytes:
        """The next bytes to send; empty when there is nothing, or the window is full."""
        out = self._answers
        self._answers = bytearray()
        if self.sender is not None:
            self.sender.fill(out, OUTPUT_BYTES, now_s)
        return bytes(out)

    def notify(self, namespaces: Iterable[str], now_s: float) -> None:
        """Something was appended to these namespaces."""
        if self.sender is not None:
            self.sender.notify(namespaces, now_s)
        else:
            self._early.update(namespaces)

    def ping(self, now_s: float) -> None:
        """Asks the peer where it stands now."""
        if self.sender is not None:
            at = int(now_s * 1e6)
            self._pings[at] = now_s
            if len(self._pings) > OPEN_PINGS:
                self._pings.popitem(last=False)
            self._answer(Ping(at, self._about))

    def relay(self, origins: list[str], down: list[str], heads: Heads) -> None:
        """Of all PoPs to which the link is `down`, the peer shall send the logs of `origins`."""
        self._about = down
        if self.sender is not None and origins != self._relays:
            self._relays = origins
            logs = [
                (ns, *log_id, seq)
                for ns, logs in heads.items()
                for log_id, seq in logs.items()
                if log_id.origin in origins
            ]
            self._answer(Relay(origins, logs))

    def beat(self, now_s: float) -> None:
        """Several times a second."""
        self.ping(now_s)
        self.calls.expire(now_s)

    def tick(self, heads: Heads, now_s: float) -> None:
        """Once a second, with the present heads. Raises LinkRefused when the peer has been silent for too long."""
        if now_s - self._ticked_s > STALL_S:
            self.heard_s = now_s
        self._ticked_s = now_s
        if now_s - self.heard_s > SILENCE_S:
            raise LinkRefused(f"{self._peer} said nothing for {SILENCE_S:g} s")
        if self.sender is not None:
            self._measures.second(now_s, busy=self.sender.bytes_behind > 0)
            self.sender.poll(heads, now_s)
            self.receiver.flush(now_s)
            self._ask(now_s)

    def _dispatch(self, message: Message, now_s: float) -> None:
        if isinstance(message, Error):
            raise LinkRefused(f"{self._peer} closes: {message.code}: {message.message}")
        sender = self.sender
        if sender is None:
            if not isinstance(message, Hello):
                raise ProtocolError(f"{type(message).__name__.lower()} before hello")
            self._greet(message, now_s)
            return
        match message:
            case Entries():
                self.receiver.on_entries(message, now_s)
            case Blob():
                self.receiver.on_blob(message, now_s)
            case Ack():
                acked_bytes = sender.acked_bytes
                sender.on_ack(message)
                self._measures.acknowledged(sender.acked_bytes - acked_bytes)
            case Want():
                for answer in sender.on_want(message):
                    self._answer(answer)
            case NoHave():
                self.receiver.on_nohave(message, now_s)
            case Refuse():
                sender.on_refuse(message)
            case Rewind():
                sender.on_rewind(message, now_s)
            case Relay():
                sender.relay(message, {ns: self._store.namespace(ns).logs() for ns in self._store.namespaces()}, now_s)
            case Offer():
                self._taker.on_offer(message, now_s)
            case Take():
                sender.on_take(message, now_s)
            case Page():
                self._taker.on_page(message, now_s)
                self.receiver.on_page(message)
            case Lanes():
                self._taker.on_lanes(message)
            case Complete():
                self.receiver.adopted(message.ns, self._taker.on_complete(message))
            case State():
                self._hear(message)
            case Call():
                self.calls.on_call(message, now_s)
            case Answer():
                self.calls.on_answer(message)
            case Ping():
                self._tell()
                heard = tuple(self._gossip.hearsay(message.about)) if self._gossip is not None else ()
                self._answer(Pong(message.at, self._told_n, self._standing.ages(message.about, now_s), heard))
            case Pong():
                self._on_pong(message, now_s)
            case Hello():
                raise ProtocolError("a second hello")

    def _greet(self, hello: Hello, now_s: float) -> None:
        if hello.v != linkproto.VERSION:
            raise LinkRefused(
                f"{self._peer} speaks link version {hello.v}, this PoP speaks {linkproto.VERSION}",
                hint="Bring both PoPs to neighbouring versions of edgeflow: those speak the same link version.",
            )
        if hello.cluster != self._cluster:
            raise LinkRefused(f"{self._peer} belongs to cluster {hello.cluster!r}, this PoP to {self._cluster!r}")
        if hello.pop != self._peer:
            raise LinkRefused(f"the certificate says {self._peer!r}, the hello says {hello.pop!r}")
        self.run = hello.run[:RUN_CHARS]
        self.sender = Sender(
            self._store,
            self._tail,
            self._me,
            self._limits,
            self._compare(hello),
            peer=self._peer,
            rate_of=self._rate_of,
        )
        self.sender.poll(self._heads, now_s)
        self.sender.notify(self._early, now_s)
        self._heads, self._early = {}, set()
        self._tell()
        self.ping(now_s)

    def _tell(self) -> None:
        """Where this PoP stands, as far as that is news to the peer."""
        news = self._standing.news(self._told)
        if news:
            self._told_n += 1
            spaces = {
                ns: (stand.floor, [(origin, epoch, seq) for (origin, epoch), seq in stand.applied.items()])
                for ns, stand in news.items()
            }
            self._answer(State(self._told_n, spaces))

    def _hear(self, message: State) -> None:
        if message.n != self._heard_n + 1:
            raise ProtocolError(f"{self._peer} sends state {message.n} after {self._heard_n}")
        self._heard_n = message.n
        for ns, (floor, applied) in message.spaces.items():
            self._standing.heard(
                self._peer, ns, Stand(floor, {LogId(origin, epoch): seq for origin, epoch, seq in applied})
            )

    def _on_pong(self, message: Pong, now_s: float) -> None:
        asked_s = self._pings.pop(message.at, None)
        if asked_s is None:
            return  # too old, or never sent
        self._measure(now_s - asked_s)
        self.pongs += 1
        if self._gossip is not None:
            for pop, age_ms in message.heard:
                if pop in self._about:
                    self._gossip.heard(pop, now_s - asked_s + age_ms / 1000)
        if message.n == self._heard_n:
            self._standing.answered(self._peer, asked_s)
            for pop, ns, age_ms in message.ages:
                if pop in self._about:
                    self._standing.relayed(self._peer, pop, ns, asked_s - age_ms / 1000)

    def _compare(self, hello: Hello) -> Heads:
        """The peer's cursors of the logs to send: our own, and those of the peer itself of which it has lost the tail.

        Where the peer has more of our own log than this store, that log's epoch is over and the peer gives the tail back.
        """
        cursors: dict[str, dict[LogId, int]] = {}
        for ns in {*hello.logs, *self._heads}:
            here = self._heads.get(ns, {})
            there = {LogId(origin, epoch): seq for origin, epoch, seq in hello.logs.get(ns, [])}
            cursors[ns] = {log_id: seq for log_id, seq in there.items() if log_id.origin == self._me}
            for log_id, seq in cursors[ns].items():
                # A namespace that is not listed here yet has no heads in `here`, so the store itself is asked before an epoch ends.
                if seq > here.get(log_id, 0) and seq > (have := self._store.namespace(ns).logs().get(log_id, 0)):
                    log.warning(
                        "link_tail_lost", namespace=ns, epoch=log_id.epoch, here=have, peer=self._peer, there=seq
                    )
                    self._store.tail_lost(ns, log_id.epoch, seq)
                    self.receiver.returned.add((ns, log_id))
            cursors[ns].update({
                log_id: there.get(log_id, 0) for log_id, seq in here.items() if log_id.origin == self._peer and seq > there.get(log_id, 0)
            })  # fmt: skip
        return cursors

    def _ask(self, now_s: float) -> None:
        for ns, digests in self._wants.take(self._peer, now_s).items():
            for some in in_lists(digests):
                self._answer(Want(ns, some, [self._wants.spools.here((ns, digest)) for digest in some]))

    def _measure(self, rtt_s: float) -> None:
        if 0 <= rtt_s < SILENCE_S:
            self._measures.round_trip(rtt_s * 1000)

    def _answer(self, message: Message) -> None:
        self._answers += encode(message)
        if len(self._answers) > MAX_ANSWERS_BYTES:
            raise ProtocolError(f"{self._peer} asks without reading the answers")


def last_words(error: Exception) -> bytes:
    """The frame that tells a peer why the connection ends."""
    if isinstance(error, EdgeflowError):
        return encode(Error(error.code, str(error)[:1000]))
    return encode(Error("internal", "an internal error; see the log of that PoP"))
