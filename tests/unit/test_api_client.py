"""The client: repeats that stay one event, streams that resume, errors of the tree. Over a real server and over scripted answers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served

from edgeflow.api.context import Api
from edgeflow.core.events import Event
from edgeflow.core.ids import invocation_id
from edgeflow.core.manifest import parse, resolve
from edgeflow.errors import (
    BadName,
    BadRequest,
    EdgeflowError,
    InvocationDead,
    InvocationPending,
    NotFound,
    QueueFull,
    Throttled,
    TooLarge,
    Unauthorized,
    Unavailable,
    VersionMismatch,
)
from edgeflow.sdk import calls, subscription
from edgeflow.sdk.client import Client, Gap, ReceivedEvent, encode_data, parse_sse
from edgeflow.store.records import DeadLetter, Result

Handler = Callable[[httpx.Request], httpx.Response]
RECEIPT = {"class": "durable", "origin": "la", "epoch": 1, "seq": 1, "id": "x", "version": None}


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def vision(store: FakeStore) -> FakeNamespace:
    store.create_namespace("vision")
    return store.namespace("vision")


@pytest.fixture
def api(store: FakeStore, tmp_path: Path) -> Api:
    return make_api(tmp_path, store)


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with served(api) as url, Client(url, TOKEN, retry_s=1) as client:
        yield client


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (calls, subscription):
        monkeypatch.setattr(place, "FIRST_WAIT_S", 0.01)
        monkeypatch.setattr(place, "LONGEST_WAIT_S", 0.02)


def scripted(answers: list[httpx.Response | Exception], **options: Any) -> tuple[Client, list[httpx.Request]]:
    """A client that gets these answers in turn, and the requests it made."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://pop.test", TOKEN, transport=httpx.MockTransport(handle), **options), requests


def problem(status: int, code: str) -> httpx.Response:
    return httpx.Response(
        status,
        json={"type": "t", "title": "T", "status": status, "detail": "what happened", "code": code, "hint": "do this"},
    )


def frame(cursor: str, kind: str = "message", **document: Any) -> bytes:
    base = {
        "channel": "vision/a",
        "source": "s",
        "type": "t",
        "time": "2026-01-01T00:00:00Z",
        "data": "x",
        "datacontenttype": "text/plain",
    }
    return f"id: {cursor}\nevent: {kind}\ndata: {json.dumps({**base, **document})}\n\n".encode()


class TestPublishing:
    def test_all_attributes_arrive(self, client: Client, store: FakeStore) -> None:
        receipt = client.publish(
            "vision/a b/ü", b"\x00", subject="clip 7/ü%", attributes={"chunk": "a\tb".replace("\t", " "), "traceparent": "00-1"},
            datacontenttype="image/png", type="frame", id="e 1", source="/cam",
        )  # fmt: skip
        assert (receipt.class_, receipt.origin, receipt.seq, receipt.id) == ("durable", "chicago", 1, "e 1")
        event = store.namespace("vision").arrivals[0].event
        assert (event.channel, event.subject, event.id, event.source, event.type) == (
            "vision/a b/ü",
            "clip 7/ü%",
            "e 1",
            "/cam",
            "frame",
        )
        assert dict(event.attributes) == {"chunk": "a b", "traceparent": "00-1"}
        assert event.datacontenttype == "image/png"

    @pytest.mark.parametrize(
        ("data", "body", "kind"),
        [
            (b"x", b"x", None), (bytearray(b"x"), b"x", None), ("ü", "ü".encode(), "text/plain; charset=utf-8"), ({"a": [1]}, b'{"a":[1]}', "application/json"),
            (None, b"", None), (0, b"0", "application/json"), ([], b"[]", "application/json"),
        ],
    )  # fmt: skip
    def test_data(self, data: Any, body: bytes, kind: str | None) -> None:
        assert encode_data(data) == (body, kind)

    def test_data_that_cannot_be_sent(self) -> None:
        with pytest.raises(BadRequest):
            encode_data({1, 2})  # type: ignore[arg-type]

    def test_a_repeat_has_the_same_id(self) -> None:
        client, requests = scripted(
            [
                problem(503, "store-unavailable"),
                httpx.ReadError("cut"),
                problem(503, "busy"),
                httpx.Response(201, json=RECEIPT),
            ]
        )
        client.publish("vision/a", b"x")
        ids = {(request.headers["ce-id"], request.headers["ce-source"]) for request in requests}
        assert len(requests) == 4
        assert len(ids) == 1

    def test_it_gives_up_in_the_end(self) -> None:
        client, _ = scripted([problem(503, "store-unavailable")] * 100, retry_s=0.1)
        with pytest.raises(Unavailable) as caught:
            client.publish("vision/a", b"x")
        assert caught.value.code == "store-unavailable"
        assert caught.value.hint == "do this"

    def test_errors_that_stay_are_not_repeated(self) -> None:
        client, requests = scripted([problem(413, "too-large")])
        with pytest.raises(TooLarge, match="what happened"):
            client.publish("vision/a", b"x")
        assert len(requests) == 1

    def test_names_are_checked_before_anything_is_sent(self) -> None:
        client, requests = scripted([])
        with pytest.raises(BadName):
            client.publish("vision/+", b"")
        with pytest.raises(BadName):
            next(client.subscribe("Vision/a"))
        with pytest.raises(BadRequest):
            client.get("nokey")
        with pytest.raises(BadRequest):
            client.publish("vision/a", b"x", dataref="ekv:vision/k")
        assert not requests

    def test_dataref(self, client: Client) -> None:
        client.put("vision/k", b"data")
        assert client.publish("vision/a", dataref="ekv:vision/k").class_ == "durable"
        assert client.publish("vision/a", dataref="ekv:vision/later").class_ == "waiting"


