"""Members: states follow the table, silence is this process's own, and a record survives versions that know more or less."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.cluster.membership import STEP_S, Membership
from edgeflow.core.membership import (
    DOWN,
    DRAINING,
    JOINING,
    LEFT,
    STATES,
    STEPS,
    SUSPECT,
    UP,
    WISHES,
    Address,
    Capacity,
    Location,
    Member,
    load_member,
    path,
    state_of,
)
from edgeflow.errors import BadMember
from edgeflow.settings import MembershipSettings

SETTINGS = MembershipSettings(suspect_ms=2000, down_ms=6000)


class World:
    """Membership of `a`, with a clock and records that tests move."""

    def __init__(self, *pops: str) -> None:
        self.now_s = 100.0
        self.records = {pop: Member(pop, joined_ms=1) for pop in pops}
        self.steps: list[tuple[str, str | None, str]] = []
        self.members = Membership(
            "a", SETTINGS, lambda: self.records, lambda: [p for p, m in self.records.items() if not m.is_left], lambda: self.now_s
        )  # fmt: skip
        self.members.listeners.append(lambda *step: self.steps.append(step))
        self.members.look()

    def passes(self, seconds: float, *heard: str) -> None:
        """Time in which this process runs, and in which some are heard all the time."""
        for _ in range(round(seconds * 4)):
            self.now_s += 0.25
            for pop in heard:
                self.members.heard(pop)
            self.members.look()


def test_a_member_goes_silent_and_comes_back() -> None:
    world = World("a", "b", "c")
    assert world.members.state("b") == SUSPECT, "known, and not heard yet"
    world.passes(1, "b", "c")
    assert (world.members.state("b"), world.members.state("c")) == (UP, UP)
    world.passes(1.5, "c")
    assert (world.members.state("b"), world.members.heard_ms("b")) == (UP, 1500)
    world.passes(0.5, "c")
    assert (world.members.state("b"), world.members.state("c")) == (SUSPECT, UP)
    world.passes(4, "c")
    assert world.members.state("b") == DOWN
    world.passes(0.25, "b", "c")
    assert world.members.state("b") == UP
    assert [step for step in world.steps if step[0] == "b"] == [
        ("b", None, SUSPECT), ("b", SUSPECT, UP), ("b", UP, SUSPECT), ("b", SUSPECT, DOWN), ("b", DOWN, UP)
    ]  # fmt: skip
    assert [step for step in world.steps if step[0] == "c"] == [("c", None, SUSPECT), ("c", SUSPECT, UP)]


def test_one_that_was_never_heard_is_down_after_its_time() -> None:
    world = World("a", "b")
    world.passes(5.75)
    assert world.members.state("b") == SUSPECT
    world.passes(0.25)
    assert world.members.state("b") == DOWN


def test_a_process_that_stood_still_blames_nobody() -> None:
    world = World("a", "b")
    world.passes(1, "b")
    world.now_s += 3600
    world.members.look()
    assert (world.members.state("b"), world.members.heard_ms("b")) == (UP, STEP_S * 1000)
    world.passes(1)
    assert world.members.state("b") == SUSPECT


def test_what_a_third_pop_heard_counts_by_its_age() -> None:
    world = World("a", "b", "c")
    world.passes(1, "b", "c")
    for _ in range(40):
        world.passes(0.25, "c")
        world.members.heard("b", 0.5)  # c says so
    assert (world.members.state("b"), world.members.heard_ms("b")) == (UP, 500)
    world.passes(1, "c")
    world.members.heard("b", 5.0)  # older than what is known
    assert world.members.heard_ms("b") == 1500
    assert world.members.hearsay(["b", "a", "nobody"]) == [("b", 1500)]


def test_wishes_and_records() -> None:
    world = World("a", "b")
    world.records["b"] = Member("b")  # joined_ms 0: it is new
    world.passes(0.5, "b")
    assert world.members.state("b") == JOINING
    world.records["b"] = Member("b", joined_ms=5)
    world.passes(0.25, "b")
    assert world.members.state("b") == UP
    world.records["b"] = Member("b", state=DRAINING, joined_ms=5)
    world.passes(0.25, "b")
    assert world.members.state("b") == DRAINING
    world.passes(6)
    assert world.members.state("b") == DOWN, "drained or not, it is not there"
    world.records["b"] = Member("b", state=LEFT, joined_ms=5)
    world.passes(0.25, "b")
    assert world.members.state("b") == LEFT
    world.records["b"] = Member("b", added_ms=9)
    world.passes(0.25)
    assert world.members.state("b") == SUSPECT, "a new PoP of that id was not heard yet"
    assert world.members.state("nobody") == LEFT
    world.records["a"] = Member("a", state=DRAINING, joined_ms=1)
    assert world.members.state("a") == DRAINING
    assert world.members.documents()["a"]["state"] == DRAINING


def test_a_listener_that_fails_stops_nobody() -> None:
    world = World("a", "b")
    told: list[str] = []

    def fails(pop: str, before: str | None, now: str) -> None:
        raise RuntimeError(pop)

    world.members.listeners[:] = [fails, lambda pop, before, now: told.append(now)]
    world.passes(0.5, "b")
    assert told == [UP]


@given(
    st.lists(
        st.tuples(st.sampled_from(WISHES), st.booleans(), st.none() | st.integers(0, 10_000)), min_size=1, max_size=20
    )
)
def test_every_change_is_a_row_of_the_table(seen: list[tuple[str, bool, int | None]]) -> None:
    rows = {(step.before, step.after) for step in STEPS}
    state: str | None = None
    for wished, joined, silent_ms in seen:
        for step in path(state, state_of(wished, joined, silent_ms, suspect_ms=2000, down_ms=6000)):
            assert (state, step) in rows
            state = step
    assert state in STATES


def test_every_state_is_reached_and_left_by_some_row() -> None:
    assert {step.after for step in STEPS} == set(STATES) == {step.before for step in STEPS if step.before}


def test_a_record_comes_back_as_it_was() -> None:
    member = Member(
        "la", DRAINING, "http://la:8101", Address("la", 1891), Address("la", 7101), Location(34.05, -118.24, "Los Angeles"), {"zone": "w"},
        Capacity(4, 2**30), 1.5, "0.1.0", 5, 6, "chicago", 7,
    )  # fmt: skip
    assert load_member("la", member.dump()) == member
    newer = json.loads(member.dump()) | {"colour": "blue"}
    assert load_member("la", json.dumps(newer).encode()) == member
    assert load_member("la", b'{"pop": "la"}') == Member("la")


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"\xff", b'{"pop": "ny"}', b'{"pop": "la", "state": "gone"}', b'{"pop": "la", "cost": "much"}', b'{"pop": "la", "link": {"host": "x"}}'],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(BadMember, match="'la'"):
        load_member("la", data)


def test_a_pop_says_again_what_it_is_and_not_what_others_decided() -> None:
    before = Member("la", DRAINING, "old", added_ms=5, joined_ms=6, admitted="ny", certificate_ms=7)
    now = Member("la", url="new").said_again(before)
    assert now == Member("la", DRAINING, "new", added_ms=5, joined_ms=6, admitted="ny", certificate_ms=7)
