"""Server-sent events: frames, cursors, and the response that streams a channel.

What it is: the text that goes over the wire for a released event (structured CloudEvents JSON), and one async generator per subscriber.
What it is not: the reading of the store in the background (edgeflow.api.tails).
What must stay true: an event is only sent when its data was readable at this PoP at that moment, otherwise a gap is sent in its place; the id of every
frame is a cursor that resumes right behind it; a client that stops reading is cut off, so that its memory is given back.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeflow.api.problems import BadParameter, ForeignCursor
from edgeflow.api.tails import Item, Subscription, TailHub
from edgeflow.core.events import Event
from edgeflow.errors import EdgeflowError, Unavailable
from edgeflow.store.namespace import Namespace
from edgeflow.store.records import Released

log = structlog.get_logger(__name__)

INLINE_BYTES = 1024 * 1024
HEARTBEAT_S = 10.0
SEND_TIMEOUT_S = 30.0
ABSENT_POLL_S = 0.5
JOIN_WAIT_S = 1.0
RECONNECT_MS = 1000
UNREADABLE = "data-unreadable"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscriber begins: behind position `after`, or now when that is None."""

    after: int | None


def parse_start(pop: str, from_: str | None, last_event_id: str | None) -> Start:
    """Where to begin: Last-Event-ID wins over `from`. Raises ForeignCursor for another PoP's cursor, BadParameter for anything else unknown."""
    text = last_event_id if last_event_id else from_
    if text is None or text == "now":
        return Start(None)
    if text == "start":
        return Start(0)
    giver, colon, number = text.rpartition(":")
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise BadParameter(
            f"{text[:80]!r} is not a cursor",
            hint="Use now, start, a position, or the id of an event of this stream (<pop>:<n>).",
        )
    if colon and giver != pop:
        raise ForeignCursor(f"the cursor {text[:80]!r} was given by PoP {giver[:63]!r}, this is {pop!r}")
    return Start(int(number))


class FrameEncoder:
    """Makes SSE frames of released positions."""

    def __init__(self, pop: str, public_url: str) -> None:
        self._pop = pop
        self._blobs_url = public_url.rstrip("/") + "/v1/blobs"

    def event(self, handle: Namespace, released: Released) -> bytes:
        """The frame of a released position: a message, or a gap when it is one or when the event's data cannot be read here."""
        event = released.event
        if event is None:
            return self._frame("gap", released.n, {"reason": "lost", **(released.gap or {})})
        try:
            document = self._document(handle, event)
        except Unavailable:
            raise  # the store is away; the caller tries the same position again
        except (EdgeflowError, OSError) as error:
            log.error(
                "event_data_unreadable",
                namespace=handle.name,
                channel=event.channel,
                id=event.id,
                n=released.n,
                error=str(error),
            )
            gap = {"reason": UNREADABLE, "from": released.n, "to": released.n, "channel": event.channel, "id": event.id}
            return self._frame("gap", released.n, gap)
        return self._frame("message", released.n, document)

    def gap(self, first: int, last: int, reason: str) -> bytes:
        """The frame of the hole from `first` to `last`."""
        return self._frame(
            "gap", last if reason == "retention" else first - 1, {"reason": reason, "from": first, "to": last}
        )

    def _document(self, handle: Namespace, event: Event) -> dict[str, Any]:
        if event.ref is None or event.ref.size <= INLINE_BYTES:
            return event.to_cloudevent(handle.data_of(event))
        if handle.blob_size(event.ref.digest) is None:
            raise EdgeflowError(f"blob {event.ref.digest} is not here")
        namespace = event.channel.partition("/")[0]
        return event.to_cloudevent(None, url=f"{self._blobs_url}/{namespace}/{event.ref.digest}")

    def _frame(self, kind: str, n: int, document: dict[str, Any]) -> bytes:
        body = json.dumps(document, separators=(",", ":"))
        return f"id: {self._pop}:{n}\nevent: {kind}\ndata: {body}\n\n".encode()

    def heartbeat(self, n: int) -> bytes:
        """A comment, and the cursor moved on: a client of a quiet channel does not fall out of the retention of a busy namespace."""
        return f": heartbeat\nid: {self._pop}:{n}\n\n".encode()


class ChannelStream:
    """All frames of a filter behind a position, for ever: history first, in reads of its own, then live from the hub.

    While the namespace does not exist, or the store is away, only heartbeats come. It ends when the subscriber is too slow or the hub stops.
    """

    def __init__(
        self, hub: TailHub, encoder: FrameEncoder, pattern: str, after: int, exists: Callable[[], bool], heartbeat_s: float = HEARTBEAT_S
    ) -> None:  # fmt: skip
        self._hub = hub
        self._encoder = encoder
        self._pattern = pattern
        self._namespace = pattern.partition("/")[0]
        self._position = after
        self._exists = exists
        self._heartbeat_s = heartbeat_s
        self._known = False

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames, with heartbeats between them."""
        yield f"retry: {RECONNECT_MS}\n".encode() + self._encoder.heartbeat(self._position)
        subscription: Subscription | None = None
        clock = asyncio.get_running_loop().time
        beat_at = clock() + self._heartbeat_s
        try:
            while not self._hub.stopping:
                items, at_end = await self._history()
                for item in items:
                    yield item.frame
                if clock() >= beat_at:
                    yield self._encoder.heartbeat(self._position)
                    beat_at = clock() + self._heartbeat_s
                if at_end is None:
                    await asyncio.sleep(ABSENT_POLL_S)
                elif subscription is None:
                    if at_end:
                        subscription = self._hub.subscribe(self._namespace, self._pattern)
                        await subscription.joined(JOIN_WAIT_S)
                elif subscription.joined_at is None:
                    await subscription.joined(JOIN_WAIT_S)
                elif self._position >= subscription.joined_at:
                    break
            while subscription is not None:
                items = await subscription.take(self._heartbeat_s)
                for item in items:
                    if item.n > self._position or item.rewinds:
                        self._position = item.n
                        yield item.frame
                if not items:
                    if subscription.closed:
                        break
                    self._position = max(self._position, subscription.position)
                    yield self._encoder.heartbeat(self._position)
        finally:
            if subscription is not None:
                subscription.close()
                if subscription.overflowed:
                    log.info("stream_too_slow", filter=self._pattern, position=self._position)

    async def _history(self) -> tuple[list[Item], bool | None]:
        """Some history, and whether that was all; None for the latter when there is no namespace or no store right now."""
        try:
            if not self._known:
                self._known = await run_in_threadpool(self._exists)
            if not self._known:
                return [], None
            items, self._position, at_end = await run_in_threadpool(
                self._hub.read, self._namespace, self._pattern, self._position
            )
        except Unavailable:
            return [], None
        return items, at_end


class EventStream(Response):
    """A response of `text/event-stream` that ends with its client, and cuts a client off that takes nothing for SEND_TIMEOUT_S."""

    media_type = "text/event-stream"

    def __init__(self, stream: ChannelStream, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._stream = stream
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sender = asyncio.create_task(self._send_frames(send))
        watcher = asyncio.create_task(_until_disconnected(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, watcher):
                task.cancel()
            await asyncio.gather(sender, watcher, return_exceptions=True)

    async def _send_frames(self, send: Send) -> None:
        frames = self._stream.frames()
        try:
            async for frame in frames:
                async with asyncio.timeout(self._send_timeout_s):
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            log.info("stream_cut_off")
        finally:
            with suppress(RuntimeError):
                await frames.aclose()


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
