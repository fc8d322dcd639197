"""Functions with a `qos: 0` input on a PoP of their own: answers, chains, isolation, and everything around them killed."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(180)]
Wait = Callable[..., Any]

ECHO = """
import os, time
from edgeflow import function


@function
def handle(ctx, ping):
    text = ping.text()
    if text == "boom":
        raise ValueError("no")
    if text == "hang":
        time.sleep(60)
    if text == "write":
        ctx.ekv.put("k", b"x")
    if text == "read":
        return ctx.ekv.get("greeting").data
    if text == "context":
        return ctx.context.model.data
    if text == "pid":
        return str(os.getpid())
    ctx.emit("pong", VERSION + ping.data, attributes={"hops": 1, **{"seen" + name: value for name, value in ping.attributes.items()}})
"""
KEEP = """
from edgeflow import function


@function
def handle(ctx, pong):
    ctx.ekv.put(f"kept/{pong.text()}", ctx.context.model.data if ctx.context.model else b"none")
    return pong.data
"""
MANIFEST = """
namespace: fast
functions:
  echo: {build: ./echo, subscribe: {channel: ping, qos: 0}, publish: pong, context: {model: models/m}, retry: {timeout: 2s}}
  keep: {build: ./keep, subscribe: pong, publish: kept, context: {model: models/m}}
"""


class Peer:
    """An MQTT 5 client in a thread of its own; `messages` are (topic, payload, user properties)."""

    def __init__(self, cluster: LocalCluster) -> None:
        access = cluster.pop()
        self.messages: list[tuple[str, bytes, dict[str, str]]] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.username_pw_set(access.mqtt_username, access.mqtt_password)
        self._client.on_connect = lambda client, *_: client.subscribe("fast/#", qos=0)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._message
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.connect(access.mqtt_host, access.mqtt_port)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def _message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload, dict(getattr(message.properties, "UserProperty", ()))))

    def publish(self, topic: str, payload: bytes | str, **attributes: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = list(attributes.items())
        self._client.publish(topic, payload, qos=0, properties=properties)

    def on(self, topic: str, payload: bytes | None = None) -> list[tuple[str, bytes, dict[str, str]]]:
        return [one for one in self.messages if one[0] == topic and payload in (None, one[1])]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Pop:
    """The cluster, its client and its peer."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        access = cluster.pop()
        self.target = Target(access.api_url, access.token)
        self.client = Client(access.api_url, access.token, retry_s=60.0)
        self.peer = Peer(cluster)
        self.numbers = iter(range(1_000_000))

    def apply(self, version: str) -> None:
        (self.folder / "echo").mkdir(exist_ok=True)
        (self.folder / "echo" / "handler.py").write_text(f'VERSION = b"{version}"\n{ECHO}')
        apply_file(self.folder / "edgeflow.yaml", self.target, timeout_s=90.0)

    def status(self, function: str = "echo") -> dict[str, Any]:
        (found,) = [one for one in self.client.functions("fast") if one["function"] == function]
        return found

    def stats(self) -> dict[str, Any]:
        """The function's figures; they come once a second."""
        until_s = time.monotonic() + 10
        while (found := self.status()["stats"]) is None:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        return dict(found)

    def answered(self, version: str = "") -> bool:
        """Whether a new ping is answered within a short while."""
        text = f"ping-{next(self.numbers)}"
        self.peer.publish("fast/ping", text)
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            if self.peer.on("fast/pong", version.encode() + text.encode()):
                return True
            time.sleep(0.01)
        return False

    @contextmanager
    def frozen(self, function: str) -> Iterator[None]:
        """The instances of a function stopped for a while."""
        runs = (self.cluster.home.pop_dir("one") / "state" / "instances").glob(f"fast.{function}-*.json")
        pids = [json.loads(path.read_text())["pid"] for path in runs]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def account(self) -> tuple[str, str, str]:
        """Username, password and client id of the only account of a function."""
        file = self.cluster.home.pop_dir("one") / "state" / "function-accounts.json"
        ((key, secrets),) = json.loads(file.read_text()).items()
        return f"function/{key}", secrets["password"], secrets["client_id"]

    def close(self) -> None:
        self.peer.close()
        self.client.close()


@pytest.fixture(scope="module")
def pop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pop]:
    folder = tmp_path_factory.mktemp("application")
    (folder / "keep").mkdir()
    (folder / "keep" / "handler.py").write_text(KEEP)
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    with LocalCluster(["one"]) as cluster:
        pop = Pop(cluster, folder)
        try:
            pop.apply("")
            pop.client.put("fast/models/m", b"model 0")
            yield pop
        finally:
            pop.close()


