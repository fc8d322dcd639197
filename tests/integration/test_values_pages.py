"""Snapshots, gates and deletions at their corners: what the histories of test_values.py come by too seldom to count on it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from store_pops import START_MS, Clock
from test_values import INLINE_BYTES, World

from edgeflow.core.events import make_event
from edgeflow.core.policies import Policies, parse_rules
from edgeflow.errors import BadName, BadRequest, NotFound, QuotaExceeded, TooLarge, Unavailable, VersionMismatch
from edgeflow.store import calls as calls_module
from edgeflow.store.records import (
    Arrival,
    Delete,
    Increment,
    LogId,
    MapPut,
    MapRemove,
    Put,
    Quota,
    Receipt,
    SetAdd,
    SetRemove,
)
from edgeflow.store.replica import ReplicatedNamespace

pytestmark = pytest.mark.usefixtures("programs")
LARGE = b"L" * (INLINE_BYTES + 1)
FAR = f"{START_MS * 2}.00000@~"


@pytest.fixture(scope="module")
def world(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(calls_module, "time", clock)
        made = World(tmp_path_factory.mktemp("pages"), clock)
        yield made
        made.close()


@pytest.fixture
def pops(world: World, request: pytest.FixtureRequest) -> tuple[ReplicatedNamespace, ...]:
    """One namespace at three PoPs, new for each test."""
    world.examples += 1
    for store in world.stores.values():
        store.open_log(f"p{world.examples}")
    return tuple(store.namespace(f"p{world.examples}") for store in world.stores.values())


def log_of(ns: ReplicatedNamespace) -> LogId:
    return LogId(ns.pop, ns.epoch())


def mirror(
    of: ReplicatedNamespace, to: ReplicatedNamespace, *, bodies: bool = True, first: int = 1, last: int = 1 << 50
) -> None:
    """Of `of`'s own log what is between."""
    entries = [raw for seq, raw in of.read_log(log_of(of), first - 1, count=5000, max_bytes=1 << 30) if seq <= last]
    if bodies:
        for raw in entries:
            for ref in of.entry_blobs(raw):
                to.add_blob(ref.digest, of.read_blob(ref.digest) or b"")
    to.mirror(log_of(of), first, entries)


def pages(of: ReplicatedNamespace, limit: int = 2) -> list[tuple[str, str | None, Any]]:
    found = []
    after = ""
    while True:
        items, last = of.export_page(after, limit)
        found.append((after, last, items))
        if last is None:
            return found
        after = last


def take(to: ReplicatedNamespace, snapshot: list[tuple[str, str | None, Any]], vector: Any) -> None:
    for page in snapshot:
        to.import_page(*page)
    for (origin, epoch), seq in vector.items():
        if seq > to.logs().get(LogId(origin, epoch), 0):
            to._connection.one("HSET", to.prefix + "heads", f"{origin}:{epoch}", seq)


def everything(ns: ReplicatedNamespace) -> None:
    """One key of each type."""
    ns.put("r", b"1")
    ns.increment("c", 5)
    ns.set_add("s", ["x", "y"])
    ns.map_put("m", {"f": b"1", "g": b"2"})


def forget(ns: ReplicatedNamespace) -> None:
    while ns.collect(FAR, ns.applied()):
        pass


def rows(ns: ReplicatedNamespace, *names: str) -> list[Any]:
    return [ns._connection.one("ZRANGE", ns.prefix + name, 0, -1) for name in names]


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_what_was_deleted_and_forgotten_at_the_source_goes_at_a_pop_that_was_away(pops: Any) -> None:
    a, b, c = pops
    everything(a)
    a.map_put("half", {"f": b"1", "g": b"2"})
    mirror(a, b)
    mirror(a, c)  # c has all of it, and is away from here on
    b.write([Delete(key) for key in ("r", "c", "s", "m")])
    b.map_remove("half", ["f"])
    forget(b)
    assert [info.key for info in b.list()] == ["half"] and rows(b, "graves", "known") == [[], [b"half"]]
    take(c, pages(b), b.applied())
    assert c.content_hash() == b.content_hash() and c.map_fields("half") == {"g": b"2"}
    forget(c)
    assert rows(c, "known", "graves") == rows(b, "known", "graves")
    # What a, which does not know of it, writes then counts from the beginning, everywhere.
    mirror(b, a)
    everything(a)
    for to in (b, c):
        mirror(a, to)
    assert a.content_hash() == b.content_hash() == c.content_hash()
    assert c.count_value("c") == 5 and c.set_members("s") == ["x", "y"]


