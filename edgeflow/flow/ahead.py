"""Work that was claimed before an instance asked for it, so that the next invocation begins when the last one ends.

What it is: per inbox, the claims that wait here for the next instance of their function that asks, and how many more each instance is worth.
What it is not: handed-over work. No instance has seen it: whatever happens to an instance, this goes back without blame.
What must stay true: whoever asks first gets what waits, in whose name it was ever claimed; what is to be claimed alone is handed over alone; what
waits longer than it was worth goes back.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from edgeflow.flow.sessions import InboxKey, Session
from edgeflow.store import Claimed

BELOW_US = 100_000
"""Mean time of a handler from which on nothing is claimed ahead: what a claim takes is nothing to it, and others may be free earlier."""
KEPT_S = 0.5
"""How long a claim may wait here. Its turn was due within the time of a handler."""


class Waiting(NamedTuple):
    """A claim and the session in whose name it was made."""

    owner: Session
    claimed: Claimed
    since_s: float


class Ahead:
    """The claims ahead of one PoP."""

    def __init__(self) -> None:
        self._waiting: dict[InboxKey, deque[Waiting]] = defaultdict(deque)

    def __contains__(self, key: InboxKey) -> bool:
        return key in self._waiting

    @staticmethod
    def room(session: Session) -> int:
        """How many more may be claimed ahead for an instance: together as many as it last asked for."""
        if not session.mean_us or session.mean_us > BELOW_US or session.state != "ready":
            return 0
        return max(0, session.asked - session.ahead)

    def put(self, session: Session, key: InboxKey, items: list[Claimed], now_s: float) -> None:
        """Keep what was claimed in the name of `session`."""
        session.ahead += len(items)
        self._waiting[key].extend(Waiting(session, claimed, now_s) for claimed in items)

    def take(self, key: InboxKey, limit: int) -> list[Waiting]:
        """At most `limit` of what waits, in order; one that must be alone comes alone."""
        queue = self._waiting.get(key)
        taken: list[Waiting] = []
        while queue and len(taken) < limit and not (taken and (taken[0].claimed.alone or queue[0].claimed.alone)):
            one = queue.popleft()
            one.owner.ahead -= 1
            taken.append(one)
        if queue is not None and not queue:
            del self._waiting[key]
        return taken

    def take_of(self, session: Session) -> list[Waiting]:
        """All that was claimed in the name of `session`."""
        return self._take_where(lambda one: one.owner is session) if session.ahead else []

    def take_one(self, id: str, attempt: int) -> list[Waiting]:
        """This attempt, if it waits here."""
        return self._take_where(lambda one: (one.claimed.id, one.claimed.attempt) == (id, attempt))

    def take_late(self, now_s: float) -> list[Waiting]:
        """All that has waited for too long. Their instances have nothing claimed ahead until they ask again."""
        late = self._take_where(lambda one: now_s - one.since_s > KEPT_S)
        for one in late:
            one.owner.asked = 0
        return late

    def _take_where(self, wanted: Callable[[Waiting], bool]) -> list[Waiting]:
        taken: list[Waiting] = []
        for key, queue in list(self._waiting.items()):
            found = [one for one in queue if wanted(one)]
            if found:
                left = deque(one for one in queue if not wanted(one))
                if left:
                    self._waiting[key] = left
                else:
                    del self._waiting[key]
                taken += found
        for one in taken:
            one.owner.ahead -= 1
        return taken

    def ids_of(self, session: Session) -> set[str]:
        """The invocations that were claimed in the name of `session`."""
        return {one.claimed.id for one in self._all() if one.owner is session}

    def _all(self) -> Iterator[Waiting]:
        for queue in self._waiting.values():
            yield from queue
