"""Values on their way in and out over HTTP, in constant memory.

What it is: the dependency that takes the body of a request into the store piece by piece, and the opening of a body that may have to be fetched.
What it is not: bodies that a synchronous endpoint needs whole (bodies.py), or what refers to what was uploaded (ekv.py, blobs.py).
What must stay true: of an upload that ends early, is too long, or is not what its digest says, nothing stays; at most a few MiB of each are in
memory; a byte is sent only after its piece was checked.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from edgeflow.api.bodies import PAUSE_S, announced_bytes
from edgeflow.api.context import Api, BodyBudget, get_api
from edgeflow.api.problems import SlowRequest
from edgeflow.api.ranges import Span
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.core.events import BlobRef
from edgeflow.errors import BadRequest, BodyMissing, CorruptBlob, EdgeflowError, TooLarge
from edgeflow.store.blobs import digest_of
from edgeflow.store.bodies import BodyReader, BodyWriter
from edgeflow.store.replica import ReplicatedNamespace

MEMORY_BYTES = 4 * 1024 * 1024
"""A body up to this size is handed on as bytes: it is stored together with what refers to it."""
STEP_BYTES = 1024 * 1024
"""Written at a time, while the next is received."""
_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([^:]*):", re.IGNORECASE)


class IncompleteBody(BadRequest):
    """The body ended before it was complete; nothing of it was stored."""

    code = "incomplete-body"
    hint = "Send it again, all of it: Content-Length says how much there is."


class DigestMismatch(BadRequest):
    """The body does not have the digest that the request says; nothing of it was stored."""

    code = "digest-mismatch"
    hint = "Repr-Digest is `sha-256=:<base64>:`, over the body as it is sent. If it is right, the body was changed on the way: send it again."


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete body: `data`, or `ref` when it is in the store already. What nothing refers to is collected after a while."""

    size: int
    head: bytes
    """How it begins."""
    data: bytes | None = None
    ref: BlobRef | None = None

    @property
    def digest(self) -> str:
        """Its digest."""
        return self.ref.digest if self.ref is not None else digest_of(self.data or b"")


@asynccontextmanager
async def receive(
    request: Request, handle: ReplicatedNamespace, limit_bytes: int, budget: BodyBudget
) -> AsyncIterator[Upload]:
    """The body of the request; what of it is in memory counts until the end. Raises TooLarge, IncompleteBody, DigestMismatch, SlowRequest, Busy, StoreFull."""
    announced = announced_bytes(request, limit_bytes)
    expected = stated_digest(request)
    spool = _Spool(handle.blob_writer(limit_bytes), budget)
    stream = request.stream().__aiter__()
    try:
        try:
            while (chunk := await _next(stream)) is not None:
                if spool.size + len(chunk) > limit_bytes:
                    raise TooLarge(f"the body is larger than the limit of {limit_bytes} bytes")
                await spool.add(chunk)
        except ClientDisconnect:
            raise IncompleteBody(f"the connection ended after {spool.size} bytes") from None
        if announced is not None and spool.size != announced:
            raise IncompleteBody(f"{spool.size} bytes came, Content-Length said {announced}")
        yield await spool.finish(expected)
    finally:
        await spool.close()


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    try:
        async with asyncio.timeout(PAUSE_S):
            return await anext(stream, None)
    except TimeoutError:
        raise SlowRequest() from None


