"""Live event streams: one thread per watched namespace reads the release stream and feeds all its subscribers.

What it is: the bridge from the store's blocking reads to asyncio. Subscribers that start in the past read history by themselves, in short
calls, and then join the shared thread. Where a subscriber begins is decided here too (`begin`), since only the stream itself can say whether a cursor
still fits it.
What it is not: SSE; the frames it carries are made by the encoder it is given (edgeflow.api.streams).
What must stay true: each subscriber sees each released position at most once and in order, without holes; the vector of a place never claims more
than what stands at or in front of it; a slow subscriber costs a bounded amount of memory and never slows another one; a Redis that goes away pauses
the streams and does not end them, one that comes back as another one ends them; no thread outlives its subscribers.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import structlog

from edgeflow.core.channels import matches
from edgeflow.core.cursors import EMPTY, Cursor, Log, Position, Step, Vector, covers, merged, passed
from edgeflow.errors import CorruptEntry, StoreUnavailable
from edgeflow.store.client import Store
from edgeflow.store.namespace import Namespace
from edgeflow.store.records import Released

log = structlog.get_logger(__name__)

WAIT_S = 1.0
READ_COUNT = 100
BATCH_BYTES = 4 * 1024 * 1024
QUEUE_ITEMS = 1000
QUEUE_BYTES = 16 * 1024 * 1024
RETENTION = "retention"
DAMAGED = "damaged"
LOST = "lost"
WENT_BACK = "stream-went-back"
RETRY_S = (0.1, 0.2, 0.5, 1.0)
SCAN_COUNT = 1000
SCAN_CHUNKS = 20
"""Chunks of SCAN_COUNT that are passed over in one call."""
AHEAD_POSITIONS = 100_000
"""A reader of history that is not farther behind looks ahead once, to know what is released late."""
MAX_GAPS = 50
"""Lanes that are told one by one as removed; more of them are told log by log."""
CHEAP_LOOK = 500
"""Entries held by the gate up to which it is looked at before every read."""
LOOK_SHARE = 20
"""A look at more of them is not repeated before this many times its own work (s of CPU) has passed."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a release stream: the number, the mark of what stands there (empty: unknown), and what is passed by then, log by log."""

    n: int
    mark: str = ""
    vector: Vector = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One released position as it goes to a subscriber: its place, the encoded frame, and its position in its log (None: it has none)."""

    place: Place
    frame: bytes
    step: Step = None

    @property
    def n(self) -> int:
        """Number in the release stream."""
        return self.place.n


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a subscriber begins: behind `place`, without what `known` covers, after it was told `gaps`."""

    place: Place
    known: Vector = field(default_factory=dict)
    gaps: tuple[Mapping[str, Any], ...] = ()
    outages: int = 0
    """How often the store had been lost when this was found."""


Encode = Callable[[Namespace, Released], bytes]
"""Makes the frame of a released position; reads the data of its event."""
GapEncode = Callable[[int, int, str], bytes]
"""Makes the frame of a hole: (first missing position, last missing position, reason)."""


def begin(handle: Namespace, cursor: Cursor | None, pattern: str) -> Begin:
    """Where a subscriber with `cursor` (None: now) begins.

    A position counts where it was given, as long as the same thing still stands there. Otherwise, at another PoP or in a stream that began again, the
    stream is read from its beginning and what the vector covers is left out; what retention took from it before that is told as gaps.
    """
    if cursor is None:
        return Begin(_here(handle))
    if cursor.pop in (None, handle.pop):
        place = Place(cursor.n, cursor.mark, cursor.vector)
        if cursor.n > 0 and (_stands(handle, place) if cursor.mark else not cursor.vector):
            return Begin(place, cursor.vector)
    head = handle.release_head()
    kept = handle.scan_release(0, 1)
    place = Place(kept[0].n - 1 if kept else head, "", cursor.vector)
    # Behind the look at what is kept: what is removed from here on leaves a hole that the reader sees.
    return Begin(place, cursor.vector, tuple(_removed(handle, pattern, cursor.vector)))


def _here(handle: Namespace) -> Place:
    head, vector, _ = handle.low_water()
    return Place(head, _mark_at(handle, head), vector)


def _mark_at(handle: Namespace, n: int) -> str:
    found = handle.scan_release(n - 1, 1) if n > 0 else []
    return found[0].mark if found and found[0].n == n else ""


