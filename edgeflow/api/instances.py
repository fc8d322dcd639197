"""`/v1/instances`: what runs at this PoP, and what it uses."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import ApiDep
from edgeflow.api.problems import responses

router = APIRouter(tags=["functions"])


class InstanceView(BaseModel):
    """One instance of a function at this PoP."""

    namespace: str
    function: str
    revision: str
    instance: str
    state: str = Field(description="`starting` until it has said something")
    in_flight: int
    committed: int
    failed: int
    since_ms: int | None = Field(description="Since when it is in that state, ms since 1970")
    cpu_s: float | None = Field(description="Processor time used so far; null when that is not known now")
    memory_bytes: int | None
    processes: int | None


class InstanceList(BaseModel):
    """The instances of one PoP."""

    pop: str
    items: list[InstanceView]


@router.get("/v1/instances", responses=responses(503))
def list_instances(api: ApiDep, namespace: str | None = None) -> InstanceList:
    """The instances at this PoP, of one or all namespaces, and what each uses now."""
    states = api.store.local.docs("instance_state")
    used = api.usage()
    items = []
    for instance, document in sorted(api.store.local.docs("instance").items()):
        if namespace not in (None, document["namespace"]):
            continue
        state, usage = states.get(instance, {}), used.get(instance)
        items.append(
            InstanceView(
                namespace=document["namespace"], function=document["function"], revision=document["revision"], instance=instance,
                state=state.get("state") or "starting", in_flight=state.get("in_flight") or 0, committed=state.get("committed") or 0,
                failed=state.get("failed") or 0, since_ms=state.get("since_ms"), cpu_s=usage.cpu_s if usage else None,
                memory_bytes=usage.memory_bytes if usage else None, processes=usage.processes if usage else None,
            )
        )  # fmt: skip
    return InstanceList(pop=api.settings.pop, items=items)