def test_an_answer_is_an_event_and_goes_on_to_durable_functions(pop: Pop, wait_until: Wait) -> None:
    pop.peer.publish("fast/ping", "first", id="e1", source="/test", subject="s/1", lens="wide", traceparent="00-a-b-01")
    wait_until(lambda: pop.peer.on("fast/pong", b"first"), "the answer")
    attributes = pop.peer.on("fast/pong", b"first")[0][2]
    assert (
        attributes["source"] == "/fast/echo" and attributes["subject"] == "s/1" and attributes["specversion"] == "1.0"
    )
    assert attributes["hops"] == "1" and attributes["seenlens"] == "wide" and attributes["traceparent"] == "00-a-b-01"
    assert len(attributes["id"]) == 40 and attributes["time"].endswith("Z") and attributes["type"] == "edgeflow.message"
    value = wait_until(lambda: pop.client.get("fast/kept/first"), "the durable function's value")
    assert value.data == b"model 0", "a small context value reaches a durable function too"
    wait_until(lambda: pop.peer.on("fast/kept", b"first"), "the durable function's event")
    assert pop.status()["inbox"]["ready"] == 0, "what the instance hears itself goes into no inbox"


def test_an_event_that_comes_twice_is_handled_once(pop: Pop, wait_until: Wait) -> None:
    before = pop.stats()["repeated"]
    for _ in range(2):
        pop.peer.publish("fast/ping", "twice", id="e2", source="/test")
    wait_until(lambda: pop.stats()["repeated"] == before + 1, "the repetition to be counted")
    assert len(pop.peer.on("fast/pong", b"twice")) == 1


def test_reads_work_writes_and_failures_are_counted(pop: Pop, wait_until: Wait) -> None:
    pop.client.put("fast/greeting", b"hello from the EKV")
    pop.client.put("fast/models/m", b"model 1")
    before = pop.stats()["failed"]
    for text, answer in (("read", b"hello from the EKV"), ("context", b"model 1")):
        pop.peer.publish("fast/ping", text)
        wait_until(lambda answer=answer: pop.peer.on("fast/pong", answer), text)
    pop.client.put("fast/models/m", b"model 2")
    pop.peer.publish("fast/ping", "context")
    wait_until(lambda: pop.peer.on("fast/pong", b"model 2"), "the latest context value")
    pop.peer.publish("fast/ping", "boom")
    pop.peer.publish("fast/ping", "write")
    wait_until(lambda: pop.stats()["failed"] == before + 2, "both failures to be counted")
    status = pop.status()
    assert (
        status["state"] == "ready"
        and status["stats"]["handler_ms"]["p50"] >= 0
        and status["instances"][0]["failed"] >= 2
    )
    assert pop.client.get("fast/k") is None
    logs = "".join(
        path.read_text() for path in (pop.cluster.home.pop_dir("one") / "logs" / "instances").glob("fast.echo-*.log")
    )
    assert "ValueError: no" in logs and "its input has qos 0: there is no commit" in logs


def test_both_ways_of_a_reference(pop: Pop, wait_until: Wait) -> None:
    pop.client.put("fast/greeting", b"by reference")
    pop.peer.publish("fast/ping", json.dumps({"dataref": "ekv:fast/greeting"}))
    wait_until(lambda: pop.peer.on("fast/pong", b"by reference"), "the body of a small reference")
    pop.client.publish(
        "fast/ping", b"L" * 2_000_000
    )  # too large for a payload: the broker carries a reference to the body
    wait_until(lambda: pop.peer.on("fast/pong", b"L" * 2_000_000), "the body of a large one", 20)


