"""How much a PoP has to do, as one number: 0 is nothing, 1 is all that it can do, above 1 it refuses.

What it is: the parts that its two processes measure, put together; and when a PoP sends clients away, and how many at a time.
What it is not: the load of one function (edgeflow.flow.load), which decides how many instances it has.
What must stay true: the number is that of the part that is worst off, since any of them alone makes clients wait; clients are sent away only while
another PoP has room for them, and a few at a time, so that the next PoP does not drown in them.
"""

import math
from dataclasses import dataclass

SMOOTH_S = 3.0
"""Time in which a change counts by two thirds."""
AGAIN = 0.85
"""A PoP sends clients away from its threshold on, and until its load is below this share of it."""
ROOM = 0.7
"""Another PoP has room for clients below this share of the threshold."""
LEAVING_PER_S = 2.0
"""Clients that are told to go, per second, at least."""
LEAVING_SHARE_PER_S = 0.05
"""And this share of those who hold a stream."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is measured, each 0 to 1."""

    loop: float = 0.0
    """Share of the time in which the data process was at work."""
    control: float = 0.0
    """CPU share of the control process, of the one core that it can use."""
    backlog: float = 0.0
    """How full the fullest inbox is."""
    refused: float = 0.0
    """Share of the events that came and were refused for lack of room."""

    @property
    def load(self) -> float:
        """All in one."""
        return max(self.loop, self.control, self.backlog, 1.0 + self.refused if self.refused > 0 else 0.0)

    @property
    def reason(self) -> str:
        """The part that decides, in words."""
        if self.refused > 0:
            return f"{self.refused:.0%} of the events are refused for lack of room"
        worst = max(("loop", self.loop), ("control", self.control), ("backlog", self.backlog), key=lambda part: part[1])
        return {
            "loop": f"the data process is busy for {self.loop:.0%} of the time",
            "control": f"the control process is busy for {self.control:.0%} of the time",
            "backlog": f"an inbox is full to {self.backlog:.0%}",
        }[worst[0]]


class Smoothed:
    """A number that follows its measurements within SMOOTH_S, from 0 on: a process that begins is busy with itself."""

    def __init__(self) -> None:
        self.value = 0.0
        self._at_s: float | None = None

    def add(self, measured: float, now_s: float) -> float:
        """One more measurement; the number then."""
        passed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        share = 1 - math.exp(-passed_s / SMOOTH_S)
        self.value += share * (measured - self.value)
        self._at_s = now_s
        return self.value


class Shedding:
    """Whether a PoP sends clients away, and how many."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: the load; 0 = never."""
        self._threshold = threshold
        self.is_on = False
        self._tokens = 0.0
        self._at_s = 0.0

    def look(self, load: float, best_other: float | None, streams: int, now_s: float) -> bool:
        """Bring it up to date. `best_other`: the least load of another PoP that takes clients; None: there is none."""
        has_room = best_other is not None and best_other < self._threshold * ROOM
        limit = self._threshold * (AGAIN if self.is_on else 1.0)
        self.is_on = self._threshold > 0 and load >= limit and has_room
        rate = max(LEAVING_PER_S, streams * LEAVING_SHARE_PER_S)
        self._tokens = min(rate, self._tokens + rate * max(0.0, now_s - self._at_s)) if self.is_on else 0.0
        self._at_s = now_s
        return self.is_on

    def take(self) -> bool:
        """Whether one more client is to be told to go."""
        if not self.is_on or self._tokens < 1:
            return False
        self._tokens -= 1
        return True
