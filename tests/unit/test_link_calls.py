"""Calls over a connection end once, whatever the peer does; and the kinds of questions that the data process answers."""

from typing import Any

import msgpack
import pytest
from link_fakes import MemoryStore, Side, run

from edgeflow.cluster import calls
from edgeflow.cluster.calls import Calls, Outcome, pack_body
from edgeflow.cluster.desk import Desk
from edgeflow.cluster.linkproto import Answer, Call
from edgeflow.cluster.standing import Stand, Standing
from edgeflow.cluster.wants import Wants
from edgeflow.errors import BadRequest, EdgeflowError, NotFound, ProtocolError, TooLarge, Unavailable
from edgeflow.store.records import LogId


def connected() -> tuple[Side, Side]:
    a, b = Side("a"), Side("b")
    a.connect("b", 0.0)
    b.connect("a", 0.0)
    run(a, b)
    return a, b


def ask(side: Side, body: dict[str, Any], timeout_s: float = 5.0) -> list[Outcome]:
    assert side.session is not None
    outcomes: list[Outcome] = []
    side.session.calls.call("has", "ns", body, timeout_s, outcomes.append, 1.0)
    return outcomes


def test_a_call_is_answered() -> None:
    a, b = connected()
    outcomes = ask(a, {"x": b"\x00", "y": "text"})
    run(a, b, 1.0)
    peer, call, body, done = b.answers.pop()
    assert (peer, call.kind, call.ns, call.within_ms, body) == ("a", "has", "ns", 5000, {"x": b"\x00", "y": "text"})
    done({"z": 1})
    done({"z": 2})
    run(a, b, 1.0)
    assert outcomes == [{"z": 1}]


def test_an_error_keeps_its_name_on_the_way() -> None:
    a, b = connected()
    outcomes = ask(a, {})
    run(a, b, 1.0)
    b.answers.pop()[3](NotFound("no such key", details={"key": "k"}))
    run(a, b, 1.0)
    (error,) = outcomes
    assert isinstance(error, NotFound) and error.message == "no such key" and error.details == {"key": "k"}


def test_a_late_call_ends_and_its_late_answer_is_passed_over() -> None:
    a, b = connected()
    outcomes = ask(a, {}, 0.5)
    run(a, b, 1.0)
    assert a.session is not None
    a.session.beat(2.0)
    assert [type(outcome) for outcome in outcomes] == [Unavailable]
    b.answers.pop()[3]({})
    run(a, b, 2.0)
    assert len(outcomes) == 1


def test_what_is_open_ends_with_the_connection() -> None:
    a, _ = connected()
    outcomes = ask(a, {})
    assert a.session is not None
    a.session.calls.close()
    assert isinstance(outcomes[0], Unavailable)
    assert isinstance(ask(a, {})[0], Unavailable)


def test_a_body_that_is_too_long_is_refused_on_either_side() -> None:
    a, b = connected()
    assert isinstance(ask(a, {"x": b"0" * 2_000_000})[0], TooLarge)
    outcomes = ask(a, {})
    run(a, b, 1.0)
    b.answers.pop()[3]({"x": b"0" * 2_000_000})
    run(a, b, 1.0)
    assert isinstance(outcomes[0], TooLarge)


def test_open_calls_are_bounded_in_both_directions() -> None:
    sent: list[Any] = []
    one = Calls("b", sent.append, lambda *_call: None)
    outcomes: list[Outcome] = []
    for _ in range(calls.OPEN_CALLS + 1):
        one.call("has", "ns", {}, 5.0, outcomes.append, 0.0)
    assert len(sent) == calls.OPEN_CALLS and isinstance(outcomes[0], Unavailable)
    sent.clear()
    for id in range(calls.OPEN_CALLS + 1):
        one.on_call(Call(id, "has", "ns", 1000, pack_body({})), 0.0)
    assert [(message.id, message.error) for message in sent] == [(calls.OPEN_CALLS, "unavailable")]
    one.expire(2.0)
    one.on_call(Call(0, "has", "ns", 1000, pack_body({})), 2.0)


