"""`/v1/blobs`: immutable bodies by digest, as the datarefs in events name them; `/v1/bundles`: archives of function folders."""

import hashlib
import re
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from edgeflow.api.binding import OCTETS
from edgeflow.api.bodies import ValueBody
from edgeflow.api.context import ApiDep
from edgeflow.api.ekv import RAW_ANSWER, RAW_BODY
from edgeflow.api.problems import responses
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import BadRequest, NotFound
from edgeflow.store.namespace import Namespace

router = APIRouter(tags=["blobs"])

CHUNK_BYTES = 1024 * 1024
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


@router.get("/v1/blobs/{namespace}/{digest}", response_class=Response, responses={**RAW_ANSWER, **responses(400, 404)})
@router.head("/v1/blobs/{namespace}/{digest}", response_class=Response, include_in_schema=False)
def get_blob(api: ApiDep, request: Request, namespace: str, digest: str) -> Response:
    """A body by its digest, `sha256:<64 hex>`."""
    if not DIGEST.fullmatch(digest):
        raise BadRequest(f"{digest[:80]!r} is not a digest", hint="A digest is sha256: and 64 hex digits.")
    handle = api.namespace(namespace)
    size_bytes = handle.blob_size(digest)
    if size_bytes is None:
        raise NotFound(f"there is no blob {digest} in namespace {namespace!r} at this PoP")
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Length": str(size_bytes),
    }
    if request.method == "HEAD":
        return Response(media_type=OCTETS, headers=headers)
    return StreamingResponse(_chunks(handle, digest, size_bytes), media_type=OCTETS, headers=headers)


def _chunks(handle: Namespace, digest: str, size_bytes: int) -> Iterator[bytes]:
    """The body in pieces; each is read when the one before it is on its way."""
    for offset in range(0, size_bytes, CHUNK_BYTES):
        yield handle.read_blob_range(digest, offset, min(CHUNK_BYTES, size_bytes - offset))


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
def put_bundle(api: ApiDep, sha256: str, body: ValueBody) -> Response:
    """Store the archive (tar.gz) of a function folder under its SHA-256; manifests refer to it."""
    if not HEX_DIGEST.fullmatch(sha256):
        raise BadBundle(f"{sha256[:80]!r} is not a SHA-256 in hex")
    if hashlib.sha256(body).hexdigest() != sha256:
        raise BadBundle(f"the body does not have the SHA-256 {sha256}")
    if not body.startswith(GZIP_MAGIC):
        raise BadBundle("the body is not a tar.gz")
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    key = f"bundles/{sha256}"
    is_new = system.head(key) is None
    if is_new:
        system.put(key, body, content_type="application/gzip")
    return JSONResponse(BundleView(bundle=sha256, size=len(body)).model_dump(), 201 if is_new else 200)
