"""Snapshots and relays without I/O: what is not kept any more comes as values, once, whole or again; logs of a third PoP go round a dead link."""

import random
import zlib
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_fakes import Side, digest_of, run

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import Complete, Entries, Offer, Page, Take, decode, encode
from edgeflow.cluster.relays import RELAY_S, Relays
from edgeflow.cluster.snapshots import SILENCE_S
from edgeflow.cluster.standing import Stand
from edgeflow.core.wire import FrameReader
from edgeflow.errors import ProtocolError
from edgeflow.store.records import LogId

A, B, C = LogId("a", 1), LogId("b", 1), LogId("c", 1)


def connect(a: Side, b: Side, now_s: float = 0.0) -> None:
    a.connect(b.pop, now_s)
    b.connect(a.pop, now_s)


def ticks(a: Side, b: Side, now_s: float, until: Callable[[], bool], most: int = 30) -> float:
    for _ in range(most):
        if until():
            return now_s
        now_s += 1.0
        a.tick(now_s)
        b.tick(now_s)
        now_s = run(a, b, now_s)
    raise AssertionError("it never came to be so")


def values(side: Side) -> dict[tuple[LogId, int], bytes]:
    return side.store.namespace("ns").history


def pair(entries: int = 95, trimmed: int = 90) -> tuple[Side, Side]:
    a, b = Side("a"), Side("b")
    for n in range(entries):
        a.store.namespace("ns").append(b"%d" % n)
    a.store.namespace("ns").drop(A, trimmed)
    return a, b


@pytest.mark.parametrize("trimmed", [90, 95], ids=["a tail is kept", "nothing is kept"])
def test_a_late_joiner_gets_a_snapshot_and_then_the_log(trimmed: int) -> None:
    a, b = pair(95, trimmed)
    connect(a, b)
    now_s = run(a, b)
    assert values(b) == values(a)
    assert b.store.namespace("ns").logs() == {A: 95}
    assert b.store.namespace("ns").gaps == [(A, "ns/c", 95)]
    a.store.namespace("ns").append(b"after")
    ticks(a, b, now_s, lambda: values(b) == values(a))
    assert b.store.namespace("ns").logs() == {A: 96}
    assert a.session is not None and a.session.sender is not None
    assert a.session.sender.snapshots == 1 and a.session.sender.trouble == ""
    assert a.session.sender.acked["ns"][A] == 96


def test_who_has_enough_gets_no_snapshot() -> None:
    a, b = pair(95, 0)
    connect(a, b)
    run(a, b)
    a.store.namespace("ns").drop(A, 90)
    a.store.namespace("ns").append(b"after")
    connect(a, b, 10.0)
    run(a, b, 10.0)
    assert values(b) == values(a) and b.store.namespace("ns").pages == 0


def test_after_a_long_outage_only_what_is_missing_is_a_gap() -> None:
    a, b = pair(20, 0)
    connect(a, b)
    run(a, b)
    for n in range(50):
        a.store.namespace("ns").append(b"later %d" % n)
    a.store.namespace("ns").drop(A, 60)
    connect(a, b, 10.0)
    run(a, b, 10.0)
    assert values(b) == values(a) and b.store.namespace("ns").logs() == {A: 70}
    assert b.store.namespace("ns").gaps == [(A, "ns/c", 70)]


def test_one_that_is_cut_off_starts_again_and_leaves_nothing_half_done() -> None:
    a, b = pair()
    connect(a, b)
    assert a.session is not None and b.session is not None
    for now_s in range(1, 20):
        from_a = a.session.output(float(now_s))
        for message in (decode(frame) for frame in FrameReader().feed(from_a)):
            b.session.receive(encode(message), float(now_s))
            if isinstance(message, Page):
                break
        a.session.receive(b.session.output(float(now_s)), float(now_s))
        if b.store.namespace("ns").pages:
            break
    assert b.store.namespace("ns").pages == 1 and b.store.namespace("ns").logs() == {}
    connect(a, b, 30.0)
    run(a, b, 30.0)
    assert values(b) == values(a) and b.store.namespace("ns").logs() == {A: 95}


def test_one_that_cannot_be_taken_is_named_and_offered_again() -> None:
    a, b = pair()
    b.store.namespace("ns").fails_at_page = 3
    connect(a, b)
    now_s = run(a, b)
    assert b.store.namespace("ns").logs() == {} and b.imports.spaces == {}
    ticks(a, b, now_s, lambda: values(b) == values(a))


def test_other_namespaces_go_on_beside_it() -> None:
    a, b = pair(3000, 2999)
    a.store.namespace("other").append(b"1")
    connect(a, b)
    run(a, b)
    assert values(b) == values(a)
    assert b.store.namespace("other").logs() == {A: 1}


