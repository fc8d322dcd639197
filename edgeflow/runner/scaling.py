"""How many instances of a function work at one PoP: from what arrives, how long it takes, and what waits.

What it is: a pure function. The mean wait in a queue with c servers, arrivals and service times at random (M/M/c) is Erlang's C formula: A. K. Erlang,
"Solution of some problems in the theory of probabilities of significance in automatic telephone exchanges", Elektroteknikeren 13 (1917); as here in
L. Kleinrock, Queueing Systems I (1975), section 3.5.
What it is not: starting, stopping or parking (plan.py), or whether there is room (room.py).
What must stay true: between `least` and `most`; more at once, fewer only when fewer have been enough for a while; none only after `idle` without work.
"""

import math
from dataclasses import dataclass

WAIT_S = 0.1
"""Mean wait that is accepted before an invocation begins."""
DRAIN_S = 5.0
"""Time in which what waits already should be done."""
HOLD_MS = 30_000
"""How long fewer must have been enough before there are fewer; `idle`, when that is shorter."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a function has to do at this PoP."""

    arrivals_per_s: float = 0.0
    service_s: float = 0.0
    """Mean time an instance needs for one invocation; 0 while it is not known."""
    waiting: int = 0
    """Invocations that could begin now."""
    running: int = 0
    last_ms: int = 0
    """When something arrived last; 0 while that is not known."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the manifest allows."""

    least: int
    most: int
    idle_ms: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """How many there are to be, and since when fewer would do."""

    active: int
    enough_since_ms: int
    """Last time that all of them were needed."""


def erlang_c(servers: int, offered: float) -> float:
    """The part of arrivals that has to wait, with `offered` = arrivals x service time below `servers`."""
    # Erlang B by its recursion, which does not overflow, then C from it.
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return servers * blocked / (servers - offered * (1 - blocked))


def mean_wait_s(servers: int, load: Load) -> float:
    """Mean time from ready to begun; infinite when more arrives than they can do."""
    offered = load.arrivals_per_s * load.service_s
    if offered >= servers:
        return math.inf
    return erlang_c(servers, offered) * load.service_s / (servers - offered) if offered else 0.0


def needed(load: Load, active: int, most: int) -> int:
    """The least number, but one, whose mean wait is accepted and that does what waits in time."""
    if not load.service_s:
        # Nothing has ended yet: twice as many each time, but no more than there is to do.
        return max(1, min(most, load.waiting + load.running, 2 * max(1, active)))
    offered = load.arrivals_per_s * load.service_s
    backlog = max(0.0, load.waiting - active)
    count = max(1, math.ceil(offered + backlog * load.service_s / DRAIN_S))
    while count < most and mean_wait_s(count, load) > WAIT_S:
        count += 1
    return min(count, most)


def scale(known: Scaled | None, load: Load, limits: Scale, active: int, now_ms: int) -> Scaled:
    """How many from now on. `known` None: this process has just begun, and `active` are at work."""
    before = known or Scaled(min(max(active, limits.least), limits.most), now_ms)
    has_work = load.waiting + load.running > 0
    is_quiet = not has_work and (not load.last_ms or now_ms - load.last_ms >= limits.idle_ms)
    want = limits.least if is_quiet else max(limits.least, needed(load, before.active, limits.most))
    if want >= before.active:
        return Scaled(want, now_ms)
    hold_ms = min(limits.idle_ms, HOLD_MS)
    if want == 0:
        # The time without work is known, or is counted from here.
        hold_ms = 0 if load.last_ms else limits.idle_ms
    return Scaled(want, now_ms) if now_ms - before.enough_since_ms >= hold_ms else before
