"""`/v1/ekv`: values as raw bytes with their version as the ETag; counters, sets and maps as JSON.

What it is: the resource: conditions, ranges, types, lists, batches.
What it is not: when a read may be answered and what a write waits for (edgeflow.api.consistency), the place where it is decided
(edgeflow.api.writes), or the feed of changes (edgeflow.api.watch).
What must stay true: a body is sent only when it was read whole or its piece was checked; a key that belongs to edgeflow is read only.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.batches import BATCH_BODY, OPERATION_BODY, Batch, Operation, parse_operation, parse_ttl_ms
from edgeflow.api.binding import OCTETS, stated_type
from edgeflow.api.bodies import EventBody, parse_json
from edgeflow.api.consistency import (
    SESSION_HEADER,
    Consistency,
    Reading,
    ReadingDep,
    Writing,
    WritingDep,
    absent,
    check_copies,
    last_stand,
    ready_to_read,
    ready_to_write,
    replicated,
    token_header,
)
from edgeflow.api.context import Api, ApiDep
from edgeflow.api.problems import BadParameter, Reserved, problem_response, responses
from edgeflow.api.ranges import Span, parse_range, whole
from edgeflow.api.uploads import ValueUpload, open_body, pieces, sha256_header
from edgeflow.api.views import ReceiptView, ValueView, value_view
from edgeflow.api.watch import watch_changes
from edgeflow.api.writes import carry_out, read_at_home
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_key
from edgeflow.core.cursors import EMPTY, Vector
from edgeflow.core.typed import typed_json
from edgeflow.core.versions import is_version
from edgeflow.errors import Behind, NotReplicated, VersionMismatch
from edgeflow.store.records import Delete, Put, ValueInfo, Write
from edgeflow.store.replica import ReplicatedNamespace

router = APIRouter(tags=["ekv"])

MAX_LIST = 1000
FETCH_S = 30.0
"""Longest a body that is kept at another PoP may take to begin."""
JSON = "application/json"
KIND_HEADER = "Edgeflow-Kind"
RAW_BODY = {"requestBody": {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}}
RAW_ANSWER: dict[int | str, dict[str, object]] = {
    200: {
        "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {"ETag": {"schema": {"type": "string"}}},
    }
}

IfMatch = Annotated[str | None, Header(description='Only if the value has this version: `"<version>"`, or `*` for any')]
IfNoneMatch = Annotated[
    str | None, Header(description="PUT: only `*`, if there is no value yet. GET: 304 if it still has this version")
]


class ValueList(BaseModel):
    """One page of keys."""

    items: list[ValueView]
    next: str | None = Field(description="`after` of the next page; null on the last one")


class VersionView(BaseModel):
    """One write of a value that is kept."""

    version: str
    size: int
    content_type: str | None
    current: bool = Field(description="False: it lost to a write that had not seen it; `?version=` still reads it")
    origin: str = Field(description="PoP where it was written")


class VersionList(BaseModel):
    """The current version of a value, and those that lost to a concurrent write."""

    items: list[VersionView]


def etag(version: str) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def version_of(tag: str, header: str) -> str:
    """The version in one strong entity tag. Raises BadParameter for anything else."""
    text = tag.strip()
    if len(text) < 3 or text[0] != '"' or text[-1] != '"' or "," in text:
        raise BadParameter(
            f"{header}: {tag[:80]!r} is not one ETag in quotes",
            hint='Send the ETag of the value as it came, as in If-Match: "...".',
        )
    return text[1:-1]


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")}


def check_open_key(key: str) -> str:
    """`key` itself. Raises BadName when it is none, Reserved when only edgeflow may write it."""
    if check_key(key).startswith("_"):
        raise Reserved(f"the key {key!r} belongs to edgeflow")
    return key


def _check_writable(namespace: str, keys: Sequence[str]) -> None:
    if namespace == SYSTEM_NAMESPACE:
        raise Reserved("values of the namespace 'system' are written through /v1/functions and /v1/bundles only")
    for key in keys:
        check_open_key(key)


async def writable_key(request: Request) -> None:
    """Refuses what only edgeflow may write before the body has come."""
    _check_writable(request.path_params["namespace"], [request.path_params["key"]])


# -- lists -------------------------------------------------------------------------------------------------------------


@router.get("/v1/ekv/{namespace}", response_model=ValueList, responses=responses(400, 404, 422))
@router.get(
    "/v1/ekv/{namespace}/", response_model=ValueList, responses=responses(400, 404, 422), include_in_schema=False
)
async def list_values(
    api: ApiDep,
    namespace: str,
    how: ReadingDep,
    prefix: Annotated[str, Query(description="Only keys that begin with this")] = "",
    after: Annotated[str, Query(description="Only keys behind this one: `next` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LIST, description="Most items of one page")] = 100,
    watch: Annotated[bool, Query(description="Follow the changes, as server-sent events")] = False,
    from_version: Annotated[
        str | None, Query(description="`watch`: what is there and not newer than this is left out; `now`: all of it")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="`watch`: go on behind this one")] = None,
) -> Response:
    """The keys of a namespace in order, one page at a time; or, with `watch`, what changes under a prefix."""
    _refuse_strong(how, "a list")
    if watch:
        return await watch_changes(api, namespace, prefix, from_version, last_event_id)
    await ready_to_read(api, namespace, how)

    def read() -> tuple[list[ValueInfo], Vector]:
        handle = api.namespace(namespace)
        found = handle.list(prefix, after=after, limit=limit + 1)
        return found, _heads(handle) if how.session is not None else EMPTY

    found, seen = await run_in_threadpool(read)
    items = [value_view(info) for info in found[:limit]]
    page = ValueList(items=items, next=items[-1].key if len(found) > limit else None)
    return JSONResponse(page.model_dump(), headers=await _session(api, how, seen))


def _refuse_strong(how: Reading, what: str) -> None:
    if how.consistency is Consistency.STRONG:
        raise BadParameter(
            f"consistency: {what} cannot be read as `strong`", hint="Read single keys strongly, or use a session."
        )


# -- writes ------------------------------------------------------------------------------------------------------------


@router.put(
    "/v1/ekv/{namespace}/{key:path}",
    openapi_extra=RAW_BODY,
    response_model=ReceiptView,
    responses=responses(400, 403, 408, 409, 412, 413, 422, 429, 504, 507),
)
async def put_value(
    api: ApiDep,
    namespace: str,
    key: str,
    how: WritingDep,
    _writable: Annotated[None, Depends(writable_key)],
    body: ValueUpload,
    ttl: Annotated[
        str | None, Query(description="How long it lives, as in `30s` or `7d`; for ever if not given")
    ] = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    content_type: Annotated[str | None, Header()] = None,
) -> Response:
    """Put a value: the body as it is. The answer means that it is durable at this PoP (or at its home); its ETag is the version."""
    if if_none_match is not None and if_none_match.strip() != "*":
        raise BadParameter(f"If-None-Match: {if_none_match[:80]!r} is not `*`")
    expected = await _expected(api, namespace, key, if_match, how)
    put = Put(
        key, body.data, body.ref, content_type=stated_type(content_type), ttl_ms=parse_ttl_ms(ttl), if_version=expected,
        if_absent=if_none_match is not None,
    )  # fmt: skip
    return await _write(api, namespace, [put], how)


@router.delete(
    "/v1/ekv/{namespace}/{key:path}",
    status_code=204,
    response_class=Response,
    responses=responses(403, 404, 412, 422, 504),
)
async def delete_value(api: ApiDep, namespace: str, key: str, how: WritingDep, if_match: IfMatch = None) -> Response:
    """Delete what is under a key, of any type, everywhere. Deleting what is not there is 404, or 412 with If-Match."""
    _check_writable(namespace, [key])
    await run_in_threadpool(api.namespace, namespace)
    expected = await _expected(api, namespace, key, if_match, how)
    written = await _write(api, namespace, [Delete(key, expected)], how)
    return Response(status_code=204, headers={name: written.headers[name] for name in _KEPT if name in written.headers})


_KEPT = ("edgeflow-session", "edgeflow-receipt", "etag")


@router.post(
    "/v1/ekv/{namespace}/{key:path}",
    openapi_extra=OPERATION_BODY,
    response_model=ReceiptView,
    responses=responses(400, 403, 409, 413, 422, 429, 504, 507),
)
async def change_value(
    api: ApiDep,
    namespace: str,
    key: str,
    how: WritingDep,
    body: EventBody,
    op: Annotated[
        Operation,
        Query(description="`increment` a counter; `add`, `remove` elements of a set; `set`, `unset` fields of a map"),
    ],
) -> Response:
    """Change a counter, a set or a map, made by its first change. A key of another type is refused: 409 `wrong-type`."""
    _check_writable(namespace, [key])
    return await _write(api, namespace, [parse_operation(op, key, body)], how)


@router.post(
    "/v1/ekv/{namespace}", openapi_extra=BATCH_BODY, response_model=ReceiptView,
    responses=responses(400, 403, 404, 409, 412, 413, 422, 429, 504, 507),
)  # fmt: skip
async def write_batch(api: ApiDep, namespace: str, how: WritingDep, body: EventBody) -> Response:
    """Several writes in one atomic step: all of them happen, as one log entry, or none."""
    batch = parse_json(Batch, body).writes_of()
    _check_writable(namespace, [write.key for write in batch])
    return await _write(api, namespace, batch, how)


async def _write(api: Api, namespace: str, batch: Sequence[Write], how: Writing) -> Response:
    check_copies(api, how.copies)
    await ready_to_write(api, namespace, how)
    receipt = await carry_out(api, namespace, batch, how)
    headers = await token_header(api, how.session, {(receipt.origin, receipt.epoch): receipt.seq})
    headers["Edgeflow-Receipt"] = f"{receipt.origin}/{receipt.epoch}/{receipt.seq}"
    if receipt.version:
        headers["ETag"] = etag(receipt.version)
    try:
        return JSONResponse(await replicated(api, namespace, receipt, how.copies, how.wait_s), headers=headers)
    except NotReplicated as error:
        # It is written: the session has seen it.
        error.details = {**error.details, "session": headers[SESSION_HEADER]}
        return problem_response(error, headers)


async def _expected(api: Api, namespace: str, key: str, if_match: str | None, how: Writing) -> str | None:
    """The version that If-Match asks for; `*` asks for the one that is there."""
    if if_match is None:
        return None
    if if_match.strip() != "*":
        return version_of(if_match, "If-Match")
    if how.is_strong:
        raise BadParameter("If-Match: a strong write names the version", hint="Send the ETag of a strong read.")
    info = await run_in_threadpool(lambda: api.store.namespace(namespace).head(key))
    if info is None:
        raise VersionMismatch("If-Match: * was asked for and there is no value")
    return info.version


# -- reads -------------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/ekv/{namespace}/{key:path}",
    response_class=Response,
    responses={
        **RAW_ANSWER,
        206: {"description": "The bytes that Range asked for"},
        304: {"description": "Unchanged"},
        **responses(400, 404, 412, 416, 422),
    },
)
async def get_value(
    api: ApiDep,
    namespace: str,
    key: str,
    how: ReadingDep,
    version: Annotated[
        str | None, Query(description="Exactly this version; with `wait`, also one that is not here yet")
    ] = None,
    versions: Annotated[str | None, Query(description="If given: the versions that are kept, not the value")] = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    byte_range: Annotated[
        str | None, Header(alias="Range", description="`bytes=<first>-<last>`: only these bytes")
    ] = None,
    if_range: Annotated[
        str | None, Header(description="Only if it still has this version is `Range` looked at")
    ] = None,
) -> Response:
    """A value as it was put, with its content type; a counter, a set or a map as JSON."""
    check_key(key)
    if how.is_strong:
        if versions is not None or version is not None:
            raise BadParameter("consistency: `strong` reads the current version")
        found = await _strong(api, namespace, key, how)
    else:
        await ready_to_read(api, namespace, how)
        if version is not None and how.waits:
            await _arrived(api, namespace, key, version, how.wait_s)
        if versions is not None:
            return await _versions(api, namespace, key, how)
        found = await run_in_threadpool(_find, api, namespace, key, version, how)
    if found is None:
        raise absent(api, namespace, key, version)
    info = found.info
    if (early := _not_needed(info, key, if_match, if_none_match)) is not None:
        return early
    headers = {**_headers(info), **await _session(api, how, found.seen), **await _age(api, namespace, info, how)}
    span = whole(info.size)
    if if_range is None or if_range.strip() == etag(info.version):
        span = parse_range(byte_range, info.size)
    if not span.is_whole:
        headers["Content-Range"] = span.header
    status = 200 if span.is_whole else 206
    if found.data is not None:
        return Response(found.data[span.offset : span.offset + span.length], status, headers)
    return await _stream(api, namespace, info, span, status, headers)


@router.head(
    "/v1/ekv/{namespace}/{key:path}",
    response_class=Response,
    responses={304: {"description": "Unchanged"}, **responses(404, 412)},
)
async def head_value(
    api: ApiDep,
    namespace: str,
    key: str,
    how: ReadingDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Size, version and content type of a value."""
    check_key(key)
    if how.is_strong:
        found = await _strong(api, namespace, key, how)
    else:
        await ready_to_read(api, namespace, how)
        found = await run_in_threadpool(_find, api, namespace, key, None, how)
    if found is None:
        raise absent(api, namespace, key, None)
    if (early := _not_needed(found.info, key, if_match, if_none_match)) is not None:
        return early
    headers = {
        **_headers(found.info),
        **await _session(api, how, found.seen),
        **await _age(api, namespace, found.info, how),
    }
    return Response(headers={**headers, "Content-Length": str(found.info.size)})


