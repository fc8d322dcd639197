"""Cursors of consumers on real stores: what the Lua library does to logs, gates and release streams is what the cursors reckon with.

The same life as in tests/unit/test_consumer_cursors.py, with three Redis servers that are killed, emptied, and put back from a copy.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from consumer_world import CHANNELS, NS, AnyPop, Consumer
from link_pops import RedisServer, make_settings

from edgeflow.api import tails
from edgeflow.api.tails import Encode, GapEncode, TailHub
from edgeflow.core.cursors import Log
from edgeflow.core.events import Event
from edgeflow.store import Arrival, Receipt, Store
from edgeflow.store.namespace import Namespace
from edgeflow.store.records import LogId, Released

NAMES = ("la", "ny", "sf")
STEPS = 150
READS = ("release_head", "low_water", "read_release", "scan_release", "removed")


class Handle:
    """A namespace at which things happen between two reads."""

    def __init__(self, handle: Namespace, world: "Stores") -> None:
        self._handle = handle
        self._world = world

    def __getattr__(self, name: str) -> Any:
        if name in READS:
            self._world.happen()
        return getattr(self._handle, name)


class Door:
    """A store whose namespaces are such handles."""

    def __init__(self, store: Store, world: "Stores") -> None:
        self._store = store
        self._world = world

    def namespace(self, name: str) -> Handle:
        return Handle(self._store.namespace(name), self._world)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Pop:
    """A store on its own Redis, which can be lost."""

    def __init__(self, folder: Path, pop: str, world: "Stores") -> None:
        self.pop = pop
        self.world = world
        # Everything is late at once, and old at once: what expires and what is removed is decided by which of the two is called.
        self.settings = make_settings(folder, pop, dict.fromkeys(NAMES, 1), gate_timeout_ms=0, retention_ms=0)
        self.folder = folder / pop / "redis"
        self.redis = RedisServer(self.folder, self.settings.store.redis_socket).start()
        self.store = Store.open(self.settings)
        self.store.create_namespace(NS)
        self.ns = self.store.namespace(NS)
        self.client = self.store.blocking_client()
        self.graveyard: dict[int, Released] = {}

    def hub(self, encode: Encode, encode_gap: GapEncode) -> TailHub:
        return TailHub(Door(self.store, self.world), encode, encode_gap)  # type: ignore[arg-type]

    def was_there(self, first: int, last: int) -> list[Released]:
        return [self.graveyard[n] for n in range(first, last + 1) if n in self.graveyard]

    def has(self, log: Log, seq: int) -> bool:
        return seq <= self.ns.logs().get(LogId(*log), 0)

    def come_back_with(self, backup: Path | None) -> None:
        """Kill Redis and start it with what a backup has, or with nothing."""
        self.store.record_heads()
        self.redis.kill()
        shutil.rmtree(self.folder)
        if backup is not None:
            shutil.copytree(backup, self.folder)
        self.redis = RedisServer(self.folder, self.settings.store.redis_socket).start()
        self.store.ping()
        self.store.create_namespace(NS)
        self.store.check_epochs()
        self.graveyard.clear()

    def close(self) -> None:
        self.client.close()
        self.store.close()
        self.redis.kill()


class Stores:
    """Three PoPs, and everything that was published."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.published: dict[str, tuple[Log, int, str]] = {}
        self.backups: dict[str, Path] = {}
        self.restlessness = 0.0
        self._busy = False
        self.pops = [Pop(folder, name, self) for name in NAMES]
        self.done: dict[str, int] = {}

    def happen(self) -> None:
        if not self._busy and self.random.random() < self.restlessness:
            self.step()

    def step(self) -> None:
        """One thing happens."""
        self._busy = True
        choices = [self._publish] * 6 + [self._mirror] * 9 + [self._arrive] * 3 + [self._expire, self._tidy]
        if self.random.random() < 0.04:
            choices = [self._back_up, self._lose, self._restore]
        step = self.random.choice(choices)
        step()
        self.done[step.__name__] = self.done.get(step.__name__, 0) + 1
        self._busy = False

    def settle(self) -> None:
        """Everything that can still arrive anywhere does."""
        self._busy = True
        while any([self._mirror_to(pop, 1000) for pop in self.pops] + [self._fetch(pop, 1000) for pop in self.pops]):
            pass
        for pop in self.pops:
            # What is still held waits for a body that went with the only store that had it.
            pop.ns.tick()
        self._busy = False

    def _publish(self) -> None:
        pop = self.random.choice(self.pops)
        arrivals = [
            Arrival(self._event(), put_key=self.random.choice((None, None, "k")))
            for _ in range(self.random.choice((1, 1, 2, 3)))
        ]
        if self.random.random() < 0.2:
            pop.ns.put("other", b"x")
        for arrival, receipt in zip(arrivals, pop.ns.ingest(arrivals), strict=True):
            assert isinstance(receipt, Receipt)
            self.published[arrival.event.id] = (receipt.origin, receipt.epoch), receipt.seq, arrival.event.channel

    def _event(self) -> Event:
        id = f"e{len(self.published)}-{self.random.randrange(10**9)}"
        body = id.encode() * (1000 if self.random.random() < 0.25 else 1)
        return Event(self.random.choice(CHANNELS), id, "s", "t", 0, data=body)

    def _mirror(self) -> None:
        self._mirror_to(self.random.choice(self.pops), self.random.choice((1, 2, 5)))

    def _mirror_to(self, pop: Pop, count: int) -> bool:
        have = pop.ns.logs()
        own = LogId(pop.pop, pop.store.open_log(NS))
        ahead = [
            (other, log, have.get(log, 0))
            for other in self.pops
            if other is not pop
            for log, seq in other.ns.logs().items()
            if have.get(log, 0) < seq and log != own
        ]
        if ahead:
            other, log, seq = self.random.choice(ahead)
            entries = other.ns.read_log(log, seq, count=count)
            pop.ns.mirror(log, seq + 1, [raw for _, raw in entries])
        return bool(ahead)

    def _arrive(self) -> None:
        self._fetch(self.random.choice(self.pops), 1)

    def _fetch(self, pop: Pop, count: int) -> bool:
        found = False
        for digest in pop.ns.missing_blobs()[:count]:
            body = next((body for other in self.pops if (body := other.ns.read_blob(digest)) is not None), None)
            if body is not None:
                pop.ns.add_blob(digest, body)
                found = True
        return found

    def _expire(self) -> None:
        self.random.choice(self.pops).ns.tick()

    def _tidy(self) -> None:
        pop = self.random.choice(self.pops)
        pop.graveyard.update({one.n: one for one in pop.ns.read_release(0, 10_000)})
        pop.ns.tidy({})

    def _back_up(self) -> None:
        pop = self.random.choice(self.pops)
        target = self.folder / f"backup-{pop.pop}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(pop.folder, target)
        self.backups[pop.pop] = target

    def _lose(self) -> None:
        self.random.choice(self.pops).come_back_with(None)

    def _restore(self) -> None:
        pop = self.random.choice(self.pops)
        if pop.pop in self.backups:
            pop.come_back_with(self.backups[pop.pop])


