"""What a handler is given: events, with bodies that are fetched when first touched.

What it is: the read-only view of one event, and the cache of fetched bodies.
What it is not: how a body is fetched (connection.py, or a fake in testing.py).
What must stay true: a body is addressed by its digest and never changes, so a cached one is never stale; the cache never holds more
than its limit.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

from edgeflow.core import gathered
from edgeflow.core.channels import INVOKE_LEVEL, captures_of
from edgeflow.core.events import BlobRef, Event
from edgeflow.core.wire import MAX_FRAME_BYTES
from edgeflow.errors import EdgeflowError, NotFound, Reject

MAX_BODY_BYTES = MAX_FRAME_BYTES - 4096
"""Largest state: it travels in one frame with a few fields beside it."""
MAX_VALUE_BYTES = 256 * 1024 * 1024
"""Largest body of an output or a value; the PoP's own limits may be lower."""
CACHE_BYTES = 64 * 1024 * 1024
AHEAD_COUNT = 8
AHEAD_BYTES = 1024 * 1024


class Bodies(Protocol):
    """Where bodies come from."""

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        """The body with that digest; `ahead` names bodies that will probably be asked for next. Raises EdgeflowError when it cannot be read."""

    def fetch_piece(self, digest: str, offset: int) -> bytes:
        """Some bytes of that body from `offset`, none at its end. Raises EdgeflowError when it cannot be read."""


def fetch_pieces(bodies: Bodies, digest: str) -> Iterator[bytes]:
    """A body piece by piece."""
    offset = 0
    while piece := bodies.fetch_piece(digest, offset):
        yield piece
        offset += len(piece)


