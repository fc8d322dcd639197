"""`/healthz` and `/readyz`: is the process alive, can it do its work. Open to everyone, so they say little."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from edgeflow.api.context import ApiDep
from edgeflow.api.problems import responses
from edgeflow.errors import Unavailable

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """A short answer."""

    status: str = Field(examples=["ok"])
    pop: str


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
async def healthz(api: ApiDep) -> Health:
    """The control process runs and its event loop answers."""
    return Health(status="ok", pop=api.settings.pop)


@router.get("/readyz", responses={200: {"model": Health}, **responses(503)})
@router.head("/readyz", include_in_schema=False)
def readyz(api: ApiDep) -> Response:
    """The store answers and the runner runs: writes will be accepted. Otherwise 503 says what is missing."""
    api.store.ping()
    if not api.runner_alive():
        raise Unavailable("the runner does not run")
    return JSONResponse(Health(status="ready", pop=api.settings.pop).model_dump())
