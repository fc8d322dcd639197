"""A subscription of the client: events of a channel for ever, over broken connections and, for a durable consumer, over broken PoPs.

What it is: the reading of server-sent events, the memory of what was yielded, and the acknowledgements of a durable consumer.
What it is not: the client (edgeflow.sdk.client), which knows the PoPs and fetches bodies.
What must stay true: each event is yielded once by one subscription, whatever comes twice; nothing is acknowledged before the caller is done with it;
each token is sent to its own PoP only.
"""

import base64
import json
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from edgeflow.core.channels import namespace_of
from edgeflow.core.events import LOG_ATTRIBUTES, parse_time
from edgeflow.errors import EdgeflowError, Unavailable
from edgeflow.sdk.finder import Finder, Listener
from edgeflow.sdk.pops import Pop, cut

log = logging.getLogger(__name__)
_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

SEEN_EVENTS = 10_000
SEEN_LANES = 10_000
SILENCE_S = 35.0
"""Longest silence (s) of a stream before it is taken for dead; the PoP sends a heartbeat every 10 s."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
MOVE_AFTER_S = 2.0
"""How long (s) a PoP may be away before a durable subscription tries the next one."""
PROBE_S = 3.0
"""How long (s) a PoP that failed may take to say that it is there again."""
RETURN_S = 5.0
"""For how long a stream does not go back to a PoP that it has just broken off from."""
ACK_EVERY_S = 0.5
ACK_TIMEOUT_S = 5.0
"""Longest an acknowledgement, and the last one at the end, may take."""
_CE_FIELDS = frozenset(
    {
        "specversion",
        "id",
        "source",
        "type",
        "time",
        "subject",
        "datacontenttype",
        "dataref",
        "data",
        "data_base64",
        "channel",
        "size",
    }
)


class ApiError(EdgeflowError):
    """The PoP answered with an error."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that this stream will not show: `reason`, and what else is known (channel, origin, epoch, from, to)."""

    reason: str
    cursor: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """One event of a stream. `cursor` resumes behind it, at any PoP of the cluster; `time_ms` is in ms since 1970."""

    channel: str
    id: str
    source: str
    type: str
    time_ms: int
    subject: str | None
    datacontenttype: str | None
    attributes: Mapping[str, str]
    origin: str
    epoch: int
    seq: int
    cursor: str
    _load: Callable[[], bytes] = field(repr=False, compare=False)
    _remote_bytes: int | None = field(default=None, repr=False, compare=False)

    @property
    def size_bytes(self) -> int:
        """Size of the body; does not fetch it."""
        return len(self._load()) if self._remote_bytes is None else self._remote_bytes

    @property
    def is_remote(self) -> bool:
        """Whether the body is over 1 MiB and so has to be fetched."""
        return self._remote_bytes is not None

    @property
    def data(self) -> bytes:
        """The body; one over 1 MiB is fetched from the PoP each time. Raises EdgeflowError when that fails."""
        return self._load()

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.data)

    def text(self) -> str:
        """The body as UTF-8 text. Raises UnicodeDecodeError."""
        return self.data.decode()

    @property
    def time(self) -> datetime:
        """CloudEvents time."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC)


class Seen:
    """What a subscription has yielded: the last ids, and how far each lane (origin, epoch, channel) has come.

    Every PoP releases a lane in the order of its log, so what is not behind the lane's place was yielded, or told as a gap.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lanes: OrderedDict[tuple[str, int, str], tuple[int, set[tuple[str, str]]]] = OrderedDict()
        self._gaps: OrderedDict[str, None] = OrderedDict()

    def is_new(self, event: ReceivedEvent) -> bool:
        """Whether the event was not there before; it is from now on."""
        key = (event.source, event.id)
        known = key in self._ids
        if event.seq > 0:
            lane = (event.origin, event.epoch, event.channel)
            seq, at_seq = self._lanes.get(lane, (0, set()))
            known = known or event.seq < seq or (event.seq == seq and key in at_seq)
            if event.seq > seq:
                seq, at_seq = event.seq, set()
            if event.seq == seq:
                at_seq.add(key)
            self._lanes[lane] = (seq, at_seq)
            self._lanes.move_to_end(lane)
            if len(self._lanes) > SEEN_LANES:
                self._lanes.popitem(last=False)
        self._ids[key] = None
        if len(self._ids) > SEEN_EVENTS:
            self._ids.popitem(last=False)
        return not known

    def is_new_gap(self, text: str) -> bool:
        """The same for a gap that moves no cursor, and so is told again to who connects again."""
        known = text in self._gaps
        self._gaps[text] = None
        if len(self._gaps) > SEEN_EVENTS:
            self._gaps.popitem(last=False)
        return not known


