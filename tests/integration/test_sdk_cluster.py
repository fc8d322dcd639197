"""What a handler is given and what it leaves behind, on a PoP of its own: states, counters, captures, templates, arguments of joins."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(180)]
Wait = Callable[..., Any]

HANDLERS = {
    "rooms": """
import os
from edgeflow import function


@function
def handle(ctx, readings):
    value = readings.json()
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    ctx.state.setdefault("values", []).append(value)
    ctx.ekv.increment("readings/total")
    ctx.ekv.increment("readings/sum", value)
    if ctx.attempt == 1 and value % 5 == 0:
        raise ValueError("tried again")
    if ctx.attempt == 1 and value % 29 == 0:
        os._exit(3)
    return {"room": readings.captures["room"], "key": ctx.key, **ctx.state}
""",
    "notes": """
from edgeflow import function


@function
def handle(ctx, notes):
    text = notes.text()
    if text == "clear":
        ctx.state.clear()
    elif text == "bad":
        ctx.state["bad"] = {1, 2}
    elif text.startswith("long"):
        ctx.state["text"] = text
    return {"length": len(ctx.state.get("text", "")), "keys": list(ctx.state)}
""",
    "echo": """
from edgeflow import function


@function
def handle(ctx, ping):
    if ping.text() == "total":
        return_value = ctx.ekv.get("readings/total").json()
        ctx.emit("fast/{id}/pong", return_value)
    elif ping.text() == "count":
        ctx.ekv.increment("k")
    else:
        ctx.emit(f"fast/{ping.captures['id']}/log", b"seen")
        ctx.emit("fast/{id}/pong", ping.data)
""",
    "first": """
from edgeflow import function


@function
def handle(ctx, left, right, settings):
    text = lambda one: None if one is None else one.text()
    return [text(left), text(right), text(settings), ctx.key]
""",
    "batch": """
from edgeflow import function


@function
def handle(ctx, ticks):
    return {"values": sorted(one.json() for one in ticks), "window": ctx.window, "key": ctx.key}
""",
    "pairs": """
from edgeflow import function


@function
def handle(ctx, left, right):
    return [[one.text() for one in left], [one.text() for one in right]]
""",
}
MANIFEST = """
namespace: sdk
functions:
  rooms:
    build: ./rooms
    subscribe: room/{room}/readings
    state: {by: captures.room}
    publish: room/{room}/summary
    scale: {instances: 2}
    retry: {backoff: 20ms}
  notes: {build: ./notes, subscribe: notes, state: {by: subject}, publish: noted}
  echo:
    build: ./echo
    subscribe: {channel: "fast/{id}/ping", qos: 0}
    publish: ["fast/{id}/pong", fast/+/log]
  first:
    build: ./first
    subscribe: {join: {any: [left, right]}, by: subject, within: 1s}
    latest: settings
    publish: firsts
  pairs:
    build: ./pairs
    subscribe: {join: [pair/left, pair/right], by: subject, within: 1s, duplicates: all}
    publish: paired
  batch:
    build: ./batch
    subscribe: {join: {tumbling: 1s}, channel: ticks, by: subject, idle: 1s}
    publish: batches
"""


class Pop:
    """The cluster, a client of it, and everything that came out of its functions, by channel."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        access = cluster.pop()
        self.access = access
        self.client = Client(access.api_url, access.token, retry_s=60.0)
        self.outputs: dict[str, list[Any]] = defaultdict(list)
        apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120.0)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with Client(self.access.api_url, self.access.token) as reader:
            for event in reader.subscribe("sdk/#", from_="start"):
                assert not isinstance(event, Gap), event
                self.outputs[event.channel.removeprefix("sdk/")].append(event)

    def on(self, channel: str, subject: str | None = None) -> list[Any]:
        """The JSON bodies on a channel, in order."""
        return [one.json() for one in list(self.outputs[channel]) if subject in (None, one.subject)]

    def status(self, function: str) -> dict[str, Any]:
        (found,) = [one for one in self.client.functions("sdk") if one["function"] == function]
        return found


@pytest.fixture(scope="module")
def pop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pop]:
    folder = tmp_path_factory.mktemp("application")
    for name, source in HANDLERS.items():
        (folder / name).mkdir()
        (folder / name / "handler.py").write_text(source)
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    with LocalCluster(["one"]) as cluster:
        pop = Pop(cluster, folder)
        yield pop
        pop.client.close()


