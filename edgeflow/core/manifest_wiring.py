"""How a function is wired: its inputs, join, side inputs, keys and outputs, from the YAML form to the resolved form.

What it is: a pure translation of what was validated; defaults that differ from nothing written are left out.
What it is not: a judgement whether the parts go together (manifest_rules).
What must stay true: a function that uses nothing but what was there before has the same resolved form, and so the same revision.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeflow.core import channels
from edgeflow.core import manifest_models as models

DEFAULT_ON_TIMEOUT = "dead-letter"


@dataclass(frozen=True, slots=True)
class Wiring:
    """What connects a function, as the resolved form says it."""

    inputs: list[dict[str, Any]]
    join: dict[str, Any] | None
    latest: list[dict[str, Any]]
    keyed: dict[str, Any] | None
    publish: list[str]

    def content(self) -> dict[str, Any]:
        """The parts of the resolved function; `latest` and `keyed` only where there is something."""
        parts: dict[str, Any] = {"inputs": self.inputs, "join": self.join, "publish": self.publish}
        if self.latest:
            parts["latest"] = self.latest
        if self.keyed:
            parts["keyed"] = self.keyed
        return parts


def wire(function: models.Function) -> Wiring:
    """The wiring of a function."""
    inputs, join = subscription(function.subscribe)
    return Wiring(
        heard(inputs, function.contract),
        join,
        side_inputs(function.latest),
        keyed(function.state, function.ordered),
        published(function.publish),
    )


def input_name(channel: str) -> str:
    """The handler's parameter for a channel: its last level as an identifier (`cam/left-eye` -> `left_eye`, `depth/3d` -> `_3d`); "" when that is a
    wildcard or a capture."""
    level = channel.rpartition("/")[2]
    if level in ("+", "#") or channels.CAPTURE.fullmatch(level):
        return ""
    name = re.sub(r"\W", "_", level)
    return name if name.isidentifier() else f"_{name}"


def subscription(subscribe: object) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Inputs and join of a validated `subscribe:`."""
    if isinstance(subscribe, models.Single):
        (one,) = _inputs([subscribe], None)
        # Only what differs from the default is part of the content: durable functions keep their revisions.
        return [one | ({"qos": 0} if subscribe.qos == 0 else {})], None
    if isinstance(subscribe, models.JoinAll):
        return _inputs(subscribe.join, subscribe.where), _several(subscribe, "all")
    if isinstance(subscribe, models.JoinAny):
        return _inputs(subscribe.join.any, subscribe.where), _several(subscribe, "k", k=1)
    if isinstance(subscribe, models.JoinK):
        return _inputs(subscribe.join.of, subscribe.where), _several(subscribe, "k", k=subscribe.join.k)
    if isinstance(subscribe, models.JoinCollect):
        join = _join("collect", subscribe, subscribe.join.collect, subscribe.on_timeout)
        return [_input(subscribe.channel, subscribe.as_, subscribe.where)], join
    if isinstance(subscribe, models.JoinWindow):
        join = _join("window", subscribe, None, subscribe.on_timeout)
        return [_input(subscribe.channel, subscribe.as_, subscribe.where)], join | {"window": _window(subscribe)}
    return _inputs(subscribe if isinstance(subscribe, list) else [subscribe], None), None


def heard(inputs: list[dict[str, Any]], contract: object) -> list[dict[str, Any]]:
    """The inputs as the contract hears them: a program of `mqtt` subscribes at the broker itself, as with `qos: 0`."""
    return [{**one, "qos": 0} for one in inputs] if contract == "mqtt" else inputs


def side_inputs(latest: object) -> list[dict[str, Any]]:
    """The side inputs of a validated `latest:`."""
    found = []
    for item in latest if isinstance(latest, list) else [latest]:
        if isinstance(item, models.SideInput):
            one = _input(item.channel, item.as_)
            found.append(one | ({"by": item.by} if item.by is not None else {}))
        else:
            found.append(_input(str(item)))
    return found


