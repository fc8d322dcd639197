"""What has come so far of blobs that peers are sending.

What it is: one table that all links of a PoP share, of unfinished bodies: small ones in memory, large ones in files.
What it is not: whom to ask for which (wants.py), or the messages (receiver.py). Time is an argument.
What must stay true: one peer at a time fills a spool, in order; what came is kept when its link ends, so that the next peer goes on where that one
stopped; a body is checked as a whole before the store has it; how many there are, and how many bytes they announce, is bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgeflow.cluster.ports import BodyWriter
from edgeflow.errors import EdgeflowError

KEPT_S = 600.0
"""How long the beginning of a blob is kept for whoever sends the rest."""
MAX_SPOOLS = 64

Key = tuple[str, str]
"""(namespace, digest)."""


@dataclass(slots=True)
class _Spool:
    size: int
    writer: BodyWriter
    peer: str | None
    at_s: float
    here: int = 0


class Spools:
    """The unfinished blobs of a PoP."""

    def __init__(self) -> None:
        self._spools: dict[Key, _Spool] = {}

    def __len__(self) -> int:
        return len(self._spools)

    def __contains__(self, key: Key) -> bool:
        return key in self._spools

    def here(self, key: Key) -> int:
        """How many bytes of a blob have come."""
        spool = self._spools.get(key)
        return spool.here if spool else 0

    def size(self, key: Key) -> int:
        """How many it will have."""
        return self._spools[key].size

    def peer(self, key: Key) -> str | None:
        """Who is sending it; None when nobody is."""
        spool = self._spools.get(key)
        return spool.peer if spool else None

    def has_room(self, peer: str, size: int, budget_bytes: int) -> bool:
        """Whether `peer` may begin one of `size` bytes; what nobody sends any more goes first."""
        sending = [spool for spool in self._spools.values() if spool.peer == peer]
        if sum(spool.size for spool in sending) + size > budget_bytes:
            return False
        idle = sorted((spool.at_s, key) for key, spool in self._spools.items() if spool.peer is None)
        while idle and (
            len(self._spools) >= MAX_SPOOLS or sum(self._spools[key].here for _, key in idle) > budget_bytes
        ):
            self.drop(idle.pop(0)[1])
        return len(self._spools) < MAX_SPOOLS

    def begin(self, key: Key, size: int, peer: str, now_s: float, open_writer: Callable[[], BodyWriter]) -> None:
        """`peer` sends a blob from its beginning."""
        self.drop(key)
        self._spools[key] = _Spool(size, open_writer(), peer, now_s)

    def add(self, key: Key, peer: str, data: bytes, now_s: float) -> bool:
        """The next bytes; True when it has them all. Raises what the writer raises; the spool is gone then."""
        spool = self._spools[key]
        spool.peer, spool.at_s = peer, now_s
        try:
            spool.writer.write(data)
        except EdgeflowError:
            self.drop(key)
            raise
        spool.here += len(data)
        return spool.here == spool.size

    def finish(self, key: Key) -> None:
        """It is whole: into the store. Raises CorruptBlob when it is not what its digest says, and what the store raises."""
        spool = self._spools.pop(key)
        try:
            spool.writer.finish(key[1])
        finally:
            spool.writer.abort()

    def drop(self, key: Key) -> None:
        """Nothing of it is kept."""
        spool = self._spools.pop(key, None)
        if spool is not None:
            spool.writer.abort()

    def release(self, key: Key, peer: str) -> None:
        """`peer` does not go on with it."""
        spool = self._spools.get(key)
        if spool is not None and spool.peer == peer:
            spool.peer = None

    def peer_lost(self, peer: str, now_s: float) -> None:
        """The link to `peer` is down; others may go on."""
        for spool in self._spools.values():
            if spool.peer == peer:
                spool.peer, spool.at_s = None, now_s

    def tick(self, now_s: float) -> None:
        """Forgets what nobody has gone on with."""
        for key in [key for key, spool in self._spools.items() if spool.peer is None and now_s - spool.at_s > KEPT_S]:
            self.drop(key)
