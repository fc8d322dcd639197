"""`/v1/images`: container images of the cluster, uploaded to any PoP as archives and found at every other.

What it is: the way in (an archive of `docker save`), what is there, and the loading of one here ahead of its use.
What it is not: the parsing of archives (runner/archives.py), or the keeping of images (runner/library.py).
What must stay true: an upload that is refused leaves nothing behind; an image that a function is made from is not removed; no request holds more
than a few MiB of an image in memory.
"""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.bodies import announced_bytes
from edgeflow.api.context import Api, ApiDep
from edgeflow.api.ekv import RAW_BODY
from edgeflow.api.problems import Busy, responses
from edgeflow.api.uploads import Upload, receive
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import BadRequest, EdgeflowError, NotFound, StoreFull, Unavailable
from edgeflow.runner.archives import ID, BytesSource, short_name
from edgeflow.runner.library import ImageLibrary, StoredImage
from edgeflow.runner.references import references

router = APIRouter(tags=["images"])

AT_ONCE = 2
"""Uploads and loads at a time: each keeps a thread and a processor busy."""
NO_ENGINE = "stored, not loaded: this PoP runs functions as processes and has no container engine"


class ImageInUse(EdgeflowError):
    """A function is made from the image."""

    code = "image-in-use"
    status = 409
    hint = "Remove the functions that the message names first, or apply them with another image."


class ImageView(BaseModel):
    """An image of the cluster."""

    id: str = Field(description="`sha256:<hex>` of its configuration; what `docker images --no-trunc` shows")
    names: list[str] = Field(description="Names that mean this image now: it was pushed last under them")
    size: int = Field(description="Bytes of its layers, uncompressed")
    stored: int = Field(description="Bytes of its pieces, as they are kept and sent")
    here: int = Field(description="Bytes of them that are at this PoP")
    layers: int
    pushed_ms: int
    pop: str = Field(description="Where it was pushed")
    used_by: list[str] = Field(description="Functions that are made from it now, `<namespace>/<function>`")
    loaded: bool | None = Field(description="Whether this PoP's engine has it; null: there is no engine here")
    note: str | None = None


class ImageList(BaseModel):
    """The images of the cluster."""

    items: list[ImageView]


def _library(api: Api) -> ImageLibrary:
    return ImageLibrary(api.store, api.settings.pop, api.settings.limits.image_bytes)


@router.post(
    "/v1/images",
    status_code=201,
    response_model=ImageView,
    openapi_extra=RAW_BODY,
    responses={200: {"model": ImageView, "description": "It was there already"}, **responses(400, 408, 413, 503, 507)},
)
async def push_image(
    api: ApiDep,
    request: Request,
    name: Annotated[list[str] | None, Query(description="A name for it, beside those in the archive")] = None,
) -> Response:
    """Store the image of an archive, as `docker save` writes it (also an OCI layout), for all PoPs."""
    names = [short_name(one) for one in name or ()]
    limit = api.settings.limits.image_bytes
    async with _turn(api):
        await run_in_threadpool(_need_room, api, announced_bytes(request, limit) or 0)
        handle = await run_in_threadpool(api.namespace_for_write, SYSTEM_NAMESPACE)
        async with receive(request, handle, limit, api.budget) as upload:
            image, is_new = await run_in_threadpool(_take, api, upload, names)
        view = await run_in_threadpool(lambda: _views(api, [image])[0])
    return JSONResponse(view.model_dump(), 201 if is_new else 200)


@router.get("/v1/images", responses=responses(503))
def list_images(api: ApiDep) -> ImageList:
    """The images of the cluster, as far as they are known here; the one that was pushed last first."""
    return ImageList(items=_views(api, _library(api).all()))


@router.get("/v1/images/{id}", responses=responses(400, 404))
def get_image(api: ApiDep, id: str) -> ImageView:
    """One image by its id: `sha256:<hex>`, or the hex alone."""
    return _views(api, [_image(api, id)])[0]


