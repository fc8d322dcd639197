"""Where every member of the cluster stands: what it has applied, below which version it writes no more, and how fresh this PoP is.

What it is: the vectors that peers report, and what follows from them, without I/O; time is an argument, always this PoP's own monotonic clock.
What it is not: how far a peer has mirrored a log (the sender's cursors), or a read of the store: `read` is given.
What must stay true: `passed` and `floor` never claim more than each member said and this PoP has applied itself; "complete as of t" is said only
of what every other member had written by then; no clock is ever compared with another PoP's.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from edgeflow.core.cursors import Vector

SPACES = 10_000
"""Most namespaces of which a peer is listened to."""
MARKS = 64
"""Most questions of a peer that wait until this PoP has what the peer had; beyond that those in between are forgotten."""


class Stand(NamedTuple):
    """A member's word about one namespace."""

    floor: str
    """It gives out no version below this any more; "" = not known."""
    applied: Vector


NOWHERE = Stand("", {})


class _Mark(NamedTuple):
    """What a peer had written when it answered a ping that was sent at `at_s`."""

    at_s: float
    written: Vector
    floor: str


@dataclass(slots=True)
class _Space:
    stand: Stand = NOWHERE
    written: Vector = field(default_factory=dict)
    """The peer's own logs in `stand`."""
    marks: deque[_Mark] = field(default_factory=deque)
    fresh_s: float | None = None
    floor: str = ""


@dataclass(slots=True)
class _Peer:
    spaces: dict[str, _Space] = field(default_factory=dict)
    fresh_s: float | None = None
    """When it was last asked, as far as namespaces go of which it said nothing: there it has nothing."""


