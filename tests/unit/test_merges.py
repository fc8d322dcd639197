"""Merge laws: whatever was written where, and however much of it each PoP has seen, merging is order-free and repeating it changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeflow.core.cursors import Log
from edgeflow.core.merges import (
    INT64,
    AddWinsSet,
    Component,
    Counter,
    Dot,
    KeyState,
    Register,
    RegisterMap,
    counter_value,
    latest,
    set_version,
)
from edgeflow.core.versions import MAX_N, Clock, is_ahead, parse_version

LOGS: tuple[Log, ...] = (("a", 1), ("b", 1), ("c", 7))
Effect = Callable[[KeyState], KeyState]


class Replica:
    """One PoP's state of one key, how far it has applied each log, and its clock."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.state = KeyState()
        self.seen: dict[Log, int] = {}
        self.clock = Clock()


class History:
    """What three PoPs wrote: an effect per log entry."""

    def __init__(self) -> None:
        self.logs: dict[Log, list[tuple[Effect, str]]] = {log: [] for log in LOGS}
        self.replicas = [Replica(log) for log in LOGS]

    def write(self, at: int, name: str, argument: int) -> None:
        replica = self.replicas[at]
        state, dot = replica.state, Dot(replica.log, len(self.logs[replica.log]) + 1)
        replica.clock = replica.clock.tick(1000)
        version = replica.clock.version(replica.log[0])
        element = "xy"[argument % 2]
        if name == "put":
            effect: Effect = lambda one: replace(one, register=latest(one.register, Register(version, dot, b"1")))  # noqa: E731
        elif name == "field":
            content = b"1" if argument < 3 else None
            write = RegisterMap({element: Register(version, dot, content)})
            effect = lambda one: replace(one, map=one.map.merged(write))  # noqa: E731
        elif name == "increment":
            part = state.counter.parts.get(replica.log)
            fresh = part is None or not part.is_visible
            effect = lambda one: replace(one, counter=one.counter.counted(dot, argument, is_new_life=fresh))  # noqa: E731
        elif name == "add":
            seen = {element: state.set.dots.get(element, frozenset())}
            effect = lambda one: replace(one, set=one.set.applied(dot, seen, {}))  # noqa: E731
        elif name == "remove":
            gone = {element: state.set.dots.get(element, frozenset())}
            effect = lambda one: replace(one, set=one.set.applied(dot, {}, gone))  # noqa: E731
        else:
            dropped = {
                log: (part.life, part.seq, part.total) for log, part in state.counter.parts.items() if part.is_visible
            }
            members = dict(state.set.dots)
            effect = lambda one: KeyState(  # noqa: E731
                latest(one.register, Register(version, dot, None)), one.map.applied({}, version), one.set.applied(dot, {}, members),
                one.counter.dropped(dropped),
            )  # fmt: skip
        self.logs[replica.log].append((effect, version))
        self.deliver(at, at)

    def deliver(self, at: int, of: int) -> None:
        """The next entry of a log, if there is one."""
        replica, log = self.replicas[at], LOGS[of]
        seq = replica.seen.get(log, 0)
        if seq < len(self.logs[log]):
            effect, version = self.logs[log][seq]
            replica.state = effect(replica.state)
            replica.clock = replica.clock.seen(version)
            replica.seen[log] = seq + 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "field", "increment", "add", "remove", "delete"]), st.integers(0, 2), st.integers(-2, 4)),
        st.tuples(st.just("deliver"), st.integers(0, 2), st.integers(0, 2)),
    ),
    max_size=40,
)  # fmt: skip


def play(steps: list[tuple[str, int, int]]) -> History:
    history = History()
    for name, at, argument in steps:
        if name == "deliver":
            history.deliver(at, argument)
        else:
            history.write(at, name, argument)
    return history


def visible(state: KeyState) -> object:
    return (
        state.register.version if state.register is not None and state.register.content is not None else None,
        {name: one.version for name, one in state.map.visible.items()},
        state.set.members,
        state.counter.value if state.counter.is_visible else None,
    )


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_merging_is_commutative_associative_and_idempotent(steps: list[tuple[str, int, int]]) -> None:
    a, b, c = (replica.state for replica in play(steps).replicas)
    assert a.merged(b) == b.merged(a)
    assert a.merged(b).merged(c) == a.merged(b.merged(c))
    assert a.merged(a) == a
    assert a.merged(b).merged(b) == a.merged(b)


