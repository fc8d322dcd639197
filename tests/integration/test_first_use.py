"""A namespace comes into being by its first use: by a bare MQTT publish too, without losing or doubling what was published meanwhile."""

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(120)]
MESSAGES = 3000


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b")) as running:
        yield running


def publish_lines(cluster: LocalCluster, topic: str, count: int) -> None:
    access = cluster.pop("a")
    lines = "".join(f"{number}\n" for number in range(count)).encode()
    command = [
        "mosquitto_pub",
        "-h",
        access.mqtt_host,
        "-p",
        str(access.mqtt_port),
        "-u",
        access.mqtt_username,
        "-P",
        access.mqtt_password,
    ]
    subprocess.run([*command, "-t", topic, "-q", "1", "-l"], input=lines, check=True, timeout=60)


def read(cluster: LocalCluster, pop: str, pattern: str, count: int) -> list[str]:
    access = cluster.pop(pop)
    seen: list[str] = []
    with Client(access.api_url, access.token) as client:
        for event in client.subscribe(pattern, from_="start"):
            assert not isinstance(event, Gap)
            seen.append(event.text())
            if event.text() == str(count - 1):
                return seen
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("round", range(3))
def test_a_stream_into_a_new_namespace_is_whole_and_in_order_at_both_pops(
    cluster: LocalCluster, wait_until: Callable[..., Any], round: int
) -> None:
    name = f"fresh-{round}"
    publish_lines(cluster, f"{name}/lines", MESSAGES)
    wait_until(lambda: name in namespaces(cluster, "b"), "the namespace at the other PoP")
    expected = [str(number) for number in range(MESSAGES)]
    assert read(cluster, "a", f"{name}/lines", MESSAGES) == expected
    assert read(cluster, "b", f"{name}/lines", MESSAGES) == expected


def namespaces(cluster: LocalCluster, pop: str) -> list[str]:
    import httpx

    access = cluster.pop(pop)
    answer = httpx.get(
        f"{access.api_url}/v1/namespaces", headers={"Authorization": f"Bearer {access.token}"}, timeout=20
    )
    answer.raise_for_status()
    return [item["namespace"] for item in answer.json()["items"]]
