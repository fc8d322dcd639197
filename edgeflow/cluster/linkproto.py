"""The messages of a link and their wire form.

What it is: one frozen dataclass per message, and the check that turns a decoded frame into one.
What it is not: what a message causes (sender, receiver, session), or framing (core/wire).
What must stay true: nothing from a peer is used before it passed `decode`; names that become Redis keys or file names (namespaces, digests)
are checked here. docs/links.md describes each message; a test compares the two.
"""

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import msgpack

from edgeflow.core.channels import NAMESPACE
from edgeflow.core.wire import MAX_FRAME_BYTES, encode_frame
from edgeflow.core.wire import Message as Frame
from edgeflow.errors import ProtocolError

VERSION = 2
"""Of what both sides must understand; another one is refused."""
MINOR = 1
"""Of what may be added: fields that have defaults. A peer with any other one is understood."""
WINDOW_BYTES = 4 * 1024 * 1024
"""Payload bytes that may be under way without an ack."""
CHUNK_WINDOW_BYTES = 3 * 1024 * 1024
"""Blob chunks stop here, so that entries always find room in the window."""
BATCH_ENTRIES = 64
BATCH_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024
LIST_ITEMS = 1000
"""Digests per `want` or `nohave`."""
INFLATED_BYTES = MAX_FRAME_BYTES
"""Most that a deflated list of entries may hold."""
REASON_CHARS = 500
CALL_BYTES = 1024 * 1024
"""Longest body of a `call` or an `answer`."""

Position = tuple[str, str, int, int]
"""(namespace, origin, epoch, seq): a cursor into one log."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FLOOR = re.compile(r"(\d{13}\.\d{5}@[a-z0-9~-]{1,64})?")
_MAX_INT = 2**53


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of both sides: who I am, and how far I have each log (`logs`: namespace -> [[origin, epoch, seq], ...]).

    `minor` is the version of what may be added, `run` names this life of the process.
    """

    v: int
    cluster: str
    pop: str
    logs: dict[str, list[tuple[str, int, int]]]
    minor: int = 0
    run: str = ""


@dataclass(frozen=True, slots=True)
class Entries:
    """Consecutive raw entries of one log, the first at seq `first`; the blobs in `coming` follow on this link. With `z` 1 `entries` is one deflated list."""

    ns: str
    origin: str
    epoch: int
    first: int
    entries: list[bytes]
    coming: list[str]
    z: int = 0


@dataclass(frozen=True, slots=True)
class Blob:
    """One chunk of a blob of `size` bytes, at offset `off`. Chunks of one blob come in order, from 0 or from what was wanted."""

    ns: str
    digest: str
    size: int
    off: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Want:
    """Send these blobs, each from the offset in `offs` on: so much of it is here already."""

    ns: str
    digests: list[str]
    offs: list[int]


@dataclass(frozen=True, slots=True)
class NoHave:
    """These blobs are not here: ask somebody else, or later. Ends their transfer if it had begun."""

    ns: str
    digests: list[str]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Stop sending this blob; `code` is `too-large` (never send it) or `busy` (I shall ask for it)."""

    ns: str
    digest: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Ack:
    """`bytes` payload bytes of this connection are dealt with; `logs` are mirrored and on disk up to these cursors; `blobs` are readable here."""

    bytes: int
    logs: list[Position]
    blobs: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Rewind:
    """Send this log again from the entry after `seq`: what came last did not fit."""

    ns: str
    origin: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Relay:
    """My links to `origins` are down: send me what you have of their logs, behind these cursors. Replaces what was asked before."""

    origins: list[str]
    logs: list[Position]


@dataclass(frozen=True, slots=True)
class Offer:
    """What you need of this namespace's logs is not kept here any more (`firsts`: where they begin): take the values as they are now?"""

    ns: str
    firsts: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Take:
    """Answer to an offer: yes when `reason` is empty, else why not. `cursors`: how far I have those logs. Also ends a snapshot that cannot be taken."""

    ns: str
    reason: str
    cursors: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Page:
    """The values whose keys lie behind `after` and up to `last` ("" = the end), as a packed list."""

    ns: str
    after: str
    last: str
    items: bytes