@pytest.mark.parametrize("body", [b"\xc1", msgpack.packb([1]), msgpack.packb(7), b""])
def test_rubbish_as_a_body_is_refused_and_the_link_goes_on(body: bytes) -> None:
    sent: list[Any] = []
    one = Calls("b", sent.append, lambda *_call: None)
    one.on_call(Call(1, "has", "ns", 1000, body), 0.0)
    assert [message.error for message in sent] == ["protocol-error"]
    outcomes: list[Outcome] = []
    one.call("has", "ns", {}, 5.0, outcomes.append, 0.0)
    one.on_answer(Answer(1, "", body))
    assert isinstance(outcomes[0], ProtocolError)


def test_an_answer_without_a_question_ends_the_connection() -> None:
    one = Calls("b", lambda _message: None, lambda *_call: None)
    with pytest.raises(ProtocolError, match="was not made"):
        one.on_answer(Answer(1, "", pack_body({})))


class Question:
    """A question of the control process."""

    def __init__(self, kind: str, left_s: float = 5.0, **args: Any) -> None:
        self.kind = kind
        self.args = args
        self.left_s = left_s
        self.outcomes: list[Any] = []

    def answer(self, body: dict[str, Any]) -> None:
        self.outcomes.append(body)

    def refuse(self, error: EdgeflowError) -> None:
        self.outcomes.append(error)


class Office:
    """A desk with its links replaced by lists."""

    def __init__(self, *peers: str) -> None:
        self.now_s = 0.0
        self.store = MemoryStore("a")
        self.names = list(peers)
        self.standing = Standing("a", peers, lambda ns: Stand(*self.store.namespace(ns).standing()))
        self.wants = Wants()
        self.calls: list[tuple[str, str, dict[str, Any], Any]] = []
        self.down: set[str] = set()
        self.pushed: list[str] = []
        self.pings = 0
        self.desk = Desk("a", self.store, self.standing, self.wants, self, lambda: self.now_s)

    def peers(self) -> list[str]:
        return self.names

    def call(self, peer: str, kind: str, ns: str, body: Any, timeout_s: float, done: Any) -> None:
        if peer in self.down:
            done(Unavailable("down"))
        else:
            self.calls.append((peer, kind, dict(body), done))

    def ping_all(self) -> None:
        self.pings += 1

    def push(self, ns: str) -> None:
        self.pushed.append(ns)

    def ask(self, kind: str, left_s: float = 5.0, **args: Any) -> Question:
        question = Question(kind, left_s, **args)
        self.desk.serve(question)  # type: ignore[arg-type]
        return question

    def take(self, kind: str, within_ms: int = 5000, ns: str = "ns", **body: Any) -> list[Any]:
        outcomes: list[Any] = []
        self.desk.answer_call("b", Call(1, kind, ns, within_ms, b""), body, outcomes.append)
        return outcomes


def position(seq: int, origin: str = "a") -> dict[str, Any]:
    return {"origin": origin, "epoch": 1, "seq": seq}


def test_await_answers_when_enough_peers_have_it() -> None:
    office = Office("b", "c", "d")
    office.down = {"d"}
    question = office.ask("await", ns="ns", **position(1), k=2, timeout_ms=2000)
    assert office.pushed == ["ns"] and {call[0] for call in office.calls} == {"b", "c"}
    office.calls.pop()[3]({"applied": True})
    assert question.outcomes == []
    office.down = set()
    office.now_s = 1.0
    office.desk.tick()
    assert office.calls[-1][0] == "d"
    office.calls.pop()[3]({"applied": True})
    assert question.outcomes == [{"confirmed": 2}]
    office.now_s = 3.0
    office.desk.tick()
    assert question.outcomes == [{"confirmed": 2}]


def test_await_says_how_many_when_its_time_is_over() -> None:
    office = Office("b", "c")
    question = office.ask("await", ns="ns", **position(1), k=2, timeout_ms=500)
    office.calls.pop()[3]({"applied": True})
    office.calls.pop()[3](Unavailable("gone"))
    office.now_s = 0.6
    office.desk.tick()
    assert question.outcomes == [{"confirmed": 1}]


def test_more_pops_than_there_are_is_refused() -> None:
    assert isinstance(Office("b").ask("await", ns="ns", **position(1), k=2, timeout_ms=1).outcomes[0], BadRequest)


