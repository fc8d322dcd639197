"""Durable consumers on three real PoPs: away while events flow, back at the same PoP and at others, cut, killed, and told what retention took."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgeflow.errors import EdgeflowError, NotFound
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap, ReceivedEvent
from edgeflow.settings import PopSettings
from edgeflow.store import Store

POPS = ("chicago", "la", "ny")
CHANNELS = ("alerts", "frames/left", "frames/right")
DELAY_MS = 20
Wait = Callable[..., Any]
pytestmark = [pytest.mark.timeout(240), pytest.mark.faults]


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(POPS) as cluster:
        for a, b in (("chicago", "la"), ("chicago", "ny"), ("la", "ny")):
            cluster.set_link(a, b, delay_ms=DELAY_MS)
        yield cluster


def client_at(cluster: LocalCluster, pop: str) -> Client:
    """A client of `pop` that knows the other PoPs, as `Client.from_home` makes it."""
    at = POPS.index(pop)
    access = [cluster.pop(name) for name in (*POPS[at:], *POPS[:at])]
    return Client(
        access[0].api_url, access[0].token, retry_s=60, others=[(one.api_url, one.token) for one in access[1:]]
    )


def wait_known(cluster: LocalCluster, namespace: str, wait_until: Wait) -> None:
    """Until every PoP knows what consumer `c` has acknowledged: who is sooner at another PoP is given it once more, as a new process has forgotten it."""

    def cursors() -> set[str]:
        found = set()
        for pop in POPS:
            with client_at(cluster, pop) as client:
                found |= {one["cursor"] for one in client.consumers(namespace) if one["name"] == "c"}
        return found

    wait_until(lambda: len(cursors()) == 1, "every PoP to know the last acknowledgement")


class Publisher(threading.Thread):
    """Publishes at all PoPs in turn until it is told to stop. Bodies of every size: large ones are late at other PoPs, and what follows is not."""

    def __init__(
        self, cluster: LocalCluster, namespace: str, pops: tuple[str, ...] = POPS, pause_s: float = 0.002
    ) -> None:
        super().__init__(daemon=True)
        self.sent: list[str] = []
        self._namespace = namespace
        self._clients = [client_at(cluster, pop) for pop in pops]
        self._ending = threading.Event()
        self._random = random.Random(1)
        self._pause_s = pause_s

    def run(self) -> None:
        while not self._ending.wait(self._pause_s):
            number = len(self.sent)
            body = bytes(self._random.choice((10, 10, 10, 20_000, 400_000)))
            channel = f"{self._namespace}/{self._random.choice(CHANNELS)}"
            client = self._clients[number % len(self._clients)]
            self.sent.append(client.publish(channel, body, id=f"e{number}", subject=str(number)).id)

    def end(self) -> list[str]:
        """All ids, when the last one is durable."""
        self._ending.set()
        self.join(60)
        assert not self.is_alive()
        for client in self._clients:
            client.close()
        return self.sent

    def wait_for(self, count: int, wait_until: Wait) -> None:
        until = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= until, f"{count} more events", 60)


class Taken:
    """What a consumer was given in its life, and what it was told is missing."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.gaps: list[Gap] = []

    def note(self, item: ReceivedEvent | Gap) -> None:
        if isinstance(item, Gap):
            self.gaps.append(item)
        else:
            self.ids.append(item.id)

    def check(self, sent: list[str]) -> None:
        twice = [id for id, times in Counter(self.ids).items() if times > 1]
        assert (sorted(set(sent) - set(self.ids)), twice, self.gaps) == ([], [], [])


def take_until(items: Any, taken: Taken, last: Callable[[], bool]) -> None:
    while not last():
        taken.note(next(items))


def take_all(items: Any, taken: Taken, sent: list[str]) -> None:
    take_until(items, taken, lambda: set(sent) <= set(taken.ids))


