"""Routing: which functions of this PoP an event goes to, and how (alone, or as one arrival of a join).

What it is: a table compiled from a resolved manifest, and a pure function from an event to directives that the store's scripts carry out.
What it is not: where functions are placed (the manifest says it), or the durable state of joins (the store keeps it).
What must stay true: the same table and event give the same directives; every ingest, mirror and commit carries the table's version, so that
a script can refuse directives made with an older one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from edgeflow.core.channels import INVOKE_LEVEL, captures_of, delivers, matches, overlap, template_filter
from edgeflow.core.events import Event
from edgeflow.core.expressions import compile_expression, count_of, document_of, key_of
from edgeflow.core.gathered import is_batch, unpack
from edgeflow.core.manifest_scalars import size_bytes
from edgeflow.core.ownership import rank
from edgeflow.core.retries import RetryPolicy
from edgeflow.core.windows import Window, time_problem
from edgeflow.errors import BadEvent, EdgeflowError

Directive = dict[str, Any]
"""What a script does with one event for one function. Letters, since they travel with each event:

always  `f` function, `r` revision, `s` input name, `k` kind: "one" | "all" | "collect" | "window" | "latest" | "reject"
reject  `why`, which begins with the reason
join    `g` signature, `j` key, `n` inputs there are (collect: events wanted; window: most events), `w` how long it waits (ms), `o` on_timeout,
        `c` most that may be pending; all: `m` inputs that start it, `u` duplicates
window  `et` event time (ms), `ws` list of [start, end], or `gap` of a session; `la` lateness, `id` idle (ms)
latest  `g` signature, `j` key ("" = none)
several PoPs: `ow` those of the function in the order in which they own this arrival; or `p` this PoP, where each does its own work
and     `q` key whose invocations go one after the other, `z` EKV key of its state, `e` deadline (ms), `mx` and `of` bound of the inbox and what
        happens there, `sj` subject, `l` side inputs [{g, s, j}], `y` somebody waits for the outcome, `rp` replay, `sh` shadow
"""

Body = Callable[[Event], bytes]
"""Gives the body of an event. Raises EdgeflowError when it cannot be read here now."""

DEFAULT_PENDING = 10_000
MAX_GROUP = 100_000
"""Most events of one collect or window."""
MAX_KEY_CHARS = 1024
_STATE_KEY_CHARS = 200


@dataclass(frozen=True, slots=True)
class InputRoute:
    """One input of a function: its parameter, the MQTT filter of its channels, levels of captures, and its condition."""

    name: str
    channel: str
    captures: Mapping[str, int] = field(default_factory=dict)
    where: str | None = None


@dataclass(frozen=True, slots=True)
class SideRoute:
    """A side input: the newest event of a channel, of a key when `by` is given."""

    name: str
    channel: str
    captures: Mapping[str, int] = field(default_factory=dict)
    by: str | None = None


NORMAL = 1
RANKS = {"high": 0, "normal": NORMAL, "low": 2}


@dataclass(frozen=True, slots=True)
class ChannelPolicy:
    """What a channel does when an inbox behind it is full. `max_pending` None = the PoP's limit."""

    on_full: str = "refuse"
    max_pending: int | None = None
    deadline_ms: int | None = None
    gated: bool = False
    priority: str | None = None
    """Of its bodies on the links; None: normal."""

    @property
    def rank(self) -> int:
        """0 (high) to 2 (low)."""
        return RANKS.get(self.priority or "", NORMAL)