@pytest.fixture
def stores(request: pytest.FixtureRequest, programs: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:  # fmt: skip
    monkeypatch.setattr(tails, "READ_COUNT", 5)
    monkeypatch.setattr(tails, "SCAN_COUNT", 4)
    monkeypatch.setattr(tails, "SCAN_CHUNKS", 2)
    monkeypatch.setattr(tails, "WAIT_S", 0.001)
    world = Stores(tmp_path_factory.mktemp("c"), request.param)
    yield world
    for pop in world.pops:
        pop.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stores", range(4), indirect=True)
@pytest.mark.parametrize("crashes", [False, True])
def test_nothing_is_lost_and_nothing_is_yielded_twice(stores: Stores, crashes: bool) -> None:
    consumer = Consumer(stores, "ns/#" if stores.random.random() < 0.7 else CHANNELS[0])

    def somewhere() -> AnyPop:
        return stores.random.choice(stores.pops)

    stores.restlessness = 0.2
    consumer.connect(somewhere())
    for _ in range(STEPS):
        action = stores.random.random()
        if action < 0.6:
            stores.step()
        elif action < 0.9:
            consumer.read(stores.random.choice((0, 1, 2, 10**9)))
        elif crashes and action < 0.93:
            consumer.crash(somewhere())
        else:
            consumer.connect(somewhere())
    stores.restlessness = 0.0
    stores.settle()
    last = somewhere()
    consumer.drain(last)
    assert consumer.owed(last) == set(), stores.done
    assert crashes or [id for id, times in consumer.yielded.items() if times > 1] == []
    assert len(consumer.yielded) > 5, stores.done
