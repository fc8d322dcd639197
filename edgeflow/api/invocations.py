"""`/v1/functions/.../invoke` and `/v1/invocations`: call a function and wait for what it answers; how an invocation is.

What it is: one event for one function, put into this PoP's log like any other, and the wait for the entry that ends it, wherever the function runs.
What it is not: a call past the log. Whoever stops waiting changes nothing: the invocation goes on, and its result can be asked for.
What must stay true: an invoke with an id of the client's own can be repeated and stays one invocation; a 2xx means that the outputs are in the log.
"""

import asyncio
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.binding import event_from_request, event_headers, headers_of
from edgeflow.api.bodies import EventBody
from edgeflow.api.channels import ingest_one
from edgeflow.api.context import Api, ApiDep, now_ms
from edgeflow.api.places import Function, absent, find_function, pops_of
from edgeflow.api.problems import BadParameter, responses
from edgeflow.api.results import wait_result
from edgeflow.api.times import parse_duration_s
from edgeflow.api.views import event_view
from edgeflow.core.channels import INVOKE_LEVEL
from edgeflow.core.events import Event, parse_ekv_ref
from edgeflow.core.gathered import BATCH, is_batch, unpack
from edgeflow.core.ids import invocation_id
from edgeflow.errors import BadEvent, InvocationDead, InvocationDropped, InvocationPending, NotFound, NotInvocable
from edgeflow.store.namespace import Namespace
from edgeflow.store.records import Arrival, InvocationInfo, Receipt, Result

router = APIRouter(tags=["invocations"])

INVOCATION_HEADER = "Edgeflow-Invocation"
DEFAULT_TIMEOUT = "30s"
MAX_TIMEOUT_S = 300.0
INLINE_BYTES = 1024 * 1024
"""A body above it is a URL in a batch of several outputs; a single output is sent as it is."""

INVOKE_DOCS: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
}
INVOKE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One output: its body, its attributes as `ce-*` headers. Several: a batch of CloudEvents",
        "headers": {INVOCATION_HEADER: {"schema": {"type": "string"}}},
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}, BATCH: {"schema": {"type": "array", "items": {"type": "object"}}}},
    },
    204: {"description": "Carried out, without an output"},
}  # fmt: skip


class ResultView(BaseModel):
    """How an invocation that was asked for ended."""

    status: str = Field(description="`committed`, `dead`, `expired` or `dropped`")
    reason: str = Field(description="Why there is no result; empty when there is one")
    outputs: list[dict[str, Any]] = Field(description="CloudEvents; bodies over 4 KiB as a dataref URL")


class InvocationView(BaseModel):
    """One invocation as this PoP knows it."""

    namespace: str
    id: str
    pop: str = Field(description="The PoP that answers")
    function: str | None = Field(description="null where only its end is known")
    revision: str | None
    state: str = Field(
        description="`turn` (waits for its key), `ready`, `delayed` (for a retry), `claimed`, `committed`, `dead`, `expired`, `dropped`, "
        "`ended` (only that is known any more)"
    )
    attempt: int | None = Field(description="Number of the newest attempt; 0 before the first")
    failures: int | None = Field(description="Attempts that failed")
    accepted_ms: int | None = Field(
        description="When it went into the inbox, ms since 1970; null when that is forgotten"
    )
    by: str | None = Field(description="The instance that works on it")
    reason: str | None = Field(description="Why it failed last, or why it ended")
    result: ResultView | None = Field(description="Of an invoke that has ended")


