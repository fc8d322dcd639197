"""Which PoPs suit a client best, as the PoP that it asks sees it: for clients that do not measure by themselves.

What it is: a latency for each PoP (from the distance to where the client is, else from the link to that PoP), a score by the weights of
edgeflow.core.nearest, and the reasons in words.
What it is not: a measurement: a distance is a lower bound, and a link says nothing about the client's own way.
What must stay true: a PoP that is not up is never in front of one that is; the order is the same for the same input; what is not known is said.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import asin, cos, radians, sin, sqrt

from edgeflow.core.nearest import MOVE_MS, Weights

EARTH_KM = 6371.0
KM_PER_MS = 100.0
"""How far a round trip reaches in 1 ms: light in glass goes 200 km, there and back."""
DETOUR = 1.5
"""How much longer cables are than the shortest way."""
UNKNOWN_MS = 50.0
"""Taken for the latency of a PoP of which nothing is known."""
SERVING = ("up",)
"""States in which a PoP takes new clients."""

Place = tuple[float, float]
"""(latitude, longitude) in degrees."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of a PoP."""

    pop: str
    state: str
    is_self: bool = False
    location: Place | None = None
    rtt_ms: float | None = None
    """Of the link from the PoP that answers."""
    load: float | None = None
    cost: float = 0.0
    sheds: bool = False
    """Whether it sends clients away."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A PoP in its place of the order."""

    candidate: Candidate
    eligible: bool
    score: float
    latency_ms: float
    latency_from: str
    """"distance", "self", "link" or "unknown"."""
    distance_km: float | None
    reasons: Sequence[str] = field(default_factory=tuple)


def distance_km(one: Place, other: Place) -> float:
    """The shortest way over the ground (haversine)."""
    lat_1, lon_1, lat_2, lon_2 = (radians(degrees) for degrees in (*one, *other))
    half = sin((lat_2 - lat_1) / 2) ** 2 + cos(lat_1) * cos(lat_2) * sin((lon_2 - lon_1) / 2) ** 2
    return 2 * EARTH_KM * asin(min(1.0, sqrt(half)))


def rank(candidates: Iterable[Candidate], client: Place | None, weights: Weights) -> list[Ranked]:
    """The PoPs, the best first; those that take no clients last."""
    ranked = [_judge(one, client, weights) for one in candidates]
    return sorted(ranked, key=lambda one: (not one.eligible, one.score, not one.candidate.is_self, one.candidate.pop))


def _judge(one: Candidate, client: Place | None, weights: Weights) -> Ranked:
    distance = distance_km(client, one.location) if client is not None and one.location is not None else None
    if distance is not None:
        latency_ms, source = distance * DETOUR / KM_PER_MS, "distance"
        said = f"{distance:.0f} km away: about {latency_ms:.0f} ms"
    elif one.is_self:
        latency_ms, source, said = 0.0, "self", "the PoP that was asked"
    elif one.rtt_ms is not None:
        latency_ms, source = one.rtt_ms, "link"
        said = f"{one.rtt_ms:.1f} ms from the PoP that was asked"
    else:
        latency_ms, source, said = UNKNOWN_MS, "unknown", "its latency is not known"
    reasons = [said]
    if client is not None and one.location is None:
        reasons.append("its location is not known")
    reasons.append("its load is not known" if one.load is None else f"load {one.load:.2f}")
    if one.cost:
        reasons.append(f"cost {one.cost:g}")
    if one.sheds:
        reasons.append("it has too much to do and sends clients away")
    eligible = one.state in SERVING
    if not eligible:
        reasons.append(f"it is {one.state}")
    score = weights.score(latency_ms, one.load or 0.0, one.cost) + (MOVE_MS if one.sheds else 0.0)
    return Ranked(one, eligible, score, latency_ms, source, distance, tuple(reasons))
