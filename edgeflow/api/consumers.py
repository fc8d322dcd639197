"""`/v1/consumers`: durable consumers, and how a channel is followed for one.

What it is: the place of a named consumer as a replicated value `_consumers/<name>`, moved by acknowledgements.
What it is not: a work queue (whoever follows gets everything), or a hold on retention (a consumer that stays away for longer is told what it missed).
What must stay true: a stored cursor is one that the consumer has acknowledged, or where it began; so an older one may win when two PoPs were written
at the same time, which repeats events and loses none.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.problems import Reserved, responses
from edgeflow.api.route import Moving, check_takes_streams
from edgeflow.api.streams import ChannelStream, EventStream, parse_start
from edgeflow.api.tails import Begin
from edgeflow.core.channels import NAME, SYSTEM_NAMESPACE
from edgeflow.core.cursors import Cursor
from edgeflow.errors import BadName, NotFound
from edgeflow.store.namespace import Namespace

router = APIRouter(tags=["consumers"])

PREFIX = "_consumers/"
PAGE = 500

Name = Annotated[str, Path(description="[a-z0-9][a-z0-9_-]*, at most 63 characters")]


@dataclass(frozen=True, slots=True)
class Consumer:
    """What is stored of a durable consumer."""

    name: str
    filter: str
    cursor: str
    acked_ms: int


class ConsumerView(BaseModel):
    """A durable consumer."""

    name: str
    filter: str = Field(description="What it followed last")
    cursor: str = Field(description="Everything up to here is acknowledged")
    acked_ms: int = Field(description="When that was said: ms since 1970, by the clock of the PoP that was told")
    behind: int | None = Field(
        description="Events of all channels released here behind the cursor; null when another PoP gave it"
    )


class ConsumerList(BaseModel):
    """The durable consumers of a namespace."""

    items: list[ConsumerView]


class AckBody(BaseModel):
    """An acknowledgement."""

    cursor: str = Field(description="The id of the last event that need not come again; also `start` and `now`")


def check_consumer(name: str) -> str:
    """`name` itself. Raises BadName."""
    if not NAME.fullmatch(name):
        raise BadName(
            f"{name[:80]!r} is not the name of a consumer", hint="Use [a-z0-9][a-z0-9_-]*, at most 63 characters."
        )
    return name


def load(handle: Namespace, name: str) -> Consumer | None:
    """The consumer as this PoP knows it. Raises BadName."""
    value = handle.get(PREFIX + check_consumer(name))
    if value is None:
        return None
    document = json.loads(value.data)
    return Consumer(name, document["filter"], document["cursor"], document["acked_ms"])


def save(handle: Namespace, consumer: Consumer) -> None:
    """Store a consumer durably here; it reaches the other PoPs as any value does."""
    document = {"filter": consumer.filter, "cursor": consumer.cursor, "acked_ms": consumer.acked_ms}
    handle.put(PREFIX + consumer.name, json.dumps(document).encode(), content_type="application/json")


async def follow(
    api: Api, pattern: str, *, from_: str | None, last_event_id: str | None, durable: str | None
) -> Response:
    """The stream of a filter, from the first of these that is there: Last-Event-ID, the cursor of the consumer `durable`, `from_`, now.

    A consumer that is new begins to exist with this.
    """
    check_takes_streams(api.pressure)
    namespace = pattern.partition("/")[0]
    begin = await run_in_threadpool(_prepare, api, namespace, pattern, from_, last_event_id, durable)
    stream = ChannelStream(
        api.hub, api.settings.pop, pattern, begin, lambda: api.store.has_namespace(namespace), leaves=durable is not None
    )  # fmt: skip
    return EventStream(Moving(stream, api.pressure))


def _prepare(
    api: Api, namespace: str, pattern: str, from_: str | None, last_event_id: str | None, durable: str | None
) -> Begin:
    cursor = parse_start(from_, last_event_id)
    if durable is None:
        return api.hub.begin(namespace, cursor, pattern)
    handle = _writable(api, namespace)
    consumer = load(handle, durable)
    if consumer is not None and not last_event_id:
        cursor = parse_start(None, consumer.cursor)
    if consumer is None:
        cursor = _settled(api, namespace, cursor)
        save(handle, Consumer(durable, pattern, str(cursor), now_ms()))
    elif consumer.filter != pattern:
        save(handle, replace(consumer, filter=pattern))
    return api.hub.begin(namespace, cursor, pattern)


def _writable(api: Api, namespace: str) -> Namespace:
    if namespace == SYSTEM_NAMESPACE:
        raise Reserved("the namespace 'system' has no durable consumers")
    return api.namespace_for_write(namespace)


def _settled(api: Api, namespace: str, cursor: Cursor | None) -> Cursor:
    """A cursor as it is stored: now is a place, and a number has the PoP that it counts at."""
    if cursor is not None:
        return replace(cursor, pop=cursor.pop or api.settings.pop)
    place = api.hub.begin(namespace, None, namespace).place
    return Cursor(api.settings.pop, place.n, place.mark, place.vector)


def _known(api: Api, namespace: str, name: str) -> tuple[Namespace, Consumer]:
    handle = api.namespace(namespace)
    consumer = load(handle, name)
    if consumer is None:
        raise NotFound(
            f"there is no consumer {name!r} in {namespace!r} at PoP {handle.pop}",
            hint="A consumer begins by following a channel with ?durable=<name>; GET /v1/consumers/<namespace> lists what is there.",
        )
    return handle, consumer


def _all(handle: Namespace) -> Iterator[Consumer]:
    after = ""
    while True:
        page = handle.list(PREFIX, after=after, limit=PAGE)
        for info in page:
            if (consumer := load(handle, info.key.removeprefix(PREFIX))) is not None:
                yield consumer
        if len(page) < PAGE:
            return
        after = page[-1].key


def _view(handle: Namespace, consumer: Consumer) -> ConsumerView:
    cursor = parse_start(None, consumer.cursor)
    behind = None
    if cursor is not None and cursor.pop == handle.pop:
        behind = max(0, handle.release_head() - cursor.n)
    return ConsumerView(
        name=consumer.name, filter=consumer.filter, cursor=consumer.cursor, acked_ms=consumer.acked_ms, behind=behind
    )


@router.get("/v1/consumers/{namespace}", responses=responses(404))
def list_consumers(api: ApiDep, namespace: str) -> ConsumerList:
    """The durable consumers of a namespace, as this PoP knows them."""
    handle = api.namespace(namespace)
    return ConsumerList(items=[_view(handle, consumer) for consumer in _all(handle)])


@router.post("/v1/consumers/{namespace}/{name}/ack", responses=responses(400, 404, 422, 429, 507))
def ack_consumer(api: ApiDep, namespace: str, name: Name, body: AckBody) -> ConsumerView:
    """Move a consumer: next time it goes on behind this cursor. The answer means that this is durable at this PoP.

    An older cursor is taken too: what is behind it comes again.
    """
    handle, consumer = _known(api, namespace, name)
    cursor = _settled(api, namespace, parse_start(body.cursor, None))
    moved = replace(consumer, cursor=str(cursor), acked_ms=now_ms())
    save(handle, moved)
    return _view(handle, moved)


@router.delete(
    "/v1/consumers/{namespace}/{name}", status_code=204, response_class=Response, responses=responses(400, 404)
)
def delete_consumer(api: ApiDep, namespace: str, name: Name) -> Response:
    """Forget a consumer everywhere. One that is connected gets 404 for its next acknowledgement."""
    handle, _ = _known(api, namespace, name)
    handle.delete(PREFIX + name)
    return Response(status_code=204)
