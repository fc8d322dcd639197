"""The life of an invocation: its states and what leads from one to the next.

What it is: the table that the store's scripts follow, the documentation is drawn from (docs/invocations.md), and a test compares with what the
scripts really do.
What it is not: the moves themselves: each is one step inside a script, together with its effects.
What must stay true: what has ended stays as it ended; every end is counted, and but for a shadow's is in the log.
"""

from dataclasses import dataclass

WAITING = "turn"
READY = "ready"
CLAIMED = "claimed"
DELAYED = "delayed"
COMMITTED = "committed"
DEAD = "dead"
EXPIRED = "expired"
DROPPED = "dropped"
SUPERSEDED = "superseded"

STATES: dict[str, str] = {
    WAITING: "waits for an earlier invocation of its key",
    READY: "may be claimed",
    CLAIMED: "an instance works on it; its attempt number is the fence",
    DELAYED: "an attempt has failed, the next one has a time",
    COMMITTED: "its outputs, values, state and increments are one log entry (a shadow's are kept beside its replay)",
    DEAD: "given up, with reason and inputs, as a dead letter",
    EXPIRED: "its channel's deadline had passed before it was claimed",
    SUPERSEDED: "another PoP, of those where its function is placed, has ended it: that result is the one",
    DROPPED: "its channel says drop-oldest or keep-latest: its inbox was full, or a newer one of its subject came",
}

FINAL = frozenset({COMMITTED, DEAD, EXPIRED, DROPPED, SUPERSEDED})
"""States that have no next one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One way from a state to another; `before` None is the beginning."""

    before: str | None
    after: str
    cause: str


STEPS: tuple[Step, ...] = (
    Step(None, READY, "accepted"),
    Step(None, WAITING, "accepted, its key is busy"),
    Step(None, DROPPED, "accepted, no room can be made"),
    Step(WAITING, READY, "the one before it has ended"),
    Step(WAITING, DROPPED, "a newer one of its subject takes its place"),
    Step(READY, CLAIMED, "claim: attempt + 1"),
    Step(READY, EXPIRED, "claim after its deadline"),
    Step(READY, DROPPED, "makes room for a newer one, or one of its subject takes its place"),
    Step(CLAIMED, COMMITTED, "commit of the current attempt"),
    Step(CLAIMED, DELAYED, "failure, timeout or crash: try again later"),
    Step(CLAIMED, DEAD, "failure: attempts used up, or not to be tried again"),
    Step(CLAIMED, READY, "given back: not begun, or not known whom to blame"),
    Step(DELAYED, READY, "its time has come"),
    Step(DELAYED, DROPPED, "a newer one of its subject takes its place"),
    *(Step(before, SUPERSEDED, "another PoP has ended it") for before in (WAITING, READY, CLAIMED, DELAYED)),
)


def leads_to(before: str | None, after: str) -> bool:
    """Whether some number of steps, at least one, leads from `before` to `after`."""
    reached: set[str] = set()
    todo: list[str | None] = [before]
    while todo:
        state = todo.pop()
        fresh = {step.after for step in STEPS if step.before == state} - reached
        reached |= fresh
        todo += fresh
    return after in reached


def mermaid() -> str:
    """The states and steps as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for step in STEPS:
        lines.append(f"    {step.before or '[*]'} --> {step.after}: {step.cause.replace(':', ',')}")
    lines += [f"    {state} --> [*]" for state in STATES if state in FINAL]
    return "\n".join(lines)
