"""`/v1/channels`: list, publish, follow."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.binding import check_open, event_from_request, headers_of, parse_ack
from edgeflow.api.bodies import EventBody
from edgeflow.api.consistency import WaitQuery, check_copies, parse_wait_s, replicated
from edgeflow.api.consumers import follow
from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.ekv import check_open_key
from edgeflow.api.problems import BadParameter, responses
from edgeflow.api.streams import EventStream
from edgeflow.api.views import ReceiptView
from edgeflow.core.channels import check_filter
from edgeflow.core.failpoints import hit
from edgeflow.store.records import Arrival, Receipt, Refusal

router = APIRouter(tags=["channels"])

WAITING_STATUS = 202


class ChannelView(BaseModel):
    """One channel as seen at this PoP."""

    channel: str = Field(description="Full name, <namespace>/<path>")
    events: int = Field(description="Events released on it at this PoP")


class ChannelList(BaseModel):
    """The channels of one or all namespaces."""

    items: list[ChannelView]


class EventMessage(BaseModel):
    """What one SSE frame carries: `id: <cursor>`, `event: message` with a structured CloudEvent, or `event: gap` with the reason."""

    id: str
    event: str
    data: str


@router.get("/v1/channels", responses=responses(404))
def list_channels(
    api: ApiDep, namespace: Annotated[str | None, Query(description="Only this namespace")] = None
) -> ChannelList:
    """The channels that have had an event at this PoP."""
    names = [namespace] if namespace is not None else sorted(api.store.namespaces())
    items = [
        ChannelView(channel=info.name, events=info.events) for name in names for info in api.namespace(name).channels()
    ]
    return ChannelList(items=sorted(items, key=lambda item: item.channel))


@router.post(
    "/v1/channels/{namespace}/{path:path}",
    status_code=201,
    responses={
        201: {"model": ReceiptView, "description": "Durable at this PoP"},
        WAITING_STATUS: {
            "model": ReceiptView,
            "description": "Kept; enters the log when the value it refers to is readable here",
        },
        **responses(400, 403, 408, 409, 413, 415, 422, 429),
    },
    openapi_extra={
        "requestBody": {"required": False, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def publish_event(
    api: ApiDep,
    request: Request,
    namespace: str,
    path: str,
    body: EventBody,
    put: Annotated[
        str | None, Query(description="Also put the body into the EKV under this key, in the same atomic step")
    ] = None,
    ack: Annotated[str | None, Query(description="`durable` (default) or `replicated:<k>`")] = None,
    prefer: Annotated[str | None, Header(description="`ack=durable`, `ack=replicated:<k>`")] = None,
    wait: WaitQuery = None,
) -> Response:
    """Publish one event: the body is the data, `ce-*` headers are its attributes; or one structured CloudEvent.

    The body `{"dataref": "ekv:<namespace>/<key>"}` (JSON) takes the data from the EKV.
    """
    copies, wait_s = parse_ack(ack, prefer), parse_wait_s(wait)
    check_copies(api, copies)
    event, dataref, is_own_id = event_from_request(
        check_open(f"{namespace}/{path}"), headers_of(request.scope), body, pop=api.settings.pop, now_ms=now_ms(), limits=api.settings.limits
    )  # fmt: skip
    if dataref is not None and put is not None:
        raise BadParameter(
            "put and a dataref exclude each other",
            hint="Publish the dataref of the value that is there, or put the data itself.",
        )
    arrival = Arrival(
        event=event,
        via="http",
        dataref=dataref,
        put_key=check_open_key(put) if put is not None else None,
        deduplicate=is_own_id,
    )
    receipt = await run_in_threadpool(ingest_one, api, namespace, arrival)
    document = await replicated(api, namespace, receipt, copies, wait_s)
    return JSONResponse(document, WAITING_STATUS if receipt.class_ == "waiting" else 201)


def ingest_one(api: Api, namespace: str, arrival: Arrival) -> Receipt:
    """Put one event into the log. Raises what the store refuses it with."""
    hit("api-before-ingest")
    result = api.namespace_for_write(namespace).ingest([arrival])[0]
    hit("api-after-ingest")
    if isinstance(result, Refusal):
        raise result.error
    return result


@router.get(
    "/v1/channels/{namespace}/{path:path}",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/EventMessage"}}}},
        **responses(400, 403, 422),
    },
)
async def follow_channel(
    api: ApiDep,
    namespace: str,
    path: str,
    from_: Annotated[
        str | None, Query(alias="from", description="`now` (default), `start`, or a cursor: behind it")
    ] = None,
    durable: Annotated[
        str | None, Query(description="Go on where the consumer of this name stopped; one that is new begins at `from`")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="Resume behind this frame, whichever PoP it came from")
    ] = None,
) -> Response:
    """Follow a channel, or an MQTT filter with + and # (as %23), as server-sent events.

    Each frame is a structured CloudEvent whose data is readable at this PoP; data over 1 MiB is a `dataref` URL. `event: gap` says what is missing.
    """
    pattern = check_filter(f"{namespace}/{path}")
    return await follow(api, pattern, from_=from_, last_event_id=last_event_id, durable=durable)