class TestValues:
    def test_round_trip(self, client: Client) -> None:
        receipt = client.put("vision/a b/ü%", {"x": 1})
        value = client.get("vision/a b/ü%")
        assert value is not None
        assert (value.json(), value.version, value.content_type) == ({"x": 1}, receipt.version, "application/json")
        info = client.head("vision/a b/ü%")
        assert info is not None
        assert (info.size, info.version) == (7, receipt.version)
        with pytest.raises(VersionMismatch):
            client.put("vision/a b/ü%", b"", if_absent=True)
        with pytest.raises(VersionMismatch):
            client.delete("vision/a b/ü%", if_version="other")
        assert client.delete("vision/a b/ü%", if_version=receipt.version)
        assert not client.delete("vision/a b/ü%")
        assert client.get("vision/a b/ü%") is None
        assert client.head("vision/a b/ü%") is None

    def test_listing_goes_over_pages(self, client: Client, vision: FakeNamespace) -> None:
        for n in range(250):
            vision.put(f"k/{n:03d}", b"")
        assert [info.key for info in client.list("vision/k/")] == [f"vision/k/{n:03d}" for n in range(250)]
        assert [info.key for info in client.list("vision/k/24")] == [f"vision/k/24{n}" for n in range(10)]

    def test_a_write_is_repeated_with_the_id_that_keeps_it_one(self) -> None:
        troubles = [problem(503, "store-unavailable"), httpx.ConnectError("no"), httpx.ReadTimeout("late")]
        writes: list[Callable[[Client], object]] = [
            lambda client: client.put("vision/k", b"", if_absent=True),
            lambda client: client.ekv.put("vision/k", b"", if_version="1"),
            lambda client: client.ekv.counter("vision/n").add(),
            lambda client: client.ekv.batch("vision").increment("n").commit(),
        ]
        for write in writes:
            client, requests = scripted([*troubles, httpx.Response(200, json=RECEIPT)])
            write(client)
            ids = [request.headers["idempotency-key"] for request in requests]
            assert len(ids) == 4
            assert len(set(ids)) == 1
            write_again, requests = scripted([httpx.Response(200, json=RECEIPT)])
            write(write_again)
            assert requests[0].headers["idempotency-key"] != ids[0]

    @pytest.mark.parametrize("code", ["behind", "stale", "home-unreachable"])
    def test_what_the_pop_has_waited_for_already_is_not_asked_again(self, code: str) -> None:
        client, requests = scripted([problem(503, code)])
        with pytest.raises(Unavailable) as refused:
            client.ekv.get("vision/k", max_staleness_s=1)
        assert refused.value.code == code
        assert len(requests) == 1

    def test_a_repeated_delete_that_finds_nothing_did_delete(self) -> None:
        client, _ = scripted([httpx.ReadError("cut"), problem(404, "not-found")])
        assert client.delete("vision/k")

    def test_the_token(self, api: Api) -> None:
        with served(api) as url, Client(url, "wrong") as client, pytest.raises(Unauthorized):
            client.pops()