class Downstream(NamedTuple):
    """An inbox that a function's outputs go to and that refuses; `bound` None = the PoP's limit."""

    inbox: str
    bound: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a function at several PoPs runs, and how: `run` is "once", "local" or "every". `here` is the PoP of the table."""

    pops: tuple[str, ...]
    run: str
    here: str


@dataclass(frozen=True, slots=True)
class FunctionRoute:
    """One function that is placed at this PoP."""

    function: str
    revision: str
    inputs: tuple[InputRoute, ...]
    join: Mapping[str, Any] | None
    latest: tuple[SideRoute, ...]
    keyed: Mapping[str, Any] | None
    """{"by": expression, "state": bool} of a function whose invocations of one key go one after the other."""
    publish: tuple[str, ...]
    context: Mapping[str, str]
    retry: RetryPolicy
    max_outputs: int | None = None
    """Most events of one commit, None = the PoP's limit."""
    max_output_bytes: int | None = None
    """Most bytes of all events of one commit, None = no limit of its own."""
    contract: str = "sdk"
    direct: bool = False
    """Its instance subscribes at the broker by itself (`qos: 0`): no event goes into its inbox."""
    shape: str = ""
    """Names the shape of the join, so that a revision that only changes code goes on with the joins that are pending."""
    placement: Placement | None = None
    """None: this PoP is its only one."""

    @property
    def inbox(self) -> str:
        """Name of its inbox, "function:revision"."""
        return f"{self.function}:{self.revision}"

    @property
    def is_shared(self) -> bool:
        """Whether each of its events is handled once by one of several PoPs."""
        return self.placement is not None and self.placement.run == "once"

    @property
    def window(self) -> Window | None:
        """The window it collects, if it does."""
        return Window(**self.join["window"]) if self.join is not None and self.join["kind"] == "window" else None

    @property
    def takes_lists(self) -> bool:
        """Whether its parameters are lists of events."""
        join = self.join
        return join is not None and (join["kind"] in ("collect", "window") or join.get("duplicates") == "all")

    @property
    def takes_parts(self) -> bool:
        """Whether it may be started without some of its inputs."""
        join = self.join
        return join is not None and (join["kind"] == "k" or (join["kind"] == "all" and join["on_timeout"] == "partial"))

    def captures_of(self, name: str, channel: str) -> dict[str, str]:
        """The captures of an event that came in as input `name`."""
        sources: tuple[InputRoute | SideRoute, ...] = (*self.inputs, *self.latest)
        for one in sources:
            if one.name == name and one.captures and matches(one.channel, channel):
                return captures_of(one.captures, channel)
        return {}