@dataclass(frozen=True, slots=True)
class Lanes:
    """The last event of each channel and log (origin, epoch, channel, seq) that the snapshot covers."""

    ns: str
    lanes: list[tuple[str, int, str, int]]


@dataclass(frozen=True, slots=True)
class Complete:
    """The end of a snapshot: it holds each log up to here."""

    ns: str
    cursors: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class State:
    """Where the sender stands, in the namespaces where that changed since it last said so (`spaces`: namespace -> [floor, [[origin, epoch, seq], ...]])."""

    n: int
    spaces: dict[str, tuple[str, list[tuple[str, int, int]]]]


@dataclass(frozen=True, slots=True)
class Call:
    """A question to the peer's data process; it is answered within `within_ms`, or not at all."""

    id: int
    kind: str
    ns: str
    within_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """To the call with that id: `body`, or the error whose code is `error` and whose description is `body`."""

    id: int
    error: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """`at` is the sender's monotonic clock in microseconds; it comes back as it is. `about`: PoPs to which its own link is down."""

    at: int
    about: list[str]


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping. With `state` number `n`, which went before it, it says all that was written at the sender by now.

    `ages`: how long ago (PoP, namespace, ms) the sender had all that those PoPs had written. `heard`: how long ago (PoP, ms) it heard them at all.
    """

    at: int
    n: int
    ages: list[tuple[str, str, int]]
    heard: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Error:
    """Why I close the connection now."""

    code: str
    message: str


Message = (
    Hello | Entries | Blob | Want | NoHave | Refuse | Ack | Rewind | Relay | Offer | Take | Page | Lanes | Complete | State | Call | Answer | Ping | Pong | Error
)  # fmt: skip

KINDS: dict[str, type[Message]] = {
    "hello": Hello, "entries": Entries, "blob": Blob, "want": Want, "nohave": NoHave, "refuse": Refuse, "ack": Ack, "rewind": Rewind,
    "relay": Relay, "offer": Offer, "take": Take, "page": Page, "lanes": Lanes, "complete": Complete, "state": State, "call": Call, "answer": Answer, "ping": Ping, "pong": Pong, "error": Error,
}  # fmt: skip


def encode(message: Message) -> bytes:
    """The frame of a message."""
    frame: dict[str, Any] = {"t": _NAMES[type(message)]}
    for name in _CHECKS[type(message)]:
        value = getattr(message, name)
        if name not in _DEFAULTS or value != _DEFAULTS[name]:
            frame[name] = value
    return encode_frame(frame)


def decode(frame: Frame) -> Message:
    """The message of a decoded frame; fields that this version does not know are ignored. Raises ProtocolError when it is not well formed."""
    name = frame.get("t")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"{str(name)[:40]!r} is not a link message")
    values = []
    for field, check in _CHECKS[kind].items():
        try:
            values.append(check(frame[field]) if field in frame or field not in _DEFAULTS else _DEFAULTS[field])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError(f"{name}.{field} is missing or malformed") from None
    return kind(*values)


def payload_bytes(message: Entries | Blob | Page) -> int:
    """What a message counts towards the window; both sides compute it alike."""
    match message:
        case Blob():
            return len(message.data)
        case Page():
            return len(message.items)
        case Entries():
            return sum(map(len, message.entries)) + 16 * len(message.entries)


def deflated(entries: list[bytes]) -> list[bytes] | None:
    """`entries` as they travel with `z` 1, or None when that saves less than a tenth."""
    packed: bytes = msgpack.packb(entries)
    small = zlib.compress(packed, 1)
    return [small] if len(small) * 10 <= len(packed) * 9 else None


def inflated(message: Entries) -> list[bytes]:
    """The entries of a message. Raises ProtocolError when they cannot be read or are far too long."""
    if not message.z:
        return message.entries
    try:
        (small,) = message.entries
        machine = zlib.decompressobj()
        entries = msgpack.unpackb(machine.decompress(small, INFLATED_BYTES))
        if machine.unconsumed_tail or not machine.eof:
            raise ValueError("too long, or cut off")
        return _list_of(_bytes)(entries)
    except Exception as error:  # zlib and msgpack raise many kinds
        raise ProtocolError(f"deflated entries cannot be read: {error!r}") from None


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > 4096:
        raise ValueError
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_INT:
        raise ValueError
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError
    return value


def _namespace(value: Any) -> str:
    if not NAMESPACE.fullmatch(value):
        raise ValueError
    return str(value)


def _digest(value: Any) -> str:
    if not DIGEST.fullmatch(value):
        raise ValueError
    return str(value)


def _list_of(check: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def checked(value: Any) -> list[Any]:
        if type(value) is not list:
            raise ValueError
        return [check(item) for item in value]

    return checked


def _tuple_of(*checks: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def checked(value: Any) -> tuple[Any, ...]:
        return tuple(check(item) for check, item in zip(checks, value, strict=True))

    return checked


def _hello_logs(value: Any) -> dict[str, list[Any]]:
    one = _list_of(_tuple_of(_text, _number, _number))
    return {_namespace(name): one(logs) for name, logs in value.items()} if type(value) is dict else _fail()


def _floor(value: Any) -> str:
    if not _FLOOR.fullmatch(value):
        raise ValueError
    return str(value)


def _state_spaces(value: Any) -> dict[str, tuple[str, list[Any]]]:
    if type(value) is not dict:
        raise ValueError
    one = _tuple_of(_floor, _list_of(_tuple_of(_text, _number, _number)))
    return {_namespace(name): one(stand) for name, stand in value.items()}


def _body(value: Any) -> bytes:
    if len(_bytes(value)) > CALL_BYTES:
        raise ValueError
    return bytes(value)


def _fail() -> Any:
    raise ValueError


_ORIGINS = _list_of(_text)
_CURSORS = _list_of(_tuple_of(_text, _number, _number))
_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "ns": _namespace,
    "digest": _digest,
    "digests": _list_of(_digest),
    "offs": _list_of(_number),
    "coming": _list_of(_digest),
    "entries": _list_of(_bytes),
    "blobs": _list_of(_tuple_of(_namespace, _digest)),
    "spaces": _state_spaces,
    "origins": _ORIGINS,
    "about": _ORIGINS,
    "ages": _list_of(_tuple_of(_text, _namespace, _number)),
    "heard": lambda value: tuple(_list_of(_tuple_of(_text, _number))(value)),
    "firsts": _CURSORS,
    "cursors": _CURSORS,
    "lanes": _list_of(_tuple_of(_text, _number, _text, _number)),
    "items": _bytes,
    "body": _body,
}
_BY_TYPE: dict[Any, Callable[[Any], Any]] = {str: _text, int: _number, bytes: _bytes}


def _checks(kind: type[Message]) -> dict[str, Callable[[Any], Any]]:
    checks = {}
    for field in fields(kind):
        check = _SPECIAL.get(field.name) or _BY_TYPE.get(field.type)
        if field.name == "logs":
            check = _hello_logs if kind is Hello else _list_of(_tuple_of(_namespace, _text, _number, _number))
        if check is None:
            raise TypeError(f"{kind.__name__}.{field.name} has no check")
        checks[field.name] = check
    return checks


_CHECKS = {kind: _checks(kind) for kind in KINDS.values()}
_DEFAULTS = {
    field.name: field.default for kind in KINDS.values() for field in fields(kind) if field.default is not MISSING
}  # fmt: skip
_NAMES = {kind: name for name, kind in KINDS.items()}


def in_lists(items: Iterable[str]) -> Iterable[list[str]]:
    """`items` cut into lists of at most LIST_ITEMS."""
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == LIST_ITEMS:
            yield batch
            batch = []
    if batch:
        yield batch
