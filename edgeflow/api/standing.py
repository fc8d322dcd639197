"""`/v1/receipts` and `/v1/standing`: whether a PoP has a write, and where a PoP stands in a namespace.

What it is: questions about positions of logs, for whoever holds a receipt and for whoever compares PoPs.
What it is not: a wait for copies (`durability=replicated:<k>`), or the state of links (`/v1/pops`).
What must stay true: "applied" is said of an entry only when everything of its log up to there is merged and readable at that PoP.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from edgeflow.api.consistency import DEFAULT_WAIT_S, ask, stand
from edgeflow.api.context import ApiDep
from edgeflow.api.problems import BadParameter, responses
from edgeflow.api.times import parse_duration_s
from edgeflow.core.cursors import Vector

router = APIRouter(tags=["standing"])

Position = tuple[str, int, int]
"""(origin, epoch, seq)."""


class ReceiptStateView(BaseModel):
    """Whether a PoP has a write."""

    pop: str
    origin: str
    epoch: int
    seq: int
    applied: bool = Field(description="Merged and readable there, and all of that log in front of it")


class StandingView(BaseModel):
    """Where this PoP stands in a namespace."""

    pop: str
    namespace: str
    heads: list[Position] = Field(description="How far each log is here: origin, epoch, seq")
    applied: list[Position] = Field(description="How far each log is merged and readable here")
    passed: list[Position] = Field(description="How far every member has applied each log")
    staleness_ms: int | None = Field(
        description="For how long something may have been written elsewhere that is not readable here; null: not known"
    )
    changes: int = Field(description="Number of the last change here")
    hash: str | None = Field(description="SHA-256 of all that is visible here, when asked for")


@router.get("/v1/receipts/{namespace}/{origin}/{epoch}/{seq}", responses=responses(400, 404, 422))
async def get_receipt(
    api: ApiDep,
    namespace: str,
    origin: str,
    epoch: int,
    seq: int,
    pop: Annotated[str | None, Query(description="Ask this PoP, through this one")] = None,
    wait: Annotated[str | None, Query(description="Longest the other PoP may take to answer; 5 s")] = None,
) -> ReceiptStateView:
    """Whether a write is applied at this PoP, or at another one."""
    if seq < 1 or epoch < 1:
        raise BadParameter("epoch, seq: a receipt of a write has numbers from 1 on")
    at = pop if pop is not None else api.settings.pop
    if at not in await run_in_threadpool(lambda: api.members.fresh().pops()):
        raise BadParameter(f"pop: {at[:40]!r} is no PoP of this cluster")
    await run_in_threadpool(api.namespace, namespace)
    wait_s = DEFAULT_WAIT_S if wait is None else parse_duration_s(wait, "wait")
    question = {"ns": namespace, "pop": at, "origin": origin, "epoch": epoch, "seq": seq}
    has = bool((await ask(api, "has", question, wait_s))["has"])
    return ReceiptStateView(pop=at, origin=origin, epoch=epoch, seq=seq, applied=has)


@router.get("/v1/standing/{namespace}", responses=responses(400, 404))
async def get_standing(
    api: ApiDep,
    namespace: str,
    hash: Annotated[bool, Query(description="Compute the hash: reads everything that is visible here")] = False,
) -> StandingView:
    """Where this PoP stands in a namespace. PoPs that have applied the same logs have the same hash."""

    def read() -> dict[str, Any]:
        handle = api.namespace(namespace)
        return {
            "heads": _positions(dict(handle.logs().items())),
            "applied": _positions(handle.applied()),
            "changes": handle.changes_head(),
            "hash": handle.content_hash() if hash else None,
        }

    found = await run_in_threadpool(read)
    known = await stand(api, namespace)
    return StandingView(
        pop=api.settings.pop,
        namespace=namespace,
        passed=_positions(known.passed),
        staleness_ms=known.staleness_ms,
        **found,
    )


def _positions(vector: Vector | dict[Any, int]) -> list[Position]:
    return sorted((origin, epoch, seq) for (origin, epoch), seq in vector.items())
