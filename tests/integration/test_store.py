"""The store on a real Redis: log, gate, joins, claims and commits, one promise a test."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from store_pops import NAME
from store_pops import StorePop as Pop

from edgeflow.core.events import Event, make_event
from edgeflow.core.ids import invocation_id, join_invocation_id
from edgeflow.core.routing import compile_routes
from edgeflow.errors import (
    BadEvent,
    CorruptBlob,
    CorruptEntry,
    LogGap,
    NotFound,
    StoreFull,
    StoreUnavailable,
    TooLarge,
    VersionMismatch,
)
from edgeflow.store import Arrival, Claim, Commit, Receipt, Refusal, Store, ValueWrite
from edgeflow.store.blobs import Room
from edgeflow.store.replica import ReplicatedNamespace

LEASE_MS = 30_000


@pytest.fixture
def pops(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Pop]]:
    folder = tmp_path_factory.mktemp("s")
    opened: list[Pop] = []

    def open_pop(pop: str = "a", **limits: int) -> Pop:
        opened.append(Pop(folder, pop, **limits))
        return opened[-1]

    yield open_pop
    for pop in opened:
        pop.close()


def function(
    *channels: str, publish: tuple[str, ...] = (), join: dict[str, Any] | None = None, attempts: int = 3
) -> dict[str, Any]:
    return {
        "revision": "r1", "inputs": [{"name": channel, "channel": f"{NAME}/{channel}"} for channel in channels], "join": join,
        "publish": [f"{NAME}/{channel}" for channel in publish], "place": {"pops": []},
        "retry": {"attempts": attempts, "backoff_ms": 10, "timeout_ms": 1000},
    }  # fmt: skip


def install(ns: ReplicatedNamespace, **functions: dict[str, Any]) -> None:
    """Functions of which each PoP is the only one, as far as it knows."""
    placed = {name: {**function, "place": {"pops": [ns.pop]}} for name, function in functions.items()}
    ns.set_routes(compile_routes({"functions": placed}, ns.pop))


def event(channel: str, data: bytes = b"x", *, id: str = "e1", subject: str | None = "k", **attributes: str) -> Event:
    return make_event(f"{NAME}/{channel}", data, id=id, source="test", now_ms=1, subject=subject, attributes=attributes)


def ingest(ns: ReplicatedNamespace, *events: Event, **more: Any) -> list[Receipt]:
    results = ns.ingest([Arrival(one, **more) for one in events])
    assert all(isinstance(result, Receipt) for result in results), results
    return results  # type: ignore[return-value]


def released(ns: ReplicatedNamespace) -> list[str]:
    return [one.event.id if one.event else f"gap:{(one.gap or {})['channel']}" for one in ns.read_release(0, 1000)]


def claim(ns: ReplicatedNamespace, name: str, limit: int = 10, instance: str = "i1") -> Any:
    return ns.round(claims=[Claim(name, "r1", instance, limit, LEASE_MS)]).claimed[0]


def commit(ns: ReplicatedNamespace, *commits: Commit) -> list[str]:
    return [ended.status for ended in ns.round(commits=commits).ended]


def replicate(source: Pop, target: Pop) -> None:
    """All of `source`'s own log to `target`, entries only."""
    for log_id in source.ns.logs():
        if log_id.origin == source.settings.pop:
            entries = source.ns.read_log(log_id, 0, count=1000, max_bytes=1 << 30)
            target.ns.mirror(log_id, 1, [raw for _, raw in entries])


JOIN_ALL = {"kind": "all", "by": "subject", "within_ms": 60_000, "on_timeout": "dead-letter"}


# -- log and release ---------------------------------------------------------------------------------------------------


def test_positions_are_contiguous_and_each_event_names_the_one_before_it_on_its_channel(
    pops: Callable[..., Pop],
) -> None:
    ns = pops().ns
    receipts = ingest(ns, event("x", id="1"), event("y", id="2"), event("x", id="3"))
    assert [receipt.seq for receipt in receipts] == [1, 2, 3]
    events = [one.event for one in ns.read_release(0) if one.event]
    assert [(one.id, one.seq, one.prev) for one in events] == [("1", 1, 0), ("2", 2, 0), ("3", 3, 1)]


