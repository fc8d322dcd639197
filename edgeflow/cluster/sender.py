"""The sending half of a link: this PoP's own logs, and blobs, in the order and at the pace the peer can take; logs of others when it asks for them.

What it is: per log a cursor (sent, acked), per blob a transfer, and `fill`, which puts the next frames into a buffer.
What it is not: a queue of what was appended: the store is the queue, `notify` only says that there is something to read.
What must stay true: entries of a log leave in order without a gap; blobs below `redis_blob_bytes` leave before the entry that refers to them,
larger ones, and those of channels that others have priority over, after it in chunks between other entries; never more than the window is under way; one log's trouble stops that log only; what
is not kept any more is replaced by a snapshot, never passed over.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import (
    Ack,
    Blob,
    Entries,
    Message,
    NoHave,
    Offer,
    Page,
    Refuse,
    Relay,
    Rewind,
    Take,
    Want,
    encode,
)
from edgeflow.cluster.ports import Heads, LinkNamespace, LinkStore
from edgeflow.cluster.rates import RateOf, Rates
from edgeflow.cluster.snapshots import NOT_NEEDED, SILENCE_S, Outgoing
from edgeflow.cluster.tail import Item, Tail
from edgeflow.cluster.transfers import Transfers
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.failpoints import hit
from edgeflow.core.routing import NORMAL
from edgeflow.errors import LogGap, ProtocolError
from edgeflow.settings import Limits
from edgeflow.store.records import LogId

log = structlog.get_logger(__name__)

REMEMBERED_DIGESTS = 10_000
AHEAD = 10_000
"""So many bodies of a namespace may be queued before no more of its entries are read: the log runs ahead of the bodies that follow it, but not for ever."""
RETRY_S = 10.0
"""A log that cannot be sent is tried again after this long."""
BUSY_S = 1.0
"""A snapshot that the peer cannot take now is offered again after this long."""
FULL_S = 1.0
"""Entries are deflated for so long after the window was full: then the line is what is scarce."""


class _Trimmed(LogGap):
    """Entries that the peer needs are not kept here any more."""


@dataclass(slots=True)
class _Batch:
    """Entries that wait until the small blobs they refer to have gone."""

    first: int
    entries: list[bytes]
    blobs: deque[str]
    coming: list[tuple[str, int]]


@dataclass(slots=True)
class _OwnLog:
    id: LogId
    acked: int
    sent: int
    head: int = 0
    read: deque[Item] = field(default_factory=deque)
    batch: _Batch | None = None
    unacked: deque[tuple[int, float]] = field(default_factory=deque)
    """(last seq of a batch, when there was something to send): for the staleness."""
    stopped: str = ""
    """Why nothing of this log can be sent; empty when it can."""
    retry_at_s: float = 0.0


@dataclass(slots=True)
class _Space:
    name: str
    handle: LinkNamespace
    logs: dict[LogId, _OwnLog] = field(default_factory=dict)
    dirty_since_s: float | None = None
    snapshot: Outgoing | None = None
    """Instead of entries, from the offer to its end."""


class Sender:
    """What one connection still has to send to its peer.

    `cursors` are the peer's: per namespace the last seq it has of our own logs, and of other logs that are sent to it.
    """

    def __init__(
        self, store: LinkStore, tail: Tail, me: str, limits: Limits, cursors: Heads, *, peer: str = "", rate_of: RateOf = lambda _name: None,
    ) -> None:  # fmt: skip
        self._peer = peer
        self._store = store
        self._tail = tail
        self._me = me
        self._limits = limits
        self._cursors = cursors
        self._spaces: OrderedDict[str, _Space] = OrderedDict()
        self._sent_digests: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._transfers = Transfers(limits.value_bytes)
        self._rates = Rates(rate_of)
        self._now_s = 0.0
        self._relayed: dict[str, dict[str, dict[LogId, int]]] = {}
        """PoPs whose logs the peer has asked for -> its cursors by namespace."""
        self._once_relayed: set[str] = set()
        """Of these an ack or a rewind may still come, though they are not sent any more."""
        self._full_s = float("-inf")
        self.sent_bytes = 0
        self.acked_bytes = 0
        self.relayed = 0
        """Entries of others that were sent."""
        self.snapshots = 0
        """Snapshots that were sent."""
        self.saved_bytes = 0
        """What deflating has saved."""

    # What there is to send

    def notify(self, namespaces: Iterable[str], now_s: float) -> None:
        """Something was appended to these namespaces."""
        for name in namespaces:
            self._tail.changed(name)
            space = self._spaces.get(name)
            if space is None:
                self.poll({name: self._store.namespace(name).logs()}, now_s)
            elif space.dirty_since_s is None:
                space.dirty_since_s = now_s

    def poll(self, heads: Heads, now_s: float) -> None:
        """The present heads: finds new namespaces and epochs, and what a lost notification left behind."""
        for name, logs in heads.items():
            space = self._spaces.get(name)
            if space is None:
                space = self._spaces[name] = _Space(name, self._store.namespace(name))
            for log_id, head in sorted(logs.items()):
                cursors = self._cursors.get(name, {})
                relayed = self._relayed.get(log_id.origin)
                if log_id.origin != self._me and log_id not in cursors and relayed is None:
                    continue
                own = space.logs.get(log_id)
                if own is None:
                    if log_id not in cursors and relayed is not None:
                        cursors = relayed.get(name, {})
                    cursor = cursors.get(log_id, 0)
                    own = space.logs[log_id] = _OwnLog(log_id, acked=cursor, sent=cursor)
                own.head = max(own.head, head)
                if own.head > own.sent and own.retry_at_s <= now_s and space.dirty_since_s is None:
                    self._tail.changed(name)
                    space.dirty_since_s = now_s

    def relay(self, message: Relay, heads: Heads, now_s: float) -> None:
        """The peer says whose logs it wants besides ours, and how far it has them."""
        asked: dict[str, dict[str, dict[LogId, int]]] = {origin: {} for origin in message.origins if origin != self._me}
        for ns, origin, epoch, seq in message.logs:
            if origin in asked:
                asked[origin].setdefault(ns, {})[LogId(origin, epoch)] = seq
        for name, space in self._spaces.items():
            lost = self._cursors.get(name, {})
            for log_id in [log_id for log_id in space.logs if log_id.origin != self._me and log_id not in lost]:
                if self._relayed.get(log_id.origin) != asked.get(log_id.origin):
                    del space.logs[log_id]
        self._relayed = asked
        self._once_relayed.update(asked)
        self.poll(heads, now_s)

    @property
    def relays(self) -> bool:
        """Whether the peer wants logs of others."""
        return bool(self._relayed)

    @property
    def bytes_behind(self) -> int:
        """Payload bytes under way or queued, not acknowledged yet (entries that were not read yet apart)."""
        return self.sent_bytes - self.acked_bytes + self._transfers.bytes_left

    @property
    def held_back(self) -> frozenset[str]:
        """Namespaces whose rate is what holds them back just now."""
        return frozenset(self._rates.waits)

    @property
    def acked(self) -> dict[str, dict[LogId, int]]:
        """The peer's cursors as they are now."""
        known = {name: dict(logs) for name, logs in self._cursors.items()}
        for space in self._spaces.values():
            known.setdefault(space.name, {}).update({own.id: own.acked for own in space.logs.values()})
        return known

    @property
    def trouble(self) -> str:
        """Why some log is not sent; empty when all are."""
        return next((own.stopped for space in self._spaces.values() for own in space.logs.values() if own.stopped), "")

    def staleness_ms(self, now_s: float) -> int:
        """Age of the oldest thing that the peer has not acknowledged, as this side saw it; 0 when it has all."""
        since = [space.dirty_since_s for space in self._spaces.values() if space.dirty_since_s is not None]
        since += [own.unacked[0][1] for space in self._spaces.values() for own in space.logs.values() if own.unacked]
        return round((now_s - min(since)) * 1000) if since else 0

    # What the peer says

    def on_ack(self, message: Ack) -> None:
        """Moves cursors and opens the window. Raises ProtocolError for an ack of what was never sent."""
        if not self.acked_bytes <= message.bytes <= self.sent_bytes:
            raise ProtocolError(f"ack of {message.bytes} bytes, sent were {self.sent_bytes}")
        self.acked_bytes = message.bytes
        for ns, origin, epoch, seq in message.logs:
            own = self._own(ns, origin, epoch)
            if own is None:
                if origin in self._once_relayed:
                    continue
                raise ProtocolError(f"ack of log {ns} {origin}.{epoch}, which is not sent here")
            snapshot = self._spaces[ns].snapshot
            if snapshot is not None and own.id in snapshot.unacked:
                self._finish(self._spaces[ns], snapshot, own, seq)
                continue
            own.acked = max(own.acked, min(seq, own.sent))
            while own.unacked and own.unacked[0][0] <= seq:
                own.unacked.popleft()
            hit("link-sender-acked")

    def _finish(self, space: _Space, snapshot: Outgoing, own: _OwnLog, seq: int) -> None:
        """The peer has adopted a snapshot: this log goes on where it says."""
        self._place(space.name, own, seq)
        snapshot.unacked.discard(own.id)
        if not snapshot.unacked:
            space.snapshot = None
            space.dirty_since_s = snapshot.began_s
            self.snapshots += 1

    def on_rewind(self, message: Rewind, now_s: float) -> None:
        """Starts a log again at the peer's cursor. Raises ProtocolError when that lies beyond what was sent."""
        own = self._own(message.ns, message.origin, message.epoch)
        if own is None and message.origin in self._once_relayed:
            return
        if own is None or message.seq > own.sent:
            raise ProtocolError(
                f"rewind of log {message.ns} {message.origin}.{message.epoch} to {message.seq}, which was not sent"
            )
        self._place(message.ns, own, message.seq)
        self._spaces[message.ns].dirty_since_s = now_s

    def _place(self, ns: str, own: _OwnLog, seq: int) -> None:
        """The log goes on behind `seq`."""
        own.sent = own.acked = seq
        own.read.clear()
        own.unacked.clear()
        if own.batch is not None:
            for digest in (*own.batch.blobs, *(digest for digest, _ in own.batch.coming)):
                self._sent_digests.pop((ns, digest), None)
            own.batch = None

    def on_take(self, message: Take, now_s: float) -> None:
        """The peer takes the snapshot that was offered, or says why not."""
        space = self._spaces.get(message.ns)
        if space is None or space.snapshot is None:
            return
        for origin, epoch, seq in message.cursors:
            own = space.logs.get(LogId(origin, epoch))
            if own is not None:
                self._place(space.name, own, seq)
        if not message.reason:
            space.snapshot.taken()
        else:
            space.snapshot = None
            if message.reason != NOT_NEEDED:
                log.info("snapshot_not_taken", namespace=space.name, peer_says=message.reason)
                for own in space.logs.values():
                    own.retry_at_s = now_s + BUSY_S
        space.dirty_since_s = now_s

    def on_want(self, message: Want) -> list[Message]:
        """Queues what is here; returns the answer for what is not. Raises ProtocolError when the offsets do not fit."""
        handle = self._store.namespace(message.ns)
        absent = []
        if len(message.offs) != len(message.digests):
            raise ProtocolError(f"a want names {len(message.digests)} blobs and {len(message.offs)} offsets")
        for digest, off in zip(message.digests, message.offs, strict=True):
            size = handle.blob_size(digest)
            if size is None:
                absent.append(digest)
            else:
                self._transfers.add((message.ns, digest), size, off if off < size else 0, handle.wanted_rank())
        return [NoHave(message.ns, absent)] if absent else []

    def on_refuse(self, message: Refuse) -> None:
        """The peer takes no more of this blob."""
        key = (message.ns, message.digest)
        log.warning(
            "link_blob_refused", namespace=message.ns, digest=message.digest, code=message.code, reason=message.message
        )
        self._transfers.end(key)

    # What goes out next

    def fill(self, out: bytearray, budget_bytes: int, now_s: float) -> None:
        """Appends frames to `out` until it has `budget_bytes`, the window is full, or nothing is left.

        Each round takes one batch of one namespace and one chunk of one blob.
        """
        progress = True
        self._now_s = now_s
        if self._under_way >= linkproto.WINDOW_BYTES:
            self._full_s = now_s
        while progress and len(out) < budget_bytes:
            progress = False
            if self._under_way < linkproto.WINDOW_BYTES and (space := self._next_dirty()) is not None:
                self._push(space, out, now_s)
                progress = True
            if self._under_way < linkproto.CHUNK_WINDOW_BYTES and len(self._transfers) and self._push_chunk(out):
                progress = True

    @property
    def _under_way(self) -> int:
        return self.sent_bytes - self.acked_bytes

    def _next_dirty(self) -> _Space | None:
        system = self._spaces.get(SYSTEM_NAMESPACE)  # it names the others
        if system is not None and system.dirty_since_s is not None:
            return system
        for space in self._spaces.values():
            if space.dirty_since_s is not None and self._transfers.of(space.name) < AHEAD and self._may(space.name):
                self._spaces.move_to_end(space.name)
                return space
        return None

    def _may(self, namespace: str) -> bool:
        return self._rates.may(namespace, self._now_s)

    def _push(self, space: _Space, out: bytearray, now_s: float) -> None:
        """One step of a namespace: a small blob, or a batch of entries, or the finding that there is nothing left."""
        if space.snapshot is not None:
            self._push_snapshot(space, space.snapshot, out, now_s)
            return
        for own in space.logs.values():
            if own.retry_at_s > now_s:
                continue
            try:
                if own.batch is None:
                    own.batch = self._next_batch(space, own)
            except _Trimmed:
                self._offer(space, out, now_s)
                return
            except Exception as error:  # one damaged log must not end the link
                own.read.clear()
                self._stop(space, own, f"cannot be read after seq {own.sent}: {error!r}", now_s)
            if own.batch is None:
                continue
            own.stopped = ""
            if own.batch.blobs:
                self._put_whole(space, own.batch.blobs.popleft(), out)
            else:
                self._put_batch(space, own, own.batch, out, now_s)
            return
        space.dirty_since_s = None

    def _next_batch(self, space: _Space, own: _OwnLog) -> _Batch | None:
        if not own.read:
            own.read.extend(self._tail.read(space.name, own.id, own.sent))
            if not own.read:
                if own.head > own.sent and not space.handle.read_log(own.id, own.sent, count=1, max_bytes=1):
                    raise _Trimmed(f"entries {own.sent + 1}..{own.head} are no longer kept here")
                return None
            hit("link-sender-read")
        if own.read[0].seq != own.sent + 1:
            raise _Trimmed(f"entries {own.sent + 1}..{own.read[0].seq - 1} are no longer kept here")
        batch = _Batch(own.sent + 1, [], deque(), [])
        size = 0
        while own.read and len(batch.entries) < linkproto.BATCH_ENTRIES:
            raw = own.read[0].raw
            if batch.entries and size + len(raw) > linkproto.BATCH_BYTES:
                break
            batch.entries.append(raw)
            size += len(raw)
            item = own.read.popleft()
            elsewhere = space.handle.kept_elsewhere(raw, self._peer) if item.blobs else ()
            ranks = space.handle.priorities(raw) if item.blobs else None
            for ref in item.blobs:
                if ref.digest in elsewhere or not self._remember((space.name, ref.digest)):
                    continue
                rank = 0 if ranks is None else ranks.get(ref.digest, NORMAL)
                if ref.size < self._limits.redis_blob_bytes and rank == 0:
                    batch.blobs.append(ref.digest)
                    size += ref.size
                else:
                    # What follows the entry holds its own channel at the peer, and no other.
                    batch.coming.append((ref.digest, rank))
        return batch

    def _put_batch(self, space: _Space, own: _OwnLog, batch: _Batch, out: bytearray, now_s: float) -> None:
        coming = []
        for digest, rank in batch.coming:
            size = space.handle.blob_size(digest)
            if size is not None:
                self._transfers.add((space.name, digest), size, 0, rank)
                coming.append(digest)
        entries, z = batch.entries, 0
        if now_s - self._full_s < FULL_S and (small := linkproto.deflated(entries)) is not None:
            self.saved_bytes += sum(map(len, entries)) - len(small[0])
            entries, z = small, 1
        if own.id.origin in self._relayed:
            self.relayed += len(batch.entries)
        message = Entries(space.name, own.id.origin, own.id.epoch, batch.first, entries, coming, z)
        out += encode(message)
        self._count(space.name, linkproto.payload_bytes(message))
        own.sent = batch.first + len(batch.entries) - 1
        own.head = max(own.head, own.sent)
        own.unacked.append((own.sent, space.dirty_since_s if space.dirty_since_s is not None else now_s))
        own.batch = None
        space.dirty_since_s = now_s

    def _offer(self, space: _Space, out: bytearray, now_s: float) -> None:
        """Asks the peer whether it takes the values instead of what is not kept any more."""
        firsts = []
        for own in space.logs.values():
            kept = space.handle.read_log(own.id, 0, count=1, max_bytes=1)
            firsts.append((*own.id, kept[0][0] if kept else own.head + 1))
        space.snapshot = Outgoing(space.handle, space.name, now_s)
        space.dirty_since_s = None  # until it has answered
        out += encode(Offer(space.name, firsts))

    def _push_snapshot(self, space: _Space, snapshot: Outgoing, out: bytearray, now_s: float) -> None:
        if not snapshot.is_taken or snapshot.unacked:
            space.dirty_since_s = None
            if now_s - snapshot.began_s > SILENCE_S:
                space.snapshot = None
            return
        try:
            messages, is_last = snapshot.next()
            frames = [encode(message) for message in messages]
        except Exception as error:  # one namespace that cannot be read must not end the link
            space.snapshot = None
            for own in space.logs.values():
                self._stop(space, own, f"a snapshot cannot be made: {error!r}", now_s)
            return
        for message, frame in zip(messages, frames, strict=True):
            out += frame
            if isinstance(message, Page):
                self._count(space.name, linkproto.payload_bytes(message))
        if is_last:
            snapshot.unacked = set(space.logs)
        space.dirty_since_s = now_s

    def _put_whole(self, space: _Space, digest: str, out: bytearray) -> None:
        data = self._read_blob(space.name, digest, 0, self._limits.redis_blob_bytes)
        if not data:
            self._sent_digests.pop((space.name, digest), None)  # gone here; the peer will ask for it by name
            return
        for off in range(0, len(data), linkproto.CHUNK_BYTES):
            self._put_chunk(space.name, digest, len(data), off, data[off : off + linkproto.CHUNK_BYTES], out)

    def _push_chunk(self, out: bytearray) -> bool:
        """A piece of one body; whether there was one to send."""
        found = self._transfers.next(self._may)
        if found is None:
            return False
        (ns, digest), transfer = found
        length = min(linkproto.CHUNK_BYTES, transfer.size - transfer.off)
        data = self._read_blob(ns, digest, transfer.off, length) if length else b""
        if len(data) != length:
            out += encode(NoHave(ns, [digest]))
            self._transfers.end((ns, digest))
            return True
        self._put_chunk(ns, digest, transfer.size, transfer.off, data, out)
        transfer.off += length
        if transfer.off == transfer.size:
            self._transfers.end((ns, digest))
        return True

    def _read_blob(self, ns: str, digest: str, off: int, length: int) -> bytes:
        try:
            return self._store.namespace(ns).read_blob_range(digest, off, length)
        except Exception as error:  # one damaged blob must not end the link; the peer asks for it elsewhere
            log.warning("link_blob_unreadable", namespace=ns, digest=digest, error=repr(error))
            return b""

    def _put_chunk(self, ns: str, digest: str, size: int, off: int, data: bytes, out: bytearray) -> None:
        out += encode(Blob(ns, digest, size, off, data))
        self._count(ns, len(data))

    def _count(self, ns: str, size: int) -> None:
        self.sent_bytes += size
        self._rates.sent(ns, size)

    def _remember(self, key: tuple[str, str]) -> bool:
        """Whether this blob has to be sent: not when it went over this connection already."""
        if key in self._sent_digests:
            self._sent_digests.move_to_end(key)
            return False
        self._sent_digests[key] = None
        if len(self._sent_digests) > REMEMBERED_DIGESTS:
            self._sent_digests.popitem(last=False)
        return True

    def _own(self, ns: str, origin: str, epoch: int) -> _OwnLog | None:
        space = self._spaces.get(ns)
        return space.logs.get(LogId(origin, epoch)) if space else None

    def _stop(self, space: _Space, own: _OwnLog, why: str, now_s: float) -> None:
        reason = f"log {space.name} {own.id.origin}.{own.id.epoch}: {why}"
        if own.stopped != reason:
            log.error("link_log_stopped", namespace=space.name, epoch=own.id.epoch, reason=why)
        own.stopped, own.retry_at_s = reason, now_s + RETRY_S