class BodyCache:
    """The most recently used bodies by digest, up to `limit_bytes` in all."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self.size_bytes = 0

    def get(self, digest: str) -> bytes | None:
        """The body, now the most recently used one, or None."""
        body = self._bodies.get(digest)
        if body is not None:
            self._bodies.move_to_end(digest)
        return body

    def put(self, digest: str, body: bytes) -> None:
        """Keeps a body and drops the least recently used ones; a body above the limit is not kept."""
        if digest in self._bodies or len(body) > self._limit_bytes:
            return
        self._bodies[digest] = body
        self.size_bytes += len(body)
        while self.size_bytes > self._limit_bytes:
            _, dropped = self._bodies.popitem(last=False)
            self.size_bytes -= len(dropped)

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        """The body, as `Bodies` gives it. Raises NotFound when it is not in the cache."""
        body = self.get(digest)
        if body is None:
            raise NotFound(f"the body {digest} had not been read")
        return body

    def fetch_piece(self, digest: str, offset: int) -> bytes:
        """The rest of the body from `offset`. Raises NotFound."""
        return self.fetch(digest)[offset:]

    def __contains__(self, digest: str) -> bool:
        return digest in self._bodies


class Input:
    """One event of an invocation's inputs. Read-only; `data` is fetched when it is first touched."""

    __slots__ = ("_bodies", "_captures", "_event", "_group", "_position", "_stored", "name")

    def __init__(
        self, name: str, stored: Mapping[str, Any], bodies: Bodies, captures: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._captures = captures or {}
        self._stored = stored
        self._bodies = bodies
        self._event: Event | None = None
        self._group: Sequence[Input] = ()
        self._position = 0

    @property
    def event(self) -> Event:
        """The whole event with its position in the log."""
        if self._event is None:
            self._event = Event.decode(self._stored)
        return self._event

    @property
    def data(self) -> bytes:
        """The body. Raises EdgeflowError when it cannot be fetched.

        Fetched bodies stay in the instance's cache and not in this object, so a handler may walk through more than fits into memory.
        """
        ref = self._stored.get("r")
        if ref is None:
            return self._stored.get("d") or b""
        return self._bodies.fetch(ref[0], self._ahead() if self._group else ())

    def pieces(self) -> Iterator[bytes]:
        """The body piece by piece, a few MiB in memory at a time. Raises EdgeflowError when it cannot be fetched."""
        ref = self._stored.get("r")
        if ref is None:
            yield self._stored.get("d") or b""
            return
        yield from fetch_pieces(self._bodies, ref[0])

    def text(self) -> str:
        """The body as UTF-8 text. Raises UnicodeDecodeError when it is none."""
        return self.data.decode()

    def json(self) -> Any:
        """The body parsed as JSON. Raises ValueError when it is none."""
        return json.loads(self.data)

    @property
    def id(self) -> str:
        """CloudEvents id."""
        return str(self._stored["i"])

    @property
    def channel(self) -> str:
        """Full channel name, `<namespace>/<path>`."""
        return str(self._stored["c"])

    @property
    def captures(self) -> Mapping[str, str]:
        """What the named levels of the subscribed filter are in this event's channel: `cam/{id}/frames` gives {"id": "7"} on `cam/7/frames`."""
        return MappingProxyType(self._captures)

    @property
    def source(self) -> str:
        """CloudEvents source."""
        return str(self._stored["s"])

    @property
    def type(self) -> str:
        """CloudEvents type."""
        return str(self._stored["y"])

    @property
    def subject(self) -> str | None:
        """CloudEvents subject: the default key of joins."""
        return self._stored.get("u")

    @property
    def datacontenttype(self) -> str | None:
        """Media type of the body, if the publisher said one."""
        return self._stored.get("m")

    @property
    def attributes(self) -> Mapping[str, str]:
        """Extension attributes."""
        return MappingProxyType(self._stored.get("a") or {})

    @property
    def time_ms(self) -> int:
        """CloudEvents time in ms since 1970, UTC."""
        return int(self._stored["t"])

    @property
    def time(self) -> datetime:
        """CloudEvents time."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC)

    @property
    def ref(self) -> BlobRef | None:
        """Digest and size of a body that is not inline."""
        ref = self._stored.get("r")
        return BlobRef(ref[0], int(ref[1])) if ref else None

    @property
    def size_bytes(self) -> int:
        """Size of the body; does not fetch it."""
        ref = self._stored.get("r")
        return int(ref[1]) if ref else len(self._stored.get("d") or b"")

    def __repr__(self) -> str:
        return f"<Input {self.name} {self.channel} id={self.id} subject={self.subject!r} {self.size_bytes} B>"

    def _ahead(self) -> list[str]:
        """Digests of the next few inputs of a collected group: the handler will walk through them, so one round trip brings several."""
        ahead: list[str] = []
        for other in self._group[self._position + 1 : self._position + 1 + AHEAD_COUNT]:
            ref = other._stored.get("r")
            if ref is not None and ref[1] <= AHEAD_BYTES:
                ahead.append(ref[0])
        return ahead


def spread(
    items: Sequence[Mapping[str, Any]], captures: Mapping[str, Mapping[str, int]], namespace: str, bodies: Bodies
) -> Sequence[Mapping[str, Any]]:
    """The inputs of a work item; those that came all in one event, by which the function was called by name, one by one.

    `captures` are the levels of the captures of each input. Raises Reject for a batch that is none, or has an input that the function has not.
    """
    stored = items[0]["event"] if len(items) == 1 else {}
    if not gathered.is_batch(stored.get("m")) or not stored["c"].startswith(f"{namespace}/{INVOKE_LEVEL}/"):
        return items
    body = Input("batch", stored, bodies).data
    try:
        inputs = gathered.unpack(body, namespace=namespace, source=stored["s"], now_ms=stored["t"])
    except EdgeflowError as error:
        raise Reject(f"{error.message} ({error.hint})") from None
    unknown = sorted({name for name, _ in inputs} - set(captures))
    if unknown:
        raise Reject(f"the batch has inputs that the function has not: {', '.join(unknown)}")
    return [
        {"name": name, "event": event.encode(), "captures": captures_of(captures[name], event.channel)}
        for name, event in inputs
    ]


def make_inputs(
    items: Sequence[Mapping[str, Any]], names: Sequence[str], bodies: Bodies, *, lists: Collection[str] = ()
) -> tuple[dict[str, Any], list[Input]]:
    """(keyword arguments of the handler, all inputs in their order) of a work item.

    A name in `lists` holds a list of Inputs in the order of the item, empty when this invocation has none; any other name holds one Input, or None
    when this invocation has none. Raises KeyError for an input with another name.
    """
    arguments: dict[str, Any] = {name: [] if name in lists else None for name in names}
    made: list[Input] = []
    for item in items:
        name = item["name"]
        one = Input(name, item["event"], bodies, item.get("captures"))
        made.append(one)
        if name in lists:
            group = arguments[name]
            one._group, one._position = group, len(group)
            group.append(one)
        elif name in arguments:
            arguments[name] = one
        else:
            raise KeyError(name)
    return arguments, made
