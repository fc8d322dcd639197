"""`/v1/drift`: what was changed at this PoP behind edgeflow's back, and whether it is right again."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import ApiDep
from edgeflow.api.problems import responses
from edgeflow.store.drift import KIND

router = APIRouter(tags=["pops"])


class DriftView(BaseModel):
    """One thing that was not as it is declared."""

    what: str = Field(description="`routes`, `homes`, `quota`, `account` or `instance`")
    name: str = Field(description="Namespace, function or account")
    detail: str
    count: int = Field(description="How often it was found so")
    found_ms: int = Field(
        description="When it was found last, ms since 1970; of one that is not healed, when it was found first"
    )
    healed_ms: int | None = Field(description="When it was right again; null: it is not")


class DriftList(BaseModel):
    """What was found, what is not healed first, then the newest first."""

    items: list[DriftView]


@router.get("/v1/drift", responses=responses())
def list_drift(api: ApiDep) -> DriftList:
    """What this PoP found other than declared, and healed."""
    found = [DriftView(**document) for document in api.store.local.docs(KIND).values()]
    return DriftList(items=sorted(found, key=lambda one: (one.healed_ms is not None, -one.found_ms)))
