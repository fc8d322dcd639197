"""What this PoP has to do, as its data process measures it, for the control process, which tells clients.

What it is: the local document `pop_load`: share of busy time, the fullest inbox, refusals.
What it is not: the number that clients see (edgeflow.core.load), or the load of functions (edgeflow.flow.load).
What must stay true: it is written when it changes, and every KEEP_S, so that silence can be told from rest.
"""

import time
from collections.abc import Iterable

from edgeflow.flow.reactor import Reactor
from edgeflow.store import Store
from edgeflow.store.namespace import now_ms

KEEP_S = 5.0
STEP = 0.05
"""Smaller changes are not worth a write."""
DOC = "pop_load"


class PopLoad:
    """One per data process."""

    def __init__(self, store: Store, reactor: Reactor, inbox_limit: int) -> None:
        self._store = store
        self._reactor = reactor
        self._limit = inbox_limit
        self._looked = (time.monotonic(), reactor.waited_s)
        self._counts: dict[str, tuple[int, int]] = {}
        self._written: tuple[float, dict[str, float]] = (0.0, {})

    def look(self, namespaces: Iterable[str]) -> None:
        """Measure the time since the last look; called once a second."""
        now_s = time.monotonic()
        (before_s, waited_s), self._looked = self._looked, (now_s, self._reactor.waited_s)
        passed_s = max(1e-6, now_s - before_s)
        backlog, came, refused = 0.0, 0, 0
        for name in namespaces:
            namespace = self._store.namespace(name)
            backlog = max(backlog, self._fullest(name))
            counters = namespace.counters()
            count = (counters.get("events_ingested", 0), counters.get("events_refused:full", 0))
            old = self._counts.get(name, count)
            self._counts[name] = count
            came, refused = came + max(0, count[0] - old[0]), refused + max(0, count[1] - old[1])
        found = {
            "loop": min(1.0, max(0.0, 1 - (self._reactor.waited_s - waited_s) / passed_s)),
            "backlog": min(1.0, backlog),
            "refused": refused / (came + refused) if refused else 0.0,
        }
        written_s, written = self._written
        if now_s - written_s < KEEP_S and all(
            abs(value - written.get(name, -1)) < STEP for name, value in found.items()
        ):
            return
        document = {name: round(value, 3) for name, value in found.items()}
        self._store.local.put_doc(DOC, "self", {**document, "at_ms": now_ms()}, wake=False)
        self._written = (now_s, document)

    def _fullest(self, name: str) -> float:
        namespace = self._store.namespace(name)
        table = namespace.routes()
        if not table.functions:
            return 0.0
        pending = namespace.pending()
        fullest = 0.0
        for route in table.functions:
            bounds = [table.policy(source.channel).max_pending or self._limit for source in route.inputs]
            fullest = max(fullest, pending.get(route.inbox, 0) / max(1, min(bounds, default=self._limit)))
        return fullest