def test_a_page_that_was_under_way_while_things_were_deleted_and_forgotten_brings_nothing_back(pops: Any) -> None:
    a, b, _ = pops
    everything(a)
    a.map_put("half", {"f": b"1", "g": b"2"})
    mirror(a, b)
    old, vector = pages(a), a.applied()
    b.write([Delete(key) for key in ("r", "c", "s", "m")])
    b.map_remove("half", ["f"])
    mirror(b, a)
    forget(b)
    forget(a)
    before = b.content_hash()
    take(b, old, vector)
    assert b.content_hash() == before and [info.key for info in b.list()] == ["half"]
    assert b.map_fields("half") == {"g": b"2"}


def test_what_the_source_has_not_applied_is_not_taken_for_deleted(pops: Any) -> None:
    a, b, c = pops
    for to in (b, c):
        mirror(a, to)
    a.write([Put("large", LARGE), Put("r", b"1"), MapPut("m", {"f": b"1"}), SetAdd("s", ["x"]), Increment("c", 1)])
    a.put("later", b"1")
    mirror(a, b)
    mirror(a, c, bodies=False)  # c holds the first entry, and has the second
    assert c.head("r") is None and c.head("later") is not None and c.applied() == {log_of(a): 0}
    before = b.content_hash()
    take(b, pages(c), c.applied())
    assert b.content_hash() == before


def test_entries_that_a_page_has_already_count_once_when_they_come_again(pops: Any) -> None:
    a, b, c = pops
    a.put("large", LARGE)
    a.increment("n", 2)
    a.set_add("s", ["x", "y"])
    a.set_remove("s", ["x"])
    a.map_put("m", {"f": b"1"})
    a.delete("m")
    mirror(a, b, bodies=False)
    # b holds the first entry only: what it has applied without a hole is nothing, and what its pages hold is more.
    assert b.applied() == {log_of(a): 0} and b.count_value("n") == 2
    take(c, pages(b), b.applied())
    assert (c.count_value("n"), c.set_members("s"), c.map_fields("m"), c.head("large")) == (2, ["y"], None, None)
    for last in (3, 100):
        mirror(a, c, last=last)
        assert (c.count_value("n"), c.set_members("s"), c.map_fields("m")) == (2, ["y"], None)
    assert c.content_hash() == a.content_hash()


def test_a_snapshot_taken_twice_or_cut_off_changes_nothing_more(pops: Any) -> None:
    a, b, c = pops
    everything(a)
    a.put("lost", b"a")
    b.put("lost", b"b")
    mirror(b, a)
    snapshot, vector = pages(a, 1), a.applied()
    for page in snapshot[:3]:
        c.import_page(*page)
    mirror(b, c)
    for _ in range(2):
        take(c, snapshot, vector)
        assert c.content_hash() == a.content_hash() and c.versions("lost") == a.versions("lost")
    a.increment("c", 1)
    mirror(a, c, first=vector[log_of(a)] + 1)
    assert c.count_value("c") == 6


def test_a_value_whose_body_is_not_here_is_asked_for_and_readable_when_it_comes(pops: Any) -> None:
    a, b, _ = pops
    a.put("large", LARGE)
    take(b, pages(a), a.applied())
    info = b.head("large")
    assert info is not None and info.digest is not None and b.missing_blobs() == [info.digest]
    with pytest.raises(Unavailable):
        b.get("large")
    b.add_blob(info.digest, LARGE)
    value = b.get("large")
    assert value is not None and value.data == LARGE and b.missing_blobs() == []


