"""The API in a real browser: MQTT.js over /mqtt, and the live page."""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browser import Page, Reporter, chromium, kill, need_chromium, need_mqtt_js

from edgeflow.host.discover import PopAccess
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFElEQVR4nGP8z8DAwMDAxMDAwMAAAA0EAQGzr1yAAAAAAElFTkSuQmCC"
)

MQTT_PAGE = """<!doctype html><title>mqtt</title><script src="/mqtt.js"></script><script>
const config = CONFIG;
const report = (result) => fetch("/report", { method: "POST", body: JSON.stringify(result) });
const client = mqtt.connect(config.url, {
  username: config.username, password: config.password, protocolVersion: config.version, reconnectPeriod: 0, clean: true,
  will: { topic: config.will, payload: "gone", qos: 1 },
});
const sizes = config.sizes, received = [];
client.on("error", (error) => report({ error: String(error) }));
client.on("connect", async () => {
  try {
    await client.subscribeAsync(config.echo, { qos: 1 });
    await client.subscribeAsync(config.feed, { qos: 1 });
    for (const size of sizes) await client.publishAsync(config.echo, Buffer(size), { qos: 1 });
    await report({ ready: true });
  } catch (error) { report({ error: String(error) }); }
});
client.on("message", (topic, payload, packet) => {
  received.push({ topic, size: payload.length, sum: payload.reduce((sum, byte) => (sum * 31 + byte) >>> 0, 7),
    properties: packet.properties?.userProperties ?? null });
  if (received.length === sizes.length + 1) report({ received });
});
function Buffer(size) {
  const bytes = new Uint8Array(size);
  for (let i = 0; i < size; i++) bytes[i] = i * 7 + size;
  return mqtt.Buffer ? mqtt.Buffer.from(bytes) : bytes;
}
</script>"""


@pytest.fixture(scope="module")
def pop(programs: None) -> Iterator[PopAccess]:
    need_chromium()
    with LocalCluster(["chicago"]) as cluster:
        yield cluster.pop("chicago")


@pytest.fixture
def client(pop: PopAccess) -> Iterator[Client]:
    with Client(pop.api_url, pop.token) as client:
        yield client


def checksum(data: bytes) -> int:
    total = 7
    for byte in data:
        total = (total * 31 + byte) & 0xFFFFFFFF
    return total


@pytest.mark.parametrize("version", [4, 5])
def test_mqtt_js_publishes_and_receives(pop: PopAccess, client: Client, version: int) -> None:
    """Small and large bodies both ways, an event that came in over HTTP with its attributes, and the will of a browser that dies."""
    sizes = [1, 1000, 70_000, 1_500_000]
    space = f"web{version}"
    config = {
        "url": pop.mqtt_ws_url, "username": pop.mqtt_username, "password": pop.mqtt_password, "version": version, "sizes": sizes,
        "echo": f"{space}/echo", "feed": f"{space}/feed", "will": f"{space}/will",
    }  # fmt: skip
    client.put(f"{space}/exists", b"")
    events = client.subscribe(f"{space}/#", from_="start")
    site = Reporter(MQTT_PAGE.replace("CONFIG", json.dumps(config)), {"/mqtt.js": need_mqtt_js()})
    try:
        with chromium(site.url) as browser:
            ready = site.take(60)
            assert ready == {"ready": True}
            client.publish(f"{space}/feed", b"from http", subject="s1", attributes={"chunk": "7"})
            received = site.take(30)["received"]
            echoes = [item for item in received if item["topic"] == f"{space}/echo"]
            assert [item["size"] for item in echoes] == sizes
            for item in echoes:
                assert item["sum"] == checksum(bytes((i * 7 + item["size"]) & 0xFF for i in range(item["size"])))
            (fed,) = [item for item in received if item["topic"] == f"{space}/feed"]
            assert fed["size"] == 9
            if version == 5:
                assert fed["properties"]["subject"] == "s1"
                assert fed["properties"]["chunk"] == "7"
            kill(browser)
        seen: dict[str, list[bytes]] = {}
        deadline = time.monotonic() + 20
        for event in events:
            if not hasattr(event, "channel"):
                continue
            seen.setdefault(event.channel, []).append(event.data)
            if event.channel == f"{space}/will" or time.monotonic() > deadline:
                break
        assert [len(data) for data in seen[f"{space}/echo"]] == sizes
        assert seen[f"{space}/will"] == [b"gone"]
    finally:
        site.close()


class Feed:
    """Publishes pictures to a channel until told to stop, as a camera would."""

    def __init__(self, client: Client, channel: str, data: bytes, kind: str | None) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(client, channel, data, kind))
        self._thread.start()

    def _run(self, client: Client, channel: str, data: bytes, kind: str | None) -> None:
        number = 0
        while not self._stop.wait(0.1):
            number += 1
            client.publish(channel, data, subject=f"clip/{number}", datacontenttype=kind)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)


@contextmanager
def live_page(pop: PopAccess, path: str, fragment: str) -> Iterator[Page]:
    with chromium("about:blank", pipe=True) as browser:
        yield Page(browser, f"{pop.api_url}/live/{path}#{fragment}")


@pytest.mark.parametrize(
    ("kind", "data", "is_picture"),
    [("image/png", PNG, True), (None, PNG, True), ("text/plain", b"<b>hello</b>", False)],
    ids=["typed", "sniffed", "text"],
)
def test_the_live_page_shows_the_newest(
    pop: PopAccess, client: Client, wait_until: Callable[..., Any], kind: str | None, data: bytes, is_picture: bool
) -> None:
    feed = Feed(client, "live/augmented", data, kind)
    try:
        with live_page(pop, "live/augmented", f"token={pop.token}") as page:
            wait_until(lambda: int(page.text("count") or 0) > 3, "events on the page", deadline_s=30)
            assert page.text("state") == "live"
            assert page.text("channel") == "live/augmented"
            assert page.text("gaps") == "0"
            assert re.fullmatch(r"clip/\d+", page.text("subject"))
            wait_until(lambda: re.fullmatch(r"\d+\.\d s", page.text("age")), "the age")
            assert float(page.text("rate").removesuffix("/s")) > 0
            if is_picture:
                assert page.evaluate("document.getElementById('picture').naturalWidth") == 2
                assert page.evaluate("document.getElementById('text').hidden")
            else:
                assert page.text("text") == "<b>hello</b>"
                assert page.evaluate("document.getElementById('picture').hidden")
            assert pop.token not in page.evaluate("location.href")
    finally:
        feed.stop()


def test_the_live_page_without_or_with_a_wrong_token_asks_for_one(
    pop: PopAccess, wait_until: Callable[..., Any]
) -> None:
    with live_page(pop, "live/augmented", "") as page:
        wait_until(lambda: "needs the token" in page.text("state"), "the question", deadline_s=20)
    with live_page(pop, "live/augmented", "token=wrong") as page:
        wait_until(lambda: "not valid" in page.text("state"), "the question", deadline_s=20)
        assert not page.evaluate("document.getElementById('ask').hidden")


def test_large_pictures_come_by_reference(pop: PopAccess, client: Client, wait_until: Callable[..., Any]) -> None:
    feed = Feed(client, "live/large", PNG + bytes(1_200_000), "image/png")
    try:
        with live_page(pop, "live/large", f"token={pop.token}") as page:
            wait_until(
                lambda: page.text("size").replace(",", "") == f"{len(PNG) + 1_200_000} B", "the picture", deadline_s=30
            )
    finally:
        feed.stop()
