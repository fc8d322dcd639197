"""The ranking of PoPs, what a PoP's load is, and when it sends clients away."""

import pytest

from edgeflow.core.load import LEAVING_PER_S, Parts, Shedding, Smoothed
from edgeflow.core.nearest import Weights
from edgeflow.core.ranking import UNKNOWN_MS, Candidate, distance_km, rank

LA, NY, CHICAGO, PARIS = (34.05, -118.24), (40.71, -74.01), (41.88, -87.63), (48.86, 2.35)


def order(
    candidates: list[Candidate], client: tuple[float, float] | None = None, weights: Weights | None = None
) -> list[str]:
    return [one.candidate.pop for one in rank(candidates, client, weights or Weights())]


def pops(**more: float) -> list[Candidate]:
    return [
        Candidate("la", "up", True, LA, load=more.get("la")),
        Candidate("ny", "up", False, NY, rtt_ms=70, load=more.get("ny")),
        Candidate("chicago", "up", False, CHICAGO, rtt_ms=45, load=more.get("chicago")),
    ]


def test_distances_are_those_of_the_globe() -> None:
    assert distance_km(LA, NY) == pytest.approx(3936, rel=0.01)
    assert distance_km(NY, PARIS) == pytest.approx(5837, rel=0.01)
    assert distance_km((0, 179), (0, -179)) == pytest.approx(222, rel=0.01)
    assert distance_km(LA, LA) == 0


def test_by_distance_when_the_client_says_where_it_is_else_by_the_links() -> None:
    assert order(pops()) == ["la", "chicago", "ny"]
    assert order(pops(), PARIS) == ["ny", "chicago", "la"]
    assert order(pops(), CHICAGO) == ["chicago", "ny", "la"]


def test_load_and_cost_weigh_and_are_said() -> None:
    assert order(pops(ny=0.9, chicago=0.1), PARIS) == ["chicago", "ny", "la"]
    assert order(pops(ny=0.9, chicago=0.1), PARIS, Weights(load=0)) == ["ny", "chicago", "la"]
    dear = [Candidate("a", "up", rtt_ms=1, cost=3), Candidate("b", "up", rtt_ms=20)]
    assert order(dear) == ["b", "a"]
    best = rank(pops(ny=0.2), NY, Weights())[0]
    assert (best.latency_from, best.distance_km) == ("distance", 0) and best.reasons == (
        "0 km away: about 0 ms",
        "load 0.20",
    )


def test_a_pop_that_is_not_up_is_never_in_front_of_one_that_is() -> None:
    for state in ("joining", "suspect", "down", "draining", "left", "unknown"):
        ranked = rank(
            [Candidate("near", state, True, load=0.0), Candidate("far", "up", rtt_ms=300, load=0.9)], None, Weights()
        )
        assert [(one.candidate.pop, one.eligible) for one in ranked] == [("far", True), ("near", False)]
        assert ranked[1].reasons[-1] == f"it is {state}"


def test_what_is_not_known_is_said() -> None:
    (one,) = rank([Candidate("x", "up")], LA, Weights())
    assert (one.latency_ms, one.latency_from) == (UNKNOWN_MS, "unknown")
    assert one.reasons == ("its latency is not known", "its location is not known", "its load is not known")


def test_a_pop_that_sends_clients_away_is_behind_those_that_do_not() -> None:
    ranked = rank([Candidate("near", "up", True, sheds=True), Candidate("far", "up", rtt_ms=300)], None, Weights())
    assert [one.candidate.pop for one in ranked] == ["far", "near"]


def test_the_load_is_that_of_the_part_that_is_worst_off() -> None:
    assert Parts(0.1, 0.3, 0.2).load == 0.3 and "control" in Parts(0.1, 0.3, 0.2).reason
    assert Parts(backlog=0.5).reason == "an inbox is full to 50%"
    assert Parts(0.9, refused=0.25).load == 1.25 and "refused" in Parts(0.9, refused=0.25).reason
    assert Parts().load == 0


def test_one_moment_does_not_make_a_load() -> None:
    smoothed = Smoothed()
    assert smoothed.add(1.0, 0.0) == 0, "a process that begins is busy with itself"
    assert smoothed.add(1.0, 0.5) < 0.2
    for step in range(40):
        smoothed.add(1.0, 1 + step / 2)
    assert smoothed.value > 0.95


def test_clients_are_sent_away_only_where_there_is_room_and_until_it_is_well_again() -> None:
    shedding = Shedding(0.9)
    assert not shedding.look(0.95, None, 0, 1), "there is no other PoP"
    assert not shedding.look(0.95, 0.8, 0, 2), "the other one has no room"
    assert not shedding.look(0.85, 0.1, 0, 3)
    assert shedding.look(0.95, 0.1, 0, 4)
    assert shedding.look(0.8, 0.1, 0, 5), "not before it is clearly less"
    assert not shedding.look(0.7, 0.1, 0, 6) and not shedding.take()
    assert not Shedding(0).look(5.0, 0.0, 0, 1), "switched off"


def test_a_few_clients_at_a_time_are_told() -> None:
    few, many = Shedding(0.9), Shedding(0.9)
    told = {few: 0, many: 0}
    for step in range(21):
        for one, streams in ((few, 3), (many, 1000)):
            one.look(1.0, 0.0, streams, 100 + step / 2)
            while one.take():
                told[one] += 1
    assert told[few] == pytest.approx(10 * LEAVING_PER_S, abs=3)
    assert told[many] == pytest.approx(10 * 50, rel=0.15)
