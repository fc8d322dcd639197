"""Drift: what somebody, or something, changed at this PoP behind edgeflow's back, and that it was put right.

What it is: one local document per thing (`drift`, id `<what>:<name>`), with how often and when it was found other than it should be, and when it was
right again.
What it is not: the finding or the healing. Whoever keeps a thing as it is declared does both, and says so here.
What must stay true: a document that is not healed is one that is wrong now; their number is bounded, the oldest that are healed go first.
"""

import time
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

KIND = "drift"
KEPT = 200

WHATS = ("routes", "homes", "quota", "account", "instance")
"""Tables of the namespace's slot; homes of prefixes there; its quota there; accounts of the broker; instances of functions."""


class Docs(Protocol):
    """Where the documents go."""

    def put_doc(self, kind: str, id: str, document: dict[str, Any]) -> None: ...
    def get_doc(self, kind: str, id: str) -> dict[str, Any] | None: ...
    def docs(self, kind: str) -> dict[str, dict[str, Any]]: ...
    def delete_doc(self, kind: str, id: str) -> None: ...


class DriftBook:
    """What was found."""

    def __init__(self, docs: Docs) -> None:
        self._docs = docs

    def found(self, what: str, name: str, detail: str, *, healed: bool = True) -> None:
        """Something was not as it should be. `healed`: it is again; else `settled` says so later."""
        id, now_ms = f"{what}:{name}", time.time_ns() // 1_000_000
        known = self._docs.get_doc(KIND, id)
        # What is wrong still was counted when it was found.
        count = (known or {}).get("count", 0) + (0 if known is not None and known["healed_ms"] is None else 1)
        document = {
            "what": what, "name": name, "detail": detail, "count": count, "found_ms": now_ms, "healed_ms": now_ms if healed else None,
        }  # fmt: skip
        if known is not None and known["healed_ms"] is None and not healed:
            document["found_ms"] = known["found_ms"]
        else:
            log.warning("drift", what=what, name=name, detail=detail, healed=healed)
        self._docs.put_doc(KIND, id, document)
        if known is None:
            self._bound()

    def settled(self, what: str, name: str) -> None:
        """It is as it should be; nothing happens when nobody said that it was not."""
        id = f"{what}:{name}"
        known = self._docs.get_doc(KIND, id)
        if known is not None and known["healed_ms"] is None:
            self._docs.put_doc(KIND, id, {**known, "healed_ms": time.time_ns() // 1_000_000})
            log.info("drift_healed", what=what, name=name)

    def _bound(self) -> None:
        known = self._docs.docs(KIND)
        surplus = len(known) - KEPT
        for id in sorted(known, key=lambda one: (known[one]["healed_ms"] is None, known[one]["found_ms"]))[
            : max(0, surplus)
        ]:
            self._docs.delete_doc(KIND, id)
