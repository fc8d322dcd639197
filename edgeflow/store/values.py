"""The values of a namespace: plain values (registers), counters, sets and maps, as one PoP reads and writes them.

What it is: the piece of a namespace's client that reads what is merged here and writes batches of operations, each batch one log entry. How writes of
several PoPs merge is in the Lua library (22_values.lua), and without Redis in `edgeflow.core.merges`.
What it is not: where keys have their home, whether this PoP is fresh enough for a reader (edgeflow.api), or snapshots (replica.py).
What must stay true: a batch is applied as a whole or not at all, and once however often it is sent with the same id; a value whose deadline has
passed is not shown any more; an operation on a key of another type is refused.
"""

import contextlib
import hashlib
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgpack

from edgeflow.core.channels import check_key
from edgeflow.core.events import BlobRef
from edgeflow.core.merges import counter_value, set_version
from edgeflow.errors import (
    BadName,
    BadRequest,
    CorruptEntry,
    EdgeflowError,
    HomeElsewhere,
    NotFound,
    QuotaExceeded,
    TooLarge,
    Unavailable,
    VersionMismatch,
    WrongType,
)
from edgeflow.store.bodies import Bodies, Placed
from edgeflow.store.calls import Rows, now_ms
from edgeflow.store.connection import home_error
from edgeflow.store.records import (
    Change,
    Delete,
    Increment,
    MapPut,
    MapRemove,
    Put,
    Receipt,
    SetAdd,
    SetRemove,
    Value,
    ValueInfo,
    VersionInfo,
    Write,
    pack_value,
)

MAX_NAME_BYTES = 1024
"""Longest element of a set, and longest field name of a map (bytes of UTF-8)."""
MAX_INCREMENT = 2**53
"""The largest step of a counter: what every language on the way carries exactly."""
MAX_BATCH = 1000
_KINDS = {b"c": "counter", b"s": "set", b"m": "map"}
_INFO = ("version", "size", "type", "digest", "deleted", "exp", "dot")
_PAGE = 500


