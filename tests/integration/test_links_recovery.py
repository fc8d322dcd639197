"""PoPs on real Redis servers and real TLS after trouble: cut links, long outages, late joiners, old backups end with the same content everywhere."""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_pops import RedisServer
from test_links_store import Cluster

from edgeflow.host.linkfile import change_link
from edgeflow.store.records import LogId

Wait = Callable[..., Any]
pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("programs")]


class Site(Cluster):
    """A cluster whose PoPs are read and written as values."""

    def do(self, name: str, step: Callable[[Any], Any]) -> Any:
        """`step(namespace)` in the loop of a PoP; then its links know."""

        def run() -> Any:
            self.stores[name].create_namespace("ns")
            found = step(self.stores[name].namespace("ns"))
            self.pops[name].links.notify({"ns", "system"})
            return found

        return self.pops[name].call(run)

    def hashes(self) -> set[str]:
        return {self.do(name, lambda space: space.content_hash()) for name in self.pops}

    def heads(self, name: str) -> dict[LogId, int]:
        return dict(self.do(name, lambda space: space.logs()))

    def drop_log(self, name: str) -> None:
        """All of its log goes, as when it is larger than `log_bytes`."""

        def step(space: Any) -> None:
            while space.trim({}, 0, 0).entries:
                pass
            self.pops[name].links._site.tail.forget()  # what was read a moment ago would still be sent

        self.do(name, step)

    def link_state(self, name: str, peer: str) -> dict[str, Any]:
        return dict(self.pops[name].state(peer))

    def cut(self, a: str, b: str) -> None:
        change_link(self.control, a, b, cut=True)

    def heal(self, a: str, b: str) -> None:
        change_link(self.control, a, b, cut=False)

    def hears_nothing(self, name: str) -> bool:
        """Whether a PoP has not heard of another one for a while: a cut holds by then, and nothing is on its way."""
        staleness_ms = self.pops[name].call(lambda: self.pops[name].links.staleness_ms("ns"))
        return staleness_ms is None or staleness_ms > 1000

    def end(self, name: str) -> None:
        """The PoP ends, its Redis too."""
        self.pops.pop(name).stop()
        self.redis[name].kill()

    def begin(self, name: str) -> None:
        settings = self._settings(name)
        self.redis[name] = RedisServer(self.folder / name / "redis", settings.store.redis_socket).start()
        self.start(name)


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    made: list[Site] = []
    folder = Path(tempfile.mkdtemp(prefix="efr-"))

    def make(*names: str, **limits: int) -> Site:
        made.append(Site(folder, *names, **limits))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    shutil.rmtree(folder)


