"""Clients that find the nearest PoP, on three real ones: the PoP in use is killed, hangs, becomes slow, is back. Each event exactly once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from link_pops import Line

from edgeflow.errors import Unavailable
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap, Weights
from edgeflow.settings import PopSettings
from edgeflow.store import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "clients" / "carry_on.py"
POPS = ("chicago", "la", "ny")
PROCESSES = ("control", "data", "redis", "broker")
Wait = Callable[..., Any]
pytestmark = [pytest.mark.timeout(240)]


class Way(Line):
    """The client's way to a PoP, as long as the test says."""

    delay_s = 0.0

    def _copy(self, source: Any, sink: Any, counted: bool) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(65536):
                time.sleep(self.delay_s)
                sink.sendall(data)


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(POPS) as cluster:
        yield cluster


@pytest.fixture
def ways(cluster: LocalCluster) -> Iterator[dict[str, Way]]:
    """la is the nearest, then ny."""
    ways = {pop: Way(int(cluster.pop(pop).api_url.rpartition(":")[2])) for pop in POPS}
    for pop, delay_s in (("chicago", 0.04), ("la", 0.0), ("ny", 0.02)):
        ways[pop].delay_s = delay_s
    yield ways
    for way in ways.values():
        way.close()


def connect(cluster: LocalCluster, ways: dict[str, Way], **options: Any) -> Client:
    members = [(f"http://127.0.0.1:{way.port}", cluster.pop(pop).token) for pop, way in ways.items()]
    # How busy the PoPs of this machine are says nothing here.
    return Client.connect(members, retry_s=60, weights=Weights(load=0), **options)


def pop_of(ways: dict[str, Way], url: str) -> str:
    return next(pop for pop, way in ways.items() if url.endswith(f":{way.port}"))


