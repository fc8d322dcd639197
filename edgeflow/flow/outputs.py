"""From what an instance says it produced to what is committed. Pure: everything an instance sends is untrusted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeflow.core.channels import check_key, delivers, full_channel, template_filter
from edgeflow.core.events import BlobRef, Event, make_event
from edgeflow.core.ids import output_id
from edgeflow.core.routing import FunctionRoute
from edgeflow.errors import BadEvent, BadName, OutputLimit, TooLarge
from edgeflow.settings import Limits
from edgeflow.store import ValueWrite
from edgeflow.store.records import MapPut, MapRemove, SetAdd, SetRemove
from edgeflow.store.values import check_member

MAX_INCREMENT = 2**53
"""The largest step of a counter: what every language on the way carries exactly."""


def build_events(
    outputs: Sequence[Any], *, invocation: str, namespace: str, route: FunctionRoute, pop: str, hop: int, now_ms: int, limits: Limits
) -> list[Event]:  # fmt: skip
    """The events of a commit. Raises BadName, BadEvent or TooLarge naming the output that is wrong."""
    if not isinstance(outputs, list | tuple):
        raise BadEvent(f"the outputs of {route.function} are a {type(outputs).__name__}, not a list")
    if route.max_outputs is not None and len(outputs) > route.max_outputs:
        raise OutputLimit(
            f"{route.function} published {len(outputs)} events in one invocation, its manifest allows {route.max_outputs}",
            hint="Publish less, or raise `limits: {outputs: ...}`.",
        )
    if len(outputs) > limits.outputs:
        raise TooLarge(
            f"{route.function} emitted {len(outputs)} events in one invocation, the limit is {limits.outputs}"
        )
    if outputs and hop > limits.hops:
        raise TooLarge(
            f"{route.function} answers an event that went through {hop - 1} functions; the limit is {limits.hops}",
            hint="Look for a function that publishes, directly or through others, on a channel it subscribes to.",
        )
    events = []
    inline_bytes = total_bytes = 0
    for index, output in enumerate(outputs):
        if not isinstance(output, Mapping):
            raise BadEvent(f"output {index} of {route.function} is a {type(output).__name__}, not a map")
        channel = full_channel(namespace, _text(output, "channel", index))
        if not any(channel == one or delivers(template_filter(one), channel) for one in route.publish):
            raise BadEvent(
                f"{route.function} emitted to {channel}, which its manifest does not list",
                hint=f"Add it to publish: of function {route.function}; it lists {', '.join(route.publish) or 'nothing'}.",
            )
        data, ref = _body(output, f"output {index} of {route.function}", limits.event_bytes)
        inline_bytes += len(data or b"")
        total_bytes += ref.size if ref is not None else len(data or b"")
        attributes = output.get("attributes") or {}
        if not isinstance(attributes, Mapping) or not all(
            isinstance(name, str) and isinstance(value, str) for name, value in attributes.items()
        ):
            raise BadEvent(f"output {index} of {route.function} has attributes that are not text")
        event = make_event(
            channel, data or b"", id=output_id(invocation, index), source=f"/{namespace}/{route.function}", now_ms=now_ms,
            type=_optional(output, "type", index), subject=_optional(output, "subject", index),
            datacontenttype=_optional(output, "datacontenttype", index), attributes=attributes, hop=hop,
        )  # fmt: skip
        if ref is not None:
            event = replace(event, data=None, ref=ref)
        events.append(event)
    if route.max_output_bytes is not None and total_bytes > route.max_output_bytes:
        raise OutputLimit(
            f"{route.function} published {total_bytes} bytes in one invocation, its manifest allows {route.max_output_bytes}",
            hint="Publish less, or raise `limits: {output_bytes: ...}`.",
        )
    if inline_bytes > limits.commit_bytes:
        raise TooLarge(
            f"{route.function} returned {inline_bytes} inline bytes in one invocation, the limit is {limits.commit_bytes}"
        )
    return events


def build_values(values: Sequence[Any], *, function: str, limits: Limits) -> list[ValueWrite]:
    """The EKV writes of a commit. Raises BadName, BadEvent or TooLarge naming the one that is wrong."""
    if not isinstance(values, list | tuple):
        raise BadEvent(f"the values of {function} are a {type(values).__name__}, not a list")
    writes = []
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise BadEvent(f"value {index} of {function} is a {type(value).__name__}, not a map")
        key = check_own_key(_text(value, "key", index))
        if_version, if_absent = _optional(value, "if_version", index), value.get("if_absent", False)
        if not isinstance(if_absent, bool):
            raise BadEvent(f"value {key!r} of {function} has the if_absent {if_absent!r}, not true or false")
        if value.get("delete"):
            writes.append(ValueWrite(key, if_version=if_version, if_absent=if_absent))
            continue
        data, ref = _body(value, f"value {key!r} of {function}", limits.value_bytes)
        ttl_ms = value.get("ttl_ms")
        if ttl_ms is not None and (not isinstance(ttl_ms, int) or isinstance(ttl_ms, bool) or ttl_ms < 1):
            raise BadEvent(f"value {key!r} of {function} has the ttl_ms {ttl_ms!r}, not a whole number of at least 1")
        content_type = _optional(value, "content_type", index)
        writes.append(ValueWrite(key, data, ref, content_type, ttl_ms, if_version, if_absent))
    return writes


def build_state(state: Any, *, key: str, function: str, limits: Limits) -> list[ValueWrite]:
    """The write of a keyed state: none when the attempt left it as it was. Raises BadEvent or TooLarge."""
    if state is None:
        return []
    if not key:
        raise BadEvent(f"{function} has no state", hint="Add `state: {by: subject}` to its manifest.")
    if not isinstance(state, Mapping):
        raise BadEvent(f"the state of {function} is a {type(state).__name__}, not a map")
    if state.get("delete"):
        return [ValueWrite(key)]
    data, ref = _body(state, f"the state of {function}", limits.value_bytes)
    return [ValueWrite(key, data, ref, _optional(state, "content_type", 0))]


def build_increments(increments: Any, *, function: str, limits: Limits) -> list[tuple[str, int]]:
    """The increments of a commit, (key, by) pairs. Raises BadName, BadEvent or TooLarge naming the one that is wrong."""
    if not isinstance(increments, list | tuple):
        raise BadEvent(f"the increments of {function} are a {type(increments).__name__}, not a list")
    if len(increments) > limits.outputs:
        raise TooLarge(f"{function} sent {len(increments)} increments in one invocation, the limit is {limits.outputs}")
    found = []
    for index, item in enumerate(increments):
        if not isinstance(item, Mapping):
            raise BadEvent(f"increment {index} of {function} is a {type(item).__name__}, not a map")
        by = item.get("by")
        if not isinstance(by, int) or isinstance(by, bool) or abs(by) > MAX_INCREMENT:
            raise BadEvent(f"increment {index} of {function} is by {by!r}, not by a whole number of at most 2^53")
        found.append((check_own_key(_text(item, "key", index)), by))
    return found


def build_ops(ops: Any, *, function: str, limits: Limits) -> list[SetAdd | SetRemove | MapPut | MapRemove]:
    """The operations of a commit on sets and maps. Raises BadName, BadEvent or TooLarge naming the one that is wrong."""
    if not isinstance(ops, list | tuple):
        raise BadEvent(f"the operations of {function} are a {type(ops).__name__}, not a list")
    if len(ops) > limits.outputs:
        raise TooLarge(f"{function} sent {len(ops)} operations in one invocation, the limit is {limits.outputs}")
    return [_op(item, f"operation {index} of {function}", limits) for index, item in enumerate(ops)]


def _op(item: Any, what: str, limits: Limits) -> SetAdd | SetRemove | MapPut | MapRemove:
    if not isinstance(item, Mapping) or not isinstance(item.get("key"), str):
        raise BadEvent(f"{what} has no key")
    name, key = item.get("op"), check_own_key(item["key"])
    if name == "add":
        return SetAdd(key, _members(item, "elements", "element", key, what))
    if name == "remove":
        return SetRemove(key, _members(item, "elements", "element", key, what))
    if name == "unset":
        return MapRemove(key, _members(item, "fields", "field", key, what))
    if name != "set":
        raise BadEvent(f"{what} is {str(name)[:40]!r}, which is none of add, remove, set, unset")
    fields, content_type = item.get("fields"), item.get("content_type")
    if not isinstance(fields, Mapping) or not all(isinstance(data, bytes) for data in fields.values()):
        raise BadEvent(f"{what} has no map of fields to bytes")
    if content_type is not None and not isinstance(content_type, str):
        raise BadEvent(f"{what} has a content_type that is not text")
    for field, data in fields.items():
        check_member(_as_text(field, what), "field", key)
        if len(data) > limits.inline_bytes:
            raise TooLarge(
                f"{what}: field {field!r} has {len(data)} bytes, at most {limits.inline_bytes} are taken",
                hint="Put large data under a key of its own.",
            )
    return MapPut(key, dict(fields), content_type)


def _members(item: Mapping[str, Any], name: str, one: str, key: str, what: str) -> tuple[str, ...]:
    members = item.get(name)
    if not isinstance(members, list | tuple):
        raise BadEvent(f"{what} has no list of {name}")
    for member in members:
        check_member(_as_text(member, what), one, key)
    return tuple(members)


def _as_text(name: Any, what: str) -> str:
    if not isinstance(name, str):
        raise BadEvent(f"{what} names a {type(name).__name__}, not text")
    return name


def check_own_key(key: str) -> str:
    """`key` itself. Raises BadName for keys that belong to edgeflow, besides those that are no keys."""
    if check_key(key).startswith("_"):
        raise BadName(f"key {key!r} is reserved", hint="Keys that begin with _ belong to edgeflow.")
    return key


def _body(message: Mapping[str, Any], what: str, limit_bytes: int) -> tuple[bytes | None, BlobRef | None]:
    digest = message.get("digest")
    if digest is not None:
        size = message.get("size")
        if not isinstance(digest, str) or not isinstance(size, int):
            raise BadEvent(f"{what} has a digest without a size")
        if size > limit_bytes:
            raise TooLarge(f"{what} has {size} bytes, the limit is {limit_bytes}")
        return None, BlobRef(digest, size)
    data = message.get("data", b"")
    if not isinstance(data, bytes):
        raise BadEvent(f"{what} has data that is a {type(data).__name__}, not bytes")
    if len(data) > limit_bytes:
        raise TooLarge(f"{what} has {len(data)} bytes, the limit is {limit_bytes}")
    return data, None


def _text(message: Mapping[str, Any], name: str, index: int) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise BadEvent(f"item {index} has no {name}")
    return value


def _optional(message: Mapping[str, Any], name: str, index: int) -> str | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise BadEvent(f"{name} of item {index} is a {type(value).__name__}, not text")
    return value
