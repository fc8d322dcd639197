"""How each function stands at this PoP, for whoever looks here or at another PoP.

What it is: the local documents `function_state`, and the values `states/<namespace>/<function>/<pop>` of the system namespace.
What must stay true: what is said is what is so now, with the reason; progress alone is shared with the other PoPs every two seconds at most.
"""

import json
from collections.abc import Collection
from typing import Any

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.manifest import ResolvedFunction
from edgeflow.runner.builds import Build
from edgeflow.runner.memory import FunctionKey, Memory
from edgeflow.runner.plan import READY, InstanceView
from edgeflow.runner.ports import StorePort
from edgeflow.runner.rollout import Rollout

SHARE_EVERY_MS = 2_000
"""Shortest time between two values of `states/...` while only the progress of a build changes."""


class Reports:
    """What one PoP says about its functions."""

    def __init__(self, store: StorePort, pop: str) -> None:
        self._store = store
        self._pop = pop
        self._gateways: dict[str, bool] = {}
        self._shared: dict[FunctionKey, tuple[dict[str, Any], int]] = {}
        self.states: dict[str, str] = {}
        """State by "<ns>/<fn>"."""

    def look(self) -> None:
        """Read what all reports need; once a round."""
        self._gateways = {
            name: bool(state.get("connected")) for name, state in self._store.local.docs("gateway_state").items()
        }

    def report(
        self, key: FunctionKey, function: ResolvedFunction | None, rollout: Rollout | None, build: Build | None, memory: Memory,
        instances: list[InstanceView], now_ms: int,
    ) -> None:  # fmt: skip
        """Say how a function stands, as its manifest wants it; `live` is the revision that serves meanwhile."""
        namespace, name = key
        id = f"{namespace}/{name}"
        listed = [
            {"instance": one.instance, "revision": one.revision, "state": state_of(one), "started_ms": one.started_ms}
            for one in instances
        ]
        if function is None or rollout is None:
            state: dict[str, Any] = {"state": "stopped", "revision": "", "live": "", "reason": "", "last_log_lines": []}
        else:
            state = {
                **judge(function, rollout, build, memory, instances),
                "revision": function.revision,
                "live": rollout.live,
            }
        document = {
            "namespace": namespace,
            "function": name,
            **state,
            "wanted": function.scale.kept if function else 0,
            "waits": memory.waits,
            "instances": listed,
        }
        self.states[id] = state["state"]
        self._store.local.put_doc("function_state", id, document)
        self._share(key, {"pop": self._pop, "gateway": self._gateways.get(namespace, False), **state}, now_ms)

    def _share(self, key: FunctionKey, state: dict[str, Any], now_ms: int) -> None:
        """Replicate the state, so that a manifest applied at one PoP can be watched there. Progress lines at most every two seconds."""
        shared, shared_ms = self._shared.get(key, ({}, 0))
        if state == shared:
            return
        urgent = any(state[name] != shared.get(name) for name in ("state", "revision", "live", "gateway"))
        if not urgent and now_ms - shared_ms < SHARE_EVERY_MS:
            return
        data = json.dumps({**state, "at_ms": now_ms}).encode()
        self._store.namespace(SYSTEM_NAMESPACE).put(self._shared_key(key), data, content_type="application/json")
        self._shared[key] = (state, now_ms)

    def _shared_key(self, key: FunctionKey) -> str:
        return f"states/{key[0]}/{key[1]}/{self._pop}"

    def known(self) -> set[FunctionKey]:
        """The functions that have a report."""
        return {(one["namespace"], one["function"]) for one in self._store.local.docs("function_state").values()}

    def forget(self, keys: Collection[FunctionKey]) -> None:
        """These functions are neither wanted here nor running."""
        for key in keys:
            self._store.local.delete_doc("function_state", f"{key[0]}/{key[1]}")
            system = self._store.namespace(SYSTEM_NAMESPACE)
            if system.get(self._shared_key(key)) is not None:
                system.delete(self._shared_key(key))
            self.states.pop(f"{key[0]}/{key[1]}", None)
            self._shared.pop(key, None)


def state_of(one: InstanceView) -> str:
    """In a word."""
    if not one.running:
        return "ended"
    return "stopping" if one.stopping_since_ms is not None else one.state or "starting"


def judge(
    function: ResolvedFunction, rollout: Rollout, build: Build | None, memory: Memory, instances: list[InstanceView]
) -> dict[str, Any]:
    """State, reason and last log lines of a function that is wanted here."""
    if rollout.phase == "rolled-back":
        return {"state": "rolled-back", "reason": rollout.reason, "last_log_lines": list(rollout.last_log_lines)}
    current = [one for one in instances if one.revision == function.revision and one.content == memory.content]
    ready = sum(1 for one in current if one.running and state_of(one) in READY)
    if ready >= function.scale.kept:
        # What ended lately is still said: an instance that runs out of memory with each event is ready in between.
        return {"state": "ready", "reason": memory.waits or _why(memory), "last_log_lines": memory.last_log_lines}
    if build is not None and build.prepared is None:
        if build.error:
            return {"state": "failing", "reason": build.error, "last_log_lines": build.last_lines}
        return {"state": "building", "reason": build.progress[-1] if build.progress else "", "last_log_lines": []}
    if memory.failures:
        return {"state": "failing", "reason": _why(memory), "last_log_lines": memory.last_log_lines}
    return {
        "state": "starting",
        "reason": memory.waits or f"{ready} of {function.scale.kept} instances ready",
        "last_log_lines": [],
    }


def _why(memory: Memory) -> str:
    return f"{memory.reason} ({memory.failures} times in a row)" if memory.failures > 1 else memory.reason
