"""What a link has measured: round trips, and what its line carries.

What it is: the last minute of round trips as quantiles, and the bytes that were carried, over all connections of one link.
What it is not: a probe. Nothing is sent to measure; a line that was never full has no known width.
What must stay true: bounded memory; time is an argument.
"""

from collections import deque
from collections.abc import Sequence

SAMPLES = 240
"""Round trips that are kept: a minute of them."""
WEIGHT = 0.3
FADE = 0.98
"""What a width that was seen is worth a second later, if less is carried while the line is full."""


class Measures:
    """Of one link."""

    def __init__(self) -> None:
        self.rtt_ms: float | None = None
        """Smoothed."""
        self.rtt_jitter_ms: float | None = None
        """Smoothed distance of a round trip from `rtt_ms`."""
        self.sent_bytes = 0
        self.received_bytes = 0
        self.bandwidth_bytes_s: float | None = None
        """What the line took in a second in which something waited all the time; None = it was never full."""
        self._rtts: deque[float] = deque(maxlen=SAMPLES)
        self._acked_bytes = 0
        self._since_s: float | None = None
        self._was_busy = False

    def round_trip(self, rtt_ms: float) -> None:
        """A ping was answered."""
        self._rtts.append(rtt_ms)
        if self.rtt_ms is None or self.rtt_jitter_ms is None:
            self.rtt_ms, self.rtt_jitter_ms = rtt_ms, 0.0
            return
        self.rtt_jitter_ms = (1 - WEIGHT) * self.rtt_jitter_ms + WEIGHT * abs(rtt_ms - self.rtt_ms)
        self.rtt_ms = (1 - WEIGHT) * self.rtt_ms + WEIGHT * rtt_ms

    def acknowledged(self, size_bytes: int) -> None:
        """The peer has dealt with so many bytes more."""
        self._acked_bytes += size_bytes

    def second(self, now_s: float, *, busy: bool) -> None:
        """Once a second. `busy`: something is under way now."""
        if self._since_s is not None and busy and self._was_busy and now_s > self._since_s:
            rate = self._acked_bytes / (now_s - self._since_s)
            self.bandwidth_bytes_s = max(rate, FADE * (self.bandwidth_bytes_s or 0.0))
        self._acked_bytes, self._since_s, self._was_busy = 0, now_s, busy

    def quantiles(self) -> tuple[float | None, float | None]:
        """p50 and p99 of the round trips (ms) of the last minute."""
        ordered = sorted(self._rtts)
        return _quantile(ordered, 0.5), _quantile(ordered, 0.99)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None