@dataclass(slots=True)
class _Found:
    """What a read has found: `data` None when the body is a blob that is still to be opened; `seen` when it belongs to a session."""

    info: ValueInfo
    data: bytes | None
    seen: Vector = field(default_factory=dict)


def _find(api: Api, namespace: str, key: str, version: str | None, how: Reading) -> _Found | None:
    handle = api.namespace(namespace)
    found = _current(handle, key) if version is None else _in_version(handle, key, version)
    if found is not None and how.session is not None:
        # Behind the read: what is shown was applied by then.
        found.seen = _heads(handle)
    return found


def _heads(handle: ReplicatedNamespace) -> Vector:
    vector: Vector = {(origin, epoch): seq for (origin, epoch), seq in handle.logs().items()}
    return vector


def _in_version(handle: ReplicatedNamespace, key: str, version: str) -> _Found | None:
    info = next((one for one in handle.versions(key) if one.version == version), None)
    if info is None:
        return None
    shown = ValueInfo(key, version, info.size, info.content_type, info.digest, origin=info.origin)
    if info.digest is not None:
        return _Found(shown, None)
    value = handle.get(key, version=version)
    return None if value is None else _Found(shown, value.data)


def _current(handle: ReplicatedNamespace, key: str) -> _Found | None:
    value = handle.small_values([key])[0]
    if value is not None:
        return _Found(value, None if value.digest is not None else value.data)
    info = handle.head(key)
    content = None if info is None else handle.typed_content(key, info.kind)
    return None if info is None or content is None else _typed(info, content)


