"""Routing: which functions of this PoP an event goes to, and how (alone, or as one arrival of a join).

What it is: a table compiled from a resolved manifest, and a pure function from an event to directives that the store's scripts carry out.
What it is not: where functions are placed (the manifest says it), or the durable state of joins (the store keeps it).
What must stay true: the same table and event give the same directives; every ingest, mirror and commit carries the table's version, so that
a script can refuse directives made with an older one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeflow.core.channels import matches
from edgeflow.core.events import Event
from edgeflow.core.retries import RetryPolicy

Directive = dict[str, Any]
"""What a script does with one event for one function:

`f` function, `r` revision, `k` kind ("one" | "all" | "collect" | "reject"), `s` input name, and for joins `g` signature, `j` key, `n` arrivals
needed, `w` within (ms), `o` on_timeout; for "reject" `why`.
"""


@dataclass(frozen=True, slots=True)
class FunctionRoute:
    """One function that is placed at this PoP."""

    function: str
    revision: str
    inputs: tuple[tuple[str, str], ...]
    """(input name, channel) pairs."""
    join: Mapping[str, Any] | None
    publish: tuple[str, ...]
    context: Mapping[str, str]
    retry: RetryPolicy
    direct: bool = False
    """Its instance subscribes at the broker by itself (`qos: 0`): no event goes into its inbox."""

    @property
    def join_signature(self) -> str:
        """Names the shape of the join, so that a revision that only changes code goes on with the joins that are pending."""
        return hashlib.sha256(json.dumps([self.inputs, dict(self.join or {})], sort_keys=True).encode()).hexdigest()[
            :12
        ]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The functions of one namespace at one PoP. `version` is empty for the table of a namespace without a manifest."""

    version: str = ""
    functions: tuple[FunctionRoute, ...] = ()
    _by_channel: dict[str, tuple[tuple[FunctionRoute, str], ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def route(self, event: Event) -> list[Directive]:
        """Directives for `event` at this PoP; empty when nothing here subscribes to its channel."""
        return [_direct(route, name, event) for route, name in self._targets(event.channel)]

    def subscribes(self, channel: str) -> bool:
        """Whether any function here gets events of `channel`."""
        return bool(self._targets(channel))

    def inboxes(self, channel: str) -> list[str]:
        """Inboxes ("function:revision") that an event on `channel` may fill, by itself or as the last arrival of a join."""
        return [f"{route.function}:{route.revision}" for route, _ in self._targets(channel)]

    def _targets(self, channel: str) -> tuple[tuple[FunctionRoute, str], ...]:
        targets = self._by_channel.get(channel)
        if targets is None:
            durable = (route for route in self.functions if not route.direct)
            targets = tuple(
                (route, name) for route in durable for name, wanted in route.inputs if matches(wanted, channel)
            )
            if len(self._by_channel) < 10_000:
                self._by_channel[channel] = targets
        return targets

    def find(self, function: str, revision: str) -> FunctionRoute | None:
        """The route of one revision of a function, if it is the current one."""
        return next(
            (route for route in self.functions if route.function == function and route.revision == revision), None
        )

    def to_json(self) -> str:
        """Text form for the store."""
        return json.dumps([_dump(route) for route in self.functions], sort_keys=True)

    @classmethod
    def from_json(cls, version: str, text: str) -> "RouteTable":
        """Inverse of `to_json`."""
        return cls(version, tuple(_load(document) for document in json.loads(text)))


def compile_routes(manifest: Mapping[str, Any], pop: str) -> RouteTable:
    """The table of `pop` from a resolved manifest. Its version is a hash of its content."""
    routes = []
    for name, function in sorted(manifest.get("functions", {}).items()):
        if pop not in function["place"]["pops"]:
            continue
        retry = function.get("retry") or {}
        routes.append(
            FunctionRoute(
                function=name, revision=function["revision"],
                inputs=tuple((item["name"], item["channel"]) for item in function["inputs"]),
                join=function.get("join"), publish=tuple(function.get("publish") or ()), context=dict(function.get("context") or {}),
                retry=RetryPolicy(**retry), direct=any(item.get("qos") == 0 for item in function["inputs"]),
            )
        )  # fmt: skip
    text = RouteTable("", tuple(routes)).to_json()
    return RouteTable(hashlib.sha256(text.encode()).hexdigest()[:16], tuple(routes))


def _direct(route: FunctionRoute, name: str, event: Event) -> Directive:
    directive: Directive = {"f": route.function, "r": route.revision, "s": name, "k": "one"}
    join = route.join
    if join is None:
        return directive
    by = join.get("by") or "subject"
    key = event.subject if by == "subject" else event.attributes.get(by)
    if not key:
        return {**directive, "k": "reject", "why": f"no-join-key: the event has no {by!r} to join by"}
    directive.update(
        k=join["kind"], g=route.join_signature, j=key, w=join["within_ms"], o=join["on_timeout"], n=len(route.inputs)
    )
    if join["kind"] == "collect":
        count = event.attributes.get(join["count"], "")
        if not count.isascii() or not count.isdigit() or not 0 < int(count) <= 100_000:
            return {
                **directive,
                "k": "reject",
                "why": f"bad-count: attribute {join['count']!r} is {count[:20]!r}, not a number from 1 to 100000",
            }
        directive["n"] = int(count)
    return directive


def _dump(route: FunctionRoute) -> dict[str, Any]:
    retry = route.retry
    document = {
        "function": route.function, "revision": route.revision, "inputs": [list(pair) for pair in route.inputs],
        "join": dict(route.join) if route.join is not None else None, "publish": list(route.publish), "context": dict(route.context),
        "retry": {"attempts": retry.attempts, "backoff_ms": retry.backoff_ms, "timeout_ms": retry.timeout_ms},
    }  # fmt: skip
    # Only where it is set: the version of a table of durable functions stays what it was.
    return {**document, "direct": True} if route.direct else document


def _load(document: Mapping[str, Any]) -> FunctionRoute:
    return FunctionRoute(
        function=document["function"], revision=document["revision"], inputs=tuple((name, channel) for name, channel in document["inputs"]),
        join=document["join"], publish=tuple(document["publish"]), context=document["context"], retry=RetryPolicy(**document["retry"]),
        direct=document.get("direct", False),
    )  # fmt: skip
