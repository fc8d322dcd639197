"""Request bodies, read with limits.

What it is: the dependencies that hand a complete body to a synchronous endpoint.
What must stay true: a body above its limit is refused by its Content-Length before a byte of it is read, or at the first byte too many when
it has none; all bodies under way together stay below a budget, so that many large uploads cannot exhaust the process; a client that stops
sending does not hold its memory for ever.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from edgeflow.api.context import BodyBudget, get_api
from edgeflow.api.problems import BadParameter, SlowRequest
from edgeflow.errors import BadRequest, TooLarge

PAUSE_S = 30.0
MANIFEST_BYTES = 1024 * 1024
SMALL_BYTES = 64 * 1024
Model = TypeVar("Model", bound=BaseModel)

STRUCTURED_OVERHEAD = 2
"""A structured event's JSON may be this many times as large as the limit of its data: base64 takes 4/3, the attributes the rest."""


def announced_bytes(request: Request, limit_bytes: int) -> int | None:
    """What Content-Length says. Raises TooLarge when that is more than `limit_bytes`."""
    announced = request.headers.get("content-length")
    if announced is None:
        return None
    if not announced.isdigit():
        raise BadRequest("Content-Length is not a number")
    if int(announced) > limit_bytes:
        raise TooLarge(f"the body of {announced} bytes is larger than the limit of {limit_bytes} bytes")
    return int(announced)


@asynccontextmanager
async def read_body(request: Request, limit_bytes: int, budget: BodyBudget) -> AsyncIterator[bytes]:
    """Yield the whole body once, and give its bytes back to the budget when the request is over."""
    announced_bytes(request, limit_bytes)
    held = 0
    chunks: list[bytes] = []
    stream = request.stream().__aiter__()
    try:
        while True:
            try:
                async with asyncio.timeout(PAUSE_S):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise SlowRequest() from None
            if chunk is None:
                break
            if held + len(chunk) > limit_bytes:
                raise TooLarge(f"the body is larger than the limit of {limit_bytes} bytes")
            budget.take(len(chunk))
            held += len(chunk)
            chunks.append(chunk)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        yield body
    finally:
        budget.give_back(held)


async def event_body(request: Request) -> AsyncIterator[bytes]:
    """The body of an event, up to limits.event_bytes (twice that for structured JSON)."""
    api = get_api(request)
    factor = STRUCTURED_OVERHEAD if request.headers.get("content-type", "").startswith("application/cloudevents") else 1
    async with read_body(request, api.settings.limits.event_bytes * factor, api.budget) as body:
        yield body


async def manifest_body(request: Request) -> AsyncIterator[bytes]:
    """The body of a manifest, up to 1 MiB."""
    async with read_body(request, MANIFEST_BYTES, get_api(request).budget) as body:
        yield body


async def small_body(request: Request) -> AsyncIterator[bytes]:
    """The body of a request that describes something, up to 64 KiB."""
    async with read_body(request, SMALL_BYTES, get_api(request).budget) as body:
        yield body


def parse_json(model: type[Model], body: bytes) -> Model:
    """The document in a request body. Raises BadRequest when it is not JSON, BadParameter that names the field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        if fault["type"] == "json_invalid":
            raise BadRequest(f"the body is not JSON: {fault['msg']}") from None
        place = ".".join(str(part) for part in fault["loc"]) or "body"
        raise BadParameter(f"{place}: {fault['msg'].removeprefix('Value error, ')}") from None


EventBody = Annotated[bytes, Depends(event_body)]
ManifestBody = Annotated[bytes, Depends(manifest_body)]
SmallBody = Annotated[bytes, Depends(small_body)]
