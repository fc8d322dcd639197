"""Server-sent events: frames, cursors, and the response that streams a channel.

What it is: the text that goes over the wire for a released event (structured CloudEvents JSON), and one async generator per subscriber.
What it is not: the reading of the store in the background (edgeflow.api.tails).
What must stay true: an event is only sent when its data was readable at this PoP at that moment, otherwise a gap is sent in its place; the id of a
frame is a cursor that resumes right behind it, at any PoP, and a frame without one leaves the cursor where it was; a client that stops reading is cut
off, so that its memory is given back.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeflow.api.problems import BadParameter
from edgeflow.api.tails import Begin, Item, Place, Subscription, TailHub
from edgeflow.core.cursors import Cursor, Vector, covers, merged, parse_cursor, vector_text
from edgeflow.core.events import Event
from edgeflow.errors import BodyMissing, CorruptBlob, EdgeflowError, Unavailable
from edgeflow.store.namespace import Namespace
from edgeflow.store.patience import Patience
from edgeflow.store.records import Released

log = structlog.get_logger(__name__)

INLINE_BYTES = 1024 * 1024
HEARTBEAT_S = 10.0
SEND_TIMEOUT_S = 30.0
ABSENT_POLL_S = 0.5
JOIN_WAIT_S = 1.0
RECONNECT_MS = 1000
UNREADABLE = "data-unreadable"


def parse_start(from_: str | None, last_event_id: str | None) -> Cursor | None:
    """Where to begin, None for now: Last-Event-ID wins over `from`. Raises BadParameter for what is no cursor."""
    text = last_event_id if last_event_id else from_
    if text is None or text == "now":
        return None
    if text == "start":
        return Cursor(None, 0)
    try:
        return parse_cursor(text)
    except ValueError as error:
        raise BadParameter(
            f"{text[:80]!r} is not a cursor: {error}",
            hint="Use now, start, a position, or the id of an event as it came.",
        ) from None


class FrameEncoder:
    """Makes SSE frames of released positions, without their ids: those differ from one subscriber to another."""

    def __init__(self, public_url: str) -> None:
        self._blobs_url = public_url.rstrip("/") + "/v1/blobs"
        self._patience = Patience()

    def event(self, handle: Namespace, released: Released) -> bytes:
        """The frame of a released position: a message, or a gap when it is one or when the event's data cannot be read here."""
        event = released.event
        if event is None:
            return frame("gap", {"reason": "lost", **(released.gap or {})})
        try:
            document = self._document(handle, event)
        except (EdgeflowError, OSError) as error:
            # The caller tries the same position again: the store is away, or the data was damaged and comes from a peer.
            is_coming = isinstance(error, CorruptBlob | BodyMissing) and self._patience.waits((handle.name, released.n))
            if is_coming or (isinstance(error, Unavailable) and not isinstance(error, BodyMissing)):
                raise Unavailable(str(error)) from error
            log.error(
                "event_data_unreadable",
                namespace=handle.name,
                channel=event.channel,
                id=event.id,
                n=released.n,
                error=str(error),
            )
            gap = {"reason": UNREADABLE, "from": released.n, "to": released.n, "channel": event.channel, "id": event.id}
            return frame("gap", gap)
        return frame("message", document)

    def gap(self, first: int, last: int, reason: str) -> bytes:
        """The frame of the hole from `first` to `last`."""
        return frame("gap", {"reason": reason, "from": first, "to": last})

    def _document(self, handle: Namespace, event: Event) -> dict[str, Any]:
        if event.ref is None or event.ref.size <= INLINE_BYTES:
            return event.to_cloudevent(handle.data_of(event))
        if handle.blob_size(event.ref.digest) is None:
            if handle.knows_blob(event.ref.digest):
                raise BodyMissing(f"blob {event.ref.digest} is not here right now")
            raise EdgeflowError(f"blob {event.ref.digest} is not here")
        namespace = event.channel.partition("/")[0]
        return event.to_cloudevent(None, url=f"{self._blobs_url}/{namespace}/{event.ref.digest}")


def frame(kind: str, document: Mapping[str, Any]) -> bytes:
    """One frame without an id."""
    return f"event: {kind}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


class Cursors:
    """The ids of one subscriber's frames: places of this PoP, with what the subscriber had before it came here."""

    def __init__(self, pop: str, known: Vector) -> None:
        self._pop = pop
        self._known = known
        self._last: tuple[Vector, str] | None = None

    def text(self, place: Place) -> str | None:
        """The cursor of a place; None when it has nothing by which it could be recognised again."""
        if self._last is None or self._last[0] is not place.vector:
            self._last = place.vector, vector_text(merged(self._known, place.vector))
        vector = self._last[1]
        if place.n > 0 and not place.mark and not vector:
            return None
        return f"{Cursor(self._pop, place.n, place.mark)}{vector}"

    def line(self, place: Place) -> bytes:
        """The line of a frame with its cursor."""
        text = self.text(place)
        return b"" if text is None else f"id: {text}\n".encode()

    def frame(self, place: Place, body: bytes) -> bytes:
        """`body` with the cursor of its place."""
        return self.line(place) + body

    def heartbeat(self, place: Place) -> bytes:
        """A comment, and the cursor moved on: a client of a quiet channel does not fall out of the retention of a busy namespace."""
        return b": heartbeat\n" + self.line(place) + b"\n"


