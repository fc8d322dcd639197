"""The members of a cluster: what is recorded of each, and the states in which the others see it.

What it is: the member record (`members/<pop>` in the system namespace), the table of states, and the rule that says which one holds.
What it is not: who hears whom (edgeflow.cluster.membership), or the storing of records (edgeflow.store.members).
What must stay true: a state follows from the record and from silence alone; silence is measured by whoever listens, never by a clock of another PoP;
what led from one state to the next is a row of the table; docs/members.md is drawn from it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from edgeflow.errors import BadMember

JOINING = "joining"
UP = "up"
SUSPECT = "suspect"
DOWN = "down"
DRAINING = "draining"
LEFT = "left"

STATES: dict[str, str] = {
    JOINING: "heard, and new: it has not got yet all that the others have",
    UP: "heard, and takes part",
    SUSPECT: "not heard for `membership.suspect_ms`, neither directly nor through a third PoP",
    DOWN: "not heard for `membership.down_ms`: what it owned may be taken over",
    DRAINING: "heard; an operator wishes that it takes no new clients and functions",
    LEFT: "gone for good: nothing waits for it any more",
}

WISHES = (UP, DRAINING, LEFT)
"""What an operator may wish of a member."""


@dataclass(frozen=True, slots=True)
class Step:
    """One way from a state to another; `before` None is the beginning."""

    before: str | None
    after: str
    cause: str


STEPS: tuple[Step, ...] = (
    Step(None, SUSPECT, "known, not heard yet"),
    Step(SUSPECT, JOINING, "heard, it is new"),
    Step(SUSPECT, UP, "heard"),
    Step(SUSPECT, DRAINING, "heard, it is drained"),
    Step(SUSPECT, DOWN, "silent for too long"),
    Step(JOINING, UP, "it has what the others have"),
    Step(JOINING, DRAINING, "drain"),
    Step(JOINING, SUSPECT, "silent"),
    Step(UP, DRAINING, "drain"),
    Step(UP, SUSPECT, "silent"),
    Step(DRAINING, UP, "undrain"),
    Step(DRAINING, JOINING, "undrain, it is new"),
    Step(DRAINING, SUSPECT, "silent"),
    Step(DOWN, SUSPECT, "a third PoP heard it a while ago"),
    Step(DOWN, JOINING, "heard, it is new"),
    Step(DOWN, UP, "heard again"),
    Step(DOWN, DRAINING, "heard again, it is drained"),
    Step(JOINING, LEFT, "leave"),
    Step(UP, LEFT, "leave"),
    Step(DRAINING, LEFT, "leave"),
    Step(SUSPECT, LEFT, "leave"),
    Step(DOWN, LEFT, "leave"),
    Step(LEFT, SUSPECT, "joined again, as a new PoP of that id"),
)

_ALLOWED = {(step.before, step.after) for step in STEPS}


def state_of(wished: str, joined: bool, silent_ms: float | None, *, suspect_ms: int, down_ms: int) -> str:
    """The state of a member after `silent_ms` without a word. None: never heard by this process, which has listened for less than `down_ms`."""
    if wished == LEFT:
        return LEFT
    if silent_ms is None:
        return SUSPECT
    if silent_ms >= down_ms:
        return DOWN
    if silent_ms >= suspect_ms:
        return SUSPECT
    if wished == DRAINING:
        return DRAINING
    return UP if joined else JOINING


def path(before: str | None, after: str) -> list[str]:
    """The states that lead from `before` to `after`, `after` included: by one row of the table, else by way of SUSPECT."""
    if before == after:
        return []
    return [after] if (before, after) in _ALLOWED else [SUSPECT, after]


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens."""

    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Location:
    """Where a PoP is, in degrees."""

    lat: float
    lon: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What instances of a PoP may use together: as its settings say, else the machine's."""

    cpus: float
    memory: int


@dataclass(frozen=True, slots=True)
class Member:
    """What is recorded of one PoP. It says all of itself but `state`, `added_ms`, `admitted` and `certificate_ms`."""

    pop: str
    state: str = UP
    """What is wished of it: up, draining or left."""
    url: str = ""
    """Base URL of its HTTP API."""
    mqtt: Address | None = None
    link: Address | None = None
    """Where other PoPs dial it."""
    location: Location | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Capacity | None = None
    cost: float = 0.0
    """What its use costs, beside that of others: weighs when clients choose."""
    version: str = ""
    added_ms: int = 0
    """When it was added, by the clock of whoever added it: a PoP that is added again is a new one."""
    joined_ms: int = 0
    """When it had all that the others had; 0 = not yet."""
    admitted: str = ""
    """Whose token it joined with; empty = it was there from the beginning."""
    certificate_ms: int = 0
    """From when on the certificate with which it was admitted is valid; with an older one nobody is this PoP any more. 0 = any."""

    @property
    def is_left(self) -> bool:
        return self.state == LEFT

    def said_again(self, before: "Member") -> "Member":
        """This word of a PoP about itself, with what others decide kept from the record before."""
        return replace(
            self, state=before.state, added_ms=before.added_ms, joined_ms=before.joined_ms, admitted=before.admitted,
            certificate_ms=before.certificate_ms,
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def dump(self) -> bytes:
        """As it is stored; the same for the same record."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":")).encode()


def load_member(pop: str, data: bytes) -> Member:
    """The stored record of a PoP; fields that this version does not know are ignored, those that are not there have their defaults. Raises BadMember."""
    try:
        document = json.loads(data)
        if document["pop"] != pop or document.get("state", UP) not in WISHES:
            raise ValueError(f"it is of {document['pop']!r}, wished {document.get('state')!r}")
        known: dict[str, Any] = {name: document[name] for name in _PLAIN if name in document}
        for name, kind in _PLAIN.items():
            if name in known:
                known[name] = kind(known[name])
        known["labels"] = {str(name): str(value) for name, value in (document.get("labels") or {}).items()}
        for name, make in _PARTS.items():
            if document.get(name) is not None:
                known[name] = make(document[name])
        return Member(**known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadMember(f"the record of PoP {pop!r} cannot be read: {error!r}") from None


_PLAIN: dict[str, type] = {
    "pop": str, "state": str, "url": str, "cost": float, "version": str, "added_ms": int, "joined_ms": int, "admitted": str, "certificate_ms": int,
}  # fmt: skip
_PARTS: dict[str, Any] = {
    "mqtt": lambda part: Address(str(part["host"]), int(part["port"]), bool(part.get("tls"))),
    "link": lambda part: Address(str(part["host"]), int(part["port"]), bool(part.get("tls"))),
    "location": lambda part: Location(float(part["lat"]), float(part["lon"]), str(part.get("name", ""))),
    "capacity": lambda part: Capacity(float(part["cpus"]), int(part["memory"])),
}
assert {*_PLAIN, *_PARTS, "labels"} == {one.name for one in fields(Member)}


def mermaid() -> str:
    """The states and steps as a Mermaid state diagram."""
    return "\n".join(
        ["stateDiagram-v2", *(f"    {step.before or '[*]'} --> {step.after}: {step.cause}" for step in STEPS)]
    )
