"""How a new revision takes over, step by step."""

import random

from edgeflow.runner.rollout import CRASHES, Facts, Rollout, step

DEADLINE_MS = 60_000
WAITING = Facts(startable=True, ready=False)
READY = Facts(startable=True, ready=True)


def test_the_first_revision_serves_at_once() -> None:
    assert step(None, "a", WAITING, DEADLINE_MS, 5) == Rollout("a", "a", "live", since_ms=5)


def test_a_new_revision_serves_when_it_is_ready_and_is_watched_for_the_deadline() -> None:
    one = step(Rollout("a", "a"), "b", WAITING, DEADLINE_MS, 10)
    assert (one.live, one.target, one.phase) == ("a", "b", "rolling")
    two = step(one, "b", READY, DEADLINE_MS, 20)
    assert (two.live, two.phase, two.before) == ("b", "watching", "a")
    assert step(two, "b", READY, DEADLINE_MS, 20 + DEADLINE_MS - 1) == two
    assert step(two, "b", READY, DEADLINE_MS, 20 + DEADLINE_MS) == Rollout("b", "b", "live", since_ms=20 + DEADLINE_MS)


def test_the_time_of_the_first_build_does_not_count() -> None:
    one = step(Rollout("a", "a"), "b", WAITING, DEADLINE_MS, 0)
    building = Facts(startable=False, ready=False)
    one = step(one, "b", building, DEADLINE_MS, 10 * DEADLINE_MS)
    assert one.phase == "rolling" and one.clock_ms == 0
    one = step(one, "b", WAITING, DEADLINE_MS, 10 * DEADLINE_MS + 5)
    late = step(
        one, "b", Facts(True, False, 2, "instance i exited", ("last",), "record"), DEADLINE_MS, 11 * DEADLINE_MS + 5
    )
    assert (late.live, late.phase, late.asked, late.last_log_lines) == ("a", "rolled-back", "record", ("last",))
    assert late.reason == "revision b was not ready within 60 s: instance i exited; revision a serves"


def test_what_crashes_while_it_is_watched_goes_back() -> None:
    watched = Rollout("b", "b", "watching", before="a", since_ms=0)
    fine = step(watched, "b", Facts(True, False, CRASHES - 1), DEADLINE_MS, 5)
    assert fine == watched
    back = step(watched, "b", Facts(True, False, CRASHES, "instance i exited with status 1"), DEADLINE_MS, 5)
    assert (back.live, back.target, back.phase) == ("a", "b", "rolled-back") and "exited with status 1" in back.reason


def test_what_was_rolled_back_stays_so_until_somebody_asks() -> None:
    back = Rollout("a", "b", "rolled-back", asked="2")
    assert step(back, "b", Facts(True, True, asked="2"), DEADLINE_MS, 5) == back
    assert step(back, "b", Facts(True, False, asked="3"), DEADLINE_MS, 5).phase == "rolling"
    assert step(back, "c", WAITING, DEADLINE_MS, 5) == Rollout("a", "c", "rolling", since_ms=5)
    assert step(back, "a", WAITING, DEADLINE_MS, 5) == Rollout("a", "a", since_ms=5)


def test_a_stuck_rollout_does_not_block_the_next() -> None:
    stuck = Rollout("a", "b", "rolling", clock_ms=1)
    assert step(stuck, "c", WAITING, DEADLINE_MS, 9) == Rollout("a", "c", "rolling", since_ms=9)


def test_whatever_happens_something_serves_and_only_what_was_ready_takes_over() -> None:
    chance = random.Random(5)
    for _ in range(300):
        known, now_ms = None, 0
        for _ in range(40):
            now_ms += chance.randrange(1, 2 * DEADLINE_MS)
            facts = Facts(
                chance.random() < 0.7, chance.random() < 0.3, chance.randrange(6), asked=str(chance.randrange(3))
            )
            before, known = known, step(known, chance.choice("abc"), facts, DEADLINE_MS, now_ms)
            assert known.live
            if before is not None and known.live != before.live:
                went_live = known.phase == "watching" and facts.ready and known.live == known.target
                went_back = known.phase == "rolled-back" and known.live == before.before
                assert went_live or went_back
