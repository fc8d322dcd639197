"""Whether the invariants held: what the ledgers, the values and the clients say, side by side.

What it is: one list of problems for each invariant, over a namespace in which nothing is under way any more.
What it is not: the equations inside one PoP (ledger.py).
What must stay true: an input that was acknowledged is owed one result at every PoP; one that was not may have one or none, and never two.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeflow.lab.ledger import Ledger, exactly_once
from edgeflow.lab.load import Watcher

CONSERVATION, ONE_RESULT, DATA_FIRST, NO_GAP, CONVERGENCE = INVARIANTS = (
    "conservation", "one visible result", "data before notification", "no silent gap", "convergence",
)  # fmt: skip
MOST = 10
"""Problems that are named, of each kind."""


@dataclass(frozen=True)
class Seen:
    """What one PoP shows."""

    ledger: Ledger
    effects: list[str]
    """Subjects of the values that results have left."""
    tally: int
    content_hash: str
    watcher: Watcher


@dataclass
class Verdict:
    """What is wrong, by invariant; and the inputs that are lost or doubled anywhere."""

    problems: dict[str, list[str]] = field(default_factory=lambda: {one: [] for one in INVARIANTS})
    lost: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        return not any(self.problems.values())

    def add(self, invariant: str, texts: Iterable[str]) -> None:
        self.problems[invariant] += list(texts)[:MOST]


def judge(
    seen: Mapping[str, Seen], namespace: str, *, acked: set[str], begun: set[str], subscriptions: Mapping[str, Any]
) -> Verdict:
    """The verdict on what all PoPs show. `acked`, `begun`: subjects of inputs. `subscriptions`: by PoP, for the ledger."""
    verdict = Verdict()
    results: set[str] = set()
    superseded = sum(one.ledger.counters.get("results_superseded", 0) for one in seen.values())
    for pop, one in seen.items():
        found = one.ledger.problems(subscriptions.get(pop), superseded)
        gaps = [text for text in found if " gap" in text or " follows " in text]
        verdict.add(CONSERVATION, (text for text in found if text not in gaps))
        verdict.add(NO_GAP, [*gaps, *(f"{pop}: a client was told of {gap}" for gap in one.watcher.gaps)])
        verdict.add(DATA_FIRST, (f"{pop}: {subject} was shown too early" for subject in one.watcher.unreadable))
        if one.watcher.failure is not None:
            verdict.add(ONE_RESULT, [f"{pop}: a client's stream ended: {one.watcher.failure}"])
        released = one.ledger.subjects(f"{namespace}/done")
        results |= set(released)
        for what, shown in (("released", released), ("as values", one.effects), ("to a client", one.watcher.subjects)):
            _compare(verdict, f"{pop}: results {what}", acked, begun, shown)
        if len(set(one.watcher.ids)) != len(one.watcher.ids):
            verdict.add(ONE_RESULT, [f"{pop}: a client was shown an event id twice"])
        dead = one.ledger.waiting.get("dead", 0)
        if dead:
            verdict.add(ONE_RESULT, [f"{pop}: {dead} dead letters"])
    for pop, one in seen.items():
        if one.tally != len(results):
            verdict.add(ONE_RESULT, [f"{pop}: a counter says {one.tally}, results are {len(results)}"])
    first, *others = seen
    for pop in others:
        if seen[pop].ledger.logs != seen[first].ledger.logs:
            verdict.add(CONVERGENCE, [f"{first} and {pop} hold different logs"])
        if seen[pop].content_hash != seen[first].content_hash:
            verdict.add(CONVERGENCE, [f"{first} and {pop} show different values"])
    return verdict


def _compare(verdict: Verdict, what: str, acked: set[str], begun: set[str], shown: list[str]) -> None:
    compared = exactly_once(acked | (begun & set(shown)), shown)
    verdict.lost |= set(compared.lost)
    verdict.doubled |= set(compared.doubled)
    if not compared.ok:
        strange = f", {len(compared.strange)} of nothing" if compared.strange else ""
        verdict.add(ONE_RESULT, [f"{what}: {compared}{strange}"])
