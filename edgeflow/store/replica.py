"""The replication half of a namespace: reading logs for peers, and mirroring theirs.

What must stay true: `mirror` takes entries in order and without holes, and taking one twice changes nothing; what it reports as mirrored is fsynced.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from edgeflow.core.cursors import Log, Vector, low_water
from edgeflow.core.events import BlobRef
from edgeflow.core.routing import Directive, RouteTable
from edgeflow.errors import LogGap
from edgeflow.store.cache import CachedBodies
from edgeflow.store.calls import Rows, now_ms
from edgeflow.store.connection import Command
from edgeflow.store.foreign import check_foreign, check_page
from edgeflow.store.homes import HomedNamespace
from edgeflow.store.owned import OwnedNamespace
from edgeflow.store.records import LogId, MirrorResult, check_entry, entry_refs, unpack_event

PAGE_BYTES = 1024 * 1024
"""About how much one page of a snapshot has; one large set or map may make it longer."""
PIECE = 200
"""Keys that one call merges."""
GATE_SOON_MS = 3000
"""How long before its end an entry is given more time at the gate."""
COMING_AT_ONCE = 5000
"""Bodies that one call looks at."""


class Trimmed(NamedTuple):
    """What `trim` has done: entries that went, those of them that some peer still needs; whether there is more to do; bytes and entries
    that the logs had."""

    entries: int
    forced: int
    more: bool
    size_bytes: int
    length: int


def _by_name(vector: Vector) -> dict[str, int]:
    return {f"{origin}:{epoch}": seq for (origin, epoch), seq in vector.items()}


class ReplicatedNamespace(OwnedNamespace, HomedNamespace, CachedBodies):
    """A namespace that can be replicated."""

    def logs(self) -> dict[LogId, int]:
        """Highest seq per log that is here."""
        heads = self._connection.one("HGETALL", self.prefix + "heads")
        return {log_id(name): int(seq) for name, seq in heads.items()}

    def applied(self) -> Vector:
        """Per log up to which seq everything is merged and readable here."""
        # In this order: what was mirrored before the first read and neither held nor parked later has been merged.
        heads, held, late, parked = self._connection.run([
            ("HGETALL", self.prefix + "heads"), ("ZRANGE", self.prefix + "held", 0, -1), ("SMEMBERS", self.prefix + "late"),
            ("ZRANGE", self.prefix + "parked", 0, -1),
        ])  # fmt: skip
        lowest: dict[Log, int] = {}
        for name in (*held, *late, *parked):
            origin, epoch, seq = name.decode().split(":")[:3]
            log = LogId(origin, int(epoch))
            lowest[log] = min(int(seq), lowest.get(log, int(seq)))
        return low_water({log_id(name): int(seq) for name, seq in heads.items()}, lowest)

    def extend_gate(self, coming: Sequence[str]) -> int:
        """Give entries whose time at the gate is nearly over more of it, if all that they wait for is in `coming`: bodies that peers send just now."""
        due = self._connection.one("ZRANGE", self.prefix + "held", 0, 0, "WITHSCORES")
        if not coming or not due or float(due[1]) > now_ms() + GATE_SOON_MS:
            return 0
        return sum(
            int(
                self._call(
                    "ef_gate",
                    coming=list(coming[start : start + COMING_AT_ONCE]),
                    soon_ms=GATE_SOON_MS,
                    gate_ms=self._limits.gate_timeout_ms,
                )
            )
            for start in range(0, len(coming), COMING_AT_ONCE)
        )

    def covers(self, vector: Vector) -> bool:
        """Whether everything that `vector` names is merged and readable here."""
        applied = self.applied()
        return all(seq <= applied.get(log, 0) for log, seq in vector.items())

    def standing(self) -> tuple[str, Vector]:
        """What this PoP promises the others: a bound below which it gives out no version any more, and what is applied here.

        The clock is read first: every version below the bound is in an entry that the vector covers.
        """
        ms, n = self._connection.one("HMGET", self.prefix + "clock", "ms", "n")
        floor = f"{int(ms):013d}.{int(n or 0):05d}@~" if ms else ""
        return floor, self.applied()

    def collect(self, bound_version: str, passed: Vector) -> int:
        """Forget a bounded number of tombstones: those below `bound_version`, below which no PoP gives out a version any more, whose entries are in
        `passed`, which every PoP has applied. Returns how many."""
        named = {f"{origin}:{epoch}": seq for (origin, epoch), seq in passed.items()}
        return int(self._call("ef_collect", bound=bound_version, passed=named)) if bound_version and named else 0

    def export_page(self, after_key: str, limit: int) -> tuple[Rows[Rows[Any]], str | None]:
        """A page of a snapshot: the state of up to `limit` keys behind `after_key`, and the last of them, None when there are no more.

        The items are for `import_page` of another PoP. The first says what the page covers, so that nothing counts twice and nothing that was deleted
        comes back, whatever of the logs arrives before or after it.
        """
        reply = self._call("ef_export", after=after_key, limit=limit, bytes=PAGE_BYTES)
        covered, parked, items, last = msgpack.unpackb(reply, raw=True)
        return [[covered, parked], *([key.decode(), packed] for key, packed in items)], last.decode() if last else None

    def import_page(self, after_key: str, last_key: str | None, items: Sequence[Sequence[Any]]) -> None:
        """Merge a page of a peer's snapshot: the keys behind `after_key` up to `last_key` (None: all that follow). Repeating it changes nothing.

        Bodies that its values refer to and that are not here are missing from now on. Heads of logs stay as they are.
        """
        check_page(items)
        covered, parked = items[0]
        page = {str(key): packed for key, packed in items[1:]}
        after = after_key
        absent: Rows[str] = []
        while names := self._names("known", "", after, PIECE):
            absent += [
                name for name in names if name not in page and (last_key is None or name.encode() <= last_key.encode())
            ]
            after = names[-1]
            if last_key is not None and after.encode() > last_key.encode():
                break
        packed_items = list(page.values())
        for start in range(0, max(len(packed_items), len(absent), 1), PIECE):
            self._call(
                "ef_import", context=covered, parked=parked if start == 0 else [], items=packed_items[start : start + PIECE],
                absent=absent[start : start + PIECE], gate_ms=self._limits.gate_timeout_ms, places=self.places(),
            )  # fmt: skip

    @staticmethod
    def entry_blobs(raw: bytes) -> list[BlobRef]:
        """The blobs that an entry refers to."""
        return entry_refs(raw)

    def parked_count(self) -> int:
        """Entries from the future that wait until their time has come here."""
        return int(self._connection.one("ZCARD", self.prefix + "parked"))

    def lanes(self) -> list[tuple[LogId, str, int]]:
        """Per log and channel the last event that was released here."""
        seen, own = self._connection.run([("HGETALL", self.prefix + "seen"), ("HGETALL", self.prefix + "prev")])
        found = []
        for name, seq in seen.items():
            origin, epoch, channel = name.decode().split(":", 2)
            found.append((LogId(origin, int(epoch)), channel, int(seq)))
        for name, seq in own.items():
            epoch, _, channel = name.decode().partition(":")
            found.append((LogId(self.pop, int(epoch)), channel, int(seq)))
        return found

    def adopt(self, vector: Vector, lanes: Sequence[tuple[LogId, str, int]]) -> None:
        """A snapshot with everything up to `vector` has been merged: the logs are here up to there. Events of `lanes` that were not seen are gaps."""
        self._call(
            "ef_adopt", vector=_by_name(vector),
            lanes=[[log.origin, log.epoch, channel, seq] for log, channel, seq in lanes],
        )  # fmt: skip

    def trim(self, needed: Vector, max_bytes: int, keep_from_ms: int) -> "Trimmed":
        """Forget a bounded piece of the logs: what is older than `keep_from_ms` up to `needed`, and beyond `max_bytes` the oldest, needed or not."""
        applied = self.applied()
        keys = [f"{self.prefix}log:{origin}:{epoch}" for origin, epoch in applied]
        replies = self._connection.run([
            *(("MEMORY", "USAGE", key, "SAMPLES", 50) for key in keys), *(("XLEN", key) for key in keys),
        ]) if keys else []  # fmt: skip
        size, length = (
            sum(one for one in some if isinstance(one, int)) for some in (replies[: len(keys)], replies[len(keys) :])
        )
        gone, forced, more = self._call(
            "ef_trim", logs=_by_name(needed), applied=_by_name(applied), over=max(0, size - max_bytes), keep_from=keep_from_ms
        )  # fmt: skip
        return Trimmed(gone, forced, bool(more), size, length)

    def mirror(self, log: LogId, first: int, entries: Sequence[bytes]) -> MirrorResult:
        """Take `entries` of a peer's log, the first of which has seq `first`. Entries that are here already are passed over.

        Raises LogGap when entries are missing in front, CorruptEntry when one is damaged (nothing is written then).
        """
        checked = [check_entry(raw, log, first + offset) for offset, raw in enumerate(entries)]
        for entry in checked:
            check_foreign(entry, self.name)

        def directives(table: RouteTable, seq: int, entry: dict[bytes, Any]) -> list[list[Directive]]:
            shared = entry.get(b"sh")
            cause = (shared[0][0] if shared else entry.get(b"id", b"")).decode(errors="backslashreplace")
            # Most events of most logs go to no function here: only those that do are unpacked.
            return [
                self.directives(unpack_event(fields, log.origin, log.epoch, seq, index), cause=cause)
                if table.subscribes(fields[0].decode())
                else []
                for index, fields in enumerate(entry[b"ev"])
            ]

        def prepare(_again: bool) -> list[Command]:
            table = self.routes()
            call = {
                "origin": log.origin,
                "epoch": log.epoch,
                "first": first,
                "entries": list(entries),
                "rv": table.version,
                "d": [directives(table, first + offset, entry) for offset, entry in enumerate(checked)],
                "gate_ms": self._limits.gate_timeout_ms,
                "places": self.places(),
            }
            return [self._command("ef_mirror", call)]

        head, missing, _ = msgpack.unpackb(self._routed(prepare)[-1])
        if head < first - 1:
            raise LogGap(
                f"log {log.origin}/{log.epoch} of {self.name} is here up to {head}, the entries begin at {first}"
            )
        return MirrorResult(head, list(missing))


def log_id(name: bytes) -> LogId:
    """The log of an "origin:epoch"."""
    origin, _, epoch = name.decode().rpartition(":")
    return LogId(origin, int(epoch))