class TestSubscribing:
    def test_events_with_their_data(self, client: Client, vision: FakeNamespace) -> None:
        big = bytes(range(256)) * 5000
        for data, kind in (
            (b"\xff", "image/jpeg"),
            (b'{"a": 1}', "application/json"),
            ("ü".encode(), "text/plain"),
            (big, None),
        ):
            client.publish("vision/a", data, datacontenttype=kind, subject="s", attributes={"chunk": "1"})
        events = client.subscribe("vision/#", from_="start")
        picture, document, text, large = (
            item for _, item in zip(range(4), events, strict=False) if isinstance(item, ReceivedEvent)
        )
        assert picture.data == b"\xff"
        assert document.json() == {"a": 1}
        assert text.text() == "ü"
        assert (large.is_remote, large.size_bytes, picture.is_remote, picture.size_bytes) == (True, len(big), False, 1)
        assert large.data == big
        assert (picture.channel, picture.subject, picture.datacontenttype, dict(picture.attributes)) == (
            "vision/a",
            "s",
            "image/jpeg",
            {"chunk": "1"},
        )
        assert (picture.origin, picture.epoch, picture.seq, picture.cursor) == ("chicago", 1, 1, picture.cursor)
        assert picture.cursor.partition(".")[0] == "chicago:1"
        assert large.cursor.endswith(";chicago.1.4")
        events.close()

    def test_it_resumes_and_yields_each_id_once(self) -> None:
        client, requests = scripted([
            httpx.Response(200, content=b"retry: 1\nid: la:4\n\n" + frame("la:5", id="a") + frame("la:6", id="b") + b"id: la:9\n: heartbeat\n\n"),
            problem(503, "store-unavailable"), httpx.ConnectError("down"),
            httpx.Response(200, content=frame("la:6", id="b") + frame("la:10", id="c") + frame("la:11", "gap", reason="retention")),
            problem(401, "unauthorized"),
        ])  # fmt: skip
        got = []
        with pytest.raises(Unauthorized):
            for item in client.subscribe("vision/a", from_="start"):
                got.append(item)
        assert [item.id for item in got if isinstance(item, ReceivedEvent)] == ["a", "b", "c"]
        assert [item.reason for item in got if isinstance(item, Gap)] == ["retention"]
        assert [request.headers.get("last-event-id") for request in requests] == [None, "la:9", "la:9", "la:9", "la:11"]
        assert requests[0].url.params["from"] == "start"
        assert "from" not in requests[1].url.params

    def test_a_first_cursor_is_enough_to_lose_nothing(self) -> None:
        client, requests = scripted([httpx.Response(200, content=b"id: la:4\n\n"), problem(401, "unauthorized")])
        with pytest.raises(Unauthorized):
            next(client.subscribe("vision/a"))
        assert requests[1].headers["last-event-id"] == "la:4"

    def test_it_gives_up_when_told(self) -> None:
        client, _ = scripted([httpx.ConnectError("down")] * 100)
        with pytest.raises(Unavailable):
            next(client.subscribe("vision/a", reconnect_s=0.05))

    def test_over_a_restart_of_the_server(self, api: Api, vision: FakeNamespace) -> None:
        got: list[str] = []
        done = threading.Event()

        def follow(url: str) -> None:
            with Client(url, TOKEN) as client:
                for item in client.subscribe("vision/a", from_="start"):
                    assert isinstance(item, ReceivedEvent)
                    got.append(item.id)
                    if item.id == "last":
                        break
            done.set()

        with served(api) as url:
            port = int(url.rpartition(":")[2])
            thread = threading.Thread(target=follow, args=(url,))
            thread.start()
            vision.release(Event("vision/a", "1", "s", "t", 0, data=b""))
        vision.release(Event("vision/a", "2", "s", "t", 0, data=b""))
        api.hub.stopping = False
        with served(api, port):
            vision.release(Event("vision/a", "last", "s", "t", 0, data=b""))
            assert done.wait(20)
        thread.join()
        assert got == ["1", "2", "last"]

    def test_the_token_goes_to_this_pop_only(self) -> None:
        client, requests = scripted([
            httpx.Response(200, content=frame("la:1", id="a", data=None).replace(b'"data": null', b'"dataref": "http://evil.test/v1/blobs/vision/sha256:00"')),
            httpx.Response(200, content=b"body"),
        ])  # fmt: skip
        item = next(client.subscribe("vision/a"))
        assert isinstance(item, ReceivedEvent)
        assert item.data == b"body"
        assert {request.url.host for request in requests} == {"pop.test"}


