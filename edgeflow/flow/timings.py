"""How long invocations took, split into platform, waiting and handler time.

Per invocation: total = done - accepted; handler = what the handler used without fetching; waiting = from ready until an instance was free, plus
the time in that instance's own queue; platform = total - waiting - handler. All in ms.
"""

import time
from collections import deque
from typing import Any

SAMPLES = 2000
FAILURE_CHARS = 300


class Timings:
    """The newest SAMPLES invocations of one function."""

    def __init__(self) -> None:
        self.since_ms = int(time.time() * 1000)
        self.committed = 0
        self.failed = 0
        self.busy_us = 0.0
        """What its instances spent on invocations that they ended."""
        self.last_failure: dict[str, Any] | None = None
        self._platform: deque[float] = deque(maxlen=SAMPLES)
        self._waiting: deque[float] = deque(maxlen=SAMPLES)
        self._handler: deque[float] = deque(maxlen=SAMPLES)

    def add(self, total_us: float, waiting_us: float, handler_us: float) -> None:
        """One committed invocation."""
        self.committed += 1
        self._platform.append(max(0.0, total_us - waiting_us - handler_us) / 1000)
        self._waiting.append(max(0.0, waiting_us) / 1000)
        self._handler.append(max(0.0, handler_us) / 1000)

    def fail(self, reason: str, detail: str) -> None:
        """One attempt that failed."""
        self.failed += 1
        line = (detail.strip().splitlines() or [""])[0][:FAILURE_CHARS]
        self.last_failure = {"reason": reason, "detail": line, "at_ms": int(time.time() * 1000)}

    def to_json(self) -> dict[str, Any]:
        """Counts, and p50 and p99 (ms) of each part."""
        return {
            "invocations": self.committed, "failed": self.failed, "platform_ms": _quantiles(self._platform),
            "waiting_ms": _quantiles(self._waiting), "handler_ms": _quantiles(self._handler), "since_ms": self.since_ms,
            "last_failure": self.last_failure,
        }  # fmt: skip


def _quantiles(samples: deque[float]) -> dict[str, float | None]:
    if not samples:
        return {"p50": None, "p99": None}
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {"p50": round(ordered[last // 2], 3), "p99": round(ordered[int(last * 0.99)], 3)}