def test_versions_from_the_future_are_parked_by_a_snapshot_too(pops: Any, world: World) -> None:
    a, b, _ = pops
    world.clock.ms += 5000
    a.put("r", b"1")
    a.map_put("m", {"f": b"1"})
    a.increment("c", 1)
    vector, snapshot = a.applied(), pages(a)
    world.clock.ms -= 5000
    take(b, snapshot, vector)
    assert [info.key for info in b.list()] == ["c"] and b.applied()[log_of(a)] == 0
    b.put("r", b"mine")
    world.clock.ms += 5000
    b.tick()
    assert b.content_hash() == a.content_hash() and b.applied() == {**a.applied(), log_of(b): 1}
    assert [one.version for one in b.versions("r")] == [
        b.head("r").version,
        *(one.version for one in b.versions("r")[1:]),
    ]
    assert len(b.versions("r")) == 2, "what was written here meanwhile lost, and is kept"


def wait_for(ns: ReplicatedNamespace, key: str) -> str:
    """An event that refers to a value; its state now."""
    event = make_event(f"{ns.name}/x", b"", id=f"of-{key}", source="test", now_ms=START_MS)
    (receipt,) = ns.ingest([Arrival(event, dataref=f"ekv:{ns.name}/{key}")])
    assert isinstance(receipt, Receipt)
    return receipt.class_


def released(ns: ReplicatedNamespace) -> list[str]:
    return [one.event.id for one in ns.read_release(0) if one.event is not None]


