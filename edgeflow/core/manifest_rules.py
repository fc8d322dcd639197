"""Rules over more than one field of a manifest: what goes together, and what to write where it does not.

What it is: generators of (place, problem) over the wiring of a function, the same for what was written and for a resolved manifest from elsewhere.
What it is not: rules of a single field (manifest_scalars, manifest_models).
What must stay true: a combination that cannot work is refused by name; one event comes in as one input of a function; what passes here needs
no further check by whoever reads the resolved form.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from pydantic_core import PydanticCustomError

from edgeflow.core import channels
from edgeflow.core.expressions import MAX_EXPRESSION_CHARS, compile_expression
from edgeflow.core.manifest_contracts import wired_rules
from edgeflow.core.manifest_scalars import check_input_name, is_of_dead_letters, listed
from edgeflow.core.manifest_wiring import Wiring
from edgeflow.errors import BadExpression

MAX_OVERLAP = 100
"""Most sliding windows that one event may belong to."""
EVERY_EVENT_COUNTS = "every event counts in a collect or a window, and ids that come twice are left out when they come in; remove the field"
FIRST_STARTS = "the first event starts the function, so there is nothing to choose from; remove the field"

Place = tuple[str | int, ...]
Finding = tuple[Place, str]


def wiring_rules(
    function: str, wiring: Wiring, functions: Iterable[str], contract: object = "sdk"
) -> Iterator[Finding]:
    """What is wrong with how a function is wired. `functions`: all of the manifest. Places are those of the YAML form, below the function."""
    yield from _input_rules(wiring)
    yield from _dead_letter_rules(function, wiring, functions)
    yield from _join_rules(wiring)
    yield from _where_rules(wiring)
    yield from _side_rules(wiring)
    yield from _key_rules(wiring)
    yield from _publish_rules(wiring)
    if contract != "sdk":
        yield from wired_rules(contract, wiring)
    elif any(item.get("qos") == 0 for item in wiring.inputs):
        yield from _direct_rules(wiring)


def scale_rules(scale: object) -> Iterator[Finding]:
    """What does not go together in `scale`, from the data of the YAML form."""
    if not isinstance(scale, Mapping):
        return
    given = {name: value for name, value in scale.items() if isinstance(value, int)}
    is_elastic = "min" in scale or "max" in scale
    if "instances" in scale and is_elastic:
        yield ("scale", "instances"), "stands beside min and max; keep either a fixed number or a range"
    for name in ("idle", "pool"):
        if name in scale and not is_elastic:
            yield ("scale", name), "goes with a number that follows the work: scale: {min: 0, max: 4}"
    most = given.get("max", max(1, given.get("min", 1)))
    for name in ("min", "pool"):
        if is_elastic and given.get(name, 0) > most:
            yield ("scale", name), f"{given[name]} is more than max, {most}"


def direct_rules(function: Mapping[str, Any]) -> Iterator[Finding]:
    """What a function with a `qos: 0` input cannot have beside it, from the data of the YAML form."""
    scale, retry = function.get("scale"), function.get("retry")
    instances = scale.get("instances") if isinstance(scale, Mapping) else None
    if isinstance(instances, int) and instances != 1:
        yield (
            ("scale", "instances"),
            f"{instances} instances would each hear every event with `qos: 0`; write 1, or subscribe with qos 1",
        )
    for name in ("min", "max"):
        if isinstance(scale, Mapping) and name in scale:
            yield (
                ("scale", name),
                "the one instance of `qos: 0` hears the broker itself; remove the field, or subscribe with qos 1",
            )
    limits = function.get("limits")
    for name in ("outputs", "output_bytes"):
        if isinstance(limits, Mapping) and limits.get(name) is not None:
            yield ("limits", name), "nothing is committed with `qos: 0`; remove the field, or subscribe with qos 1"
    for name in ("attempts", "backoff"):
        if isinstance(retry, Mapping) and name in retry:
            yield ("retry", name), "nothing is tried again with `qos: 0`; remove the field, or subscribe with qos 1"


def policy_rules(policies: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Iterator[Finding]:
    """What is wrong with channel policies: (as written, full filter, resolved policy). Places begin with the policy as written."""
    given = list(policies)
    for written, _, policy in given:
        if policy == {"on_full": "refuse"}:
            yield (written,), "says nothing; give max_pending, deadline, priority or gated, or remove it"
        elif policy["on_full"] != "refuse" and policy.get("max_pending") is None:
            yield (written, "on_full"), "has no number to go by; add max_pending, as in max_pending: 1000"
    for (one, pattern, _), (other, second, _) in combinations(given, 2):
        if channels.overlap(pattern, second):
            yield (other,), f"holds for channels that {one!r} holds for as well; write policies that do not overlap"


def gate_rules(wirings: Mapping[str, Wiring], policies: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Functions that publish at the broker (`qos: 0`) on channels that refuse it. Places begin with the function."""
    gated = [pattern for pattern, policy in policies.items() if policy.get("gated")]
    for function, wiring in wirings.items():
        if not any(item.get("qos") == 0 for item in wiring.inputs):
            continue
        for template in wiring.publish:
            if any(channels.overlap(channels.template_filter(template), pattern) for pattern in gated):
                yield (
                    (function, "publish"),
                    f"{template!r} is gated, and with `qos: 0` a function publishes over MQTT; subscribe with qos 1, or lift the gate",
                )


