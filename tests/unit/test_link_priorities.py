"""Whose bodies go first on a link, and how much of a namespace goes: without I/O."""

import random

import pytest
from link_fakes import Side, digest_of, run, same, settle

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import Blob, decode
from edgeflow.cluster.rates import AT_ONCE_S, Rates
from edgeflow.cluster.transfers import ACTIVE, EVERY, Transfers
from edgeflow.cluster.wants import SENDING_S, Wants
from edgeflow.core.manifest import parse, resolve
from edgeflow.core.routing import compile_routes
from edgeflow.core.wire import FrameReader

KIB = 1024


def any_may(_namespace: str) -> bool:
    return True


class TestTransfers:
    def order(self, transfers: Transfers, pieces: int) -> list[str]:
        found = []
        for _ in range(pieces):
            turn = transfers.next(any_may)
            if turn is None:
                break
            (_, digest), transfer = turn
            transfer.off += 1
            found.append(digest)
            if transfer.off == transfer.size:
                transfers.end(("ns", digest))
        return found

    def test_the_best_goes_first_and_none_waits_for_ever(self) -> None:
        transfers = Transfers(10_000)
        for number in range(3 * ACTIVE):
            transfers.add(("ns", f"low{number}"), 100, rank=2)
        assert self.order(transfers, 5) == [f"low{number}" for number in range(5)]
        transfers.add(("ns", "high"), 1000, rank=0)
        order = self.order(transfers, 80)
        assert order.count("high") == 80 - 80 // EVERY, "it passes those that have begun, and leaves them a share"
        assert len(transfers) == 3 * ACTIVE + 1 and transfers.of("ns") == len(transfers)

    def test_in_one_rank_the_line_is_shared_and_nothing_is_lost(self) -> None:
        transfers = Transfers(50)
        chance = random.Random(1)
        sizes = {f"d{number}": chance.randint(1, 60) for number in range(40)}
        for digest, size in sizes.items():
            transfers.add(("ns", digest), size, rank=chance.randrange(3))
        order = self.order(transfers, 10_000)
        assert (
            {digest: order.count(digest) for digest in sizes} == sizes
            and len(transfers) == 0
            and transfers.of("ns") == 0
        )

    def test_one_that_is_queued_keeps_its_place(self) -> None:
        transfers = Transfers(1000)
        transfers.add(("ns", "a"), 10, rank=2)
        transfers.add(("ns", "a"), 10, 4, rank=0)
        assert transfers.bytes_left == 6 and len(transfers) == 1
        transfers.end(("ns", "a"))
        transfers.end(("ns", "a"))
        assert transfers.of("ns") == 0

    def test_who_may_not_send_holds_nobody_up(self) -> None:
        transfers = Transfers(10**9)
        for number in range(ACTIVE):
            transfers.add(("slow", str(number)), 10)
        transfers.add(("ns", "a"), 10, rank=2)
        turn = transfers.next(lambda name: name == "ns")
        assert turn is not None and turn[0] == ("ns", "a")
        assert transfers.next(lambda name: False) is None


class TestRates:
    def test_on_average_no_more_than_the_rate_goes(self) -> None:
        rates, sent, now_s = Rates({"ns": 1000.0}.get), 0, 0.0
        chance = random.Random(2)
        while now_s < 60:
            if rates.may("ns", now_s):
                size = chance.randint(1, 3000)
                rates.sent("ns", size)
                sent += size
            now_s += 0.25
        assert 0.9 * 60_000 < sent < 60_000 + AT_ONCE_S * 1000 + 3000

    def test_what_has_no_rate_is_not_counted_and_a_rate_may_go(self) -> None:
        known: dict[str, float] = {"ns": 10.0}
        rates = Rates(known.get)
        rates.sent("other", 10**9)
        assert rates.may("other", 0.0) and rates.may("ns", 0.0)
        rates.sent("ns", 10**6)
        assert not rates.may("ns", 1.0) and rates.waits == {"ns"}
        known.clear()
        assert rates.may("ns", 1.0) and not rates.waits


def blobs_of(frames: bytes) -> list[str]:
    return [message.digest for frame in FrameReader().feed(frames) if isinstance(message := decode(frame), Blob)]


@pytest.fixture
def pair() -> tuple[Side, Side]:
    return Side("a"), Side("b")


def connect(a: Side, b: Side) -> None:
    a.connect("b", 0.0)
    b.connect("a", 0.0)


