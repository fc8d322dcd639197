"""The replication half of a namespace: reading logs for peers, and mirroring theirs.

What must stay true: `mirror` takes entries in order and without holes, and taking one twice changes nothing; what it reports as mirrored is fsynced.
"""

from collections.abc import Sequence
from typing import Any

import msgpack

from edgeflow.core.cursors import Log, Vector, low_water
from edgeflow.core.events import BlobRef
from edgeflow.core.routing import Directive, RouteTable
from edgeflow.errors import LogGap
from edgeflow.store.cache import CachedBodies
from edgeflow.store.connection import Command
from edgeflow.store.homes import HomedNamespace
from edgeflow.store.oversight import OverseenNamespace
from edgeflow.store.records import LogId, MirrorResult, check_entry, entry_refs, unpack_event


class ReplicatedNamespace(OverseenNamespace, HomedNamespace, CachedBodies):
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

    @staticmethod
    def entry_blobs(raw: bytes) -> list[BlobRef]:
        """The blobs that an entry refers to."""
        return entry_refs(raw)

    def mirror(self, log: LogId, first: int, entries: Sequence[bytes]) -> MirrorResult:
        """Take `entries` of a peer's log, the first of which has seq `first`. Entries that are here already are passed over.

        Raises LogGap when entries are missing in front, CorruptEntry when one is damaged (nothing is written then).
        """
        checked = [check_entry(raw, log, first + offset) for offset, raw in enumerate(entries)]

        def directives(table: RouteTable, seq: int, events: Sequence[Any]) -> list[list[Directive]]:
            # Most events of most logs go to no function here: only those that do are unpacked.
            return [
                self.directives(unpack_event(fields, log.origin, log.epoch, seq, index))
                if table.subscribes(fields[0].decode())
                else []
                for index, fields in enumerate(events)
            ]

        def prepare(_again: bool) -> list[Command]:
            table = self.routes()
            call = {
                "origin": log.origin,
                "epoch": log.epoch,
                "first": first,
                "entries": list(entries),
                "rv": table.version,
                "d": [directives(table, first + offset, events) for offset, events in enumerate(checked)],
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
