"""What goes into the store and what comes out of it: plain records, and their packed forms that the Lua library reads and writes.

What must stay true: heads and bodies carry CRC-32 checksums from the PoP that wrote them; whoever unpacks an event or a value checks them.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from edgeflow.core.events import BlobRef, Event
from edgeflow.errors import CorruptEntry, EdgeflowError


class LogId(NamedTuple):
    """One log: of the PoP where entries entered, in one epoch of that PoP."""

    origin: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an acknowledgement says. `class_` is "durable", or "waiting" while a dataref is not readable yet (durable, but not in the log)."""

    class_: str
    origin: str
    epoch: int
    seq: int
    id: str
    version: str | None = None
    duplicate: bool = False

    def to_json(self) -> dict[str, Any]:
        """The receipt as it is sent: keys class, origin, epoch, seq, id, version, and duplicate when it was known already."""
        document = {
            "class": self.class_,
            "origin": self.origin,
            "epoch": self.epoch,
            "seq": self.seq,
            "id": self.id,
            "version": self.version,
        }
        if self.duplicate:
            document["duplicate"] = True
        return document


@dataclass(frozen=True, slots=True)
class Refusal:
    """An arrival that was not taken."""

    id: str
    error: EdgeflowError


@dataclass(slots=True)
class Arrival:
    """One event on its way into the log."""

    event: Event
    via: str = "http"
    """"mqtt" when this PoP's broker has shown it to its subscribers already, else "http"."""
    dataref: str | None = None
    """`ekv:<namespace>/<key>[@<version>]` when the event names its data instead of carrying it."""
    put_key: str | None = None
    """Key under which the body is put into the EKV in the same atomic step."""
    deduplicate: bool = False
    """True when `event.id` was chosen by the client: the same source and id within the window is the same event."""
    ring: str | None = None
    """Redelivery mark: broker boot id, message id and digest."""
    again: bool = False
    """True when the broker flagged a redelivery, or the call is repeated after an outage."""


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """One EKV entry without its body."""

    key: str
    version: str
    size: int
    content_type: str | None
    digest: str | None
    kind: str = field(default="register", kw_only=True)
    """"register" (a plain value), "counter", "set" or "map". Of a set or a map `size` is how many elements or fields it has."""
    expires_ms: int | None = field(default=None, kw_only=True)
    """When (ms since the epoch) it is no more."""
    origin: str = field(default="", kw_only=True)
    """The PoP that wrote it; "" where several may have."""

    @property
    def modified_ms(self) -> int:
        """Time (ms since the epoch) of the write, from its version; 0 for counters and sets."""
        head = self.version[:13]
        return int(head) if self.kind in ("register", "map") and head.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Value(ValueInfo):
    """One EKV entry with its body."""

    data: bytes = b""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One write of a key that is kept: the current one, or one that lost to a write that had not seen it."""

    version: str
    size: int
    content_type: str | None
    digest: str | None
    is_current: bool
    origin: str


@dataclass(frozen=True, slots=True)
class Change:
    """The latest change of a key at this PoP, by its number; `info` None says that it was deleted."""

    n: int
    key: str
    info: ValueInfo | None


@dataclass(frozen=True, slots=True)
class ValueWrite:
    """A value in a commit. `data` None with `ref` None deletes the key, whatever its type. `if_version`, `if_absent`: the commit happens only then."""

    key: str
    data: bytes | None = None
    ref: BlobRef | None = None
    content_type: str | None = None
    ttl_ms: int | None = None
    if_version: str | None = None
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Write a plain value: `data`, or `ref` to a body that is stored already. `if_version`, `if_absent`: only then."""

    key: str
    data: bytes | None = None
    ref: BlobRef | None = None
    content_type: str | None = None
    ttl_ms: int | None = None
    if_version: str | None = None
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key of any type: everything of it that is visible here."""

    key: str
    if_version: str | None = None
    missing_ok: bool = False


@dataclass(frozen=True, slots=True)
class Increment:
    """Add to a counter."""

    key: str
    by: int = 1


@dataclass(frozen=True, slots=True)
class SetAdd:
    """Add elements to a set; whoever removes one at the same time elsewhere loses."""

    key: str
    elements: Sequence[str]


@dataclass(frozen=True, slots=True)
class SetRemove:
    """Remove elements from a set, as far as this PoP has seen them."""

    key: str
    elements: Sequence[str]


@dataclass(frozen=True, slots=True)
class MapPut:
    """Write fields of a map; per field the latest write wins."""

    key: str
    fields: Mapping[str, bytes]
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class MapRemove:
    """Remove fields of a map."""

    key: str
    fields: Sequence[str]


Write = Put | Delete | Increment | SetAdd | SetRemove | MapPut | MapRemove


REPEATED = "repeated"
"""How an event came that is shown to nobody, since the same one came before it."""


@dataclass(frozen=True, slots=True)
class Released:
    """One entry of the release stream: an event, or a gap."""

    n: int
    event: Event | None
    gap: Mapping[str, Any] | None
    via: str
    released_ms: int

    @property
    def is_repeated(self) -> bool:
        """Whether the client repeated this publish at another PoP, and that one was here first: nobody is shown this one."""
        return self.via == REPEATED


@dataclass(frozen=True, slots=True)
class Input:
    """One arrival of an invocation."""

    name: str
    event: Event


class Claim(NamedTuple):
    """A wish for work of one instance."""

    function: str
    revision: str
    instance: str
    limit: int
    lease_ms: int


class StoredInput(NamedTuple):
    """One arrival of an invocation, its event in the stored form with its log position: what an instance is sent, so that nobody makes an `Event` on the way."""

    name: str
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claimed:
    """One claimed attempt. Times in microseconds since the epoch."""

    id: str
    attempt: int
    accepted_us: int
    ready_us: int
    stored: Sequence[StoredInput]
    key: str = ""
    """Key of its join or its turn."""
    window: tuple[int, int] | None = None
    """Start and end (ms since 1970) of its window."""
    state_key: str = ""
    """EKV key of the state of its key, when the function has state."""
    state: Value | None = None
    """That state as it is now; bodies that are blobs come without their data."""
    replay: str = ""
    shadow: bool = False
    alone: bool = False
    """An instance died of several with this among them: it is worked on alone, so that the guilty one shows itself."""
    expires_ms: int | None = None
    """After this it is not begun any more."""

    @property
    def inputs(self) -> list[Input]:
        """The arrivals with their events."""
        return [Input(name, Event.decode(stored)) for name, stored in self.stored]


@dataclass(slots=True)
class Commit:
    """The end of an attempt with its effects."""

    id: str
    attempt: int
    events: Sequence[Event] = ()
    values: Sequence[ValueWrite] = ()
    increments: Sequence[tuple[str, int]] = ()
    """(counter, by) pairs."""
    ops: Sequence[SetAdd | SetRemove | MapPut | MapRemove] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """What a commit did: "committed", "stale" (nothing was written), or "missing" (a blob it refers to is not here; nothing was
    written), "elsewhere" (a key that it writes has its home at another PoP), "wrong-type" or "too-many" (`detail` is the key), "mismatch" (a condition
    does not hold; `detail` is "<key> <its version>"); nothing was written."""

    status: str
    detail: str = ""


class OwnRelease(NamedTuple):
    """An event that a round released; `event` is None when this PoP's broker has shown it to its subscribers already."""

    n: int
    event: Event | None


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round did, in the order of what was asked.

    `woken` names the inboxes ("function:revision") that got work; `released` has the round's own events by their number in the release stream (other
    events may have been released between them); `blocked` the inboxes that gave nothing because an inbox behind them is full.
    """

    receipts: list[Receipt | Refusal]
    ended: list[Ended]
    claimed: list[list[Claimed]]
    woken: set[str]
    released: list[OwnRelease]
    blocked: set[str]


@dataclass(frozen=True, slots=True)
class Expired:
    """A claimed attempt whose lease ended."""

    id: str
    attempt: int
    function: str
    revision: str
    instance: str


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """One channel as seen at this PoP."""

    name: str
    events: int


@dataclass(frozen=True, slots=True)
class InboxStats:
    """Depths of one inbox; `oldest_ms` is the age of the oldest ready invocation, 0 when none; `turn` wait for another of their key."""

    ready: int
    delayed: int
    claimed: int
    oldest_ms: int
    turn: int = 0

    @property
    def pending(self) -> int:
        """Invocations that have not ended."""
        return self.ready + self.delayed + self.claimed + self.turn


@dataclass(frozen=True, slots=True)
class PendingJoin:
    """A join that waits. `have` are input names (for `collect` and windows, their number), `missing` the names that are not there.

    Times are ms since 1970; `window` is (start, end) of a window.
    """

    function: str
    key: str
    kind: str
    have: Sequence[str]
    needed: int
    since_ms: int
    due_ms: int
    missing: Sequence[str] = ()
    window: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An invocation given up. `inputs` are its events."""

    id: str
    function: str
    revision: str
    reason: str
    detail: str
    at_ms: int
    attempts: int
    inputs: Sequence[Input] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class InvocationInfo:
    """One invocation as this PoP knows it.

    `state`: "turn" (waits for its key), "ready", "delayed" (for a retry), "claimed", "committed", "dead", "expired", "dropped", or "ended" when only the
    done mark is known any more. `by` is the instance that holds it, `reason` why it failed or ended.
    """

    id: str
    function: str
    revision: str
    state: str
    attempt: int
    failures: int
    accepted_ms: int
    by: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How an invocation that was asked for (an invoke) ended: `status` "committed" (with its outputs in `events`), "dead", "expired" or "dropped"."""

    status: str
    reason: str = ""
    events: Sequence[Event] = ()


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """A wish to hand retained events of a channel to a function once more. `revision` None is the current one; times are ms since 1970, None is open.

    `shadow`: the outputs are kept for comparison and published nowhere.
    """

    channel: str
    function: str
    revision: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class ReplayInfo:
    """A replay and how far it is: `state` "running", "done" or "cancelled"; events read, invocations made, committed and given up."""

    id: str
    channel: str
    function: str
    revision: str
    from_ms: int | None
    to_ms: int | None
    shadow: bool
    state: str
    read: int
    invoked: int
    committed: int
    dead: int
    started_ms: int


@dataclass(frozen=True, slots=True)
class ReplayDiff:
    """One invocation of a shadow replay beside what was recorded for the same input; `recorded` is None when that is not kept any more."""

    invocation: str
    recorded: Sequence[Event] | None
    shadow: Sequence[Event]
    same: bool


@dataclass(frozen=True, slots=True)
class Quota:
    """What a namespace may send to a PoP; None is no bound. Up to `burst_s` seconds' worth may come at once."""

    events_per_s: float | None = None
    bytes_per_s: float | None = None
    burst_s: float = 2.0
    link_bytes_per_s: float | None = None
    """What each PoP sends of it to each other PoP."""


