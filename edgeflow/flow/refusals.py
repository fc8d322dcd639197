"""What the store has just refused, so that what comes next to the same place is refused without asking it again.

What it is: for a stated short time, which channels are full and whether the quota is exceeded, with the very refusal that the store gave; and how
much has ended since, since that much may be asked again.
What it is not: a bound of its own, or a queue. Whatever it does not refuse the store decides.
What must stay true: it refuses nothing that the store, asked at the last refusal, would have taken: no channel on which the event decides where it
goes, no body that is smaller than the refused one. What it lets pass too often costs time only; what it refuses too long, REFUSED_S at most.
"""

import time
from collections.abc import Iterable

from edgeflow.core.routing import RouteTable
from edgeflow.errors import EdgeflowError, QueueFull, QuotaExceeded

REFUSED_S = 0.05
"""How long a refusal of the store stands for others, unless invocations end meanwhile."""
MAX_CHANNELS = 10_000


class Refusals:
    """The refusals that stand in one namespace."""

    def __init__(self) -> None:
        self._full: dict[str, tuple[float, QueueFull, tuple[str, ...]]] = {}
        self._room: dict[str, int] = {}
        self._over: tuple[float, QuotaExceeded | None, int] = (0.0, None, 0)

    def learn(self, table: RouteTable, channel: str, size_bytes: int, error: EdgeflowError) -> None:
        """The store refused an event of so many bytes."""
        until_s = time.monotonic() + REFUSED_S
        if isinstance(error, QuotaExceeded):
            self._over = (min(until_s, time.monotonic() + error.retry_after_s), error, size_bytes)
        elif isinstance(error, QueueFull) and table.takes_all(channel):
            if len(self._full) >= MAX_CHANNELS:
                self._full.clear()
            inboxes = tuple(table.inboxes(channel))
            self._full[channel] = (until_s, error, inboxes)
            for inbox in inboxes:
                self._room[inbox] = 0

    def ended(self, inboxes: Iterable[str]) -> None:
        """One invocation of each of these has ended."""
        if self._full:
            for inbox in inboxes:
                if inbox in self._room:
                    self._room[inbox] += 1

    def of(self, channel: str, size_bytes: int) -> QueueFull | QuotaExceeded | None:
        """The refusal that stands for an event of so many bytes, if one does."""
        until_s, over, refused_bytes = self._over
        if over is not None:
            if until_s <= time.monotonic():
                self._over = (0.0, None, 0)
            elif size_bytes >= refused_bytes:
                return over
        found = self._full.get(channel)
        if found is None:
            return None
        until_s, full, inboxes = found
        if until_s <= time.monotonic():
            del self._full[channel]
            if not self._full:
                self._room.clear()
            return None
        # Which of its inboxes is full is not known; an end in any of them is worth a question.
        room = [inbox for inbox in inboxes if self._room[inbox]]
        for inbox in room:
            self._room[inbox] -= 1
        return None if room or not inboxes else full
