"""A PoP without room takes nothing, says so, and goes on by itself: what MQTT clients published meanwhile comes in once."""

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap
from edgeflow.settings import PopSettings
from edgeflow.store import Store

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(120)]
MESSAGES = 600


@pytest.fixture
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(("solo",)) as running:
        yield running


def test_mqtt_messages_wait_and_http_is_told(cluster: LocalCluster, wait_until: Callable[..., Any]) -> None:
    access = cluster.pop("solo")
    store = Store.open(PopSettings.load(cluster.home.root / "pops" / "solo" / "pop.json"))
    publish = ["mosquitto_pub", "-h", access.mqtt_host, "-p", str(access.mqtt_port), "-u", access.mqtt_username]
    publish += ["-P", access.mqtt_password, "-t", "room/lines", "-q", "1"]
    subprocess.run([*publish, "-m", "before"], check=True, timeout=20)
    wait_until(lambda: store.namespace("room").release_head() == 1, "the first event")
    wait_until(lambda: (store.local.get_doc("gateway_state", "room") or {}).get("connected"), "the gateway")

    store._connection.one("CONFIG", "SET", "maxmemory", "1")
    # More than the broker's window, so that the gateway's session stands still on unacknowledged messages.
    lines = "".join(f"{number}\n" for number in range(MESSAGES)).encode()
    subprocess.run([*publish, "-l"], input=lines, check=True, timeout=20)
    with Client(access.api_url, access.token, retry_s=0.0) as client, pytest.raises(Exception, match="memory limit"):
        client.publish("room/lines", b"over http")
    assert store.namespace("room").release_head() == 1

    store._connection.one("CONFIG", "SET", "maxmemory", "0")
    seen = []
    with Client(access.api_url, access.token) as client:
        for event in client.subscribe("room/lines", from_="start"):
            assert not isinstance(event, Gap)
            seen.append(event.text())
            if len(seen) == MESSAGES + 1:
                break
    assert seen == ["before", *(str(number) for number in range(MESSAGES))]
    assert store.namespace("room").counters()["events_ingested"] == MESSAGES + 1
    store.close()