@router.post("/v1/images/{id}/load", responses=responses(400, 404, 503))
async def load_image(api: ApiDep, id: str) -> ImageView:
    """Have the image here before a function needs it: fetch the layers that are missing, and load it into this PoP's engine if there is one."""

    def load() -> ImageView:
        image = _image(api, id)
        if api.images is None:
            _library(api).fetch(image)
        else:
            api.images.load(image)
        return _views(api, [image])[0]

    async with _turn(api):
        return await run_in_threadpool(load)


@router.delete("/v1/images/{id}", status_code=204, response_class=Response, responses=responses(400, 404, 409))
def remove_image(api: ApiDep, id: str) -> Response:
    """Forget an image that no function is made from now; older revisions that were cannot be gone back to then. Its pieces are removed later."""
    image = _image(api, id)
    users = _views(api, [image])[0].used_by
    if users:
        raise ImageInUse(f"image {image.id[7:19]} is used by {', '.join(users[:5])}")
    _library(api).remove(image.id)
    return Response(status_code=204)


@asynccontextmanager
async def _turn(api: Api) -> AsyncIterator[None]:
    if api.images_under_way >= AT_ONCE:
        raise Busy("too many images are pushed to or loaded at this PoP right now")
    api.images_under_way += 1
    try:
        yield
    finally:
        api.images_under_way -= 1


def _need_room(api: Api, announced: int) -> None:
    """The archive and its pieces are on the disk at the same time. Raises StoreFull."""
    api.settings.state_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(api.settings.state_dir).free
    if free - 2 * announced < api.settings.limits.disk_free_bytes:
        raise StoreFull(
            f"the archive of {announced} bytes needs twice that on the disk of {api.settings.pop}, which has {free} bytes free",
            hint="Free disk at that PoP, or push to another one.",
        )


def _take(api: Api, upload: Upload, names: list[str]) -> tuple[StoredImage, bool]:
    library = _library(api)
    if upload.ref is None:
        return library.take(BytesSource(upload.data or b""), names)
    body = api.store.namespace(SYSTEM_NAMESPACE).open_blob(upload.ref.digest)
    if body is None:
        raise BadRequest("the upload is not there any more", hint="Send it again.")
    try:
        return library.take(body, names)
    finally:
        body.close()


def _image(api: Api, id: str) -> StoredImage:
    full = id if id.startswith("sha256:") else f"sha256:{id}"
    if not ID.fullmatch(full):
        raise BadRequest(
            f"{id[:80]!r} is not an image's id", hint="An id is sha256: and 64 hex digits; `GET /v1/images` lists them."
        )
    image = _library(api).get(full)
    if image is None:
        raise NotFound(f"there is no image {full[7:19]} here", hint="`edgeflow images list` shows what is there.")
    return image


def _views(api: Api, images: list[StoredImage]) -> list[ImageView]:
    library = _library(api)
    newest: dict[str, str] = {}
    for one in library.all():
        for name in one.names:
            newest.setdefault(name, one.id)
    used = references(api.store, kept=False).images
    views = []
    for image in images:
        names = [name for name in image.names if newest.get(name, image.id) == image.id]
        stored = sum(piece.size for piece in image.pieces())
        users = set().union(*(used.get(key, set()) for key in (image.id, *names)))
        about: dict[str, Any] = {"loaded": None, "note": NO_ENGINE}
        if api.images is not None:
            try:
                about = {"loaded": api.images.has(image.id), "note": None}
            except Unavailable as error:
                about["note"] = error.message
        views.append(
            ImageView(
                id=image.id, names=names, size=image.size, stored=stored, layers=len(image.layers), pushed_ms=image.pushed_ms, pop=image.pop,
                here=stored - sum(piece.size for piece in library.absent(image)), used_by=sorted(users), **about,
            )
        )  # fmt: skip
    return views
