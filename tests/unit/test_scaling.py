"""How many instances: the formula against known values and a simulation, and what is decided with it."""

import heapq
import random

import pytest

from edgeflow.runner.scaling import HOLD_MS, WAIT_S, Load, Scale, Scaled, erlang_c, mean_wait_s, needed, scale

LIMITS = Scale(0, 8, 60_000)


@pytest.mark.parametrize(
    ("servers", "offered", "wanted"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (5, 4.0, 0.5541), (10, 8.0, 0.4092)]
)
def test_the_formula_gives_the_values_of_the_tables(servers: int, offered: float, wanted: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("servers", "arrivals"), [(1, 6.0), (3, 24.0), (6, 50.0)])
def test_the_mean_wait_is_that_of_a_simulated_queue(servers: int, arrivals: float) -> None:
    chance, service_s = random.Random(servers), 0.1
    free = [0.0] * servers
    now = waited = 0.0
    count = 200_000
    for _ in range(count):
        now += chance.expovariate(arrivals)
        begins = max(now, heapq.heappop(free))
        waited += begins - now
        heapq.heappush(free, begins + chance.expovariate(1 / service_s))
    assert mean_wait_s(servers, Load(arrivals, service_s)) == pytest.approx(waited / count, rel=0.15)


def test_the_least_number_that_keeps_the_wait_short_is_needed() -> None:
    for arrivals in (0.1, 1.0, 5.0, 20.0, 60.0):
        load = Load(arrivals, 0.1)
        count = needed(load, 1, 8)
        assert mean_wait_s(count, load) <= WAIT_S or count == 8
        assert count == 1 or mean_wait_s(count - 1, load) > WAIT_S
    assert needed(Load(1.0, 0.1, waiting=400), 1, 8) == 8, "what waits is to be done soon"
    assert needed(Load(1000.0, 0.1), 1, 8) == 8
    assert [needed(Load(waiting=100), active, 8) for active in (0, 1, 2, 4)] == [2, 2, 4, 8], (
        "twice as many while nothing is known"
    )
    assert needed(Load(waiting=1), 4, 8) == 1


def test_more_at_once_fewer_only_when_that_has_been_enough_for_a_while() -> None:
    busy, calm = Load(60.0, 0.1, last_ms=1), Load(1.0, 0.1, last_ms=1)
    now = 1_000
    many = scale(Scaled(1, 0), busy, LIMITS, 1, now)
    assert many.active > 5
    kept = scale(many, calm, LIMITS, many.active, now + HOLD_MS - 1)
    assert kept == many
    assert scale(kept, busy, LIMITS, many.active, now + HOLD_MS - 1).enough_since_ms == now + HOLD_MS - 1
    assert scale(kept, calm, LIMITS, many.active, now + HOLD_MS).active == 1


def test_none_only_after_the_time_without_work() -> None:
    one = Scaled(1, 0)
    assert scale(one, Load(0.5, 0.1, last_ms=1_000), LIMITS, 1, 60_999).active == 1
    assert scale(one, Load(0.5, 0.1, last_ms=1_000), LIMITS, 1, 61_000).active == 0
    assert scale(one, Load(0.5, 0.1, running=1, last_ms=1_000), LIMITS, 1, 70_000).active == 1
    assert scale(None, Load(), LIMITS, 1, 5) == Scaled(1, 5), "a new control process does not know since when"
    assert scale(Scaled(1, 5), Load(), LIMITS, 1, 60_005).active == 0
    assert scale(Scaled(0, 5), Load(waiting=1), LIMITS, 0, 10).active == 1


def test_it_stays_within_what_the_manifest_allows() -> None:
    chance, known, now = random.Random(3), None, 0
    for _ in range(3000):
        now += chance.randrange(5_000)
        limits = Scale(chance.randrange(3), chance.randrange(3, 6), 10_000)
        load = Load(
            chance.random() * 100, chance.choice([0, 0.01, 0.5]), chance.randrange(50), chance.randrange(5), now
        )
        known = scale(known, load, limits, chance.randrange(9), now)
        assert limits.least <= known.active or now - known.enough_since_ms < 10_000
        assert known.active <= 5