_Source = InputRoute | SideRoute
_Target = tuple[FunctionRoute, _Source, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The functions of one namespace at one PoP. `version` is empty for the table of a namespace without a manifest."""

    version: str = ""
    functions: tuple[FunctionRoute, ...] = ()
    policies: Mapping[str, ChannelPolicy] = field(default_factory=dict)
    """By MQTT filter; of several that match, the first in their order."""
    text: str = "[[], {}]"
    _by_channel: dict[str, tuple[_Target, ...]] = field(default_factory=dict, compare=False, repr=False)
    _policy_of: dict[str, ChannelPolicy] = field(default_factory=dict, compare=False, repr=False)
    _down: dict[str, tuple[Downstream, ...]] = field(default_factory=dict, compare=False, repr=False)

    def route(self, event: Event, now_ms: int, body: Body, cause: str = "") -> list[Directive]:
        """Directives for `event` at this PoP at the time `now_ms`; empty when nothing here wants it. `cause`: what names it wherever it
        came from: the invocation of a function at several PoPs that put it out, or the name that a client gave it."""
        targets = self._targets(event.channel)
        if not targets:
            return []
        if self.invoked(event.channel) is not None:
            # Whoever calls a function by name wants one outcome, however it runs.
            found = [(route, self._invoke(route, source, event, body)) for route, source, _ in targets]
            return [_owned(route.placement, directive, event, cause) for route, directive in found]
        policy = self.policy(event.channel)
        directives = []
        for route, source, captures in targets:
            if not _is_for(route.placement, event):
                continue
            directive = _direct(route, source, captures, event, now_ms, body, policy)
            if directive is not None:
                directives.append(_placed(route.placement, directive, event, cause))
        return directives

    def invoked(self, channel: str) -> str | None:
        """The function that an event on `channel` invokes by name (`<namespace>/_invoke/<function>`), or None for other channels."""
        _, level, name = (*channel.split("/", 2), "", "")[:3]
        return name if level == INVOKE_LEVEL else None

    def again(self, function: str, event: Event, now_ms: int, body: Body) -> list[Directive]:
        """Directives of one function for an event that arrives again (a redrive, a replay)."""
        policy = self.policy(event.channel)
        found = [
            _direct(route, source, captures, event, now_ms, body, policy)
            for route, source, captures in self._targets(event.channel)
            if route.function == function and isinstance(source, InputRoute)
        ]
        return [directive for directive in found if directive is not None]

    def whole(self, route: FunctionRoute, inputs: Sequence[tuple[str, Event]], body: Body) -> Directive:
        """The directive of an invocation whose inputs (name, event) are all there. Raises EdgeflowError when its key cannot be found out."""
        trigger = next((event for name, event in inputs if any(name == one.name for one in route.inputs)), inputs[0][1])
        name = next((name for name, event in inputs if event is trigger), "")
        directive = _base(route, name, self.policy(trigger.channel), trigger)
        directive.pop("l", None)  # they are among the inputs
        _add_turn(directive, route, _Looked(trigger, route.captures_of(name, trigger.channel), body))
        return directive

    def subscribes(self, channel: str) -> bool:
        """Whether any function here gets events of `channel`."""
        return bool(self._targets(channel))

    def looks_inside(self, channel: str) -> bool:
        """Whether routing an event of `channel` may need its body."""
        return any(
            compile_expression(text).needs_data
            for route, source, _ in self._targets(channel)
            for text in _expressions(route, source)
        )

    def policy(self, channel: str) -> ChannelPolicy:
        """The policy of a channel."""
        policy = self._policy_of.get(channel)
        if policy is None:
            found = (one for pattern, one in self.policies.items() if matches(pattern, channel))
            policy = next(found, ChannelPolicy())
            if len(self._policy_of) < 10_000:
                self._policy_of[channel] = policy
        return policy

    @property
    def best_rank(self) -> int | None:
        """The rank of the channels that go first, None when no channel has a priority."""
        ranks = {policy.rank for policy in self.policies.values()} - {NORMAL}
        return min(ranks | {NORMAL}) if ranks else None

    def inboxes(self, channel: str) -> list[str]:
        """Inboxes ("function:revision") that an event on `channel` may fill, by itself or as the last arrival of a join."""
        return [route.inbox for route, source, _ in self._targets(channel) if isinstance(source, InputRoute)]

    def takes_all(self, channel: str) -> bool:
        """Whether all events on `channel` go to the same inboxes, whatever is in them."""
        invoked = self.invoked(channel) is not None
        return all(
            invoked or source.where is None for _, source, _ in self._targets(channel) if isinstance(source, InputRoute)
        )

    def downstream(self, function: str) -> tuple[Downstream, ...]:
        """The inboxes here that the outputs of a function fill and that refuse when they are full; those that lead back to it are left out."""
        found = self._down.get(function)
        if found is None:
            found = self._down[function] = tuple(self._find_downstream(function))
        return found

    def find(self, function: str, revision: str) -> FunctionRoute | None:
        """The route of one revision of a function, if it is the current one."""
        return next(
            (route for route in self.functions if route.function == function and route.revision == revision), None
        )

    def current(self, function: str) -> FunctionRoute | None:
        """The route of a function's current revision, if it is placed here."""
        return next((route for route in self.functions if route.function == function), None)

    def to_json(self) -> str:
        """Text form for the store."""
        return self.text

    @classmethod
    def from_json(cls, version: str, text: str) -> "RouteTable":
        """Inverse of `to_json`."""
        functions, policies = json.loads(text)
        return cls(
            version,
            tuple(_load(document) for document in functions),
            {pattern: ChannelPolicy(**policy) for pattern, policy in policies.items()},
            text,
        )

    def _targets(self, channel: str) -> tuple[_Target, ...]:
        targets = self._by_channel.get(channel)
        if targets is None:
            targets = tuple(self._find_targets(channel))
            if len(self._by_channel) < 10_000:
                self._by_channel[channel] = targets
        return targets

    def _find_targets(self, channel: str) -> Iterator[_Target]:
        durable = [route for route in self.functions if not route.direct]
        invoked = self.invoked(channel)
        if invoked is not None:
            yield from ((route, route.inputs[0], {}) for route in durable if route.function == invoked)
            return
        for route in durable:
            # Side inputs first: an event that is both is the newest for the invocation that it starts.
            sources: tuple[_Source, ...] = (*route.latest, *route.inputs)
            for source in sources:
                if delivers(source.channel, channel):
                    yield route, source, captures_of(source.captures, channel)

    def _invoke(self, route: FunctionRoute, source: _Source, event: Event, body: Body) -> Directive:
        directive = {**_base(route, source.name, self.policy(event.channel), event), "y": 1}
        gathers = is_batch(event.datacontenttype)
        if route.join is not None and not gathers:
            return _reject(directive, "not-invocable", f"{route.function} joins events, so one event cannot start it")
        try:
            if gathers:
                # All inputs are in it. It is opened here only for the sake of a key.
                if route.keyed is not None:
                    namespace = event.channel.partition("/")[0]
                    inputs = unpack(body(event), namespace=namespace, source=event.source, now_ms=event.time_ms)
                    directive = {**self.whole(route, inputs, lambda one: one.data or b""), **directive}
                return directive
            looked = _Looked(event, {}, body)
            _add_sides(directive, route, looked)
            _add_turn(directive, route, looked)
        except EdgeflowError as error:
            return _reject(directive, "no-key", error.message)
        return directive

    def _find_downstream(self, function: str) -> Iterator[Downstream]:
        for name in sorted(self._successors(function)):
            route = self.current(name)
            if route is None or function in self._reachable(name):
                continue
            policies = [self.policy(one.channel) for one in route.inputs]
            refusing = [policy for policy in policies if policy.on_full == "refuse"]
            if refusing:
                bounds = [policy.max_pending for policy in refusing if policy.max_pending is not None]
                yield Downstream(route.inbox, min(bounds, default=None))

    def _successors(self, function: str) -> set[str]:
        outputs = [
            template_filter(one) for route in self.functions if route.function == function for one in route.publish
        ]
        return {
            route.function
            for route in self.functions
            if not route.direct and any(overlap(out, source.channel) for out in outputs for source in route.inputs)
        }

    def _reachable(self, function: str) -> set[str]:
        found: set[str] = set()
        todo = [function]
        while todo:
            fresh = self._successors(todo.pop()) - found
            found |= fresh
            todo += fresh
        return found


def compile_routes(manifest: Mapping[str, Any], pop: str) -> RouteTable:
    """The table of `pop` from a resolved manifest. Its version is a hash of its content."""
    functions = [
        _dump(name, function, pop)
        for name, function in sorted(manifest.get("functions", {}).items())
        if pop in function["place"]["pops"]
    ]
    text = json.dumps([functions, manifest.get("channels") or {}], sort_keys=True)
    return RouteTable.from_json(hashlib.sha256(text.encode()).hexdigest()[:16], text)


# ------------------------------------------------------------------ several PoPs


def _is_for(placement: Placement | None, event: Event) -> bool:
    return placement is None or placement.run != "local" or event.origin in ("", placement.here)


def _placed(placement: Placement | None, directive: Directive, event: Event, cause: str) -> Directive:
    if placement is None or directive["k"] == "latest":
        return directive  # what is newest is known at each PoP
    if placement.run == "once":
        return _owned(placement, directive, event, cause)
    # Joins of one key at two PoPs are two; so is one event at all of them.
    if placement.run == "every" or directive["k"] not in ("one", "reject"):
        directive["p"] = placement.here
    return directive


def _owned(placement: Placement | None, directive: Directive, event: Event, cause: str) -> Directive:
    if placement is not None:
        key = directive.get("j", directive.get("q"))
        origin = event.origin or placement.here
        # A key has one owner wherever its events enter; an event by itself belongs to where it entered, or else it does not matter to whom.
        ranked = (
            rank(directive["f"], cause or origin, placement.pops, origin)
            if key is None
            else rank(directive["f"], key, placement.pops)
        )
        directive["ow"] = list(ranked)
    return directive


# ------------------------------------------------------------------ directives


class _Looked:
    """An event as expressions see it; the document is made once, when one needs it."""

    def __init__(self, event: Event, captures: Mapping[str, str], body: Body) -> None:
        self.event = event
        self._captures = captures
        self._body = body
        self._document: dict[str, Any] | None = None

    def value(self, text: str) -> Any:
        """The value of an expression. Raises ExpressionFailed."""
        expression = compile_expression(text)
        if expression.attribute is not None:
            event = self.event
            return event.subject if expression.attribute == "subject" else event.attributes.get(expression.attribute)
        if self._document is None:
            event, body = self.event, self._body
            self._document = document_of(event, self._captures, lambda: body(event))
        return expression.value(self._document)

    def key(self, text: str) -> str:
        """The value as a key. Raises EdgeflowError that says why it is none."""
        key = key_of(self.value(text))
        if key is None:
            raise BadEvent(f"the event has no {text!r} to go by")
        if len(key) > MAX_KEY_CHARS:
            raise BadEvent(f"{text!r} is a key of {len(key)} characters; at most {MAX_KEY_CHARS} are taken")
        return key


def _direct(
    route: FunctionRoute, source: _Source, captures: Mapping[str, str], event: Event, now_ms: int, body: Body,
    policy: ChannelPolicy,
) -> Directive | None:  # fmt: skip
    directive = _base(route, source.name, policy, event)
    looked = _Looked(event, captures, body)
    reason = "where-failed"
    try:
        if isinstance(source, SideRoute):
            key = looked.key(source.by) if source.by is not None else ""
            return {
                "f": route.function,
                "r": route.revision,
                "s": source.name,
                "k": "latest",
                "g": route.shape,
                "j": key,
            }
        if source.where is not None:
            wanted = looked.value(source.where)
            if wanted is None or wanted is False:
                return None
            if wanted is not True:
                return _reject(
                    directive, reason, f"where: {source.where!r} is {str(wanted)[:80]!r}, neither true nor false"
                )
        reason = "no-join-key"
        if route.join is not None:
            directive["j"] = looked.key(route.join["by"])
        reason = "no-key"
        _add_sides(directive, route, looked)
        _add_turn(directive, route, looked)
        if route.join is not None:
            reason = "bad-count"
            return _add_join(directive, route, route.join, looked, now_ms)
    except EdgeflowError as error:
        if isinstance(source, SideRoute):
            return None  # without a key it is the newest of nothing
        return _reject(directive, reason, error.message)
    return directive


def _base(route: FunctionRoute, name: str, policy: ChannelPolicy, event: Event) -> Directive:
    directive: Directive = {"f": route.function, "r": route.revision, "s": name, "k": "one"}
    if policy.max_pending is not None or policy.on_full != "refuse":
        directive.update(of=policy.on_full, mx=policy.max_pending or DEFAULT_PENDING)
        if policy.on_full == "keep-latest" and event.subject:
            directive["sj"] = event.subject
    if policy.deadline_ms is not None:
        directive["e"] = policy.deadline_ms
    return directive


def _add_sides(directive: Directive, route: FunctionRoute, looked: _Looked) -> None:
    if route.latest:
        directive["l"] = [
            {"g": route.shape, "s": side.name, "j": looked.key(side.by) if side.by is not None else ""}
            for side in route.latest
        ]


def _add_turn(directive: Directive, route: FunctionRoute, looked: _Looked) -> None:
    if route.keyed is None:
        return
    key = looked.key(route.keyed["by"])
    directive["q"] = key
    if route.keyed["state"]:
        directive["z"] = state_key(route.function, key)


def _add_join(
    directive: Directive, route: FunctionRoute, join: Mapping[str, Any], looked: _Looked, now_ms: int
) -> Directive:
    kind = join["kind"]
    directive.update(
        k="all" if kind == "k" else kind, g=route.shape, w=join["within_ms"], o=join["on_timeout"],
        c=join.get("max_pending") or DEFAULT_PENDING,
    )  # fmt: skip
    if kind in ("all", "k"):
        names = {source.name for source in route.inputs}
        directive.update(n=len(names), m=join.get("k") or len(names), u=join.get("duplicates") or "first")
    elif kind == "collect":
        wanted = join["count"]
        given = wanted if isinstance(wanted, int) else looked.value(wanted)
        count = count_of(given)
        if count is None:
            return _reject(
                directive, "bad-count", f"{wanted!r} is {str(given)[:20]!r}, not a number from 1 to {MAX_GROUP}"
            )
        directive["n"] = count
    else:
        window = Window(**join["window"])
        problem = time_problem(looked.event.time_ms, now_ms)
        if problem is not None:
            return _reject(directive, "bad-time", problem)
        size = window.size_ms + window.lateness_ms + join["within_ms"]
        directive.update(n=MAX_GROUP, w=size, la=window.lateness_ms, id=window.idle_ms, et=looked.event.time_ms)
        if window.is_session:
            directive["gap"] = window.size_ms
        else:
            directive["ws"] = window.of(looked.event.time_ms)
    return directive


def _reject(directive: Directive, reason: str, why: str) -> Directive:
    # `y` as well: who called it by name is told that it was given up.
    return {
        **{letter: directive[letter] for letter in "frsy" if letter in directive},
        "k": "reject",
        "why": f"{reason}: {why}",
    }


def state_key(function: str, key: str) -> str:
    """The EKV key of the state of one key of a function."""
    safe = quote(key, safe="")
    if len(safe) > _STATE_KEY_CHARS:
        safe = "~" + hashlib.sha256(key.encode()).hexdigest()
    return f"_state/{function}/{safe}"


def _expressions(route: FunctionRoute, source: _Source) -> Iterator[str]:
    if isinstance(source, SideRoute):
        if source.by is not None:
            yield source.by
        return
    if source.where is not None:
        yield source.where
    if route.join is not None:
        yield route.join["by"]
        if isinstance(route.join.get("count"), str):
            yield route.join["count"]
    if route.keyed is not None:
        yield route.keyed["by"]
    yield from (side.by for side in route.latest if side.by is not None)


# ------------------------------------------------------------------ the stored form

_SHAPED = ("join", "latest")


def _dump(name: str, function: Mapping[str, Any], pop: str) -> dict[str, Any]:
    retry = function.get("retry") or {}
    document = {"function": name, "revision": function["revision"], "retry": dict(retry)}
    for part in ("inputs", "join", "latest", "keyed", "publish", "context"):
        document[part] = function.get(part)
    limits = function.get("limits") or {}
    # Only what is there, so that tables of functions without it stay what they are.
    if "outputs" in limits:
        document["max_outputs"] = limits["outputs"]
    if "output_bytes" in limits:
        document["max_output_bytes"] = size_bytes(limits["output_bytes"])
    if function.get("contract", "sdk") != "sdk":
        document["contract"] = function["contract"]
    place = function["place"]
    if len(place["pops"]) > 1 or place.get("run") == "local":
        document["placement"] = {"pops": place["pops"], "run": place.get("run", "once"), "here": pop}
    return document


def _load(document: Mapping[str, Any]) -> FunctionRoute:
    inputs = document["inputs"]
    shape = [[item["name"], item["channel"], item.get("where")] for item in inputs] + [
        document[part] for part in _SHAPED
    ]
    return FunctionRoute(
        function=document["function"], revision=document["revision"],
        inputs=tuple(InputRoute(item["name"], item["channel"], item.get("captures") or {}, item.get("where")) for item in inputs),
        join=document["join"],
        latest=tuple(
            SideRoute(item["name"], item["channel"], item.get("captures") or {}, item.get("by")) for item in document["latest"] or ()
        ),
        keyed=document["keyed"], publish=tuple(document["publish"] or ()), context=document["context"] or {},
        retry=RetryPolicy(**document["retry"]), max_outputs=document.get("max_outputs"), max_output_bytes=document.get("max_output_bytes"),
        contract=document.get("contract", "sdk"),
        direct=any(item.get("qos") == 0 for item in inputs),
        shape=hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12],
        placement=_placement(document.get("placement")),
    )  # fmt: skip


def _placement(document: Mapping[str, Any] | None) -> Placement | None:
    return None if document is None else Placement(tuple(document["pops"]), document["run"], document["here"])
