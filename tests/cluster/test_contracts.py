"""Programs that know nothing of edgeflow, as functions of a real cluster (processes). `tests/docker/test_contract_images.py` does the same with images."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, ReceivedEvent

APP = Path(__file__).parents[1] / "contracts" / "edgeflow.yaml"
pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    # More functions than a small machine has room for; each does next to nothing.
    with LocalCluster(["la"], settings={"runner": {"cpus": 64}}) as one:
        yield one


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    access = cluster.pop("la")
    apply_file(APP, Target(access.api_url, access.token), timeout_s=300)
    with Client(access.api_url, access.token) as one:
        yield one


def outputs(client: Client, wanted: set[str], subject: str) -> dict[str, ReceivedEvent]:
    """The first event of each of these functions about `subject`."""
    found: dict[str, ReceivedEvent] = {}
    for event in client.subscribe("foreign/out/+", from_="start"):
        name = getattr(event, "channel", "").rpartition("/")[2]
        if isinstance(event, ReceivedEvent) and event.subject == subject:
            assert name not in found, f"{name} answered twice"
            found[name] = event
            if wanted <= set(found):
                break
    return found


def test_servers_of_others_are_functions_as_they_are(client: Client) -> None:
    client.publish("foreign/words", "hello", subject="s/1", datacontenttype="text/plain")
    client.publish("foreign/colours", "red", subject="s/1", datacontenttype="text/plain")
    found = outputs(client, {"framework", "signature", "flask", "joined", "sdk", "watchdog", "shell"}, "s/1")
    assert found["framework"].data == b"HELLO" and found["framework"].datacontenttype == "text/plain"
    assert found["signature"].data == b"OK"
    assert found["flask"].json() == {"letters": 5, "subject": "s/1"}
    assert found["joined"].json() == {"words": "hello", "colours": "red"}
    assert found["sdk"].json() == {"length": 5} and found["sdk"].type == "com.example.length"
    assert found["sdk"].attributes["mood"] == "good"
    assert found["watchdog"].data == b"olleh"
    assert found["shell"].data == b"HELLO of s/1" and found["shell"].datacontenttype == "text/plain"


def test_stock_mqtt_clients_are_a_function(client: Client) -> None:
    for number in range(3):
        client.publish("foreign/plain", f"line {number}")
    heard = []
    for event in client.subscribe("foreign/out/mqtt", from_="start"):
        assert isinstance(event, ReceivedEvent)
        heard.append(event.data)
        if len(heard) == 3:
            break
    assert heard == [b"heard line 0", b"heard line 1", b"heard line 2"]


SPY = """
set -- -h "$MQTT_HOST" -p "$MQTT_PORT" -u "$MQTT_USERNAME" -P "$MQTT_PASSWORD"
mosquitto_sub "$@" -t foreign/words -E
mosquitto_sub "$@" -t 'spying/#' -E
mosquitto_pub "$@" -t foreign/plain -m forged
mosquitto_sub -h "$MQTT_HOST" -p "$MQTT_PORT" -u "$MQTT_USERNAME" -P guess -t spying/ok/1 -E || echo "guessed in vain"
exec mosquitto_sub "$@" -t 'spying/ok/+'
"""


def test_a_program_with_a_session_reaches_its_own_channels_only(
    cluster: LocalCluster, client: Client, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "spy.sh").write_text(SPY)
    (tmp_path / "edgeflow.yaml").write_text(
        "namespace: spying\nfunctions:\n"
        "  spy: {contract: mqtt, command: [sh, spy.sh], build: ./spy, subscribe: {channel: 'ok/#', as: ok}, publish: out}\n"
    )
    access = cluster.pop("la")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=60)
    client.publish("spying/ok/1", "this is for you")
    client.publish("foreign/plain", "the last")
    (log,) = (cluster.home.pop_dir("la") / "logs" / "instances").glob("spying.spy-*.log")
    wait_until(lambda: "this is for you" in log.read_text(), "it hears its own channel")
    said = log.read_text()
    assert said.count("denied") == 2 and "guessed in vain" in said and "MQTT_PASSWORD" in said, said
    heard = []
    for event in client.subscribe("foreign/plain", from_="start"):
        assert isinstance(event, ReceivedEvent)
        heard.append(event.data)
        if event.data == b"the last":
            break
    assert b"forged" not in heard
