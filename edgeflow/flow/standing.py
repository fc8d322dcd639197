"""How the instances of one PoP stand, written down for the control process and for whoever looks.

What it is: the local documents `instance_state` and `function_stats`: states, counts and times.
What must stay true: a document is written when it changes only; `since_ms` is when the state in it began.
"""

from collections import defaultdict
from typing import Any

from edgeflow.flow.direct import DirectStats
from edgeflow.flow.roster import Roster
from edgeflow.flow.sessions import InstanceSpec
from edgeflow.flow.timings import Timings
from edgeflow.store import Store
from edgeflow.store.namespace import now_ms


class Standing:
    """The documents of one PoP's instances, and the figures that go into them."""

    def __init__(self, store: Store, roster: Roster) -> None:
        self._store = store
        self._roster = roster
        self.timings: dict[tuple[str, str], Timings] = defaultdict(Timings)
        self.direct: dict[tuple[str, str], DirectStats] = defaultdict(DirectStats)
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        """Committed and failed, by instance."""
        self._written: dict[str, dict[str, Any]] = {}

    def write(self, spec: InstanceSpec, state: str) -> None:
        """The state of an instance, if anything changed."""
        session = self._roster.get(spec.instance)
        committed, failed = self.counts[spec.instance]
        document = {
            "state": state, "in_flight": len(session.held) if session else 0, "committed": committed, "failed": failed,
            "namespace": spec.namespace, "function": spec.function, "revision": spec.revision,
            **({"woken": True} if session is not None and session.woken else {}),
        }  # fmt: skip
        before = self._written.get(spec.instance, {})
        if {**document, "since_ms": before.get("since_ms")} == before:
            return
        document["since_ms"] = before.get("since_ms") if before.get("state") == state else now_ms()
        self._written[spec.instance] = document
        self._store.local.put_doc("instance_state", spec.instance, document)

    def write_all(self) -> None:
        """States and times of all; called once a second."""
        for session in self._roster.all():
            self.write(session.spec, session.state)
        for (namespace, function), timings in self.timings.items():
            self._store.local.put_doc("function_stats", f"{namespace}/{function}", timings.to_json())
        for (namespace, function), stats in self.direct.items():
            self._store.local.put_doc("function_stats", f"{namespace}/{function}", stats.to_json())

    def forget(self, spec: InstanceSpec) -> None:
        """The runner has removed the instance."""
        self._written.pop(spec.instance, None)
        self.counts.pop(spec.instance, None)
        if (stats := self.direct.get((spec.namespace, spec.function))) is not None:
            stats.forget(spec.instance)
