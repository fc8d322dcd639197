"""What functions have to do at this PoP: how much arrives and how long it takes, for whoever scales them.

What it is: the local documents `load`, one per function and second, from the figures of its instances and the depth of its inbox.
What must stay true: a figure that is not known is absent, never guessed; what is smoothed follows a change within SMOOTH_S.
"""

import math
import time
from dataclasses import dataclass

from edgeflow.flow.roster import Roster
from edgeflow.flow.standing import Standing
from edgeflow.store import Store
from edgeflow.store.namespace import now_ms

SMOOTH_S = 5.0


@dataclass(slots=True)
class _Seen:
    at_s: float
    ended: int
    busy_us: float
    pending: int
    arrivals_per_s: float = 0.0
    service_ms: float = 0.0
    last_ms: int = 0


class LoadBook:
    """The load of one PoP's functions."""

    def __init__(self, store: Store, roster: Roster, standing: Standing) -> None:
        self._store = store
        self._roster = roster
        self._standing = standing
        self._seen: dict[tuple[str, str, str], _Seen] = {}

    def write(self) -> None:
        """Write down what the last second was like."""
        now_s = time.monotonic()
        found = {
            (one.spec.namespace, one.spec.function, one.spec.revision)
            for one in self._roster.all()
            if not one.route.direct
        }
        for key in found:
            namespace, function, revision = key
            timings = self._standing.timings[(namespace, function)]
            ended, busy_us = timings.committed + timings.failed, timings.busy_us
            pending = self._store.namespace(namespace).pending_of(f"{function}:{revision}")
            before = self._seen.get(key)
            after = self._seen[key] = _Seen(now_s, ended, busy_us, pending)
            if before is None or now_s <= before.at_s:
                continue
            passed_s = now_s - before.at_s
            weight = 1 - math.exp(-passed_s / SMOOTH_S)
            done = ended - before.ended
            arrived = max(0, done + pending - before.pending)
            after.arrivals_per_s = before.arrivals_per_s + weight * (arrived / passed_s - before.arrivals_per_s)
            after.service_ms = before.service_ms
            after.last_ms = now_ms() if arrived or pending else before.last_ms
            if done > 0 and busy_us > before.busy_us:
                mean_ms = (busy_us - before.busy_us) / done / 1000
                after.service_ms = (
                    mean_ms if not before.service_ms else before.service_ms + weight * (mean_ms - before.service_ms)
                )
            document = {
                "revision": revision,
                "arrivals_per_s": round(after.arrivals_per_s, 3),
                "service_ms": round(after.service_ms, 3),
                "last_ms": after.last_ms,
            }
            self._store.local.put_doc("load", f"{namespace}/{function}", document, wake=False)
        for key in set(self._seen) - found:
            del self._seen[key]
