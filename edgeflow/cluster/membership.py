"""Which member is in which state, as this PoP hears it.

What it is: the table of edgeflow.core.membership, run on what the links hear: directly, or from a third PoP that hears it.
What it is not: a vote. Each PoP judges by itself; what must be the same everywhere is decided elsewhere, from logs.
What must stay true: only time in which this process ran counts as silence, so that a process that stood still blames nobody; what a third PoP says
is never taken for younger than it is; a listener that fails stops nobody else.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from edgeflow.core import membership as table
from edgeflow.core.membership import Member
from edgeflow.settings import MembershipSettings

log = structlog.get_logger(__name__)

STEP_S = 1.0
"""A longer time between two looks counts as this much: this process did not run in between."""

Listener = Callable[[str, str | None, str], None]
"""Called with the PoP, its state before (None: new) and its state now."""


@dataclass(slots=True)
class _Heard:
    at_s: float
    """On the clock that stands still with this process."""
    ever: bool
    state: str | None = None
    since_ms: int = 0


class Membership:
    """One per PoP. `records()` and `pops()` are what the book knows of the members."""

    def __init__(
        self,
        me: str,
        settings: MembershipSettings,
        records: Callable[[], Mapping[str, Member]],
        pops: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me = me
        self._settings = settings
        self._records = records
        self._pops = pops
        self._clock = clock
        self._ran_s = 0.0
        self._looked_s = clock()
        self._heard: dict[str, _Heard] = {}
        self.listeners: list[Listener] = []

    def state(self, pop: str) -> str:
        """The state of a PoP; `left` for one that is no member."""
        if pop == self._me:
            return self._own_state()
        heard = self._heard.get(pop)
        return table.LEFT if heard is None or heard.state is None else heard.state

    def heard_ms(self, pop: str) -> int:
        """How long nothing was heard of a PoP, or since this process has listened for it; 0 for this PoP itself."""
        heard = self._heard.get(pop)
        if pop == self._me or heard is None:
            return 0
        return max(0, round((self._now() - heard.at_s) * 1000))

    def was_heard(self, pop: str) -> bool:
        """Whether this process ever heard of it."""
        return pop == self._me or (pop in self._heard and self._heard[pop].ever)

    def documents(self) -> dict[str, dict[str, Any]]:
        """State of each member for the control process; changes only with the state."""
        found = {pop: {"state": one.state, "since_ms": one.since_ms} for pop, one in self._heard.items() if one.state}
        found[self._me] = {"state": self._own_state(), "since_ms": 0}
        return found

    # What links hear

    def heard(self, pop: str, age_s: float = 0.0) -> None:
        """Something of this PoP was heard `age_s` ago."""
        at_s = self._now() - max(0.0, age_s)
        one = self._heard.get(pop)
        if one is None:
            return  # no member, or not known yet
        if not one.ever or at_s > one.at_s:
            one.at_s, one.ever = at_s, True

    def hearsay(self, pops: Iterable[str]) -> list[tuple[str, int]]:
        """How long ago (PoP, ms) these were heard here, for a peer that does not hear them itself."""
        return [
            (pop, self.heard_ms(pop)) for pop in pops if pop != self._me and pop in self._heard and self.was_heard(pop)
        ]

    # Time

    def look(self) -> None:
        """Several times a second: brings all states up to date and tells the listeners."""
        now_s = self._clock()
        self._ran_s, self._looked_s = self._now(), now_s
        records = self._records()
        members = {*self._pops()} - {self._me}
        gone = {pop for pop in records if records[pop].is_left} - {self._me}
        for pop in set(self._heard) - members - gone:
            del self._heard[pop]
        for pop in sorted(members | gone):
            one = self._heard.get(pop)
            if one is None:
                one = self._heard[pop] = _Heard(self._ran_s, False)
            record = records.get(pop) or Member(pop, joined_ms=1)
            silent_ms: float | None = (self._ran_s - one.at_s) * 1000
            if not one.ever and silent_ms is not None and silent_ms < self._settings.down_ms:
                silent_ms = None
            state = table.state_of(
                record.state, record.joined_ms > 0, silent_ms,
                suspect_ms=self._settings.suspect_ms, down_ms=self._settings.down_ms,
            )  # fmt: skip
            if state == table.LEFT:
                one.ever = False  # should it come again, that is another PoP
            for step in table.path(one.state, state):
                self._step(pop, one, step)

    def _step(self, pop: str, one: _Heard, state: str) -> None:
        before, one.state, one.since_ms = one.state, state, time.time_ns() // 1_000_000
        log.info("member_state", member=pop, state=state, before=before, silent_ms=self.heard_ms(pop))
        for listener in list(self.listeners):
            try:
                listener(pop, before, state)
            except Exception:
                log.exception("member_listener_failed", member=pop, state=state)

    def _own_state(self) -> str:
        record = self._records().get(self._me)
        wished, joined = (table.UP, True) if record is None else (record.state, record.joined_ms > 0)
        return table.state_of(wished, joined, 0.0, suspect_ms=1, down_ms=1)

    def _now(self) -> float:
        """Time in which this process ran."""
        return self._ran_s + min(max(0.0, self._clock() - self._looked_s), STEP_S)