class Acks:
    """Sends the newest of the cursors it is given, at most every ACK_EVERY_S, in a thread of its own."""

    def __init__(self, name: str, send: Callable[[str], None]) -> None:
        self._name = name
        self._send = send
        self._changed = threading.Condition()
        self._wanted: str | None = None
        self._sent: str | None = None
        self._give_up_s: float | None = None
        self._error: EdgeflowError | None = None
        self._thread: threading.Thread | None = None

    def take(self, cursor: str, *, moved_only: bool = False) -> None:
        """The caller is done with everything up to `cursor`. `moved_only`: not worth a word if only its vector is new. Raises what sending ended with."""
        if self._error is not None:
            raise self._error
        with self._changed:
            if moved_only and self._wanted is not None and _place(cursor) == _place(self._wanted):
                return
            self._wanted = cursor
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"acks-{self._name}", daemon=True)
            self._thread.start()

    def close(self, *, wait: bool = True) -> None:
        """Send what is not sent yet, within ACK_TIMEOUT_S, and end. Never raises: what is not acknowledged comes again."""
        with self._changed:
            self._give_up_s = time.monotonic() + ACK_TIMEOUT_S
            self._changed.notify()
        if wait and self._thread is not None:
            self._thread.join(2 * ACK_TIMEOUT_S)

    def _run(self) -> None:
        next_s = 0.0
        while True:
            with self._changed:
                while self._give_up_s is None and (self._wanted == self._sent or time.monotonic() < next_s):
                    self._changed.wait(None if self._wanted == self._sent else max(0.0, next_s - time.monotonic()))
                cursor = self._wanted
            if cursor is None or cursor == self._sent:
                return
            next_s = time.monotonic() + ACK_EVERY_S
            try:
                self._send(cursor)
                self._sent = cursor
            except EdgeflowError as error:
                if not error.retryable:
                    log.error("durable consumer %s: its place cannot be kept: %s", self._name, error)
                    self._error = error
                    return
                if self._give_up_s is not None and time.monotonic() > self._give_up_s:
                    log.warning("durable consumer %s: the last acknowledgement was not taken: %s", self._name, error)
                    return
                time.sleep(FIRST_WAIT_S)


def _place(cursor: str) -> str:
    return cursor.partition(";")[0]


class Subscription(Iterator[ReceivedEvent | Gap]):
    """The events of a channel or filter, for ever; made by `Client.subscribe`. It belongs to one thread.

    It connects when the first event is asked for, or at the beginning of a `with` block: what is published inside the block is not missed.

    Of a durable consumer an event is acknowledged when the next one is asked for, or by `close()`. A `with` block that an exception ends, and an
    iteration that is merely left, do not acknowledge the last event: it comes again.
    """

    def __init__(self, reader: "Reader") -> None:
        # Neither the reader nor its thread refer to this object: who drops it, as a loop does that is left, ends both.
        self._reader = reader
        self._items = reader.items()
        self._taken: str | None = None
        self._is_connected = False

    @property
    def url(self) -> str:
        """The PoP that it reads from."""
        return self._reader.pop.url

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReceivedEvent | Gap:
        try:
            self._acknowledge_taken()
            item = None
            while item is None:
                item = next(self._items)
        except BaseException:
            self.close()
            raise
        self._is_connected = True
        self._taken = item.cursor
        return item

    def __enter__(self) -> Self:
        if not self._is_connected:
            next(self._items)
            self._is_connected = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._taken = None
        self.close()

    def __del__(self) -> None:
        if reader := getattr(self, "_reader", None):
            reader.close(wait=False)

    def close(self) -> None:
        """End it. The last event counts as dealt with; the last acknowledgement is waited for, at most ACK_TIMEOUT_S."""
        self._items.close()
        with suppress(EdgeflowError):
            self._acknowledge_taken()
        self._reader.close(wait=True)

    def _acknowledge_taken(self) -> None:
        taken, self._taken = self._taken, None
        if taken:
            self._reader.take(taken)