@router.post(
    "/v1/functions/{namespace}/{name}/invoke",
    response_class=Response,
    openapi_extra=INVOKE_DOCS,
    responses={**INVOKE_ANSWERS, **responses(400, 404, 408, 413, 415, 422, 429, 502, 504)},
)
async def invoke_function(
    api: ApiDep,
    request: Request,
    namespace: str,
    name: str,
    body: EventBody,
    wait: Annotated[
        str, Query(alias="timeout", description="Longest wait: `500ms`, `30s`, `2m`; at most 300 s")
    ] = DEFAULT_TIMEOUT,
) -> Response:
    """Call one function with one event and wait for its outputs. The body is the data, `ce-*` headers are the attributes, as for publishing.

    Several inputs (a join, a window), or one with the channel it came on, are a batch of CloudEvents, each with the attribute `input`.
    It works at every PoP, wherever the function runs. 504 `invocation-pending`: it goes on; `GET /v1/invocations/{namespace}/{id}` has its result.
    """
    timeout_s = _timeout_s(wait)
    id = await run_in_threadpool(_accept, api, request, namespace, name, body)
    del body
    result = await _wait(api, request, namespace, id, timeout_s)
    return await run_in_threadpool(_answer, api, namespace, name, id, wait, result)


@router.get("/v1/invocations/{namespace}/{id}", responses=responses(404))
def get_invocation(api: ApiDep, namespace: str, id: str) -> InvocationView:
    """How an invocation is, and how an invoke ended. The PoP where its function runs knows most; the PoP that was asked for it knows its result."""
    handle = api.namespace(namespace)
    info = handle.invocation(id)
    try:
        result = handle.result(id)
    except NotFound:  # its outputs are not kept any more, only that it ended
        result = None
    if info is None and result is None:
        raise absent(
            api, namespace, f"invocation {id[:80]!r}",
            "What has ended is known for as long as the log is kept (`limits.retention_ms`).",
        )  # fmt: skip
    return _view(api, namespace, id, info, result)


def _timeout_s(text: str) -> float:
    timeout_s = parse_duration_s(text, "timeout")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise BadParameter(
            f"timeout: {text[:40]!r} is out of range",
            hint="From 1ms to 300s; a longer invocation goes on, ask /v1/invocations for its result.",
        )
    return timeout_s


def _accept(api: Api, request: Request, namespace: str, name: str, body: bytes) -> str:
    """Put the event into the log; the id of the invocation that it causes."""
    function = find_function(api, namespace, name)
    gathers = is_batch(request.headers.get("content-type"))
    _check_invocable(namespace, name, function, gathers)
    channel, headers = f"{namespace}/{INVOKE_LEVEL}/{name}", headers_of(request.scope)
    if gathers:
        headers = _gathered_headers(namespace, name, function, headers, body)
    event, dataref, is_own_id = event_from_request(
        channel, headers, body, pop=api.settings.pop, now_ms=now_ms(), limits=api.settings.limits, takes_batch=True
    )  # fmt: skip
    if dataref is not None:
        _check_readable(api, namespace, dataref)
    receipt = ingest_one(api, namespace, Arrival(event=event, via="http", dataref=dataref, deduplicate=is_own_id))
    if receipt.class_ == "waiting":
        raise InvocationPending(
            f"the event waits for {dataref}, which is not readable at PoP {api.settings.pop} any more; then the function is called",
            hint="Put the value and call again with the same id.",
        )
    return invocation_of(name, receipt)


def invocation_of(name: str, receipt: Receipt) -> str:
    """Id of the invocation that an accepted event of an invoke channel causes."""
    return invocation_id(name, receipt.origin, receipt.epoch, receipt.seq, 0)


def _check_invocable(namespace: str, name: str, function: Function, gathers: bool) -> None:
    if function.get("join") is not None and not gathers:
        raise NotInvocable(
            f"{namespace}/{name} joins several events; it cannot be called with one",
            hint=f'Send all of them as {BATCH}, each with the attribute "input": the name of the parameter.',
        )
    if any(item.get("qos") == 0 for item in function["inputs"]):
        raise NotInvocable(f"the instances of {namespace}/{name} subscribe at the broker by themselves (qos: 0)")


