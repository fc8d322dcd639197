"""How many instances of each function are to be awake, and how many are to exist, round by round.

What it is: what scaling.py is asked with: the data process's documents `load`, the depth of the inbox, and what was decided before.
What must stay true: a function with a fixed number has it; what this process has forgotten is taken from what runs.
"""

from collections.abc import Collection, Sequence
from typing import Any

from edgeflow.core.manifest import ResolvedFunction
from edgeflow.runner.memory import FunctionKey
from edgeflow.runner.plan import InstanceView
from edgeflow.runner.ports import StorePort
from edgeflow.runner.scaling import Load, Scale, Scaled, scale


class Elastic:
    """The numbers of one PoP."""

    def __init__(self, store: StorePort) -> None:
        self._store = store
        self._scaled: dict[FunctionKey, Scaled] = {}
        self._loads: dict[str, dict[str, Any]] = {}

    def look(self) -> None:
        """Read what all need; once a round."""
        self._loads = self._store.local.docs("load")

    def decide(
        self, key: FunctionKey, function: ResolvedFunction, instances: Sequence[InstanceView], now_ms: int
    ) -> tuple[int, int]:
        """(to be awake, to exist)."""
        limits = function.scale
        if not limits.is_elastic:
            return limits.least, limits.least
        mine = [one for one in instances if one.revision == function.revision and one.running]
        awake = [one for one in mine if not one.is_to_park or one.woken]
        depth = self._store.namespace(key[0]).inbox_stats(key[1], function.revision)
        document = self._loads.get("/".join(key), {})
        known = document if document.get("revision") == function.revision else {}
        load = Load(
            arrivals_per_s=float(known.get("arrivals_per_s") or 0),
            service_s=float(known.get("service_ms") or 0) / 1000,
            last_ms=int(known.get("last_ms") or 0),
            waiting=depth.ready,
            # Whoever was woken had something to do, even if it is done by now.
            running=max(depth.claimed, sum(1 for one in mine if one.woken)),
        )
        before = self._scaled.get(key)
        after = scale(before, load, Scale(limits.least, limits.most, limits.idle_ms), len(awake), now_ms)
        self._scaled[key] = after
        return after.active, max(after.active, limits.kept)

    def forget(self, keys: Collection[FunctionKey]) -> None:
        """These functions are gone."""
        for key in keys:
            if self._scaled.pop(key, None) is not None:
                self._store.local.delete_doc("load", "/".join(key))
