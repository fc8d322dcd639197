"""A store in memory that keeps the promises of the replication interface, and a wire between two sessions."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from edgeflow.cluster.calls import Body, Done
from edgeflow.cluster.linkproto import Call
from edgeflow.cluster.session import Session
from edgeflow.cluster.snapshots import Imports
from edgeflow.cluster.standing import Stand, Standing
from edgeflow.cluster.tail import Tail
from edgeflow.cluster.wants import Wants
from edgeflow.core.events import BlobRef
from edgeflow.errors import CorruptBlob, CorruptEntry, LogGap, NotFound
from edgeflow.settings import Limits
from edgeflow.store.records import LogId, MirrorResult
from edgeflow.store.replica import Trimmed

MEMBERS = ("a", "b", "c", "d", "e")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class MemoryNamespace:
    """Entries are msgpack `[crc-like text, payload, [[digest, size], ...]]`."""

    def __init__(self, pop: str) -> None:
        self.pop = pop
        self.entries: dict[LogId, list[bytes]] = {}
        self.first: dict[LogId, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.missing: set[str] = set()
        self.history: dict[tuple[LogId, int], bytes] = {}
        """The values of this namespace: all entries that were ever merged, however they came."""
        self.gaps: list[tuple[LogId, str, int]] = []
        self.pages = 0
        self.fails_at_page = 0
        self.mirror_calls = 0
        self.floor = ""
        self.elsewhere: dict[str, set[str]] = {}
        self.ranks: dict[str, int] | None = None
        """How urgent bodies are, by digest."""
        """Per PoP: digests that it does not keep."""
        self.events: list[str] = []
        """What happened, in order: "entry <n>" and "blob <digest>"."""

    def append(self, payload: bytes, blobs: Sequence[bytes] = (), *, epoch: int = 1) -> bytes:
        refs = []
        for data in blobs:
            self.blobs[digest_of(data)] = data
            refs.append([digest_of(data), len(data)])
        raw: bytes = msgpack.packb([hashlib.sha1(payload).hexdigest(), payload, refs])
        log = LogId(self.pop, epoch)
        self.entries.setdefault(log, []).append(raw)
        self.history[log, self.logs()[log]] = raw
        return raw

    def trim(self, needed: Mapping[LogId, int], max_bytes: int, keep_from_ms: int) -> Trimmed:
        return Trimmed(0, 0, False, 0, 0)

    def collect(self, bound_version: str, passed: Mapping[LogId, int]) -> int:
        return 0

    def parked_count(self) -> int:
        return 0

    def drop(self, log: LogId, upto: int) -> None:
        """Entries up to `upto` are not kept any more."""
        first = self.first.get(log, 1)
        del self.entries[log][: max(0, upto + 1 - first)]
        self.first[log] = max(first, upto + 1)

    def export_page(self, after_key: str, limit: int) -> tuple[list[Any], str | None]:
        keys = {f"{log.origin}:{log.epoch}:{seq:06d}": (log, seq) for log, seq in self.history}
        names = sorted(name for name in keys if name > after_key)
        page = names[: min(limit, 10)]
        items = [[*keys[name][0], keys[name][1], self.history[keys[name]]] for name in page]
        return items, None if len(page) == len(names) else page[-1]

    def import_page(self, after_key: str, last_key: str | None, items: list[Any]) -> None:
        self.pages += 1
        if self.pages == self.fails_at_page:
            raise CorruptEntry("a page that cannot be taken")
        for origin, epoch, seq, raw in items:
            self.history[LogId(origin, epoch), seq] = raw
            self.missing.update(ref.digest for ref in self.entry_blobs(raw) if ref.digest not in self.blobs)

    def lanes(self) -> list[tuple[LogId, str, int]]:
        return [(log, "ns/c", seq) for log, seq in self.logs().items()]

    def adopt(self, vector: Mapping[LogId, int], lanes: Sequence[tuple[LogId, str, int]]) -> None:
        heads = self.logs()
        self.gaps += [lane for lane in lanes if lane[2] > heads.get(lane[0], 0)]
        for log, seq in vector.items():
            if seq > heads.get(log, 0):
                self.entries[log] = []
                self.first[log] = seq + 1

    def applied(self) -> dict[LogId, int]:
        return self.standing()[1]

    def logs(self) -> dict[LogId, int]:
        return {log: self.first.get(log, 1) + len(entries) - 1 for log, entries in self.entries.items()}

    def standing(self) -> tuple[str, dict[LogId, int]]:
        """All of the own logs, and of others what stands in front of the first entry whose blobs are not all here."""
        applied = {}
        for log, entries in self.entries.items():
            whole = entries if log.origin == self.pop else itertools.takewhile(self._is_whole, entries)
            applied[log] = self.first.get(log, 1) - 1 + sum(1 for _ in whole)
        return self.floor, applied

    def _is_whole(self, raw: bytes) -> bool:
        return all(ref.digest in self.blobs for ref in self.entry_blobs(raw))

    def read_log(self, log: LogId, after: int, *, count: int, max_bytes: int) -> list[tuple[int, bytes]]:
        first = self.first.get(log, 1)
        found: list[tuple[int, bytes]] = []
        size = 0
        for seq, raw in enumerate(self.entries.get(log, [])[max(0, after - first + 1) :], max(after + 1, first)):
            size += len(raw)
            if len(found) == count or (found and size > max_bytes):
                break
            found.append((seq, raw))
        return found

    def entry_blobs(self, raw: bytes) -> list[BlobRef]:
        try:
            return [BlobRef(digest, size) for digest, size in msgpack.unpackb(raw)[2]]
        except Exception:
            raise CorruptEntry("not an entry") from None

    def mirror(self, log: LogId, first: int, entries: Sequence[bytes]) -> MirrorResult:
        self.mirror_calls += 1
        for raw in entries:
            try:
                check, payload, _ = msgpack.unpackb(raw)
            except Exception:
                raise CorruptEntry("not an entry") from None
            if hashlib.sha1(payload).hexdigest() != check:
                raise CorruptEntry("checksum")
        have = self.entries.setdefault(log, [])
        head = self.logs()[log]
        if first > head + 1:
            raise LogGap(f"have {head}, got {first}")
        missing: list[str] = []
        for raw in entries[head - first + 1 :]:
            have.append(raw)
            head += 1
            self.history[log, head] = raw
            self.events.append(f"entry {head}")
            absent = [ref.digest for ref in self.entry_blobs(raw) if ref.digest not in self.blobs]
            missing += absent
            self.missing.update(absent)
        return MirrorResult(head, missing)

    def missing_blobs(self) -> list[str]:
        return sorted(self.missing)

    def add_blob(self, digest: str, data: bytes) -> None:
        if digest_of(data) != digest:
            raise CorruptBlob(digest)
        self.blobs[digest] = data
        self.missing.discard(digest)
        self.events.append(f"blob {digest}")

    def blob_writer(self, limit_bytes: int | None = None) -> "MemoryWriter":
        return MemoryWriter(self)

    def keep_blobs(self, digests: Sequence[str]) -> list[str]:
        return [digest for digest in digests if digest not in self.blobs]

    def kept_elsewhere(self, raw: bytes, pop: str) -> set[str]:
        return self.elsewhere.get(pop, set())

    def priorities(self, raw: bytes) -> dict[str, int] | None:
        return self.ranks

    def wanted_rank(self) -> int:
        return 0 if self.ranks is None else 1

    def extend_gate(self, coming: Sequence[str]) -> int:
        return 0

    def blob_size(self, digest: str) -> int | None:
        data = self.blobs.get(digest)
        return None if data is None else len(data)

    def read_blob_range(self, digest: str, offset: int, length: int) -> bytes:
        if digest not in self.blobs:
            raise NotFound(digest)
        return self.blobs[digest][offset : offset + length]


class MemoryWriter:
    def __init__(self, space: MemoryNamespace) -> None:
        self._space = space
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self, digest: str | None = None) -> BlobRef:
        data = bytes(self._data)
        self._space.add_blob(digest or digest_of(data), data)
        return BlobRef(digest_of(data), len(data))

    def abort(self) -> None:
        self._data.clear()


class MemoryStore:
    def __init__(self, pop: str) -> None:
        self.pop = pop
        self.spaces: dict[str, MemoryNamespace] = {}
        self.strange: set[str] = set()
        """Namespaces that are not known here, whatever peers send."""
        self.lost_tails: list[tuple[str, int, int]] = []

    def has_namespace(self, name: str) -> bool:
        return name not in self.strange

    def namespaces(self) -> list[str]:
        return sorted(self.spaces)

    def namespace(self, name: str) -> MemoryNamespace:
        return self.spaces.setdefault(name, MemoryNamespace(self.pop))

    def tail_lost(self, name: str, epoch: int, seq: int) -> int:
        self.lost_tails.append((name, epoch, seq))
        return epoch + 1

    def heads(self) -> dict[str, dict[LogId, int]]:
        return {name: space.logs() for name, space in self.spaces.items()}

    def content(self) -> dict[str, tuple[dict[LogId, list[bytes]], dict[str, bytes]]]:
        return {name: (space.entries, space.blobs) for name, space in self.spaces.items() if space.entries}


@dataclass
class Side:
    """One PoP: a store, what it wants, and its end of the present connection."""

    pop: str
    limits: Limits = field(default_factory=Limits)
    cluster: str = "c1"
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.pop)
        self.wants = Wants()
        self.tail = Tail(self.store)
        self.imports = Imports()
        self.answers: list[tuple[str, Call, Body, Done]] = []
        """Calls of peers that came in, with where the answer goes."""
        self.session: Session | None = None

    def connect(self, peer: str, now_s: float) -> Session:
        self.wants.peer_lost(peer, now_s)
        self.imports.peer_lost(peer)
        self.standing = Standing(self.pop, [peer], lambda ns: Stand(*self.store.namespace(ns).standing()))
        self.standing.touch(self.store.spaces)
        self.session = Session(
            self.store, tail=self.tail, me=self.pop, cluster=self.cluster, peer=peer, limits=self.limits, wants=self.wants,
            standing=self.standing, answerer=lambda *call: self.answers.append(call), heads=self.store.heads(), now_s=now_s,
            members=MEMBERS, imports=self.imports, rate_of=self.rates.get,
        )  # fmt: skip
        return self.session

    def tick(self, now_s: float) -> None:
        self.tail.forget()
        for name, space in self.store.spaces.items():
            self.wants.settle(name, space.missing_blobs(), now_s)
        self.wants.tick(now_s)
        self.standing.touch(self.store.spaces)
        if self.session is not None:
            self.session.beat(now_s)
            self.session.tick(self.store.heads(), now_s)


def run(a: Side, b: Side, now_s: float = 0.0, *, rounds: int = 10_000) -> float:
    """Carries bytes both ways until both sides are silent; returns the time it ended."""
    assert a.session is not None and b.session is not None
    for _ in range(rounds):
        from_a, from_b = a.session.output(now_s), b.session.output(now_s)
        if not from_a and not from_b:
            return now_s
        now_s += 0.001
        if from_a:
            b.session.receive(from_a, now_s)
        if from_b:
            a.session.receive(from_b, now_s)
    raise AssertionError("the two sides never fall silent")


def settle(a: Side, b: Side, now_s: float, *, ticks: int = 60) -> float:
    """Ticks and runs until both hold the same."""
    for _ in range(ticks):
        now_s += 1.0
        a.tick(now_s)
        b.tick(now_s)
        now_s = run(a, b, now_s)
        if same(a, b):
            return now_s
    raise AssertionError("the two sides do not converge")


def same(a: Side, b: Side) -> bool:
    if a.store.content().keys() != b.store.content().keys():
        return False
    for name, (entries, blobs) in a.store.content().items():
        other_entries, other_blobs = b.store.content()[name]
        if {log: raw for log, raw in entries.items() if raw} != {log: raw for log, raw in other_entries.items() if raw}:
            return False
        needed = {
            ref.digest for raw in itertools.chain(*entries.values()) for ref in a.store.namespace(name).entry_blobs(raw)
        }
        if any(blobs.get(digest) is None or blobs[digest] != other_blobs.get(digest) for digest in needed):
            return False
    return True
