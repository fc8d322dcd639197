"""Windows in event time: which windows an event belongs to. Pure.

What it is: the assignment of windows, aligned to the Unix epoch; a session has no fixed windows, its events find each other.
What it is not: watermarks and closing, which depend on what has arrived (the store's scripts).
What must stay true: the windows of an event depend on nothing but its time and the shape of the window; each is [start, end) and holds it.

Reference: Akidau et al., The Dataflow Model, VLDB 2015, section 2.2 (fixed, sliding, sessions).
"""

from dataclasses import dataclass

EARLIEST_MS = 31_536_000_000
"""The year 1971: a clock that was never set says less."""
AHEAD_MS = 3_600_000
"""How far (ms) an event's time may be ahead of the PoP's clock: one that is further would close every window before its time."""


@dataclass(frozen=True, slots=True)
class Window:
    """Shape of a window. All times in ms; `every_ms` is `size_ms` for tumbling windows and 0 for sessions, whose gap is `size_ms`."""

    type: str
    size_ms: int
    every_ms: int
    lateness_ms: int
    idle_ms: int

    @property
    def is_session(self) -> bool:
        """Whether events find each other by a gap."""
        return self.type == "session"

    def of(self, time_ms: int) -> list[list[int]]:
        """[start, end) of each window that an event at `time_ms` belongs to, the earliest first; none for a session."""
        if self.is_session:
            return []
        last = time_ms - time_ms % self.every_ms
        first = last - ((self.size_ms - 1 - (time_ms - last)) // self.every_ms) * self.every_ms
        return [[start, start + self.size_ms] for start in range(first, last + 1, self.every_ms)]


def time_problem(time_ms: int, now_ms: int) -> str | None:
    """Why an event of that time cannot be put into a window, or None."""
    if time_ms < EARLIEST_MS:
        return f"its time is {time_ms} ms after 1970; the clock of its source is not set"
    if time_ms > now_ms + AHEAD_MS:
        return f"its time is {(time_ms - now_ms) // 1000} s ahead of this PoP's clock; {AHEAD_MS // 1000} s are allowed"
    return None