def test_states_and_counters_are_exact_over_failures_and_crashes(pop: Pop, wait_until: Wait) -> None:
    """60 readings of 3 rooms, two instances; every fifth reading fails once, and some end their instance after they have changed the state."""
    values = {room: range(first, first + 20) for room, first in (("attic", 1), ("cellar", 21), ("hall", 41))}
    for value in range(20):
        for room, of_room in values.items():
            pop.client.publish(f"sdk/room/{room}/readings", str(of_room[value]).encode())
    for room, of_room in values.items():
        channel = f"room/{room}/summary"
        wait_until(lambda channel=channel: len(pop.on(channel)) >= 20, channel, 60)
        summaries = pop.on(channel)
        assert [one["n"] for one in summaries] == list(range(1, 21)), "each attempt found what the last commit had left"
        assert sorted(summaries[-1]["values"]) == list(of_room), "no reading is missing, none counts twice"
        assert all(one["room"] == one["key"] == room for one in summaries)
    total = read_over_mqtt(pop, wait_until, "7", b"total")
    assert total["sdk/fast/7/pong"] == [b"60"]
    assert not list(pop.client.dead_letters("sdk"))


def test_a_state_of_any_size_is_kept_cleared_and_refused_by_name(pop: Pop, wait_until: Wait) -> None:
    def note(text: str, expected: int) -> Any:
        pop.client.publish("sdk/notes", text.encode(), subject="s")
        wait_until(lambda: len(pop.on("noted", "s")) >= expected, text[:20], 30)
        return pop.on("noted", "s")[-1]

    assert note("hello", 1) == {"length": 0, "keys": []}
    long = "long" + "x" * 1_000_000
    assert note(long, 2) == {"length": 1_000_004, "keys": ["text"]}
    assert note("hello", 3) == {"length": 1_000_004, "keys": ["text"]}
    assert note("clear", 4) == {"length": 0, "keys": []}
    assert note("hello", 5) == {"length": 0, "keys": []}
    pop.client.publish("sdk/notes", b"bad", subject="s")
    (dead,) = wait_until(lambda: list(pop.client.dead_letters("sdk")), "the dead letter")
    detail = json.dumps(pop.client.dead_letter("sdk", dead["id"]))
    assert "state['bad'] of function 'notes' (key 's') is a set" in detail
    assert note("hello", 6) == {"length": 0, "keys": []}, "the key goes on behind it"


def read_over_mqtt(pop: Pop, wait_until: Wait, id: str, payload: bytes) -> dict[str, list[bytes]]:
    """What comes back when a plain client says this to the qos 0 function."""
    heard: dict[str, list[bytes]] = defaultdict(list)
    subscribed = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.username_pw_set(pop.access.mqtt_username, pop.access.mqtt_password)
    client.on_connect = lambda client, *_: client.subscribe([(f"sdk/fast/{id}/pong", 0), (f"sdk/fast/{id}/log", 0)])
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: heard[message.topic].append(message.payload)
    client.connect(pop.access.mqtt_host, pop.access.mqtt_port)
    client.loop_start()
    try:
        assert subscribed.wait(10)
        client.publish(f"sdk/fast/{id}/ping", payload, qos=0)
        wait_until(lambda: heard[f"sdk/fast/{id}/pong"], "the answer", 20)
        return dict(heard)
    finally:
        client.disconnect()
        client.loop_stop()


def test_a_qos_0_function_hears_a_filter_and_answers_on_templates(pop: Pop, wait_until: Wait) -> None:
    for id in ("1", "left-eye"):
        assert read_over_mqtt(pop, wait_until, id, b"hello") == {
            f"sdk/fast/{id}/pong": [b"hello"],
            f"sdk/fast/{id}/log": [b"seen"],
        }


def test_arguments_of_a_join_of_the_first_and_a_side_input(pop: Pop, wait_until: Wait) -> None:
    pop.client.publish("sdk/left", b"l1", subject="a")
    wait_until(lambda: pop.on("firsts"), "the first of two, without settings")
    pop.client.publish("sdk/settings", b"on")
    pop.client.publish("sdk/right", b"r1", subject="b")
    wait_until(lambda: len(pop.on("firsts")) >= 2, "the first of two, with settings")
    assert pop.on("firsts") == [["l1", None, None, "a"], [None, "r1", "on", "b"]]
    assert [one.subject for one in pop.outputs["firsts"]] == ["a", "b"], "a side input is not the first input"


def test_arguments_of_a_join_that_keeps_duplicates(pop: Pop, wait_until: Wait) -> None:
    for channel, text in (("left", b"l1"), ("left", b"l2"), ("right", b"r1")):
        pop.client.publish(f"sdk/pair/{channel}", text, subject="a")
    assert wait_until(lambda: pop.on("paired"), "the pair") == [[["l1", "l2"], ["r1"]]]


def test_arguments_of_a_window(pop: Pop, wait_until: Wait) -> None:
    before_ms = int(time.time() * 1000)
    for value in range(10):
        pop.client.publish("sdk/ticks", str(value).encode(), subject="a")
    wait_until(lambda: sum(len(one["values"]) for one in pop.on("batches")) >= 10, "all windows", 30)
    after_ms = int(time.time() * 1000)
    batches = pop.on("batches")
    assert sorted(value for one in batches for value in one["values"]) == list(range(10))
    for one in batches:
        start_ms, end_ms = one["window"]
        assert one["key"] == "a" and end_ms - start_ms == 1000 == end_ms % 1000 + 1000
        assert before_ms - 1000 < start_ms < after_ms
