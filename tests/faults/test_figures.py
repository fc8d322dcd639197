"""What each kind of acknowledgement and each kind of consumer is worth when the broker is killed: measured, printed, and held to what is promised.

`fast` (a PUBACK) is in the broker's memory and goes with it; `durable` (HTTP, a receipt on the response topic) stays. A plain MQTT session is the
broker's as well; the place of a durable consumer is the log's. And what a greedy neighbour costs, with and without a quota.
"""

import json
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from world import until

from edgeflow.host.local import LocalCluster
from edgeflow.lab import ledger
from edgeflow.sdk.client import Client, Gap
from edgeflow.settings import PopSettings
from edgeflow.store import Store
from edgeflow.store.records import Quota

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180), pytest.mark.usefixtures("programs")]

POP = "solo"
BACKLOG = 600
"""More than the broker's window towards the gateway (256)."""
MISSED = 1000
SITUATION_S = 4.0
BURST_S = 2.0
QUOTA_PER_S = 200
FLOOD_PER_S = 5000


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster((POP,)) as running:
        yield running


class Publisher:
    """A plain MQTT 5 client that publishes with a subject and asks for receipts."""

    def __init__(self, cluster: LocalCluster, namespace: str) -> None:
        access = cluster.pop(POP)
        self.receipts: set[str] = set()
        """Subjects of what the PoP has acknowledged as durable."""
        self.refused: list[dict[str, Any]] = []
        """What it has answered instead."""
        self.answered = threading.Event()
        self._topic = f"{namespace}/in"
        self._answers = f"{namespace}/_re/test"
        self._ready = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.username_pw_set(access.mqtt_username, access.mqtt_password)
        self._client.on_connect = lambda client, *_: client.subscribe(self._answers, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._answered
        self._client.on_socket_open = lambda _client, _data, sock: sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        self._client.connect(access.mqtt_host, access.mqtt_port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def publish(self, subjects: list[str]) -> None:
        """Publish and wait for every PUBACK."""
        sent = []
        for subject in subjects:
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = [("subject", subject)]
            properties.ResponseTopic = self._answers
            properties.CorrelationData = subject.encode()
            sent.append(self._client.publish(self._topic, b"x", qos=1, properties=properties))
        for message in sent:
            message.wait_for_publish(30)
            assert message.is_published()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _answered(self, _client: Any, _data: Any, message: Any) -> None:
        # In paho's thread: an exception here would end it, and look like an answer that never came.
        answer = json.loads(message.payload)
        if answer["class"] == "durable":
            self.receipts.add(message.properties.CorrelationData.decode())
        else:
            self.refused.append(answer)
        self.answered.set()


@contextmanager
def offline_session(cluster: LocalCluster, namespace: str, seen: list[str]) -> Iterator[None]:
    """A plain MQTT consumer with a session that outlives its connection, connected within the block."""
    access = cluster.pop(POP)
    subscribed = threading.Event()

    def came(_client: Any, _data: Any, message: Any) -> None:
        seen.append(dict(message.properties.UserProperty)["subject"])

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"consumer-{namespace}", protocol=mqtt.MQTTv5)
    client.username_pw_set(access.mqtt_username, access.mqtt_password)
    client.on_connect = lambda client, *_: client.subscribe(f"{namespace}/in", qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = came
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect(access.mqtt_host, access.mqtt_port, clean_start=False, properties=properties)
    client.loop_start()
    try:
        assert subscribed.wait(10)
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def open_namespace(cluster: LocalCluster, namespace: str) -> Store:
    """Make a namespace and wait for its gateway; a door to the store."""
    settings = PopSettings.load(cluster.home.root / "pops" / POP / "pop.json")
    store = Store.open(settings)
    store.create_namespace(namespace)
    wait_for_gateway(store, namespace)
    return store


def wait_for_gateway(store: Store, namespace: str) -> None:
    until(lambda: (store.local.get_doc("gateway_state", namespace) or {}).get("connected"), "the gateway", 30)


def test_a_broker_killed_with_a_backlog(cluster: LocalCluster, figure: Callable[[str], None]) -> None:
    store = open_namespace(cluster, "backlog")
    publisher = Publisher(cluster, "backlog")
    access = cluster.pop(POP)
    taken = [f"taken{number}" for number in range(BACKLOG)]
    queued = [f"queued{number}" for number in range(BACKLOG)]
    durable = [f"durable{number}" for number in range(BACKLOG // 3)]
    publisher.publish(taken)
    until(lambda: publisher.receipts >= set(taken), "receipts", 20)
    data = cluster.kill(POP, "data", signal.SIGSTOP)
    try:
        publisher.publish(queued)
        with Client(access.api_url, access.token) as client:
            for subject in durable:
                client.publish("backlog/in", b"x", subject=subject)
        old = cluster.kill(POP, "broker")
        cluster.wait_restarted(POP, "broker", old)
    finally:
        cluster.kill(POP, "data", signal.SIGCONT)
    assert cluster.pid(POP, "data") == data
    probe = Publisher(cluster, "backlog")

    def answered() -> bool:
        # Until the gateway is back the broker has nobody to hand a message to.
        probe.publish(["probe"])
        return bool(probe.receipts)

    until(answered, "the gateway takes what comes", 20, every_s=0.2)
    probe.close()
    publisher.close()
    settings = PopSettings.load(cluster.home.root / "pops" / POP / "pop.json")
    logged = ledger.read(str(settings.store.redis_socket), "backlog", POP).subjects("backlog/in")
    store.close()
    kept = ledger.exactly_once(taken + durable, [name for name in logged if not name.startswith(("queued", "probe"))])
    fast = ledger.exactly_once(queued, [name for name in logged if name.startswith("queued")])
    figure(
        f"broker killed with a backlog: acknowledged as durable (receipt or HTTP): {kept}; with a PUBACK only, the gateway standing: {fast}"
    )
    assert kept.ok
    assert fast.lost and not fast.doubled and not fast.strange


def test_a_consumer_that_was_offline(cluster: LocalCluster, figure: Callable[[str], None]) -> None:
    store = open_namespace(cluster, "offline")
    access = cluster.pop(POP)
    first = [f"first{number}" for number in range(MISSED)]
    second = [f"second{number}" for number in range(MISSED)]
    over_mqtt: list[str] = []
    over_http: list[str] = []
    with Client(access.api_url, access.token) as client:
        client.publish("offline/in", b"x", subject="zero")
        with client.subscribe("offline/in", from_="start", durable="away") as stream:
            assert next(stream).subject == "zero"
        with offline_session(cluster, "offline", over_mqtt):
            pass
        for subject in first:
            client.publish("offline/in", b"x", subject=subject)
        until(lambda: (store.namespace("offline").publisher_cursor() or 0) > MISSED, "the broker to have it all", 30)
        with offline_session(cluster, "offline", over_mqtt):
            until(lambda: set(over_mqtt) >= set(first), "what the session has kept", 30)
        kept = ledger.exactly_once(first, [name for name in over_mqtt if name in set(first)])
        for subject in second:
            client.publish("offline/in", b"x", subject=subject)
        old = cluster.kill(POP, "broker")
        cluster.wait_restarted(POP, "broker", old)
        with offline_session(cluster, "offline", over_mqtt):
            client.publish("offline/in", b"x", subject="last")
            until(lambda: "last" in over_mqtt, "the publisher to be done", 60)
            lost = ledger.exactly_once(second, [name for name in set(over_mqtt) if name in set(second)])
        with client.subscribe("offline/in", durable="away") as stream:
            for one in stream:
                assert not isinstance(one, Gap)
                if one.subject == "last":
                    break
                over_http.append(str(one.subject))
    store.close()
    followed = ledger.exactly_once(first + second, over_http)
    figure(
        f"consumer offline: plain MQTT session, broker alive: {kept}; plain MQTT session, broker killed meanwhile: {lost}; "
        f"durable consumer, both: {followed}"
    )
    assert not kept.lost and followed.ok


def test_a_neighbour_over_its_quota(cluster: LocalCluster, figure: Callable[[str], None]) -> None:
    open_namespace(cluster, "quiet").close()
    store = open_namespace(cluster, "greedy")
    greedy = store.namespace("greedy")
    publisher = Publisher(cluster, "quiet")

    def measured(situation: str) -> str:
        before, began_s = Counter(greedy.counters()), time.monotonic()
        times_ms = []
        while time.monotonic() - began_s < SITUATION_S:
            times_ms.append(_receipt_ms(publisher, f"{situation}{len(times_ms)}"))
            asked.append(situation)
        took_s = time.monotonic() - began_s
        grown = Counter(greedy.counters()) - before
        taken[situation], refused[situation] = grown["events_ingested"], grown["events_refused:quota"]
        times_ms.sort()
        return (
            f"{situation}: p50 {times_ms[len(times_ms) // 2]:.1f} ms, p99 {times_ms[len(times_ms) * 99 // 100]:.1f} ms, "
            f"neighbour {taken[situation] / took_s:.0f} events/s taken, {refused[situation] / took_s:.0f}/s refused"
        )

    asked: list[str] = []
    taken: dict[str, int] = {}
    refused: dict[str, int] = {}
    lines = [measured("alone")]
    with flood(cluster, "greedy"):
        until(lambda: greedy.counters().get("events_ingested", 0) > 100, "the flood", 20)
        lines.append(measured("flooded"))
        store.set_quota("greedy", Quota(events_per_s=QUOTA_PER_S, burst_s=BURST_S))
        until(lambda: greedy.counters().get("events_refused:quota", 0) > 100, "the quota", 20)
        lines.append(measured("with a quota"))
    publisher.close()
    store.close()
    figure(
        f"MQTT publish to durable receipt beside a neighbour that sends {FLOOD_PER_S}/s (quota {QUOTA_PER_S}/s): "
        + "; ".join(lines)
    )
    assert len(publisher.receipts) == len(asked)
    assert taken["flooded"] > FLOOD_PER_S * SITUATION_S / 4, "the neighbour was not greedy"
    # It may begin with a full burst, once by who sets it and once by the data process.
    assert 0 < taken["with a quota"] < QUOTA_PER_S * (SITUATION_S * 1.3 + 2 * BURST_S) and refused["with a quota"] > 0


@contextmanager
def flood(cluster: LocalCluster, namespace: str) -> Iterator[None]:
    """A plain MQTT client that publishes FLOOD_PER_S messages a second."""
    access = cluster.pop(POP)
    login = [
        "-h",
        access.mqtt_host,
        "-p",
        str(access.mqtt_port),
        "-u",
        access.mqtt_username,
        "-P",
        access.mqtt_password,
    ]
    command = ["mosquitto_pub", *login, "-q", "1", "-l", "-t", f"{namespace}/in"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as sender:
        stopping = threading.Event()

        def feed() -> None:
            assert sender.stdin is not None
            while not stopping.wait(0.05):
                sender.stdin.write((b"x" * 100 + b"\n") * (FLOOD_PER_S // 20))
                sender.stdin.flush()

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            yield
        finally:
            stopping.set()
            feeder.join(20)
            sender.kill()


def _receipt_ms(publisher: Publisher, subject: str) -> float:
    began_s = time.perf_counter()
    publisher.publish([subject])
    confirmed_s = time.perf_counter() - began_s
    assert publisher.answered.wait(20), (
        f"no receipt for {subject}, which the broker confirmed after {confirmed_s:.1f} s"
    )
    assert not publisher.refused, publisher.refused
    publisher.answered.clear()
    return (time.perf_counter() - began_s) * 1000