def test_away_while_events_flow_and_back_at_any_pop(cluster: LocalCluster, wait_until: Wait) -> None:
    taken = Taken()
    publisher = Publisher(cluster, "away")
    with client_at(cluster, "chicago") as client, client.subscribe("away/#", durable="c", from_="start") as items:
        publisher.start()
        take_until(items, taken, lambda: len(taken.ids) >= 100)
    figures = []
    for pop in ("chicago", "la", "ny", "la", "chicago"):
        before = len(taken.ids)
        publisher.wait_for(150, wait_until)
        backlog = len(publisher.sent) - before
        begin = time.monotonic()
        with client_at(cluster, pop) as client, client.subscribe("away/#", durable="c") as items:
            take_until(items, taken, lambda wanted=before + backlog: len(taken.ids) >= wanted)  # type: ignore[misc]
        figures.append(f"{pop} {backlog} in {time.monotonic() - begin:.2f} s")
    sent = publisher.end()
    wait_known(cluster, "away", wait_until)
    with client_at(cluster, "ny") as client, client.subscribe("away/#", durable="c") as items:
        take_all(items, taken, sent)
    wait_known(cluster, "away", wait_until)
    # Nothing more comes: the next event is the next one that is published.
    with client_at(cluster, "la") as client, client.subscribe("away/#", durable="c") as items:
        client.publish("away/alerts", b"", id="the-end")
        item = next(items)
        assert isinstance(item, ReceivedEvent)
        repeated = 0
        while item.id != "the-end":
            repeated += 1
            item = next(items)  # type: ignore[assignment]
    print(f"\nresumed: {', '.join(figures)}; {len(sent)} events, {len(set(taken.ids))} once")
    lost = set(sent) - set(taken.ids)
    twice = {id: times for id, times in Counter(taken.ids).items() if times > 1}
    print(f"lost {len(lost)}, given twice to a process that had forgotten {len(twice)}, repeated at the end {repeated}")
    assert not lost
    assert not taken.gaps
    assert len(twice) <= len(sent) // 20


def test_its_pop_is_killed_in_the_middle(cluster: LocalCluster, wait_until: Wait) -> None:
    taken = Taken()
    publisher = Publisher(cluster, "killed", pops=("la", "ny"))
    with client_at(cluster, "chicago") as client:
        items = client.subscribe("killed/#", durable="c", from_="start")
        home = items.url
        publisher.start()
        take_until(items, taken, lambda: len(taken.ids) >= 200)
        gone = threading.Event()

        def keep_down() -> None:
            while not gone.wait(0.05):
                for process in ("control", "data", "redis", "broker"):
                    with suppress(Exception):
                        pid = cluster.pid("chicago", process)  # type: ignore[arg-type]
                        if pid:
                            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=keep_down)
        killer.start()
        begin = time.monotonic()
        try:
            take_until(items, taken, lambda: items.url != home)
            moved_s = time.monotonic() - begin
            count = len(taken.ids)
            take_until(items, taken, lambda: len(taken.ids) >= count + 200)
            sent = publisher.end()
            take_all(items, taken, sent)
        finally:
            gone.set()
            killer.join()
        items.close()
    wait_until(lambda: is_ready(cluster), "the killed PoP to be back", 90, every_s=0.5)
    wait_known(cluster, "killed", wait_until)
    print(f"\nmoved after {moved_s:.1f} s; {len(sent)} events, {len(taken.ids)} yielded, {len(taken.gaps)} gaps")
    taken.check(sent)
    with client_at(cluster, "chicago") as client, client.subscribe("killed/#", durable="c") as items:
        client.publish("killed/alerts", b"", id="the-end")
        seen = [next(items)]
        while not (isinstance(seen[-1], ReceivedEvent) and seen[-1].id == "the-end"):
            seen.append(next(items))
    print(f"back at the PoP that was killed: {len(seen) - 1} repeated")
    assert len(seen) - 1 <= len(sent) // 10


PROGRAM = """
import json, os, sys
from edgeflow.sdk.client import Client, Gap
url, token, others, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), open(sys.argv[4], "a", buffering=1)
with Client(url, token, others=[tuple(one) for one in others]) as client:
    for item in client.subscribe("crash/#", durable="c", from_="start"):
        out.write(f"{type(item).__name__} {getattr(item, 'id', item)}\\n")
"""