def _stands(handle: Namespace, place: Place) -> bool:
    """Whether the stream certainly is the one of `place`: at its beginning, or where the same thing still stands there."""
    return place.n == 0 or (place.mark != "" and _mark_at(handle, place.n) == place.mark)


def is_plausible(handle: Namespace, place: Place) -> bool:
    """Whether nothing says that the release stream is another one than that of `place`."""
    if handle.release_head() < place.n:
        return False
    return not place.mark or _mark_at(handle, place.n) in (place.mark, "")


def _removed(handle: Namespace, pattern: str, known: Vector) -> Iterator[Mapping[str, Any]]:
    """Gaps for what was removed here of the channels of `pattern`, and `known` does not cover."""
    missing = {
        (log, channel): seq
        for (log, channel), seq in handle.removed().items()
        if matches(pattern, channel) and not covers(known, log, seq)
    }
    if len(missing) <= MAX_GAPS:
        for (log, channel), seq in sorted(missing.items()):
            about = {"channel": channel, "origin": log[0], "epoch": log[1], "from": known.get(log, 0) + 1, "to": seq}
            yield {"reason": RETENTION, **about}
        return
    last: dict[Log, int] = {}
    for (log, _), seq in missing.items():
        last[log] = max(seq, last.get(log, 0))
    for (origin, epoch), seq in sorted(last.items()):
        first = known.get((origin, epoch), 0) + 1
        yield {"reason": RETENTION, "origin": origin, "epoch": epoch, "from": first, "to": seq}