class Values(Bodies):
    """The values of a namespace at this PoP."""

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(
        self, key: str, data: bytes | None = None, *, ref: BlobRef | None = None, content_type: str | None = None, ttl_ms: int | None = None,
        if_version: str | None = None, if_absent: bool = False, id: str | None = None,
    ) -> Receipt:  # fmt: skip
        """Write a value durably; `ref`: its body is stored already; `ttl_ms`: it is no more after that time.

        Raises BadName, TooLarge, StoreFull, WrongType, and VersionMismatch when a condition does not hold.
        """
        return self.write([Put(key, data, ref, content_type, ttl_ms, if_version, if_absent)], id=id)

    def delete(self, key: str, *, if_version: str | None = None, id: str | None = None) -> Receipt:
        """Delete a key of any type: everything of it that is visible here.

        Raises NotFound when there is none, VersionMismatch when a condition does not hold.
        """
        return self.write([Delete(key, if_version)], id=id)

    def increment(self, key: str, by: int = 1, *, id: str | None = None) -> Receipt:
        """Add to a counter. Every increment of every PoP counts once. Raises WrongType."""
        return self.write([Increment(key, by)], id=id)

    def set_add(self, key: str, elements: Iterable[str], *, id: str | None = None) -> Receipt:
        """Add elements to a set: one that is removed elsewhere at the same time stays. Raises WrongType, TooLarge."""
        return self.write([SetAdd(key, tuple(elements))], id=id)

    def set_remove(self, key: str, elements: Iterable[str], *, id: str | None = None) -> Receipt:
        """Remove elements from a set, as this PoP has seen them. Raises WrongType."""
        return self.write([SetRemove(key, tuple(elements))], id=id)

    def map_put(
        self, key: str, fields: Mapping[str, bytes], *, content_type: str | None = None, id: str | None = None
    ) -> Receipt:
        """Write fields of a map, each of at most `inline_bytes`. Raises WrongType, TooLarge."""
        return self.write([MapPut(key, fields, content_type)], id=id)

    def map_remove(self, key: str, fields: Iterable[str], *, id: str | None = None) -> Receipt:
        """Remove fields of a map. Raises WrongType."""
        return self.write([MapRemove(key, tuple(fields))], id=id)

    def write(self, batch: Sequence[Write], *, id: str | None = None) -> Receipt:
        """Carry out all of `batch`, or nothing: one log entry. The receipt has the last version that was given.

        A batch with an `id` that was carried out within the last ten minutes is not carried out again, and its receipt says so. Raises what
        the single operations raise, BadRequest for a key that occurs twice, and QuotaExceeded.
        """
        if not batch:
            raise BadRequest("an empty batch")
        if len(batch) > MAX_BATCH:
            raise TooLarge(f"the batch has {len(batch)} operations, at most {MAX_BATCH} are taken")
        self._room.check()
        with contextlib.ExitStack() as stack:
            before: Rows[Placed] = []
            ops, size = self._pack_batch(batch, stack, before)
            call: dict[str, Any] = {
                "ops": ops,
                "size": size,
                "id": "put|" + (secrets.token_hex(16) if id is None else f"{id}"),
                "gate_ms": self._limits.gate_timeout_ms,
                "set_max": self._limits.set_elements,
                "map_max": self._limits.map_fields,
            }

            def prepare(_again: bool) -> Rows[Any]:
                commands = [command for placed in before for command in placed()]
                return [*commands, self._command("ef_write", {**call, "rv": self.routes().version})]

            status, epoch, seq, version = msgpack.unpackb(self._routed(prepare)[-1])
        if status not in ("ok", "again"):
            raise self._refused(status, seq, version)
        duplicate = status == "again" and id is not None
        return Receipt(
            "durable", self.pop, epoch, seq, f"{self.pop}/{epoch}/{seq}", version or None, duplicate=duplicate
        )

    def _refused(self, status: str, wait_ms: int, about: str) -> EdgeflowError:
        if status == "quota":
            text = f"namespace {self.name} sends more {about} a second than its quota at {self.pop} allows"
            return QuotaExceeded(text, retry_after_s=wait_ms / 1000)
        if status == "mismatch":
            key, _, version = about.rpartition(" ")
            return VersionMismatch(f"{key!r} has version {version}" if version else f"there is no value {key!r}")
        if status == "absent":
            return NotFound(f"there is no value {about!r} in {self.name}")
        if status == "too-many":
            return TooLarge(
                f"{about!r} would have more than {self._limits.set_elements} elements or {self._limits.map_fields} fields"
            )
        if status == "missing":
            return Unavailable(f"the body {about} is not at {self.pop} any more", hint="Send the value again.")
        if status == "elsewhere":
            return home_error(about) or HomeElsewhere(about)
        return WrongType(f"{about!r} is of another type in {self.name}")

    def _pack_batch(
        self, batch: Sequence[Write], stack: contextlib.ExitStack, before: Rows[Placed]
    ) -> tuple[Rows[Any], int]:
        """What `ef_write` takes; what has to go in front of it is added to `before`. And the bytes that the batch brings."""
        ops: Rows[Any] = []
        size = 0
        folded: dict[str, _Folded] = {}
        names: set[str] = set()
        for one in batch:
            check_key(one.key)
            if isinstance(one, Put):
                op, bytes_here = self._pack_put(one, stack, before)
                size += bytes_here
            elif isinstance(one, Delete):
                op = ["x", one.key, one.if_version or False, one.missing_ok]
            else:
                fold = folded.get(one.key)
                if fold is None and one.key not in names:
                    fold = folded[one.key] = _Folded(one)
                    ops.append(fold)
                if fold is None or not fold.takes(one):
                    raise _twice(one.key)
                names.add(one.key)
                size += fold.add(one, self._limits.inline_bytes)
                continue
            if one.key in names:
                raise _twice(one.key)
            names.add(one.key)
            ops.append(op)
        return [op.packed() if isinstance(op, _Folded) else op for op in ops], size

    def _pack_put(self, put: Put, stack: contextlib.ExitStack, before: Rows[Placed]) -> tuple[Rows[Any], int]:
        data, ref = put.data, put.ref
        if data is None and ref is None:
            raise BadRequest(f"{put.key!r} is put without a body")
        size = ref.size if ref is not None else len(data or b"")
        if size > self._limits.value_bytes:
            raise TooLarge(f"the value has {size} bytes, at most {self._limits.value_bytes} are taken")
        if ref is None and data is not None and size > self._limits.inline_bytes:
            ref, commands = stack.enter_context(self.placed_body(data))
            before.append(commands)
        value = pack_value(put.key, None if ref else data, ref, put.content_type, deadline_of(put.ttl_ms))
        return ["p", value, put.if_version or False, put.if_absent], size

    # -- registers -----------------------------------------------------------------------------------------------------

    def head(self, key: str) -> ValueInfo | None:
        """What is under a key, of any type, without its body; None when there is nothing here."""
        return self.heads_of([key])[0]

    def heads_of(self, keys: Sequence[str]) -> Rows[ValueInfo | None]:
        """As `head`, for several keys."""
        if not keys:
            return []
        fields = self._connection.run([("HMGET", f"{self.prefix}value:{key}", *_INFO) for key in keys])
        now = now_ms()
        found = [_value_info(key, about, now) for key, about in zip(keys, fields, strict=True)]
        others = [key for key, info in zip(keys, found, strict=True) if info is None]
        if others:
            typed = self._typed_heads(others)
            found = [info or typed.get(key) for key, info in zip(keys, found, strict=True)]
        return found

    def _typed_heads(self, keys: Sequence[str]) -> dict[str, ValueInfo]:
        kinds = self._connection.one("HMGET", self.prefix + "kinds", *keys)
        typed = [(key, kind) for key, kind in zip(keys, kinds, strict=True) if kind is not None]
        if not typed:
            return {}
        commands: dict[bytes, Callable[[str], tuple[Any, ...]]] = {
            b"c": lambda key: ("HGETALL", f"{self.prefix}tally:{key}"),
            b"s": lambda key: ("HMGET", f"{self.prefix}set:{key}", "c", "vv"),
            b"m": lambda key: ("HMGET", f"{self.prefix}map:{key}", "c", "v"),
        }
        replies = self._connection.run([commands[kind](key) for key, kind in typed])
        heads = {}
        for (key, kind), reply in zip(typed, replies, strict=True):
            if kind == b"c":
                text = str(counter_value(reply))
                version, size = text, len(text)
            elif not reply[0]:
                continue  # it went between the two reads
            else:
                size = int(reply[0])
                version = reply[1].decode() if kind == b"m" else set_version(msgpack.unpackb(reply[1]))
            heads[key] = ValueInfo(key, version, size, "application/json", None, kind=_KINDS[kind])
        return heads

    def small_values(self, keys: Sequence[str]) -> Rows[Value | None]:
        """Several registers in one round trip. Those that are blobs (`digest` is set) come without their bodies: `data` is empty."""
        replies = self._connection.run(
            [("HMGET", f"{self.prefix}value:{key}", *_INFO, "data") for key in keys]
        ) if keys else []  # fmt: skip
        now = now_ms()
        values: Rows[Value | None] = []
        for key, fields in zip(keys, replies, strict=True):
            info = _value_info(key, fields, now)
            values.append(None if info is None else _with_data(info, b"" if info.digest is not None else fields[7]))
        return values

    def get(self, key: str, *, version: str | None = None) -> Value | None:
        """A register with its body; None when there is none here, or not in that version (the current one and those that lost are kept)."""
        fields = self._connection.one("HMGET", f"{self.prefix}value:{check_key(key)}", *_INFO, "data", "dcrc")
        info = _value_info(key, fields, now_ms())
        data, checksum = fields[7], fields[8]
        if version is not None and (info is None or version != info.version):
            packed = self._connection.one("HGET", f"{self.prefix}lost:{key}", version)
            if packed is None:
                return None
            lost = msgpack.unpackb(packed, raw=True)
            info, data, checksum = _lost_info(key, lost), lost[4], lost[5]
        if info is None:
            return None
        if info.digest is not None:
            data = self.read_blob(info.digest)
        elif zlib.crc32(data) != int(checksum):
            raise CorruptEntry(f"the value of {key!r} does not match its checksum at {self.pop}")
        if data is None:
            raise Unavailable(f"the body of {key!r} is not at {self.pop} yet")
        return _with_data(info, data)

    def versions(self, key: str) -> Rows[VersionInfo]:
        """The writes of a register that are kept: the current one, then those that lost to a write that had not seen them, the latest first."""
        fields, lost = self._connection.run([
            ("HMGET", f"{self.prefix}value:{check_key(key)}", *_INFO), ("HVALS", f"{self.prefix}lost:{key}"),
        ])  # fmt: skip
        current = _value_info(key, fields, now_ms())
        others = [_lost_info(key, msgpack.unpackb(packed, raw=True)) for packed in lost]
        others.sort(key=lambda info: info.version, reverse=True)
        found = [(info, False) for info in others]
        return [
            VersionInfo(info.version, info.size, info.content_type, info.digest, is_current, info.origin)
            for info, is_current in ([(current, True), *found] if current is not None else found)
        ]

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> Rows[ValueInfo]:
        """Keys of any type that start with `prefix`, in byte order, beginning behind `after`. Fewer than `limit` means the end."""
        found: Rows[ValueInfo] = []
        while len(found) < limit:
            wanted = limit - len(found)
            names = self._names("keys", prefix, after, wanted)
            found += [info for info in self.heads_of(names) if info is not None]
            if len(names) < wanted:
                break
            after = names[-1]
        return found

    def _names(self, index: str, prefix: str, after: str, limit: int) -> Rows[str]:
        low = f"({after}" if after and after >= prefix else f"[{prefix}"
        high = b"[" + prefix.encode() + b"\xff" if prefix else b"+"
        low_bytes = low.encode() if low != "[" else b"-"
        names = self._connection.one("ZRANGEBYLEX", self.prefix + index, low_bytes, high, "LIMIT", 0, limit)
        return [name.decode() for name in names]

    # -- counters, sets, maps ------------------------------------------------------------------------------------------

    def typed_content(self, key: str, kind: str) -> Any:
        """What is under a key of that type: of a counter its value, of a set its elements, of a map its fields. None when it is gone, or a plain value."""
        if kind == "counter":
            return self.count_value(key)
        if kind == "set":
            return self.set_members(key)
        return self.map_fields(key) if kind == "map" else None

    def count_value(self, key: str) -> int | None:
        """A counter's value here, None when nothing has counted under that key."""
        fields = self._connection.one("HGETALL", f"{self.prefix}tally:{key}")
        return counter_value(fields) if int(fields.get(b"c", 0)) > 0 else None

    def set_members(self, key: str) -> Rows[str] | None:
        """The elements of a set in byte order, None when there is no such set."""
        fields = self._connection.one("HKEYS", f"{self.prefix}set:{check_key(key)}")
        members = sorted(name[1:] for name in fields if name[:1] == b"e")
        return [name.decode() for name in members] or None

    def map_fields(self, key: str) -> dict[str, bytes] | None:
        """The fields of a map in byte order, None when there is no such map."""
        fields = self._connection.one("HGETALL", f"{self.prefix}map:{check_key(key)}")
        found = {}
        for name in sorted(name for name in fields if name[:1] == b"f"):
            _, _, deleted, _, data, checksum = msgpack.unpackb(fields[name], raw=True)
            if deleted:
                continue
            if zlib.crc32(data) != checksum:
                raise CorruptEntry(f"field {name[1:].decode()!r} of {key!r} does not match its checksum at {self.pop}")
            found[name[1:].decode()] = data
        return found or None

    # -- changes -------------------------------------------------------------------------------------------------------

    def changes(self, after_n: int, prefix: str = "", limit: int = 100) -> Rows[Change]:
        """Keys that changed behind number `after_n`, in the order of their last change: of several changes of a key only the last one is told."""
        found: Rows[Change] = []
        while len(found) < limit:
            items = self._connection.one(
                "ZRANGEBYSCORE", self.prefix + "changes", f"({after_n}", "+inf", "WITHSCORES", "LIMIT", 0, _PAGE
            )
            pairs = [(name.decode(), int(float(n))) for name, n in zip(items[::2], items[1::2], strict=True)]
            wanted = [(key, n) for key, n in pairs if key.startswith(prefix)][: limit - len(found)]
            infos = self.heads_of([key for key, _ in wanted])
            found += [Change(n, key, info) for (key, n), info in zip(wanted, infos, strict=True)]
            if len(pairs) < _PAGE:
                break
            after_n = pairs[-1][1]
        return found

    def changes_head(self) -> int:
        """Number of the last change here, 0 when there was none."""
        return int(self._connection.one("GET", self.prefix + "changes:n") or 0)

    def changes_from(self) -> int:
        """Behind which number `changes` still tells all: deletions before it may be forgotten."""
        return int(self._connection.one("GET", self.prefix + "changes:from") or 0)

    def content_hash(self) -> str:
        """SHA-256 of all that is visible here. PoPs that have applied the same logs have the same."""
        digest = hashlib.sha256()
        after = ""
        while names := self._names("keys", "", after, _PAGE):
            for info in self.heads_of(names):
                if info is not None:
                    content = self.typed_content(info.key, info.kind)
                    if info.kind == "register":
                        content = [info.version, info.size, info.digest, info.content_type]
                    digest.update(msgpack.packb([info.key, info.kind, content]))
            after = names[-1]
        return digest.hexdigest()