@dataclass(frozen=True, slots=True)
class MirrorResult:
    """How far a log is mirrored (and fsynced), and which blobs its entries still need here."""

    mirrored: int
    missing: list[str]


def pack_event(event: Event) -> list[Any]:
    """An event as the Lua library keeps it (see 00_prelude.lua)."""
    stored = event.encode()
    data = stored.pop("d", b"")
    stored.pop("r", None)
    content_type = stored.pop("m", "")
    head: bytes = msgpack.packb(stored)
    ref = event.ref
    return [
        event.channel, 0, head, zlib.crc32(head), ref.digest if ref else "", event.size_bytes, data, zlib.crc32(data), content_type,
    ]  # fmt: skip


def unpack_event(fields: Sequence[Any], origin: str, epoch: int, seq: int, index: int) -> Event:
    """Inverse of `pack_event`, with the log position. Raises CorruptEntry when a checksum does not match."""
    try:
        return Event.decode(_stored_event(fields, origin, epoch, seq, index))
    except CorruptEntry:
        raise
    except Exception as error:
        raise CorruptEntry(f"event {index} of entry {origin}/{epoch}/{seq} cannot be read: {error!r}") from None


def _stored_event(fields: Sequence[Any], origin: str, epoch: int, seq: int, index: int) -> dict[str, Any]:
    try:
        _check_event(fields, origin, epoch, seq, index)
        channel, prev, head, _, digest, size, data, _, content_type = fields
        stored: dict[str, Any] = msgpack.unpackb(head)
        if digest:
            stored["r"] = [digest.decode(), size]
        else:
            stored["d"] = data
        if content_type:
            stored["m"] = content_type.decode()
        stored["p"] = [origin, epoch, seq, index, prev]
        if stored.get("c") != channel.decode():
            raise CorruptEntry(
                f"event {index} of entry {origin}/{epoch}/{seq} is on another channel than its entry says"
            )
        return stored
    except CorruptEntry:
        raise
    except Exception as error:
        raise CorruptEntry(f"event {index} of entry {origin}/{epoch}/{seq} cannot be read: {error!r}") from None


