"""Functions invoked by name over MQTT with a stock client, from another PoP; gated channels; state by a captured key."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_stock_clients import login
from video import POPS, Video

from edgeflow.cli.apply import Target, apply_file

pytestmark = [pytest.mark.timeout(180)]
Wait = Callable[..., Any]

MANIFEST = """
namespace: ask
channels:
  clean: {gated: true}
functions:
  shout: {build: ./shout, subscribe: words, publish: [loud, extra], place: {pops: [la]}, retry: {attempts: 1}}
  count: {build: ./count, subscribe: "shelf/{room}/items", publish: "shelf/{room}/total", state: {by: captures.room}, place: {pops: [ny]}}
"""
SHOUT = """
from edgeflow import function

@function
def handle(ctx, words):
    text = words.text()
    if text == "quiet":
        return
    if text == "fail":
        raise ValueError("no voice")
    ctx.emit("loud", text.upper())
    if text == "twice":
        ctx.emit("extra", text)
"""
COUNT = """
from edgeflow import function

@function
def handle(ctx, items):
    ctx.state["items"] = ctx.state.get("items", []) + [items.text()]
    ctx.ekv.increment("all")
    return {"room": items.captures["room"], "items": ctx.state["items"], "id": ctx.invocation_id}
"""


@pytest.fixture(scope="module")
def ask(video: Video, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Video]:
    folder = tmp_path_factory.mktemp("ask")
    for name, text in (("shout", SHOUT), ("count", COUNT)):
        (folder / name).mkdir()
        (folder / name / "handler.py").write_text(text)
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    access = video.cluster.pop("chicago")
    apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token))
    yield video


def request(video: Video, pop: str, topic: str, message: str, count: int = 1) -> list[dict[str, Any]]:
    """What mosquitto_rr gets on its response topic."""
    command = [
        "mosquitto_rr", *login(video, pop), "-V", "5", "-q", "1", "-t", topic, "-e", f"ask/_re/{time.monotonic_ns()}", "-m", message, "-W", "20",
        "-F", "%j", "-D", "publish", "correlation-data", "c-1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) >= count, (done.stdout, done.stderr)
    return found


def properties(message: dict[str, Any]) -> dict[str, str]:
    return dict(message["properties"]["user-properties"])


@pytest.mark.parametrize("pop", POPS)
def test_a_request_gets_the_outputs_of_the_function_wherever_it_runs(ask: Video, pop: str) -> None:
    (reply,) = request(ask, pop, "ask/_invoke/shout", "hello")
    assert reply["payload"] == "HELLO"
    assert reply["properties"]["correlation-data"] == "c-1"
    assert properties(reply)["outputs"] == "1" and properties(reply)["source"] == "/ask/shout"


def test_no_output_several_outputs_and_failures_are_said(ask: Video) -> None:
    (nothing,) = request(ask, "la", "ask/_invoke/shout", "quiet")
    assert nothing["payload"] in ("", None) and properties(nothing)["outputs"] == "0"
    several = request(ask, "la", "ask/_invoke/shout", "twice")
    assert properties(several[0])["outputs"] == "2"
    (failed,) = request(ask, "ny", "ask/_invoke/shout", "fail")
    assert properties(failed)["error"] == "invocation-dead"
    assert json.loads(failed["payload"])["detail"] == "handler-failed"
    (unknown,) = request(ask, "ny", "ask/_invoke/nobody", "x")
    assert json.loads(unknown["payload"])["code"] == "not-found"


def test_a_gated_channel_takes_http_and_refuses_mqtt(ask: Video) -> None:
    (refused,) = request(ask, "chicago", "ask/clean", "x")
    assert json.loads(refused["payload"])["code"] == "gated-channel"
    assert ask.client("chicago").publish("ask/clean", b"x").class_ == "durable"


def test_state_of_a_captured_key_grows_in_order_and_counts_once(ask: Video, wait_until: Wait) -> None:
    client = ask.client("chicago")
    rooms = ("kitchen", "hall")
    for number in range(20):
        for room in rooms:
            client.publish(f"ask/shelf/{room}/items", str(number))
    totals: dict[str, list[list[str]]] = {room: [] for room in rooms}
    for event in client.subscribe("ask/shelf/+/total", from_="start"):
        document = event.json()  # type: ignore[union-attr]
        assert event.channel == f"ask/shelf/{document['room']}/total"  # type: ignore[union-attr]
        totals[document["room"]].append(document["items"])
        if all(len(found) >= 20 for found in totals.values()):
            break
    for room in rooms:
        assert totals[room] == [[str(each) for each in range(number + 1)] for number in range(20)]
    for pop in POPS:
        wait_until(
            lambda pop=pop: ask.store(pop).namespace("ask").count_value("all") == 40, f"the counter at {pop}", 10
        )
