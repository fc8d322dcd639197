"""`/v1/joins`: what waits for its other inputs."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import ApiDep
from edgeflow.api.places import elsewhere
from edgeflow.api.problems import responses

router = APIRouter(tags=["joins"])

MAX_SHOWN = 1000


class JoinView(BaseModel):
    """One pending join or window at this PoP."""

    namespace: str
    function: str
    key: str = Field(description="What its events have in common")
    kind: str = Field(description="`all`, `k`, `collect` or `window`")
    have: list[str] = Field(
        description="Names of the inputs that are there; for `collect` and `window` the number of events"
    )
    missing: list[str] = Field(description="Names of the inputs that are not there; empty for `collect` and `window`")
    needed: int = Field(description="How many make an invocation; 0 for a window, which its time ends")
    since_ms: int = Field(description="Time of the first arrival, ms since 1970")
    due_ms: int = Field(description="When it is given up, or a window fires at the latest, ms since 1970")
    window: tuple[int, int] | None = Field(description="Start and end of a window, ms since 1970")


class JoinList(BaseModel):
    """Pending joins, the first to be given up first."""

    items: list[JoinView]


@router.get("/v1/joins", responses=responses(404, 421))
def list_joins(api: ApiDep, namespace: str | None = None, function: str | None = None) -> JoinList:
    """The joins and windows that wait at this PoP, at most 1000. Those of a function that is placed elsewhere wait there: 421 names the PoP."""
    names = [namespace] if namespace is not None else sorted(api.store.namespaces())
    items = [
        JoinView(
            namespace=name, function=join.function, key=join.key, kind=join.kind, have=list(join.have), missing=list(join.missing),
            needed=join.needed, since_ms=join.since_ms, due_ms=join.due_ms, window=join.window,
        )
        for name in names
        for join in api.namespace(name).pending_joins(function)
    ]  # fmt: skip
    if not items and namespace is not None and function is not None:
        error = elsewhere(api, namespace, function, "joins")
        if error is not None:
            raise error
    return JoinList(items=sorted(items, key=lambda item: item.due_ms)[:MAX_SHOWN])