def stated_digest(request: Request) -> str | None:
    """The SHA-256 that Repr-Digest or Content-Digest (RFC 9530) says, None without one. Raises DigestMismatch when it cannot be read."""
    for name in ("repr-digest", "content-digest"):
        header = request.headers.get(name, "")
        found = _SHA256.search(header)
        if found is None:
            continue  # of another algorithm: not looked at, as the RFC allows
        try:
            raw = base64.b64decode(found[1], validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != 32:
            raise DigestMismatch(f"{name}: {header[:120]!r} has no SHA-256 in base64")
        return "sha256:" + raw.hex()
    return None


class _Spool:
    """What came of one body so far: held in memory up to MEMORY_BYTES, from there on written behind while more comes."""

    def __init__(self, writer: BodyWriter, budget: BodyBudget) -> None:
        self._writer = writer
        self._budget = budget
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._taken_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._is_streamed = False
        self._head = b""
        self.size = 0

    async def add(self, chunk: bytes) -> None:
        self._budget.take(len(chunk))
        self._taken_bytes += len(chunk)
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        self.size += len(chunk)
        if len(self._head) < 16:
            self._head += chunk[:16]
        if self.size > MEMORY_BYTES:
            self._is_streamed = True
        if self._is_streamed and self._held_bytes >= STEP_BYTES:
            await self._settle()
            self._write()

    async def finish(self, expected: str | None) -> Upload:
        if not self._is_streamed:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            if expected is not None and (digest := await run_in_threadpool(digest_of, data)) != expected:
                raise _mismatch(expected, digest)
            return Upload(self.size, self._head, data=data)
        await self._settle()
        self._write()
        await self._settle()
        try:
            ref = await run_in_threadpool(self._writer.finish, expected)
        except CorruptBlob:
            raise _mismatch(expected, "another") from None
        return Upload(self.size, self._head, ref=ref)

    async def close(self) -> None:
        if self._writing is not None:
            # Also when this request is cancelled: the thread that writes has to be done before the file goes.
            await asyncio.wait([self._writing])
        if self._is_streamed:
            self._writer.abort()
        self._budget.give_back(self._taken_bytes)
        self._held.clear()

    def _write(self) -> None:
        chunks, self._held = self._held, []
        held_bytes, self._held_bytes = self._held_bytes, 0

        def write() -> None:
            for chunk in chunks:
                self._writer.write(chunk)

        async def run() -> None:
            await run_in_threadpool(write)
            self._taken_bytes -= held_bytes
            self._budget.give_back(held_bytes)

        self._writing = asyncio.create_task(run())

    async def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing


def _mismatch(expected: str | None, found: str) -> DigestMismatch:
    return DigestMismatch(f"the request says {expected}, the body has {found}")


async def value_upload(request: Request) -> AsyncIterator[Upload]:
    """The body of a value of the namespace in the path, up to limits.value_bytes."""
    api = get_api(request)
    name = request.path_params["namespace"]
    check_namespace(name)
    async with receive(request, api.store.namespace(name), api.settings.limits.value_bytes, api.budget) as upload:
        yield upload


async def bundle_upload(request: Request) -> AsyncIterator[Upload]:
    """The body of a bundle, up to limits.value_bytes."""
    api = get_api(request)
    handle = api.store.namespace(SYSTEM_NAMESPACE)
    async with receive(request, handle, api.settings.limits.value_bytes, api.budget) as upload:
        yield upload


ValueUpload = Annotated[Upload, Depends(value_upload)]
BundleUpload = Annotated[Upload, Depends(bundle_upload)]


async def open_body(
    api: Api, handle: ReplicatedNamespace, digest: str, offset: int, length: int, wait_s: float
) -> tuple[BodyReader, bytes]:
    """A body, and its first bytes from `offset`, at most STEP_BYTES of `length`.

    One that is kept at other PoPs, or was found damaged here, is fetched within `wait_s`. Raises BodyMissing, CorruptBlob.
    """
    clock = asyncio.get_running_loop().time
    deadline_s = clock() + wait_s
    fetched = False
    while True:
        trouble: EdgeflowError = BodyMissing(f"the body {digest} is not at {api.settings.pop}")
        try:
            found = await run_in_threadpool(_begin, handle, digest, offset, length)
            if found is not None:
                if found[0].is_cached:
                    await run_in_threadpool(partial(handle.note_read, digest, fetched=fetched))
                return found
        except CorruptBlob as error:
            trouble = error
        left_s = deadline_s - clock()
        if left_s <= 0:
            raise trouble
        try:
            question = {"ns": handle.name, "digest": digest}
            await asyncio.wrap_future(api.store.mailbox.submit("fetch", question, left_s))
            fetched = True
        except EdgeflowError as error:
            raise trouble from error


def _begin(handle: ReplicatedNamespace, digest: str, offset: int, length: int) -> tuple[BodyReader, bytes] | None:
    body = handle.open_blob(digest)
    if body is None:
        return None
    try:
        return body, body.read(offset, min(length, STEP_BYTES))
    except BaseException:
        body.close()
        raise


def pieces(body: BodyReader, span: Span, first: bytes) -> Iterator[bytes]:
    """The bytes of `span`, of which `first` are read already; each piece is read when the one before it is on its way."""
    try:
        yield first
        for offset in range(span.offset + len(first), span.offset + span.length, STEP_BYTES):
            yield body.read(offset, min(STEP_BYTES, span.offset + span.length - offset))
    finally:
        body.close()


def sha256_header(digest: str) -> dict[str, str]:
    """Repr-Digest of a body that is known by its digest."""
    raw = bytes.fromhex(digest.removeprefix("sha256:"))
    return {"Repr-Digest": f"sha-256=:{base64.b64encode(raw).decode()}:"}