class Scene:
    """A PoP that has three events for a durable consumer and notes what is acknowledged."""

    def __init__(self, *, ack: int = 200, frames: bytes = b"") -> None:
        self.acked: list[str] = []
        self.asked: list[httpx.Request] = []
        self.refusal = ack
        self.frames = frames or b"".join(frame(f"la:{n}.0000000{n}", id=str(n)) for n in (1, 2, 3))
        self.client = Client("http://pop.test", TOKEN, transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            assert request.url.path == "/v1/consumers/vision/pager/ack"
            if self.refusal != 200:
                return problem(self.refusal, {404: "not-found", 503: "store-unavailable"}[self.refusal])
            self.acked.append(json.loads(request.content)["cursor"].partition(".")[0])
            return httpx.Response(200, json={})
        self.asked.append(request)
        return httpx.Response(200, content=self.frames) if len(self.asked) == 1 else problem(401, "unauthorized")


class TestDurable:
    def test_an_event_is_acknowledged_when_the_next_one_is_asked_for_or_at_the_end(
        self, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
    ) -> None:
        monkeypatch.setattr(subscription, "ACK_EVERY_S", 0.0)
        scene = Scene()
        with scene.client.subscribe("vision/a", durable="pager", from_="start") as items:
            next(items)
            assert scene.acked == []
            next(items)
            wait_until(lambda: scene.acked == ["la:1"], "the first is acknowledged")
        assert scene.acked == ["la:1", "la:2"]
        assert dict(scene.asked[0].url.params) == {"from": "start", "durable": "pager"}

    def test_one_that_failed_is_not_acknowledged(self) -> None:
        scene = Scene()
        with pytest.raises(ZeroDivisionError), scene.client.subscribe("vision/a", durable="pager") as items:
            for number, _ in enumerate(items):
                1 // (1 - number)
        assert scene.acked == ["la:1"]

    def test_one_that_was_merely_left_is_not_acknowledged(self, wait_until: Callable[..., Any]) -> None:
        scene = Scene()
        for number, _ in enumerate(scene.client.subscribe("vision/a", durable="pager")):
            if number == 1:
                break
        wait_until(lambda: not [one for one in threading.enumerate() if one.name == "acks-pager"], "its thread ends")
        assert scene.acked == ["la:1"]

    def test_the_end_of_the_client_waits_for_them(self) -> None:
        scene = Scene()
        with scene.client as client:
            for number, _ in enumerate(client.subscribe("vision/a", durable="pager")):
                if number == 2:
                    break
        assert scene.acked[-1] == "la:2"

    def test_acknowledgements_are_bundled(self, wait_until: Callable[..., Any]) -> None:
        many = b"".join(frame(f"la:{n}.00000000", id=str(n)) for n in range(1, 501))
        scene = Scene(frames=many)
        items = scene.client.subscribe("vision/a", durable="pager")
        for _ in range(400):
            next(items)
        wait_until(
            lambda: scene.acked and scene.acked[-1] == "la:399", "the last but one is acknowledged without another step"
        )
        items.close()
        assert scene.acked[-1] == "la:400"
        assert len(scene.acked) <= 4

    def test_heartbeats_move_it_and_a_new_vector_alone_does_not(self) -> None:
        beats = b"".join(
            f": heartbeat\nid: la:{n}.00000000;la.1.{seq}\n\n".encode() for n, seq in ((4, 1), (4, 2), (9, 3), (9, 4))
        )
        scene = Scene(frames=beats)
        with pytest.raises(Unauthorized):
            next(scene.client.subscribe("vision/a", durable="pager"))
        assert scene.acked[-1] == "la:9"
        assert scene.asked[1].headers["last-event-id"] == "la:9.00000000;la.1.4"

    def test_one_that_was_deleted_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scene = Scene(ack=404, frames=b"".join(frame(f"la:{n}.00000000", id=str(n)) for n in range(1, 10_000)))
        with pytest.raises(NotFound):
            for _ in scene.client.subscribe("vision/a", durable="pager"):
                time.sleep(0.001)

    def test_an_end_without_an_answer_takes_its_time_and_no_longer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subscription, "ACK_TIMEOUT_S", 0.3)
        scene = Scene(ack=503)
        items = scene.client.subscribe("vision/a", durable="pager")
        next(items)
        begin = time.monotonic()
        items.close()
        assert time.monotonic() - begin < 2

    def test_without_a_name_nothing_is_acknowledged(self) -> None:
        scene = Scene()
        with scene.client.subscribe("vision/a") as items:
            assert [next(items).cursor[:4] for _ in range(3)] == ["la:1", "la:2", "la:3"]
        assert scene.acked == []

    def test_a_block_begins_when_it_is_connected(self, client: Client, vision: FakeNamespace) -> None:
        with client.subscribe("vision/a") as plain, client.subscribe("vision/a", durable="pager") as durable:
            assert [one["name"] for one in client.consumers("vision")] == ["pager"]
            client.publish("vision/a", b"", id="in the block")
            assert [next(items).id for items in (plain, durable)] == ["in the block"] * 2  # type: ignore[union-attr]

    def test_it_goes_on_at_the_next_pop_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(subscription, "MOVE_AFTER_S", 0.1)
        monkeypatch.setattr(subscription, "ACK_EVERY_S", 0.0)
        here, there = FakeStore("chicago"), FakeStore("la")
        for name in (here, there):
            name.create_namespace("vision")

        def arrive(store: FakeStore, *seqs: int) -> None:
            for seq in seqs:
                store.namespace("vision").release(
                    Event("vision/a", str(seq), "s", "t", 0, data=b"%d" % seq), at=("la", 1, seq)
                )

        arrive(here, 1, 2, 3, 4)
        with served(make_api(tmp_path, there)) as other:
            with served(make_api(tmp_path, here)) as url:
                client = Client(url, TOKEN, others=[("http://127.0.0.1:9", TOKEN), (other, TOKEN)])
                items = client.subscribe("vision/a", durable="pager", from_="start")
                got = [next(items) for _ in range(4)]
                assert items.url == url
            arrive(there, 1, 2, 3, 4, 5, 6)
            got += [next(items) for _ in range(2)]
            assert items.url == other
            items.close()
            assert [item.id for item in got if isinstance(item, ReceivedEvent)] == ["1", "2", "3", "4", "5", "6"]
            with Client(other, TOKEN) as again:
                (consumer,) = again.consumers("vision")
                assert consumer["cursor"] == got[-1].cursor
                assert again.delete_consumer("vision", "pager")
                assert not again.delete_consumer("vision", "pager")
        client.close()
        assert any("goes on at" in record.message for record in caplog.records)


