"""`/v1/blobs`: immutable bodies by digest, as the datarefs in events name them; `/v1/bundles`: archives of function folders."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from edgeflow.api.binding import OCTETS
from edgeflow.api.context import ApiDep
from edgeflow.api.ekv import RAW_ANSWER, RAW_BODY
from edgeflow.api.problems import responses
from edgeflow.api.ranges import parse_range
from edgeflow.api.uploads import STEP_BYTES, BundleUpload, open_body, pieces, sha256_header
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import BadRequest, NotFound
from edgeflow.store.blobs import PREFIX
from edgeflow.store.replica import ReplicatedNamespace

router = APIRouter(tags=["blobs"])

FETCH_S = 10.0
"""How long a request waits for a body that comes from another PoP."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
GZIP_MAGIC = b"\x1f\x8b"


class BadBundle(BadRequest):
    """The bundle is not what its name says."""

    code = "bad-bundle"
    hint = "A bundle is a tar.gz whose SHA-256 is its name; `edgeflow apply` makes and uploads it."


class BundleView(BaseModel):
    """A stored bundle."""

    bundle: str
    size: int


@router.get(
    "/v1/blobs/{namespace}/{digest}",
    response_class=Response,
    responses={**RAW_ANSWER, 206: {"description": "The bytes that Range asked for"}, **responses(400, 404, 416)},
)
@router.head("/v1/blobs/{namespace}/{digest}", response_class=Response, include_in_schema=False)
async def get_blob(
    api: ApiDep,
    request: Request,
    namespace: str,
    digest: str,
    byte_range: Annotated[
        str | None, Header(alias="Range", description="`bytes=<first>-<last>`: only these bytes")
    ] = None,
) -> Response:
    """A body by its digest, `sha256:<64 hex>`. One that is damaged here, or kept at other PoPs, is fetched from them."""
    if not DIGEST.fullmatch(digest):
        raise BadRequest(f"{digest[:80]!r} is not a digest", hint="A digest is sha256: and 64 hex digits.")
    handle = await run_in_threadpool(api.namespace, namespace)
    size = await run_in_threadpool(_size, handle, digest)
    if size is None:
        raise NotFound(f"there is no blob {digest} in namespace {namespace!r} at this PoP")
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        **sha256_header(digest),
    }
    if request.method == "HEAD" and size >= 0:
        return Response(media_type=OCTETS, headers={**headers, "Content-Length": str(size)})
    body, first = await open_body(api, handle, digest, 0, 0, FETCH_S)
    try:
        span = parse_range(byte_range, body.size)
        first = await run_in_threadpool(body.read, span.offset, min(STEP_BYTES, span.length))
    except BaseException:
        body.close()
        raise
    headers["Content-Length"] = str(span.length)
    if request.method == "HEAD":
        body.close()
        return Response(media_type=OCTETS, headers=headers)
    if not span.is_whole:
        headers["Content-Range"] = span.header
    return StreamingResponse(pieces(body, span, first), 200 if span.is_whole else 206, headers, OCTETS)


def _size(handle: ReplicatedNamespace, digest: str) -> int | None:
    """-1: it belongs here and is not readable here right now."""
    size = handle.blob_size(digest)
    return -1 if size is None and handle.knows_blob(digest) else size


@router.put(
    "/v1/bundles/{sha256}",
    status_code=201,
    openapi_extra=RAW_BODY,
    responses={
        200: {"model": BundleView, "description": "It was there already"},
        201: {"model": BundleView},
        **responses(400, 408, 413),
    },
)
def put_bundle(api: ApiDep, sha256: str, upload: BundleUpload) -> Response:
    """Store the archive (tar.gz) of a function folder under its SHA-256; manifests refer to it."""
    if not HEX_DIGEST.fullmatch(sha256):
        raise BadBundle(f"{sha256[:80]!r} is not a SHA-256 in hex")
    if upload.digest != PREFIX + sha256:
        raise BadBundle(f"the body does not have the SHA-256 {sha256}")
    if not upload.head.startswith(GZIP_MAGIC):
        raise BadBundle("the body is not a tar.gz")
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    key = f"bundles/{sha256}"
    is_new = system.head(key) is None
    if is_new:
        system.put(key, upload.data or b"", ref=upload.ref, content_type="application/gzip")
    return JSONResponse(BundleView(bundle=sha256, size=upload.size).model_dump(), 201 if is_new else 200)