def _typed(info: ValueInfo, content: Any) -> _Found:
    data = typed_json(info.kind, content)
    return _Found(ValueInfo(info.key, info.version, len(data), JSON, None, kind=info.kind, origin=info.origin), data)


async def _strong(api: Api, namespace: str, key: str, how: Reading) -> _Found | None:
    answer = await read_at_home(api, namespace, key, how)
    value = answer["value"]
    if value is None:
        return None
    info = ValueInfo(
        key, value["version"], value["size"], value["content_type"], value["digest"], kind=value["kind"],
        expires_ms=value["expires_ms"], origin=value["origin"],
    )  # fmt: skip
    found = _Found(info, value["data"]) if info.kind == "register" else _typed(info, value["content"])
    found.seen = {(origin, epoch): seq for origin, epoch, seq in answer["seen"]}
    return found


async def _arrived(api: Api, namespace: str, key: str, version: str, wait_s: float) -> None:
    """Return when this version, or a later one, is here. Raises Behind, and BadParameter for what is no version."""
    if not is_version(version):
        raise BadParameter(f"version: {version[:80]!r} is not a version")

    def look(_system: object) -> bool | None:
        if not api.store.has_namespace(namespace):
            return None
        info = api.store.namespace(namespace).head(key)
        return True if info is not None and (info.kind != "register" or info.version >= version) else None

    if await api.waits.until(api.store, namespace, look, f"version {version} of {key}", wait_s) is None:
        raise Behind(f"{key!r} has not come in version {version} within {wait_s:g} s")


