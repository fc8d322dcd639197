"""The checkers of the store's fault tests: each refuses the histories that it is there for, and passes those of a store that is right.

Histories of a right register are made by a simulation that says when each operation took effect; wrong ones are the same with one thing changed.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.histories import (
    Added,
    Kind,
    Member,
    Op,
    Recorder,
    TakeOver,
    Undecided,
    Written,
    going_back,
    kept,
    linearizable,
    miscounted,
    misplaced,
    session_violations,
    too_old,
)


def op(client: str, kind: Kind, start: float, end: float, value: str | None = None, **more: object) -> Op:
    made = Op(client, kind, "k", value, start_s=start, end_s=end, outcome="unknown" if end == math.inf else "ok")
    return replace(made, **more)  # type: ignore[arg-type]


def is_linear(ops: Sequence[Op]) -> bool:
    return all(verdict.ok for verdict in linearizable(ops))


# -- linearizability ---------------------------------------------------------------------------------------------------


def test_operations_that_overlap_may_happen_in_either_order() -> None:
    both = [op("a", "write", 0, 4, "1"), op("b", "write", 1, 5, "2")]
    for last in "12":
        assert is_linear([*both, op("c", "read", 6, 7, last)])
    # But not in both.
    assert not is_linear([*both, op("c", "read", 6, 7, "1"), op("c", "read", 8, 9, "2"), op("d", "read", 10, 11, "1")])


def test_a_stale_read_is_found() -> None:
    ops = [op("a", "write", 0, 1, "1"), op("a", "write", 2, 3, "2"), op("b", "read", 4, 5, "1")]
    (verdict,) = linearizable(ops)
    assert not verdict.ok and verdict.stuck is ops[2]
    assert is_linear([*ops[:2], op("b", "read", 2.5, 5, "1")])  # while it was being written, it may still be seen


def test_a_read_that_goes_back_is_found() -> None:
    # Each of the two reads alone would be right: the write was under way during both.
    writes = [op("a", "write", 0, 1, "1"), op("a", "write", 2, 9, "2")]
    assert is_linear([*writes, op("b", "read", 3, 4, "1"), op("b", "read", 5, 6, "2")])
    assert not is_linear([*writes, op("b", "read", 3, 4, "2"), op("b", "read", 5, 6, "1")])


def test_a_lost_compare_and_set_is_found() -> None:
    first = op("a", "write", 0, 1, "0")
    one = op("a", "cas", 2, 4, "1", expected="0")
    two = op("b", "cas", 3, 5, "2", expected="0")
    assert not is_linear([first, one, two])
    lost = replace(two, outcome="refused", mismatch=True)
    assert is_linear([first, one, lost, op("c", "read", 6, 7, "1")])
    assert not is_linear([first, one, lost, op("c", "read", 6, 7, "0")])


def test_a_refused_compare_and_set_says_what_was_not_there() -> None:
    first = op("a", "write", 0, 1, "0")
    refused = op("b", "cas", 2, 3, "1", expected="0", outcome="refused", mismatch=True)
    assert not is_linear([first, refused])  # it was there, and nobody else wrote
    assert is_linear([first, replace(refused, mismatch=False)])  # refused for another reason: says nothing


def test_an_unknown_outcome_may_come_late_or_never() -> None:
    lost = op("a", "write", 0, math.inf, "1")
    assert is_linear([lost, op("b", "read", 1, 2)])
    assert is_linear([lost, op("b", "read", 1, 2), op("b", "read", 8, 9, "1")])
    assert not is_linear([lost, op("b", "read", 1, 2, "1"), op("b", "read", 3, 4)])  # happened, and unhappened
    assert not is_linear([op("b", "read", 0, 1, "1"), replace(lost, start_s=2)])  # seen before it was asked for


def test_a_deleted_register_is_empty() -> None:
    ops = [op("a", "write", 0, 1, "1"), op("a", "delete", 2, 3)]
    assert is_linear([*ops, op("b", "read", 4, 5)])
    assert not is_linear([*ops, op("b", "read", 4, 5, "1")])
    assert is_linear([*ops, op("b", "cas", 4, 5, "2", expected=None), op("c", "read", 6, 7, "2")])


def simulated(chance: random.Random, count: int, clients: int) -> list[Op]:
    """A history of a register that is right: each operation takes effect at one moment between its start and its end."""
    plans = []
    for client in range(clients):
        now = chance.random()
        for _ in range(count // clients):
            start = now + chance.random()
            moment = start + chance.random() * 3
            now = moment + chance.random() * 3
            plans.append((moment, start, now, f"c{client}"))
    state: str | None = None
    ops = []
    for number, (_, start, end, client) in enumerate(sorted(plans)):
        kind = chance.choice(("read", "read", "write", "cas", "cas", "delete"))
        made = Op(client, kind, "k", start_s=start, end_s=end, outcome="ok")  # type: ignore[arg-type]
        if kind == "read":
            made.value = state
        elif kind == "delete":
            state = None
        elif kind == "write":
            made.value = state = f"v{number}"
        else:
            made.value, made.expected = f"v{number}", state if chance.random() < 0.7 else f"v{chance.randrange(count)}"
            if made.expected == state:
                state = made.value
            else:
                made.outcome, made.mismatch = "refused", True
        if kind != "read" and chance.random() < 0.1:
            made.outcome, made.mismatch, made.end_s = "unknown", False, math.inf
        ops.append(made)
    return ops


@given(st.integers(0, 10**9))
def test_what_a_right_register_shows_passes(seed: int) -> None:
    assert is_linear(simulated(random.Random(seed), 60, 5))


@given(st.integers(0, 10**9))
def test_the_search_agrees_with_trying_everything(seed: int) -> None:
    """Small histories with a random change, against all orders that time allows."""
    chance = random.Random(seed)
    ops = simulated(chance, 7, 3)
    changed = chance.choice(ops)
    changed.value = chance.choice([None, *(one.value for one in ops)])
    assert is_linear(ops) == _by_trying([one for one in ops if one.kind != "read" or one.outcome == "ok"])


def _by_trying(ops: list[Op]) -> bool:
    def go(left: list[Op], state: str | None) -> bool:
        if all(one.outcome == "unknown" for one in left):
            return True
        for one in left:
            if any(other.end_s < one.start_s for other in left):
                continue
            rest = [other for other in left if other is not one]
            if one.kind == "read":
                fits, becomes = state == one.value, state
            elif one.kind == "cas" and one.outcome == "refused":
                fits, becomes = state != one.expected, state
            elif one.kind == "cas":
                fits, becomes = state == one.expected, one.value
            else:
                fits, becomes = True, None if one.kind == "delete" else one.value
            if fits and go(rest, becomes):
                return True
        return False

    return go(ops, None)


def test_a_long_history_with_one_lost_update_is_found() -> None:
    ops = sorted(simulated(random.Random(5), 300, 4), key=lambda one: one.start_s)
    assert is_linear(ops)
    late = max(one.end_s for one in ops if one.end_s < math.inf)
    told = op("z", "write", late + 1, late + 2, "mine")
    assert is_linear([*ops, told, op("z", "read", late + 3, late + 4, "mine")])
    assert not is_linear([*(one for one in ops if one.outcome != "unknown"), told, op("z", "read", late + 3, late + 4)])


def test_a_search_that_takes_too_long_is_no_pass() -> None:
    with pytest.raises(Undecided):
        linearizable(simulated(random.Random(1), 60, 5), steps=10)


def test_many_unknown_outcomes_do_not_take_for_ever() -> None:
    ops = sorted(simulated(random.Random(7), 400, 5), key=lambda one: one.start_s)
    for number, one in enumerate(ops):
        if one.kind in ("write", "delete") and number % 3 == 0:
            one.outcome, one.end_s = "unknown", math.inf
    assert sum(one.outcome == "unknown" for one in ops) > 50
    (verdict,) = linearizable(ops, steps=300_000)
    assert verdict.ok
    few = ops[:90]
    assert linearizable(few)[0].ok
    last = max(one.end_s for one in few if one.end_s < math.inf)
    wrong = [op("z", "write", last + 1, last + 2, "mine"), op("z", "read", last + 3, last + 4, "other")]
    assert not linearizable([*few, *wrong])[0].ok


def test_keys_are_judged_apart() -> None:
    good = op("a", "write", 0, 1, "1")
    bad = replace(op("a", "read", 2, 3, "x"), key="other")
    assert [(one.key, one.ok) for one in linearizable([good, bad])] == [("k", True), ("other", False)]


# -- sessions ----------------------------------------------------------------------------------------------------------


def guarantees(ops: Sequence[Op], take_overs: Sequence[TakeOver] = ()) -> list[str]:
    return [violation.guarantee for violation in session_violations(ops, take_overs)]


def test_a_session_that_is_served_well_passes() -> None:
    ops = [
        op("a", "write", 0, 1, "1", version="10@x"), op("b", "write", 0, 1, "2", version="11@y"), op("a", "read", 2, 3, "2", version="11@y"),
        op("a", "write", 4, 5, "3", version="12@x"), op("a", "read", 6, 7, "3", version="12@x"), op("b", "read", 6, 7, "2", version="11@y"),
    ]  # fmt: skip
    assert guarantees(ops) == []


def test_each_broken_promise_is_named() -> None:
    wrote = op("a", "write", 0, 1, "1", version="10@x")
    other = op("b", "write", 0, 1, "2", version="09@y")
    saw = op("a", "read", 2, 3, "2", version="09@y")
    assert guarantees([other, wrote, saw]) == ["read-your-writes"]
    reader = [op("c", "read", 2, 3, "1", version="10@x"), op("c", "read", 4, 5, "2", version="09@y")]
    assert guarantees([wrote, other, *reader]) == ["monotonic-reads"]
    assert guarantees([wrote, op("a", "write", 2, 3, "3", version="05@z")]) == ["monotonic-writes"]
    assert guarantees([wrote, reader[0], op("c", "write", 4, 5, "3", version="05@z")]) == ["writes-follow-reads"]


def test_writes_follow_reads_of_other_keys() -> None:
    read = op("c", "read", 0, 1, "1", version="10@x")
    assert guarantees([read, replace(op("c", "write", 2, 3, "3", version="05@z"), key="other")]) == [
        "writes-follow-reads"
    ]


def test_finding_nothing_is_right_only_behind_a_deletion() -> None:
    wrote = op("a", "write", 0, 1, "1", version="10@x")
    nothing = op("a", "read", 4, 5)
    deleted = op("b", "delete", 2, 3, version="11@y")
    assert guarantees([wrote, nothing]) == ["read-your-writes"]
    assert guarantees([wrote, deleted, nothing]) == []
    assert guarantees([wrote, replace(deleted, version="09@y"), nothing]) == ["read-your-writes"]
    assert guarantees([wrote, replace(deleted, outcome="unknown", version=None), nothing]) == []
    assert guarantees([wrote, replace(deleted, outcome="refused", version=None), nothing]) == ["read-your-writes"]
    assert guarantees([wrote, replace(deleted, start_s=8, end_s=9), nothing]) == ["read-your-writes"]


def test_a_token_that_was_handed_over_binds() -> None:
    wrote = op("a", "write", 0, 1, "1", version="10@x")
    nothing = op("b", "read", 4, 5)
    assert guarantees([wrote, nothing]) == []
    assert guarantees([wrote, nothing], [TakeOver(1, "b", "a")]) == ["read-your-writes"]
    assert guarantees([wrote, nothing], [TakeOver(0, "b", "a")]) == []  # before it had been written


def test_a_read_that_misses_what_is_older_than_its_bound() -> None:
    writes = [
        op("a", "write", 0, 1, "1", version="10@x"),
        op("b", "write", 2, 3, "2", version="12@y"),
        op("a", "write", 2, 4, "3", version="11@x"),
    ]
    old, new = (op("c", "read", 6, 7, version=version) for version in ("10@x", "12@y"))
    assert too_old(writes, [old, new], 2.0) == too_old(writes, [old, new], 0.0) != []
    assert [one.op for one in too_old(writes, [old, new], 2.5)] == [old]
    assert too_old(writes, [old, new], 3.0) == []  # exactly at the bound it may be missing
    assert too_old(writes, [op("c", "read", 6, 7)], 1.0) and too_old([], [old], 0.0) == []
    assert too_old(writes, [replace(old, outcome="refused")], 0.0) == []


def test_an_observer_that_is_led_back() -> None:
    assert going_back([("k", "1"), ("j", "0"), ("k", "2"), ("k", "2")]) == []
    assert going_back([("k", "1"), ("k", "3"), ("k", "2")]) == [("k", "2", "3")]


# -- what is there at the end ------------------------------------------------------------------------------------------


def test_what_was_acknowledged_last_is_there() -> None:
    one, two = Written("k", "1", "10@a", "ok"), Written("k", "2", "11@b", "ok")
    assert kept([one, two], {"k": ("11@b", "2")}).ok
    assert kept([one, two], {"k": ("10@a", "1")}).lost
    assert kept([one, two], {}).lost
    assert kept([one, two], {"k": ("11@b", "1")}).strange
    assert kept([], {"k": ("11@b", "1")}).strange


def test_an_unknown_write_may_be_there_or_not() -> None:
    one, two = Written("k", "1", "10@a", "ok"), Written("k", "2")
    assert kept([one, two], {"k": ("10@a", "1")}).ok
    assert kept([one, two], {"k": ("12@b", "2")}).ok
    assert kept([one, two], {"k": ("09@b", "2")}).lost
    assert kept([one, replace(two, outcome="refused")], {"k": ("12@b", "2")}).strange


def test_deleted_and_expired_values_are_gone() -> None:
    one, deleted = Written("k", "1", "10@a", "ok"), Written("k", None, "11@b", "ok")
    assert kept([one, deleted], {}).ok
    assert kept([one, deleted], {"k": ("10@a", "1")}).lost  # the deletion was
    assert kept([one, Written("k", None)], {}).ok
    assert kept([one, replace(deleted, version=None)], {}).ok  # nobody said which
    brief = Written("k", "2", "11@b", "ok", expires_s=5.0)
    assert kept([one, brief], {}, now_s=6.0).ok
    assert kept([one, brief], {}, now_s=4.0).lost
    assert kept([one, brief], {"k": ("11@b", "2")}, now_s=4.0).ok
    assert kept([one, brief], {"k": ("11@b", "2")}, now_s=9.0).strange


def test_a_destroyed_pop_may_take_what_only_it_had() -> None:
    safe, only_there = Written("k", "1", "10@a", "ok"), Written("k", "2", "11@b", "ok", forgivable=True)
    for there in ({"k": ("10@a", "1")}, {"k": ("11@b", "2")}):
        assert kept([safe, only_there], there).ok
    assert kept([safe, only_there], {}).lost
    assert kept([safe, replace(only_there, value=None)], {}).ok


def test_a_counter_is_the_sum_of_what_was_acknowledged() -> None:
    adds = [Added("c", 2, "ok"), Added("c", 3, "ok"), Added("c", 50, "refused")]
    assert miscounted(adds, {"c": 5}) == []
    assert miscounted(adds, {"c": 8}) and miscounted(adds, {"c": 2}) and miscounted(adds, {})
    assert miscounted([*adds, Added("c", 10)], {"c": 15}) == []
    assert miscounted([*adds, Added("c", 10)], {"c": 16})
    assert miscounted([*adds, Added("c", 10, "ok", forgivable=True)], {"c": 5}) == []
    assert miscounted([], {"c": 1})


def test_a_member_is_where_its_writer_left_it() -> None:
    there, gone = Member("s", "x", "1", "ok"), Member("s", "x", None, "ok")
    assert misplaced([there], {"s": {"x": "1"}}) == []
    assert misplaced([there], {}) and misplaced([there, gone], {"s": {"x": "1"}})
    assert misplaced([there, gone], {}) == []
    assert misplaced([there, Member("s", "x", None)], {}) == []
    assert misplaced([there, Member("s", "x", "2")], {"s": {"x": "2"}}) == []
    assert misplaced([there], {"s": {"x": "2"}}) and misplaced([there], {"s": {"x": "1", "y": "1"}})


def test_the_recorder_knows_what_it_was_not_told() -> None:
    clock = iter(range(100))
    recorder = Recorder(lambda: float(next(clock)))
    with recorder.running("a", "write", "k", value="1") as one:
        one.outcome = "ok"
    with pytest.raises(OSError), recorder.running("a", "write", "k", value="2"):
        raise OSError
    told, open_ended = recorder.ops
    assert (told.outcome, told.start_s, told.end_s, told.index) == ("ok", 0.0, 1.0, 0)
    assert (open_ended.outcome, open_ended.end_s, open_ended.index) == ("unknown", math.inf, 1)
