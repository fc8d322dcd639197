"""`/v1/ekv`: values as raw bytes, their version as the ETag."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from edgeflow.api.binding import OCTETS, stated_type
from edgeflow.api.context import ApiDep
from edgeflow.api.problems import BadParameter, Reserved, responses
from edgeflow.api.uploads import ValueUpload
from edgeflow.api.views import ReceiptView, ValueView, value_view
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_key
from edgeflow.errors import NotFound, VersionMismatch
from edgeflow.store.records import ValueInfo
from edgeflow.store.replica import ReplicatedNamespace

router = APIRouter(tags=["ekv"])

MAX_LIST = 1000
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


def _check_writable(namespace: str, key: str) -> None:
    if namespace == SYSTEM_NAMESPACE:
        raise Reserved("values of the namespace 'system' are written through /v1/functions and /v1/bundles only")
    check_open_key(key)


@router.get("/v1/ekv/{namespace}", responses=responses(404, 422))
@router.get("/v1/ekv/{namespace}/", responses=responses(404, 422), include_in_schema=False)
def list_values(
    api: ApiDep,
    namespace: str,
    prefix: Annotated[str, Query(description="Only keys that begin with this")] = "",
    after: Annotated[str, Query(description="Only keys behind this one: `next` of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LIST, description="Most items of one page")] = 100,
) -> ValueList:
    """The keys of a namespace in order, one page at a time."""
    found = api.namespace(namespace).list(prefix, after=after, limit=limit + 1)
    items = [value_view(info) for info in found[:limit]]
    return ValueList(items=items, next=items[-1].key if len(found) > limit else None)


@router.put(
    "/v1/ekv/{namespace}/{key:path}",
    openapi_extra=RAW_BODY,
    response_model=ReceiptView,
    responses=responses(400, 403, 408, 412, 413, 422),
)
def put_value(
    api: ApiDep,
    namespace: str,
    key: str,
    body: ValueUpload,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    content_type: Annotated[str | None, Header()] = None,
) -> Response:
    """Put a value: the body as it is. The answer means that it is durable at this PoP; its ETag is the version."""
    _check_writable(namespace, key)
    if if_none_match is not None and if_none_match.strip() != "*":
        raise BadParameter(f"If-None-Match: {if_none_match[:80]!r} is not `*`")
    handle = api.namespace_for_write(namespace)
    if_version = _expected(handle.head(key), if_match) if if_match is not None else None
    receipt = handle.put(
        key,
        body.data or b"",
        ref=body.ref,
        content_type=stated_type(content_type),
        if_version=if_version,
        if_absent=if_none_match is not None,
    )
    return JSONResponse(receipt.to_json(), headers={"ETag": etag(receipt.version or "")})


@router.get(
    "/v1/ekv/{namespace}/{key:path}",
    response_class=Response,
    responses={**RAW_ANSWER, 304: {"description": "Unchanged"}, **responses(404, 412)},
)
def get_value(
    api: ApiDep,
    namespace: str,
    key: str,
    version: Annotated[str | None, Query(description="Exactly this version")] = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A value as it was put, with its content type. `local` consistency: what this PoP has now.

    A counter that functions increment is a JSON number, the sum of what has arrived here; its ETag is that number.
    """
    handle = api.namespace(namespace)
    check_key(key)
    if (if_match is not None or if_none_match is not None) and (
        early := _not_needed(_head(handle, key), key, if_match, if_none_match)
    ) is not None:
        return early
    value = handle.get(key, version=version)
    if value is None and version is None and (count := _counter(handle, key)) is not None:
        return Response(count.version, headers=_headers(count))
    if value is None:
        raise _absent(namespace, key, version)
    return Response(value.data, headers=_headers(value))


@router.head(
    "/v1/ekv/{namespace}/{key:path}",
    response_class=Response,
    responses={304: {"description": "Unchanged"}, **responses(404, 412)},
)
def head_value(
    api: ApiDep, namespace: str, key: str, if_match: IfMatch = None, if_none_match: IfNoneMatch = None
) -> Response:
    """Size, version and content type of a value."""
    info = _head(api.namespace(namespace), check_key(key))
    if (early := _not_needed(info, key, if_match, if_none_match)) is not None:
        return early
    if info is None:
        raise _absent(namespace, key, None)
    return Response(headers={**_headers(info), "Content-Length": str(info.size)})


@router.delete(
    "/v1/ekv/{namespace}/{key:path}", status_code=204, response_class=Response, responses=responses(403, 404, 412)
)
def delete_value(api: ApiDep, namespace: str, key: str, if_match: IfMatch = None) -> Response:
    """Delete a value everywhere. Deleting what is not there is 404, or 412 with If-Match."""
    _check_writable(namespace, key)
    handle = api.namespace(namespace)
    info = handle.head(key)
    if_version = _expected(info, if_match) if if_match is not None else None
    if info is None:
        raise _absent(namespace, key, None)
    handle.delete(key, if_version=if_version)
    return Response(status_code=204)


def _head(handle: ReplicatedNamespace, key: str) -> ValueInfo | None:
    return handle.head(key) or _counter(handle, key)


def _counter(handle: ReplicatedNamespace, key: str) -> ValueInfo | None:
    """A counter dressed as a value: its version is the number itself."""
    count = handle.count_value(key)
    return None if count is None else ValueInfo(key, str(count), len(str(count)), "application/json", None)


def _expected(info: ValueInfo | None, if_match: str) -> str:
    """The version that If-Match asks for; `*` asks for the one that is there."""
    if if_match.strip() != "*":
        return version_of(if_match, "If-Match")
    if info is None:
        raise VersionMismatch("If-Match: * was asked for and there is no value")
    return info.version


def _not_needed(info: ValueInfo | None, key: str, if_match: str | None, if_none_match: str | None) -> Response | None:
    """304, or None when the value is to be sent. Raises VersionMismatch when If-Match does not hold."""
    if if_match is not None and (info is None or (if_match.strip() != "*" and info.version not in _tags(if_match))):
        raise VersionMismatch(f"{key!r} has version {info.version if info else None!r}, not the one asked for")
    if (
        if_none_match is not None
        and info is not None
        and (if_none_match.strip() == "*" or info.version in _tags(if_none_match))
    ):
        return Response(status_code=304, headers={"ETag": etag(info.version)})
    return None


def _absent(namespace: str, key: str, version: str | None) -> NotFound:
    at = f" in version {version!r}" if version else ""
    return NotFound(f"there is no value {key!r}{at} in namespace {namespace!r} at this PoP")


def _headers(info: ValueInfo) -> dict[str, str]:
    return {"ETag": etag(info.version), "Content-Type": info.content_type or OCTETS, "Cache-Control": "no-cache"}