def test_the_account_reaches_its_own_channels_only(pop: Pop, wait_until: Wait) -> None:
    """With the account's own name, password and client id, by stock clients."""
    username, password, client_id = pop.account()
    access = pop.cluster.pop()
    login = ["-h", access.mqtt_host, "-p", str(access.mqtt_port), "-V", "mqttv5", "-u", username, "-P", password, "-d"]

    def published(topic: str) -> bool:
        command = ["mosquitto_pub", *login, "-i", client_id, "-q", "1", "-t", topic, "-m", f"into {topic}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert "CONNACK (0)" in done.stdout and "RC:" in done.stdout, done
        return "RC:0" in done.stdout

    def subscribed(topic: str) -> bool:
        command = ["mosquitto_sub", *login, "-i", client_id, "-q", "1", "-t", topic, "-W", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert "CONNACK (0)" in done.stdout and "Subscribed (mid: 1):" in done.stdout, done
        return "Subscribed (mid: 1): 135" not in done.stdout

    control = "$CONTROL/dynamic-security/v1"
    with pop.frozen("echo"):  # else it would come back and take its session over
        assert published("fast/pong") and subscribed("fast/ping"), "the control: what it is for works"
        for topic in ("other/x", "fast/ping", "fast/kept", "fast/_re/x", "system/x", "_edgeflow/boot", control):
            assert not published(topic), topic
        for topic in (
            "other/#",
            "fast/#",
            "fast/pong",
            "fast/_re/#",
            "#",
            "+/ping",
            "$SYS/#",
            control + "/response",
            "$share/g/fast/ping",
        ):
            assert not subscribed(topic), topic
        stranger = subprocess.run(
            ["mosquitto_pub", *login, "-i", "stranger", "-t", "fast/pong", "-n"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert stranger.returncode != 0 and "CONNACK (0)" not in stranger.stdout, (
            "the account is bound to its client id"
        )
    assert not [one for one in pop.peer.messages if one[1].startswith(b"into") and one[1] != b"into fast/pong"]
    wait_until(pop.answered, "the instance to be back on its session", 20)


@pytest.mark.faults
def test_the_broker_is_killed(pop: Pop, wait_until: Wait) -> None:
    before = pop.status()["instances"][0]["instance"]
    old = pop.cluster.kill("one", "broker")
    pop.cluster.wait_restarted("one", "broker", old)
    wait_until(pop.answered, "answers again", 30)
    assert pop.status()["instances"][0]["instance"] == before, "the instance lived through it"


@pytest.mark.faults
def test_the_data_process_is_killed(pop: Pop, wait_until: Wait) -> None:
    def pid() -> bytes:
        pop.peer.messages.clear()
        pop.peer.publish("fast/ping", "pid")
        return wait_until(lambda: pop.peer.on("fast/pong"), "the pid", 20)[0][1]

    first = pid()
    old = pop.cluster.kill("one", "data")
    assert wait_until(pop.answered, "an answer while the agent is away", 5)
    pop.cluster.wait_restarted("one", "data", old)
    pop.cluster.wait_ready()
    pop.client.put("fast/greeting", b"after the kill")

    def reads() -> bool:
        pop.peer.publish("fast/ping", "read")
        time.sleep(0.2)
        return bool(pop.peer.on("fast/pong", b"after the kill"))

    wait_until(reads, "reads of the EKV again", 30)
    wait_until(lambda: pop.stats()["subscribed"], "figures again", 20)
    assert pid() == first, "the instance lived through it"


@pytest.mark.faults
def test_the_broker_forgets_the_account(pop: Pop, wait_until: Wait) -> None:
    username, _, _ = pop.account()
    access = pop.cluster.pop()
    admin = (pop.cluster.home.secrets_dir("one") / "admin.password").read_text()
    command = json.dumps({"commands": [{"command": "deleteClient", "username": username}]})
    login = ["-h", access.mqtt_host, "-p", str(access.mqtt_port), "-u", "admin", "-P", admin]
    subprocess.run(
        ["mosquitto_pub", *login, "-q", "1", "-t", "$CONTROL/dynamic-security/v1", "-m", command],
        check=True,
        timeout=20,
    )
    wait_until(pop.answered, "answers with a new account", 30)


def test_a_handler_that_hangs_is_replaced(pop: Pop, wait_until: Wait) -> None:
    before = pop.status()["instances"][0]["instance"]
    pop.peer.publish("fast/ping", "hang")
    wait_until(
        lambda: [one["instance"] for one in pop.status()["instances"] if one["state"] == "ready"] not in ([before], []),
        "another instance",
        30,
    )
    wait_until(pop.answered, "its answers", 20)


def test_a_new_revision_takes_over_and_nobody_answers_twice(pop: Pop, wait_until: Wait) -> None:
    old_account = pop.account()[0]
    pop.apply("v2 ")
    wait_until(lambda: pop.answered("v2 "), "answers of the new revision", 30)
    wait_until(lambda: len(pop.status()["instances"]) == 1, "the old instance to leave", 40)
    pop.peer.messages.clear()
    pop.peer.publish("fast/ping", "once")
    wait_until(lambda: pop.peer.on("fast/kept", b"v2 once"), "the answer's way on")
    assert [one[1] for one in pop.peer.on("fast/pong")] == [b"v2 once"]
    wait_until(lambda: pop.account()[0] != old_account, "the old account to be removed")
    accounts = (pop.cluster.home.pop_dir("one") / "dynsec.json").read_text()
    wait_until(
        lambda: old_account not in (pop.cluster.home.pop_dir("one") / "dynsec.json").read_text(),
        "the broker to forget it",
    )
    assert pop.account()[0] in accounts


def test_a_function_that_is_gone_leaves_no_account(pop: Pop, wait_until: Wait) -> None:
    username = pop.account()[0]
    (pop.folder / "edgeflow.yaml").write_text(MANIFEST.replace("  echo:", "  # echo:"))
    apply_file(pop.folder / "edgeflow.yaml", pop.target, timeout_s=90.0)
    wait_until(
        lambda: username not in (pop.cluster.home.pop_dir("one") / "dynsec.json").read_text(),
        "its account to be removed",
        40,
    )
