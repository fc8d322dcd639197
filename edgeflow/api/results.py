"""The result of an invocation, and how a request waits for it.

What it is not: the waiting itself (edgeflow.api.waits), or what the result says (`ReplicatedNamespace.result`).
What must stay true: outputs are readable here when they are told.
"""

from edgeflow.api.waits import WaitHub
from edgeflow.store.client import Store
from edgeflow.store.records import Result
from edgeflow.store.replica import ReplicatedNamespace


async def wait_result(hub: WaitHub, store: Store, namespace: str, id: str, timeout_s: float) -> Result | None:
    """The result of invocation `id`, None when it has none within `timeout_s`. Raises Busy, Unavailable when this process ends."""
    return await hub.until(store, namespace, lambda handle: find_result(handle, id), f"the result of {id}", timeout_s)


def find_result(handle: ReplicatedNamespace, id: str) -> Result | None:
    """The result of an invocation, None while it has none, or while bodies of its outputs are still on their way to this PoP."""
    result = handle.result(id)
    if result is None:
        return None
    refs = [event.ref for event in result.events if event.ref is not None]
    return result if all(handle.blob_size(ref.digest) is not None for ref in refs) else None
