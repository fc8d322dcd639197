"""mosquitto_pub and mosquitto_sub, MQTT 3.1.1 and 5, against a running cluster: publish, see every hop, two steps, receipts, refusals."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from video import FRAMES, Video

pytestmark = [pytest.mark.timeout(180)]
Wait = Callable[..., Any]


class Subscriber:
    """mosquitto_sub in the background, its lines as JSON documents."""

    def __init__(self, video: Video, pop: str, topic: str, *options: str, form: str = "%j") -> None:
        # Its output is line by line only on a terminal, unless stdbuf says so.
        command = [
            "stdbuf",
            "-oL",
            "mosquitto_sub",
            *login(video, pop),
            "-t",
            topic,
            "-q",
            "1",
            "-F",
            form,
            "-d",
            *options,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._process.stdout is not None
        # -d prints the SUBACK: from there on nothing can be missed.
        for line in self._process.stdout:
            if "Subscribed" in line:
                break

    def read(self, count: int) -> list[dict[str, Any]]:
        """The next `count` messages."""
        assert self._process.stdout is not None
        found: list[dict[str, Any]] = []
        for line in self._process.stdout:
            if line.startswith("{"):
                found.append(json.loads(line))
                if len(found) == count:
                    return found
        raise AssertionError(f"mosquitto_sub ended after {len(found)} of {count} messages")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def login(video: Video, pop: str) -> list[str]:
    access = video.cluster.pop(pop)
    return ["-h", access.mqtt_host, "-p", str(access.mqtt_port), "-u", access.mqtt_username, "-P", access.mqtt_password]


def publish(video: Video, pop: str, topic: str, *options: str, stdin: bytes | None = None) -> None:
    subprocess.run(
        ["mosquitto_pub", *login(video, pop), "-t", topic, "-q", "1", *options], input=stdin, check=True, timeout=30
    )


@pytest.fixture
def subscribe(video: Video) -> Any:
    opened: list[Subscriber] = []

    def start(*arguments: str, **more: str) -> Subscriber:
        opened.append(Subscriber(video, *arguments, **more))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_a_clip_published_with_mosquitto_pub_runs_the_pipeline(
    video: Video, wait_until: Wait, tmp_path: Any, version: str
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(video.clip)
    before = len(video.films.events)
    publish(video, "chicago", "vision/chunks", "-V", version, "-f", str(clip))
    wait_until(lambda: len(video.films.events) > before, "the film", 90)
    chunk = video.films.events[before].attributes["chunk"]
    video.expect_exactly_once(chunk, wait_until)


def test_two_steps_at_two_pops(video: Video, wait_until: Wait) -> None:
    name = video.new_chunk()
    publish(
        video,
        "la",
        "vision/chunks",
        "-V",
        "mqttv5",
        "-m",
        json.dumps({"dataref": f"ekv:vision/{name}"}),
        "-D",
        "publish",
        "user-property",
        "subject",
        name,
    )
    video.client("chicago").put(f"vision/{name}", video.clip, content_type="video/mp4")
    video.expect_exactly_once(name, wait_until)


def test_a_subscriber_sees_every_hop_also_between_functions_of_one_pop(video: Video, subscribe: Any) -> None:
    watcher = subscribe("la", "vision/#", "-V", "mqttv5", form='{"topic": "%t"}')
    chunk = video.send()
    wanted = 1 + 4 * FRAMES + 1
    seen = watcher.read(wanted)
    counts: dict[str, int] = {}
    for message in seen:
        counts[message["topic"]] = counts.get(message["topic"], 0) + 1
    assert counts == {
        "vision/chunks": 1,
        **{f"vision/{name}": FRAMES for name in ("frames", "faces", "matches", "augmented")},
        "vision/video": 1,
    }
    assert chunk


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_an_event_from_another_pop_arrives_with_its_attributes(video: Video, subscribe: Any, version: str) -> None:
    watcher = subscribe("ny", "vision/notes", "-V", version)
    publish(
        video,
        "chicago",
        "vision/notes",
        "-V",
        "mqttv5",
        "-m",
        "hello",
        "-D",
        "publish",
        "user-property",
        "subject",
        "s1",
    )
    (message,) = watcher.read(1)
    assert (message["topic"], message["payload"]) == ("vision/notes", "hello")
    if version == "mqttv5":
        known = message["properties"]["user-properties"]
        assert known["subject"] == "s1" and known["origin"] == "chicago" and known["seq"].isdigit()


def test_a_large_body_reaches_a_plain_subscriber_as_a_reference_that_can_be_fetched(
    video: Video, subscribe: Any
) -> None:
    import httpx

    watcher = subscribe("ny", "vision/large", "-V", "mqttv311")
    body = b"L" * (1 << 21)
    publish(video, "chicago", "vision/large", "-s", stdin=body)
    (message,) = watcher.read(1)
    document = json.loads(message["payload"])
    answer = httpx.get(
        document["dataref"], headers={"Authorization": f"Bearer {video.cluster.pop('ny').token}"}, timeout=20
    )
    assert answer.content == body


def test_a_receipt_comes_on_the_response_topic_and_says_durable(video: Video, subscribe: Any) -> None:
    receipts = subscribe("chicago", "vision/_re/#", "-V", "mqttv5")
    options = [
        "-V",
        "mqttv5",
        "-D",
        "publish",
        "response-topic",
        "vision/_re/me",
        "-D",
        "publish",
        "correlation-data",
        "c1",
    ]
    publish(video, "chicago", "vision/receipted", "-m", "hello", *options)
    publish(video, "chicago", "vision/receipted", "-m", '{"dataref": "http://elsewhere"}', *options)
    durable, refused = (json.loads(message["payload"]) for message in receipts.read(2))
    assert (durable["class"], durable["origin"]) == ("durable", "chicago") and durable["seq"] > 0
    assert (refused["class"], refused["code"]) == ("refused", "bad-event") and refused["hint"]


def test_what_cannot_be_an_event_is_refused_and_the_next_one_is_taken(video: Video, subscribe: Any) -> None:
    watcher = subscribe("ny", "vision/notes", "-V", "mqttv311")
    publish(video, "chicago", "vision/a//b", "-m", "empty level")
    publish(video, "chicago", "vision/_dead/x", "-m", "reserved")
    publish(
        video,
        "chicago",
        "vision/notes",
        "-V",
        "mqttv5",
        "-m",
        "no json",
        "-D",
        "publish",
        "content-type",
        "application/cloudevents+json",
    )
    publish(
        video,
        "chicago",
        "vision/notes",
        "-V",
        "mqttv5",
        "-m",
        "bad time",
        "-D",
        "publish",
        "user-property",
        "time",
        "yesterday",
    )
    publish(video, "chicago", "vision/notes", "-m", "good")
    assert [message["payload"] for message in watcher.read(1)] == ["good"]


def test_nobody_gets_in_without_the_password(video: Video) -> None:
    access = video.cluster.pop("la")
    for options in ([], ["-u", "operator", "-P", "wrong"]):
        command = [
            "mosquitto_pub",
            "-h",
            access.mqtt_host,
            "-p",
            str(access.mqtt_port),
            *options,
            "-t",
            "vision/notes",
            "-m",
            "x",
        ]
        assert subprocess.run(command, capture_output=True, timeout=20).returncode != 0