def test_of_a_namespace_one_is_taken_at_a_time() -> None:
    a, b = pair()
    connect(a, b)
    now_s = run(a, b)
    c = Side("c")
    for n in range(10):
        c.store.namespace("ns").append(b"c%d" % n)
    c.store.namespace("ns").drop(C, 9)
    b.imports.spaces.clear()
    connect(c, b, now_s)
    assert b.session is not None
    b.session.receive(encode(linkproto.Hello(linkproto.VERSION, "c1", "c", {})), now_s)
    b.session.receive(encode(Offer("ns", [("c", 1, 10)])), now_s)
    other = Side("b")
    other.store, other.imports, other.wants = b.store, b.imports, b.wants
    other.connect("d", now_s)
    assert other.session is not None
    other.session.receive(encode(linkproto.Hello(linkproto.VERSION, "c1", "d", {})), now_s)
    for at_s, reason in ((now_s + 1, "busy"), (now_s + SILENCE_S + 2, "")):
        other.session.output(at_s)
        other.session.receive(encode(Offer("ns", [("d", 1, 10)])), at_s)
        takes = [
            message
            for message in map(decode, FrameReader().feed(other.session.output(at_s)))
            if isinstance(message, Take)
        ]
        assert takes == [Take("ns", reason, [("d", 1, 0)])]


@pytest.mark.parametrize(
    "message",
    [Page("ns", "x", "y", b"\x90"), Page("ns", "", "", b"\x90"), Complete("ns", [])],
    ids=["not the next", "beyond the end", "too early"],
)
def test_pages_out_of_order_end_the_connection(message: linkproto.Message) -> None:
    b = Side("b")
    b.connect("a", 0.0)
    assert b.session is not None
    b.session.receive(encode(linkproto.Hello(linkproto.VERSION, "c1", "a", {})), 0.0)
    b.session.receive(encode(message), 0.0)  # nobody offered it: passed over
    b.session.receive(encode(Offer("ns", [("a", 1, 10)])), 0.0)
    with pytest.raises(ProtocolError):
        if isinstance(message, Page) and not message.last:
            b.session.receive(encode(message), 0.0)
        b.session.receive(encode(message), 0.0)


@pytest.mark.parametrize(
    "items", [b"\xc1", b"\x81\x01\x02", b"\x91\x01", b""], ids=["rubbish", "a map", "no item", "empty"]
)
def test_a_page_of_rubbish_is_refused_and_the_link_goes_on(items: bytes) -> None:
    b = Side("b")
    b.connect("a", 0.0)
    assert b.session is not None
    b.session.receive(encode(linkproto.Hello(linkproto.VERSION, "c1", "a", {})), 0.0)
    b.session.receive(encode(Offer("ns", [("a", 1, 10)])), 0.0)
    b.session.output(0.0)
    b.session.receive(encode(Page("ns", "", "", items)), 0.0)
    (take,) = [m for m in map(decode, FrameReader().feed(b.session.output(0.0))) if isinstance(m, Take)]
    assert take.reason.startswith("cannot be taken") and b.imports.spaces == {}


def test_bodies_of_a_snapshot_are_fetched() -> None:
    a, b = Side("a"), Side("b")
    body = random.randbytes(400_000)
    a.store.namespace("ns").append(b"1", [body])
    a.store.namespace("ns").append(b"2")
    a.store.namespace("ns").drop(A, 1)
    connect(a, b)
    now_s = run(a, b)
    ticks(a, b, now_s, lambda: b.store.namespace("ns").blobs.get(digest_of(body)) == body)


def test_entries_are_deflated_when_the_window_was_full() -> None:
    a, b = Side("a"), Side("b")
    for n in range(3000):
        a.store.namespace("ns").append(b"%d" % n + b"the same again and again " * 200)
    connect(a, b)
    assert a.session is not None and b.session is not None
    deflated: list[int] = []
    on_the_way: deque[bytes] = deque([b""] * 100)
    for step in range(2000):
        now_s = step * 0.001
        from_a = a.session.output(now_s)
        deflated += [m.z for m in map(decode, FrameReader().feed(from_a)) if isinstance(m, Entries)]
        if from_a:
            b.session.receive(from_a, now_s)
        on_the_way.append(b.session.output(now_s))
        if late := on_the_way.popleft():
            a.session.receive(late, now_s)
    assert values(b) == values(a)
    assert deflated[0] == 0 and deflated[-1] == 1, "not before the window was full"
    assert a.session.sender is not None and a.session.sender.saved_bytes > 5_000_000
    assert a.session.sender.acked_bytes == a.session.sender.sent_bytes


@pytest.mark.parametrize("small", [b"\x00", b"", b"x" * 100])
def test_deflated_rubbish_is_refused(small: bytes) -> None:
    with pytest.raises(ProtocolError):
        linkproto.inflated(Entries("ns", "a", 1, 1, [small], [], 1))