class _Folded:
    """Operations of one type on one key, as one."""

    def __init__(self, first: Write) -> None:
        self.key = first.key
        self._kinds: tuple[type, ...] = next(
            kinds for kinds in ((Increment,), (SetAdd, SetRemove), (MapPut, MapRemove)) if isinstance(first, kinds)
        )
        self._by = 0
        self._present: dict[str, bool] = {}
        self._fields: dict[str, list[Any]] = {}

    def takes(self, one: Write) -> bool:
        return isinstance(one, self._kinds)

    def add(self, one: Write, limit_bytes: int) -> int:
        """Returns how many bytes it brings."""
        if isinstance(one, Increment):
            self._by += one.by
            if abs(self._by) > MAX_INCREMENT:
                raise BadRequest(f"{one.key!r} is incremented by {self._by}, not by a whole number of at most 2^53")
            return 8
        size = 0
        if isinstance(one, SetAdd | SetRemove):
            for element in one.elements:
                size += len(check_member(element, "element", one.key))
                self._present[element] = isinstance(one, SetAdd)
        elif isinstance(one, MapPut):
            for name, data in one.fields.items():
                size += len(check_member(name, "field", one.key)) + len(data)
                if len(data) > limit_bytes:
                    raise TooLarge(
                        f"field {name!r} of {one.key!r} has {len(data)} bytes, at most {limit_bytes} are taken"
                    )
                self._fields[name] = [name, "", 0, one.content_type or "", data, zlib.crc32(data)]
        elif isinstance(one, MapRemove):
            for name in one.fields:
                size += len(check_member(name, "field", one.key))
                self._fields[name] = [name, "", 1, "", b"", 0]
        return size

    def packed(self) -> Rows[Any]:
        if self._kinds[0] is Increment:
            return ["i", self.key, self._by]
        if self._kinds[0] is SetAdd:
            adds = [element for element, is_there in self._present.items() if is_there]
            return ["s", self.key, adds, [element for element, is_there in self._present.items() if not is_there]]
        return ["m", self.key, list(self._fields.values())]


