"""The choice of a PoP, over a simulated network with a clock of its own: every run of a seed is the same."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from edgeflow.core.nearest import BREAKER, FIRST_PAUSE_S, LONGEST_PAUSE_S, Choice, Estimate, Weights

EVERY_S, OTHERS_S, TIMEOUT_S = 0.7, 2.0, 0.4


@dataclass
class Site:
    """A PoP of the simulated network."""

    latency_ms: float
    load: float = 0.0
    cost: float = 0.0
    jitter_ms: float = 0.0
    is_up: bool = True


@dataclass
class Walker:
    """One client: measures as edgeflow.sdk.finder does, in simulated time."""

    sites: list[Site]
    seed: int
    weights: Weights = field(default_factory=Weights)
    now_s: float = 0.0
    moves: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.choice = Choice(len(self.sites), self.weights)
        self.due = [0.0] * len(self.sites)
        for pop in range(len(self.sites)):
            self.measure(pop)
        self.choice.begin(self.now_s)

    def measure(self, pop: int) -> None:
        site = self.sites[pop]
        took_ms = max(0.1, self.random.gauss(site.latency_ms, site.jitter_ms))
        patience_s = self.choice.estimates[pop].patience_s(TIMEOUT_S, 3.0)
        if site.is_up and took_ms <= patience_s * 1000:
            self.choice.measured(pop, took_ms, site.load, site.cost)
            self.due[pop] = self.now_s + (EVERY_S if pop == self.choice.current else OTHERS_S) * self.random.uniform(
                0.8, 1
            )
        else:
            self.choice.failed(pop, self.now_s + patience_s, self.random.random(), patience_s * 1000)
            known = self.choice.estimates[pop]
            self.due[pop] = known.paused_until_s if known.breaker == "open" else self.now_s + patience_s + 0.05

    def run(self, for_s: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass; how much of it passed until the condition held."""
        begin_s = self.now_s
        while self.now_s - begin_s < for_s and not until():
            self.now_s = min(self.due)
            self.measure(self.due.index(self.now_s))
            before = self.choice.current
            if self.choice.look(self.now_s, self.random.random()) != before:
                self.moves.append((self.now_s, self.choice.current))
        return self.now_s - begin_s

    @property
    def at(self) -> int:
        return self.choice.current


@pytest.mark.parametrize("seed", range(20))
def test_a_pop_that_dies_is_left_within_two_seconds_and_one_that_is_back_is_used_again(seed: int) -> None:
    sites = [Site(5, jitter_ms=1), Site(30, jitter_ms=3), Site(60, jitter_ms=3)]
    walker = Walker(sites, seed)
    assert walker.at == 0
    walker.run(20)
    sites[0].is_up = False
    assert walker.run(5, lambda: walker.at != 0) <= 2.0 and walker.at == 1
    walker.run(60)
    assert walker.moves[-1][1] == 1
    sites[0].is_up = True
    walker.run(LONGEST_PAUSE_S * 2)
    assert walker.at == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_pop_that_slows_down_is_left(seed: int) -> None:
    sites = [Site(5, jitter_ms=1), Site(30, jitter_ms=3)]
    walker = Walker(sites, seed)
    walker.run(20)
    sites[0].latency_ms = 200
    assert walker.run(10, lambda: walker.at == 1) <= 5.0


@pytest.mark.parametrize("seed", range(20))
def test_clients_do_not_swing_between_pops_that_are_alike(seed: int) -> None:
    walker = Walker([Site(20, jitter_ms=6), Site(21, jitter_ms=6), Site(22, jitter_ms=6)], seed)
    walker.run(300)
    assert len(walker.moves) <= 3


def test_all_slow_at_once_is_no_reason_to_give_all_up() -> None:
    sites = [Site(5), Site(6)]
    walker = Walker(sites, 1)
    walker.run(10)
    for site in sites:
        site.latency_ms = 900
    walker.run(120)
    assert any(known.is_usable for known in walker.choice.estimates)
    assert sorted(walker.choice.order(walker.now_s)) == [0, 1]


def test_many_clients_leave_a_full_pop_over_some_time_and_share_the_others() -> None:
    sites = [Site(5), Site(25), Site(27)]
    walkers = [Walker(sites, seed) for seed in range(100)]
    for walker in walkers:
        walker.run(10)
    assert all(walker.at == 0 for walker in walkers)
    sites[0].load = 1.0
    left_s = sorted(walker.run(20, lambda walker=walker: walker.at != 0) for walker in walkers)  # type: ignore[misc]
    assert left_s[-1] < 6.0
    # Not all in the same moment: the last of them a good while behind the first.
    assert left_s[-1] - left_s[0] > 0.5


def test_load_and_cost_count_as_the_weights_say() -> None:
    sites = [Site(10, load=0.9), Site(30, load=0.1), Site(12, cost=9)]
    assert Walker(sites, 1).at == 1
    assert Walker(sites, 1, Weights(load=0, cost=0)).at == 0
    assert Walker(sites, 1, Weights(latency=1, load=100, cost=0)).at == 2


def test_a_pop_that_asks_to_move_is_left_and_taken_again_when_there_is_no_other() -> None:
    sites = [Site(5), Site(50)]
    walker = Walker(sites, 1)
    walker.choice.told_to_move(0, walker.now_s)
    assert walker.run(10, lambda: walker.at == 1) <= 4.0
    sites[1].is_up = False
    assert walker.run(10, lambda: walker.at == 0) <= 4.0


def test_the_breaker_is_a_complete_table_and_pauses_grow() -> None:
    states = {state for state, _ in BREAKER}
    assert set(BREAKER) == {(state, what) for state in states for what in ("answered", "failed", "waited")}
    known, now_s, pauses = Estimate().measured(5), 0.0, []
    known = known.failed(now_s, 0.5)
    assert known.breaker == "closed"
    for _ in range(8):
        known = known.failed(now_s, 0.5)
        assert known.breaker == "open" and known.waited(now_s) is known
        pauses.append(known.pause_s)
        now_s = known.paused_until_s
        known = known.waited(now_s)
        assert known.breaker == "half-open" and not known.is_usable
    assert pauses == [FIRST_PAUSE_S * 2**step for step in range(5)] + [LONGEST_PAUSE_S] * 3
    assert known.answered().is_usable


def test_what_fails_in_the_calls_meanwhile_makes_no_pause_longer() -> None:
    known = Estimate().measured(5).failed(0, 0.5).failed(0, 0.5)
    again = known.failed(0.1, 0.5).failed(0.2, 0.5)
    assert (again.paused_until_s, again.pause_s) == (known.paused_until_s, known.pause_s)


def test_a_pop_that_does_not_take_the_client_is_never_tried() -> None:
    choice = Choice(3)
    for pop in range(3):
        choice.measured(pop, 10.0 * (pop + 1))
    choice.begin(0)
    choice.refused(0, "another token")
    assert choice.look(1, 0) == 1 and choice.order(1) == [1, 2]
    for pop in (1, 2):
        choice.failed(pop, 1, 0)
        choice.failed(pop, 1, 0)
    assert sorted(choice.order(1)) == [1, 2], "nothing is usable: those that may come back are tried"
