"""What is forgotten because every member has it, or because there is no room: log entries, tombstones.

What it is: a bounded piece of work a second for each namespace, and what `lag` documents say of it.
What it is not: the forgetting itself (the store), or the knowledge of who has what (manager, standing).
What must stay true: what a peer needs goes only when the logs are larger than `log_bytes`, and is counted then; a tombstone goes only when no
write that it has to beat can come any more.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgeflow.cluster.ports import LinkNamespace
from edgeflow.core.cursors import Log, Vector
from edgeflow.settings import Limits
from edgeflow.store.records import LogId

SPELL_S = 0.02
"""How long one namespace may keep the loop for itself, a second."""
COLLECTED = 1000
"""Tombstones that one call looks at: if it forgot that many there may be more."""


@dataclass(slots=True)
class Kept:
    """What the logs of a namespace have, and what had to go though a peer needed it."""

    size_bytes: int = 0
    length: int = 0
    forced: int = 0

    @property
    def entry_bytes(self) -> float:
        """Size of an entry, on average."""
        return self.size_bytes / self.length if self.length else 0.0


@dataclass(slots=True)
class Upkeep:
    """Of one PoP."""

    limits: Limits
    me: str
    has_peers: bool
    clock: Callable[[], float] = time.monotonic
    kept: dict[str, Kept] = field(default_factory=dict)

    def run(
        self, name: str, space: LinkNamespace, acknowledged: Mapping[LogId, int], floor: str, passed: Vector
    ) -> None:
        """A piece of work for one namespace."""
        began_s = self.clock()
        kept = self.kept.setdefault(name, Kept())
        # What a peer has not mirrored yet exists nowhere else.
        needed: dict[Log, int] = {
            log_id: acknowledged.get(log_id, 0) if log_id.origin == self.me and self.has_peers else head
            for log_id, head in space.logs().items()
        }
        keep_from_ms = time.time_ns() // 1_000_000 - self.limits.retention_ms
        while True:
            trimmed = space.trim(needed, self.limits.log_bytes, keep_from_ms)
            kept.size_bytes, kept.length = trimmed.size_bytes, trimmed.length
            kept.forced += trimmed.forced
            if not trimmed.more or self.clock() - began_s > SPELL_S:
                break
        while floor and space.collect(floor, passed) >= COLLECTED and self.clock() - began_s < 2 * SPELL_S:
            pass