class Traffic:
    """One client that publishes and follows what it publishes, durably, until it is told to stop."""

    def __init__(self, client: Client, name: str) -> None:
        self.sent: list[str] = []
        self.acked_s: list[float] = []
        self.got: list[tuple[float, str]] = []
        self.gaps: list[Gap] = []
        self.troubles: list[BaseException] = []
        self.channel = f"{name}/all"
        self.client = client
        self._ending = threading.Event()
        self._subscription = client.subscribe(self.channel, durable="c", from_="start")
        self._threads = [
            threading.Thread(target=self._guard, args=(what,), daemon=True) for what in (self._publish, self._follow)
        ]
        for thread in self._threads:
            thread.start()

    def _guard(self, what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as trouble:
            self.troubles.append(trouble)

    def _publish(self) -> None:
        while not self._ending.wait(0.01):
            number = len(self.sent)
            body = bytes(20_000 if number % 7 == 0 else 10)
            self.sent.append(self.client.publish(self.channel, body, id=f"e{number}", subject=str(number)).id)
            self.acked_s.append(time.monotonic())
        self.client.publish(self.channel, b"", id="the-end")

    def _follow(self) -> None:
        with self._subscription as items:
            for item in items:
                if isinstance(item, Gap):
                    self.gaps.append(item)
                elif item.id == "the-end":
                    return
                else:
                    self.got.append((time.monotonic(), item.id))

    def flows(self, count: int, wait_until: Wait) -> None:
        """Until so many more were published and received."""
        sent, got = len(self.sent) + count, len(self.got) + count
        wait_until(
            lambda: self.troubles or (len(self.sent) >= sent and len(self.got) >= got), f"{count} more events", 120
        )
        assert not self.troubles

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(120)
        assert not self.troubles and not any(thread.is_alive() for thread in self._threads)
        counts = Counter(id for _, id in self.got)
        assert sorted(set(self.sent) - set(counts)) == [], "published and not received"
        assert [id for id, times in counts.items() if times > 1] == [] and self.gaps == []

    def breaks(self, since_s: float) -> str:
        """The longest time without an acknowledgement, and without an event."""
        texts = []
        for what, times in (("acknowledged", self.acked_s), ("received", [at for at, _ in self.got])):
            times = [since_s, *(at for at in times if at > since_s)]
            texts.append(f"{what} again after {max((b - a for a, b in pairwise(times)), default=0.0):.2f} s")
        return ", ".join(texts)


def check_shown_once(cluster: LocalCluster, name: str, sent: list[str], wait_until: Wait) -> int:
    """Every PoP shows each event once, whichever of its two publishes it had first. Returns how many were published twice."""
    repeated: set[str] = set()
    for pop in POPS:
        with closing(Store.open(PopSettings.load(cluster.home.config_file(pop)))) as store:

            def shown(store: Store = store) -> list[str]:
                released = store.namespace(name).read_release(0, 100_000)
                repeated.update(one.event.id for one in released if one.event is not None and one.is_repeated)
                return sorted(one.event.id for one in released if one.event is not None and not one.is_repeated)

            wait_until(lambda: shown() == sorted([*sent, "the-end"]), f"{pop} shows each event once", 60)
    return len(repeated)


def signal_all(cluster: LocalCluster, pop: str, number: signal.Signals) -> None:
    for process in PROCESSES:
        if (pid := cluster.pid(pop, process)) is not None:  # type: ignore[arg-type]
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def test_its_pop_is_killed(cluster: LocalCluster, ways: dict[str, Way], wait_until: Wait) -> None:
    with connect(cluster, ways) as client:
        traffic = Traffic(client, "short")
        traffic.flows(30, wait_until)
        at_s, first = time.monotonic(), pop_of(ways, client.url)
        ways[first].cut()
        signal_all(cluster, first, signal.SIGKILL)
        traffic.flows(40, wait_until)
        assert pop_of(ways, client.url) != first
        breaks = traffic.breaks(at_s)
        traffic.end()
    cluster.wait_ready(timeout_s=90)
    twice = check_shown_once(cluster, "short", traffic.sent, wait_until)
    print(f"\nkilled: {breaks}; {len(traffic.sent)} events, each once, {twice} of them published at two PoPs")


@pytest.mark.faults
def test_its_pop_is_killed_and_comes_back(cluster: LocalCluster, ways: dict[str, Way], wait_until: Wait) -> None:
    with connect(cluster, ways) as client:
        wait_until(lambda: pop_of(ways, client.url) == "la", "the nearest PoP is used", 60)
        traffic = Traffic(client, "killed")
        traffic.flows(100, wait_until)
        at_s = time.monotonic()
        ways["la"].cut()
        signal_all(cluster, "la", signal.SIGKILL)
        traffic.flows(200, wait_until)
        assert pop_of(ways, client.url) != "la"
        breaks = traffic.breaks(at_s)
        cluster.wait_ready(timeout_s=90)
        ways["la"].heal()
        wait_until(lambda: pop_of(ways, client.url) == "la", "the nearest PoP is used again", 120)
        traffic.flows(50, wait_until)
        traffic.end()
    twice = check_shown_once(cluster, "killed", traffic.sent, wait_until)
    print(f"\nkilled: {breaks}; {len(traffic.sent)} events, each once, {twice} of them published at two PoPs")


@pytest.mark.faults
def test_its_pop_hangs(cluster: LocalCluster, ways: dict[str, Way], wait_until: Wait) -> None:
    with connect(cluster, ways) as client:
        traffic = Traffic(client, "hangs")
        traffic.flows(100, wait_until)
        at_s, first = time.monotonic(), pop_of(ways, client.url)
        signal_all(cluster, first, signal.SIGSTOP)
        try:
            traffic.flows(200, wait_until)
            assert pop_of(ways, client.url) != first
            breaks = traffic.breaks(at_s)
        finally:
            signal_all(cluster, first, signal.SIGCONT)
        traffic.flows(50, wait_until)
        traffic.end()
    twice = check_shown_once(cluster, "hangs", traffic.sent, wait_until)
    print(f"\nhangs: {breaks}; {len(traffic.sent)} events, each once, {twice} of them published at two PoPs")


@pytest.mark.faults
def test_its_pop_becomes_slow(cluster: LocalCluster, ways: dict[str, Way], wait_until: Wait) -> None:
    with connect(cluster, ways) as client:
        traffic = Traffic(client, "slow")
        traffic.flows(100, wait_until)
        at_s, first = time.monotonic(), pop_of(ways, client.url)
        ways[first].delay_s = 0.25
        wait_until(lambda: pop_of(ways, client.url) != first, "the slow PoP is left", 60)
        left_s = time.monotonic() - at_s
        traffic.flows(100, wait_until)
        traffic.end()
        table = {pop_of(ways, row["url"]): row for row in client.known_pops()}
        assert set(table) == set(POPS) and not table[first]["current"]
    twice = check_shown_once(cluster, "slow", traffic.sent, wait_until)
    print(
        f"\nslow: left after {left_s:.2f} s, {traffic.breaks(at_s)}; {len(traffic.sent)} events, {twice} published twice"
    )


def test_a_session_goes_on_at_another_pop(cluster: LocalCluster, ways: dict[str, Way], wait_until: Wait) -> None:
    with connect(cluster, ways) as client:
        session = client.ekv.session()
        session.put("sessions/k", b"0")
        for turn in (1, 2):
            first = pop_of(ways, client.url)
            session.put("sessions/k", str(turn).encode())
            session.counter("sessions/n").add(1)
            if turn == 1:
                ways[first].cut()
                wait_until(lambda first=first: pop_of(ways, client.url) != first, "it went to another PoP", 60)
            found = session.get("sessions/k", wait_s=30)
            assert found is not None and found.data == str(turn).encode()
            assert session.counter("sessions/n").value(wait_s=30) == turn


def test_a_token_that_one_pop_does_not_take_leaves_the_others(cluster: LocalCluster, ways: dict[str, Way]) -> None:
    members = [
        (f"http://127.0.0.1:{way.port}", "wrong" if pop == "la" else cluster.pop(pop).token)
        for pop, way in ways.items()
    ]
    with Client.connect(members) as client:
        assert pop_of(ways, client.url) != "la"
        client.publish("tokens/x", b"")
        assert [row["state"] for row in client.known_pops()][-1] == "refused"


def test_one_url_tells_of_the_others(cluster: LocalCluster, wait_until: Wait) -> None:
    tokens = {pop: cluster.pop(pop).token for pop in POPS}
    urls = {pop: cluster.pop(pop).api_url for pop in POPS}
    with Client(urls["la"], tokens["la"]) as client:

        def ranking() -> list[dict[str, Any]]:
            items: list[dict[str, Any]] = client._call("GET", "/v1/route").json()["items"]
            return items

        wait_until(lambda: [one["eligible"] for one in ranking()] == [True] * 3, "la sees that all are up", 60)
        assert {one["pop"]: one["url"] for one in ranking()} == urls
        assert {one["pop"]: one["latency_from"] for one in ranking()} == {"la": "self", "chicago": "link", "ny": "link"}
    with Client.connect(urls["la"], token=tokens["la"], tokens=tokens) as client:
        assert {row["url"] for row in client.known_pops()} == set(urls.values())
        assert client.publish("urls/x", b"").seq > 0


def test_the_example_prints_each_number_once(cluster: LocalCluster) -> None:
    command = [sys.executable, str(EXAMPLE), str(cluster.home.root), "--count", "5", "--pause", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    first, *numbers = done.stdout.splitlines()
    assert first.startswith("at http://") and [line.split()[0] for line in numbers] == ["0", "1", "2", "3", "4"]


def test_a_cluster_file_and_nobody_at_home(cluster: LocalCluster, ways: dict[str, Way]) -> None:
    for place in (cluster.home.root, cluster.home.cluster_file, str(cluster.home.cluster_file)):
        with Client.connect(place) as client:
            assert client.publish("files/x", b"").seq > 0
    for way in ways.values():
        way.cut()
    with pytest.raises(Unavailable, match="no PoP answers"):
        connect(cluster, ways, timeout_s=2.0)