@settings(max_examples=400, deadline=None)
@given(STEPS, st.permutations(range(3)))
def test_logs_in_any_order_and_merged_states_come_to_the_same(
    steps: list[tuple[str, int, int]], order: list[int]
) -> None:
    history = play(steps)
    merged = history.replicas[0].state.merged(history.replicas[1].state).merged(history.replicas[2].state)
    for at in range(3):
        for of in order if at == 0 else range(3):
            for _ in range(len(history.logs[LOGS[of]])):
                history.deliver(at, of)
    states = [replica.state for replica in history.replicas]
    assert visible(states[0]) == visible(states[1]) == visible(states[2]) == visible(merged)
    assert states[0].set == states[1].set == merged.set
    assert states[0].merged(merged) == states[0], "who has all gets nothing from a merge"


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 2), st.integers(0, 2))
def test_entries_that_a_merged_state_had_count_once(steps: list[tuple[str, int, int]], to: int, of: int) -> None:
    """As after a snapshot: the state of one PoP is merged, then the logs are read again from where they were."""
    history = play(steps)
    target, source = history.replicas[to], history.replicas[of]
    target.state = target.state.merged(source.state)
    for replica in history.replicas:
        for log in range(3):
            for _ in range(len(history.logs[LOGS[log]])):
                history.deliver(history.replicas.index(replica), log)
    assert visible(target.state) == visible(history.replicas[(to + 1) % 3].state)


def test_an_element_that_is_added_while_it_is_removed_stays() -> None:
    first, second = Dot(LOGS[0], 1), Dot(LOGS[1], 1)
    one = AddWinsSet().applied(first, {"x": ()}, {})
    removed = one.applied(Dot(LOGS[2], 1), {}, {"x": {first}})
    added = one.applied(second, {"x": {first}}, {})
    assert (
        removed.members == []
        and removed.merged(added).members == ["x"]
        and removed.merged(added).dots == {"x": {second}}
    )


def test_what_is_removed_before_it_comes_does_not_come() -> None:
    first = Dot(LOGS[0], 1)
    ahead = AddWinsSet().applied(Dot(LOGS[1], 1), {}, {"x": {first}})
    assert ahead.unborn and ahead.applied(first, {"x": ()}, {}).members == []
    assert not ahead.applied(first, {"x": ()}, {}).unborn


def test_all_orders_of_three_deletions_and_increments_of_a_counter() -> None:
    def count(seq: int, by: int, fresh: bool) -> Callable[[Counter], Counter]:
        return lambda one: one.counted(Dot(LOGS[0], seq), by, is_new_life=fresh)

    own = [count(1, 10, True), count(2, 5, False), count(3, 100, True), count(4, 1, False)]
    # Of the first life 15, of the second 100 were deleted, the last 1 nobody had seen.
    deletions = [lambda one: one.dropped({LOGS[0]: (1, 2, 15)}), lambda one: one.dropped({LOGS[0]: (3, 3, 100)})]
    for order in permutations([*[0] * 4, 1, 2]):
        mine = iter(own)
        state = Counter()
        for which in order:
            state = (next(mine) if which == 0 else deletions[which - 1])(state)
        assert state.value == 1 and state.is_visible, order


def test_a_sum_stays_within_64_bits() -> None:
    part = Component().counted(1, INT64 - 1, is_new_life=True).counted(2, 1, is_new_life=False)
    assert (part.total, part.seq) == (INT64 - 1, 2)
    assert part.counted(3, -1, is_new_life=False).total == INT64 - 2


def test_what_the_store_keeps_of_a_counter_is_read_as_its_value() -> None:
    fields = {
        b"a:1": b"15",
        b"a:1|n": b"9",
        b"a:1|s": b"2",
        b"a:1|d": b"4 5",
        b"b:1": b"7",
        b"b:1|n": b"3",
        b"b:1|s": b"1",
        b"b:1|d": b"3 7",
        b"c": b"1",
    }
    assert counter_value(fields) == 10 and counter_value({}) == 0


def test_the_version_of_a_set_is_the_same_for_the_same_operations() -> None:
    assert set_version({"a:1": 2, "b:1": 3}) == set_version({"b:1": 3, "a:1": 2}) != set_version({"a:1": 3, "b:1": 3})


# -- versions ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(0, 5000), st.tuples(st.integers(0, 9000), st.integers(0, MAX_N))), max_size=30))
def test_versions_rise_above_all_that_was_given_out_or_seen(steps: list[int | tuple[int, int]]) -> None:
    clock, highest = Clock(), ""
    for step in steps:
        if isinstance(step, tuple):
            seen = Clock(*step).version("z")
            clock, highest = clock.seen(seen), max(highest, seen)
            continue
        clock = clock.tick(step)
        version = clock.version("a")
        assert version > highest and parse_version(version) == clock and clock.ms >= step
        highest = version


def test_the_clock_goes_on_when_a_millisecond_is_full() -> None:
    assert Clock(5, MAX_N).tick(5) == Clock(6, 0)


@pytest.mark.parametrize("text", ["", "1", "1800000000000.00001", "180000000000.00001@a", "1800000000000.00001@"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a version"):
        parse_version(text)


def test_what_is_ahead_by_more_than_the_skew_waits() -> None:
    version = Clock(10_500).version("a")
    assert is_ahead(version, 9_999, 500) and not is_ahead(version, 10_000, 500)
