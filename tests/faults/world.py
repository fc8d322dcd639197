"""A small cluster that is hurt on purpose: two PoPs, a chain a -> b -> c over both, a join of b and c, and everything to see what came of it.

What it is: `World` publishes inputs over HTTP (with ids of their own, repeated until acknowledged) and MQTT, watches the results as clients do, arms fail points, and says with
`check()` whether everything adds up.
What must stay true: an input that `publish` has returned is owed exactly one result; nothing here asks the agents whether they did right: results come
from clients, numbers from Redis.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as mqtt
import redis
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeflow.cli.apply import Target, apply_file
from edgeflow.core import failpoints
from edgeflow.host.local import LocalCluster
from edgeflow.lab import ledger
from edgeflow.lab.errors import NotInTime as NotInTime
from edgeflow.lab.hands import until as until
from edgeflow.lab.ledger import exactly_once
from edgeflow.sdk.client import Client, Gap
from edgeflow.settings import PopSettings
from edgeflow.store import Store

HERE = Path(__file__).parent
NAMESPACE = "faults"
POPS = ("la", "ny")
SUBSCRIPTIONS = {
    "la": {"faults/start": 1, "faults/a": 1, "faults/b": 1, "faults/c": 1, "faults/done": 1},
    "ny": {"faults/b": 1},
}
"""How many inputs of functions each channel feeds, by PoP; as app/edgeflow.yaml says."""
RESULTS = "faults/done"
FLAKY = 8
"""Every so manieth input fails its first attempt."""
ATTEMPT_S = 1.0
"""retry.timeout in app/edgeflow.yaml."""
Action = Literal["kill", "stop"]
Via = Literal["http", "mqtt"]


@dataclass(frozen=True)
class Process:
    """A process of the cluster: `kind` is data, control or instance."""

    pid: int
    kind: str
    pop: str

    @property
    def alive(self) -> bool:
        """Whether it still runs (one that ended and was not waited for does not)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Watcher:
    """A consumer of the results at one PoP over SSE: each event as the client library hands it out."""

    def __init__(self, client: Client) -> None:
        self.subjects: list[str] = []
        self.ids: list[str] = []
        self.gaps: list[Gap] = []
        self._client = client
        self._stopping = False
        threading.Thread(target=self._read, daemon=True).start()

    def stop(self) -> None:
        """Its stream ends with the PoP; nobody waits for it."""
        self._stopping = True
        self._client.close()

    def _read(self) -> None:
        try:
            for one in self._client.subscribe(RESULTS, from_="start", reconnect_s=120.0):
                if isinstance(one, Gap):
                    self.gaps.append(one)
                else:
                    self.ids.append(one.id)
                    self.subjects.append(str(one.subject))
        except Exception:
            if not self._stopping:
                raise


class MqttClient:
    """A plain MQTT 5 client in a thread of its own, with a session that survives reconnects."""

    def __init__(self, cluster: LocalCluster, pop: str, name: str, *, subscribe: str | None = None) -> None:
        access = cluster.pop(pop)
        self.messages: list[tuple[str, str, str]] = []
        """(channel, id, subject) of what came from the PoP."""
        self._subscribe = subscribe
        self._subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self._client.username_pw_set(access.mqtt_username, access.mqtt_password)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._message
        self._client.reconnect_delay_set(0.05, 0.5)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect(access.mqtt_host, access.mqtt_port, clean_start=False, properties=properties)
        self._client.loop_start()
        if subscribe is not None:
            assert self._subscribed.wait(10)

    def publish(self, subject: str, data: bytes) -> Any:
        """Send one input; the message, whose `wait_for_publish` returns after the PUBACK.

        Without an id of its own: that a redelivery by the broker is no second event is for the gateway to see.
        """
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("source", "faults"), ("subject", subject)]
        properties.ContentType = "application/json"
        return self._client.publish(f"{NAMESPACE}/start", data, qos=1, properties=properties)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        if self._subscribe is not None:
            client.subscribe(self._subscribe, qos=1)

    def _message(self, _client: Any, _data: Any, message: Any) -> None:
        attributes = dict(message.properties.UserProperty)
        if "id" in attributes:
            self.messages.append((message.topic, attributes["id"], attributes.get("subject", "")))


