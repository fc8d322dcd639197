"""Cursors of consumers: in any order of releases, with anything held, removed or lost, and cut anywhere, nothing is lost and nothing comes twice."""

import random
from collections.abc import Iterator

import pytest
from consumer_world import CHANNELS, Consumer, Faults, World
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeflow.api import tails
from edgeflow.core import cursors
from edgeflow.core.cursors import Cursor, merged, parse_cursor, passed, vector_text

SEEDS = st.integers(0, 2**32)


@pytest.fixture(autouse=True, scope="module")
def small_reads() -> Iterator[None]:
    """Reads so short that everything happens between two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tails, "READ_COUNT", 4)
        patch.setattr(tails, "SCAN_COUNT", 3)
        patch.setattr(tails, "SCAN_CHUNKS", 2)
        yield


def live(world: World, consumer: Consumer, steps: int, *, crashes: bool) -> None:
    """A consumer's life: it reads, is cut off anywhere, moves, while things happen."""
    world.restlessness = 0.3
    consumer.connect(world.pops[0])
    for _ in range(steps):
        action = world.random.random()
        if action < 0.6:
            world.step()
        elif action < 0.9:
            consumer.read(world.random.choice((0, 1, 2, 10**9)))
        elif crashes and action < 0.93:
            consumer.crash(world.random.choice(world.pops))
        else:
            consumer.connect(world.random.choice(world.pops))
    world.restlessness = 0.0
    world.settle()


def pattern_of(seed: int) -> str:
    return random.Random(seed).choice(("ns/#", "ns/+", "ns/c/#", *CHANNELS))


@given(SEEDS)
@settings(max_examples=400, deadline=None)
def test_each_id_is_yielded_once_or_told_as_missing(seed: int) -> None:
    world = World(seed)
    consumer = Consumer(world, pattern_of(seed))
    live(world, consumer, 150, crashes=False)
    last = world.random.choice(world.pops)
    consumer.drain(last)
    assert consumer.owed(last) == set()
    assert [id for id, times in consumer.yielded.items() if times > 1] == []


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_one_that_forgets_all_but_its_last_acknowledgement_loses_nothing(seed: int) -> None:
    world = World(seed)
    consumer = Consumer(world, pattern_of(seed))
    live(world, consumer, 150, crashes=True)
    last = world.random.choice(world.pops)
    consumer.drain(last)
    assert consumer.owed(last) == set()


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_nothing_is_told_as_missing_when_nothing_is(seed: int) -> None:
    world = World(seed, faults=Faults(late=True, retention=False, loss=False))
    consumer = Consumer(world, pattern_of(seed))
    live(world, consumer, 100, crashes=True)
    consumer.drain(world.random.choice(world.pops))
    assert consumer.missed == set()
    assert {gap["reason"] for gap in consumer.gaps} <= {"gate-timeout"}


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_one_that_moves_when_it_has_read_all_gets_nothing_twice_even_without_a_memory(seed: int) -> None:
    """What makes the vector worth its place: at every PoP it leaves out just what was there."""
    world = World(seed, faults=Faults(late=False, retention=False, loss=False))
    consumer = Consumer(world, pattern_of(seed))
    for _ in range(12):
        for _ in range(world.random.randrange(15)):
            world.step()
        consumer.drain(world.random.choice(world.pops))
        consumer.cursor = consumer._stream._cursors.text(consumer._stream._place)
    world.settle()
    last = world.random.choice(world.pops)
    consumer.drain(last)
    assert consumer.owed(last) == set()
    assert [id for id, times in consumer.given.items() if times > 1] == []


@pytest.mark.parametrize(
    "broken",
    ["ignores what is held", "ignores what comes later", "believes any position", "says nothing of what was removed"],
)
def test_the_check_sees_a_cursor_that_claims_too_much(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "ignores what is held":
        monkeypatch.setattr("consumer_world.low_water", lambda heads, _held: heads)
    elif broken == "ignores what comes later":
        monkeypatch.setattr(tails, "passed", lambda steps, known, end: [merged(known, end or {})] * (len(steps) + 1))
    elif broken == "says nothing of what was removed":
        monkeypatch.setattr(tails, "_removed", lambda _handle, _pattern, _known: iter(()))
    else:
        monkeypatch.setattr(tails, "_stands", lambda _handle, _place: True)
        monkeypatch.setattr(tails, "is_plausible", lambda _handle, _place: True)
    lost = 0
    for seed in range(150):
        world = World(seed)
        consumer = Consumer(world, "ns/#")
        live(world, consumer, 150, crashes=False)
        consumer.drain(world.pops[0])
        lost += len(consumer.owed(world.pops[0]))
    assert lost > 0


class TestText:
    def test_round_trip(self) -> None:
        cursor = Cursor("la", 123, "9f3ca1b2", {("chicago", 1): 55, ("la", 2): 99})
        assert str(cursor) == "la:123.9f3ca1b2;chicago.1.55,la.2.99"
        assert parse_cursor(str(cursor)) == cursor
        assert parse_cursor("la:7") == Cursor("la", 7)
        assert parse_cursor("7") == Cursor(None, 7)

    def test_a_long_vector_is_left_out(self) -> None:
        many = {(f"pop-{number}", 1): 10**6 for number in range(100)}
        assert vector_text(many) == ""
        assert str(Cursor("la", 1, "00000000", many)) == "la:1.00000000"
        assert len(vector_text(dict(list(many.items())[:50]))) <= cursors.MAX_VECTOR_BYTES + 1


class TestVectors:
    A, B = ("a", 1), ("b", 1)

    def test_each_step_back_takes_back_what_is_not_passed_yet(self) -> None:
        steps = [(self.A, 5), (self.B, 2), (self.A, 3), None]
        assert passed(steps, {}, {self.A: 5, self.B: 9}) == [
            {self.A: 2, self.B: 1}, {self.A: 2, self.B: 1}, {self.A: 2, self.B: 9}, {self.A: 5, self.B: 9}, {self.A: 5, self.B: 9},
        ]  # fmt: skip

    def test_what_was_known_stays(self) -> None:
        assert passed([(self.A, 5)], {self.A: 7}, {self.A: 5}) == [{self.A: 7}, {self.A: 7}]
        assert passed([(self.A, 5)], {self.B: 7}, None) == [{self.B: 7}, {self.B: 7}]