class Reader(Listener):
    """Reads the stream of a filter at one PoP after the other, and acknowledges for a durable consumer.

    With a `finder` it reads where that says; a durable one of a client without goes on at the next PoP when its own is away.
    """

    def __init__(
        self, pops: Sequence[Pop], pattern: str, start: str, *, durable: str | None, reconnect_s: float | None,
        fetch: Callable[[str, int], bytes], error_of: Callable[[httpx.Response], EdgeflowError], finder: Finder | None = None,
    ) -> None:  # fmt: skip
        """`fetch(path, i)` gets a body that PoP `i` of `pops` offers at `path`."""
        self._pops = pops
        self._pattern = pattern
        self._start = start
        self._durable = durable
        self._reconnect_s = reconnect_s
        self._fetch = fetch
        self._error_of = error_of
        self._finder = finder
        self._at = 0 if finder is None else finder.current
        self._line: Any = None
        self._left: tuple[int, float] = (-1, 0.0)
        self.is_listening = False
        self._seen = Seen()
        self._acks = Acks(durable, self._acknowledge) if durable is not None else None

    @property
    def pop(self) -> Pop:
        """The PoP that is read from."""
        return self._pops[self._at]

    def take(self, cursor: str, *, moved_only: bool = False) -> None:
        """What `Acks.take` does, for a durable consumer."""
        if self._acks is not None:
            self._acks.take(cursor, moved_only=moved_only)

    def chosen(self, at: int) -> None:
        """Another PoP is the one to use: leave the stream, in whatever thread it is read; it goes on there behind what was yielded."""
        line = self._line
        left, left_s = self._left
        if line is not None and at != self._at and not (at == left and time.monotonic() - left_s < RETURN_S):
            cut(line)

    def close(self, *, wait: bool) -> None:
        """What `Acks.close` does, for a durable consumer."""
        self.is_listening = False
        if self._acks is not None:
            self._acks.close(wait=wait)

    def _acknowledge(self, cursor: str) -> None:
        """Raises Unavailable when it may be tried again."""
        path = f"/v1/consumers/{quote(namespace_of(self._pattern))}/{quote(self._durable or '')}/ack"
        pop = self.pop
        try:
            response = pop.http.post(path, json={"cursor": cursor}, timeout=ACK_TIMEOUT_S)
        except httpx.TransportError as error:
            raise Unavailable(f"{pop.url} cannot be reached: {error!r}") from None
        except RuntimeError as error:  # the client was closed
            raise ApiError(str(error)) from None
        if not response.is_success:
            raise self._error_of(response)

    def items(self) -> Generator[ReceivedEvent | Gap | None, None, None]:
        """What is new, for ever; None each time that a PoP has answered, from when on nothing is missed."""
        cursor: str | None = None
        at = self._at
        failing_since: float | None = None
        wait_s = FIRST_WAIT_S
        finder = self._finder
        if finder is not None:
            self.is_listening = True
            finder.listen(self)
        tried: set[int] = set()
        while True:
            if finder is not None:
                at = next((one for one in finder.order() if one not in tried), at)
                tried.add(at)
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": cursor} if cursor else {})
            params = {} if cursor else {"from": self._start}
            if self._durable is not None:
                params["durable"] = self._durable
            pop = self._pops[at]
            try:
                if finder is None and failing_since is not None and self._may_move:
                    pop.http.get("/healthz", timeout=PROBE_S)
                timeout = httpx.Timeout(SILENCE_S, connect=10.0)
                with pop.http.stream(
                    "GET",
                    f"/v1/channels/{quote(self._pattern, safe='/')}",
                    headers=headers,
                    params=params,
                    timeout=timeout,
                ) as response:
                    if response.status_code != 200:
                        response.read()
                        raise self._error_of(response)
                    if at != self._at:
                        log.warning("%s goes on at %s", self._name, pop.url)
                        self._at = at
                    failing_since, wait_s = None, FIRST_WAIT_S
                    if finder is not None:
                        tried.clear()
                        finder.answered(at, response)
                        self._line = _socket_of(response)
                        self.chosen(finder.current)
                    yield None
                    for frame_id, kind, text in parse_sse(response.iter_bytes()):
                        cursor = frame_id or cursor
                        if not text:
                            if frame_id:
                                self.take(frame_id, moved_only=True)
                            continue
                        document = json.loads(text)
                        if kind == "move":
                            if finder is not None:
                                finder.told_to_move(at)
                            continue
                        if kind == "gap":
                            if frame_id or self._seen.is_new_gap(text):
                                yield Gap(str(document.get("reason", "")), cursor or "", document)
                            continue
                        event = received(document, cursor or "", self._fetcher())
                        if self._seen.is_new(event):
                            yield event
                        elif frame_id:
                            self.take(frame_id)
            except httpx.TransportError as error:
                trouble: EdgeflowError = Unavailable(f"the stream from {pop.url} broke: {error!r}")
                if finder is not None and finder.current == at:
                    self._left = (at, time.monotonic())
                    finder.failed(at, repr(error))
            except EdgeflowError as error:
                if at == self._at and not error.retryable:
                    raise
                trouble = error
                if finder is not None and error.code == "shedding":
                    finder.told_to_move(at)
            else:
                trouble = Unavailable(f"{pop.url} ended the stream")
            finally:
                self._line = None
            now = time.monotonic()
            failing_since = failing_since if failing_since is not None else now
            if self._reconnect_s is not None and now - failing_since > self._reconnect_s:
                raise trouble
            if finder is not None:
                if len(tried) < len(finder.order()):
                    continue
                tried.clear()
            elif self._may_move and (at != self._at or now - failing_since >= MOVE_AFTER_S):
                log.warning("%s: %s is away: %s", self._name, pop.url, trouble)
                at = (at + 1) % len(self._pops)
            time.sleep(wait_s * _chance.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def _fetcher(self) -> Callable[[str], bytes]:
        fetch, at = self._fetch, self._at
        return lambda path: fetch(path, at)

    @property
    def _name(self) -> str:
        return f"the subscription to {self._pattern}" if self._durable is None else f"durable consumer {self._durable}:"

    @property
    def _may_move(self) -> bool:
        return self._durable is not None and len(self._pops) > 1


def _socket_of(response: httpx.Response) -> Any:
    stream = response.extensions.get("network_stream")
    return None if stream is None else stream.get_extra_info("socket")


def received(document: Mapping[str, Any], cursor: str, fetch: Callable[[str], bytes]) -> ReceivedEvent:
    """The event of a structured CloudEvent. `fetch(path)` gets a body that is not in it, from the PoP that gave the document."""
    attributes = {
        name: str(value) for name, value in document.items() if name not in _CE_FIELDS and name not in LOG_ATTRIBUTES
    }
    return ReceivedEvent(
        channel=document["channel"], id=document["id"], source=document["source"], type=document["type"], time_ms=parse_time(document["time"]),
        subject=document.get("subject"), datacontenttype=document.get("datacontenttype"), attributes=attributes,
        origin=document.get("origin", ""), epoch=int(document.get("epoch", 0)), seq=int(document.get("seq", 0)), cursor=cursor,
        _load=_loader(document, fetch),
        _remote_bytes=int(document.get("size", 0)) if "dataref" in document else None,
    )  # fmt: skip


def _loader(document: Mapping[str, Any], fetch: Callable[[str], bytes]) -> Callable[[], bytes]:
    if "data_base64" in document:
        return lambda: base64.b64decode(document["data_base64"])
    if "data" in document:
        value = document["data"]
        is_json = "json" in (document.get("datacontenttype") or "json")
        return lambda: (
            json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() if is_json else str(value).encode()
        )
    # Only the path is taken: the token goes to this PoP and to no other host, whatever the event says.
    path = urlsplit(str(document.get("dataref", ""))).path
    if not path.startswith("/v1/blobs/"):
        raise ApiError(
            f"the event {document.get('id')!r} refers to {document.get('dataref')!r}, which is not a blob of this PoP"
        )
    return lambda: fetch(path)


def parse_sse(chunks: Iterator[bytes]) -> Iterator[tuple[str | None, str, str]]:
    """(id or None, event name, data) of each frame of a server-sent event stream; data is empty for a frame that only moves the cursor."""
    rest = b""
    frame_id: str | None = None
    kind = "message"
    data: list[str] = []
    for chunk in chunks:
        if b"\n" not in chunk:
            rest += chunk
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if not line:
                if frame_id is not None or data:
                    yield frame_id, kind, "\n".join(data)
                frame_id, kind, data = None, "message", []
                continue
            name, _, value = line.partition(b":")
            text = value.removeprefix(b" ").decode("utf-8", "replace")
            if name == b"id":
                frame_id = text
            elif name == b"event":
                kind = text
            elif name == b"data":
                data.append(text)