async def _versions(api: Api, namespace: str, key: str, how: Reading) -> Response:
    def read() -> tuple[list[VersionView], Vector]:
        handle = api.namespace(namespace)
        found = [
            VersionView(
                version=one.version, size=one.size, content_type=one.content_type, current=one.is_current, origin=one.origin
            )
            for one in handle.versions(key)
        ]  # fmt: skip
        return found, _heads(handle)

    items, seen = await run_in_threadpool(read)
    if not items:
        raise absent(api, namespace, key, None)
    return JSONResponse(VersionList(items=items).model_dump(), headers=await _session(api, how, seen))


def _not_needed(info: ValueInfo, key: str, if_match: str | None, if_none_match: str | None) -> Response | None:
    """304, or None when the value is to be sent. Raises VersionMismatch when If-Match does not hold."""
    if if_match is not None and if_match.strip() != "*" and info.version not in _tags(if_match):
        raise VersionMismatch(f"{key!r} has version {info.version!r}, not the one asked for")
    if if_none_match is not None and (if_none_match.strip() == "*" or info.version in _tags(if_none_match)):
        return Response(status_code=304, headers={"ETag": etag(info.version)})
    return None


async def _session(api: Api, how: Reading, seen: Vector) -> dict[str, str]:
    return {} if how.session is None else await token_header(api, how.session, seen)


