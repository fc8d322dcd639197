"""Operations that are decided at one PoP, as they travel to it: writes, strong reads, and the hand-over of a home.

What it is: the list of operations, how their arguments are packed, and what makes them strong.
What it is not: the way to another PoP (edgeflow.cluster), or the operations themselves (values.py, homes.py).
What must stay true: a strong operation has its effect, or reads, at a moment when this PoP certainly was the home; a write carries the id of
whoever asked first, so that asking twice writes once; what is not understood is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from edgeflow.core.events import BlobRef
from edgeflow.core.policies import Home
from edgeflow.errors import BadRequest, EdgeflowError, StaleHome
from edgeflow.store.records import Delete, Increment, MapPut, MapRemove, Put, SetAdd, SetRemove, Value, Write
from edgeflow.store.replica import ReplicatedNamespace

Body = dict[str, Any]

INLINE_BYTES = 512 * 1024
"""A larger body does not travel inside an answer: whoever asked fetches it by its digest."""
_WRITES: dict[str, type[Any]] = {
    "put": Put, "delete": Delete, "increment": Increment, "add": SetAdd, "remove": SetRemove, "set": MapPut, "unset": MapRemove,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _WRITES.items()}


def pack_write(write: Write) -> Body:
    """A write as it travels."""
    packed: Body = {"op": _NAMES[type(write)]}
    for one in fields(write):
        value = getattr(write, one.name)
        if isinstance(value, BlobRef):
            value = [value.digest, value.size]
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        if value is not None:
            packed[one.name] = value
    return packed


def unpack_write(packed: Mapping[str, Any]) -> Write:
    """Inverse of `pack_write`. Raises BadRequest."""
    kind = _WRITES.get(str(packed.get("op")))
    if kind is None:
        raise BadRequest(f"{str(packed.get('op'))[:40]!r} is not a write")
    given = {name: value for name, value in packed.items() if name != "op"}
    if given.get("ref") is not None:
        given["ref"] = BlobRef(*given["ref"])
    write: Write = kind(**given)
    return write


def execute(handle: Any, op: object, arguments: Mapping[str, Any]) -> Body:
    """Carry out one operation on a namespace's handle. Raises what the store refuses it with, and BadRequest when it is not known or its arguments are not right."""
    operation = OPERATIONS.get(op) if isinstance(op, str) else None
    if operation is None:
        raise BadRequest(f"{str(op)[:40]!r} is not an operation on values; known are {', '.join(sorted(OPERATIONS))}")
    try:
        return operation(handle, arguments)
    except EdgeflowError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadRequest(f"the arguments of {op!r} are not right: {error}") from None


def _write(handle: ReplicatedNamespace, arguments: Mapping[str, Any]) -> Body:
    batch: Sequence[Write] = [unpack_write(one) for one in arguments["writes"]]
    if arguments.get("strong"):
        handle = handle.as_home(handle.home_for([write.key for write in batch]).term)
    return {"receipt": handle.write(batch, id=arguments["id"]).to_json()}


def _read(handle: ReplicatedNamespace, arguments: Mapping[str, Any]) -> Body:
    """A key of any type as it is now, its body only when that is small."""
    key = arguments["key"]
    home = handle.home_for([key])
    answer = read_value(handle, key)
    # Behind the read: whoever was the home then was it when it read.
    if handle.home_of(key) != home:
        raise StaleHome(f"the home of {key!r} has just changed")
    return answer


def read_value(handle: ReplicatedNamespace, key: str) -> Body:
    """{value: None or what is under the key, seen: where the logs were then}."""
    value = handle.small_values([key])[0]
    info = value or handle.head(key)
    if info is None or (value is None and info.kind == "register"):
        # A value that came between the two looks is as good as one that comes now.
        return {"value": None, "seen": _positions(handle)}
    data = value.data if isinstance(value, Value) and value.digest is None else None
    content = handle.typed_content(key, info.kind)
    if info.kind == "counter":
        content = str(content or 0)  # may be more than travels as a number
    found = {
        "key": key, "version": info.version, "size": info.size, "content_type": info.content_type, "digest": info.digest, "kind": info.kind,
        "origin": info.origin, "expires_ms": info.expires_ms, "data": data, "content": content,
    }  # fmt: skip
    return {"value": found, "seen": _positions(handle)}


def _positions(handle: ReplicatedNamespace) -> list[list[Any]]:
    return [[log.origin, log.epoch, seq] for log, seq in handle.logs().items()]


def _set_home(handle: ReplicatedNamespace, arguments: Mapping[str, Any]) -> Body:
    """Give a home away, or take it; where this PoP's log was by then."""
    home = Home(str(arguments["prefix"]), str(arguments["to"]), int(arguments["term"]))
    held = handle.set_home(home)
    return {"origin": handle.pop, "epoch": held.epoch, "seq": held.seq}


def _homes(handle: ReplicatedNamespace, arguments: Mapping[str, Any]) -> Body:
    """Who is the home of a prefix as this PoP knows it."""
    rule = handle.homes().rule(str(arguments["prefix"]))
    return {"home": rule.home if rule is not None else None, "term": rule.term if rule is not None else 0}


OPERATIONS: dict[str, Callable[[ReplicatedNamespace, Mapping[str, Any]], Body]] = {
    "write": _write,
    "read": _read,
    "set-home": _set_home,
    "show-home": _homes,
}