def test_live_bodies_go_before_the_backlog_of_others_and_entries_stay_in_order(pair: tuple[Side, Side]) -> None:
    a, b = pair
    space, arrived = a.store.namespace("ns"), b.store.namespace("ns")
    backlog = [bytes([number]) * (100 * KIB) for number in range(60)]
    urgent = b"u" * (100 * KIB)
    for number, body in enumerate(backlog):
        space.append(b"%d" % number, [body])
    space.append(b"urgent", [urgent])
    space.ranks = {digest_of(urgent): 0, **{digest_of(body): 2 for body in backlog}}
    connect(a, b)
    run(a, b)
    assert same(a, b)
    order = [event.removeprefix("blob ") for event in arrived.events if event.startswith("blob")]
    before = order.index(digest_of(urgent))
    assert before < 60 // 3, f"{before} of the backlog's bodies were before it"
    assert [event for event in arrived.events if event.startswith("entry")] == [f"entry {seq}" for seq in range(1, 62)]

    # The control: without priorities it comes last, in the order of the log.
    c, d = Side("a"), Side("b")
    for number, body in enumerate([*backlog, urgent]):
        c.store.namespace("ns").append(b"%d" % number, [body])
    connect(c, d)
    run(c, d)
    plain = [event.removeprefix("blob ") for event in d.store.namespace("ns").events if event.startswith("blob")]
    assert plain.index(digest_of(urgent)) == 60


def test_a_namespace_with_a_rate_takes_its_time_and_holds_up_no_other(pair: tuple[Side, Side]) -> None:
    a, b = pair
    a.rates["ns"] = 200.0 * KIB
    for number in range(20):
        a.store.namespace("ns").append(b"%d" % number, [bytes([number]) * (100 * KIB)])
        a.store.namespace("other").append(b"%d" % number, [bytes([100 + number]) * (100 * KIB)])
    connect(a, b)
    now_s = run(a, b)
    assert len(b.store.namespace("other").blobs) == 20 and len(b.store.namespace("ns").blobs) < 6
    assert a.session is not None and a.session.sender is not None and a.session.sender.held_back == {"ns"}
    assert settle(a, b, now_s) > 7.0, "2000 KiB at 200 KiB a second"
    assert a.session.sender.held_back == frozenset()


def test_the_log_does_not_run_ahead_for_ever(pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeflow.cluster.sender.AHEAD", 70)
    a, b = pair
    space = a.store.namespace("ns")
    for number in range(400):
        space.append(b"%d" % number, [number.to_bytes(2, "big") * (10 * KIB)])
    space.ranks = {}
    connect(a, b)
    assert a.session is not None and b.session is not None
    a.session.receive(b.session.output(0.0), 0.0)
    b.session.receive(a.session.output(0.0), 0.0)
    assert a.session.sender is not None
    frames = a.session.output(0.0)
    assert a.session.sender._transfers.of("ns") <= 70 + linkproto.BATCH_ENTRIES
    b.session.receive(frames, 0.0)
    run(a, b)
    assert same(a, b)


def test_what_a_peer_sends_is_on_its_way_until_it_falls_silent() -> None:
    wants = Wants()
    wants.coming("ns", ["a", "b"], "peer", 0.0)
    wants.missing("ns", ["c"], 0.0)
    assert wants.on_their_way("ns", 0.0) == [], "announced, and nothing of anything has come"
    wants.sending("peer", 1.0)
    assert sorted(wants.on_their_way("ns", 1.0)) == ["a", "b"] and wants.on_their_way("other", 1.0) == []
    wants.failed(("ns", "a"), "peer", 1.0)
    assert wants.on_their_way("ns", 1.0) == ["b"], "it has not got it"
    wants.tick(100.0)
    wants.sending("peer", 100.0)
    assert wants.on_their_way("ns", 100.0) == ["b"], "a long queue is no answer"
    assert wants.on_their_way("ns", 100.0 + SENDING_S) == []
    wants.sending("peer", 200.0)
    wants.peer_lost("peer", 200.0)
    assert wants.on_their_way("ns", 200.0) == []


def test_priorities_in_a_manifest() -> None:
    text = "namespace: v\nchannels: {alarms: {priority: high}, raw/#: {priority: low}, x: {gated: true, priority: normal}}\nfunctions: {f: {image: i, subscribe: a}}"
    resolved = resolve(parse(text, default_pop="la"), {}, applied_ms=1, default_pop="la")
    table = compile_routes(resolved, "ny")
    assert [table.policy(f"v/{name}").rank for name in ("alarms", "other", "x", "raw/1")] == [
        0,
        1,
        1,
        2,
    ] and table.best_rank == 0
    assert "priority" not in resolved["channels"]["v/x"]
    plain = (
        text.replace("high", "normal")
        .replace("low", "normal")
        .replace("alarms: {priority: normal}, raw/#: {priority: normal}, ", "")
    )
    assert (
        compile_routes(resolve(parse(plain, default_pop="la"), {}, applied_ms=1, default_pop="la"), "la").best_rank
        is None
    )