def pack_value(
    key: str, data: bytes | None, ref: BlobRef | None, content_type: str | None, expires_ms: int = 0
) -> list[Any]:
    """A value without its version and what it is based on (the script gives them)."""
    body = b"" if data is None else data
    deleted = data is None and ref is None
    size = ref.size if ref else len(body)
    return [
        key,
        "",
        ref.digest if ref else "",
        size,
        b"" if ref else body,
        zlib.crc32(body),
        content_type or "",
        int(deleted),
        expires_ms,
        "",
    ]


def check_entry(raw: bytes, log: LogId, seq: int) -> dict[bytes, Any]:
    """A log entry as `unpack_entry` gives it, every checksum of it checked. Raises CorruptEntry."""
    entry = unpack_entry(raw)
    for index, fields in enumerate(entry[b"ev"]):
        _check_event(fields, log.origin, log.epoch, seq, index)
    return entry


def _check_event(fields: Sequence[Any], origin: str, epoch: int, seq: int, index: int) -> None:
    channel, _, head, head_crc, digest, _, data, data_crc, _ = fields
    try:
        channel.decode()
        whole = zlib.crc32(head) == head_crc and (bool(digest) or zlib.crc32(data) == data_crc)
    except (TypeError, AttributeError, UnicodeDecodeError) as error:
        raise CorruptEntry(f"event {index} of entry {origin}/{epoch}/{seq} cannot be read: {error!r}") from None
    if not whole:
        raise CorruptEntry(f"event {index} of entry {origin}/{epoch}/{seq} does not match its checksum")