def test_a_consumer_that_is_killed_again_and_again(cluster: LocalCluster, wait_until: Wait, tmp_path: Path) -> None:
    out = tmp_path / "ids"
    out.touch()
    publisher = Publisher(cluster, "crash")
    publisher.start()
    chance = random.Random(2)
    lives = 0

    def ids() -> list[str]:
        return [line.split()[1] for line in out.read_text().splitlines() if line.startswith("ReceivedEvent ")]

    def start(pop: str) -> "subprocess.Popen[bytes]":
        at = POPS.index(pop)
        access = [cluster.pop(name) for name in (*POPS[at:], *POPS[:at])]
        others = json.dumps([(one.api_url, one.token) for one in access[1:]])
        return subprocess.Popen([sys.executable, "-c", PROGRAM, access[0].api_url, access[0].token, others, str(out)])

    for _ in range(8):
        before = len(ids())
        process = start(chance.choice(POPS))
        wait_until(lambda before=before: len(ids()) > before + chance.randrange(20, 150), "some events", 60)
        process.kill()
        process.wait()
        lives += 1
    sent = publisher.end()
    process = start("ny")
    wait_until(lambda: set(sent) <= set(ids()), "all events", 60)
    process.kill()
    process.wait()
    repeated = len(ids()) - len(set(ids()))
    print(
        f"\n{len(sent)} events, {lives} kills: {len(set(sent) - set(ids()))} lost, {repeated} came again ({repeated / lives:.0f} a kill)"
    )
    assert "Gap" not in out.read_text()


def test_what_retention_took_is_told_channel_by_channel(cluster: LocalCluster, wait_until: Wait) -> None:
    with client_at(cluster, "chicago") as client:
        with (
            client.subscribe("old/alerts", durable="quiet") as quiet,
            client.subscribe("old/#", durable="all") as everything,
        ):
            client.publish("old/alerts", b"", id="first")
            for items in (quiet, everything):
                item = next(items)
                assert isinstance(item, ReceivedEvent)
                assert item.id == "first"
        for number in range(50):
            client.publish("old/frames", b"", id=f"f{number}")
    for pop in POPS:
        with client_at(cluster, pop) as client:
            wait_until(
                lambda client=client: events_there(client, "old").get("old/frames") == 50, f"all events at {pop}"
            )
        forget_released(cluster, pop, "old")
    for pop in POPS:
        with client_at(cluster, pop) as client:
            with client.subscribe("old/alerts", durable="quiet") as quiet:
                client.publish("old/alerts", b"", id=f"new-{pop}")
                seen = [next(quiet)]
                # What was acknowledged a moment ago at another PoP may not be known here yet.
                while not (isinstance(seen[-1], ReceivedEvent) and seen[-1].id == f"new-{pop}"):
                    seen.append(next(quiet))
                assert not [item for item in seen if isinstance(item, Gap)]
                assert len(seen) <= 2
            # Without taking it: each PoP is asked the same.
            everything = client.subscribe("old/#", durable="all")
            gap = next(everything)
            assert isinstance(gap, Gap)
            details = dict(gap.details)
            assert (gap.reason, details["channel"], details["origin"]) == ("retention", "old/frames", "chicago")
            assert details["to"] - details["from"] >= 49
            print(f"\n{pop}: {details}")
            del everything


def events_there(client: Client, namespace: str) -> dict[str, int]:
    """Events per channel, as this PoP knows them; none while it has not heard of the namespace."""
    try:
        return {one["channel"]: one["events"] for one in client.channels(namespace)}
    except NotFound:
        return {}


def is_ready(cluster: LocalCluster) -> bool:
    """Whether all PoPs are there; one that was killed over and over is only tried again after a while."""
    try:
        cluster.wait_ready(timeout_s=1)
    except EdgeflowError:
        return False
    return True


def forget_released(cluster: LocalCluster, pop: str, namespace: str) -> None:
    """What retention does, at once."""
    settings = PopSettings.load(cluster.home.root / "pops" / pop / "pop.json")
    limits = settings.limits.model_copy(update={"retention_ms": 0})
    store = Store.open(settings.model_copy(update={"limits": limits}))
    handle = store.namespace(namespace)
    while handle.read_release(0, 1):
        handle.tidy({})
    store.close()