async def _age(api: Api, namespace: str, info: ValueInfo, how: Reading) -> dict[str, str]:
    """Age (s) of a copy: since when this PoP is not known to have everything. What entered here has none."""
    if info.origin in ("", api.settings.pop) or how.is_strong:
        return {}
    known = await last_stand(api, namespace)
    if known.staleness_ms is None:
        return {}
    since_s = asyncio.get_running_loop().time() - known.at_s
    return {"Age": str(int(known.staleness_ms / 1000 + since_s))}


def _headers(info: ValueInfo) -> dict[str, str]:
    headers = {
        "ETag": etag(info.version),
        "Content-Type": info.content_type or OCTETS,
        "Cache-Control": "no-cache",
        "Accept-Ranges": "bytes",
    }
    if info.kind != "register":
        headers[KIND_HEADER] = info.kind
    if info.digest is not None:
        headers.update(sha256_header(info.digest))
    if info.expires_ms is not None:
        headers["Edgeflow-Expires"] = str(info.expires_ms)
    return headers


async def _stream(
    api: Api, namespace: str, info: ValueInfo, span: Span, status: int, headers: dict[str, str]
) -> Response:
    """A body piece by piece; the first is read before anything is said, so that what cannot be read is a problem document."""
    assert info.digest is not None
    body, first = await open_body(api, api.store.namespace(namespace), info.digest, span.offset, span.length, FETCH_S)
    headers["Content-Length"] = str(span.length)
    return StreamingResponse(pieces(body, span, first), status, headers)
