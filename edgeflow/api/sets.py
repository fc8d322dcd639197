"""`/v1/sets`: what was applied together from one folder (`edgeflow apply -f <folder>/`).

What it is: the records of sets, values `sets/<name>` of the system namespace, which every PoP gets.
What it is not: the applying, or the removing of what is gone from a folder: whoever applies does both, part by part, and says here what it holds.
What must stay true: a record is replaced only by someone who has seen it: nothing that was applied is forgotten because two applied at once.
"""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from edgeflow.api.bodies import SmallBody, parse_json
from edgeflow.api.context import ApiDep, now_ms
from edgeflow.api.ekv import etag, version_of
from edgeflow.api.problems import responses
from edgeflow.api.revisions import by_of
from edgeflow.core.applysets import SET_KEYS, check_set_name, load_record, parse_record
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import NotFound

router = APIRouter(tags=["sets"])

MAX_SETS = 1000


class PartBody(BaseModel):
    """One thing that a set declares."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["manifest", "policies", "quota"]
    namespace: str


class SetBody(BaseModel):
    """What a set holds from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parts: list[PartBody]
    source: str = Field(default="", max_length=1000, description="The folder, as whoever applies it calls it")


class SetView(BaseModel):
    """A set."""

    name: str
    parts: list[PartBody]
    at_ms: int = Field(description="When it was applied last, ms since 1970")
    by: str = Field(description="Who said to have applied it")
    source: str


class SetList(BaseModel):
    """The sets of the cluster, as this PoP knows them."""

    items: list[SetView]


@router.get("/v1/sets", responses=responses())
def list_sets(api: ApiDep) -> SetList:
    """All sets."""
    system = api.store.namespace(SYSTEM_NAMESPACE)
    found = []
    for info in system.list(SET_KEYS, limit=MAX_SETS):
        value = system.get(info.key)
        if value is not None:
            found.append(_view(value.data))
    return SetList(items=found)


@router.get("/v1/sets/{name}", response_model=SetView, responses=responses(400, 404))
def get_set(api: ApiDep, name: str) -> Response:
    """One set; its ETag is what a change of it names."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(SET_KEYS + check_set_name(name))
    if value is None:
        raise _none(name)
    return JSONResponse(_view(value.data).model_dump(), headers={"ETag": etag(value.version)})


@router.put(
    "/v1/sets/{name}", response_model=SetView, responses=responses(400, 412, 413),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": SetBody.model_json_schema()}}}},
)  # fmt: skip
def put_set(
    api: ApiDep, request: Request, name: str, body: SmallBody, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Say what a set holds: with the ETag of the record that was read in If-Match, or without one when there was none."""
    asked = parse_json(SetBody, body)
    document: dict[str, Any] = {
        "name": name,
        "parts": [part.model_dump() for part in asked.parts],
        "source": asked.source,
    }
    record = parse_record({**document, "at_ms": now_ms(), "by": by_of(request)})
    version = version_of(if_match, "If-Match") if if_match is not None else None
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    data = json.dumps(record.to_json(), separators=(",", ":"), sort_keys=True).encode()
    receipt = system.put(
        SET_KEYS + check_set_name(name), data, content_type="application/json", if_version=version, if_absent=version is None
    )  # fmt: skip
    return JSONResponse(_view(data).model_dump(), headers={"ETag": etag(receipt.version or "")})


@router.delete("/v1/sets/{name}", status_code=204, response_class=Response, responses=responses(400, 404))
def delete_set(api: ApiDep, name: str) -> Response:
    """Forget a set. What it holds stays as it is."""
    system = api.namespace_for_write(SYSTEM_NAMESPACE)
    if system.head(SET_KEYS + check_set_name(name)) is None:
        raise _none(name)
    system.delete(SET_KEYS + name)
    return Response(status_code=204)


def _view(data: bytes) -> SetView:
    return SetView.model_validate(load_record(data).to_json())


def _none(name: str) -> NotFound:
    return NotFound(
        f"there is no set {name!r}", hint="`edgeflow get sets` lists them; `edgeflow apply -f <folder>/` makes one."
    )
