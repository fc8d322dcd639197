"""Values on real Redis servers beside the pure model: whatever three PoPs do, and however their logs reach each other, both show the same.

What happens: writes of all types with and without conditions, batches, retries with the same id; logs mirrored in pieces, twice, late, without
their bodies; gates that time out; clocks that are wrong; deadlines; tombstones collected as the links would; snapshots; clients that are dropped.
"""

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from link_pops import RedisServer, make_settings
from store_pops import START_MS, Clock
from values_model import GATE_MS, Entry, ModelPop, read_entry

from edgeflow.core.cursors import Log
from edgeflow.errors import EdgeflowError, Unavailable
from edgeflow.store import Store
from edgeflow.store import calls as calls_module
from edgeflow.store import connection as connection_module
from edgeflow.store.connection import library_text
from edgeflow.store.records import (
    Delete,
    Increment,
    LogId,
    MapPut,
    MapRemove,
    Put,
    Receipt,
    SetAdd,
    SetRemove,
    Write,
    unpack_entry,
)
from edgeflow.store.replica import ReplicatedNamespace

pytestmark = pytest.mark.usefixtures("programs")

HISTORIES = int(os.environ.get("VALUES_HISTORIES", "40"))
"""More of them look harder; each takes about a third of a second."""
INLINE_BYTES = 16
NAMES = ("a", "b", "c")


class World:
    """The stores; each example has a namespace of its own."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.settings = {
            name: make_settings(
                folder, name, dict.fromkeys(NAMES, 1), inline_bytes=INLINE_BYTES, gate_timeout_ms=GATE_MS, set_elements=6, map_fields=6
            )
            for name in NAMES
        }  # fmt: skip
        self.redis = {
            name: RedisServer(folder / name / "redis", one.store.redis_socket).start()
            for name, one in self.settings.items()
        }
        self.stores = {name: Store.open(one) for name, one in self.settings.items()}
        for store in self.stores.values():
            # What survives a power cut is not the question here.
            store.blocking_client().config_set("appendonly", "no")
        self.examples = 0

    def reopen(self, name: str) -> None:
        """The process that used it is gone; another one comes."""
        self.stores[name].close()
        self.stores[name] = Store.open(self.settings[name])

    def close(self) -> None:
        for name in NAMES:
            self.stores[name].close()
            self.redis[name].kill()


@pytest.fixture(scope="module")
def world(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls_module, "time", clock)
        made = World(tmp_path_factory.mktemp("values"), clock)
        yield made
        made.close()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def standing_of(ns: ReplicatedNamespace) -> tuple[str, dict[Log, int]]:
    floor, applied = ns.standing()
    return floor, dict(applied)


class Side:
    """One PoP: the store and the model of it."""

    def __init__(self, world: World, name: str, namespace: str) -> None:
        self.world = world
        self.name = name
        self.namespace = namespace
        self.offset_ms = 0
        self.enter()
        world.stores[name].open_log(namespace)
        self.model = ModelPop(name, (name, self.ns.epoch()), self.now_ms)
        self.entries: list[tuple[bytes, Entry]] = []
        self.bodies: dict[str, bytes] = {}
        self.last: tuple[Sequence[Write], str, Receipt] | None = None
        self.heard: dict[str, tuple[str, dict[Log, int]]] = {}

    @property
    def ns(self) -> ReplicatedNamespace:
        return self.world.stores[self.name].namespace(self.namespace)

    @property
    def now_ms(self) -> int:
        return self.world.base_ms + self.offset_ms  # type: ignore[attr-defined]

    def enter(self) -> None:
        """From here on this PoP's clock is the clock."""
        self.is_touched = True
        self.world.clock.ms = self.now_ms
        if hasattr(self, "model"):
            self.model.now_ms = self.now_ms

    def covers(self, vector: dict[Log, int]) -> bool:
        return self.ns.covers(vector)

    def visible(self) -> dict[str, Any]:
        """What the store shows, as the model says it."""
        found: dict[str, Any] = {}
        for info in self.ns.list():
            if info.kind == "register":
                content: Any = info.digest
                if info.digest is None:
                    value = self.ns.get(info.key)
                    content = value.data if value is not None else None
                elif info.digest in self.model.blobs:
                    value = self.ns.get(info.key)
                    assert value is not None and digest_of(value.data) == info.digest
                else:
                    with pytest.raises(Unavailable):
                        self.ns.get(info.key)
                found[info.key] = (info.kind, info.version, content)
            elif info.kind == "counter":
                found[info.key] = (info.kind, self.ns.count_value(info.key))
            elif info.kind == "set":
                members = self.ns.set_members(info.key)
                assert members is not None and info.size == len(members)
                found[info.key] = (info.kind, members)
            else:
                fields = self.ns.map_fields(info.key)
                assert fields is not None and info.size == len(fields)
                found[info.key] = (info.kind, fields)
        return found


