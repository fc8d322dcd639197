"""`/v1/dead-letters`: invocations given up, with reason and inputs."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from edgeflow.api.context import Api, ApiDep
from edgeflow.api.problems import responses
from edgeflow.api.views import InputView, input_view
from edgeflow.errors import NotFound
from edgeflow.store.records import DeadLetter

router = APIRouter(tags=["dead letters"])


class DeadLetterView(BaseModel):
    """One invocation that was given up at this PoP."""

    namespace: str
    id: str = Field(description="Id of the invocation")
    function: str
    revision: str
    reason: str = Field(description="Stable, for programs")
    detail: str = Field(description="What the last attempt said, or what was missing")
    at_ms: int = Field(description="When it was given up, ms since 1970")
    attempts: int
    inputs: list[InputView]


class DeadLetterList(BaseModel):
    """One page of dead letters, oldest first."""

    items: list[DeadLetterView]
    next: str | None = Field(description="`after` of the next page, only with `namespace`; null on the last one")


@router.get("/v1/dead-letters", responses=responses(404, 422))
def list_dead_letters(
    api: ApiDep,
    namespace: str | None = None,
    after: Annotated[str, Query(description="`next` of the page before; needs `namespace`")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DeadLetterList:
    """The dead letters of one namespace page by page, or the first `limit` of all."""
    names = [namespace] if namespace is not None else sorted(api.store.namespaces())
    found = [
        (name, letter)
        for name in names
        for letter in api.namespace(name).dead_letters(after=after if namespace else "", limit=limit + 1)
    ]
    found.sort(key=lambda pair: pair[1].at_ms)
    items = [_view(api, name, letter) for name, letter in found[:limit]]
    return DeadLetterList(items=items, next=items[-1].id if namespace and len(found) > limit else None)


@router.get("/v1/dead-letters/{namespace}/{id}", responses=responses(404))
def get_dead_letter(api: ApiDep, namespace: str, id: str) -> DeadLetterView:
    """One dead letter with its inputs."""
    letter = api.namespace(namespace).dead_letter(id)
    if letter is None:
        raise NotFound(
            f"there is no dead letter {id!r} in namespace {namespace!r} at this PoP",
            hint="`edgeflow dlq list` lists them.",
        )
    return _view(api, namespace, letter)


def _view(api: Api, namespace: str, letter: DeadLetter) -> DeadLetterView:
    blobs_url = api.settings.public.api_url.rstrip("/") + "/v1/blobs"
    return DeadLetterView(
        namespace=namespace, id=letter.id, function=letter.function, revision=letter.revision, reason=letter.reason, detail=letter.detail,
        at_ms=letter.at_ms, attempts=letter.attempts, inputs=[input_view(item, blobs_url) for item in letter.inputs],
    )  # fmt: skip