def write_some(site: Site, name: str, how: random.Random, count: int, *, large: bool = True) -> None:
    """Values of every type, over each other, some deleted."""

    def step(space: Any) -> None:
        for n in range(count):
            key = f"k/{how.randrange(30)}"
            size = how.choice([10, 10, 3000, 20_000, 300_000 if large else 10])
            match how.randrange(6):
                case 0 | 1:
                    space.put(key, f"{name} {n} ".encode() * (size // 5))
                case 2 if space.head(key) is not None:
                    space.delete(key)
                case 3:
                    space.increment("count", how.randrange(1, 10))
                case 4:
                    space.set_add("set", [f"e{how.randrange(20)}"])
                case 5:
                    space.map_put("map", {f"f{how.randrange(20)}": f"{name} {n}".encode()})

    site.do(name, step)


def settled(site: Site) -> bool:
    """All logs are everywhere, nothing is missing, and the content is the same."""
    heads = [site.heads(name) for name in site.pops]
    return (
        all(one == heads[0] for one in heads)
        and not any(site.do(name, lambda space: space.missing_blobs()) for name in site.pops)
        and len(site.hashes()) == 1
    )


def test_with_one_link_cut_everything_goes_round_it(site: Callable[..., Site], wait_until: Wait) -> None:
    pops = site("a", "b", "c").up()
    how = random.Random(1)
    for name in pops.names:
        write_some(pops, name, how, 10)
    wait_until(lambda: settled(pops), "all alike", 30)
    assert pops.link_state("a", "b")["relayed"] == pops.link_state("c", "b")["relayed"] == 0, (
        "nothing twice in a healthy mesh"
    )
    staleness = lambda: pops.pops["b"].call(lambda: pops.pops["b"].links.staleness_ms("ns"))  # noqa: E731
    wait_until(lambda: staleness() is not None and staleness() < 600, "b is fresh", 10)
    pops.cut("a", "b")
    wait_until(lambda: staleness() > 700, "the line is cut", 10)
    for name in pops.names:
        write_some(pops, name, how, 10)
    wait_until(lambda: settled(pops), "all alike, round the cut", 30)
    assert pops.link_state("c", "b")["relayed"] > 0 and pops.link_state("c", "a")["relayed"] > 0
    wait_until(
        lambda: staleness() is not None and staleness() < 2000, "b knows that it is fresh, though it cannot ask a", 15
    )
    receipt = pops.do("a", lambda space: space.put("fast", b"1"))
    wait_until(lambda: pops.do("b", lambda space: space.head("fast")) is not None, "it comes at once", 5)
    assert receipt.origin == "a"
    pops.heal("a", "b")
    wait_until(lambda: pops.link_state("a", "b")["state"] == "up", "up again", 20)
    write_some(pops, "a", how, 10)
    wait_until(lambda: settled(pops), "all alike again", 30)
    wait_until(
        lambda: (
            not pops.pops["c"].call(
                lambda: [link.relays for link in pops.pops["c"].links._links.values() if link.relays]
            )
        ),
        "no more relays",
        10,
    )


def test_a_late_joiner_gets_a_snapshot(site: Callable[..., Site], wait_until: Wait) -> None:
    pops = site("a", "b", "c")
    for name in "ab":
        pops.begin(name)
    how = random.Random(2)
    for name in "ab":
        write_some(pops, name, how, 60)
        pops.publish(name, "ns", b"an event")
    wait_until(lambda: settled(pops), "a and b are alike", 30)
    for name in "ab":
        pops.drop_log(name)
        assert not pops.do(
            name,
            lambda space: [
                space.read_log(log, 0, count=1, max_bytes=1)
                for log in space.logs()
                if space.read_log(log, 0, count=1, max_bytes=1)
            ],
        )
    pops.begin("c")
    wait_until(lambda: "ns" in pops.pops["c"].call(pops.stores["c"].namespaces), "c knows the namespace", 20)
    write_some(pops, "a", how, 5)
    wait_until(lambda: settled(pops), "c is like the others", 30)
    gaps = [item.gap for item in pops.released("c", "ns") if item.gap is not None]
    assert {(gap["channel"], gap["origin"], gap["reason"]) for gap in gaps} == {
        ("ns/c", "a", "lost"),
        ("ns/c", "b", "lost"),
    }
    pops.publish("a", "ns", b"another event")
    wait_until(
        lambda: [item.event.data for item in pops.released("c", "ns") if item.event] == [b"another event"],
        "the log goes on",
        10,
    )
    assert sum(pops.link_state(name, "c")["snapshots_sent"] for name in "ab") >= 1


def test_after_a_long_outage_with_a_trimmed_log_the_content_is_the_same(
    site: Callable[..., Site], wait_until: Wait
) -> None:
    pops = site("a", "b", "c", log_bytes=60_000).up()
    how = random.Random(3)
    for name in pops.names:
        write_some(pops, name, how, 20)
    wait_until(lambda: settled(pops), "all alike", 30)
    pops.end("c")
    for _ in range(5):
        for name in "ab":
            write_some(pops, name, how, 40, large=False)
        pops.do("a", lambda space: [space.delete(key.key) for key in space.list("k/")[:3] if key.kind == "register"])
    lag = lambda: pops.stores["a"].local.docs("lag").get("ns", {})  # noqa: E731
    wait_until(lambda: lag().get("forced_out", 0) > 0, "the log was cut although c needs it", 20)
    assert lag()["peers"]["c"]["entries_behind"] > 0 and lag()["log_bytes"] > 0
    pops.begin("c")
    wait_until(lambda: settled(pops), "c is like the others", 40)
    wait_until(lambda: lag()["peers"]["c"]["entries_behind"] == 0, "nothing is behind any more", 10)
    total = pops.do("a", lambda space: space.count_value("count"))
    assert all(pops.do(name, lambda space: space.count_value("count")) == total for name in pops.names)


@pytest.mark.parametrize("kept", [True, False], ids=["epoch file kept", "state set back too"])
def test_a_pop_with_an_old_backup_gets_its_tail_back(site: Callable[..., Site], wait_until: Wait, kept: bool) -> None:
    pops = site("a", "b", "c").up()
    how = random.Random(4)
    for name in pops.names:
        write_some(pops, name, how, 20)
    wait_until(lambda: settled(pops), "all alike", 30)
    pops.end("a")
    for part in ("redis", "state"):
        shutil.copytree(pops.folder / "a" / part, pops.folder / "backup" / part)
    pops.begin("a")
    wait_until(lambda: pops.link_state("a", "b")["state"] == "up", "up", 20)
    for name in pops.names:
        write_some(pops, name, how, 20)
    wait_until(lambda: settled(pops), "all alike", 30)
    pops.do("b", lambda space: [space.delete(info.key) for info in space.list("k/") if info.kind == "register"])
    wait_until(lambda: settled(pops), "all alike", 30)
    pops.stores["a"].record_heads()
    pops.end("a")
    for part in ("redis",) if kept else ("redis", "state"):
        shutil.rmtree(pops.folder / "a" / part)
        shutil.copytree(pops.folder / "backup" / part, pops.folder / "a" / part)
    before = {log.epoch for log in pops.heads("b") if log.origin == "a"}
    for name in "bc":
        pops.drop_log(name)
    pops.begin("a")
    pops.do("a", lambda space: space.put("after", b"the backup"))
    wait_until(lambda: settled(pops), "all alike after the backup", 40)
    assert len({log.epoch for log in pops.heads("b") if log.origin == "a"} - before) == 1, "a writes in a new epoch"
    assert pops.do("c", lambda space: space.get("after")).data == b"the backup"
    assert pops.do("a", lambda space: [info.key for info in space.list("k/") if info.kind == "register"]) == []


def test_tombstones_are_collected_when_every_pop_has_passed_them(site: Callable[..., Site], wait_until: Wait) -> None:
    pops = site("a", "b", "c").up()
    pops.do("a", lambda space: [space.put(f"k/{n}", b"1") for n in range(20)])
    wait_until(lambda: settled(pops), "all alike", 20)
    pops.cut("b", "c")
    pops.cut("a", "c")
    wait_until(lambda: pops.hears_nothing("c"), "c to be cut off", 10)
    pops.do("b", lambda space: [space.delete(f"k/{n}") for n in range(20)])

    def graves(name: str) -> int:
        return int(pops.do(name, lambda space: space._connection.one("ZCARD", space.prefix + "graves")))

    wait_until(lambda: graves("a") == graves("b") == 20, "a and b remember the deletions", 10)
    time.sleep(3)  # they would be gone by now if c were not away: nothing to wait for
    assert graves("a") == graves("b") == 20
    pops.heal("b", "c")
    pops.heal("a", "c")
    wait_until(lambda: graves("a") == graves("b") == graves("c") == 0, "they are forgotten", 20)
    assert settled(pops)