KEYS = st.sampled_from(["k", "l"])
SMALL = st.sampled_from([b"", b"1", b"22", b"x" * INLINE_BYTES])
DATA = st.one_of(SMALL, st.sampled_from([b"L" * 40, b"M" * 50]))
ELEMENTS = st.lists(st.sampled_from(["x", "y\0é"]), min_size=1, max_size=2, unique=True).map(tuple)
FIELDS = st.dictionaries(st.sampled_from(["f", "g\0é"]), SMALL, min_size=1, max_size=2)
CONDITION = st.sampled_from(["none", "none", "none", "current", "wrong", "absent"])
OPS = st.one_of(
    st.builds(Increment, KEYS, st.integers(-3, 5)), st.builds(SetAdd, KEYS, ELEMENTS), st.builds(SetRemove, KEYS, ELEMENTS),
    st.builds(MapPut, KEYS, FIELDS), st.builds(MapRemove, KEYS, st.sampled_from([("f",), ("f", "g\0é")])), st.builds(Put, KEYS, DATA), st.builds(Delete, KEYS),
)  # fmt: skip
SIDES = st.integers(0, len(NAMES) - 1)
OTHERS = st.integers(1, len(NAMES) - 1)


class Machine(RuleBasedStateMachine):
    """`world` is set by the test."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        world = self.world
        world.examples += 1
        world.base_ms = START_MS + world.examples * 1_000_000_000  # type: ignore[attr-defined]
        self.sides = [Side(world, name, f"e{world.examples}") for name in NAMES]

    def side(self, index: int) -> Side:
        side = self.sides[index]
        side.enter()
        return side

    # -- writes

    def write(self, side: Side, batch: Sequence[Write]) -> None:
        digests = {}
        for one in batch:
            if isinstance(one, Put) and one.data is not None and len(one.data) > INLINE_BYTES:
                digests[one.key] = digest_of(one.data)
                side.bodies[digests[one.key]] = one.data
        # The bodies go in front, whatever becomes of the batch: held entries may have waited for the same ones.
        side.model.bring(digests.values())
        planned = side.model.plan(batch, digests)
        id = f"{side.name}{len(side.entries)}{batch!r}"
        if isinstance(planned, type):
            with pytest.raises(planned):
                side.ns.write(batch, id=id)
            return
        receipt = side.ns.write(batch, id=id)
        assert not receipt.duplicate and receipt.seq == planned.dot.seq
        ((seq, raw),) = side.ns.read_log(LogId(*planned.dot.log), receipt.seq - 1, count=1)
        entry = read_entry(planned.dot.log, seq, unpack_entry(raw))
        assert entry.bare() == planned.bare()
        versions = [one.version for _, one, _, _ in entry.values]
        versions += [one.version for _, fields, _ in entry.maps for one in fields.values()]
        versions += [floor for _, _, floor in entry.maps if floor]
        assert sorted(versions)[-1:] == ([receipt.version] if receipt.version else [])
        for key, one, base, _ in entry.values:
            current = side.model.state(key).register
            assert current is None or one.version > current.version, (
                "a version of its own is above all that it has seen"
            )
            assert base in ("", current.version if current is not None else "")
        side.entries.append((raw, entry))
        side.model.append(entry)
        side.last = (batch, id, receipt)

    @rule(at=SIDES, key=KEYS, data=DATA, ttl_ms=st.sampled_from([None, None, 200, 5000]), condition=CONDITION)
    def put(self, at: int, key: str, data: bytes, ttl_ms: int | None, condition: str) -> None:
        side = self.side(at)
        if_version = self.condition(side, key, condition)
        self.write(side, [Put(key, data, ttl_ms=ttl_ms, if_version=if_version, if_absent=condition == "absent")])

    @rule(at=SIDES, key=KEYS, condition=CONDITION)
    def delete(self, at: int, key: str, condition: str) -> None:
        side = self.side(at)
        self.write(side, [Delete(key, self.condition(side, key, condition))])

    def condition(self, side: Side, key: str, condition: str) -> str | None:
        info = side.ns.head(key)
        if condition == "current" and info is not None and info.kind == "register":
            return info.version
        return "1799999999999.00000@z" if condition == "wrong" else None

    @rule(at=SIDES, op=OPS)
    def operate(self, at: int, op: Write) -> None:
        self.write(self.side(at), [op])

    @rule(at=SIDES, ops=st.lists(OPS, min_size=2, max_size=3, unique_by=lambda op: op.key))
    def batch(self, at: int, ops: list[Write]) -> None:
        self.write(self.side(at), ops)

    @rule(at=SIDES)
    def retry(self, at: int) -> None:
        side = self.side(at)
        if side.last is None:
            return
        batch, id, receipt = side.last
        again = side.ns.write(batch, id=id)
        assert again.duplicate and (again.seq, again.version) == (receipt.seq, receipt.version)

    # -- between PoPs

    @rule(to=SIDES, of=OTHERS, count=st.integers(1, 4), back=st.integers(0, 2), with_bodies=st.booleans())
    def mirror(self, to: int, of: int, count: int, back: int, with_bodies: bool) -> None:
        """A piece of the log of another PoP, perhaps with a part that was there already, perhaps without its bodies."""
        source, target = self.sides[(to + of) % len(NAMES)], self.side(to)
        head = target.model.heads.get(source.model.log, 0)
        piece = source.entries[max(0, head - back) : head + count]
        if not piece:
            return
        if with_bodies:
            self.bring(target, set().union(*(entry.blobs for _, entry in piece)))
        target.ns.mirror(LogId(*source.model.log), piece[0][1].dot.seq, [raw for raw, _ in piece])
        for _, entry in piece:
            if entry.dot.seq == target.model.heads.get(source.model.log, 0) + 1:
                target.model.mirror(entry)

    def bring(self, target: Side, digests: set[str]) -> None:
        bodies = {digest: body for side in self.sides for digest, body in side.bodies.items()}
        for digest in sorted(digests):
            target.ns.add_blob(digest, bodies[digest])
        target.model.bring(digests)

    @rule(at=SIDES)
    def bodies_come(self, at: int) -> None:
        side = self.side(at)
        self.bring(side, set(side.ns.missing_blobs()))

    @rule(to=SIDES, with_bodies=st.booleans(), order=st.permutations((1, 2)))
    def catch_up(self, to: int, with_bodies: bool, order: list[int]) -> None:
        """All that the others have written."""
        for of in order:
            self.mirror(to, of, 1000, 0, with_bodies)

    @rule(to=SIDES, of=OTHERS, limit=st.integers(1, 2))
    def snapshot(self, to: int, of: int, limit: int) -> None:
        source, target = self.side((to + of) % len(NAMES)), self.sides[to]
        vector = dict(source.ns.applied())
        after, pages = "", []
        while True:
            items, last = source.ns.export_page(after, limit)
            pages.append((after, last, items))
            if last is None:
                break
            after = last
        target.enter()
        for page in pages:
            target.ns.import_page(*page)
        for (origin, epoch), seq in vector.items():
            if seq > target.model.heads.get((origin, epoch), 0):
                target.ns._connection.one("HSET", target.ns.prefix + "heads", f"{origin}:{epoch}", seq)
        target.model.adopt(source.model, vector)

    @rule(at=SIDES)
    def hear(self, at: int) -> None:
        """A PoP learns where the others stand; their word counts once it has applied what they had."""
        side = self.side(at)
        for other in self.sides:
            floor, applied = standing_of(other.ns)
            if side.covers(applied):
                side.heard[other.name] = (floor, applied)

    @rule(at=SIDES)
    def collect(self, at: int) -> None:
        self.hear(at)
        side = self.side(at)
        if len(side.heard) < len(NAMES):
            return
        stands = [*(stand for name, stand in side.heard.items() if name != side.name), standing_of(side.ns)]
        passed = dict(stands[0][1])
        for _, applied in stands[1:]:
            passed = {log: min(seq, applied.get(log, 0)) for log, seq in passed.items()}
        side.ns.collect(min(floor for floor, _ in stands), passed)

    # -- time and crashes

    @rule(ms=st.sampled_from([1, 150, 700, 6000, GATE_MS + 1000]))
    def advance(self, ms: int) -> None:
        self.world.base_ms += ms  # type: ignore[attr-defined]

    @rule(at=SIDES, offset_ms=st.sampled_from([0, 0, 300, 2000, -2000]))
    def skew(self, at: int, offset_ms: int) -> None:
        side = self.sides[at]
        # Deadlines and gates of the store are never taken back: a clock that went back would only make the model more complicated.
        side.offset_ms = max(side.offset_ms, offset_ms)

    @rule(at=SIDES)
    def tick(self, at: int) -> None:
        side = self.side(at)
        side.ns.tick()
        side.model.tick()

    @rule(at=SIDES)
    def crash(self, at: int) -> None:
        self.sides[at].enter()
        self.world.reopen(NAMES[at])

    # -- what must hold

    @invariant()
    def same(self) -> None:
        for side in [side for side in self.sides if side.is_touched]:
            side.enter()
            side.is_touched = False
            visible = side.visible()
            assert visible == side.model.visible(), side.name
            for key in ("k", "l"):
                if self.is_forgotten(side, key):
                    side.model.lineages.pop(key, None)
                lost = {one.version for one in side.ns.versions(key) if not one.is_current}
                expected = side.model.lost(key)
                if side.model.is_exact and len(expected) < 8:
                    # With a full memory of what later writes have seen, one too many may be told.
                    past = side.ns._connection.one("HGET", f"{side.ns.prefix}value:{key}", "past") or b""
                    assert expected <= lost if len(past.split()) == 8 else lost == expected, (side.name, key)
                assert (side.ns.head(key) is not None) == (key in visible)
            assert [change.n for change in side.ns.changes(0)] == sorted(change.n for change in side.ns.changes(0))

    def is_forgotten(self, side: Side, key: str) -> bool:
        """What lost to a tombstone goes with it."""
        return not side.ns._connection.one("EXISTS", f"{side.ns.prefix}value:{key}")

    def teardown(self) -> None:
        """Everything reaches everybody: all are the same, and nothing is left of what was deleted."""
        self.world.base_ms += 60_000  # type: ignore[attr-defined]
        for _ in range(2):
            for to in range(len(NAMES)):
                for of in range(len(NAMES)):
                    if of != to:
                        self.finish(of, to)
        for side in self.sides:
            side.enter()
            for _ in range(2):
                side.ns.tick()
                side.model.tick()
        self.same()
        first = self.sides[0]
        for side in self.sides:
            side.enter()
            assert side.ns.content_hash() == first.ns.content_hash()
            assert side.ns.applied() == first.ns.applied()
        for side in self.sides:
            side.enter()
            bound = f"{side.now_ms + 10**6:013d}.00000@~"
            while side.ns.collect(bound, side.ns.applied()):
                pass
            run = side.ns._connection.one
            assert run("ZRANGE", side.ns.prefix + "graves", 0, -1) == []
            assert run("ZRANGE", side.ns.prefix + "known", 0, -1) == run("ZRANGE", side.ns.prefix + "keys", 0, -1)
            assert [key.decode() for key in run("ZRANGE", side.ns.prefix + "keys", 0, -1)] == sorted(side.visible())
            assert run("ZCARD", side.ns.prefix + "parked") == run("HLEN", side.ns.prefix + "parked:items") == 0
        self.same()

    def finish(self, of: int, to: int) -> None:
        source, target = self.sides[of], self.side(to)
        head = target.model.heads.get(source.model.log, 0)
        piece = source.entries[head:]
        if piece:
            target.ns.mirror(LogId(*source.model.log), head + 1, [raw for raw, _ in piece])
            for _, entry in piece:
                target.model.mirror(entry)
        missing = set(target.ns.missing_blobs())
        if missing:
            self.bring(target, missing)


def test_the_store_does_what_the_model_does(world: World) -> None:
    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True),
    )  # fmt: skip


WEIGHTS = {
    "put": 6, "delete": 4, "operate": 12, "batch": 3, "retry": 1, "mirror": 10, "catch_up": 4, "bodies_come": 3, "snapshot": 1.5,
    "hear": 2, "collect": 3, "advance": 5, "skew": 0.5, "tick": 4, "crash": 0.1,
}  # fmt: skip


def drive(world: World, seed: int, steps: int = 60) -> None:
    """A history of its own making: what matters happens often, which a search for the smallest counterexample does not see to."""
    rng = random.Random(seed)
    Machine.world = world
    machine = Machine()
    key, at, of = (lambda: rng.choice("kl")), (lambda: rng.randrange(3)), (lambda: rng.randint(1, 2))
    small = [b"", b"1", b"22", b"x" * INLINE_BYTES]
    # One type at a time, mostly: where types meet, most operations are refused.
    favourite = {name: rng.choice(("register", "counter", "set", "map")) for name in "kl"}

    def some(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(rng.sample(names, rng.randint(1, len(names))))

    def op(name: str) -> Write:
        kind = favourite[name] if rng.random() < 0.9 else rng.choice(("register", "counter", "set", "map"))
        if rng.random() < 0.15:
            return Delete(name)
        if kind == "register":
            return Put(name, rng.choice([*small, b"L" * 40, b"M" * 50]))
        if kind == "counter":
            return Increment(name, rng.randint(-3, 5))
        if kind == "set":
            return (SetAdd if rng.random() < 0.6 else SetRemove)(name, some(("x", "y\0é")))
        fields = some(("f", "g\0é"))
        return (
            MapPut(name, {one: rng.choice(small) for one in fields}) if rng.random() < 0.6 else MapRemove(name, fields)
        )

    arguments: dict[str, Callable[[], tuple[Any, ...]]] = {
        "put": lambda: (
            at(), key(), rng.choice([*small, b"L" * 40]), rng.choice([None, None, 200, 5000]), rng.choice(["none"] * 3 + ["current", "wrong", "absent"])
        ),
        "delete": lambda: (at(), key(), rng.choice(["none"] * 4 + ["current", "wrong"])),
        "operate": lambda: (at(), op(key())), "batch": lambda: (at(), [op("k"), op("l")]), "retry": lambda: (at(),),
        "mirror": lambda: (at(), of(), rng.randint(1, 4), rng.randint(0, 2), rng.random() < 0.5),
        "catch_up": lambda: (at(), rng.random() < 0.6, rng.choice(([1, 2], [2, 1]))), "bodies_come": lambda: (at(),),
        "snapshot": lambda: (at(), of(), rng.randint(1, 2)), "hear": lambda: (at(),), "collect": lambda: (at(),),
        "advance": lambda: (rng.choice([1, 1, 1, 150, 150, 700, 6000, GATE_MS + 1000]),),
        "skew": lambda: (at(), rng.choice([0, 300, 2000])), "tick": lambda: (at(),), "crash": lambda: (at(),),
    }  # fmt: skip
    trace = []
    try:
        for name in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
            if name == "put" and rng.random() < 0.7:
                name = "operate"
            made = arguments[name]()
            trace.append(f"{name}{made!r}")
            getattr(machine, name)(*made)
            machine.same()
        trace.append("the end")
        machine.teardown()
    except BaseException:  # a failed `pytest.raises` too
        print(f"seed {seed}:\n  " + "\n  ".join(trace))
        raise


@pytest.mark.parametrize("first", range(0, HISTORIES, 10))
def test_long_histories_of_three_pops(world: World, first: int) -> None:
    for seed in range(first, first + 10):
        drive(world, seed)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("if current and is_newer(current, version) then", "if current and false then"),
        ("n > dead and {key, op[3]} or {key, op[3], 1}", "{key, op[3]}"),
        ("if at > (vv[from] or 0) then unborn[dot .. ' ' .. element] = 1 end", ""),
        ("  if due <= c.now then return false end", "  if true then return false end"),
    ],
    ids=["the last to come wins", "no new life", "removed before it came", "the future"],
)
def test_a_library_that_does_it_wrong_is_noticed(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    text = library_text()
    assert text.count(right) == 1
    monkeypatch.setattr(connection_module, "library_text", lambda: text.replace(right, wrong))
    clock = Clock()
    monkeypatch.setattr(calls_module, "time", clock)
    world = World(tmp_path, clock)
    try:
        with pytest.raises((AssertionError, EdgeflowError, pytest.fail.Exception)):
            for seed in range(1000, 1400):
                drive(world, seed)
    finally:
        world.close()
