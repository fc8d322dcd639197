"""A PoP that is cut off from all others and rebooted: it goes on from its own disk, merges later, and nothing that is well restarts when the others are back."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client as MqttClient
from paho.mqtt.enums import CallbackAPIVersion

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.lab.hands import Hands, hands_on
from edgeflow.sdk.client import ReceivedEvent

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420), pytest.mark.usefixtures("programs")]
Wait = Callable[..., Any]
POPS = ("la", "ny")
TTL_S = 15.0
WITHIN_S = 15.0
"""Of the join that is to end while the power is off."""

FUNCTIONS = {
    "upper": "import os\nfrom pathlib import Path\n\n@function\ndef handle(ctx, words):\n"
    "    key = Path(os.environ['EDGEFLOW_SECRETS'], 'key').read_text()\n    return words.text().upper() + key\n",
    "both": "@function\ndef handle(ctx, left, right):\n    return left.text() + right.text()\n",
    "late": "@function\ndef handle(ctx, early, never):\n    return 'too late'\n",
}
MANIFEST = f"""
namespace: away
functions:
  upper: {{build: ./upper, subscribe: words, publish: out, secrets: [key], place: {{pops: [ny]}}}}
  both: {{build: ./both, subscribe: {{join: [left, right], within: 1h}}, publish: joined, place: {{pops: [ny]}}}}
  late: {{build: ./late, subscribe: {{join: [early, never], within: {WITHIN_S:g}s}}, publish: out, place: {{pops: [ny]}}}}
"""


@pytest.fixture(scope="module")
def cluster(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("away")
    for name, handler in FUNCTIONS.items():
        (folder / name).mkdir()
        (folder / name / "handler.py").write_text(f"from edgeflow import function\n{handler}")
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    with LocalCluster(list(POPS)) as running:
        access = running.pop("ny")
        with Operator(access.api_url, access.token) as client:
            client.set_secret("away", "key", b"!")
        apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token))
        yield running


@pytest.fixture
def clients(cluster: LocalCluster) -> Iterator[dict[str, Operator]]:
    found = {name: Operator(cluster.pop(name).api_url, cluster.pop(name).token, retry_s=60.0) for name in POPS}
    yield found
    for one in found.values():
        one.close()


def running(cluster: LocalCluster, hands: Hands, clients: dict[str, Operator]) -> dict[str, object]:
    """What runs at each PoP: its processes and its instances."""
    found: dict[str, object] = {}
    for pop in POPS:
        processes = {part: hands.pid(pop, part) for part in ("control", "data", "broker", "redis")}  # type: ignore[attr-defined]
        found[pop] = processes, sorted(one["instance"] for one in clients[pop].instances())
    return found


def texts(client: Operator, channel: str, count: int) -> list[str]:
    """The first `count` events of a channel at a PoP."""
    found: list[str] = []
    for event in client.subscribe(channel, from_="start", reconnect_s=60.0):
        assert isinstance(event, ReceivedEvent), event
        found.append(event.text())
        if len(found) == count:
            return found
    raise AssertionError("the stream ended")


def by_mqtt(cluster: LocalCluster, topic: str, text: str) -> None:
    """One QoS 1 publish with the operator's credentials, over the PoP's own broker."""
    access = cluster.pop("ny")
    client = MqttClient(CallbackAPIVersion.VERSION2)
    client.username_pw_set(access.mqtt_username, access.mqtt_password_file.read_text().strip())
    client.connect(access.mqtt_host, access.mqtt_port)
    client.loop_start()
    try:
        client.publish(topic, text, qos=1).wait_for_publish(60)
    finally:
        client.disconnect()
        client.loop_stop()


def test_cut_off_and_rebooted_it_goes_on_and_merges_later(
    cluster: LocalCluster, clients: dict[str, Operator], wait_until: Wait, tmp_path: Path
) -> None:
    ny, la = clients["ny"], clients["la"]
    hands = hands_on(cluster.find())
    assert [event.text() for event in ny.invoke("away/upper", "before")] == ["BEFORE!"]
    ny.publish("away/left", "l", subject="s")
    wait_until(lambda: ny.joins("away"), "the join is pending", 30)
    la.ekv.put("away/shared", "from la")
    wait_until(lambda: ny.ekv.get("away/shared"), "ny has the value", 30)

    # The line goes, then the power. What has a time keeps its time.
    hands.partition(hands.split("ny", one_way=False))
    ny.ekv.put("away/short", "gone soon", ttl_s=TTL_S)
    ny.ekv.put("away/long", "stays", ttl_s=3600)
    ny.publish("away/early", "e", subject="s")
    off_s = time.monotonic()
    hands.kill(hands.target("ny"), stay_down=True)
    la.ekv.put("away/meanwhile", "at la")
    la.publish("away/words", "from la")
    wait_until(lambda: time.monotonic() - off_s > max(TTL_S, WITHIN_S), "the times are over", 60)
    hands.resume("ny")

    # From its own disk: credentials, functions with their secrets, values, pending joins.
    wait_until(
        lambda: {one["state"] for one in ny.functions("away")} == {"ready"}, "its functions are ready again", 120
    )
    spaces = lambda: {one["namespace"]: one["gateway"] or {} for one in ny.namespaces()}  # noqa: E731
    wait_until(lambda: spaces()["away"].get("connected"), "its gateway is connected", 60)
    assert ny.ekv.get("away/short") is None, "its time went on while the power was off"
    assert ny.ekv.get("away/long") is not None and ny.ekv.get("away/shared") is not None
    wait_until(
        lambda: [one["reason"] for one in ny.letters("away")] == ["join-timeout"], "a join's time went on, too", 60
    )
    assert [event.text() for event in ny.invoke("away/upper", "offline")] == ["OFFLINE!"]
    by_mqtt(cluster, "away/words", "over mqtt")
    ny.publish("away/right", "r", subject="s")
    assert texts(ny, "away/joined", 1) == ["lr"]
    assert sorted(texts(ny, "away/out", 3)) == ["BEFORE!", "OFFLINE!", "OVER MQTT!"]
    # And it takes changes of what it runs.
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "handler.py").write_text(
        "from edgeflow import function\n\n@function\ndef handle(ctx, a):\n    return a.text()\n"
    )
    (tmp_path / "edgeflow.yaml").write_text(
        "namespace: fresh\nfunctions:\n  new: {build: ./new, subscribe: a, publish: b, place: {pops: [ny]}}\n"
    )
    access = cluster.pop("ny")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token))

    # The others are back: all merges, and nothing that is well restarts.
    before = running(cluster, hands, clients)
    hands.heal()
    assert sorted(texts(la, "away/out", 4)) == ["BEFORE!", "FROM LA!", "OFFLINE!", "OVER MQTT!"]
    for name in POPS:
        assert sorted(texts(clients[name], "away/out", 4)) == ["BEFORE!", "FROM LA!", "OFFLINE!", "OVER MQTT!"]
        wait_until(lambda name=name: clients[name].ekv.get("away/long"), f"{name} has what ny wrote", 60)
        wait_until(lambda name=name: clients[name].ekv.get("away/meanwhile"), f"{name} has what la wrote", 60)
        wait_until(lambda name=name: clients[name].manifest("fresh"), f"{name} knows what ny took", 60)
        assert clients[name].ekv.get("away/short") is None
    hashes = lambda: {client.ekv.standing("away", hash=True)["hash"] for client in clients.values()}  # noqa: E731
    wait_until(lambda: len(hashes()) == 1, "all hold the same", 60, 0.5)
    wait_until(lambda: all(one["link"]["entries_behind"] == 0 for one in ny.pops()[1:]), "nobody is behind ny", 60)
    assert running(cluster, hands, clients) == before
    assert [one["reason"] for one in ny.letters("away")] == ["join-timeout"], (
        "nothing was lost beside the join that was late"
    )


BACKLOG = 60
BODY_BYTES = 200_000
KBIT_S = 2_000
"""So the backlog takes 48 s, longer than the gate waits for what does not come."""
PRIORITIES = """
namespace: pri
channels: {frames: {priority: low}, alarms: {priority: high}}
functions:
  f: {build: ./f, subscribe: nothing, place: {pops: [la]}}