MANIFEST = """
namespace: vision
functions:
  detect: {image: vision/detect:1, subscribe: frames, publish: faces, place: {pops: [chicago]}}
"""


class TestInvoking:
    @pytest.fixture(autouse=True)
    def manifest(self, store: FakeStore, vision: FakeNamespace) -> None:
        document = resolve(parse(MANIFEST), {}, applied_ms=1)
        store.namespace("system").put("manifests/vision", json.dumps(document).encode())

    def outputs(self, vision: FakeNamespace, *data: bytes) -> None:
        events = [
            Event("vision/faces", f"o{n}", "/f", "face", 1_700_000_000_000, data=one, subject="ü", attributes={"chunk": "7"}).at("la", 2, 9, n, 0)
            for n, one in enumerate(data)
        ]  # fmt: skip
        vision.results[invocation_id("detect", "chicago", 1, 1, 0)] = Result("committed", "", events)

    def test_its_outputs(self, client: Client, vision: FakeNamespace) -> None:
        self.outputs(vision, b'{"n":1}')
        (face,) = client.invoke("vision/detect", b"picture", subject="s/ü", datacontenttype="image/png", timeout_s=5)
        assert (face.channel, face.id, face.type, face.subject) == ("vision/faces", "o0", "face", "ü")
        assert (dict(face.attributes), face.origin, face.epoch, face.seq) == ({"chunk": "7"}, "la", 2, 9)
        assert (face.json(), face.size_bytes, face.is_remote) == ({"n": 1}, 7, False)
        arrived = vision.arrivals[0].event
        assert (arrived.channel, arrived.data, arrived.subject, arrived.datacontenttype) == (
            "vision/_invoke/detect",
            b"picture",
            "s/ü",
            "image/png",
        )

    def test_none_and_several(self, client: Client, vision: FakeNamespace) -> None:
        self.outputs(vision)
        assert client.invoke("vision/detect") == []
        self.outputs(vision, b"\xff", b"two")
        vision.head_n = 0
        assert [one.data for one in client.invoke("vision/detect", b"x")] == [b"\xff", b"two"]

    def test_one_that_gives_up(self, client: Client, vision: FakeNamespace) -> None:
        id = invocation_id("detect", "chicago", 1, 1, 0)
        vision.results[id] = Result("dead", "handler-failed")
        with pytest.raises(InvocationDead) as caught:
            client.invoke("vision/detect", b"x")
        assert (caught.value.code, caught.value.details["reason"], caught.value.details["dead_letter"]) == (
            "invocation-dead",
            "handler-failed",
            id,
        )

    def test_one_that_takes_longer(self, client: Client, vision: FakeNamespace) -> None:
        with pytest.raises(InvocationPending) as caught:
            client.invoke("vision/detect", b"x", timeout_s=0.01)
        assert (caught.value.code, caught.value.details["invocation"]) == (
            "invocation-pending",
            invocation_id("detect", "chicago", 1, 1, 0),
        )

    def test_a_repeat_has_the_same_id(self) -> None:
        client, requests = scripted([problem(503, "store-unavailable"), httpx.ReadError("cut"), httpx.Response(204)])
        assert client.invoke("vision/detect", b"x", timeout_s=2) == []
        assert len({request.headers["ce-id"] for request in requests}) == 1
        assert requests[0].url.params["timeout"] == "2000ms"

    def test_too_much_at_once_says_when_to_come_again(self) -> None:
        answer = problem(429, "quota-exceeded")
        answer.headers["retry-after"] = "3"
        client, _ = scripted([answer])
        with pytest.raises(Throttled) as caught:
            client.invoke("vision/detect", b"x")
        assert caught.value.retry_after_s == 3

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(
        ("header", "low", "high"), [("7", 7, 7), (None, None, None), ("soon", None, None), ("-1", None, None), ("nan", None, None), ("a time of day", 50, 60)],
    )  # fmt: skip
    def test_what_a_refusal_says_about_time(
        self, status: int, header: str | None, low: float | None, high: float | None
    ) -> None:
        answer = problem(status, "queue-full" if status == 429 else "store-unavailable")
        if header is not None:
            later = formatdate(time.time() + 59, usegmt=True)
            answer.headers["retry-after"] = later if header == "a time of day" else header
        client, _ = scripted([answer], retry_s=0)
        with pytest.raises(EdgeflowError) as caught:
            client.publish("vision/a", b"x")
        wait_s = caught.value.retry_after_s
        if low is None or high is None:
            # A 429 always has one: a second, when nobody says more.
            assert wait_s == (1.0 if status == 429 else None)
        else:
            assert wait_s is not None and low <= wait_s <= high

    def test_the_pop_says_it(self, client: Client, vision: FakeNamespace) -> None:
        vision.stuck["de0000"] = QueueFull("full", retry_after_s=2.5)
        vision.letters = [DeadLetter("de0000", "detect", "r1", "handler-failed", "", 1, 3)]
        with pytest.raises(QueueFull) as caught:
            client.redrive_dead_letter("vision", "de0000")
        assert caught.value.retry_after_s == 3

    @pytest.mark.parametrize("function", ["detect", "vision/", "vision/a/b"])
    def test_names(self, function: str) -> None:
        client, requests = scripted([])
        with pytest.raises(BadRequest):
            client.invoke(function)
        assert not requests

    def test_dead_letters(self, client: Client, vision: FakeNamespace) -> None:
        vision.letters = [DeadLetter(f"de000{n}", "detect", "r1", "handler-failed", "", 1, 3) for n in range(2)]
        assert client.redrive_dead_letter("vision", "de0000") == "invocation"
        assert client.delete_dead_letter("vision", "de0001")
        assert not client.delete_dead_letter("vision", "de0001")
        with pytest.raises(NotFound):
            client.redrive_dead_letter("vision", "de0001")