@pytest.mark.parametrize("comes", ["before the snapshot", "after it"])
@pytest.mark.parametrize("place", [None, "lazy"])
def test_a_body_that_comes_after_a_snapshot_wakes_the_event_that_waits_for_it(
    pops: Any, comes: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = pops
    a.put("k", LARGE)
    digest = a.head("k").digest
    snapshot, vector = pages(a), a.applied()
    if place is not None:
        monkeypatch.setattr(b, "placing_policies", lambda: Policies(parse_rules([{"prefix": "", "place": place}]), 1))
    if comes == "before the snapshot":
        assert wait_for(b, "k") == "waiting"
    take(b, snapshot, vector)
    if comes == "after it":
        assert wait_for(b, "k") == "waiting"
    assert released(b) == []
    assert b.missing_blobs() == [digest], "somebody waits for it: it is asked of a peer"
    b.add_blob(digest, LARGE)
    assert released(b) == ["of-k"]


def test_what_a_snapshot_brings_of_the_near_future_wakes_the_event_that_waits_for_it(pops: Any, world: World) -> None:
    """At the sender it is parked, at the receiver, whose clock is ahead of that one's, its time has come."""
    a, b, c = pops
    world.clock.ms += 5000
    a.put("small", b"1")
    a.put("large", LARGE)
    digest = a.head("large").digest
    world.clock.ms -= 5000
    mirror(a, c)
    snapshot, vector = pages(c), c.applied()
    assert c.head("small") is None, "it is parked there"
    for key in ("small", "large"):
        assert wait_for(b, key) == "waiting"
    world.clock.ms += 5000
    take(b, snapshot, vector)
    assert released(b) == ["of-small"]
    b.add_blob(digest, LARGE)
    assert released(b) == ["of-small", "of-large"]


def test_a_tombstone_stays_until_everybody_has_it_and_nobody_can_write_below_it(pops: Any) -> None:
    a, b, _ = pops
    everything(a)
    a.write([Delete(key) for key in ("r", "c", "s", "m")])
    log = log_of(a)
    assert a.collect(FAR, {log: 4}) == 0, "somebody has not applied the deletion"
    assert a.collect("", a.applied()) == a.collect(FAR, {}) == 0, "nothing is known of the others"
    version = f"{START_MS}.00000@a"
    assert a.collect(version, a.applied()) == 0, "somebody may still write below it"
    mirror(a, b)
    assert a.collect(FAR, a.applied()) == 4 and rows(a, "known", "graves") == [[], []]
    assert a.counters()["tombstones_collected"] == 4
    b.put("r", b"2")
    mirror(b, a)
    assert a.get("r").data == b"2"


# -- counters ----------------------------------------------------------------------------------------------------------


def test_a_deletion_that_overtakes_what_it_deletes(pops: Any) -> None:
    a, b, c = pops
    a.increment("n", 10)
    mirror(a, c)
    c.delete("n")
    mirror(c, a)
    a.increment("n", 100)  # a new life
    mirror(a, c, first=2)
    c.delete("n")
    mirror(c, b)
    assert b.head("n") is None
    mirror(a, b)
    assert b.head("n") is None
    a.increment("n", 1000)  # a has not seen the second deletion
    mirror(a, b, first=3)
    mirror(a, c, first=3)
    mirror(c, a, first=2)
    assert [ns.count_value("n") for ns in pops] == [1000, 1000, 1000]


def test_two_pops_delete_at_once_and_a_third_counts(pops: Any) -> None:
    a, b, c = pops
    for ns in pops:
        ns.increment("n", 7)
    for of in pops:
        for to in pops:
            if of is not to:
                mirror(of, to)
    a.delete("n")
    b.delete("n")
    c.increment("n", 1)
    for of in pops:
        for to in pops:
            if of is not to:
                mirror(of, to, first=2)
    assert [ns.count_value("n") for ns in pops] == [1, 1, 1], "what was seen went once, what was not stays"


def test_a_sum_that_does_not_fit_leaves_the_increment_out_everywhere(pops: Any) -> None:
    a, b, _ = pops
    for _ in range(1025):
        a.increment("n", 2**53)
    a.increment("n", -5)
    mirror(a, b)
    assert a.count_value("n") == b.count_value("n") == 1023 * 2**53 - 5


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_seen_as_a_whole_when_its_bodies_are_here_and_later_ones_wait(pops: Any) -> None:
    a, b, _ = pops
    a.write([Put("large", LARGE), Increment("n", 1), SetAdd("s", ["x"])])
    a.increment("n", 10)
    a.set_remove("s", ["x"])
    a.increment("other", 1)
    mirror(a, b, bodies=False)
    assert [info.key for info in b.list()] == ["other"], "operations on a key stay in their order"
    b.add_blob(b.missing_blobs()[0], LARGE)
    assert b.content_hash() == a.content_hash() and b.count_value("n") == 11 and b.set_members("s") is None


def test_a_body_that_never_comes_holds_up_the_values_only(pops: Any, world: World) -> None:
    a, b, _ = pops
    a.write([Put("large", LARGE), Increment("n", 1)])
    a.increment("n", 10)
    mirror(a, b, bodies=False)
    world.clock.ms += 31_000
    b.tick()
    assert b.count_value("n") == 11 and b.head("large") is None and b.applied() == {log_of(a): 0}
    b.add_blob(b.missing_blobs()[0], LARGE)
    assert b.content_hash() == a.content_hash() and b.applied() == a.applied()


# -- what a writer is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda ns: ns.write([]), BadRequest),
        (lambda ns: ns.write([Put("k", b"1"), Delete("k")]), BadRequest),
        (lambda ns: ns.write([SetAdd("k", ["x"]), Increment("k", 1)]), BadRequest),
        (lambda ns: ns.write([Put("ok", b"1"), Delete("none")]), NotFound),
        (lambda ns: ns.write([Put("ok", b"1"), Put("r", b"2", if_version="x")]), VersionMismatch),
        (lambda ns: ns.write([Put("ok", b"1"), Put("r", b"2", if_absent=True)]), VersionMismatch),
        (lambda ns: ns.put("ok", b"1", ttl_ms=0), BadRequest),
        (lambda ns: ns.put("ok"), BadRequest),
        (lambda ns: ns.increment("ok", 2**53 + 1), BadRequest),
        (lambda ns: ns.set_add("ok", [""]), BadName),
        (lambda ns: ns.set_add("ok", ["x" * 1025]), BadName),
        (lambda ns: ns.map_put("ok", {"f": LARGE}), TooLarge),
        (lambda ns: ns.set_add("ok", [str(number) for number in range(7)]), TooLarge),
        (lambda ns: ns.map_put("ok", {str(number): b"" for number in range(7)}), TooLarge),
        (lambda ns: ns.write([Increment(f"k{number}") for number in range(1001)]), TooLarge),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_of_it_is_done(
    pops: Any, write: Callable[[Any], object], error: type[Exception]
) -> None:
    ns = pops[0]
    ns.put("r", b"1")
    with pytest.raises(error):
        write(ns)
    assert ns.applied() == {log_of(ns): 1} and [info.key for info in ns.list()] == ["r"]


def test_a_batch_folds_the_operations_of_a_key_and_is_one_entry(pops: Any) -> None:
    ns = pops[0]
    receipt = ns.write(
        [
            SetAdd("s", ["x", "y"]), SetRemove("s", ["x"]), SetAdd("s", ["z"]), Increment("n", 1), Increment("n", 2), Put("r", b"1"),
            MapPut("m", {"f": b"1", "g": b"1"}), MapRemove("m", ["f"]), Delete("none", missing_ok=True),
        ],
        id="i",
    )  # fmt: skip
    assert receipt.seq == 1 and ns.applied() == {log_of(ns): 1}
    assert (ns.set_members("s"), ns.count_value("n"), ns.map_fields("m")) == (["y", "z"], 3, {"g": b"1"})
    assert ns.write([Increment("n", 1)], id="i").duplicate and ns.count_value("n") == 3


def test_a_quota_counts_each_operation_of_a_batch(pops: Any) -> None:
    ns = pops[0]
    ns.set_quota(Quota(events_per_s=1, burst_s=3))
    ns.write([Increment("n"), Increment("m"), Increment("o")])
    with pytest.raises(QuotaExceeded):
        ns.increment("n")
    assert ns.count_value("n") == 1


def test_changes_are_told_in_order_and_what_is_forgotten_is_said(pops: Any) -> None:
    ns = pops[0]
    ns.put("a/1", b"1")
    ns.put("b/1", b"1")
    ns.put("a/1", b"2")
    ns.increment("a/2")
    assert [(one.key, one.n) for one in ns.changes(0)] == [("b/1", 2), ("a/1", 3), ("a/2", 4)]
    assert [one.key for one in ns.changes(2, "a/")] == ["a/1", "a/2"] and ns.changes(ns.changes_head()) == []
    ns.delete("a/1")
    assert [(one.key, one.info) for one in ns.changes(4)] == [("a/1", None)] and ns.changes_from() == 0
    forget(ns)
    assert ns.changes(4) == [] and ns.changes_from() == 5


def test_a_value_ends_at_its_deadline_everywhere_and_its_body_is_let_go(pops: Any, world: World) -> None:
    a, b, _ = pops
    a.put("r", LARGE, ttl_ms=1000)
    mirror(a, b)
    assert b.head("r").expires_ms == world.clock.ms + 1000
    world.clock.ms += 1000
    for ns in (a, b):
        assert ns.head("r") is None and ns.get("r") is None and ns.list() == []
        assert ns.put("r2", b"", if_absent=True).version
        ns.tick()
        assert rows(ns, "keys", "expires") == [[b"r2"], []]
        assert [one.key for one in ns.changes(0)] == ["r2", "r"]
    with pytest.raises(NotFound):
        a.delete("r")
    a.put("r", b"1", if_absent=True)
    forget(b)
    mirror(a, b, first=2)
    assert b.get("r").data == b"1" and b.head("r").expires_ms is None
