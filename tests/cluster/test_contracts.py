"""Programs that know nothing of edgeflow, as functions of a real cluster (processes). `tests/docker/test_contracts.py` does the same with images."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, ReceivedEvent

APP = Path(__file__).parents[1] / "contracts" / "edgeflow.yaml"
pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def client(programs: None) -> Iterator[Client]:
    with LocalCluster(["la"]) as cluster:
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
    found = outputs(client, {"framework", "signature", "flask", "joined", "sdk", "watchdog"}, "s/1")
    assert found["framework"].data == b"HELLO" and found["framework"].datacontenttype == "text/plain"
    assert found["signature"].data == b"OK"
    assert found["flask"].json() == {"letters": 5, "subject": "s/1"}
    assert found["joined"].json() == {"words": "hello", "colours": "red"}
    assert found["sdk"].json() == {"length": 5} and found["sdk"].type == "com.example.length"
    assert found["sdk"].attributes["mood"] == "good"
    assert found["watchdog"].data == b"olleh"