class TestSeen:
    def event(self, seq: int, id: str, channel: str = "ns/a", origin: str = "la") -> ReceivedEvent:
        return ReceivedEvent(channel, id, "s", "t", 0, None, None, {}, origin, 1, seq, "", lambda: b"")

    def test_a_lane_is_remembered_for_longer_than_its_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subscription, "SEEN_EVENTS", 3)
        seen = subscription.Seen()
        assert all(seen.is_new(self.event(seq, f"e{seq}")) for seq in range(1, 10))
        assert not any(seen.is_new(self.event(seq, f"e{seq}")) for seq in range(1, 10))
        assert seen.is_new(self.event(2, "b2", channel="ns/b"))
        assert seen.is_new(self.event(2, "c2", origin="ny"))

    def test_events_of_one_entry_are_told_apart(self) -> None:
        seen = subscription.Seen()
        assert [seen.is_new(self.event(5, id)) for id in ("x", "y", "x", "z")] == [True, True, False, True]

    def test_the_same_id_at_another_place_is_the_same_event(self) -> None:
        seen = subscription.Seen()
        assert [seen.is_new(self.event(5, "x")), seen.is_new(self.event(6, "x"))] == [True, False]


class TestFrames:
    def test_any_split_gives_the_same(self) -> None:
        text = b'retry: 5\n\n: note\n\nid: a:1\nevent: message\ndata: {"x":\ndata: 1}\n\nid: a:2\r\n\r\ndata:z\n\ndata: cut'
        whole = list(parse_sse(iter([text])))
        assert whole == [("a:1", "message", '{"x":\n1}'), ("a:2", "message", ""), (None, "message", "z")]
        for size in (1, 2, 3, 7):
            assert list(parse_sse(text[i : i + size] for i in range(0, len(text), size))) == whole


