"""A peer that sends what no PoP of ours would: refused by name, nothing half written, the link goes on; on a real Redis."""

import copy
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from link_pops import RedisServer, make_settings
from test_links_recovery import Site, settled, write_some

from edgeflow.core.events import make_event
from edgeflow.errors import CorruptEntry
from edgeflow.store.client import Store
from edgeflow.store.records import Arrival, LogId

pytestmark = pytest.mark.usefixtures("programs")
Wait = Callable[..., Any]
B = LogId("b", 7)


@pytest.fixture
def stores() -> Iterator[tuple[Store, Store]]:
    folder = Path(tempfile.mkdtemp(prefix="efh-"))
    made, servers = [], []
    for name in "ab":
        settings = make_settings(folder, name, {"a": 1, "b": 2})
        servers.append(RedisServer(folder / name / "redis", settings.store.redis_socket).start())
        made.append(Store.open(settings))
        made[-1].create_namespace("ns")
    yield made[0], made[1]
    for store, server in zip(made, servers, strict=True):
        store.close()
        server.kill()
    shutil.rmtree(folder)


def entries_of(store: Store) -> list[Any]:
    """One entry of each kind, unpacked."""
    space = store.namespace("ns")
    space.put("k/1", b"1")
    space.put("k/2", b"2" * 10_000, ttl_ms=1_000_000)
    space.increment("count", 3)
    space.set_add("set", ["x", "y"])
    space.set_remove("set", ["x"])
    space.map_put("map", {"f": b"1"})
    space.map_remove("map", ["f"])
    space.delete("count")
    space.delete("k/1")
    space.ingest([Arrival(make_event("ns/c", b"body", id="1", source="test", now_ms=1))])
    (log, head), *_ = [(log, head) for log, head in space.logs().items() if log.origin == store.pop]
    found = space.read_log(log, 0, count=100, max_bytes=10**9)
    assert len(found) == head == 10
    return [msgpack.unpackb(raw, raw=True, strict_map_key=False) for _, raw in found]


def packed(entry: Any) -> bytes:
    return bytes(msgpack.packb(entry, use_bin_type=False))


def everything(store: Store) -> dict[bytes, bytes]:
    """All that the store has of the namespace, but for the clock of its quotas."""
    connection = store.namespace("ns")._connection
    return {key: connection.one("DUMP", key) for key in connection.one("KEYS", "ef:{ns}:*")}


def test_what_our_own_pops_write_is_taken(stores: tuple[Store, Store]) -> None:
    a, b = stores
    entries = [packed(entry) for entry in entries_of(b)]
    assert a.namespace("ns").mirror(B, 1, entries).mirrored == len(entries)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e[b"ev"][0].__setitem__(0, b"other/c"), "another namespace"),
        (lambda e: e[b"ev"][0].__setitem__(0, b"ns/../#"), "channel|ns"),
        (lambda e: e[b"ev"][0].__setitem__(1, b"x"), "field 2 of an event"),
        (lambda e: e[b"ev"][0].__setitem__(4, b"sha256:../../etc/passwd"), "field 5 of an event"),
        (lambda e: e[b"ev"][0].__setitem__(2, b"\xc1"), "checksum"),
        (lambda e: (e[b"ev"][0].__setitem__(2, b"\x91\x01"), e[b"ev"][0].__setitem__(3, zlib.crc32(b"\x91\x01"))), "head"),
        (lambda e: e[b"va"].append([b"a//b", b"", b"", 0, b"", 0, b"", 0, 0, b""]), "refused"),
        (lambda e: e[b"va"].append([b"k", b"not a version", b"", 0, b"", 0, b"", 0, 0, b""]), "field 2 of a value"),
        (lambda e: e.__setitem__(b"inc", [[b"k", 2**63]]), "increment|read"),
        (lambda e: e.__setitem__(b"inc", [[b"k"]]), "an increment"),
        (lambda e: e.__setitem__(b"ty", [[b"z", b"k", []]]), "typed operation"),
        (lambda e: e.__setitem__(b"ty", [[b"s", b"k", [], [[b"e", [b"nodot"]]]]]), "an element"),
        (lambda e: e.__setitem__(b"x", [[b"id"]]), "an end"),
        (lambda e: e.__setitem__(b"t", b"now"), "its head"),
        (lambda e: e.__setitem__(b"v", 2), "version 2"),
    ],
)  # fmt: skip
def test_an_entry_that_is_not_well_formed_is_refused_by_name(
    stores: tuple[Store, Store], change: Callable[[Any], Any], words: str
) -> None:
    a, b = stores
    entry = entries_of(b)[-1]
    change(entry)
    before = everything(a)
    with pytest.raises(CorruptEntry, match=words):
        a.namespace("ns").mirror(B, 1, [packed(entry)])
    assert everything(a) == before, "nothing of it was written"


def mutated(how: random.Random, value: Any) -> Any:
    """The same with one thing in it changed, somewhere."""
    if isinstance(value, list) and value and how.random() < 0.9:
        copied = copy.deepcopy(value)
        place = how.randrange(len(copied))
        if how.random() < 0.1:
            del copied[place]
        else:
            copied[place] = mutated(how, copied[place])
        return copied
    if isinstance(value, dict) and value and how.random() < 0.95:
        copied = copy.deepcopy(value)
        name = how.choice(list(copied))
        if how.random() < 0.05:
            del copied[name]
        else:
            copied[name] = mutated(how, copied[name])
        return copied
    strange = [
        0,
        -1,
        1.5,
        2**62,
        None,
        True,
        b"",
        b"x",
        b"\xff\xfe",
        b"ns/c",
        [],
        {},
        [[]],
        [0],
        {b"a": 1},
        b"9" * 5000,
    ]
    return how.choice(strange)


