"""`/v1/joins`: what waits for its other inputs."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import ApiDep
from edgeflow.api.problems import responses

router = APIRouter(tags=["joins"])

MAX_SHOWN = 1000


class JoinView(BaseModel):
    """One pending join at this PoP."""

    namespace: str
    function: str
    key: str = Field(description="What its events have in common")
    kind: str = Field(description="`all` or `collect`")
    have: list[str] = Field(description="Names of the inputs that are there; for `collect` their number")
    needed: int = Field(description="How many make an invocation")
    since_ms: int = Field(description="Time of the first arrival, ms since 1970")
    due_ms: int = Field(description="When it is given up, ms since 1970")


class JoinList(BaseModel):
    """Pending joins, the first to be given up first."""

    items: list[JoinView]


@router.get("/v1/joins", responses=responses(404))
def list_joins(api: ApiDep, namespace: str | None = None, function: str | None = None) -> JoinList:
    """The joins that wait at this PoP, at most 1000."""
    names = [namespace] if namespace is not None else sorted(api.store.namespaces())
    items = [
        JoinView(
            namespace=name, function=join.function, key=join.key, kind=join.kind, have=list(join.have), needed=join.needed,
            since_ms=join.since_ms, due_ms=join.due_ms,
        )
        for name in names
        for join in api.namespace(name).pending_joins(function)
    ]  # fmt: skip
    return JoinList(items=sorted(items, key=lambda item: item.due_ms)[:MAX_SHOWN])