class Standing:
    """One per PoP. `read(namespace)` gives this PoP's own stand, `namespaces()` what is known here."""

    def __init__(self, me: str, peers: Iterable[str], read: Callable[[str], Stand]) -> None:
        self._me = me
        self._read = read
        self._peers = {peer: _Peer() for peer in peers}
        self._left: set[str] = set()
        self._own: dict[str, Stand] = {}
        self._revisions: dict[str, int] = {}
        self._dirty: set[str] = set()

    # This PoP

    def touch(self, namespaces: Iterable[str]) -> None:
        """Something may have been applied in these namespaces."""
        self._dirty.update(namespaces)

    def own(self, ns: str) -> Stand:
        """This PoP's own stand, as of the last `touch`."""
        if ns in self._dirty or ns not in self._own:
            stand = self._read(ns)
            self._dirty.discard(ns)
            if stand != self._own.get(ns):
                self._own[ns] = stand
                self._revisions[ns] = self._revisions.get(ns, 0) + 1
                self._look(ns, stand)
        return self._own.get(ns, NOWHERE)

    def news(self, told: dict[str, int]) -> dict[str, Stand]:
        """What changed here since `told`, which is brought up to date."""
        for ns in list(self._dirty):
            self.own(ns)
        fresh = [ns for ns, revision in self._revisions.items() if told.get(ns) != revision]
        for ns in fresh:
            told[ns] = self._revisions[ns]
        return {ns: self._own[ns] for ns in fresh}

    def set_members(self, peers: Iterable[str], left: Iterable[str] = ()) -> None:
        """Whose word counts from now on. One that is new holds everything back until it has spoken; one that left holds nothing back any more,
        but for what others still have of it and this PoP has not."""
        self._peers = {peer: self._peers.get(peer) or _Peer() for peer in peers}
        self._left = set(left)

    # What peers say

    def heard(self, peer: str, ns: str, stand: Stand) -> None:
        """A peer's word. What it said before is replaced, also when that was more: it has lost its store then."""
        known = self._peers.get(peer)
        if known is not None and (ns in known.spaces or len(known.spaces) < SPACES):
            space = known.spaces.get(ns) or _first(known, ns)
            space.stand = stand
            space.written = {log: seq for log, seq in stand.applied.items() if log[0] == peer}

    def answered(self, peer: str, asked_s: float) -> None:
        """A peer answered what it was asked at `asked_s`, after its word of that moment."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.fresh_s = asked_s
        for ns, space in known.spaces.items():
            mark = _Mark(asked_s, space.written, space.stand.floor)
            if _covers(self._own.get(ns, NOWHERE).applied, mark.written) or (
                ns in self._dirty and _covers(self.own(ns).applied, mark.written)
            ):
                space.marks.clear()
                _reach(space, mark)
                continue
            self._keep(space, mark)

    def ages(self, pops: Iterable[str], now_s: float) -> list[tuple[str, str, int]]:
        """How long ago (PoP, namespace, ms) all that these PoPs had written was applied here: for a peer that cannot ask them itself."""
        found = []
        for pop in pops:
            known = self._peers.get(pop)
            for ns in known.spaces if known is not None else ():
                complete_s = self.complete_s(ns, pop)
                if complete_s is not None:
                    found.append((pop, ns, max(0, math.ceil((now_s - complete_s) * 1000))))
        return found

    def relayed(self, helper: str, pop: str, ns: str, at_s: float) -> None:
        """`helper` has, by its last word, all that `pop` had written at `at_s`."""
        known = self._peers.get(pop)
        if known is None:
            return
        space = known.spaces.get(ns) or _first(known, ns)
        written = {log: seq for log, seq in self.stand_of(helper, ns).applied.items() if log[0] == pop}
        mark = _Mark(at_s, written, space.floor)
        if _covers(self._own.get(ns, NOWHERE).applied, written) or (
            ns in self._dirty and _covers(self.own(ns).applied, written)
        ):
            _reach(space, mark)
        else:
            self._keep(space, mark)

    # What follows

    def stand_of(self, peer: str, ns: str) -> Stand:
        """A peer's last word."""
        known = self._peers.get(peer)
        return known.spaces[ns].stand if known is not None and ns in known.spaces else NOWHERE

    def passed(self, ns: str) -> dict[tuple[str, int], int]:
        """Per log up to which seq every member has applied it."""
        stands = [self.own(ns).applied, *(self.stand_of(peer, ns).applied for peer in self._peers)]
        return {log: least for log in stands[0] if (least := min(stand.get(log, 0) for stand in stands)) > 0}

    def floor(self, ns: str) -> str:
        """No member gives out a version below this any more, and all below it is applied here; "" when that is not known."""
        floors = [self.own(ns).floor]
        for known in self._peers.values():
            space = known.spaces.get(ns)
            floors.append(space.floor if space is not None else "")
        return "" if self.owed(ns) else min(floors)

    def owed(self, ns: str) -> set[str]:
        """PoPs that left, and of whose logs some member has more than this PoP."""
        if not self._left:
            return set()
        own = self.own(ns).applied
        stands = [known.spaces[ns].stand.applied for known in self._peers.values() if ns in known.spaces]
        return {
            log[0] for stand in stands for log, seq in stand.items() if log[0] in self._left and seq > own.get(log, 0)
        }

    def complete_s(self, ns: str, peer: str) -> float | None:
        """As of when (own clock) all that `peer` had written is applied here; None = not known."""
        known = self._peers.get(peer)
        if known is None:
            return None
        space = known.spaces.get(ns)
        return known.fresh_s if space is None else space.fresh_s

    def staleness_ms(self, ns: str, now_s: float) -> int | None:
        """For how long there may be something written elsewhere that is not readable here; None = this PoP was never complete."""
        oldest_s = now_s
        for peer in self._peers:
            complete_s = self.complete_s(ns, peer)
            if complete_s is None:
                return None
            oldest_s = min(oldest_s, complete_s)
        return max(0, round((now_s - oldest_s) * 1000))

    @staticmethod
    def _keep(space: _Space, mark: _Mark) -> None:
        if len(space.marks) >= MARKS:
            del space.marks[MARKS // 2]
        space.marks.append(mark)

    def _look(self, ns: str, own: Stand) -> None:
        """More is applied here: which questions does that settle?"""
        for known in self._peers.values():
            space = known.spaces.get(ns)
            while space is not None and space.marks and _covers(own.applied, space.marks[0].written):
                _reach(space, space.marks.popleft())


def _first(known: _Peer, ns: str) -> _Space:
    """The space of a namespace of which a peer speaks for the first time: when it was last asked it had nothing there, which is complete."""
    space = known.spaces[ns] = _Space(fresh_s=known.fresh_s)
    return space


def _reach(space: _Space, mark: _Mark) -> None:
    if space.fresh_s is None or mark.at_s > space.fresh_s:
        space.fresh_s = mark.at_s
    space.floor = mark.floor


def _covers(applied: Vector, written: Mapping[tuple[str, int], int]) -> bool:
    return all(seq <= applied.get(log, 0) for log, seq in written.items())
