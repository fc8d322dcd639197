"""`/v1/route` and `/v1/load`: which PoP a client is to use, and how much this one has to do.

What it is: the ranking for clients that do not measure by themselves, and what those that do ask each PoP for. And how clients hear that they
had better go: a header of answers, an event of streams, and the refusal of new streams.
What it is not: a redirect. Nobody is sent anywhere who does not go.
What must stay true: plain clients survive each of these ways; who asks for the load waits for no store.
"""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeflow.api.context import Api, ApiDep
from edgeflow.api.pops import AddressView, LocationView
from edgeflow.api.pressure import Pressure, Target
from edgeflow.api.problems import BadParameter, responses
from edgeflow.api.streams import Frames, frame
from edgeflow.core.membership import Member
from edgeflow.core.nearest import Weights
from edgeflow.core.ranking import Ranked
from edgeflow.errors import Shedding, Unavailable

router = APIRouter(tags=["pops"])

LOAD_HEADER, MOVE_HEADER = "edgeflow-load", "edgeflow-move"
FRESH_S = 5
"""How long an answer of `/v1/route` may be taken from a cache."""


class RouteView(BaseModel):
    """A PoP in its place of the order."""

    pop: str
    self_: bool = Field(serialization_alias="self", description="Whether this is the PoP that answers")
    url: str | None = Field(description="Base URL of its HTTP API; null while it is not known here")
    mqtt: AddressView | None
    location: LocationView | None
    state: str = Field(description="As `/v1/pops` has it")
    eligible: bool = Field(description="Whether it takes new clients")
    score: float = Field(description="a*latency + b*load + c*cost: the smaller the better")
    latency_ms: float = Field(description="An estimate, see `latency_from`")
    latency_from: str = Field(
        description="`distance` (from where the client is), `self`, `link` (from the PoP that answers), `unknown`"
    )
    distance_km: float | None
    load: float | None = Field(description="0 nothing to do, 1 all that it can do, above it refuses; null: not known")
    cost: float
    reasons: list[str] = Field(description="The same in words")


class RouteList(BaseModel):
    """The PoPs, the best first; those that take no clients last."""

    pop: str = Field(description="The PoP that answers")
    weights: dict[str, float] = Field(description="a, b and c of the score: latency, load, cost")
    items: list[RouteView]


class LoadView(BaseModel):
    """What a PoP has to do."""

    pop: str
    load: float = Field(description="0 nothing to do, 1 all that it can do, above it refuses")
    reason: str = Field(description="What decides the load")
    cost: float
    move: str | None = Field(description="URL of the PoP that clients are asked to go to; null: they may stay")


@router.get("/v1/route", responses=responses(422))
def get_route(
    api: ApiDep,
    response: Response,
    lat: Annotated[float | None, Query(ge=-90, le=90, description="Where the client is: latitude in degrees")] = None,
    lon: Annotated[float | None, Query(ge=-180, le=180, description="and longitude")] = None,
    a: Annotated[float, Query(ge=0, description="Weight of each ms of latency")] = Weights().latency,
    b: Annotated[float, Query(ge=0, description="Weight of a load of 1, in ms")] = Weights().load,
    c: Annotated[float, Query(ge=0, description="Weight of a cost of 1, in ms")] = Weights().cost,
) -> RouteList:
    """Rank the PoPs for a client at a place, or for one that is near the PoP that it asks."""
    if (lat is None) != (lon is None):
        raise BadParameter("lat, lon: give both or none")
    weights = Weights(a, b, c)
    ranked = api.pressure.ranking(None if lat is None or lon is None else (lat, lon), weights)
    response.headers["Cache-Control"] = f"private, max-age={FRESH_S}"
    response.headers["Vary"] = "Authorization"
    return RouteList(
        pop=api.settings.pop, weights={"latency": a, "load": b, "cost": c}, items=[_view(api, one) for one in ranked]
    )


@router.get("/v1/load", responses=responses(503))
async def get_load(api: ApiDep, response: Response) -> LoadView:
    """How much this PoP has to do. Clients that measure PoPs ask this, and nothing is waited for: the time it takes is the client's way here."""
    pressure = api.pressure
    if pressure.is_stuck:
        raise Unavailable("the store of this PoP does not answer")
    response.headers["Cache-Control"] = "no-store"
    target = pressure.target
    return LoadView(
        pop=api.settings.pop, load=round(pressure.load, 3), reason=pressure.reason, cost=api.settings.membership.cost,
        move=target.url if target is not None else None,
    )  # fmt: skip


def _view(api: Api, one: Ranked) -> RouteView:
    candidate = one.candidate
    record = api.members.of(candidate.pop) or Member(candidate.pop)
    document = record.document()
    url = api.settings.public.api_url if candidate.is_self else record.url
    return RouteView(
        pop=candidate.pop, self_=candidate.is_self, url=url or None, mqtt=document["mqtt"], location=document["location"], state=candidate.state,
        eligible=one.eligible, score=round(one.score, 2), latency_ms=round(one.latency_ms, 2), latency_from=one.latency_from,
        distance_km=None if one.distance_km is None else round(one.distance_km, 1), load=candidate.load, cost=candidate.cost,
        reasons=list(one.reasons),
    )  # fmt: skip


# -- how clients hear of it ----------------------------------------------------------------------------------------------


class LoadHeaders:
    """Every answer says the load; to some, while clients are sent away, where to go."""

    def __init__(self, app: ASGIApp, pressure: Pressure) -> None:
        self._app = app
        self._pressure = pressure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return

        async def send_with_load(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (LOAD_HEADER.encode(), f"{self._pressure.load:.2f}".encode())]
                target = self._pressure.leaving()
                if target is not None:
                    headers.append((MOVE_HEADER.encode(), target.url.encode()))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_load)


def check_takes_streams(pressure: Pressure) -> None:
    """Raises Shedding when this PoP drowns and another one has room."""
    target = pressure.target
    if target is not None and pressure.refuses_streams:
        raise Shedding(
            f"this PoP has too much to do ({pressure.reason}); PoP {target.pop} has room",
            hint=f"Follow the channel at {target.url}; cursors and durable consumers go on there.",
            details={"pops": [target.pop], "url": target.url},
        )


class Moving:
    """The frames of a stream, and among them, when its client is to go, an event `move`."""

    def __init__(self, stream: Frames, pressure: Pressure) -> None:
        self._stream = stream
        self._pressure = pressure

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames. Between two of them, also heartbeats, is where a client is told."""
        frames = self._stream.frames()
        try:
            async for one in frames:
                yield one
                target = self._pressure.leaving()
                if target is not None:
                    yield move_frame(target, self._pressure.reason)
        finally:
            await frames.aclose()


def move_frame(target: Target, reason: str) -> bytes:
    """Without an id: the cursor stays where it is."""
    return frame("move", {"pop": target.pop, "url": target.url, "reason": reason})
