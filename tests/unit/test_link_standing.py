"""Where members stand: passed, floor and staleness never claim more than was said, whatever the order in which things are heard."""

from hypothesis import given
from hypothesis import strategies as st
from link_fakes import Side, run

from edgeflow.cluster.standing import MARKS, Stand, Standing
from edgeflow.store.records import LogId

A, B, C = LogId("a", 1), LogId("b", 1), LogId("c", 1)
LOW, MIDDLE, HIGH = (f"000000000000{n}.00000@~" for n in (1, 2, 3))


class Pop:
    def __init__(self, *peers: str) -> None:
        self.stand = Stand("", {})
        self.reads = 0
        self.standing = Standing("a", peers, self.read)

    def read(self, _ns: str) -> Stand:
        self.reads += 1
        return self.stand

    def applies(self, floor: str = "", **applied: int) -> None:
        self.stand = Stand(floor, {LogId(name, 1): seq for name, seq in applied.items()})
        self.standing.touch({"ns"})

    def hears(self, peer: str, floor: str = "", **applied: int) -> None:
        self.standing.heard(peer, "ns", Stand(floor, {LogId(name, 1): seq for name, seq in applied.items()}))


def test_passed_is_what_every_member_has_applied() -> None:
    pop = Pop("b", "c")
    pop.applies(a=9, b=5, c=1)
    assert pop.standing.passed("ns") == {}
    pop.hears("b", a=4, b=6, c=1)
    assert pop.standing.passed("ns") == {}
    pop.hears("c", a=7, b=2, c=3)
    assert pop.standing.passed("ns") == {A: 4, B: 2, C: 1}
    pop.hears("b", b=6)  # b has lost its store
    assert pop.standing.passed("ns") == {B: 2}


def test_a_floor_counts_when_what_lies_below_it_is_applied_here() -> None:
    pop = Pop("b", "c")
    pop.applies(HIGH, a=1)
    pop.hears("b", LOW, b=3)
    pop.hears("c", MIDDLE, c=1)
    for peer in ("b", "c"):
        pop.standing.answered(peer, 1.0)
    assert pop.standing.floor("ns") == ""
    pop.applies(HIGH, a=1, b=3)
    pop.standing.own("ns")
    assert pop.standing.floor("ns") == ""
    pop.applies(HIGH, a=1, b=3, c=1)
    pop.standing.own("ns")
    assert pop.standing.floor("ns") == LOW


def test_a_pop_alone_is_never_stale() -> None:
    pop = Pop()
    pop.applies(LOW, a=4)
    assert pop.standing.staleness_ms("ns", 5.0) == 0
    assert pop.standing.passed("ns") == {A: 4}
    assert pop.standing.floor("ns") == LOW


def test_staleness_counts_from_the_last_question_whose_answer_is_applied_here() -> None:
    pop = Pop("b")
    pop.applies(a=1)
    assert pop.standing.staleness_ms("ns", 1.0) is None
    pop.hears("b", b=10)
    pop.standing.answered("b", 1.0)
    assert pop.standing.staleness_ms("ns", 2.0) is None
    pop.hears("b", b=20)
    pop.standing.answered("b", 2.0)
    pop.applies(a=1, b=12)
    pop.standing.own("ns")
    assert pop.standing.staleness_ms("ns", 3.0) == 2000
    pop.applies(a=1, b=20)
    pop.standing.own("ns")
    assert pop.standing.staleness_ms("ns", 3.0) == 1000
    pop.standing.answered("b", 2.9)
    assert pop.standing.staleness_ms("ns", 3.0) == 100
    assert pop.standing.staleness_ms("ns", 9.0) == 6100


def test_a_namespace_that_a_peer_does_not_know_is_complete_when_it_answers() -> None:
    pop = Pop("b")
    pop.standing.answered("b", 1.0)
    assert pop.standing.staleness_ms("new", 1.5) == 500


def test_what_is_known_stays_known_when_a_peer_begins_to_write_and_is_cut_off() -> None:
    pop = Pop("b")
    pop.standing.answered("b", 5.0)
    assert pop.standing.staleness_ms("ns", 6.0) == 1000
    pop.hears("b", b=1)
    assert pop.standing.staleness_ms("ns", 7.0) == 2000
    pop.standing.answered("b", 8.0)
    assert pop.standing.staleness_ms("ns", 9.0) == 4000  # what it wrote is not here
    pop.applies(b=1)
    assert pop.standing.own("ns") == pop.stand
    assert pop.standing.staleness_ms("ns", 9.0) == 1000


def test_under_a_lasting_lag_it_is_still_known_how_fresh_this_is() -> None:
    pop = Pop("b")
    for n in range(1, 3 * MARKS):
        pop.hears("b", b=n)
        pop.standing.answered("b", float(n))
        pop.applies(b=max(0, n - 10))
        pop.standing.own("ns")
    assert pop.standing.staleness_ms("ns", 3.0 * MARKS) == 11_000


def test_nothing_is_read_when_nothing_changed() -> None:
    pop = Pop("b")
    pop.applies(a=1, b=1)
    pop.hears("b", b=1)
    for n in range(10):
        pop.standing.answered("b", float(n))
        assert pop.standing.staleness_ms("ns", float(n)) == 0
    assert pop.reads == 1
    told: dict[str, int] = {}
    assert pop.standing.news(told) == {"ns": pop.stand}
    assert pop.standing.news(told) == {}
    pop.applies(a=2, b=1)
    assert pop.standing.news(told) == {"ns": pop.stand}


@given(st.lists(st.tuples(st.sampled_from(["write", "state", "pong", "apply"]), st.integers(0, 5)), max_size=60))
def test_complete_as_of_t_is_true_of_what_was_written_by_t(steps: list[tuple[str, int]]) -> None:
    """A model in which the truth is known: what b had written at each moment."""
    pop = Pop("b")
    written, said, here = 0, 0, 0
    at: list[int] = []
    pinged = 0
    for now, (step, by) in enumerate(steps):
        at.append(written)
        if step == "write":
            written += by
        elif step == "state":
            pinged = now
        elif step == "pong":
            said = written
            pop.hears("b", b=said)
            pop.standing.answered("b", float(pinged))
        else:
            here = min(written, here + by)
            pop.applies(b=here)
            pop.standing.own("ns")
        complete_s = pop.standing.complete_s("ns", "b")
        if complete_s is not None:
            assert at[int(complete_s)] <= here


def test_two_sessions_tell_each_other_where_they_stand() -> None:
    a, b = Side("a"), Side("b")
    for n in range(3):
        a.store.namespace("ns").append(b"%d" % n)
    b.store.namespace("ns").floor = LOW
    a.store.namespace("ns").floor = HIGH
    a.connect("b", 0.0)
    b.connect("a", 0.0)
    now_s = run(a, b, 0.0)
    for _ in range(3):
        now_s += 0.25
        a.tick(now_s)
        b.tick(now_s)
        now_s = run(a, b, now_s)
    for side in (a, b):
        assert side.standing.passed("ns") == {A: 3}
        assert side.standing.floor("ns") == LOW
        staleness_ms = side.standing.staleness_ms("ns", now_s + 1)
        assert staleness_ms is not None and 1000 <= staleness_ms < 1300
