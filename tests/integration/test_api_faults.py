"""The API of real PoPs while parts of them die: no event is lost, doubled or shown before its data is there."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from edgeflow.errors import EdgeflowError
from edgeflow.host.local import LocalCluster, ProcessName
from edgeflow.sdk.client import Client, Gap, ReceivedEvent

Wait = Callable[..., Any]
EVENTS = 150
LAST = "last"
IDLE_LIMIT_MB = 85


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(["chicago", "la"]) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def ready(cluster: LocalCluster) -> None:
    cluster.wait_ready()


def client_of(cluster: LocalCluster, pop: str) -> Client:
    access = cluster.pop(pop)
    return Client(access.api_url, access.token, retry_s=60)


class Follower(threading.Thread):
    """Follows a channel at one PoP and reads each event's data at once."""

    def __init__(self, client: Client, channel: str) -> None:
        super().__init__(daemon=True)
        self.ids: list[str] = []
        self.gaps: list[Gap] = []
        self.unreadable: list[str] = []
        self._client = client
        self._channel = channel

    def run(self) -> None:
        with self._client, closing(self._client.subscribe(self._channel, from_="start")) as items:
            for item in items:
                if isinstance(item, Gap):
                    self.gaps.append(item)
                    continue
                assert isinstance(item, ReceivedEvent)
                if item.id == LAST:
                    return
                try:
                    _ = item.data
                except EdgeflowError:
                    self.unreadable.append(item.id)
                self.ids.append(item.id)


def sizes(number: int) -> bytes:
    """A body of its own: inline, in Redis, in a file, or behind a dataref."""
    return number.to_bytes(4, "big") * (10, 5_000, 100_000, 300_000)[number % 4 if number % 16 else 3]


@pytest.mark.faults
@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["redis", "control", "broker", "data"])
def test_every_event_once_while_a_process_dies(cluster: LocalCluster, victim: ProcessName) -> None:
    channel = f"once-{victim}/frames"
    followers = [Follower(client_of(cluster, pop), channel) for pop in ("chicago", "la")]
    for follower in followers:
        follower.start()
    sent = []
    with client_of(cluster, "chicago") as publisher:
        for number in range(EVENTS):
            if number in (EVENTS // 3, 2 * EVENTS // 3):
                cluster.kill("chicago", victim)
            sent.append(publisher.publish(channel, sizes(number), subject=str(number), id=f"e{number}").id)
        publisher.publish(channel, b"", id=LAST)
    for follower in followers:
        follower.join(60)
        assert follower.ids == sent
        assert not follower.unreadable
        assert not follower.gaps


@pytest.mark.timeout(120)
def test_sigterm_ends_streams_and_relays_and_leaves_with_0(cluster: LocalCluster) -> None:
    access = cluster.pop("la")
    with client_of(cluster, "la") as client:
        client.publish("leave/a", b"x")
    headers = {"Authorization": f"Bearer {access.token}"}
    with (
        httpx.stream(
            "GET", f"{access.api_url}/v1/channels/leave/a?from=start", headers=headers, trust_env=False, timeout=20
        ) as stream,
        connect(access.mqtt_ws_url, subprotocols=[Subprotocol("mqtt")], proxy=None, compression=None) as websocket,
    ):
        chunks = stream.iter_bytes()
        next(chunks)
        begin = time.monotonic()
        pid = cluster.kill("la", "control", signal.SIGTERM)
        for _ in chunks:
            pass
        assert time.monotonic() - begin < 3
        with pytest.raises(Exception, match=r"1012|1001|service restart|going away"):
            websocket.recv(5)
    cluster.wait_restarted("la", "control", pid)
    assert cluster.process("la", "control")["last_exit"] == "exit status 0"


def test_a_cursor_of_one_pop_is_taken_at_another(cluster: LocalCluster) -> None:
    with client_of(cluster, "chicago") as here, client_of(cluster, "la") as there:
        for number in range(3):
            here.publish("cursor/a", b"x", id=f"e{number}")
        item = next(here.subscribe("cursor/a", from_="start"))
        assert item.cursor.startswith("chicago:")
        rest = there.subscribe("cursor/a", from_=item.cursor)
        assert [next(rest).id, next(rest).id] == ["e1", "e2"]


def test_what_is_put_and_published_at_one_pop_is_readable_at_the_other_when_told(cluster: LocalCluster) -> None:
    cluster.set_link("chicago", "la", delay_ms=100)
    try:
        with client_of(cluster, "chicago") as here, client_of(cluster, "la") as there:
            here.publish("two/start", b"")
            next(there.subscribe("two/start", from_="start"))
            events = there.subscribe("two/chunks", from_="start")
            for number in range(8):
                body = sizes(number)
                if number % 2:
                    here.publish("two/chunks", body, id=f"e{number}", put=f"clip{number}")
                else:
                    here.put(f"two/clip{number}", body)
                    there.publish("two/chunks", dataref=f"ekv:two/clip{number}", id=f"e{number}")
            seen = {}
            for item in events:
                assert isinstance(item, ReceivedEvent), item
                number = int(item.id[1:])
                assert item.data == sizes(number)
                value = there.get(f"two/clip{number}")
                assert value is not None
                assert value.data == sizes(number)
                seen[number] = item
                if len(seen) == 8:
                    break
    finally:
        cluster.set_link("chicago", "la", delay_ms=0)


def test_an_idle_control_process_is_small(cluster: LocalCluster, wait_until: Wait) -> None:
    pid = cluster.pid("la", "control")

    def rss_mb() -> float:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    wait_until(lambda: rss_mb() < IDLE_LIMIT_MB, f"less than {IDLE_LIMIT_MB} MB, it has {rss_mb():.0f}", deadline_s=5)
