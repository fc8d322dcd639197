"""Where an operation on values is carried out: here, or at the home of its keys.

What it is: one way for every door: try here; when the store says that the home is elsewhere, ask that PoP through the data process.
What it is not: the operations (edgeflow.store.decided), or the hand-over of a home (edgeflow.api.policies).
What must stay true: what is sent to a home carries the id of the request, so that asking twice writes once; a refusal of the home is passed on by
name; nothing falls back to a weaker way.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from starlette.concurrency import run_in_threadpool

from edgeflow.api.consistency import Reading, Writing, ask
from edgeflow.api.context import Api
from edgeflow.core.events import BlobRef
from edgeflow.errors import HomeElsewhere, HomeUnreachable, StaleHome, Unavailable
from edgeflow.store.decided import INLINE_BYTES, Body, execute, pack_write
from edgeflow.store.records import Put, Receipt, Write
from edgeflow.store.replica import ReplicatedNamespace

AGAIN_S = 0.1
"""How soon a home that is being handed over is asked again."""


async def carry_out(api: Api, namespace: str, batch: Sequence[Write], how: Writing) -> Receipt:
    """Do the writes at the PoP that decides about their keys. Raises what the store refuses them with, NoHome, HomeUnreachable."""

    def here() -> Body:
        handle = api.namespace_for_write(namespace)
        if how.is_strong:
            handle = handle.as_home(handle.home_for([write.key for write in batch]).term)
        return {"receipt": handle.write(batch, id=how.id).to_json()}

    def packed() -> Body:
        handle = api.store.namespace(namespace)
        small = [_small(handle, write) for write in batch]
        needs = [write.ref.digest for write in small if isinstance(write, Put) and write.ref is not None]
        writes = [pack_write(write) for write in small]
        return {"op": "write", "writes": writes, "id": how.id, "strong": how.is_strong, "needs": needs}

    return receipt_of((await _decided(api, namespace, here, packed, how.wait_s))["receipt"])


async def read_at_home(api: Api, namespace: str, key: str, how: Reading) -> Body:
    """What the home of `key` says now: see `store.decided.read_value`. Raises NoHome, HomeUnreachable."""
    question = {"op": "read", "key": key}
    return await _decided(
        api, namespace, lambda: execute(api.namespace(namespace), "read", question), lambda: question, how.wait_s
    )


async def _decided(
    api: Api, namespace: str, here: Callable[[], Body], packed: Callable[[], Body], wait_s: float
) -> Body:
    clock = asyncio.get_running_loop().time
    deadline_s = clock() + wait_s
    question: Body | None = None
    while True:
        try:
            return await run_in_threadpool(here)
        except (HomeElsewhere, StaleHome) as error:
            elsewhere = error
        home = str(elsewhere.details.get("home", ""))
        if home and home not in (api.settings.pop, "-"):
            if question is None:
                question = await run_in_threadpool(packed)
            try:
                return await ask(
                    api, "home", {**question, "pop": home, "ns": namespace}, max(0.1, deadline_s - clock())
                )
            except (HomeElsewhere, StaleHome) as error:
                elsewhere = error
            except Unavailable as error:
                if error.code != Unavailable.code:
                    raise
                raise HomeUnreachable(f"PoP {home!r}, the home, cannot be reached: {error.message}") from None
        # It is being handed over: the one has stopped, the other has not begun.
        if clock() + AGAIN_S > deadline_s:
            raise elsewhere
        await asyncio.sleep(AGAIN_S)


def _small(handle: ReplicatedNamespace, write: Write) -> Write:
    """A write that fits into a question: a large body stays here, and the home fetches it by its digest."""
    if isinstance(write, Put) and write.data is not None and len(write.data) > INLINE_BYTES // 8:
        ref: BlobRef = handle.put_blob(write.data)
        return replace(write, data=None, ref=ref)
    return write


def receipt_of(document: Body) -> Receipt:
    """Inverse of `Receipt.to_json`."""
    return Receipt(
        document["class"], document["origin"], document["epoch"], document["seq"], document["id"], document["version"],
        bool(document.get("duplicate")),
    )  # fmt: skip
