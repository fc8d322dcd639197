"""Live event streams: one thread per watched namespace reads the release stream and feeds all its subscribers.

What it is: the bridge from the store's blocking reads to asyncio. Subscribers that start in the past read history by themselves, in short
calls, and then join the shared thread.
What it is not: SSE; the frames it carries are made by the encoder it is given (edgeflow.api.streams).
What must stay true: each subscriber sees each released position at most once and in order, without holes; a slow subscriber costs a bounded
amount of memory and never slows another one; a Redis that goes away pauses the streams and does not end them; no thread outlives its subscribers.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from edgeflow.core.channels import matches
from edgeflow.errors import CorruptEntry
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
WENT_BACK = "stream-went-back"
RETRY_S = (0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Item:
    """One released position as it goes to a subscriber: its cursor `n` and the encoded frame."""

    n: int
    frame: bytes
    rewinds: bool = False
    """The stream went back to `n`: positions behind it will come again."""


Encode = Callable[[Namespace, Released], bytes]
"""Makes the frame of a released position; reads the data of its event."""
GapEncode = Callable[[int, int, str], bytes]
"""Makes the frame of a hole: (first missing position, last missing position, reason)."""


class Subscription:
    """What one subscriber has not yet taken. Lives on the event loop; `closed` is also read by the tail thread."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.closed = False
        self.overflowed = False
        self.joined_at: int | None = None
        """Position from which on this subscription is fed; None until the tail thread has taken it up."""
        self.position = 0
        """Every position up to here was either put into the queue or does not match."""
        self._items: deque[Item] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()

    def join(self, position: int) -> None:
        """The tail thread feeds everything after `position`."""
        self.joined_at = self.position = position
        self._changed.set()

    def push(self, items: Sequence[Item], position: int) -> None:
        """More items, up to `position`. More than the queue may hold closes the subscription; what is queued can still be taken."""
        if self.closed:
            return
        for item in items:
            if self._items and (len(self._items) >= QUEUE_ITEMS or self._held_bytes + len(item.frame) > QUEUE_BYTES):
                self.overflowed = self.closed = True
                self._changed.set()
                return
            self._items.append(item)
            self._held_bytes += len(item.frame)
            self.position = item.n
        self.position = position
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

    def read(self, namespace: str, pattern: str, after: int) -> tuple[list[Item], int, bool]:
        """History for one subscriber: the matching items behind `after`, the position reached, and whether that was all there is now."""
        handle = self._store.namespace(namespace)
        released = read_some(handle, after)
        if not released:
            head = handle.release_head()
            if head < after:
                return [Item(head, self._encode_gap(head + 1, after, WENT_BACK), rewinds=True)], head, True
            if head == after:
                return [], after, True
            released = read_some(handle, after)
            if not released:  # everything up to the head was removed
                return [Item(head, self._encode_gap(after + 1, head, RETENTION))], head, True
        items, position = self.encode(handle, released, (pattern,), after)
        return [item for item, _ in items], position, position == released[-1].n and len(released) < READ_COUNT

    def encode(
        self, handle: Namespace, released: Sequence[Released], patterns: Sequence[str], after: int
    ) -> tuple[list[tuple[Item, str | None]], int]:
        """(item, channel) of the released positions that any of `patterns` matches, up to about BATCH_BYTES, and the position reached.

        A channel of None is for every subscriber. A hole before the first position becomes a gap item.
        """
        items: list[tuple[Item, str | None]] = []
        size_bytes = 0
        position = after
        for entry in released:
            if entry.n > position + 1:
                items.append((Item(entry.n - 1, self._encode_gap(position + 1, entry.n - 1, RETENTION)), None))
            channel = channel_of(entry)
            if channel is None or any(matches(pattern, channel) for pattern in patterns):
                frame = self._encode(handle, entry)
                items.append((Item(entry.n, frame), channel))
                size_bytes += len(frame)
            position = entry.n
            if size_bytes >= BATCH_BYTES:
                break
        return items, position

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
        self._position: int | None = None
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
        while not self._stopped.is_set():
            try:
                if failures:
                    self._recover(handle)
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

    def _recover(self, handle: Namespace) -> None:
        """After an interruption: a store that came back with less than was already sent is told as a gap."""
        head = handle.release_head()
        if self._position is not None and head < self._position:
            gap = [Item(head, self._hub._encode_gap(head + 1, self._position, WENT_BACK), rewinds=True)]
            self._loop.call_soon_threadsafe(_push_all, [(one, gap) for one in self._subscriptions], head)
            self._position = head

    def _step(self, handle: Namespace) -> bool:
        """Take up who joined, wait for one batch, hand it out. False when nobody is left."""
        joining = self._hub._take_joining(self)
        try:
            self._subscriptions = [one for one in self._subscriptions if not one.closed]
            if joining and (self._position is None or not self._subscriptions):
                self._position = handle.release_head()
        except BaseException:
            with self._hub._lock:
                self.joining = joining + self.joining
            raise
        self._subscriptions += joining
        self.count = len(self._subscriptions)
        if not self._subscriptions:
            return not self._hub._forget(self)
        assert self._position is not None
        position = self._position
        if joining:
            self._loop.call_soon_threadsafe(_join_all, joining, position)
        if not handle.wait_release(self._client, position, WAIT_S):
            return True
        released = read_some(handle, position)
        while released:
            patterns = {one.pattern for one in self._subscriptions}
            encoded, reached = self._hub.encode(handle, released, tuple(patterns), position)
            batches = [
                (one, [item for item, channel in encoded if channel is None or matches(one.pattern, channel)])
                for one in self._subscriptions
            ]  # fmt: skip
            self._loop.call_soon_threadsafe(_push_all, batches, reached)
            self._position = position = reached
            released = [entry for entry in released if entry.n > reached]
        return True


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


def channel_of(entry: Released) -> str | None:
    """The channel of a released position; None for a gap that names none."""
    if entry.event is not None:
        return entry.event.channel
    channel = (entry.gap or {}).get("channel")
    return str(channel) if channel else None


def _join_all(subscriptions: Sequence[Subscription], position: int) -> None:
    for subscription in subscriptions:
        subscription.join(position)


def _push_all(batches: Sequence[tuple[Subscription, Sequence[Item]]], position: int) -> None:
    for subscription, items in batches:
        subscription.push(items, position)
