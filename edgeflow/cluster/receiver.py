"""The receiving half of a link: entries and blobs of one peer go into the store, cursors go back.

What it is: one store call per message, and the acks that it earned.
What it is not: the gate. The store opens it; whoever releases events is told the namespace through `released`.
What must stay true: an ack names only what the store has on disk; a log is mirrored without gaps or is sent again from its cursor; what is held
of unfinished blobs is bounded; an entry that the store cannot take stops its log only.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import Ack, Blob, Entries, Message, NoHave, Page, Refuse, Rewind, Want
from edgeflow.cluster.ports import LinkStore
from edgeflow.cluster.wants import Wants
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.failpoints import hit
from edgeflow.errors import CorruptBlob, EdgeflowError, LogGap, NotFound, ProtocolError, StoreFull
from edgeflow.settings import Limits
from edgeflow.store.records import LogId

log = structlog.get_logger(__name__)

LogKey = tuple[str, LogId]
BlobKey = tuple[str, str]


@dataclass(slots=True)
class _Rewound:
    """A log that waits for its entries again: those after `seq`, which are asked for at `ask_at_s`."""

    seq: int
    ask_at_s: float
    asked: bool = False


class Receiver:
    """What one connection brings. `send` queues an answer."""

    def __init__(
        self, store: LinkStore, me: str, peer: str, limits: Limits, wants: Wants, send: Callable[[Message], None],
        members: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._members = members
        self._store = store
        self._me = me
        self._peer = peer
        self._max_blob_bytes = max(limits.value_bytes, limits.event_bytes)
        self._wants = wants
        self._send = send
        self._refused: set[BlobKey] = set()
        self._rewound: dict[LogKey, _Rewound] = {}
        self._failures: dict[LogKey, int] = {}
        self._reasons: dict[LogKey, str] = {}
        self._known = {SYSTEM_NAMESPACE}
        self._got_bytes = 0
        self._reported_bytes = 0
        self._cursors: dict[LogKey, int] = {}
        self._arrived: list[BlobKey] = []
        self.returned: set[LogKey] = set()
        """Old logs of our own whose tail the peer gives back."""
        self.released: set[str] = set()
        """Namespaces in which gates may have opened; the caller clears it."""
        self.corrupt_blobs = 0
        self.entries = 0

    def on_entries(self, message: Entries, now_s: float) -> None:
        """Mirrors them. Raises ProtocolError when they are of no member of the cluster."""
        key = (message.ns, LogId(message.origin, message.epoch))
        if message.origin not in (self._peer, self._me) and message.origin not in self._members:
            raise ProtocolError(f"{self._peer} sent entries of {message.origin!r}, which is no PoP of this cluster")
        self._got_bytes += linkproto.payload_bytes(message)
        entries = linkproto.inflated(message)
        if not entries or message.first < 1:
            raise ProtocolError("an entries message is empty or does not begin at seq 1 or later")
        handle = self._store.namespace(message.ns)
        if message.origin == self._me and key not in self.returned:
            self._cursors[key] = handle.logs().get(key[1], 0)  # the peer took it for lost, it is not
            return
        rewound = self._rewound.get(key)
        if rewound is not None:
            if not rewound.asked or message.first > rewound.seq + 1:
                return  # sent before the peer read our rewind
            del self._rewound[key]
        hit("link-receiver-before-mirror")
        try:
            self._check_namespace(message.ns)
            result = handle.mirror(key[1], message.first, entries)
        except Exception as error:  # one log that cannot be mirrored must not end the link
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            self._reasons[key] = f"log {message.ns} {message.origin}.{message.epoch} is not taken: {error}"
            log.warning(
                "link_entries_refused",
                namespace=message.ns,
                peer=self._peer,
                epoch=message.epoch,
                first=message.first,
                error=repr(error),
            )
            at_once = isinstance(error, LogGap) and failures == 0
            self._rewound[key] = _Rewound(0, now_s if at_once else now_s + min(30.0, 2.0**failures))
            return
        hit("link-receiver-mirrored")
        self._failures.pop(key, None)
        self._reasons.pop(key, None)
        if message.ns == SYSTEM_NAMESPACE:
            # It may have made namespaces known whose entries came too early.
            for other, rewound in self._rewound.items():
                if other[0] not in self._known and not rewound.asked:
                    rewound.ask_at_s = now_s
        self.entries += len(entries)
        self._cursors[key] = result.mirrored
        self.released.add(message.ns)
        if result.missing:
            missing = set(result.missing)
            coming = missing.intersection(message.coming)
            self._wants.coming(message.ns, coming, self._peer, now_s)
            begun = {digest: here for digest in coming if (here := self._wants.spools.here((message.ns, digest)))}
            if begun:
                self._send(Want(message.ns, list(begun), list(begun.values())))
            self._wants.missing(message.ns, missing, now_s)

    @property
    def trouble(self) -> str:
        """Why some log is not taken; empty when all are."""
        return next(iter(self._reasons.values()), "")

    def _check_namespace(self, ns: str) -> None:
        """Raises NotFound for a namespace that is not known here."""
        if ns not in self._known:
            if not self._store.has_namespace(ns):
                raise NotFound(f"there is no namespace {ns!r} at {self._me}")
            self._known.add(ns)

    def on_page(self, message: Page) -> None:
        """A piece of a snapshot was dealt with."""
        self._got_bytes += linkproto.payload_bytes(message)
        self.released.add(message.ns)

    def adopted(self, ns: str, heads: Mapping[LogId, int]) -> None:
        """A snapshot is whole: these logs are here up to where it says."""
        self._cursors.update({(ns, log_id): seq for log_id, seq in heads.items()})
        for key in [key for key in self._rewound if key[0] == ns]:
            del self._rewound[key]
        self.released.add(ns)

    def on_blob(self, message: Blob, now_s: float) -> None:
        """Collects chunks; stores a blob when it is whole. Raises ProtocolError when a chunk does not follow the one before."""
        self._got_bytes += len(message.data)
        key = (message.ns, message.digest)
        spools = self._wants.spools
        if message.off == 0:
            self._refused.discard(key)
        elif key in self._refused:
            return
        if spools.peer(key) not in (None, self._peer):
            self._refuse(key, "busy", f"{spools.peer(key)} is sending it")
            return
        if key not in spools:
            if message.off:
                raise ProtocolError(f"a chunk of {message.digest} at {message.off} does not follow the one before")
            if not self._admit(key, message.size, now_s):
                return
        size, here = spools.size(key), spools.here(key)
        if size != message.size or message.off > here:
            raise ProtocolError(f"a chunk of {message.digest} at {message.off} does not follow the one before")
        if len(message.data) > size - message.off or (not message.data and size):
            raise ProtocolError(f"a chunk of {message.digest} has {len(message.data)} bytes, beyond its end or none")
        self._wants.progress(key, now_s)
        self._wants.sending(self._peer, now_s)
        try:
            # What came over an earlier connection may come once more: bodies never change.
            is_whole = spools.add(key, self._peer, message.data[here - message.off :], now_s)
        except EdgeflowError as error:  # no room
            self._wants.failed(key, self._peer, now_s)
            self._refuse(key, "busy", str(error))
            return
        if is_whole:
            self._store_blob(key, now_s)

    def on_nohave(self, message: NoHave, now_s: float) -> None:
        """The peer has not got them, or no longer."""
        for digest in message.digests:
            self._wants.failed((message.ns, digest), self._peer, now_s)
            self._wants.spools.release((message.ns, digest), self._peer)

    def flush(self, now_s: float) -> None:
        """Queues the ack for what came since the last one, and rewinds whose time has come."""
        for key, rewound in self._rewound.items():
            if not rewound.asked and now_s >= rewound.ask_at_s:
                rewound.seq = self._store.namespace(key[0]).logs().get(key[1], 0)
                rewound.asked = True
                self._send(Rewind(key[0], key[1].origin, key[1].epoch, rewound.seq))
        if self._got_bytes != self._reported_bytes or self._cursors or self._arrived:
            self._send(
                Ack(self._got_bytes, [(ns, *log_id, seq) for (ns, log_id), seq in self._cursors.items()], self._arrived)
            )
            self._reported_bytes = self._got_bytes
            self._cursors = {}
            self._arrived = []

    def _admit(self, key: BlobKey, size: int, now_s: float) -> bool:
        if size > self._max_blob_bytes:
            self._wants.give_up(key, now_s)
            self._refuse(key, "too-large", f"{size} bytes, the limit here is {self._max_blob_bytes}")
            return False
        try:
            self._check_namespace(key[0])
        except NotFound as error:
            self._refuse(key, "busy", str(error))
            return False
        spools = self._wants.spools
        # The sender keeps what is active within value_bytes, so twice that is only exceeded by one that does not follow the rules.
        if not spools.has_room(self._peer, size, 2 * self._max_blob_bytes):
            self._wants.failed(key, self._peer, now_s)
            self._refuse(key, "busy", "too many unfinished blobs")
            return False
        handle = self._store.namespace(key[0])
        spools.begin(key, size, self._peer, now_s, lambda: handle.blob_writer(self._max_blob_bytes))
        return True

    def _refuse(self, key: BlobKey, code: str, reason: str) -> None:
        log.warning("link_blob_refused", namespace=key[0], digest=key[1], peer=self._peer, code=code, reason=reason)
        self._refused.add(key)
        self._send(Refuse(*key, code, reason))

    def _store_blob(self, key: BlobKey, now_s: float) -> None:
        try:
            self._wants.spools.finish(key)
        except CorruptBlob:
            self.corrupt_blobs += 1
            self._wants.missing(key[0], [key[1]], now_s)
            self._wants.failed(key, self._peer, now_s)
            log.warning("link_blob_corrupt", namespace=key[0], digest=key[1], peer=self._peer)
            return
        except StoreFull as error:
            self._wants.failed(key, self._peer, now_s)
            log.warning("link_blob_not_stored", namespace=key[0], digest=key[1], peer=self._peer, error=str(error))
            return
        hit("link-blob-stored")
        self._wants.arrived(key)
        self._arrived.append(key)
        self.released.add(key[0])
