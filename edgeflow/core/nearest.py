"""Which PoP a client uses: what it measured of each, and when it goes to another one.

What it is: latency and jitter as moving averages, a circuit breaker for each PoP, the score argmin(a*latency + b*load + c*cost), and the rule for moving,
all as functions of what was measured and the time.
What it is not: the measuring (edgeflow.sdk.finder), or the ranking for somebody else (edgeflow.core.ranking).
What must stay true: a PoP that fails is left at once, one that is merely worse only when another is clearly better for a while, so that clients do not
swing; as long as any PoP is usable one is chosen; times are the caller's own monotonic clock, chance is an argument.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

State = Literal["closed", "open", "half-open"]
Happening = Literal["answered", "failed", "waited"]

BREAKER: dict[tuple[State, Happening], State] = {
    ("closed", "answered"): "closed",
    ("closed", "failed"): "open",
    ("closed", "waited"): "closed",
    ("open", "answered"): "closed",
    ("open", "failed"): "open",
    ("open", "waited"): "half-open",
    ("half-open", "answered"): "closed",
    ("half-open", "failed"): "open",
    ("half-open", "waited"): "half-open",
}
"""The circuit breaker. `failed` is FAILURES in a row while closed, one otherwise; `waited`: its pause is over, one measurement is let through."""

FAILURES = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
SMOOTH = 0.3
"""Share of the newest measurement in the averages."""
BETTER = 0.7
BETTER_MS = 5.0
"""Another PoP is clearly better if its score is below this share of the current one's, and so much (ms) below it."""
PATIENCE_S = 1.0
"""For how long another PoP must be clearly better before a client moves; up to twice that, so that not all move at once."""
MOVE_S = 30.0
"""How long a PoP that told its clients to move is taken for a worse one."""
MOVE_MS = 1000.0
"""By how much (ms)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a PoP's properties are worth, in ms of latency: a of each ms, b of a load of 1 (all that it can do), c of a cost of 1."""

    latency: float = 1.0
    load: float = 50.0
    cost: float = 10.0

    def score(self, latency_ms: float, load: float, cost: float) -> float:
        """The smaller the better."""
        return self.latency * latency_ms + self.load * load + self.cost * cost


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a client knows of one PoP."""

    latency_ms: float | None = None
    jitter_ms: float = 0.0
    load: float = 0.0
    cost: float = 0.0
    breaker: State = "closed"
    failures: int = 0
    """In a row."""
    pause_s: float = 0.0
    paused_until_s: float = 0.0
    moves_until_s: float = 0.0
    refused: str = ""
    """Why the PoP does not take this client at all; empty while it does."""

    def measured(self, latency_ms: float, load: float | None = None, cost: float | None = None) -> "Estimate":
        """After an answer that took `latency_ms`."""
        before = self.latency_ms
        return replace(
            self.answered(),
            latency_ms=latency_ms if before is None else before + SMOOTH * (latency_ms - before),
            jitter_ms=self.jitter_ms + SMOOTH * (abs(latency_ms - (latency_ms if before is None else before)) - self.jitter_ms),
            load=self.load if load is None else load,
            cost=self.cost if cost is None else cost,
        )  # fmt: skip

    def answered(self) -> "Estimate":
        """After any answer."""
        return replace(self, breaker=BREAKER[self.breaker, "answered"], failures=0, pause_s=0.0, refused="")

    def failed(self, now_s: float, chance: float, waited_ms: float | None = None) -> "Estimate":
        """After no answer, or one that says that it cannot work. `chance`, 0 to 1, spreads the pauses of many clients.

        `waited_ms`: nothing came for so long. If all that is wrong is that everything has become slow, the next measurement has to wait for longer.
        """
        if waited_ms is not None:
            before = waited_ms if self.latency_ms is None else self.latency_ms
            known = replace(self, latency_ms=before + SMOOTH * (2 * waited_ms - before))
            return known.failed(now_s, chance)
        failures = self.failures + 1
        if self.breaker == "open" or (self.breaker == "closed" and failures < FAILURES):
            return replace(self, failures=failures)
        pause_s = min(LONGEST_PAUSE_S, self.pause_s * 2) if self.pause_s else FIRST_PAUSE_S
        return replace(
            self, breaker=BREAKER[self.breaker, "failed"], failures=failures, pause_s=pause_s,
            paused_until_s=now_s + pause_s * (0.75 + 0.5 * chance),
        )  # fmt: skip

    def waited(self, now_s: float) -> "Estimate":
        """As time passes."""
        if self.breaker == "open" and now_s >= self.paused_until_s:
            return replace(self, breaker=BREAKER[self.breaker, "waited"])
        return self

    def patience_s(self, least_s: float, most_s: float) -> float:
        """How long a measurement may take before it has failed."""
        if self.latency_ms is None:
            return most_s
        return min(most_s, max(least_s, 4 * (self.latency_ms + self.jitter_ms) / 1000))

    @property
    def is_usable(self) -> bool:
        """Whether calls go there."""
        return self.breaker == "closed" and not self.refused and self.latency_ms is not None


class Choice:
    """One client's choice among PoPs, by index."""

    def __init__(self, pops: int, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self.estimates = [Estimate() for _ in range(pops)]
        self.current = 0
        self._better: tuple[int, float] | None = None

    def score(self, pop: int, now_s: float) -> float:
        """Of a PoP that was measured."""
        known = self.estimates[pop]
        worse = MOVE_MS if now_s < known.moves_until_s else 0.0
        return self.weights.score(known.latency_ms or 0.0, known.load, known.cost) + worse

    def order(self, now_s: float) -> list[int]:
        """All PoPs that take this client: the current one if it can be used, the other usable ones by score, then the rest, those first that have failed less."""
        usable = sorted((pop for pop in self._usable() if pop != self.current), key=lambda pop: self.score(pop, now_s))
        first = [self.current] if self.estimates[self.current].is_usable else []
        rest = [pop for pop in range(len(self.estimates)) if pop not in (*first, *usable)]
        rest = [pop for pop in rest if not self.estimates[pop].refused]
        return [*first, *usable, *sorted(rest, key=lambda pop: self.estimates[pop].failures)]

    def measured(self, pop: int, latency_ms: float, load: float | None = None, cost: float | None = None) -> None:
        """It answered a measurement."""
        self.estimates[pop] = self.estimates[pop].measured(latency_ms, load, cost)

    def answered(self, pop: int) -> None:
        """It answered a call."""
        self.estimates[pop] = self.estimates[pop].answered()

    def failed(self, pop: int, now_s: float, chance: float, waited_ms: float | None = None) -> None:
        """It did not answer, or cannot work."""
        self.estimates[pop] = self.estimates[pop].failed(now_s, chance, waited_ms)

    def refused(self, pop: int, why: str) -> None:
        """It does not take this client."""
        self.estimates[pop] = replace(self.estimates[pop], refused=why)

    def told_to_move(self, pop: int, now_s: float) -> None:
        """It asked its clients to go elsewhere."""
        self.estimates[pop] = replace(self.estimates[pop], moves_until_s=now_s + MOVE_S)

    def look(self, now_s: float, chance: float) -> int:
        """The PoP to use from now on. `chance`, 0 to 1, spreads the moves of many clients."""
        self.estimates = [known.waited(now_s) for known in self.estimates]
        usable = self._usable()
        if not usable:
            return self.current
        best = min(usable, key=lambda pop: self.score(pop, now_s))
        if not self.estimates[self.current].is_usable:
            self._go(best)
        elif best != self.current and self._is_clearly_better(best, now_s):
            since = self._better[1] if self._better is not None and self._better[0] == best else now_s
            self._better = (best, since)
            if now_s - since >= PATIENCE_S * (1 + chance):
                self._go(best)
        else:
            self._better = None
        return self.current

    def begin(self, now_s: float) -> int:
        """The first choice: simply the best that was measured."""
        usable: Iterable[int] = self._usable()
        self._go(min(usable, key=lambda pop: self.score(pop, now_s), default=self.current))
        return self.current

    def _usable(self) -> list[int]:
        return [pop for pop, known in enumerate(self.estimates) if known.is_usable]

    def _is_clearly_better(self, pop: int, now_s: float) -> bool:
        here = self.score(self.current, now_s)
        return self.score(pop, now_s) < min(here * BETTER, here - BETTER_MS)

    def _go(self, pop: int) -> None:
        self.current = pop
        self._better = None