def keyed(state: models.State | None, ordered: object) -> dict[str, Any] | None:
    """Whose invocations go one after the other, and whether they have state."""
    if state is not None:
        return {"by": state.by, "state": True}
    if isinstance(ordered, models.Ordered):
        return {"by": ordered.by, "state": False}
    return {"by": "subject", "state": False} if ordered is True else None


def published(publish: object) -> list[str]:
    """Channels and templates of a validated `publish:`."""
    return [str(item) for item in publish] if isinstance(publish, list) else [str(publish)]


def policies(manifest: models.Manifest) -> dict[str, dict[str, Any]]:
    """The channel policies of the resolved form."""
    return {pattern: policy_of(policy) for pattern, policy in manifest.channels.items()}


def policy_of(policy: models.Policy) -> dict[str, Any]:
    """One policy of the resolved form."""
    said: dict[str, Any] = {"on_full": policy.on_full}
    if policy.max_pending is not None:
        said["max_pending"] = policy.max_pending
    if policy.deadline is not None:
        said["deadline_ms"] = policy.deadline
    if policy.gated:
        said["gated"] = True
    if policy.priority != "normal":
        said["priority"] = policy.priority
    return said


def _inputs(items: Iterable[object], where: str | None) -> list[dict[str, Any]]:
    found = []
    for item in items:
        if isinstance(item, models.Named):
            found.append(_input(item.channel, item.as_, where, item.where))
        else:
            found.append(_input(str(item), None, where))
    return found


def _input(written: str, name: str | None = None, *conditions: str | None) -> dict[str, Any]:
    pattern, captures = channels.parse_filter(written)
    one: dict[str, Any] = {"name": name or input_name(written), "channel": pattern}
    if captures:
        one["captures"] = captures
    stated = [condition for condition in conditions if condition is not None]
    if stated:
        one["where"] = stated[0] if len(stated) == 1 else " && ".join(f"({condition})" for condition in stated)
    return one


def _several(subscribe: models.JoinAll | models.JoinAny | models.JoinK, kind: str, **more: int) -> dict[str, Any]:
    """A join of several channels. One that fires with the first of them cannot time out, and has no second event to choose from."""
    if isinstance(subscribe, models.JoinAny):
        return _join(kind, subscribe, None, DEFAULT_ON_TIMEOUT) | more
    join = _join(kind, subscribe, None, subscribe.on_timeout) | more
    return join | ({"duplicates": subscribe.duplicates} if subscribe.duplicates != "first" else {})


def _join(
    kind: str,
    subscribe: models.JoinAll | models.JoinAny | models.JoinK | models.JoinCollect | models.JoinWindow,
    count: int | str | None,
    on_timeout: str,
) -> dict[str, Any]:
    join = {
        "kind": kind,
        "by": subscribe.by,
        "count": count,
        "within_ms": subscribe.within,
        "on_timeout": on_timeout,
    }
    if subscribe.max_pending != models.DEFAULT_MAX_PENDING:
        join["max_pending"] = subscribe.max_pending
    return join


def _window(subscribe: models.JoinWindow) -> dict[str, Any]:
    shape = subscribe.join
    if isinstance(shape, models.Tumbling):
        kind, size, every = "tumbling", shape.tumbling, shape.tumbling
    elif isinstance(shape, models.Sliding):
        kind, size, every = "sliding", shape.sliding, shape.every
    else:
        kind, size, every = "session", shape.session, 0
    return {
        "type": kind,
        "size_ms": size,
        "every_ms": every,
        "lateness_ms": subscribe.lateness,
        "idle_ms": subscribe.idle,
    }


def as_wiring(function: Mapping[str, Any]) -> Wiring:
    """The wiring in a resolved function's data."""
    return Wiring(
        list(function["inputs"]), function["join"], list(function.get("latest") or ()), function.get("keyed"),
        list(function["publish"]),
    )  # fmt: skip