def pack_ops(ops: Sequence[Write], limit_bytes: int) -> Rows[Any]:
    """The typed operations of a commit, one per key. Raises BadRequest, BadName or TooLarge."""
    folded: dict[str, _Folded] = {}
    for one in ops:
        fold = folded.setdefault(check_key(one.key), _Folded(one))
        if not fold.takes(one):
            raise _twice(one.key)
        fold.add(one, limit_bytes)
    return [fold.packed() for fold in folded.values()]


def check_member(name: str, what: str, key: str) -> bytes:
    """The bytes of an element or a field name. Raises BadName."""
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise BadName(f"an {what} of {key!r} is not valid text") from None
    if not 0 < len(data) <= MAX_NAME_BYTES:
        raise BadName(
            f"{what} {name[:60]!r} of {key!r} has {len(data)} bytes, not 1 to {MAX_NAME_BYTES}",
            hint="Elements and field names are short texts.",
        )
    return data


def deadline_of(ttl_ms: int | None) -> int:
    """When (ms since the epoch) a value that is written now and lives `ttl_ms` is no more; 0 for never. Raises BadRequest."""
    if ttl_ms is None:
        return 0
    if ttl_ms < 1:
        raise BadRequest(f"a ttl of {ttl_ms} ms is not positive")
    return now_ms() + ttl_ms


def _twice(key: str) -> BadRequest:
    return BadRequest(f"{key!r} occurs twice in the batch")


def _value_info(key: str, fields: Sequence[Any], now: int) -> ValueInfo | None:
    version, size, content_type, digest, deleted, expires, dot = fields[:7]
    if version is None or deleted == b"1" or (expires is not None and int(expires) <= now):
        return None
    return ValueInfo(
        key, version.decode(), int(size), content_type.decode() or None, digest.decode() or None,
        expires_ms=None if expires is None else int(expires), origin=_origin(dot),
    )  # fmt: skip


def _lost_info(key: str, fields: Sequence[Any]) -> ValueInfo:
    _, version, digest, size, _, _, content_type = fields[:7]
    return ValueInfo(
        key, version.decode(), int(size), content_type.decode() or None, digest.decode() or None, origin=_origin(fields[10]),
    )  # fmt: skip


def _origin(dot: bytes | None) -> str:
    return dot.decode().split(":", 1)[0] if dot else ""


def _with_data(info: ValueInfo, data: bytes) -> Value:
    return Value(
        info.key, info.version, info.size, info.content_type, info.digest, data, kind=info.kind, expires_ms=info.expires_ms, origin=info.origin,
    )  # fmt: skip
