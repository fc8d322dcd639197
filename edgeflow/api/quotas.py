"""`/v1/namespaces/{namespace}/quota`: how much a namespace may send to each PoP.

What it is: a value in the system namespace, which every PoP gets and applies to its own part of the namespace.
What must stay true: at the PoP that was asked it holds with the answer.
"""

import json
from typing import Self

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeflow.api.bodies import SmallBody, parse_json
from edgeflow.api.context import Api, ApiDep
from edgeflow.api.problems import Reserved, responses
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.quotas import DEFAULT_BURST_S, MIN_LINK_RATE
from edgeflow.errors import NotFound
from edgeflow.store.client import QUOTA_KEYS
from edgeflow.store.records import Quota

router = APIRouter(tags=["namespaces"])


class QuotaRequest(BaseModel):
    """What is allowed. What is left out or null has no bound."""

    model_config = ConfigDict(extra="forbid", strict=True)

    events_per_s: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    bytes_per_s: float | None = Field(default=None, gt=0, le=1e12, allow_inf_nan=False)
    link_bytes_per_s: float | None = Field(
        default=None,
        ge=MIN_LINK_RATE,
        le=1e12,
        allow_inf_nan=False,
        description="What each PoP sends of it to each other PoP",
    )
    burst_s: float = Field(
        default=DEFAULT_BURST_S,
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
        description="So many seconds' worth may come at once",
    )

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.events_per_s is None and self.bytes_per_s is None and self.link_bytes_per_s is None:
            raise ValueError("give events_per_s, bytes_per_s or link_bytes_per_s; DELETE removes a quota")
        return self


class QuotaView(BaseModel):
    """A quota."""

    namespace: str
    events_per_s: float | None
    bytes_per_s: float | None
    burst_s: float
    link_bytes_per_s: float | None = Field(default=None, description="What each PoP sends of it to each other PoP")


QUOTA_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": QuotaRequest.model_json_schema()}}}
}


@router.put("/v1/namespaces/{namespace}/quota", openapi_extra=QUOTA_BODY, responses=responses(400, 403, 413, 422))
def set_quota(api: ApiDep, namespace: str, body: SmallBody) -> QuotaView:
    """Set the quota of a namespace, here at once and at the other PoPs within seconds. What is over it is refused with `quota-exceeded`."""
    if namespace == SYSTEM_NAMESPACE:
        raise Reserved("the namespace 'system' has no quota")
    asked = parse_json(QuotaRequest, body)
    api.namespace_for_write(namespace)
    api.store.set_quota(namespace, Quota(asked.events_per_s, asked.bytes_per_s, asked.burst_s, asked.link_bytes_per_s))
    return QuotaView(namespace=namespace, **asked.model_dump())


@router.get("/v1/namespaces/{namespace}/quota", responses=responses(404))
def get_quota(api: ApiDep, namespace: str) -> QuotaView:
    """The quota of a namespace; 404 when it has none."""
    api.namespace(namespace)
    quota = load_quota(api, namespace)
    if quota is None:
        raise _none(namespace)
    return quota


@router.delete("/v1/namespaces/{namespace}/quota", status_code=204, response_class=Response, responses=responses(404))
def clear_quota(api: ApiDep, namespace: str) -> Response:
    """Remove the quota of a namespace; 404 when it has none."""
    api.namespace(namespace)
    if load_quota(api, namespace) is None:
        raise _none(namespace)
    api.store.set_quota(namespace, None)
    return Response(status_code=204)


def load_quota(api: Api, namespace: str) -> QuotaView | None:
    """The quota of a namespace, None when it has none."""
    value = api.store.namespace(SYSTEM_NAMESPACE).get(QUOTA_KEYS + namespace)
    return None if value is None else QuotaView(namespace=namespace, **json.loads(value.data))


def _none(namespace: str) -> NotFound:
    return NotFound(
        f"the namespace {namespace!r} has no quota",
        hint="Set one with `edgeflow quota set`; without one nothing is refused.",
    )