def unpack_input(fields: Sequence[Any]) -> Input:
    """One input of an invocation."""
    name, origin, epoch, seq, index, event = fields[:6]
    return Input(name.decode(), unpack_event(event, origin.decode(), epoch, seq, index))


def unpack_inputs(packed: bytes) -> list[Input]:
    """The inputs of an invocation."""
    return [unpack_input(fields) for fields in msgpack.unpackb(packed, raw=True)]


def unpack_stored(packed: bytes) -> list[StoredInput]:
    """The inputs of an invocation, their events as they are stored. Raises CorruptEntry."""
    return [
        StoredInput(fields[0].decode(), _stored_event(fields[5], fields[1].decode(), *fields[2:5]))
        for fields in msgpack.unpackb(packed, raw=True)
    ]


def unpack_entry(raw: bytes) -> dict[bytes, Any]:
    """A log entry as a map with byte keys, checked for shape and checksums of values. Raises CorruptEntry."""
    try:
        entry = msgpack.unpackb(raw, raw=True, strict_map_key=False)
        if entry[b"v"] != 1:
            raise CorruptEntry(f"a log entry has version {entry[b'v']!r}; this agent reads version 1")
        for event in entry[b"ev"]:
            if len(event) != 9:
                raise ValueError("an event has the wrong number of fields")
        for value in entry[b"va"]:
            if len(value) != 10 or (not value[2] and zlib.crc32(value[4]) != value[5]):
                raise CorruptEntry("a value does not match its checksum")
        return dict(entry)
    except CorruptEntry:
        raise
    except Exception as error:
        raise CorruptEntry(f"a log entry cannot be read: {error!r}") from None


def entry_refs(raw: bytes) -> list[BlobRef]:
    """The blobs that a log entry refers to, each once."""
    entry = unpack_entry(raw)
    refs = {event[4]: event[5] for event in entry[b"ev"] if event[4]}
    refs.update({value[2]: value[3] for value in entry[b"va"] if value[2]})
    return [BlobRef(digest.decode(), size) for digest, size in refs.items()]