class ChannelStream:
    """All frames of a filter from where `begin` says, for ever: gaps first, then history in reads of its own, then live from the hub.

    While the namespace does not exist, or the store is away, only heartbeats come. It ends when the subscriber is too slow, when the hub stops, when
    the release stream is no longer the one it was reading, and, if `leaves`, when a heartbeat is due while the store is away.
    """

    def __init__(
        self, hub: TailHub, pop: str, pattern: str, begin: Begin, exists: Callable[[], bool], *,
        heartbeat_s: float = HEARTBEAT_S, leaves: bool = False,
    ) -> None:  # fmt: skip
        self._hub = hub
        self._pattern = pattern
        self._namespace = pattern.partition("/")[0]
        self._begin = begin
        self._place = begin.place
        self._cursors = Cursors(pop, begin.known)
        self._exists = exists
        self._heartbeat_s = heartbeat_s
        self._leaves = leaves
        self._known = False
        self._skipped = not begin.known
        self._is_behind = False
        self._ahead: list[tuple[int, Vector]] | None = None
        self._outages = begin.outages
        self._was_away = False
        self._ended = False

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames, with heartbeats between them."""
        # No id before the gaps: who is cut off there is told them again.
        first = b": heartbeat\n\n" if self._begin.gaps else self._cursors.heartbeat(self._place)
        yield f"retry: {RECONNECT_MS}\n".encode() + first
        for gap in self._begin.gaps:
            yield frame("gap", gap)
        subscription: Subscription | None = None
        clock = asyncio.get_running_loop().time
        beat_at = clock() + self._heartbeat_s
        try:
            while not self._hub.stopping:
                items, at_end = await self._history()
                for item in items:
                    yield self._cursors.frame(item.place, item.frame)
                if self._ended:
                    return
                if clock() >= beat_at:
                    if self._was_away and self._leaves:
                        return
                    yield self._cursors.heartbeat(self._place)
                    beat_at = clock() + self._heartbeat_s
                if at_end is None:
                    await asyncio.sleep(ABSENT_POLL_S)
                elif subscription is None:
                    if at_end:
                        subscription = self._hub.subscribe(self._namespace, self._pattern)
                        await subscription.joined(JOIN_WAIT_S)
                elif subscription.joined_at is None:
                    await subscription.joined(JOIN_WAIT_S)
                elif self._place.n >= subscription.joined_at:
                    break
            while subscription is not None:
                items = await subscription.take(self._heartbeat_s)
                reached = subscription.place
                # What the thread feeds is of one stream; this subscriber may have read ahead of it in another one.
                if self._hub.outages != self._outages and not await run_in_threadpool(self._still_fits):
                    break
                for item in items:
                    if item.n > self._place.n:
                        self._place = item.place
                        if item.step is None or not covers(self._begin.known, *item.step):
                            yield self._cursors.frame(item.place, item.frame)
                if not items:
                    if subscription.closed or (self._leaves and not await self._store_answers()):
                        break
                    if reached.n >= self._place.n:
                        self._place = reached
                    yield self._cursors.heartbeat(self._place)
        finally:
            if subscription is not None:
                subscription.close()
                if subscription.overflowed:
                    log.info("stream_too_slow", filter=self._pattern, position=self._place.n)

    async def _history(self) -> tuple[list[Item], bool | None]:
        """Some history, and whether that was all; None for the latter when there is no namespace or no store right now."""
        try:
            if not self._known:
                self._known = await run_in_threadpool(self._exists)
            if not self._known:
                return [], None
            return await run_in_threadpool(self._read)
        except Unavailable:
            self._was_away = True
            return [], None

    def _read(self) -> tuple[list[Item], bool]:
        """The same, in a worker thread. Reads last: what is read is handed on, so nothing behind that may fail."""
        outages = self._hub.outages
        if self._was_away or outages != self._outages:
            self._ended = not self._hub.stands(self._namespace, self._place)
            self._was_away, self._outages = False, outages
            if self._ended:
                return [], False
        if not self._skipped:
            self._place, self._skipped = self._hub.skip(self._namespace, self._place, self._begin.known)
            return [], False
        if self._is_behind and self._ahead is None:
            self._ahead = self._hub.look_ahead(self._namespace, self._place)
        while self._ahead and self._ahead[-1][0] <= self._place.n:
            self._place = replace(self._place, vector=merged(self._place.vector, self._ahead.pop()[1]))
        items, self._place, at_end = self._hub.read(self._namespace, self._pattern, self._place, self._begin.known)
        self._is_behind = not at_end
        return items, at_end

    def _still_fits(self) -> bool:
        """Whether the release stream still is the one that was read up to here."""
        outages = self._hub.outages
        try:
            fits = self._hub.stands(self._namespace, self._place)
        except Unavailable:
            fits = False
        self._outages = outages
        return fits

    async def _store_answers(self) -> bool:
        try:
            await run_in_threadpool(self._hub.ping)
        except Unavailable:
            return False
        return True


class Frames(Protocol):
    """What an EventStream sends."""

    def frames(self) -> AsyncGenerator[bytes, None]: ...


class EventStream(Response):
    """A response of `text/event-stream` that ends with its client, and cuts a client off that takes nothing for SEND_TIMEOUT_S."""

    media_type = "text/event-stream"

    def __init__(self, stream: Frames, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
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
