"""Links between PoPs with real Redis servers and the real store, over real TLS: what is read is what was written, data before notification."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_pops import LinkPop, RedisServer, free_port, make_settings

from edgeflow.core.events import make_event
from edgeflow.host.linkfile import Link as WanLink
from edgeflow.host.linkfile import change_link, save_links
from edgeflow.settings import Peer
from edgeflow.store.client import Store
from edgeflow.store.records import Arrival, Released

Wait = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("programs")


class Cluster:
    """PoPs with Redis and links; the delay proxy is in front of each link."""

    def __init__(self, folder: Path, *names: str, **limits: int) -> None:
        self.folder = folder
        self.names = names
        self.ports = {name: free_port() for name in names}
        self.redis = {}
        self.stores: dict[str, Store] = {}
        self.pops: dict[str, LinkPop] = {}
        self.limits = limits
        pairs = [(a, b) for a in names for b in names if a < b]
        self.proxies = {pair: free_port() for pair in pairs}
        self.control = folder / "wan.json"
        folder.mkdir(exist_ok=True)
        save_links(
            self.control,
            [WanLink(a, b, "127.0.0.1", port, "127.0.0.1", self.ports[b]) for (a, b), port in self.proxies.items()],
        )
        self.wan = subprocess.Popen([sys.executable, "-m", "edgeflow.host.wan", "--config", str(self.control)])

    def up(self) -> "Cluster":
        for name in self.names:
            settings = self._settings(name)
            self.redis[name] = RedisServer(self.folder / name / "redis", settings.store.redis_socket).start()
            self.start(name)
        return self

    def start(self, name: str) -> None:
        settings = self._settings(name)
        self.stores[name] = Store.open(settings, patient=True)
        self.pops[name] = LinkPop(settings, self.stores[name]).start()

    def publish(self, name: str, ns: str, *bodies: bytes, put_key: str | None = None) -> None:
        """Logs one event per body at a PoP and tells its links, as the data process does."""
        now_ms = int(time.time() * 1000)

        def step() -> None:
            self.stores[name].create_namespace(ns)
            events = [
                make_event(f"{ns}/c", body, id=hashlib.sha1(body).hexdigest(), source="test", now_ms=now_ms)
                for body in bodies
            ]
            self.stores[name].namespace(ns).ingest([Arrival(event, put_key=put_key) for event in events])
            self.pops[name].links.notify({ns, "system"})

        self.pops[name].call(step)

    def released(self, name: str, ns: str) -> list[Released]:
        return self.pops[name].call(lambda: self.stores[name].namespace(ns).read_release(0, 100_000))

    def logs_are_equal(self, ns: str) -> bool:
        def content(name: str) -> Any:
            space = self.stores[name].namespace(ns)
            return {log: space.read_log(log, 0, count=1_000_000, max_bytes=10**9) for log in space.logs()}

        first, *others = (self.pops[name].call(lambda name=name: content(name)) for name in self.names)
        return all(other == first for other in others)

    def stop(self) -> None:
        for pop in self.pops.values():
            pop.stop()
        self.wan.terminate()
        self.wan.wait()
        for redis in self.redis.values():
            redis.kill()

    def _settings(self, name: str) -> Any:
        settings = make_settings(self.folder, name, self.ports, **self.limits)
        peers = {
            peer: Peer(host="127.0.0.1", port=self.proxies.get((name, peer), self.ports[peer]))
            for peer in self.names
            if peer != name
        }
        return settings.model_copy(update={"link": settings.link.model_copy(update={"peers": peers})})


@pytest.fixture
def cluster() -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []
    folder = Path(tempfile.mkdtemp(prefix="efl-"))  # a socket's path has at most 107 bytes

    def make(*names: str, **limits: int) -> Cluster:
        made.append(Cluster(folder, *names, **limits))
        return made[-1].up()

    yield make
    for one in made:
        one.stop()
    shutil.rmtree(folder)


def test_three_pops_hold_the_same_logs_and_bodies(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b", "c")
    bodies = {
        name: [f"{name}{n}".encode() * size for n, size in enumerate([1, 100, 10_000, 200_000, 400_000, 1])]
        for name in pops.names
    }
    for name, some in bodies.items():
        for body in some:
            pops.publish(name, "ns", body)
    wait_until(
        lambda: all(len(pops.released(name, "ns")) == 18 for name in pops.names),
        "everything is released everywhere",
        20,
    )
    assert pops.logs_are_equal("ns")
    for name in pops.names:
        space = pops.stores[name].namespace("ns")
        seen = {space.data_of(item.event) for item in pops.released(name, "ns") if item.event is not None}
        assert seen == {body for some in bodies.values() for body in some}
        assert space.missing_blobs() == []


def test_nothing_is_released_before_its_data_is_readable(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    change_link(pops.control, "a", "b", delay_ms=100)
    wait_until(lambda: (pops.pops["a"].state("b")["rtt_ms"] or 0) > 150, "the delay is there", 20)
    how = random.Random(3)
    space = pops.stores["b"].namespace("ns")
    seen = 0
    for n in range(30):
        pops.publish("a", "ns", how.randbytes(how.choice([10, 50_000, 300_000, 1_500_000])), put_key=f"k/{n}")
        for item in pops.released("b", "ns")[seen:]:
            assert item.event is not None and space.data_of(item.event)
            seen += 1
    wait_until(lambda: len(pops.released("b", "ns")) == 30, "all of them", 30)
    for item in pops.released("b", "ns")[seen:]:
        assert item.event is not None and len(space.data_of(item.event)) == item.event.size_bytes
    assert len(space.list("k/")) == 30
    assert all(item.gap is None for item in pops.released("b", "ns"))


def test_a_large_blob_does_not_hold_up_events_on_other_channels(
    cluster: Callable[..., Cluster], wait_until: Wait
) -> None:
    pops = cluster("a", "b")
    wait_until(lambda: pops.pops["a"].state("b")["state"] == "up", "up")
    change_link(pops.control, "a", "b", delay_ms=50)
    pops.publish("a", "big", random.randbytes(15_000_000))
    pops.publish("a", "small", b"now")
    wait_until(lambda: pops.released("b", "small"), "the small one")
    assert not pops.released("b", "big")
    wait_until(lambda: pops.released("b", "big"), "the large one", 30)


def test_namespaces_travel_by_themselves(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    pops.pops["a"].call(lambda: (pops.stores["a"].create_namespace("new"), pops.pops["a"].links.notify({"system"})))
    wait_until(lambda: "new" in pops.pops["b"].call(pops.stores["b"].namespaces), "it is known")


def test_the_data_process_of_either_side_may_restart(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    how = random.Random(5)
    for n in range(40):
        pops.publish(how.choice("ab"), "ns", how.randbytes(how.choice([20, 20_000, 600_000])))
        if n in (10, 20, 30):
            who = how.choice("ab")
            pops.pops[who].stop()
            pops.start(who)
    wait_until(lambda: all(len(pops.released(name, "ns")) == 40 for name in "ab"), "all", 30)
    assert pops.logs_are_equal("ns")


def test_a_redis_that_dies_and_comes_back_loses_nothing(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    for n in range(30):
        pops.publish("a", "ns", b"%d" % n * 3000)
        if n == 15:
            pops.redis["b"].kill()
            pops.redis["b"].start()
    wait_until(lambda: len(pops.released("b", "ns")) == 30, "all", 30)
    assert pops.logs_are_equal("ns")


def test_link_state_is_written_for_others_to_read(cluster: Callable[..., Cluster], wait_until: Wait) -> None:
    pops = cluster("a", "b")
    wait_until(lambda: pops.stores["a"].local.docs("link_state").get("b", {}).get("state") == "up", "up")
    document = pops.stores["a"].local.docs("link_state")["b"]
    assert set(document) >= {
        "state",
        "rtt_ms",
        "entries_behind",
        "bytes_behind",
        "last_error",
        "since_ms",
        "staleness_ms",
    }
    assert json.dumps(document)


@pytest.mark.parametrize("kept", [True, False], ids=["epoch file kept", "state lost too"])
def test_a_pop_that_lost_its_store_gets_everything_back(
    cluster: Callable[..., Cluster], wait_until: Wait, kept: bool
) -> None:
    pops = cluster("a", "b")
    for name in "ab":
        for n in range(10):
            pops.publish(name, "ns", f"{name}{n}".encode() * 4000, put_key=f"k/{name}{n}")
    wait_until(lambda: all(len(pops.released(name, "ns")) == 20 for name in "ab"), "all", 30)
    pops.pops["a"].stop()
    pops.redis["a"].kill()
    shutil.rmtree(pops.folder / "a" / "redis")
    if not kept:
        shutil.rmtree(pops.folder / "a" / "state")
    pops.redis["a"] = RedisServer(pops.folder / "a" / "redis", pops.folder / "a" / "r.sock").start()
    pops.start("a")
    wait_until(lambda: len(pops.released("a", "ns")) == 20, "given back", 30)
    pops.publish("a", "ns", b"after the loss")
    wait_until(lambda: len(pops.released("b", "ns")) == 21, "a goes on in a later epoch", 30)
    assert pops.logs_are_equal("ns")
    assert [info.key for info in pops.stores["a"].namespace("ns").list("k/")] == [
        info.key for info in pops.stores["b"].namespace("ns").list("k/")
    ]
    assert len({log.epoch for log in pops.stores["b"].namespace("ns").logs() if log.origin == "a"}) == 2
