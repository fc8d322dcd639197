"""Bodies that one connection sends in pieces: which one gives the next piece.

What it is: a queue by rank (0 goes first), a bounded number of transfers under way, and the choice among them.
What it is not: the pieces themselves (sender.py), or what rank a body has (the channels' `priority`).
What must stay true: of what may go, the best rank goes first, but for each EVERY-th piece, which goes to whoever has waited longest: nothing waits for
ever; what is under way stays within what the receiver holds of unfinished bodies.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

ACTIVE = 8
"""Transfers under way, of those that go first and of the others."""
EVERY = 8
RANKS = 3

Key = tuple[str, str]
"""(namespace, digest)."""


@dataclass(slots=True)
class Transfer:
    """How far one body is."""

    size: int
    off: int = 0
    rank: int = 0


class Transfers:
    """The bodies of one connection. `max_bytes`: the largest sum of sizes under way, of those that go first and of the others."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._active: OrderedDict[Key, Transfer] = OrderedDict()
        self._waiting: tuple[OrderedDict[Key, Transfer], ...] = tuple(OrderedDict() for _ in range(RANKS))
        self._of: Counter[str] = Counter()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._active) + sum(map(len, self._waiting))

    def of(self, namespace: str) -> int:
        """How many are of a namespace."""
        return self._of[namespace]

    @property
    def bytes_left(self) -> int:
        """What is still to be sent."""
        return sum(one.size - one.off for table in (self._active, *self._waiting) for one in table.values())

    def add(self, key: Key, size: int, off: int = 0, rank: int = 0) -> None:
        """Queue a body; `off`: the peer has what is before it. One that is queued already keeps its place."""
        known = self._find(key)
        if known is not None:
            known.off = max(known.off, off)
            return
        self._of[key[0]] += 1
        self._waiting[rank][key] = Transfer(size, off, rank)

    def end(self, key: Key) -> None:
        """It is sent, or not wanted."""
        known = self._find(key)
        if known is not None:
            self._active.pop(key, None)
            self._waiting[known.rank].pop(key, None)
            self._of[key[0]] -= 1

    def next(self, may: Callable[[str], bool]) -> tuple[Key, Transfer] | None:
        """Whose turn it is among namespaces that may send; None: nobody's."""
        for rank, waiting in enumerate(self._waiting):
            self._admit(rank, waiting, may)
        found = [(key, one) for key, one in self._active.items() if may(key[0])]
        if not found:
            return None
        self._turn += 1
        if self._turn % EVERY:
            best = min(one.rank for _, one in found)
            found = [item for item in found if item[1].rank == best]
        key, transfer = found[0]
        self._active.move_to_end(key)
        return key, transfer

    def _admit(self, rank: int, waiting: OrderedDict[Key, Transfer], may: Callable[[str], bool]) -> None:
        """Let those begin that there is room for. Rank 0 has room of its own, so that it does not wait for what began before it."""
        for key in list(waiting)[: 4 * ACTIVE]:
            beside = [one for one in self._active.values() if (one.rank == 0) == (rank == 0)]
            transfer = waiting[key]
            if len(beside) >= ACTIVE or (beside and sum(one.size for one in beside) + transfer.size > self._max_bytes):
                return
            if may(key[0]):
                del waiting[key]
                self._active[key] = transfer

    def _find(self, key: Key) -> Transfer | None:
        return next((table[key] for table in (self._active, *self._waiting) if key in table), None)