class Subscription:
    """What one subscriber has not yet taken. Lives on the event loop; `closed` is also read by the tail thread."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.closed = False
        self.overflowed = False
        self.joined_at: int | None = None
        """Position from which on this subscription is fed; None until the tail thread has taken it up."""
        self.place = Place(0)
        """Every position up to here was either put into the queue or does not match."""
        self._items: deque[Item] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()

    def join(self, place: Place) -> None:
        """The tail thread feeds everything behind `place`."""
        self.place = place
        self.joined_at = place.n
        self._changed.set()

    def push(self, items: Sequence[Item], place: Place) -> None:
        """More items, up to `place`. More than the queue may hold closes the subscription; what is queued can still be taken."""
        if self.closed:
            return
        for item in items:
            if self._items and (len(self._items) >= QUEUE_ITEMS or self._held_bytes + len(item.frame) > QUEUE_BYTES):
                self.overflowed = self.closed = True
                self._changed.set()
                return
            self._items.append(item)
            self._held_bytes += len(item.frame)
            self.place = item.place
        self.place = place
        if items:
            self._changed.set()

    async def joined(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` until the tail thread has taken this up."""
        if self.joined_at is None and not self.closed:
            await self._wait(timeout_s)

    async def take(self, timeout_s: float) -> list[Item]:
        """What is queued, after waiting up to `timeout_s` for something; empty when nothing came, when just joined, or when closed."""
        if not self._items and not self.closed:
            await self._wait(timeout_s)
        items = list(self._items)
        self._items.clear()
        self._held_bytes = 0
        return items

    async def _wait(self, timeout_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def close(self) -> None:
        """Stop feeding."""
        self.closed = True
        self._changed.set()


class TailHub:
    """All tail threads of a process. Its methods are called on the event loop, `read` in a worker thread."""

    def __init__(self, store: Store, encode: Encode, encode_gap: GapEncode) -> None:
        self._store = store
        self._encode = encode
        self._encode_gap = encode_gap
        self._lock = threading.Lock()
        self._tails: dict[str, _Tail] = {}
        self.stopping = False

    def subscribe(self, namespace: str, pattern: str) -> Subscription:
        """A subscription that the namespace's tail thread takes up soon; watch `joined_at`."""
        subscription = Subscription(pattern)
        if self.stopping:
            subscription.close()
            return subscription
        with self._lock:
            tail = self._tails.get(namespace)
            if tail is None:
                tail = self._tails[namespace] = _Tail(self, namespace, asyncio.get_running_loop())
                tail.joining.append(subscription)
                tail.start()
            else:
                tail.joining.append(subscription)
        return subscription

    def stop(self) -> None:
        """End all subscriptions and threads: the streams finish by themselves."""
        self.stopping = True
        with self._lock:
            tails = list(self._tails.values())
        for tail in tails:
            tail.stop()

    def subscribers(self) -> int:
        """How many subscriptions there are."""
        with self._lock:
            return sum(tail.count + len(tail.joining) for tail in self._tails.values())

    @property
    def outages(self) -> int:
        """How often the store was lost and came back. What was read before and after does not belong together before it was checked."""
        return self._store.outages

    def begin(self, namespace: str, cursor: Cursor | None, pattern: str) -> Begin:
        """Where a subscriber with `cursor` begins; at the beginning while there is no such namespace here."""
        outages = self.outages
        known = cursor.vector if cursor is not None else EMPTY
        found = Begin(Place(0, "", known), known)
        if self._store.has_namespace(namespace):
            found = begin(self._store.namespace(namespace), cursor, pattern)
        self._check(outages)
        return replace(found, outages=outages)

    def stands(self, namespace: str, place: Place) -> bool:
        """Whether the release stream certainly is the one of `place`."""
        outages = self.outages
        answer = _stands(self._store.namespace(namespace), place)
        self._check(outages)
        return answer

    def _check(self, outages: int) -> None:
        if self.outages != outages:
            raise StoreUnavailable()

    def ping(self) -> None:
        """Raises StoreUnavailable when the store does not answer."""
        self._store.ping()

    def skip(self, namespace: str, place: Place, known: Vector) -> tuple[Place, bool]:
        """Passes over what `known` covers behind `place`, quickly; the place reached, and whether that was all that can be passed over."""
        outages = self.outages
        handle = self._store.namespace(namespace)
        for _ in range(SCAN_CHUNKS):
            found = handle.scan_release(place.n, SCAN_COUNT)
            self._check(outages)
            covered = list(takewhile(lambda one: one.part >= 0 and covers(known, one.log, one.seq), found))
            # A hole is told by who reads.
            while covered and covered[-1].n != place.n + len(covered):
                covered.pop()
            if covered:
                place = Place(covered[-1].n, covered[-1].mark, place.vector)
            if len(covered) < SCAN_COUNT:
                return place, True
        return place, False

    def look_ahead(self, namespace: str, place: Place) -> list[tuple[int, Vector]] | None:
        """Vectors that hold from some numbers ahead on, the nearest last; None when the head is too far away to look.

        What a reader of history reads does not say what is released late, behind it. This does, for every SCAN_COUNT positions.
        """
        outages = self.outages
        handle = self._store.namespace(namespace)
        if handle.release_head() - place.n > AHEAD_POSITIONS:
            return None
        chunks: list[tuple[int, list[Step]]] = []
        n = place.n
        while True:
            _, low, _ = handle.low_water()
            found = handle.scan_release(n, SCAN_COUNT)
            if found:
                n = found[-1].n
                chunks.append((n, _lowest(found)))
            if len(found) < SCAN_COUNT:
                break
        ahead = []
        for n, steps in reversed(chunks):
            ahead.append((n, low))
            low = passed(steps, EMPTY, low)[0]
        self._check(outages)
        return ahead

    def read(self, namespace: str, pattern: str, place: Place, known: Vector = EMPTY) -> tuple[list[Item], Place, bool]:
        """History for one subscriber: the matching items behind `place` that `known` does not cover, the place reached, and whether that was all there is.

        Raises StoreUnavailable when the store was away in the middle.
        """
        outages = self.outages
        result = self._read(self._store.namespace(namespace), pattern, place, known)
        self._check(outages)
        return result

    def _read(self, handle: Namespace, pattern: str, place: Place, known: Vector) -> tuple[list[Item], Place, bool]:
        head, low, _ = handle.low_water()
        released = read_some(handle, place.n)
        if not released:
            if head < place.n:  # the cursor is of a stream that is no more, and has nothing else to go by
                back = Place(head, _mark_at(handle, head), low)
                return [Item(back, self._encode_gap(head + 1, place.n, WENT_BACK))], back, True
            here = Place(head, place.mark if head == place.n else "", merged(place.vector, low))
            if head == place.n:
                return [], here, True
            return [Item(here, self._encode_gap(place.n + 1, head, RETENTION))], here, True
        at_end = _at_end(handle, (head, low), released)
        vectors = passed([position_of(entry).step for entry in released], place.vector, at_end)
        encoded, reached = self.encode(handle, released, vectors, (pattern,), place, known)
        return [item for item, _ in encoded], reached, reached.n == released[-1].n and len(released) < READ_COUNT

    def encode(
        self, handle: Namespace, released: Sequence[Released], vectors: Sequence[Vector], patterns: Sequence[str], place: Place, known: Vector = EMPTY
    ) -> tuple[list[tuple[Item, str | None]], Place]:  # fmt: skip
        """(item, channel) of the released positions that any of `patterns` matches, up to about BATCH_BYTES, and the place reached.

        `vectors` are those of `passed`. A channel of None is for every subscriber. A hole before the first position becomes a gap item.
        """
        items: list[tuple[Item, str | None]] = []
        size_bytes = 0
        for entry, before, behind in zip(released, vectors, vectors[1:], strict=False):
            if entry.n > place.n + 1:
                hole = Place(entry.n - 1, "", before)
                items.append((Item(hole, self._encode_gap(place.n + 1, entry.n - 1, RETENTION)), None))
            position = position_of(entry)
            place = Place(entry.n, position.mark, behind)
            channel = channel_of(entry)
            if not entry.is_repeated and (channel is None or any(matches(pattern, channel) for pattern in patterns)):
                step = (position.log, position.seq) if position.seq > 0 else None
                if step is None or not covers(known, *step):
                    frame = self._encode(handle, entry)
                    items.append((Item(place, frame, step), channel))
                    size_bytes += len(frame)
            if size_bytes >= BATCH_BYTES:
                break
        return items, place

    def _forget(self, tail: "_Tail") -> bool:
        """Whether `tail` may end: nobody joined in the meantime."""
        with self._lock:
            if tail.joining and not self.stopping:
                return False
            if self._tails.get(tail.namespace) is tail:
                del self._tails[tail.namespace]
            return True

    def _take_joining(self, tail: "_Tail") -> list[Subscription]:
        with self._lock:
            joining, tail.joining = tail.joining, []
            return joining


class _Tail(threading.Thread):
    """The thread of one namespace."""

    def __init__(self, hub: TailHub, namespace: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name=f"tail-{namespace}", daemon=True)
        self.namespace = namespace
        self.joining: list[Subscription] = []
        self.count = 0
        self._hub = hub
        self._loop = loop
        self._subscriptions: list[Subscription] = []
        self._place: Place | None = None
        self._outages = 0
        self._look_at_s = 0.0
        self._stopped = threading.Event()
        self._client: Any = None

    def stop(self) -> None:
        """End soon, and end all subscriptions."""
        self._stopped.set()
        for subscription in [*self._subscriptions, *self.joining]:
            subscription.close()

    def run(self) -> None:
        failures = 0
        handle = self._hub._store.namespace(self.namespace)
        self._client = self._hub._store.blocking_client()
        self._outages = self._hub.outages
        while not self._stopped.is_set():
            try:
                if failures:
                    self._check(handle, was_lost=True)
                    failures = 0
                if not self._step(handle):
                    break
            except RuntimeError as error:
                if self._loop.is_closed():
                    break
                failures = self._pause(failures, error)
            except Exception as error:  # the store is away, or an entry is damaged: the streams wait, they do not end
                failures = self._pause(failures, error)
        self._hub._forget(self)
        self._client.close()

    def _pause(self, failures: int, error: Exception) -> int:
        if failures == 0:
            log.warning(
                "tail_interrupted", namespace=self.namespace, error=str(error), exc_info=not hasattr(error, "code")
            )
        self._stopped.wait(RETRY_S[min(failures, len(RETRY_S) - 1)])
        return failures + 1

    def _check(self, handle: Namespace, *, was_lost: bool) -> None:
        """A store that came back as another one, with less than was already sent, ends the streams: their clients resume with what they have."""
        self._outages = self._hub.outages
        place = self._place
        if place is not None and not (_stands(handle, place) if was_lost else is_plausible(handle, place)):
            log.warning("stream_went_back", namespace=self.namespace, position=place.n)
            self._loop.call_soon_threadsafe(_close_all, self._subscriptions)
            self._subscriptions = []
            self._place = None

    def _step(self, handle: Namespace) -> bool:
        """Take up who joined, wait for one batch, hand it out. False when nobody is left."""
        if self._hub.outages != self._outages:
            self._check(handle, was_lost=True)
        joining = self._hub._take_joining(self)
        try:
            self._subscriptions = [one for one in self._subscriptions if not one.closed]
            if joining and (self._place is None or not self._subscriptions):
                self._place = _here(handle)
        except BaseException:
            with self._hub._lock:
                self.joining = joining + self.joining
            raise
        self._subscriptions += joining
        self.count = len(self._subscriptions)
        if not self._subscriptions:
            return not self._hub._forget(self)
        assert self._place is not None
        if joining:
            self._loop.call_soon_threadsafe(_join_all, joining, self._place)
        if not handle.wait_release(self._client, self._place.n, WAIT_S):
            self._check(handle, was_lost=False)
            return True
        low = self._look(handle)
        released = read_some(handle, self._place.n)
        if self._hub.outages != self._outages:
            return True
        at_end = _at_end(handle, low, released) if low is not None and released else None
        vectors = passed([position_of(entry).step for entry in released], self._place.vector, at_end)
        while released:
            patterns = {one.pattern for one in self._subscriptions}
            encoded, reached = self._hub.encode(handle, released, vectors, tuple(patterns), self._place)
            batches = [
                (one, [item for item, channel in encoded if channel is None or matches(one.pattern, channel)])
                for one in self._subscriptions
            ]  # fmt: skip
            self._loop.call_soon_threadsafe(_push_all, batches, reached)
            self._place = reached
            done = sum(1 for entry in released if entry.n <= reached.n)
            released, vectors = released[done:], vectors[done:]
        return True

    def _look(self, handle: Namespace) -> tuple[int, Vector] | None:
        """What `low_water` says; None when looking is dear, because the gate holds much, and was done a moment ago."""
        if time.monotonic() < self._look_at_s:
            return None
        begin_s = time.thread_time()
        head, low, held = handle.low_water()
        if held > CHEAP_LOOK:
            self._look_at_s = time.monotonic() + LOOK_SHARE * (time.thread_time() - begin_s)
        return head, low


def read_some(handle: Namespace, after: int) -> list[Released]:
    """Up to READ_COUNT released positions behind `after`. One that is damaged becomes a gap, so that it does not stop the stream."""
    try:
        return handle.read_release(after, READ_COUNT)
    except CorruptEntry:
        pass
    try:
        return handle.read_release(after, 1)
    except CorruptEntry as error:
        log.error("released_entry_damaged", namespace=handle.name, n=after + 1, error=str(error))
        return [Released(after + 1, None, {"reason": DAMAGED, "from": after + 1, "to": after + 1}, "", 0)]


def _at_end(handle: Namespace, low: tuple[int, Vector], released: Sequence[Released]) -> Vector | None:
    """What holds behind the last of `released`, which was read after the look `low`; None when that is not known."""
    last = released[-1].n
    if last > low[0]:
        # Released between the look and the read: the cursor of an event shall cover it, if nothing else has come yet.
        head, vector, _ = handle.low_water()
        low = (head, vector) if head <= last else low
    return low[1] if last >= low[0] else None


def position_of(entry: Released) -> Position:
    """The position of a released entry."""
    event, gap = entry.event, entry.gap or {}
    if event is not None:
        return Position(entry.n, (event.origin, event.epoch), event.seq, event.index, entry.released_ms, event.seq)
    if "origin" not in gap:
        return Position(entry.n, ("", 0), 0, -1, entry.released_ms, 0)
    first = gap["from"] + 1 if gap.get("reason") == LOST else gap["to"]
    return Position(entry.n, (gap["origin"], gap["epoch"]), gap["to"], -1, entry.released_ms, first)


def _lowest(positions: Sequence[Position]) -> list[Step]:
    """Per log the lowest step of `positions`."""
    lowest: dict[Log, int] = {}
    for position in positions:
        if (step := position.step) is not None:
            lowest[step[0]] = min(step[1], lowest.get(*step))
    return list(lowest.items())


def channel_of(entry: Released) -> str | None:
    """The channel of a released position; None for a gap that names none."""
    if entry.event is not None:
        return entry.event.channel
    channel = (entry.gap or {}).get("channel")
    return str(channel) if channel else None


def _join_all(subscriptions: Sequence[Subscription], place: Place) -> None:
    for subscription in subscriptions:
        subscription.join(place)


def _push_all(batches: Sequence[tuple[Subscription, Sequence[Item]]], place: Place) -> None:
    for subscription, items in batches:
        subscription.push(items, place)


def _close_all(subscriptions: Sequence[Subscription]) -> None:
    for subscription in subscriptions:
        subscription.close()
