"""`GET /v1/ekv/{namespace}?watch=1`: what changes under a prefix, as server-sent events.

What it is: first what is there (unless the client goes on where it was), then every later state of a key, once each.
What it is not: a history: of several changes of a key between two looks only the last is told; what lost is in `?versions`.
What must stay true: an older state of a key never follows a newer one; a client that goes on where it was misses no key that changed, and one whose
place is not known here (another PoP, a store that began again) is told so and gets everything anew.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from edgeflow.api.context import Api
from edgeflow.api.problems import BadParameter
from edgeflow.api.streams import RECONNECT_MS, EventStream, frame
from edgeflow.api.views import value_view
from edgeflow.core.channels import check_namespace
from edgeflow.core.versions import is_version
from edgeflow.errors import Unavailable
from edgeflow.store.records import ValueInfo
from edgeflow.store.replica import ReplicatedNamespace

HEARTBEAT_S = 10.0
PAGE = 200
BUSY_S = 0.5
NOW = "now"
_PLACE = re.compile(r"([a-z0-9-]{1,63}):(\d{1,15}):(\d{1,15})")


@dataclass(frozen=True, slots=True)
class Place:
    """Behind which change of which PoP's store a watcher is; the epoch changes when the store comes back with less."""

    pop: str
    epoch: int
    n: int

    def __str__(self) -> str:
        return f"{self.pop}:{self.epoch}:{self.n}"


def parse_place(text: str) -> Place:
    """Inverse of `str(place)`. Raises BadParameter."""
    found = _PLACE.fullmatch(text.strip())
    if found is None:
        raise BadParameter(f"Last-Event-ID: {text[:80]!r} is not the id of a change", hint="Send it as it came.")
    return Place(found[1], int(found[2]), int(found[3]))


async def watch_changes(
    api: Api, namespace: str, prefix: str, from_version: str | None, last_event_id: str | None
) -> Response:
    """The stream. Raises BadName, BadParameter, NotFound."""
    check_namespace(namespace)
    place = parse_place(last_event_id) if last_event_id else None
    if from_version not in (None, "", NOW) and not is_version(str(from_version)):
        raise BadParameter(f"from_version: {str(from_version)[:80]!r} is not a version", hint="Use a version, or now.")
    await run_in_threadpool(api.namespace, namespace)
    return EventStream(Watch(api, namespace, prefix, from_version or "", place))


class Watch:
    """The frames of one watcher."""

    def __init__(
        self, api: Api, namespace: str, prefix: str, from_version: str, place: Place | None, heartbeat_s: float = HEARTBEAT_S
    ) -> None:  # fmt: skip
        self._api = api
        self._namespace = namespace
        self._prefix = prefix
        self._from_version = from_version
        self._place = place
        self._heartbeat_s = heartbeat_s

    @property
    def _handle(self) -> ReplicatedNamespace:
        return self._api.store.namespace(self._namespace)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames, until the store is away: then the client comes back, to where it was."""
        try:
            async for one in self._frames():
                yield one
        except Unavailable:
            return

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        """A listing unless the place is known here, then changes, with heartbeats between them."""
        yield f"retry: {RECONNECT_MS}\n: heartbeat\n\n".encode()
        here = await run_in_threadpool(self._here)
        place = self._place
        if place is None and self._from_version == NOW:
            place = here
            yield _with_id(place, frame("listed", {"keys": 0}))
        elif place is None or not await run_in_threadpool(self._stands, place, here):
            if place is not None:
                yield frame("listing", {"reason": "another-pop" if place.pop != here.pop else "began-again"})
            place = here
            keys, after = 0, ""
            while True:
                page = await run_in_threadpool(self._handle.list, self._prefix, after=after, limit=PAGE)
                for info in page:
                    keys += 1
                    if info.kind != "register" or info.version > self._from_version:
                        yield frame("change", change_document(info.key, info))
                if len(page) < PAGE:
                    break
                after = page[-1].key
            yield _with_id(place, frame("listed", {"keys": keys}))
        while not self._api.hub.stopping:
            now = await run_in_threadpool(self._here)
            if (now.pop, now.epoch) != (place.pop, place.epoch) or now.n < place.n:
                return  # The store began again: the client comes back, and gets everything anew.
            found = await run_in_threadpool(self._handle.changes, place.n, self._prefix, PAGE)
            if await run_in_threadpool(self._handle.changes_from) > place.n:
                return  # A deletion behind its place was forgotten before it was told: the client gets everything anew.
            for change in found:
                place = Place(place.pop, place.epoch, change.n)
                yield _with_id(place, frame("change", change_document(change.key, change.info)))
            if found:
                continue
            # Behind `now`: what is counted up to there was looked at.
            place = now
            if await self._changed(place.n) is None:
                yield b": heartbeat\n" + _with_id(place, b"\n")

    async def _changed(self, n: int) -> bool | None:
        def look(handle: ReplicatedNamespace) -> bool | None:
            return True if handle.changes_head() != n or self._api.hub.stopping else None

        try:
            return await self._api.waits.until(self._api.store, self._namespace, look, "a change", self._heartbeat_s)
        except Unavailable:  # too many wait, or this process ends
            await asyncio.sleep(BUSY_S)
            return True

    def _here(self) -> Place:
        head = self._handle.changes_head()
        return Place(self._api.settings.pop, self._handle.epoch(), head)

    def _stands(self, place: Place, here: Place) -> bool:
        if (place.pop, place.epoch) != (here.pop, here.epoch) or place.n > here.n:
            return False
        return place.n >= self._handle.changes_from()


def change_document(key: str, info: ValueInfo | None) -> dict[str, Any]:
    """A change as it is sent: the value's view, or that it is gone."""
    if info is None:
        return {"key": key, "deleted": True}
    return {**value_view(info).model_dump(), "deleted": False}


def _with_id(place: Place, body: bytes) -> bytes:
    return f"id: {place}\n".encode() + body