class TestHome:
    def test_finds_a_pop(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "token").write_text("secret\n")
        pops = {
            name: {"api": {"url": f"http://{name}.test", "token_file": str(tmp_path / "token")}}
            for name in ("chicago", "la")
        }
        (tmp_path / "cluster.json").write_text(json.dumps({"pops": pops}))
        assert Client.from_home("la", home=tmp_path).url == "http://la.test"
        assert [pop.url for pop in Client.from_home("la", home=tmp_path)._pops] == [
            "http://la.test",
            "http://chicago.test",
        ]
        monkeypatch.setenv("EDGEFLOW_HOME", str(tmp_path))
        assert Client.from_home().url == "http://chicago.test"
        with pytest.raises(NotFound, match="chicago, la"):
            Client.from_home("ny")

    def test_containers_when_no_processes_run(self, tmp_path: Path) -> None:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "token").write_text("secret")
        pops = {"la": {"api": {"url": "http://container.test", "token_file": "docker/token"}}}
        (tmp_path / "docker" / "cluster.json").write_text(json.dumps({"state": "ready", "pops": pops}))
        assert Client.from_home(home=tmp_path).url == "http://container.test"
        (tmp_path / "cluster.json").write_text(json.dumps({"state": "stopped", "pops": {"ny": {}}}))
        assert Client.from_home(home=tmp_path).url == "http://container.test"

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound) as caught:
            Client.from_home(home=tmp_path)
        assert "edgeflow up" in caught.value.hint


class TestApplication:
    def test_manifests(self, client: Client) -> None:
        text = "namespace: vision\nfunctions:\n  a: {image: x/y:1, subscribe: frames, publish: faces, place: {pops: [la]}}\n"
        document = resolve(parse(text), {}, applied_ms=1)
        assert client.apply_manifest(document)["status"] == "created"
        assert client.apply_manifest(document)["status"] == "unchanged"
        assert client.manifest("vision") == document
        assert [item["function"] for item in client.functions("vision")] == ["a"]
        assert client.function("vision", "a")["at"] == "la"
        assert client.delete_manifest("vision")
        assert not client.delete_manifest("vision")
        assert client.manifest("vision") is None

    def test_questions(self, client: Client, vision: FakeNamespace) -> None:
        assert [item["id"] for item in client.pops()] == ["chicago", "la", "ny"]
        assert [item["namespace"] for item in client.namespaces()] == ["system", "vision"]
        assert list(client.dead_letters("vision")) == []
        assert client.dead_letter("vision", "x") is None
        assert client.joins() == []
        assert client.channels() == []
