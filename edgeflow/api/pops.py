"""`/v1/pops` and `/v1/namespaces`: this PoP as it sees itself and the other members.

What it is: what is recorded of each member, the state in which this PoP sees it, and the link to it.
What it is not: what a member says of others: each PoP is asked itself.
What must stay true: a member that left is not in the list; it can still be asked for by its id.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from edgeflow.api.context import Api, ApiDep
from edgeflow.api.problems import responses
from edgeflow.core.membership import LEFT, Member
from edgeflow.errors import NotFound

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


class AddressView(BaseModel):
    """Where something listens."""

    host: str
    port: int
    tls: bool = False


class LocationView(BaseModel):
    """Where a PoP is, in degrees."""

    lat: float
    lon: float
    name: str = ""


class CapacityView(BaseModel):
    """What instances of a PoP may use together."""

    cpus: float
    memory: int


class MemberView(BaseModel):
    """A member of the cluster: how this PoP sees it, and what is recorded of it (docs/members.md)."""

    state: str = Field(
        description="`joining`, `up`, `suspect`, `down`, `draining` or `left`; `unknown` before this PoP has looked"
    )
    since_ms: int = Field(description="Since when this PoP sees it so; 0 for itself")
    wished: str = Field(description="What an operator wishes of it: `up`, `draining` or `left`")
    url: str = Field(description="Base URL of its HTTP API; empty while it has not said so")
    mqtt: AddressView | None
    link: AddressView | None = Field(description="Where other PoPs dial it")
    location: LocationView | None
    labels: dict[str, str]
    capacity: CapacityView | None
    cost: float
    version: str
    added_ms: int
    joined_ms: int = Field(description="When it had all that the others had; 0: not yet")
    admitted: str = Field(description="Which PoP's token it joined with; empty: it was there from the beginning")


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
    member: MemberView
    link: dict[str, Any] | None = Field(
        description="The link to a peer: state, rtt_ms, rtt_p50_ms, rtt_p99_ms, bandwidth_bytes_s, entries_behind, last_error, ... (docs/links.md)"
    )
    namespaces: list[NamespaceView] | None


class PopList(BaseModel):
    """The PoPs of the cluster, this one first."""

    items: list[PopView]


@router.get("/v1/pops", responses=responses())
def list_pops(api: ApiDep) -> PopList:
    """The cluster as this PoP sees it."""
    return PopList(items=[this_pop(api), *(peer_view(api, peer) for peer in api.members.fresh().others())])


@router.get("/v1/pops/{pop}", responses=responses(404))
def get_pop(api: ApiDep, pop: str) -> PopView:
    """One PoP as this PoP sees it, also one that left."""
    book = api.members.fresh()
    if pop == api.settings.pop:
        return this_pop(api)
    if pop not in book.others() and book.of(pop) is None:
        raise NotFound(f"there is no PoP {pop[:40]!r} in this cluster", hint="`edgeflow pops list` shows them.")
    return peer_view(api, pop)


def peer_view(api: Api, peer: str) -> PopView:
    """Another PoP."""
    link = api.store.local.docs("link_state").get(peer)
    member = member_view(api, peer)
    return PopView(
        id=peer, cluster=api.settings.cluster, mode=None, state=str((link or {}).get("state", "unknown")), self_=False,
        api_url=member.url or None, mqtt_ws_url=None, member=member, link=link, namespaces=None,
    )  # fmt: skip


def member_view(api: Api, pop: str) -> MemberView:
    """A PoP as a member."""
    record = api.members.of(pop) or Member(pop)
    seen = api.store.local.docs("member_state").get(pop) or {}
    document = record.document()
    document["wished"] = document.pop("state")
    document["state"] = LEFT if record.is_left else seen.get("state", "unknown")
    return MemberView.model_validate({**document, "since_ms": seen.get("since_ms", 0)})


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
        api_url=settings.public.api_url, mqtt_ws_url=settings.public.mqtt_ws_url, member=member_view(api, settings.pop), link=None,
        namespaces=namespaces,
    )  # fmt: skip