"""


def test_live_data_goes_before_the_backlog_and_nothing_is_given_up(
    cluster: LocalCluster, clients: dict[str, Operator], wait_until: Wait, tmp_path: Path
) -> None:
    ny, la = clients["ny"], clients["la"]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "handler.py").write_text(
        "from edgeflow import function\n\n@function\ndef handle(ctx, nothing): ...\n"
    )
    (tmp_path / "edgeflow.yaml").write_text(PRIORITIES)
    access = cluster.pop("ny")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token))
    wait_until(lambda: la.manifest("pri") and ny.manifest("pri"), "both know the priorities", 60)
    cluster.set_link("la", "ny", cut=True)
    # What is sent before the link is given up is in the buffers of the line, and comes first.
    wait_until(lambda: [one["state"] for one in ny.pops()[1:]] == ["down"], "the link is given up", 90)
    for number in range(BACKLOG):
        ny.publish("pri/frames", number.to_bytes(1, "big") * BODY_BYTES, subject=str(number))
    # Not a body that a frame has: one and the same goes once, with the first event that names it.
    ny.publish("pri/alarms", b"\xff" * BODY_BYTES, subject="fire")
    cluster.set_link("la", "ny", cut=False, kbit_s=KBIT_S)
    try:
        order = []
        for event in la.subscribe("pri/#", from_="start", reconnect_s=60.0):
            assert isinstance(event, ReceivedEvent), f"a gap: {event}"
            order.append(event.subject)
            if len(order) == BACKLOG + 1:
                break
    finally:
        cluster.set_link("la", "ny", kbit_s=0)
    # Without priorities it is the last of all, as in the log.
    assert order.index("fire") < BACKLOG // 4, "it came behind the backlog"
    assert [subject for subject in order if subject != "fire"] == [str(number) for number in range(BACKLOG)]
