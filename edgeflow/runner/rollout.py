"""How a new revision of a function takes over at one PoP, or does not: a pure function of how it stands, what is so, and the time.

        apply                ready                    deadline
  live --------> rolling -----------> watching -----------------> live
                    | deadline            | CRASHES failures
                    +--------+------------+
                             v
                        rolled-back --- the same again is asked for, or another: rolling --->

What it is not: where instances come from (plan.py), or what is done about routes and work (the reconciler).
What must stay true: some revision serves at all times; what is rolled back stays so until somebody asks again; the first revision serves at once.
"""

from dataclasses import dataclass, replace
from typing import Literal

CRASHES = 3
"""Failures in a row, while it is watched, that a revision is rolled back for."""

Phase = Literal["live", "rolling", "watching", "rolled-back"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """How one function stands at this PoP."""

    live: str
    """The revision that serves: new events go to it."""
    target: str
    """The revision that the manifest wants."""
    phase: Phase = "live"
    before: str = ""
    """Watching: what served before."""
    since_ms: int = 0
    """When the phase began."""
    clock_ms: int = 0
    """Rolling: since when instances could be started, or were seen not to; 0 while the first build goes on."""
    reason: str = ""
    last_log_lines: tuple[str, ...] = ()
    asked: str = ""
    """Rolled back: the newest record of the function's history at that time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so with the target."""

    startable: bool
    """Its instances can be started, or its build has failed."""
    ready: bool
    """All that are wanted are ready."""
    failures: int = 0
    reason: str = ""
    last_log_lines: tuple[str, ...] = ()
    asked: str = ""
    """The newest record of the function's history."""


def step(known: Rollout | None, target: str, facts: Facts, deadline_ms: int, now_ms: int) -> Rollout:
    """How it stands from now on."""
    if known is None:
        return Rollout(target, target, since_ms=now_ms)
    asked_again = known.phase == "rolled-back" and facts.asked > known.asked
    if target != known.target or asked_again:
        if target == known.live:
            return Rollout(target, target, since_ms=now_ms)
        return Rollout(known.live, target, "rolling", since_ms=now_ms)
    if known.phase == "rolling":
        return _roll(known, facts, deadline_ms, now_ms)
    if known.phase == "watching":
        if facts.failures >= CRASHES:
            return _back(known, known.before, f"failed {facts.failures} times in a row", facts, now_ms)
        if now_ms - known.since_ms >= deadline_ms:
            return Rollout(known.live, target, since_ms=now_ms)
    return known


def _roll(known: Rollout, facts: Facts, deadline_ms: int, now_ms: int) -> Rollout:
    if facts.ready:
        return Rollout(known.target, known.target, "watching", before=known.live, since_ms=now_ms)
    clock_ms = known.clock_ms or (now_ms if facts.startable else 0)
    if clock_ms and now_ms - clock_ms >= deadline_ms:
        return _back(known, known.live, f"was not ready within {deadline_ms / 1000:g} s", facts, now_ms)
    return known if clock_ms == known.clock_ms else replace(known, clock_ms=clock_ms)


def _back(known: Rollout, live: str, how: str, facts: Facts, now_ms: int) -> Rollout:
    why = f": {facts.reason}" if facts.reason else ""
    return Rollout(
        live, known.target, "rolled-back", since_ms=now_ms, asked=facts.asked, last_log_lines=facts.last_log_lines,
        reason=f"revision {known.target} {how}{why}; revision {live} serves",
    )  # fmt: skip