class World:
    """The cluster with the application on it. Use `World.running()`."""

    def __init__(self, cluster: LocalCluster, points: Path) -> None:
        self.cluster = cluster
        self.points = points
        self.sent: list[str] = []
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._doors: dict[str, Any] = {}
        self._clients = {pop: self._client(pop) for pop in POPS}
        self.watchers = {pop: Watcher(self._client(pop)) for pop in POPS}
        self._publisher = MqttClient(cluster, "la", "faults-publisher")
        self.subscriber = MqttClient(cluster, "la", "faults-subscriber", subscribe=f"{NAMESPACE}/#")

    @classmethod
    @contextlib.contextmanager
    def running(cls, *, respawn: bool = True) -> "Iterator[World]":
        """Start the cluster, apply the application, end all of it. `respawn`: a killed data process is back at once."""
        with tempfile.TemporaryDirectory(prefix="efpoints-") as points:
            commands = None
            if respawn:
                data = [sys.executable, "-m", "edgeflow.pop", "--config", "{config}"]
                commands = {"data": [sys.executable, str(HERE / "respawn.py"), *data]}
            before = os.environ.get(failpoints.VARIABLE)
            os.environ[failpoints.VARIABLE] = points
            cluster = LocalCluster(POPS, commands=commands)
            try:
                with cluster:
                    access = cluster.pop("la")
                    apply_file(HERE / "app" / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120)
                    world = cls(cluster, Path(points))
                    try:
                        yield world
                    finally:
                        world.close()
            finally:
                if before is None:
                    del os.environ[failpoints.VARIABLE]
                else:
                    os.environ[failpoints.VARIABLE] = before

    def close(self) -> None:
        """Close what the test itself holds."""
        for watcher in self.watchers.values():
            watcher.stop()
        for thing in (
            self._publisher,
            self.subscriber,
            *self._clients.values(),
            *self._stores.values(),
            *self._doors.values(),
        ):
            thing.close()

    # -- inputs and results --------------------------------------------------------------------------------------------

    def number(self, count: int) -> range:
        """Numbers of the next `count` inputs, owed a result from now on."""
        with self._lock:
            first = len(self.sent)
            numbers = range(first, first + count)
            self.sent += [f"s{number}" for number in numbers]
        return numbers

    def publish_over_http(self, number: int, pop: str) -> None:
        """Publish one numbered input, repeated under the same id until the PoP has acknowledged it."""
        data = {"n": number, "flaky": number % FLAKY == 0}
        self._clients[pop].publish(f"{NAMESPACE}/start", data, id=f"e{number}", source="faults", subject=f"s{number}")

    def publish(
        self, count: int, *, via: Iterable[tuple[Via, str]] = (("mqtt", "la"), ("http", "la"), ("http", "ny"))
    ) -> list[str]:
        """Publish `count` inputs, each by the next of `via` in turn; their subjects, once all are acknowledged."""
        ways = list(via)
        numbers = self.number(count)
        unconfirmed = []
        for number in numbers:
            way, pop = ways[number % len(ways)]
            if way == "mqtt":
                data = json.dumps({"n": number, "flaky": number % FLAKY == 0})
                unconfirmed.append(self._publisher.publish(f"s{number}", data.encode()))
            else:
                self.publish_over_http(number, pop)
        for message in unconfirmed:
            message.wait_for_publish(60)
            assert message.is_published()
        return [f"s{number}" for number in numbers]

    def expect(self, subjects: Iterable[str], deadline_s: float = 60.0) -> None:
        """Wait until the watchers at both PoPs have the results of these inputs."""
        missing = set(subjects)

        def seen() -> bool:
            return all(missing <= set(watcher.subjects) for watcher in self.watchers.values())

        try:
            until(seen, "results", deadline_s, every_s=0.05)
        except NotInTime:
            at = {pop: sorted(missing - set(watcher.subjects))[:10] for pop, watcher in self.watchers.items()}
            raise NotInTime(f"no results within {deadline_s:g} s: {at}; {self.describe()}") from None

    def settle(self, deadline_s: float = 60.0) -> None:
        """Wait until nothing is under way anywhere and both PoPs hold the same logs."""

        def settled() -> bool:
            heads = []
            for pop in POPS:
                door = self.door(pop)
                if ledger.under_way(door, self.prefix):
                    return False
                heads.append(door.hgetall(self.prefix + "heads"))
            return heads[0] == heads[1]

        try:
            until(settled, "nothing under way", deadline_s, every_s=0.1)
        except NotInTime:
            raise NotInTime(f"not settled within {deadline_s:g} s: {self.describe()}") from None

    def check(self, *, mqtt_too: bool = True, deadline_s: float = 60.0) -> list[str]:
        """Everything that is wrong now that the work is over; empty when all adds up.

        `mqtt_too`: the plain MQTT subscriber has all results as well, which holds as long as its broker lived.
        """
        self.settle(deadline_s)
        ledgers = {pop: ledger.read(self.socket(pop), NAMESPACE, pop) for pop in POPS}
        problems = []
        for pop, book in ledgers.items():
            problems += book.problems(SUBSCRIPTIONS[pop])
            verdict = exactly_once(self.sent, book.subjects(RESULTS))
            if not verdict.ok:
                problems.append(f"{pop}: released results: {verdict}")
            effects = [info.key.split("/")[1] for info in self._values(pop, "effects/")]
            if not (verdict := exactly_once(self.sent, effects)).ok:
                problems.append(f"{pop}: values: {verdict}")
            tallied = [
                f"s{number}"
                for value in self._values(pop, "_state/t/")
                for number in json.loads(self._data(pop, value.key))["seen"]
            ]
            if not (verdict := exactly_once(self.sent, tallied)).ok:
                problems.append(f"{pop}: states: {verdict}")
            counted = self.store(pop).namespace(NAMESPACE).count_value("tally")
            if counted != len(self.sent):
                problems.append(f"{pop}: a counter says {counted}, sent were {len(self.sent)}")
            watcher = self.watchers[pop]
            until(lambda watcher=watcher: len(watcher.subjects) >= len(self.sent), f"the results at {pop}", 20)
            if not (verdict := exactly_once(self.sent, watcher.subjects)).ok:
                problems.append(f"{pop}: results that a client saw: {verdict}")
            if watcher.gaps:
                problems.append(f"{pop}: a client was told of gaps: {watcher.gaps}")
        if ledgers["la"].logs != ledgers["ny"].logs:
            problems.append("the PoPs hold different logs")
        # Plain MQTT is at least once, with the same id each time.
        if mqtt_too:
            made = {(one.channel, one.id) for one in ledgers["la"].released if one.via != "mqtt"}
            until(lambda: made <= {message[:2] for message in self.subscriber.messages}, "all events over MQTT", 20)
        results = Counter(message[2] for message in set(self.subscriber.messages) if message[0] == RESULTS)
        problems += [f"{subject} came over MQTT under {times} ids" for subject, times in results.items() if times > 1]
        return problems

    def _values(self, pop: str, prefix: str) -> Iterator[Any]:
        namespace = self.store(pop).namespace(NAMESPACE)
        after = ""
        while page := namespace.list(prefix, after=after, limit=1000):
            yield from page
            after = page[-1].key

    def _data(self, pop: str, key: str) -> bytes:
        value = self.store(pop).namespace(NAMESPACE).get(key)
        assert value is not None
        return value.data

    # -- fail points and processes -------------------------------------------------------------------------------------

    def arm(self, point: str, action: Action, *, skip: int = 0, pid: int | None = None) -> None:
        """Arm a fail point."""
        assert point in failpoints.POINTS
        (self.points / f"{point}.fired").unlink(missing_ok=True)
        text = f"{action} skip {skip}" + (f" pid {pid}" if pid is not None else "")
        new = self.points / "new"
        new.write_text(text)
        new.rename(self.points / point)

    def fired(self, point: str, deadline_s: float = 20.0) -> Process:
        """Wait until the armed point has struck; the process that it struck."""
        path = self.points / f"{point}.fired"
        pid = int(until(lambda: path.exists() and path.read_text(), f"{point} to be passed", deadline_s, every_s=0.005))
        return self._identify(pid)

    def counters(self, pop: str) -> Counter[str]:
        """The counters of the namespace at a PoP."""
        return Counter(
            {name.decode(): int(value) for name, value in self.door(pop).hgetall(self.prefix + "counters").items()}
        )

    def instances(self, pop: str) -> dict[str, int]:
        """Pids of the function instances at a PoP by id."""
        folder = self.cluster.home.root / "pops" / pop / "state" / "instances"
        found = {}
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                document = json.loads(path.read_text())
                found[path.stem] = int(document["pid"])
        return found

    def _identify(self, pid: int) -> Process:
        for pop in POPS:
            if pid in self.instances(pop).values():
                return Process(pid, "instance", pop)
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            command = []
        for kind, module in (("data", b"edgeflow.pop"), ("control", b"edgeflow.api")):
            if module in command:
                return Process(pid, kind, Path(command[command.index(b"--config") + 1].decode()).parent.name)
        return Process(pid, "gone", "")

    # -- doors ---------------------------------------------------------------------------------------------------------

    @property
    def prefix(self) -> str:
        return f"ef:{{{NAMESPACE}}}:"

    def settings(self, pop: str) -> PopSettings:
        return PopSettings.load(self.cluster.home.root / "pops" / pop / "pop.json")

    def socket(self, pop: str) -> str:
        """Path of a PoP's Redis socket."""
        return str(self.settings(pop).store.redis_socket)

    def store(self, pop: str) -> Store:
        """Another door to a PoP's store, as a second agent would have it."""
        if pop not in self._stores:
            self._stores[pop] = Store.open(self.settings(pop))
        return self._stores[pop]

    def door(self, pop: str) -> Any:
        """A plain Redis client that waits out a restart."""
        if pop not in self._doors:
            retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 300)
            self._doors[pop] = redis.Redis(
                unix_socket_path=self.socket(pop), protocol=2, socket_timeout=20, retry=retry,
                retry_on_error=[redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError],
            )  # fmt: skip
        return self._doors[pop]

    def describe(self) -> str:
        """What is under way, for a failure's message."""
        return "; ".join(f"{pop}: {ledger.under_way(self.door(pop), self.prefix)}" for pop in POPS)

    def _client(self, pop: str) -> Client:
        access = self.cluster.pop(pop)
        return Client(access.api_url, access.token, retry_s=60.0)
