"""`/v1/pops` and `/v1/namespaces`: this PoP as it sees itself and its peers."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import Api, ApiDep
from edgeflow.api.problems import responses

router = APIRouter(tags=["pops"])


class NamespaceView(BaseModel):
    """One namespace at this PoP."""

    namespace: str
    counters: dict[str, int] = Field(description="See docs/metrics.md")
    release_head: int = Field(description="Position of the newest released event")
    gateway: dict[str, Any] | None = Field(description="State of its MQTT session: connected, since_ms")
    lag: dict[str, Any] | None = Field(
        default=None,
        description="Where it stands beside the other PoPs: staleness_ms, parked, peers, ... (docs/links.md)",
    )


class NamespaceList(BaseModel):
    """All namespaces of this PoP."""

    items: list[NamespaceView]


class PopView(BaseModel):
    """One PoP: itself in full, a peer as far as the link knows."""

    id: str
    cluster: str
    mode: str | None = Field(description="`embedded` or `docker`; null for a peer")
    state: str = Field(
        description="`ready` or `degraded`; for a peer the state of the link: `up`, `connecting`, `down`, `unknown`"
    )
    reason: str | None = Field(default=None, description="Why the runner of this PoP cannot do its work just now")
    self_: bool = Field(serialization_alias="self", description="Whether this is the PoP that answers")
    api_url: str | None
    mqtt_ws_url: str | None
    link: dict[str, Any] | None = Field(
        description="The link to a peer: state, rtt_ms, entries_behind, bytes_behind, staleness_ms, last_error"
    )
    namespaces: list[NamespaceView] | None


class PopList(BaseModel):
    """The PoPs of the cluster, this one first."""

    items: list[PopView]


@router.get("/v1/pops", responses=responses())
def list_pops(api: ApiDep) -> PopList:
    """The cluster as this PoP sees it."""
    links = api.store.local.docs("link_state")
    peers = [
        PopView(
            id=peer, cluster=api.settings.cluster, mode=None, state=str(links.get(peer, {}).get("state", "unknown")), self_=False,
            api_url=None, mqtt_ws_url=None, link=links.get(peer), namespaces=None,
        )
        for peer in sorted({*api.settings.link.peers, *links})
    ]  # fmt: skip
    return PopList(items=[this_pop(api), *peers])


@router.get("/v1/namespaces", responses=responses())
def list_namespaces(api: ApiDep) -> NamespaceList:
    """The namespaces of this PoP with their counters."""
    return NamespaceList(items=namespace_views(api))


def namespace_views(api: Api) -> list[NamespaceView]:
    """The views of all namespaces."""
    gateways = api.store.local.docs("gateway_state")
    lags = api.store.local.docs("lag")
    views = []
    for name in sorted(api.store.namespaces()):
        handle = api.store.namespace(name)
        views.append(
            NamespaceView(
                namespace=name,
                counters=handle.counters(),
                release_head=handle.release_head(),
                gateway=gateways.get(name),
                lag=lags.get(name),
            )
        )
    return views


def this_pop(api: Api) -> PopView:
    """The PoP that answers. `degraded` = some gateway session is not connected, or the runner does not run or cannot do its work."""
    settings = api.settings
    namespaces = namespace_views(api)
    trouble = api.runner_error()
    is_whole = (
        api.runner_alive()
        and not trouble
        and all(view.gateway is None or view.gateway.get("connected", False) for view in namespaces)
    )
    return PopView(
        id=settings.pop, cluster=settings.cluster, mode=settings.mode, state="ready" if is_whole else "degraded", reason=trouble or None, self_=True,
        api_url=settings.public.api_url, mqtt_ws_url=settings.public.mqtt_ws_url, link=None, namespaces=namespaces,
    )  # fmt: skip