def test_no_entry_makes_a_script_stop_in_the_middle(stores: tuple[Store, Store]) -> None:
    """Each is either taken as a whole or refused as a whole; the store stays usable. Seeded."""
    a, b = stores
    how = random.Random(11)
    originals = entries_of(b)
    space = a.namespace("ns")
    refused = taken = 0
    for n in range(1500):
        raw = packed(mutated(how, how.choice(originals)))
        log = LogId("b", 1000 + n)
        try:
            space.mirror(log, 1, [raw])
            taken += 1
        except CorruptEntry:
            refused += 1
            assert log not in space.logs()
    assert refused > 1000 and taken > 5
    space.tick()
    space.put("still", b"usable")
    assert space.content_hash() and space.get("still")


def test_no_page_of_a_snapshot_makes_a_script_stop_in_the_middle(stores: tuple[Store, Store]) -> None:
    a, b = stores
    how = random.Random(13)
    entries_of(b)
    items, last = b.namespace("ns").export_page("", 1000)
    assert last is None and len(items) > 3
    a.namespace("ns").import_page("", None, items)
    assert a.namespace("ns").content_hash() == b.namespace("ns").content_hash()
    refused = 0
    for _ in range(500):
        changed = copy.deepcopy(items)
        place = how.randrange(1, len(changed))
        content = msgpack.unpackb(changed[place][1], raw=True, strict_map_key=False)
        changed[place][1] = packed(mutated(how, content))
        before = a.namespace("ns").logs()
        try:
            a.namespace("ns").import_page("", None, changed)
        except CorruptEntry:
            refused += 1
        assert a.namespace("ns").logs() == before
    assert refused > 100
    a.namespace("ns").put("still", b"usable")
    assert a.namespace("ns").content_hash()


def test_a_version_from_the_future_is_parked_and_shown(stores: tuple[Store, Store]) -> None:
    a, b = stores
    entry = entries_of(b)[0]
    stamp = entry[b"va"][0][1]
    entry[b"va"][0][1] = b"%013d" % (int(stamp[:13]) + 3_600_000) + stamp[13:]
    space = a.namespace("ns")
    space.mirror(B, 1, [packed(entry)])
    assert space.head("k/1") is None and space.parked_count() == 1
    assert space.applied().get(B, 0) == 0, "it does not count as merged"
    receipt = space.put("k/1", b"mine")
    assert receipt.version is not None and receipt.version.encode() < entry[b"va"][0][1], (
        "the clock here does not follow"
    )


def test_a_hostile_log_stops_itself_and_the_link_goes_on(wait_until: Wait) -> None:
    folder = Path(tempfile.mkdtemp(prefix="efi-"))
    pops = Site(folder, "a", "b")
    try:
        pops.up()
        how = random.Random(5)
        write_some(pops, "a", how, 5)
        wait_until(lambda: settled(pops), "alike", 20)

        def forge(space: Any) -> None:
            """An entry at the end of b's own log that says it is of another namespace."""
            (log, head), *_ = [(log, head) for log, head in space.logs().items() if log.origin == "b"]
            event = [
                "other/c",
                0,
                msgpack.packb({"c": "other/c"}),
                zlib.crc32(msgpack.packb({"c": "other/c"})),
                "",
                0,
                b"",
                0,
                "",
            ]
            entry = {"v": 1, "k": "event", "t": 1, "x": [], "ev": [event], "va": []}
            key = f"{space.prefix}log:{log.origin}:{log.epoch}"
            space._connection.one("XADD", key, f"{head + 1}-0", "e", msgpack.packb(entry, use_bin_type=False))
            space._connection.one("HSET", space.prefix + "heads", f"{log.origin}:{log.epoch}", head + 1)

        write_some(pops, "b", how, 5)
        wait_until(lambda: settled(pops), "alike", 20)
        pops.do("b", forge)
        wait_until(lambda: "another namespace" in pops.link_state("a", "b")["last_error"], "it is named", 10)
        pops.do("a", lambda space: space.put("after", b"1"))
        wait_until(lambda: pops.do("b", lambda space: space.head("after")) is not None, "the other way goes on", 10)
        pops.pops["b"].call(lambda: pops.stores["b"].create_namespace("fine"))
        pops.publish("b", "fine", b"1")
        wait_until(lambda: pops.released("a", "fine"), "other logs go on", 10)
        assert pops.link_state("a", "b")["state"] == "up"

        def foreign(store: Store) -> None:
            """A log of a namespace that nobody made known."""
            space = store.namespace("nobody")
            store.open_log("nobody")
            space.put("k", b"1")

        pops.pops["b"].call(lambda: (foreign(pops.stores["b"]), pops.pops["b"].links.notify({"nobody"})))
        pops.do("a", lambda space: space.put("after/2", b"1"))
        wait_until(lambda: pops.do("b", lambda space: space.head("after/2")) is not None, "it goes on", 10)
        assert pops.pops["a"].call(lambda: pops.stores["a"].namespace("nobody").logs()) == {}
    finally:
        pops.stop()
        shutil.rmtree(folder)
