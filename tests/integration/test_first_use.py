"""A namespace comes into being by its first use: by a bare MQTT publish too, without losing or doubling what was published meanwhile."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(120)]
MESSAGES = 3000
FLOODS, FLOOD, FLOOD_CHARS = 4, 6000, 3900
FLOOD_MIB = 40
"""What a flood may take of the data process's memory; its payloads alone have 90 MiB."""


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b")) as running:
        yield running


def publish_lines(cluster: LocalCluster, *topics: str, count: int = MESSAGES, padding: str = "") -> None:
    """To all `topics` at once, by one publisher each."""
    access = cluster.pop("a")
    account = [
        "-h",
        access.mqtt_host,
        "-p",
        str(access.mqtt_port),
        "-u",
        access.mqtt_username,
        "-P",
        access.mqtt_password,
    ]
    with tempfile.TemporaryFile() as lines:
        lines.write("".join(f"{number}{padding}\n" for number in range(count)).encode())
        publishers = []
        for topic in topics:
            # Each reads from its own place in the file.
            with open(f"/proc/self/fd/{lines.fileno()}", "rb") as own:
                publishers.append(
                    subprocess.Popen(["mosquitto_pub", *account, "-t", topic, "-q", "1", "-l"], stdin=own)
                )
        for publisher in publishers:
            assert publisher.wait(60) == 0


def read(cluster: LocalCluster, pop: str, pattern: str, count: int) -> list[str]:
    access = cluster.pop(pop)
    seen: list[str] = []
    with Client(access.api_url, access.token) as client:
        for event in client.subscribe(pattern, from_="start"):
            assert not isinstance(event, Gap)
            seen.append(event.text().rstrip("."))
            if seen[-1] == str(count - 1):
                return seen
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("round", range(3))
def test_a_stream_into_a_new_namespace_is_whole_and_in_order_at_both_pops(
    cluster: LocalCluster, wait_until: Callable[..., Any], round: int
) -> None:
    name = f"fresh-{round}"
    publish_lines(cluster, f"{name}/lines")
    wait_until(lambda: name in namespaces(cluster, "b"), "the namespace at the other PoP")
    expected = [str(number) for number in range(MESSAGES)]
    assert read(cluster, "a", f"{name}/lines", MESSAGES) == expected
    assert read(cluster, "b", f"{name}/lines", MESSAGES) == expected


def test_a_flood_into_a_new_namespace_is_kept_by_the_broker_and_not_by_the_data_process(cluster: LocalCluster) -> None:
    data = Path(f"/proc/{cluster.pid('a', 'data')}")
    (data / "clear_refs").write_text("5")
    before_mib = peak_mib(data)
    topics = [f"flooded/lines-{number}" for number in range(FLOODS)]
    publish_lines(cluster, *topics, count=FLOOD, padding="." * FLOOD_CHARS)
    for topic in topics:
        assert read(cluster, "a", topic, FLOOD) == [str(number) for number in range(FLOOD)]
    assert peak_mib(data) - before_mib < FLOOD_MIB


def peak_mib(process: Path) -> float:
    """The most memory that the process has had, since `5` was written to its `clear_refs`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def namespaces(cluster: LocalCluster, pop: str) -> list[str]:
    import httpx

    access = cluster.pop(pop)
    answer = httpx.get(
        f"{access.api_url}/v1/namespaces", headers={"Authorization": f"Bearer {access.token}"}, timeout=20
    )
    answer.raise_for_status()
    return [item["namespace"] for item in answer.json()["items"]]