def test_bodies_of_every_size_come_back_as_they_went_in(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    bodies = [b"", b"\x00\xff" * 7, b"a" * 4096, b"b" * 4097, b"c" * 262_143, b"d" * 262_144, bytes(range(256)) * 5000]
    ingest(ns, *(event("x", body, id=str(number)) for number, body in enumerate(bodies)))
    assert [ns.data_of(one.event) for one in ns.read_release(0) if one.event] == bodies


def test_an_own_id_is_one_event_within_the_window_and_gets_the_same_receipt(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    first = ingest(ns, event("x", id="mine"), deduplicate=True)[0]
    again = ingest(ns, event("x", id="mine"), deduplicate=True)[0]
    assert (again.seq, again.duplicate) == (first.seq, True)
    assert released(ns) == ["mine"]
    assert ns.counters()["events_duplicate"] == 1


def shown(ns: ReplicatedNamespace) -> list[tuple[str, str]]:
    """(id, origin) of what subscribers are shown."""
    return [(one.event.id, one.event.origin) for one in ns.read_release(0, 1000) if one.event and not one.is_repeated]


def test_an_own_id_that_came_from_another_pop_is_known_here(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    first = ingest(a.ns, event("x", id="mine"), deduplicate=True, put_key="k")[0]
    replicate(a, b)
    again = ingest(b.ns, event("x", id="mine"), deduplicate=True, put_key="k")[0]
    assert again.duplicate and (again.origin, again.seq, again.version) == ("a", first.seq, first.version)
    assert shown(b.ns) == [("mine", "a")] and b.ns.counters()["events_duplicate"] == 1


def test_a_publish_that_was_repeated_at_another_pop_is_shown_and_handled_once_at_each(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    for pop in (a, b):
        install(pop.ns, f=function("x"))
    for pop in (a, b):
        ingest(pop.ns, event("x", id="mine"), deduplicate=True)
    ingest(a.ns, event("x", id="next"), deduplicate=True)
    replicate(a, b)
    replicate(b, a)
    assert shown(a.ns) == [("mine", "a"), ("next", "a")]
    assert shown(b.ns) == [("mine", "b"), ("next", "a")]
    for pop, ids in ((a, ["mine", "next"]), (b, ["mine", "next"])):
        assert [work.inputs[0].event.id for work in claim(pop.ns, "f")] == ids
        counters = pop.ns.counters()
        assert (counters["events_repeated"], counters["arrivals"]) == (1, 2)
        assert {one.name: one.events for one in pop.ns.channels()} == {f"{NAME}/x": 2}
        # Both entries are in the stream, so that a cursor can name either.
        assert sorted(released(pop.ns)) == ["mine", "mine", "next"]
    assert a.ns.content_hash() == b.ns.content_hash()


def test_events_that_clients_did_not_name_are_never_taken_for_repeated(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    for pop in (a, b):
        ingest(pop.ns, event("x", id="same"))
    replicate(a, b)
    assert shown(b.ns) == [("same", "b"), ("same", "a")]


def test_a_repeated_publish_is_taken_where_the_body_of_the_first_one_has_not_come(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    large = b"z" * 10_000
    ingest(a.ns, event("x", large, id="mine"), deduplicate=True)
    replicate(a, b)
    assert shown(b.ns) == []
    receipt = ingest(b.ns, event("x", large, id="mine"), deduplicate=True)[0]
    # The body came with it, and opens the gate of the first one before it is its turn: whichever it is, it is one.
    assert receipt.class_ == "durable" and [id for id, _ in shown(b.ns)] == ["mine"]


def test_an_event_that_waits_for_its_value_gives_way_to_the_one_that_came_from_another_pop(
    pops: Callable[..., Pop],
) -> None:
    a, b = pops("a"), pops("b")
    assert ingest(b.ns, event("x", b"", id="mine"), deduplicate=True, dataref=f"ekv:{NAME}/late")[0].class_ == "waiting"
    ingest(a.ns, event("x", b"v", id="mine"), deduplicate=True)
    replicate(a, b)
    assert shown(b.ns) == [("mine", "a")]
    b.ns.put("late", b"v")
    assert shown(b.ns) == [("mine", "a")] and b.ns.counters()["events_repeated"] == 1
    ingest(b.ns, event("x", b"", id="other"), deduplicate=True, dataref=f"ekv:{NAME}/later")
    b.ns.put("later", b"v")
    again = ingest(b.ns, event("x", b"", id="other"), deduplicate=True)[0]
    assert again.duplicate and again.class_ == "durable" and again.seq > 0


def test_a_redelivery_in_the_ring_is_taken_once_and_the_same_message_id_of_a_new_message_is_not_mistaken(
    pops: Callable[..., Pop],
) -> None:
    ns = pops().ns
    ingest(ns, event("x", id="1"), via="mqtt", ring="boot:7:aaaa")
    ingest(ns, event("x", id="1-again"), via="mqtt", ring="boot:7:aaaa", again=True)
    ingest(ns, event("x", id="2"), via="mqtt", ring="boot:7:aaaa", again=False)
    ingest(ns, event("x", id="3"), via="mqtt", ring="other:7:aaaa", again=True)
    assert released(ns) == ["1", "2", "3"]


def test_what_is_refused_is_refused_by_name_and_the_rest_of_the_batch_is_taken(pops: Callable[..., Pop]) -> None:
    ns = pops(event_bytes=1000).ns
    results = ns.ingest([
        Arrival(event("x", b"a" * 1001, id="large")), Arrival(event("x", id="good")), Arrival(event("x", id="ref"), dataref="http://elsewhere/x"),
        Arrival(event("x", id="foreign"), dataref="ekv:other/key"),
    ])  # fmt: skip
    assert [type(result.error) if isinstance(result, Refusal) else "taken" for result in results] == [
        TooLarge,
        "taken",
        BadEvent,
        BadEvent,
    ]
    assert released(ns) == ["good"]


def test_put_and_publish_are_one_entry(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    receipt = ingest(ns, event("x", b"body"), put_key="k/1")[0]
    value = ns.get("k/1")
    assert value is not None and (value.data, value.version) == (b"body", receipt.version)
    assert list(ns.logs().values()) == [1]


# -- values ------------------------------------------------------------------------------------------------------------


def test_conditions_of_a_put_hold(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    first = ns.put("k", b"1", if_absent=True)
    with pytest.raises(VersionMismatch):
        ns.put("k", b"2", if_absent=True)
    second = ns.put("k", b"2", if_version=first.version)
    with pytest.raises(VersionMismatch):
        ns.put("k", b"3", if_version=first.version)
    value = ns.get("k")
    assert value is not None and (value.data, value.version) == (b"2", second.version)
    assert ns.get("k", version=first.version) is None


def test_deleted_values_are_gone_and_may_come_back(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    ns.put("k", b"1")
    ns.delete("k")
    assert ns.get("k") is None and ns.list() == []
    with pytest.raises(NotFound):
        ns.delete("k")
    ns.put("k", b"2", if_absent=True)
    assert [info.key for info in ns.list()] == ["k"]


def test_listing_is_in_byte_order_by_prefix_and_in_pages(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    for key in ("b", "a/2", "a/1", "a0", "a/é", "c"):
        ns.put(key, b"")
    assert [info.key for info in ns.list("a/")] == ["a/1", "a/2", "a/é"]
    assert [info.key for info in ns.list("a/", after="a/1", limit=1)] == ["a/2"]
    assert [info.key for info in ns.list(after="a0")] == ["b", "c"]


def test_the_later_version_wins_in_whatever_order_logs_arrive(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    a.ns.put("k", b"from a")
    time.sleep(0.003)
    b.ns.put("k", b"from b, later")
    replicate(a, b)
    replicate(b, a)
    versions = [pop.ns.get("k") for pop in (a, b)]
    assert versions[0] == versions[1] and versions[0] is not None and versions[0].data == b"from b, later"


def test_a_clock_that_runs_behind_still_overwrites_what_it_has_seen(
    pops: Callable[..., Pop], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pops("a"), pops("b")
    a.ns.put("k", b"old")
    replicate(a, b)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3_600_000_000_000)
    b.ns.put("k", b"new")
    value = b.ns.get("k")
    assert value is not None and value.data == b"new"


# -- waiting for data --------------------------------------------------------------------------------------------------


def test_a_dataref_waits_for_its_value_and_holds_its_channel_only(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    waiting = ingest(ns, event("x", b"", id="ref"), dataref=f"ekv:{NAME}/clip")[0]
    ingest(ns, event("x", id="behind"), event("y", id="free"))
    assert waiting.class_ == "waiting" and released(ns) == ["free"]
    ns.put("clip", b"the clip", content_type="video/mp4")
    assert released(ns) == ["free", "ref", "behind"]
    ref = ns.read_release(1, 1)[0].event
    assert ref is not None and ns.data_of(ref) == b"the clip" and ref.datacontenttype == "video/mp4"


def test_a_dataref_keeps_what_it_meant_when_the_value_changes(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    ns.put("clip", b"one" * 5000)
    ingest(ns, event("x", b"", id="ref"), dataref=f"ekv:{NAME}/clip")
    ns.put("clip", b"two" * 5000)
    ref = ns.read_release(0, 1)[0].event
    assert ref is not None and ns.data_of(ref) == b"one" * 5000


def test_a_dataref_that_never_becomes_readable_is_a_gap_and_a_dead_letter(
    pops: Callable[..., Pop], wait_until: Callable[..., Any]
) -> None:
    ns = pops(gate_timeout_ms=50).ns
    install(ns, f=function("x"))
    ingest(ns, event("x", b"", id="ref"), dataref=f"ekv:{NAME}/never")
    ingest(ns, event("x", id="behind"))
    wait_until(lambda: ns.tick() or "behind" in released(ns), "the gate to give up")
    assert released(ns) == [f"gap:{NAME}/x", "behind"]
    assert [letter.reason for letter in ns.dead_letters()] == ["gate-timeout"]


# -- the gate of mirrored entries --------------------------------------------------------------------------------------


def test_a_mirrored_event_is_released_only_when_its_body_is_here(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    ingest(a.ns, event("x", b"big" * 5000, id="1"), event("x", id="2"), event("y", id="3"))
    replicate(a, b)
    assert released(b.ns) == ["3"]
    (missing,) = b.ns.missing_blobs()
    body = a.ns.read_blob(missing)
    assert body is not None
    with pytest.raises(CorruptBlob):
        b.ns.add_blob(missing, body + b"!")
    assert released(b.ns) == ["3"]
    b.ns.add_blob(missing, body)
    assert released(b.ns) == ["3", "1", "2"]


def test_mirroring_twice_changes_nothing_and_holes_are_refused(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    ingest(a.ns, *(event("x", id=str(number)) for number in range(5)))
    (log_id,) = a.ns.logs()
    raws = [raw for _, raw in a.ns.read_log(log_id, 0)]
    assert b.ns.mirror(log_id, 1, raws[:3]).mirrored == 3
    assert b.ns.mirror(log_id, 2, raws[1:3]).mirrored == 3
    with pytest.raises(LogGap):
        b.ns.mirror(log_id, 5, raws[4:])
    assert b.ns.mirror(log_id, 3, raws[2:]).mirrored == 5
    assert released(b.ns) == list("01234")


def test_a_damaged_entry_is_refused_and_nothing_is_written(pops: Callable[..., Pop]) -> None:
    a, b = pops("a"), pops("b")
    ingest(a.ns, event("x", b"hello world", id="1"))
    (log_id,) = a.ns.logs()
    ((_, raw),) = a.ns.read_log(log_id, 0)
    for damaged in (raw.replace(b"hello", b"jello"), raw[:-3], b"", b"\x93\x01\x02\x03"):
        with pytest.raises(CorruptEntry):
            b.ns.mirror(log_id, 1, [damaged])
    assert b.ns.logs() == {}


def test_a_body_that_never_comes_is_a_gap_here_and_later_events_go_on(
    pops: Callable[..., Pop], wait_until: Callable[..., Any]
) -> None:
    a, b = pops("a"), pops("b", gate_timeout_ms=50)
    install(b.ns, f=function("x"))
    ingest(a.ns, event("x", b"big" * 5000, id="1"), event("x", id="2"))
    replicate(a, b)
    wait_until(lambda: b.ns.tick() or "2" in released(b.ns), "the gate to give up")
    assert released(b.ns) == [f"gap:{NAME}/x", "2"]
    assert [letter.reason for letter in b.ns.dead_letters()] == ["gate-timeout"]


def test_a_body_that_is_on_its_way_is_not_late(pops: Callable[..., Pop], wait_until: Callable[..., Any]) -> None:
    a, b = pops("a"), pops("b", gate_timeout_ms=50)
    install(b.ns, f=function("x"))
    ingest(a.ns, event("x", b"big" * 5000, id="1"), event("y", b"other" * 5000, id="2"))
    replicate(a, b)
    coming = [digest for digest in b.ns.missing_blobs() if (a.ns.read_blob(digest) or b"").startswith(b"big")]
    assert b.ns.extend_gate(coming) == 1
    wait_until(lambda: b.ns.tick() or f"gap:{NAME}/y" in released(b.ns), "the other one to be given up")
    assert released(b.ns) == [f"gap:{NAME}/y"]
    b.ns.add_blob(coming[0], b"big" * 5000)
    assert released(b.ns) == [f"gap:{NAME}/y", "1"] and not b.ns.dead_letters()


# -- joins -------------------------------------------------------------------------------------------------------------


def test_a_join_starts_once_both_are_here_in_either_order(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, j=function("frames", "faces", join=JOIN_ALL))
    ingest(ns, event("faces", b"B", id="1", subject="s2"), event("frames", b"A", id="2", subject="s1"))
    assert claim(ns, "j") == []
    assert sorted((join.key, *join.have, join.needed) for join in ns.pending_joins()) == [
        ("s1", "frames", 2),
        ("s2", "faces", 2),
    ]
    ingest(ns, event("frames", b"C", id="3", subject="s2"))
    (claimed,) = claim(ns, "j")
    assert {item.name: item.event.data for item in claimed.inputs} == {"faces": b"B", "frames": b"C"}
    assert claimed.id == join_invocation_id("j", "s2", 1)


def test_a_second_arrival_for_the_same_slot_is_counted_and_the_first_stays(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, j=function("frames", "faces", join=JOIN_ALL))
    ingest(ns, event("frames", b"1", id="1"), event("frames", b"2", id="2"), event("faces", id="3"))
    (claimed,) = claim(ns, "j")
    assert {item.name: item.event.id for item in claimed.inputs} == {"frames": "1", "faces": "3"}
    assert ns.counters()["arrivals_duplicate"] == 1


def test_collect_starts_when_the_announced_number_is_here(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, c=function("frames", join={**JOIN_ALL, "kind": "collect", "by": "chunk", "count": "count"}))
    ingest(
        ns,
        *(event("frames", id=str(n), subject=None, chunk="c1", count="3") for n in range(2)),
        event("frames", id="o", chunk="c2", count="3"),
    )
    assert claim(ns, "c") == []
    ingest(ns, event("frames", id="2", chunk="c1", count="3"))
    (claimed,) = claim(ns, "c")
    assert [item.event.id for item in claimed.inputs] == ["0", "1", "2"]


def test_a_join_that_stays_incomplete_says_what_is_missing(
    pops: Callable[..., Pop], wait_until: Callable[..., Any]
) -> None:
    ns = pops().ns
    install(ns, j=function("frames", "faces", join={**JOIN_ALL, "within_ms": 20}))
    ingest(ns, event("frames", b"A", id="1"))
    wait_until(lambda: ns.tick() or ns.dead_letters(), "the join to time out")
    (letter,) = ns.dead_letters()
    full = ns.dead_letter(letter.id)
    assert letter.reason == "join-timeout" and "only frames arrived" in letter.detail
    assert full is not None and [item.event.id for item in full.inputs] == ["1"]
    assert ns.pending_joins() == []


def test_an_event_without_a_join_key_is_a_dead_letter_of_that_function_only(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, j=function("frames", "faces", join=JOIN_ALL), one=function("frames"))
    ingest(ns, event("frames", subject=None))
    assert [(letter.function, letter.reason) for letter in ns.dead_letters()] == [("j", "no-join-key")]
    assert len(claim(ns, "one")) == 1


# -- claims and commits ------------------------------------------------------------------------------------------------


def test_a_commit_shows_all_its_effects_at_once_and_a_repeated_one_changes_nothing(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, f=function("x", publish=("y",)))
    receipt = ingest(ns, event("x", id="1"))[0]
    (claimed,) = claim(ns, "f")
    assert claimed.id == invocation_id("f", "a", receipt.epoch, receipt.seq, 0)
    effects = Commit(
        claimed.id, claimed.attempt, [event("y", b"o" * 9000, id="o1"), event("y", id="o2")], [ValueWrite("k", b"v")]
    )
    for _ in range(2):
        assert commit(ns, effects) == ["committed"]
    assert released(ns) == ["1", "o1", "o2"] and ns.in_flight() == 0
    value = ns.get("k")
    assert value is not None and value.data == b"v"
    assert list(ns.logs().values()) == [2]


def test_the_commit_of_a_stale_attempt_writes_nothing(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, f=function("x", publish=("y",)))
    ingest(ns, event("x", id="1"))
    (old,) = claim(ns, "f", instance="zombie")
    ns.release_claims(instance="zombie")
    released_commit = Commit(old.id, old.attempt, [event("y", id="before")], [ValueWrite("k", b"zombie")])
    assert commit(ns, released_commit) == ["stale"]
    (new,) = claim(ns, "f", instance="i2")
    assert new.id == old.id and new.attempt == old.attempt + 1
    assert commit(ns, released_commit) == ["stale"]
    assert commit(ns, Commit(new.id, new.attempt, [event("y", id="good")])) == ["committed"]
    assert commit(ns, released_commit) == ["stale"]
    assert released(ns) == ["1", "good"] and ns.get("k") is None


def test_a_commit_that_refers_to_a_body_that_is_not_here_writes_nothing(pops: Callable[..., Pop]) -> None:
    from edgeflow.core.events import BlobRef

    ns = pops().ns
    install(ns, f=function("x", publish=("y",)))
    ingest(ns, event("x", id="1"))
    (claimed,) = claim(ns, "f")
    absent = BlobRef("sha256:" + "0" * 64, 5)
    (ended,) = ns.round(commits=[Commit(claimed.id, claimed.attempt, [], [ValueWrite("k", None, absent)])]).ended
    assert (ended.status, ended.detail) == ("missing", absent.digest)
    assert ns.get("k") is None and ns.in_flight() == 1


def test_failures_are_retried_then_given_up_with_reason_and_inputs(
    pops: Callable[..., Pop], wait_until: Callable[..., Any]
) -> None:
    ns = pops().ns
    install(ns, f=function("x"))
    ingest(ns, event("x", b"input", id="1"))
    for attempt in (1, 2):
        (claimed,) = wait_until(lambda: ns.tick() or claim(ns, "f"), "the next attempt")
        assert claimed.attempt == attempt
        outcome = ns.fail(claimed.id, attempt, "handler-failed", "boom\ntraceback", 5 if attempt == 1 else None)
        assert outcome == ("retry" if attempt == 1 else "dead")
    assert ns.fail(claimed.id, 2, "handler-failed", "late", None) == "stale"
    (letter,) = ns.dead_letters()
    full = ns.dead_letter(letter.id)
    assert (letter.function, letter.reason, letter.attempts) == ("f", "handler-failed", 2) and "boom" in letter.detail
    assert full is not None and ns.data_of(full.inputs[0].event) == b"input"
    assert claim(ns, "f") == [] and ns.in_flight() == 0


def test_suspects_of_a_failed_batch_are_claimed_alone(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, f=function("x"))
    ingest(ns, *(event("x", id=str(number)) for number in range(3)))
    assert len(claim(ns, "f", instance="died")) == 3
    ns.release_claims(instance="died", suspect=True)
    ingest(ns, event("x", id="3"))
    assert [len(claim(ns, "f")) for _ in range(5)] == [1, 1, 1, 1, 0]


def test_a_lease_that_ends_is_reported_with_its_attempt(
    pops: Callable[..., Pop], wait_until: Callable[..., Any]
) -> None:
    ns = pops().ns
    install(ns, f=function("x"))
    ingest(ns, event("x", id="1"))
    (claimed,) = ns.round(claims=[Claim("f", "r1", "gone", 1, 10)]).claimed[0]
    (expired,) = wait_until(ns.tick, "the lease to end")
    assert (expired.id, expired.attempt, expired.function, expired.instance) == (claimed.id, 1, "f", "gone")


def test_directives_of_an_older_routing_table_are_refused_and_made_again(pops: Callable[..., Pop]) -> None:
    pop = pops()
    install(pop.ns, f=function("x"))
    pop.ns.routes()
    other = Store.open(pop.settings)
    install(other.namespace(NAME), f=function("x"), g=function("x"))
    ingest(pop.ns, event("x", id="1"))
    assert (len(claim(pop.ns, "f")), len(claim(pop.ns, "g"))) == (1, 1)
    other.close()


def test_routes_that_change_between_the_writes_of_a_round_do_not_double_its_arrivals(
    pops: Callable[..., Pop], monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    ns = pops().ns
    install(ns, f=function("x", publish=("y",)))
    ingest(ns, event("x", id="1"))
    (claimed,) = claim(ns, "f")
    run = ns._connection.run

    def refuse_the_commit(commands: Any, **more: Any) -> list[Any]:
        monkeypatch.setattr(ns._connection, "run", run)
        kept = [command for command in commands if command[1] != "ef_commit"]
        return [*run(kept, **more), redis.ResponseError("STALEROUTES")]

    monkeypatch.setattr(ns._connection, "run", refuse_the_commit)
    arrival = Arrival(event("x", id="2"), via="mqtt", ring="b:7:x")
    done = ns.round(arrivals=[arrival], commits=[Commit(claimed.id, claimed.attempt, [event("y", id="out")])])
    assert [ended.status for ended in done.ended] == ["committed"] and isinstance(done.receipts[0], Receipt)
    assert sorted(released(ns)) == ["1", "2", "out"]


# -- the equations -----------------------------------------------------------------------------------------------------


def test_conservation(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    install(ns, j=function("x", "y", join=JOIN_ALL), f=function("x", publish=("y",)))
    for number in range(30):
        ingest(ns, event("x", id=f"x{number}", subject=f"s{number % 20}" if number % 7 else None))
    while claimed := claim(ns, "f", 4):
        for item in claimed[1:]:
            subject = item.inputs[0].event.subject
            commit(ns, Commit(item.id, item.attempt, [event("y", id=item.id, subject=subject)] if subject else []))
        ns.fail(claimed[0].id, claimed[0].attempt, "handler-failed", "", None)
    counters = ns.counters()
    pending = sum(len(join.have) for join in ns.pending_joins())
    arrivals = sum(
        counters.get(name, 0)
        for name in ("arrivals_consumed", "arrivals_duplicate", "arrivals_expired", "arrivals_dropped:rejected")
    )
    assert counters["arrivals"] == arrivals + pending
    ended = counters["invocations_committed"] + sum(
        letter.reason == "handler-failed" for letter in ns.dead_letters(limit=1000)
    )
    assert counters["invocations_accepted"] == ended + ns.in_flight()


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_redis_that_is_killed_in_the_middle_keeps_every_acknowledged_event_once(pops: Callable[..., Pop]) -> None:
    import threading

    pop = pops()
    acknowledged: list[str] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            ingest(pop.ns, event("x", id=f"e{number}"), deduplicate=True)
            acknowledged.append(f"e{number}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(3):
        before = len(acknowledged)
        while len(acknowledged) < before + 200 and writer.is_alive():
            time.sleep(0.001)
        pop.redis.kill()
        pop.redis.start()
    stop.set()
    writer.join(20)
    seen = [one.event.id for one in pop.ns.read_release(0, 100_000) if one.event]
    assert len(acknowledged) >= 600 and seen == acknowledged and pop.store.outages >= 1


def test_a_store_that_stays_away_is_said_so(pops: Callable[..., Pop]) -> None:
    pop = pops()
    settings = pop.settings.model_copy(update={"store": pop.settings.store.model_copy(update={"retry_s": 0.1})})
    store = Store.open(settings)
    pop.redis.kill()
    with pytest.raises(StoreUnavailable):
        store.namespace(NAME).head("k")
    pop.redis.start()
    assert store.namespace(NAME).head("k") is None


def test_an_emptied_redis_starts_a_new_epoch(pops: Callable[..., Pop]) -> None:
    pop = pops()
    before = ingest(pop.ns, event("x", id="1"))[0].epoch
    pop.store.record_heads()
    pop.store._connection.one("FLUSHALL")
    pop.store.create_namespace(NAME)
    after = ingest(pop.ns, event("x", id="2"))[0].epoch
    assert after > before
    assert json.loads((pop.settings.state_dir / "epochs.json").read_text())[NAME][0] == after


def test_what_is_past_retention_goes_with_its_bodies_and_what_is_referred_to_stays(
    pops: Callable[..., Pop], wait_until: Callable[..., Any]
) -> None:
    pop = pops(retention_ms=1)
    ns = pop.ns
    bodies = {name: (name * 300_000).encode()[:300_000] for name in ("a", "b")}
    ingest(ns, event("x", bodies["a"], id="1"))
    ingest(ns, event("x", bodies["b"], id="2"), put_key="kept")
    (log_id, head), *_ = ns.logs().items()

    def files() -> list[str]:
        folder = pop.settings.state_dir / "blobs" / NAME
        return sorted(path.name for path in folder.rglob("*") if len(path.name) == 64)

    assert len(files()) == 2
    time.sleep(0.01)
    ns.tidy({f"{log_id.origin}:{log_id.epoch}": head})
    assert ns.read_log(log_id, 0) == [] and ns.read_release(0) == []
    # An orphan is kept for ten minutes, since someone may be about to refer to it; here its mark is made old.
    for digest in pop.store._connection.one("ZRANGE", ns.prefix + "orphans", 0, -1):
        pop.store._connection.one("ZADD", ns.prefix + "orphans", 1, digest)
    assert ns.tidy({}) == 1
    value = ns.get("kept")
    assert len(files()) == 1 and value is not None and value.data == bodies["b"]


def test_without_room_nothing_is_taken_and_it_is_said_in_a_way_that_can_be_retried(pops: Callable[..., Pop]) -> None:
    pop = pops()
    ns = pop.ns
    install(ns, f=function("x", publish=("y",)))
    ingest(ns, event("x", id="before"))
    (claimed,) = claim(ns, "f")
    pop.store._connection.one("CONFIG", "SET", "maxmemory", "1")
    effects = Commit(claimed.id, claimed.attempt, [event("y", id="out")])
    refused = [Arrival(event("x", b"big" * 3000, id="full"), ring="b:1:x")]
    for attempt in (
        lambda: ns.round(arrivals=refused),
        lambda: ns.round(commits=[effects]),
        lambda: ns.put("k", b"v"),
        lambda: ns.put("k", b"v" * 300_000),
    ):
        with pytest.raises(StoreFull):
            attempt()
    pop.store._connection.one("CONFIG", "SET", "maxmemory", "0")
    assert released(ns) == ["before"] and ns.get("k") is None
    refused[0].again = True
    ns.round(arrivals=refused)
    assert commit(ns, effects) == ["committed"]
    assert released(ns) == ["before", "full", "out"]


def test_a_full_disk_refuses_before_redis_would_end(pops: Callable[..., Pop]) -> None:
    pop = pops()
    pop.ns._room = Room(pop.settings.state_dir, 1 << 60)
    for attempt in (lambda: pop.ns.ingest([Arrival(event("x"))]), lambda: pop.ns.put("k", b"v")):
        with pytest.raises(StoreFull) as error:
            attempt()
        assert error.value.status == 507 and error.value.retryable