def test_a_deflated_flood_is_refused() -> None:
    bomb = zlib.compress(b"\x00" * (linkproto.INFLATED_BYTES + 10), 9)
    assert len(bomb) < 100_000
    with pytest.raises(ProtocolError):
        linkproto.inflated(Entries("ns", "a", 1, 1, [bomb], [], 1))


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=64))
@settings(max_examples=50)
def test_what_is_deflated_comes_back(entries: list[bytes]) -> None:
    small = linkproto.deflated(entries * 5)
    if small is not None:
        assert linkproto.inflated(Entries("ns", "a", 1, 1, small, [], 1)) == entries * 5


# Relays


def test_a_link_that_is_down_is_gone_round_after_a_while() -> None:
    relays = Relays()
    reach = {("b", "c"): 5, ("d", "c"): 9}

    def choose(now_s: float, **up: bool) -> dict[str, list[str]]:
        return relays.choose(up, lambda peer, pop: reach.get((peer, pop), 0), now_s)

    assert choose(0.0, b=True, c=False, d=True) == {"b": [], "d": []}
    assert choose(RELAY_S, b=True, c=False, d=True) == {"b": [], "d": ["c"]}
    reach["b", "c"] = 20
    assert choose(3.0, b=True, c=False, d=True) == {"b": ["c"], "d": []}
    assert choose(4.0, b=False, c=False, d=True) == {"d": ["c"]}
    assert choose(5.0, b=False, c=True, d=True) == {"c": [], "d": []}
    assert choose(5.5, b=False, c=False, d=True) == {"d": []}, "it is counted anew"


def test_a_healthy_mesh_relays_nothing() -> None:
    relays = Relays()
    for now in range(100):
        assert relays.choose({"b": True, "c": True}, lambda _peer, _pop: 1, float(now)) == {"b": [], "c": []}


def mirrored(side: Side, log: LogId, *payloads: bytes) -> None:
    source = Side(log.origin).store.namespace("ns")
    space = side.store.namespace("ns")
    head = space.logs().get(log, 0)
    space.mirror(log, head + 1, [source.append(payload) for payload in payloads])


def test_a_third_pops_log_is_sent_when_it_is_asked_for_and_not_before() -> None:
    a, b = Side("a"), Side("b")
    mirrored(a, C, b"1", b"2")
    connect(a, b)
    now_s = run(a, b)
    assert b.store.namespace("ns").logs() == {}
    assert b.session is not None and a.session is not None and a.session.sender is not None
    b.session.relay(["c"], ["c"], b.store.heads())
    now_s = run(a, b, now_s)
    assert b.store.namespace("ns").logs() == {C: 2} and a.session.sender.relayed == 2
    mirrored(a, C, b"3")
    a.session.notify({"ns"}, now_s)
    now_s = run(a, b, now_s)
    assert b.store.namespace("ns").logs() == {C: 3}
    b.session.relay([], [], b.store.heads())
    now_s = run(a, b, now_s)
    mirrored(a, C, b"4")
    ticked = 0

    def three_ticks() -> bool:
        nonlocal ticked
        ticked += 1
        return ticked > 3

    ticks(a, b, now_s, three_ticks)
    assert b.store.namespace("ns").logs() == {C: 3}


def test_a_relay_begins_where_the_asking_pop_is() -> None:
    a, b = Side("a"), Side("b")
    mirrored(a, C, b"1", b"2", b"3")
    b.store.namespace("ns").mirror(C, 1, a.store.namespace("ns").entries[C][:2])
    connect(a, b)
    now_s = run(a, b)
    assert b.session is not None and a.session is not None and a.session.sender is not None
    b.session.relay(["c"], ["c"], b.store.heads())
    run(a, b, now_s)
    assert b.store.namespace("ns").logs() == {C: 3} and a.session.sender.relayed == 1


def test_what_the_helper_does_not_keep_comes_as_a_snapshot() -> None:
    a, b = Side("a"), Side("b")
    mirrored(a, C, *(b"%d" % n for n in range(30)))
    a.store.namespace("ns").drop(C, 25)
    connect(a, b)
    now_s = run(a, b)
    assert b.session is not None
    b.session.relay(["c"], ["c"], b.store.heads())
    run(a, b, now_s)
    assert values(b) == values(a) and b.store.namespace("ns").logs() == {C: 30}


def test_freshness_goes_round_a_dead_link_too() -> None:
    a, b = Side("a"), Side("b")
    a.connect("b", 0.0)
    b.connect("a", 0.0)
    b.standing._peers["c"] = type(b.standing._peers["a"])()
    a.standing._peers["c"] = type(a.standing._peers["b"])()
    mirrored(a, C, b"1", b"2")
    now_s = run(a, b)
    a.standing.touch({"ns"})
    a.standing.heard("c", "ns", Stand("", {C: 2}))
    a.standing.answered("c", now_s)
    assert b.session is not None
    b.session.relay(["c"], ["c"], b.store.heads())
    assert b.standing.staleness_ms("ns", now_s) is None
    now_s = ticks(a, b, now_s, lambda: b.standing.staleness_ms("ns", now_s) is not None)
    staleness_ms = b.standing.staleness_ms("ns", now_s)
    assert staleness_ms is not None and 900 < staleness_ms < 3000