def _gathered_headers(
    namespace: str, name: str, function: Function, headers: list[tuple[str, str]], body: bytes
) -> list[tuple[str, str]]:
    """The headers of a call with all inputs in one batch: its subject is that of the first one. Raises BadEvent for a batch that is none."""
    inputs = unpack(body, namespace=namespace, source="urn:edgeflow", now_ms=now_ms())
    known = [item["name"] for item in (*function["inputs"], *(function.get("latest") or ()))]
    for given, _ in inputs:
        if given not in known:
            raise BadEvent(
                f"{namespace}/{name} has no input {given[:80]!r}", hint=f"Its inputs are {', '.join(known)}."
            )
    subject = inputs[0][1].subject
    if subject is not None and not any(header == "ce-subject" for header, _ in headers):
        headers = [*headers, ("ce-subject", quote(subject, safe=""))]
    return headers


def _check_readable(api: Api, namespace: str, dataref: str) -> None:
    """Raises NotFound when the value that `dataref` names is not here: an invocation would have no id before it is."""
    key, version = parse_ekv_ref(dataref, namespace)
    found = api.namespace_for_write(namespace).head(key)
    if found is None or (version is not None and found.version != version):
        raise NotFound(
            f"the value {dataref[:200]!r} is not readable at PoP {api.settings.pop}",
            hint="Put it first, or publish the dataref on a channel, where it may wait for its value.",
        )


async def _wait(api: Api, request: Request, namespace: str, id: str, timeout_s: float) -> Result | None:
    """The result of an invocation; None when it has none in time, or when the client has left."""
    waiting = asyncio.create_task(wait_result(api.waits, api.store, namespace, id, timeout_s))
    leaving = asyncio.create_task(_until_disconnected(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await waiting if waiting.done() else None
    finally:
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(api: Api, namespace: str, name: str, id: str, timeout: str, result: Result | None) -> Response:
    about = {"invocation": id}
    if result is None:
        where = " or ".join(pops_of(find_function(api, namespace, name)))
        raise InvocationPending(
            f"{namespace}/{name} has not ended invocation {id} within {timeout}; it runs at PoP {where}",
            hint=InvocationPending.hint.replace("<invocation>", id), details=about,
        )  # fmt: skip
    if result.status != "committed":
        about["reason"] = result.reason
        if result.status == "dead":
            raise InvocationDead(
                f"{namespace}/{name} gave up invocation {id}: {result.reason or 'no reason is known'}",
                hint=InvocationDead.hint.replace("<invocation>", id), details={**about, "dead_letter": id},
            )  # fmt: skip
        why = result.reason or result.status
        raise InvocationDropped(f"{namespace}/{name} did not carry out invocation {id}: {why}", details=about)
    handle = api.store.namespace(namespace)
    headers = {INVOCATION_HEADER: id}
    if not result.events:
        return Response(status_code=204, headers=headers)
    if len(result.events) == 1:
        (event,) = result.events
        return Response(handle.data_of(event), headers={**headers, **event_headers(event)})
    documents = [_document(api, handle, event) for event in result.events]
    return JSONResponse(documents, headers=headers, media_type=BATCH)


def _document(api: Api, handle: Namespace, event: Event) -> dict[str, Any]:
    if event.size_bytes > INLINE_BYTES:
        return event_view(event, api.blobs_url)
    return event.to_cloudevent(handle.data_of(event))


def _view(api: Api, namespace: str, id: str, info: InvocationInfo | None, result: Result | None) -> InvocationView:
    ended = None
    if result is not None:
        outputs = [event_view(event, api.blobs_url) for event in result.events]
        ended = ResultView(status=result.status, reason=result.reason, outputs=outputs)
    if info is None:
        return InvocationView(
            namespace=namespace, id=id, pop=api.settings.pop, function=None, revision=None, state=ended.status if ended else "ended",
            attempt=None, failures=None, accepted_ms=None, by=None, reason=ended.reason or None if ended else None, result=ended,
        )  # fmt: skip
    return InvocationView(
        namespace=namespace, id=id, pop=api.settings.pop, function=info.function or None, revision=info.revision or None, state=info.state,
        attempt=info.attempt, failures=info.failures, accepted_ms=info.accepted_ms or None, by=info.by, reason=info.reason or None, result=ended,
    )  # fmt: skip