# ------------------------------------------------------------------ inputs


def _input_rules(wiring: Wiring) -> Iterator[Finding]:
    inputs, join = wiring.inputs, wiring.join
    if not inputs:
        yield ("subscribe",), "names no channel; name at least one"
    for where, items in (("subscribe", inputs), ("latest", wiring.latest)):
        for item in items:
            yield from _name_rules(where, item)
    for one, other in combinations(inputs, 2):
        if one["channel"] == other["channel"]:
            yield ("subscribe",), f"channel {one['channel']!r} stands here twice; keep one of them"
        elif channels.overlap(one["channel"], other["channel"]):
            text = f"{one['channel']!r} and {other['channel']!r} match the same channels; an event comes in as one input only"
            yield ("subscribe",), text
    sides = {item["name"] for item in wiring.latest}
    named = [*inputs, *wiring.latest]
    for twice in sorted({item["name"] for item in named if item["name"]}):
        same = [item["channel"] for item in named if item["name"] == twice]
        if len(same) > 1 and (twice in sides or len(set(same)) > 1):
            place = "latest" if twice in sides else "subscribe"
            yield (place,), f"two inputs are named {twice!r}; rename one with `{{channel: ..., as: <name>}}`"
    if join and join["kind"] in ("all", "k") and len(inputs) < 2:
        yield (
            ("subscribe", "join"),
            "joins one channel only; name two or more, or write `subscribe: <channel>`",
        )


def _name_rules(where: str, item: Mapping[str, Any]) -> Iterator[Finding]:
    if not item["name"]:
        yield (
            (where,),
            f"channel {item['channel']!r} ends with a wildcard or a capture; name the handler's parameter with `as:`, as in {{channel: ..., as: reading}}",
        )
        return
    try:
        check_input_name(item["name"])
    except PydanticCustomError as error:
        yield (where,), f"channel {item['channel']!r}: {error.message()}"


def _dead_letter_rules(function: str, wiring: Wiring, functions: Iterable[str]) -> Iterator[Finding]:
    known = set(functions)
    for item in wiring.inputs:
        name = item["channel"].rpartition("/")[2]
        if not is_of_dead_letters(item["channel"]) or name == "+":
            continue
        if name == function:
            yield (
                ("subscribe",),
                f"a function that handles its own dead letters may never end; subscribe to `{channels.DEAD_LEVEL}/{name}` in another one",
            )
        elif name not in known:
            yield (
                ("subscribe",),
                f"there is no function {name!r} in this manifest; there are {listed(known - {function})}",
            )


# ------------------------------------------------------------------ joins


def _join_rules(wiring: Wiring) -> Iterator[Finding]:
    join, inputs = wiring.join, wiring.inputs
    if not join:
        return
    kind, k, window = join["kind"], join.get("k"), join.get("window")
    below: Place = ("subscribe", "join")
    if (kind == "k") != (k is not None):
        yield below, "`k` belongs to the kind k, and only to it"
    elif k is not None and len(inputs) > 1 and k >= len(inputs):
        if k == len(inputs):
            yield (*below, "k"), f"{k} of {k} channels are all of them; write join: [<channels>]"
        else:
            yield (*below, "k"), f"{k} of {len(inputs)} channels can never be there; write a number below {len(inputs)}"
    if (kind == "collect") != (join.get("count") is not None):
        yield below, "`count` belongs to the kind collect, and only to it"
    if (kind == "window") != (window is not None):
        yield below, "`window` belongs to the kind window, and only to it"
    if kind in ("collect", "window"):
        if len(inputs) > 1:
            yield below, "collects events of one channel or filter; name one"
        if join.get("duplicates"):
            yield ("subscribe", "duplicates"), EVERY_EVENT_COUNTS
    elif k == 1 and join.get("duplicates"):
        yield ("subscribe", "duplicates"), FIRST_STARTS
    if window is not None:
        yield from _window_rules((*below, str(window["type"])), window)


