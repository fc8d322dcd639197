"""What a log entry of another PoP must look like before anything of it is written.

What it is: the shape and the names of an entry, checked value by value, so that no script stops in the middle of it.
What it is not: checksums (records.py), or what it means: a version from the future is well formed, and parked by the store.
What must stay true: what passes here cannot make a script fail, names no other namespace, and no key, digest or version that a PoP of ours would refuse.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgpack

from edgeflow.core.channels import check_channel, check_key
from edgeflow.errors import CorruptEntry, EdgeflowError

_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")
_VERSION = re.compile(rb"\d{13}\.\d{5}@[a-z0-9-]{1,63}")
_DOT = re.compile(rb"[a-z0-9-]{1,63}:\d{1,16}:\d{1,16}")
_COMPONENT = re.compile(rb"[a-z0-9-]{1,63}:\d{1,16}")
_SUM = re.compile(rb"-?\d{1,19}")
_MAX = 2**63
_MOST = 100_000
"""Parts of one kind in one entry."""


class _Wrong(Exception):
    pass


def check_foreign(entry: Mapping[bytes, Any], namespace: str) -> None:
    """Raises CorruptEntry, which names what is wrong."""
    try:
        _entry(entry, namespace.encode() + b"/")
    except _Wrong as error:
        raise CorruptEntry(f"a log entry of a peer is refused: {error}") from None
    except (EdgeflowError, UnicodeDecodeError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptEntry(f"a log entry of a peer is refused: {error!r}") from None


def _need(what: bool, name: str) -> None:
    if not what:
        raise _Wrong(f"{name} is not what it must be")


def _list(value: Any, name: str) -> list[Any]:
    if value == {}:  # an empty table has no type in Lua
        return []
    if type(value) is not list or len(value) > _MOST:
        raise _Wrong(f"{name} is not a list, or too long")
    return value


def _row(value: Any, name: str, *checks: Callable[[Any], bool]) -> None:
    if type(value) is not list or len(value) != len(checks):
        raise _Wrong(f"{name} has not {len(checks)} fields")
    for position, (one, check) in enumerate(zip(value, checks, strict=True)):
        if not check(one):
            raise _Wrong(f"field {position + 1} of {name} is not what it must be")


def _text(value: Any) -> bool:
    return type(value) is bytes and len(value) <= 4096 and value.decode() is not None


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX


def _signed(value: Any) -> bool:
    return type(value) is int and -_MAX <= value < _MAX


def _flag(value: Any) -> bool:
    return type(value) is int and value in (0, 1)


def _digest(value: Any) -> bool:
    return value == b"" or (type(value) is bytes and _DIGEST.fullmatch(value) is not None)


def _version(value: Any) -> bool:
    return type(value) is bytes and _VERSION.fullmatch(value) is not None


def _version_or_none(value: Any) -> bool:
    return value == b"" or _version(value)


def _component(value: Any) -> bool:
    return type(value) is bytes and _COMPONENT.fullmatch(value) is not None


def _dots(value: Any) -> bool:
    return all(type(dot) is bytes and _DOT.fullmatch(dot) is not None for dot in _list(value, "a list of dots"))


def _names(value: Any) -> bool:
    return all(_text(name) for name in _list(value, "a list of names"))


def _sum(value: Any) -> bool:
    return type(value) is bytes and _SUM.fullmatch(value) is not None


def _key(value: Any) -> bool:
    return type(value) is bytes and _is_key(value)


@lru_cache(maxsize=4096)
def _is_key(value: bytes) -> bool:
    return bool(check_key(value.decode()))


@lru_cache(maxsize=4096)
def _is_channel(value: bytes) -> bool:
    return bool(check_channel(value.decode()))


def _entry(entry: Mapping[bytes, Any], prefix: bytes) -> None:
    _need(_text(entry.get(b"k")) and _number(entry.get(b"t")), "its head")
    _need(type(entry.get(b"id", b"")) is bytes and len(entry.get(b"id", b"")) <= 64, "the name of its event")
    for ended in _list(entry.get(b"x", []), "the list of ends"):
        _need(type(ended) is list and len(ended) in (5, 6), "an end")
        _row(ended[:5], "an end", _text, _text, _text, _bytes, _flag)
        _need(len(ended) == 5 or _text(ended[5]), "the mark of an end")
    for row in _list(entry.get(b"sh", []), "the list of what is over"):
        _row(row, "what is over", _text, _text, _text, _version_or_none, _names, _text, _number)
    for event in _list(entry[b"ev"], "the list of events"):
        _row(event, "an event", _bytes, _number, _bytes, _number, _digest, _number, _bytes, _number, _text)
        if not event[0].startswith(prefix):
            raise _Wrong(f"an event on {event[0][:80]!r}, which is in another namespace")
        _is_channel(event[0])
        head = msgpack.unpackb(event[2])
        _need(type(head) is dict and all(type(name) is str for name in head), "the head of an event")
        _need(str(head.get("c")).encode() == event[0], "the channel in the head of an event")
    for value in _list(entry[b"va"], "the list of values"):
        _row(
            value, "a value", _key, _version, _digest, _number, _bytes, _number, _text, _flag, _number, _version_or_none
        )  # fmt: skip
    for add in _list(entry.get(b"inc", []), "the list of increments"):
        _need(type(add) is list and len(add) in (2, 3), "an increment")
        _row(add[:2], "an increment", _key, _signed)
        _need(len(add) == 2 or _number(add[2]), "an increment")
    for item in _list(entry.get(b"ty", []), "the list of typed operations"):
        _need(type(item) is list and len(item) >= 3 and item[0] in _TYPED and _key(item[1]), "a typed operation")
        _TYPED[item[0]](item)


def _set(item: list[Any]) -> None:
    _need(len(item) == 4, "an operation on a set")
    for pairs in item[2:]:
        for pair in _list(pairs, "elements"):
            _row(pair, "an element", _text, _dots)


def _map(item: list[Any]) -> None:
    _need(len(item) == 4 and _version_or_none(item[3]), "an operation on a map")
    _need(bool(item[2]) or bool(item[3]), "an operation on a map that names no version")
    for one in _list(item[2], "fields"):
        _row(one, "a field", _text, _version, _flag, _text, _bytes, _number)


def _counter(item: list[Any]) -> None:
    _need(len(item) == 3, "the deletion of a counter")
    for one in _list(item[2], "components"):
        _row(one, "a component", _component, _number, _number, _sum)


_TYPED: dict[bytes, Callable[[list[Any]], None]] = {b"s": _set, b"m": _map, b"d": _counter}


# -- pages of snapshots ------------------------------------------------------------------------------------------------


def check_page(items: Any) -> None:
    """Raises CorruptEntry, which names what is wrong with a page of a snapshot (46_pages.lua says how one looks)."""
    try:
        _page(items)
    except _Wrong as error:
        raise CorruptEntry(f"a page of a snapshot is refused: {error}") from None
    except Exception as error:  # msgpack raises many kinds
        raise CorruptEntry(f"a page of a snapshot is refused: {error!r}") from None


def _page(items: Any) -> None:
    _need(type(items) is list and len(items) >= 1 and len(items[0]) == 2, "its beginning")
    covered, parked = items[0]
    for lane, upto in _unpacked_map(covered, "what it covers").items():
        _need(_component(lane) and len(upto) == 2 and _number(upto[0]), "what it covers")
        _need(all(_number(seq) for seq in _list(upto[1], "what it leaves out")), "what it leaves out")
    for packed in _list(parked, "what is parked"):
        lane, seq, kind, item = msgpack.unpackb(packed, raw=True)
        _need(_component(lane) and type(seq) is bytes and seq.isdigit() and kind in (b"v", b"m"), "what is parked")
        if kind == b"v":
            _row(item[:10], "a parked value", *_VALUE)
        else:
            _need(_key(item[1]), "a parked map")
            _map(item)
    for key, packed in items[1:]:
        name, register, lost, fields, members, tally = msgpack.unpackb(packed, raw=True)
        _need(type(key) is str and name == key.encode() and _key(name), "a key")
        _register(_pairs(register))
        for loser in _list(lost, "what lost"):
            value = msgpack.unpackb(loser, raw=True)
            _row(value[:10], "what lost", *_VALUE)
            _need(len(value) >= 11 and _dot(value[10]), "what lost")
        _fields(_pairs(fields))
        _members(_pairs(members))
        for part, number in _pairs(tally).items():
            if part != b"vv":
                _need(all(word.lstrip(b"-").isdigit() for word in number.split(b" ")), "a counter")


_VALUE = (_key, _version, _digest, _number, _bytes, _number, _text, _flag, _number, _version_or_none)


def _dot(value: Any) -> bool:
    return type(value) is bytes and _DOT.fullmatch(value) is not None


def _pairs(flat: Any) -> dict[bytes, bytes]:
    flat = _list(flat, "a hash")
    _need(len(flat) % 2 == 0 and all(type(one) is bytes for one in flat), "a hash")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _unpacked_map(packed: bytes, name: str) -> dict[Any, Any]:
    found = msgpack.unpackb(packed, raw=True, strict_map_key=False)
    if found == []:
        return {}
    _need(type(found) is dict, name)
    return dict(found)


def _register(fields: dict[bytes, bytes]) -> None:
    if not fields:
        return
    _need(_version(fields.get(b"version")) and _dot(fields.get(b"dot")) and _digest(fields.get(b"digest")), "a value")
    _need(all(fields.get(name, b"").isdigit() for name in (b"size", b"dcrc", b"deleted")), "a value")
    _need(b"data" in fields and _text(fields.get(b"type")) and _version_or_none(fields.get(b"base", b"")), "a value")
    _need(fields.get(b"exp", b"0").isdigit(), "the deadline of a value")
    _need(all(_version(one) for one in fields.get(b"past", b"").split()), "the past of a value")


def _fields(fields: dict[bytes, bytes]) -> None:
    for name, packed in fields.items():
        if name[:1] == b"f":
            _need(_text(name), "a field of a map")
            _row(msgpack.unpackb(packed, raw=True), "a field", _version, _dot, _flag, _text, _bytes, _number)
    if b"d" in fields:
        _need(_version(fields[b"d"]) and _dot(fields.get(b"dd")), "a map")


def _members(fields: dict[bytes, bytes]) -> None:
    for name, value in fields.items():
        if name[:1] == b"e":
            _need(_text(name) and all(_dot(dot) for dot in value.split()), "an element")
    for lane, seq in _unpacked_map(fields.get(b"vv", b"\x80"), "a set").items():
        _need(_component(lane) and _number(seq), "a set")
    for named in _unpacked_map(fields.get(b"u", b"\x80"), "a set"):
        _need(type(named) is bytes and b" " in named and _dot(named.partition(b" ")[0]), "a set")