def test_a_peer_confirms_what_is_applied_with_its_bodies() -> None:
    office = Office("b")
    space = office.store.namespace("ns")
    assert office.take("has", **position(1, "b")) == [{"has": False}]
    outcomes = office.take("applied", **position(1, "b"))
    body = b"0" * 100
    raw = MemoryStore("b").namespace("ns").append(b"1", [body])
    space.mirror(LogId("b", 1), 1, [raw])
    office.standing.touch({"ns"})
    office.desk.changed("ns")
    assert outcomes == []
    space.add_blob(next(iter(space.missing)), body)
    office.standing.touch({"ns"})
    office.desk.changed("ns")
    assert outcomes == [{"applied": True}]
    late = office.take("applied", 100, **position(2, "b"))
    office.now_s = 0.2
    office.desk.tick()
    assert late == [{"applied": False}]


def test_has_asks_the_pop_that_is_named() -> None:
    office = Office("b")
    office.store.namespace("ns").append(b"1")
    assert office.ask("has", ns="ns", **position(1)).outcomes == [{"has": True}]
    assert office.ask("has", ns="ns", **position(2)).outcomes == [{"has": False}]
    question = office.ask("has", pop="b", ns="ns", **position(1))
    assert office.calls[-1][:3] == ("b", "has", position(1))
    office.calls.pop()[3]({"has": True})
    assert question.outcomes == [{"has": True}]
    assert isinstance(office.ask("has", pop="z", ns="ns", **position(1)).outcomes[0], BadRequest)


def test_sync_answers_when_every_peer_has_answered_and_all_is_here() -> None:
    office = Office("b")
    question = office.ask("sync", ns="ns")
    assert office.pings == 1 and question.outcomes == []
    office.standing.answered("b", 0.0)
    office.now_s = 0.1
    office.desk.heard()
    assert question.outcomes == [{"staleness_ms": 100}]
    never = Office("b")
    question = never.ask("sync", 1.0, ns="ns")
    never.now_s = 1.0
    never.desk.tick()
    assert question.outcomes == [{"staleness_ms": None}]


def test_stand_says_what_is_known() -> None:
    office = Office("b")
    office.store.namespace("ns").append(b"1")
    office.store.namespace("ns").floor = "0000000000001.00000@~"
    assert office.ask("stand", ns="ns").outcomes == [{"passed": [], "floor": "", "staleness_ms": None}]
    office.standing.heard("b", "ns", Stand("0000000000002.00000@~", {LogId("a", 1): 1}))
    office.standing.answered("b", 0.0)
    assert office.ask("stand", ns="ns").outcomes == [
        {"passed": [["a", 1, 1]], "floor": "0000000000001.00000@~", "staleness_ms": 0}
    ]


def test_fetch_waits_for_a_body_and_says_when_nobody_has_it() -> None:
    office = Office("b")
    digest = "sha256:" + "0" * 64
    question = office.ask("fetch", ns="ns", digest=digest)
    assert office.wants.take("b", 0.0) == {"ns": [digest]}
    office.wants.settle("ns", [], 0.0)
    assert len(office.wants) == 1, "it is still wanted"
    office.store.namespace("ns").blobs[digest] = b"12"
    office.desk.changed("ns")
    assert question.outcomes == [{"size": 2}]
    office.wants.settle("ns", [], 0.0)
    assert len(office.wants) == 0
    question = office.ask("fetch", 0.1, ns="ns", digest="sha256:" + "1" * 64)
    office.now_s = 1.0
    office.desk.tick()
    assert isinstance(question.outcomes[0], Unavailable)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("nonsense", {}),
        ("has", {"ns": "../x"}),
        ("has", {"ns": "ns", "origin": 1}),
        ("has", {"ns": "ns", "origin": "a", "epoch": "1", "seq": 1}),
        ("await", {"ns": "ns", "origin": "a", "epoch": 1, "seq": 1, "k": -1}),
        ("fetch", {"ns": "ns", "digest": "../../x"}),
        ("home", {"ns": "ns", "pop": "a", "op": "drop-everything"}),
    ],
)
def test_bad_questions_are_refused_by_name(kind: str, args: dict[str, Any]) -> None:
    (outcome,) = Office("b").ask(kind, **args).outcomes
    assert isinstance(outcome, EdgeflowError) and outcome.status == 400


def test_unknown_calls_and_operations_are_refused_by_name() -> None:
    office = Office("b")
    with pytest.raises(BadRequest, match="'nonsense'"):
        office.take("nonsense")
    with pytest.raises(BadRequest, match="'nonsense' is not an operation"):
        office.take("home", op="nonsense")
    with pytest.raises(BadRequest, match="the arguments of 'read' are not right"):
        office.take("home", op="read")
