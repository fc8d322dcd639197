"""Snapshots: the values of a namespace instead of log entries that are not kept any more.

What it is: both ends of it over one connection, as far as they are not the window: what is offered, taken, and how far it is.
What it is not: what a page holds, or how it merges into what is here (the store).
What must stay true: what a snapshot holds is adopted when all of its pages are in, so that one that is cut off leaves nothing half done: it
starts again from its beginning; of a namespace one is taken at a time; events in between are reported as gaps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack
import structlog

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import Complete, Lanes, Message, Offer, Page, Take
from edgeflow.cluster.ports import LinkNamespace, LinkStore
from edgeflow.errors import ProtocolError
from edgeflow.store.records import LogId

log = structlog.get_logger(__name__)

PAGE_KEYS = 1000
SILENCE_S = 60.0
"""A snapshot of which nothing has come for this long gives way to another."""
NOT_NEEDED = "not-needed"
BUSY = "busy"
LANES = 1000
"""Lanes per message."""


class Outgoing:
    """A snapshot that is being sent."""

    def __init__(self, handle: LinkNamespace, ns: str, now_s: float) -> None:
        self._handle = handle
        self._ns = ns
        self._after = ""
        self.began_s = now_s
        self.is_taken = False
        self.vector: dict[LogId, int] = {}
        self.unacked: set[LogId] = set()
        """All of it was sent; the peer has not said yet of these logs that it has adopted them."""

    def taken(self) -> None:
        """The peer said yes: what it gets counts from now."""
        self.is_taken = True
        self.vector = {LogId(*log_id): seq for log_id, seq in self._handle.applied().items()}

    def next(self) -> tuple[list[Message], bool]:
        """The next messages, and whether they are the last."""
        items, last = self._handle.export_page(self._after, PAGE_KEYS)
        messages: list[Message] = [Page(self._ns, self._after, last or "", msgpack.packb(items, use_bin_type=True))]
        self._after = last or ""
        if last is not None:
            return messages, False
        # What was released behind the vector is told by the log.
        lanes = [
            (origin, epoch, channel, seq) for (origin, epoch), channel, seq in self._handle.lanes()
            if seq <= self.vector.get(LogId(origin, epoch), 0)
        ]  # fmt: skip
        messages += [Lanes(self._ns, lanes[from_ : from_ + LANES]) for from_ in range(0, len(lanes), LANES)]
        messages.append(Complete(self._ns, [(*log_id, seq) for log_id, seq in self.vector.items()]))
        return messages, True


@dataclass(slots=True)
class _Incoming:
    peer: str
    at_s: float
    firsts: list[LogId]
    after: str = ""
    is_whole: bool = False
    lanes: list[tuple[str, int, str, int]] = field(default_factory=list)


class Imports:
    """The snapshots that are being taken at this PoP, by namespace; shared by its links."""

    def __init__(self) -> None:
        self.spaces: dict[str, _Incoming] = {}
        self.taken = 0

    def peer_lost(self, peer: str) -> None:
        """The link to `peer` is down: what it was sending starts again, from whomever."""
        for ns in [ns for ns, incoming in self.spaces.items() if incoming.peer == peer]:
            del self.spaces[ns]


class Taker:
    """What one connection brings of snapshots. `send` queues an answer."""

    def __init__(self, store: LinkStore, peer: str, imports: Imports, send: Callable[[Message], None]) -> None:
        self._store = store
        self._peer = peer
        self._imports = imports
        self._send = send

    def on_offer(self, message: Offer, now_s: float) -> None:
        """Says whether it is needed; another one of the same namespace may be under way."""
        if not self._store.has_namespace(message.ns):
            self._send(Take(message.ns, f"there is no namespace {message.ns!r} here", []))
            return
        logs = [(LogId(origin, epoch), first) for origin, epoch, first in message.firsts]
        heads = self._store.namespace(message.ns).logs()
        other = self._imports.spaces.get(message.ns)
        if all(first <= heads.get(log_id, 0) + 1 for log_id, first in logs):
            reason = NOT_NEEDED
        elif other is not None and other.peer != self._peer and now_s - other.at_s < SILENCE_S:
            reason = BUSY
        else:
            reason = ""
            self._imports.spaces[message.ns] = _Incoming(self._peer, now_s, [log_id for log_id, _ in logs])
            log.info("snapshot_begins", namespace=message.ns, peer=self._peer)
        self._send(Take(message.ns, reason, [(*log_id, heads.get(log_id, 0)) for log_id, _ in logs]))

    def on_page(self, message: Page, now_s: float) -> None:
        """Merges it. Raises ProtocolError when it is not the next one."""
        incoming = self._incoming(message.ns)
        if incoming is None:
            return
        if message.after != incoming.after or incoming.is_whole or (message.last and message.last <= message.after):
            raise ProtocolError(
                f"a page behind {message.after!r} of a snapshot of {message.ns} does not follow the one before"
            )
        incoming.at_s = now_s
        try:
            items = msgpack.unpackb(message.items, raw=False, strict_map_key=False)
            if not isinstance(items, list):
                raise ValueError("a page is not a list")
            self._store.namespace(message.ns).import_page(message.after, message.last or None, items)
        except Exception as error:  # one namespace that cannot be taken must not end the link
            self._give_up(message.ns, error)
            return
        incoming.after, incoming.is_whole = message.last, not message.last

    def on_lanes(self, message: Lanes) -> None:
        """Kept until the end."""
        incoming = self._incoming(message.ns)
        if incoming is not None:
            incoming.lanes += message.lanes

    def on_complete(self, message: Complete) -> dict[LogId, int]:
        """Adopts it; returns how far the logs are here that it was offered for. Raises ProtocolError when pages are missing."""
        incoming = self._incoming(message.ns)
        if incoming is None:
            return {}
        if not incoming.is_whole:
            raise ProtocolError(f"a snapshot of {message.ns} ends before its last page")
        handle = self._store.namespace(message.ns)
        try:
            handle.adopt(
                {LogId(origin, epoch): seq for origin, epoch, seq in message.cursors},
                [(LogId(origin, epoch), channel, seq) for origin, epoch, channel, seq in incoming.lanes],
            )
        except Exception as error:
            self._give_up(message.ns, error)
            return {}
        del self._imports.spaces[message.ns]
        self._imports.taken += 1
        log.info("snapshot_taken", namespace=message.ns, peer=self._peer)
        heads = handle.logs()
        return {log_id: heads.get(log_id, 0) for log_id in incoming.firsts}

    def _incoming(self, ns: str) -> _Incoming | None:
        incoming = self._imports.spaces.get(ns)
        return incoming if incoming is not None and incoming.peer == self._peer else None

    def _give_up(self, ns: str, error: Exception) -> None:
        log.warning("snapshot_refused", namespace=ns, peer=self._peer, error=repr(error))
        del self._imports.spaces[ns]
        self._send(Take(ns, f"cannot be taken: {error!r}"[: linkproto.REASON_CHARS], []))
