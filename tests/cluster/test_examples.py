"""Every example of docs/joins.md on one running cluster: what is said to go in goes in, and what is said to come out comes out."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(120)]
FOLDER = Path(__file__).parents[2] / "examples" / "joins"
NAMES = sorted(one.name for one in FOLDER.iterdir() if one.is_dir())
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(("a",)) as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    access = cluster.pop("a")
    with Client(access.api_url, access.token, retry_s=20) as one:
        yield one


def come_out(client: Client, channel: str) -> list[Any]:
    """All that was published on a channel so far, as JSON or text."""
    mark = client.publish(f"{channel}/so-far")
    found = []
    for event in client.subscribe(f"{channel}/#", from_="start"):
        assert not isinstance(event, Gap)
        if event.id == mark.id:
            return found
        if event.channel == channel:
            found.append(event.json() if "json" in (event.datacontenttype or "") else event.text())
    raise AssertionError("the stream ended")


def counters(client: Client, namespace: str) -> dict[str, int]:
    return dict(next(one["counters"] for one in client.namespaces() if one["namespace"] == namespace))


def in_any_order(values: list[Any]) -> list[str]:
    return sorted(json.dumps(value, sort_keys=True) for value in values)


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_in_makes_what_comes_out(
    cluster: LocalCluster, client: Client, wait_until: Callable[..., Any], name: str
) -> None:
    access = cluster.pop("a")
    apply_file(FOLDER / name / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=60)
    namespace = f"join-{name}"
    script = yaml.safe_load((FOLDER / name / "events.yaml").read_text())
    for event in script["publish"]:
        # Attributes travel as ce-<name> headers, the event's time among them.
        attributes = {"time": event["time"]} if "time" in event else {}
        client.publish(
            f"{namespace}/{event['channel']}", event.get("data"), subject=event.get("subject"), type=event.get("type"), attributes=attributes,
        )  # fmt: skip
    for channel, wanted in script["expect"].items():
        found = wait_until(
            lambda full=f"{namespace}/{channel}", count=len(wanted): len(there := come_out(client, full)) >= count and [there],
            f"{wanted} on {channel}", DEADLINE_S, 0.1,
        )[0]  # fmt: skip
        assert in_any_order(found) == in_any_order(wanted)
        key = script.get("in_order")
        if key:
            assert [one for one in found if key in one] == [one for one in wanted if key in one]
    letters = script.get("dead_letters", {})
    wait_until(
        lambda: {one["function"]: one["reason"] for one in client.dead_letters(namespace)} == letters,
        f"the dead letters {letters}", DEADLINE_S,
    )  # fmt: skip
    for channel, wanted in script["expect"].items():
        assert len(come_out(client, f"{namespace}/{channel}")) == len(wanted), "more came later"
    for counter, wanted in script.get("counted", {}).items():
        wait_until(
            lambda counter=counter, wanted=wanted: counters(client, namespace).get(counter) == wanted,
            f"{counter}: {wanted}",
        )