def _window_rules(below: Place, window: Mapping[str, Any]) -> Iterator[Finding]:
    kind, size, every = window["type"], window["size_ms"], window["every_ms"]
    if kind == "sliding":
        place = (*below[:-1], "every")
        if every <= 0 or every > size:
            yield place, "is longer than the windows, so events between two of them would belong to none; write less"
        elif every == size:
            yield place, "is the length of the windows, so they do not overlap; write join: {tumbling: ...}"
        elif size > MAX_OVERLAP * every:
            yield (
                place,
                f"puts each event into more than {MAX_OVERLAP} windows; write at least a hundredth of the length",
            )
    elif every != (size if kind == "tumbling" else 0):
        yield below, f"does not fit the kind {kind}; apply it with `edgeflow apply`"


def _where_rules(wiring: Wiring) -> Iterator[Finding]:
    for item in wiring.inputs:
        where = item.get("where")
        if where is None:
            continue
        if len(where) > MAX_EXPRESSION_CHARS:
            yield (
                ("subscribe", "where"),
                f"is longer than {MAX_EXPRESSION_CHARS} characters together with the input's own; shorten them",
            )
            continue
        try:
            expression = compile_expression(where)
        except BadExpression as error:
            yield ("subscribe", "where"), f"{error.message}; shorten it"
            continue
        for name in sorted(expression.captures - set(item.get("captures") or ())):
            yield ("subscribe",), _no_capture("where", name, item)
    if wiring.join:
        yield from _by_rules(("subscribe", "by"), "by", wiring.join["by"], wiring.inputs)
        count = wiring.join.get("count")
        if isinstance(count, str):
            yield from _by_rules(("subscribe", "join", "collect"), "collect", count, wiring.inputs)


def _by_rules(place: Place, what: str, text: str, items: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """Captures that an expression over the events of several inputs names: one that stands alone must be of each of them."""
    named = compile_expression(text).captures
    everywhere = text == f"captures.{next(iter(named))}" if named else False
    known = [set(item.get("captures") or ()) for item in items]
    for name in sorted(named):
        if everywhere or not any(name in captures for captures in known):
            without = next((item for item in items if name not in (item.get("captures") or ())), None)
            if without is not None:
                yield place, _no_capture(what, name, without)


def _no_capture(what: str, name: str, item: Mapping[str, Any]) -> str:
    return f"{what} names the capture {name!r}, which channel {item['channel']!r} does not have; write {{{name}}} in place of a level"


# ------------------------------------------------------------------ the rest


def _side_rules(wiring: Wiring) -> Iterator[Finding]:
    for item in wiring.latest:
        if item.get("by") is not None:
            yield from _by_rules(("latest",), "by", item["by"], [item, *wiring.inputs])


def _key_rules(wiring: Wiring) -> Iterator[Finding]:
    keyed, join = wiring.keyed, wiring.join
    if not keyed:
        return
    place = "state" if keyed["state"] else "ordered"
    yield from _by_rules((place,), "by", keyed["by"], wiring.inputs)
    if join and keyed["by"] != join["by"]:
        yield (
            (place,),
            f"goes by {keyed['by']!r}, but the events were joined by {join['by']!r}; write {place}: {{by: {join['by']}}}",
        )


def _publish_rules(wiring: Wiring) -> Iterator[Finding]:
    for twice in sorted({channel for channel in wiring.publish if wiring.publish.count(channel) > 1}):
        yield ("publish",), f"channel {twice!r} stands here twice; keep one of them"
    known = {name for item in wiring.inputs for name in item.get("captures") or ()}
    for template in wiring.publish:
        for name in sorted(set(channels.parse_filter(template)[1]) - known):
            yield (
                ("publish",),
                f"{template!r} names the capture {name!r}, which no channel of subscribe has; write {{{name}}} in place of a level there, or + here and emit",
            )


def _direct_rules(wiring: Wiring) -> Iterator[Finding]:
    (item, *others) = wiring.inputs
    if others or wiring.join:
        yield ("subscribe",), "`qos: 0` goes with one channel and no join; subscribe with qos 1"
    instead = "remove the field, or subscribe with qos 1"
    if "where" in item:
        yield (
            ("subscribe", "where"),
            f"with `qos: 0` the instance hears the broker itself, and nothing stands between; {instead}",
        )
    if is_of_dead_letters(item["channel"]):
        yield ("subscribe", "qos"), f"dead letters are kept, so what handles them is durable; {instead}"
    if wiring.latest:
        yield ("latest",), f"side inputs are kept for invocations, and with `qos: 0` there are none; {instead}"
    if wiring.keyed:
        place = "state" if wiring.keyed["state"] else "ordered"
        why = (
            "nothing is committed with `qos: 0`"
            if wiring.keyed["state"]
            else "nothing waits for its turn with `qos: 0`"
        )
        yield (place,), f"{why}; {instead}"
