"""Event streams: order, resumption, gaps, slow subscribers, and a store that goes away."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served

from edgeflow.api import streams, tails
from edgeflow.api.__main__ import LEAVE_S, Server, listen, serve_options
from edgeflow.api.context import Api
from edgeflow.api.problems import BadParameter
from edgeflow.api.streams import ChannelStream, parse_start
from edgeflow.api.tails import Item, Place, Subscription
from edgeflow.core.cursors import Cursor
from edgeflow.core.events import BlobRef, Event
from edgeflow.errors import CorruptEntry
from edgeflow.sdk.client import parse_sse
from edgeflow.store.records import Arrival, Released

Frame = tuple[str | None, str, dict[str, Any]]


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.create_namespace("vision")
    return store


@pytest.fixture
def vision(store: FakeStore) -> FakeNamespace:
    return store.namespace("vision")


@pytest.fixture
def api(store: FakeStore, tmp_path: Path) -> Api:
    return make_api(tmp_path, store)


def publish(namespace: FakeNamespace, channel: str, data: bytes, id: str) -> None:
    namespace.ingest([Arrival(Event(channel, id, "s", "t", 0, data=data))])


def stream_of(api: Api, pattern: str, after: int, **options: Any) -> ChannelStream:
    name = pattern.partition("/")[0]
    cursor = Cursor(None, after)
    return ChannelStream(
        api.hub,
        "chicago",
        pattern,
        api.hub.begin(name, cursor, pattern),
        lambda: api.store.has_namespace(name),
        **options,
    )


async def frames_of(stream: ChannelStream) -> AsyncIterator[Frame]:
    async for chunk in stream.frames():
        for frame_id, kind, text in parse_sse(iter([chunk])):
            place = frame_id.partition(";")[0].partition(".")[0] if frame_id else None
            yield place, kind, json.loads(text) if text else {}


async def take(frames: AsyncIterator[Frame], number: int) -> list[Frame]:
    """The next `number` frames with data."""
    found: list[Frame] = []
    async with asyncio.timeout(10):
        async for frame in frames:
            if frame[2]:
                found.append(frame)
                if len(found) == number:
                    break
    return found


class TestStart:
    def test_forms(self) -> None:
        assert parse_start(None, None) is None
        assert parse_start("now", None) is None
        assert parse_start("start", None) == Cursor(None, 0)
        assert parse_start("17", None) == Cursor(None, 17)
        assert parse_start("la:17", None) == Cursor("la", 17)
        assert parse_start("start", "la:9") == Cursor("la", 9)
        assert parse_start("start", "") == Cursor(None, 0)
        text = "la:123.9f3ca1b2;chicago.1.55,la.2.99"
        assert parse_start(None, text) == Cursor("la", 123, "9f3ca1b2", {("chicago", 1): 55, ("la", 2): 99})

    @pytest.mark.parametrize("text", ["soon", "-1", "1.5", "la:", ":", ":4", "la:x", "9" * 30, "٣", "la:1;x", "la:1;x.1.-2", "la:1." + "z" * 8, "1;" + "a.1.1," * 500])  # fmt: skip
    def test_rubbish(self, text: str) -> None:
        with pytest.raises(BadParameter):
            parse_start(text, None)


class TestSubscription:
    def test_overflow_closes_and_keeps_what_was_queued(self) -> None:
        async def run() -> None:
            one = Subscription("vision/#")
            one.join(Place(0))
            last = tails.QUEUE_ITEMS + 50
            one.push([Item(Place(n), b"x") for n in range(1, last)], Place(last))
            assert one.overflowed
            assert one.closed
            items = await one.take(0)
            assert [item.n for item in items] == list(range(1, tails.QUEUE_ITEMS + 1))
            one.push([Item(Place(5000), b"x")], Place(5000))
            assert await one.take(0) == []

        asyncio.run(run())

    def test_bytes_are_bounded_but_one_large_frame_is_taken(self) -> None:
        async def run() -> None:
            one = Subscription("vision/#")
            one.push([Item(Place(1), b"x" * (tails.QUEUE_BYTES + 1))], Place(1))
            assert not one.overflowed
            one.push([Item(Place(2), b"x")], Place(2))
            assert one.overflowed

        asyncio.run(run())


class TestFollowing:
    def test_history_then_live_in_order_without_holes(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            for n in range(250):
                publish(vision, "vision/frames", str(n).encode(), f"e{n}")
            frames = frames_of(stream_of(api, "vision/frames", 0))
            first = await take(frames, 100)
            writer = threading.Thread(
                target=lambda: [publish(vision, "vision/frames", b"", f"e{n}") for n in range(250, 600)]
            )
            writer.start()
            rest = await take(frames, 500)
            writer.join()
            assert [frame[2]["id"] for frame in first + rest] == [f"e{n}" for n in range(600)]
            assert [frame[0] for frame in first + rest] == [f"chicago:{n + 1}" for n in range(600)]

        asyncio.run(run())

    def test_many_subscribers_share_one_thread(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            streams_ = [
                frames_of(stream_of(api, pattern, 0)) for pattern in ("vision/a", "vision/b", "vision/#", "vision/+")
            ]
            publish(vision, "vision/a", b"", "1")
            tasks = [
                asyncio.create_task(take(frames, number)) for frames, number in zip(streams_, (2, 1, 3, 3), strict=True)
            ]
            async with asyncio.timeout(10):
                while api.hub.subscribers() < 4:  # noqa: ASYNC110 - it is the threads that are waited for
                    await asyncio.sleep(0.01)
            mine = [one for one in threading.enumerate() if getattr(one, "_hub", None) is api.hub]
            assert [thread.name for thread in mine] == ["tail-vision"]
            publish(vision, "vision/b", b"", "2")
            publish(vision, "vision/a", b"", "3")
            results = await asyncio.gather(*tasks)
            assert [[frame[2]["id"] for frame in result] for result in results] == [
                ["1", "3"],
                ["2"],
                ["1", "2", "3"],
                ["1", "2", "3"],
            ]

        asyncio.run(run())

    def test_the_thread_ends_with_its_last_subscriber(
        self, api: Api, vision: FakeNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tails, "WAIT_S", 0.05)

        async def run() -> None:
            publish(vision, "vision/a", b"", "1")
            stream = stream_of(api, "vision/a", 0).frames()
            async with asyncio.timeout(10):
                async for frame in stream:
                    if b"message" in frame:
                        break
                publish(vision, "vision/a", b"", "2")
                await anext(stream)
                assert api.hub.subscribers() == 1
                await stream.aclose()
                while any(thread.name == "tail-vision" for thread in threading.enumerate()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert api.hub.subscribers() == 0

        asyncio.run(run())

    def test_a_namespace_that_comes_later(self, api: Api, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "ABSENT_POLL_S", 0.02)

        async def run() -> None:
            frames = frames_of(stream_of(api, "later/a", 0))
            task = asyncio.create_task(take(frames, 1))
            await asyncio.sleep(0.1)
            assert not store.has_namespace("later")
            store.create_namespace("later")
            publish(store.namespace("later"), "later/a", b"", "1")
            assert (await task)[0][2]["id"] == "1"

        asyncio.run(run())

    def test_heartbeats_carry_the_cursor_over_what_does_not_match(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            for n in range(5):
                publish(vision, "vision/other", b"", f"e{n}")
            ids = []
            async with asyncio.timeout(10):
                async for frame_id, _, document in frames_of(stream_of(api, "vision/quiet", 0, heartbeat_s=0.05)):
                    assert not document
                    ids.append(frame_id)
                    if frame_id == "chicago:6":
                        break
                    if frame_id == "chicago:5" and vision.head_n == 5:
                        publish(vision, "vision/other", b"", "e5")
            assert ids[0] == "chicago:0"

        asyncio.run(run())


class TestGaps:
    def test_a_cursor_beyond_retention_begins_with_a_gap(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            for n in range(1, 11):
                publish(vision, "vision/a", b"", f"e{n}")
            vision.forget_released(7)
            gap, first, *_ = await take(frames_of(stream_of(api, "vision/a", 3)), 4)
            assert gap == ("chicago:7", "gap", {"reason": "retention", "from": 4, "to": 7})
            assert first[2]["id"] == "e8"

        asyncio.run(run())

    def test_also_when_nothing_is_left(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            for n in range(1, 11):
                publish(vision, "vision/a", b"", f"e{n}")
            vision.forget_released(10)
            frames = frames_of(stream_of(api, "vision/a", 3))
            (gap,) = await take(frames, 1)
            assert gap == ("chicago:10", "gap", {"reason": "retention", "from": 4, "to": 10})
            publish(vision, "vision/a", b"", "e11")
            assert (await take(frames, 1))[0][2]["id"] == "e11"

        asyncio.run(run())

    def test_a_cursor_ahead_of_the_stream(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            publish(vision, "vision/a", b"", "e1")
            frames = frames_of(stream_of(api, "vision/a", 50))
            (gap,) = await take(frames, 1)
            assert gap == ("chicago:1", "gap", {"reason": "stream-went-back", "from": 2, "to": 50})
            publish(vision, "vision/a", b"", "e2")
            assert (await take(frames, 1))[0][2]["id"] == "e2"

        asyncio.run(run())

    def test_the_stores_own_gaps_go_to_their_channel(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            vision.release(
                None, {"channel": "vision/b", "origin": "la", "epoch": 1, "from": 3, "to": 5, "reason": "gate-timeout"}
            )
            vision.release(
                None, {"channel": "vision/a", "origin": "la", "epoch": 1, "from": 3, "to": 5, "reason": "gate-timeout"}
            )
            ((cursor, kind, document),) = await take(frames_of(stream_of(api, "vision/a", 0)), 1)
            assert (cursor, kind) == ("chicago:2", "gap")
            assert document["channel"] == "vision/a"
            assert document["origin"] == "la"

        asyncio.run(run())

    def test_an_event_whose_data_is_not_here_is_never_sent(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            missing = Event("vision/a", "e1", "s", "t", 0, ref=BlobRef("sha256:" + "0" * 64, 10))
            vision.release(missing)
            vision.release(replace(missing, id="e2", ref=BlobRef("sha256:" + "0" * 64, 2_000_000)))
            publish(vision, "vision/a", b"ok", "e3")
            small, large, fine = await take(frames_of(stream_of(api, "vision/a", 0)), 3)
            assert [(frame[1], frame[2]["reason"], frame[2]["id"]) for frame in (small, large)] == [
                ("gap", "data-unreadable", "e1"), ("gap", "data-unreadable", "e2"),
            ]  # fmt: skip
            assert fine[2]["id"] == "e3"

        asyncio.run(run())

    def test_a_damaged_entry_does_not_stop_the_stream(
        self, api: Api, vision: FakeNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = vision.read_release

        def damaged(after: int, count: int = 100) -> list[Released]:
            found = read(after, count)
            if any(entry.n == 2 for entry in found):
                raise CorruptEntry()
            return found

        monkeypatch.setattr(vision, "read_release", damaged)

        async def run() -> None:
            for n in range(1, 4):
                publish(vision, "vision/a", b"", f"e{n}")
            first, gap, last = await take(frames_of(stream_of(api, "vision/a", 0)), 3)
            assert (first[2]["id"], gap[2]["reason"], last[2]["id"]) == ("e1", "damaged", "e3")

        asyncio.run(run())


class TestElsewhere:
    """Cursors of other PoPs, and of a store that is no more."""

    ELSEWHERE = "la:7.9f3ca1b2;chicago.1.1,la.1.4"

    def arrived(self, vision: FakeNamespace) -> None:
        """The events of two PoPs, in this one's order."""
        for origin, seq in (("la", 3), ("la", 5), ("chicago", 1), ("chicago", 2), ("la", 4), ("ny", 1)):
            vision.release(Event("vision/a", f"{origin}{seq}", "s", "t", 0, data=b""), at=(origin, 1, seq))

    def ids(self, frames: list[Frame]) -> list[str]:
        return [frame[2]["id"] for frame in frames]

    def begun(self, api: Api, text: str) -> ChannelStream:
        cursor = parse_start(None, text)
        return ChannelStream(
            api.hub, "chicago", "vision/#", api.hub.begin("vision", cursor, "vision/#"), lambda: True, heartbeat_s=0.05
        )

    def test_what_the_vector_covers_is_left_out_and_the_rest_comes(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            self.arrived(vision)
            frames = frames_of(self.begun(api, self.ELSEWHERE))
            assert self.ids(await take(frames, 3)) == ["la5", "chicago2", "ny1"]
            vision.release(Event("vision/a", "old", "s", "t", 0, data=b""), at=("la", 1, 2))
            publish(vision, "vision/a", b"", "new")
            assert self.ids(await take(frames, 1)) == ["new"]

        asyncio.run(run())

    def test_ids_go_on_from_both(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            self.arrived(vision)
            cursors = []
            async with asyncio.timeout(10):
                async for chunk in self.begun(api, "la:7.9f3ca1b2;la.1.9,sf.3.8").frames():
                    cursors += [frame_id for frame_id, _, _ in parse_sse(iter([chunk])) if frame_id]
                    if len(cursors) > 4:
                        break
            assert cursors[0] == "chicago:0;la.1.9,sf.3.8"
            last = parse_start(None, cursors[-1])
            assert last is not None
            assert (last.pop, last.n) == ("chicago", 6)
            assert last.vector == {("la", 1): 9, ("sf", 3): 8, ("chicago", 1): 2, ("ny", 1): 1}

        asyncio.run(run())

    def test_a_mark_that_does_not_fit_is_a_stream_that_is_no_more(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            self.arrived(vision)
            fits = vision.scan_release(2, 1)[0].mark
            assert self.ids(await take(frames_of(self.begun(api, f"chicago:3.{fits};la.1.5")), 2)) == [
                "chicago2",
                "ny1",
            ]
            other = frames_of(self.begun(api, "chicago:3.00000000;la.1.5"))
            assert self.ids(await take(other, 3)) == ["chicago1", "chicago2", "ny1"]
            ahead = frames_of(self.begun(api, f"chicago:300.{fits};la.1.5"))
            assert self.ids(await take(ahead, 3)) == ["chicago1", "chicago2", "ny1"]

        asyncio.run(run())

    def test_what_retention_took_is_told_by_channel_and_only_if_it_matters(
        self, api: Api, vision: FakeNamespace
    ) -> None:
        async def run() -> None:
            for seq, channel in enumerate(("a", "b", "a", "b", "a", "a"), 1):
                vision.release(Event(f"vision/{channel}", f"la{seq}", "s", "t", 0, data=b""), at=("la", 1, seq))
            vision.forget_released(4)
            for text, told in (
                ("ny:9;la.1.4", []), ("ny:9;la.1.3", [("vision/b", 4, 4)]), ("ny:9;la.1.2", [("vision/a", 3, 3), ("vision/b", 3, 4)]),
                ("ny:9", [("vision/a", 1, 3), ("vision/b", 1, 4)]), ("chicago:0", [("vision/a", 1, 3), ("vision/b", 1, 4)]),
            ):  # fmt: skip
                found = await take(frames_of(self.begun(api, text)), len(told) + 2)
                gaps = [frame for frame in found if frame[1] == "gap"]
                assert [(gap[2]["channel"], gap[2]["from"], gap[2]["to"]) for gap in gaps] == told
                assert all(gap[0] is None and gap[2]["reason"] == "retention" for gap in gaps)
                assert self.ids(found[len(told) :]) == ["la5", "la6"]

        asyncio.run(run())

    def test_many_channels_are_told_log_by_log(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            for seq in range(1, tails.MAX_GAPS + 12):
                vision.release(Event(f"vision/{seq}", f"la{seq}", "s", "t", 0, data=b""), at=("la", 1, seq))
            vision.forget_released(tails.MAX_GAPS + 10)
            (gap, event) = await take(frames_of(self.begun(api, "ny:9;la.1.4")), 2)
            assert gap[2] == {"reason": "retention", "origin": "la", "epoch": 1, "from": 5, "to": tails.MAX_GAPS + 10}
            assert event[2]["id"] == f"la{tails.MAX_GAPS + 11}"

        asyncio.run(run())

    def test_a_store_that_comes_back_as_another_one_ends_the_stream(
        self, api: Api, store: FakeStore, vision: FakeNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tails, "WAIT_S", 0.05)

        async def run() -> None:
            self.arrived(vision)
            frames = frames_of(self.begun(api, "start"))
            await take(frames, 6)
            waiting = asyncio.create_task(take(frames, 1))
            async with asyncio.timeout(10):
                while not api.hub.subscribers():  # noqa: ASYNC110 - it is the thread that is waited for
                    await asyncio.sleep(0.01)
            vision.released.clear()
            vision.head_n = 0
            store.outages += 1
            for _ in range(9):
                publish(vision, "vision/a", b"", "after")
            assert await waiting == []

        asyncio.run(run())

    def test_catching_up_knows_how_far_it_is(self, api: Api, vision: FakeNamespace) -> None:
        """Also in the middle of a long history, a cursor says more than where the consumer began."""

        async def run() -> None:
            for seq in range(1, 3001):
                vision.release(Event("vision/a", f"la{seq}", "s", "t", 0, data=b""), at=("la", 1, seq))
            seen = []
            async with asyncio.timeout(20):
                async for chunk in self.begun(api, "start").frames():
                    seen += [frame_id for frame_id, _, text in parse_sse(iter([chunk])) if frame_id and text]
                    if len(seen) == 2500:
                        break
            cursor = parse_start(None, seen[-1])
            assert cursor is not None
            assert 1000 <= cursor.vector["la", 1] <= 2500

        asyncio.run(run())


class TestForms:
    def test_bodies(self, api: Api, vision: FakeNamespace) -> None:
        async def run() -> None:
            big = bytes(1024 * 1024 + 1)
            for kind, data in (
                ("image/png", b"\x89"),
                ("application/json", b'{"a":1}'),
                ("text/plain", b"hi"),
                ("application/json", b"{"),
                (None, big),
            ):
                vision.ingest([Arrival(Event("vision/a", "x", "s", "t", 0, data=data, datacontenttype=kind))])
            picture, document, text, broken, large = [
                frame[2] for frame in await take(frames_of(stream_of(api, "vision/a", 0)), 5)
            ]
            assert picture["data_base64"] == "iQ=="
            assert document["data"] == {"a": 1}
            assert text["data"] == "hi"
            assert broken["data_base64"] == "ew=="
            assert large["dataref"].startswith("http://pop.test:8101/v1/blobs/vision/sha256:")
            assert large["size"] == len(big)
            assert "data" not in large
            assert "data_base64" not in large

        asyncio.run(run())


class TestOverHttp:
    @pytest.fixture
    def url(self, api: Api) -> Iterator[str]:
        with served(api) as url:
            yield url

    @pytest.fixture
    def http(self, url: str) -> Iterator[httpx.Client]:
        with httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=10
        ) as client:
            yield client

    def test_now_is_fixed_when_the_headers_are_there(self, http: httpx.Client, vision: FakeNamespace) -> None:
        publish(vision, "vision/a", b"", "before")
        with http.stream("GET", "/v1/channels/vision/a") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            publish(vision, "vision/a", b"", "after")
            assert json.loads(next(text for _, _, text in parse_sse(response.iter_raw()) if text))["id"] == "after"

    def test_resume_and_refusals(self, http: httpx.Client, vision: FakeNamespace) -> None:
        for n in range(1, 4):
            publish(vision, "vision/a", b"", f"e{n}")
        with http.stream("GET", "/v1/channels/vision/%23", headers={"Last-Event-ID": "chicago:2"}) as response:
            assert json.loads(next(text for _, _, text in parse_sse(response.iter_raw()) if text))["id"] == "e3"
        assert http.get("/v1/channels/vision/a?from=soon").json()["code"] == "bad-parameter"
        assert http.get("/v1/channels/vision/a/%23/b").json()["code"] == "bad-name"

    def test_a_client_that_leaves_is_noticed(
        self,
        http: httpx.Client,
        api: Api,
        vision: FakeNamespace,
        wait_until: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tails, "WAIT_S", 0.05)
        with http.stream("GET", "/v1/channels/vision/a") as response:
            chunks = response.iter_raw()
            next(chunks)
            wait_until(lambda: api.hub.subscribers() == 1, "subscribed")
        wait_until(lambda: api.hub.subscribers() == 0, "unsubscribed", deadline_s=5)

    def test_a_client_that_does_not_read_is_cut_off_and_bounded(
        self, url: str, api: Api, vision: FakeNamespace, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tails, "WAIT_S", 0.05)
        monkeypatch.setattr(tails, "QUEUE_ITEMS", 20)
        monkeypatch.setattr(streams.EventStream.__init__, "__defaults__", (0.3,))
        import socket

        port = int(url.rpartition(":")[2])
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", port))
            lazy.sendall(
                f"GET /v1/channels/vision/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            wait_until(lambda: api.hub.subscribers() == 1, "subscribed")
            end = time.monotonic() + 10
            n = 0
            while api.hub.subscribers() and time.monotonic() < end:
                n += 1
                publish(vision, "vision/a", bytes(200_000), f"e{n}")
                time.sleep(0.005)
            wait_until(lambda: api.hub.subscribers() == 0, "cut off", deadline_s=5)

    def test_an_away_store_pauses_the_stream(
        self, http: httpx.Client, vision: FakeNamespace, api: Api, wait_until: Callable[..., Any]
    ) -> None:
        publish(vision, "vision/a", b"", "e1")
        with http.stream("GET", "/v1/channels/vision/a?from=start") as response:
            frames = (json.loads(text) for _, _, text in parse_sse(response.iter_raw()) if text)
            assert next(frames)["id"] == "e1"
            wait_until(lambda: api.hub.subscribers() == 1, "live")
            vision.is_away = True
            with vision._changed:
                vision._changed.notify_all()
            time.sleep(0.2)
            vision.is_away = False
            publish(vision, "vision/a", b"", "e2")
            assert next(frames)["id"] == "e2"

    def test_stopping_ends_a_connection_that_was_just_being_accepted(self, api: Api) -> None:
        """What is accepted in the very moment of leaving is not among the connections that uvicorn tells to end."""
        ours, theirs = socket.socketpair()
        accepting: list[asyncio.Task[Any]] = []

        async def run() -> float:
            listener = listen("127.0.0.1", 0)
            config = serve_options(api)
            server = Server(config, api)
            loop = asyncio.get_running_loop()

            def accept() -> asyncio.Protocol:
                protocol: asyncio.Protocol = config.http_protocol_class(
                    config=config, server_state=server.server_state, app_state={}
                )  # type: ignore[call-arg]
                return protocol

            stop = api.hub.stop

            def stop_while_one_comes() -> None:
                stop()
                accepting.append(loop.create_task(loop.connect_accepted_socket(accept, theirs)))

            api.hub.stop = stop_while_one_comes  # type: ignore[method-assign]
            serving = loop.create_task(server.serve([listener]))
            while not server.started:  # noqa: ASYNC110 - uvicorn offers no event to wait for
                await asyncio.sleep(0.01)
            began_s = time.monotonic()
            server.should_exit = True
            await serving
            return time.monotonic() - began_s

        assert asyncio.run(run()) < LEAVE_S - 1
        assert accepting[0].done()
        ours.settimeout(5)
        assert ours.recv(1) == b""
        ours.close()

    def test_stopping_ends_streams_at_once(
        self, api: Api, vision: FakeNamespace, wait_until: Callable[..., Any]
    ) -> None:
        ended = threading.Event()

        def follow(url: str) -> None:
            with httpx.stream(
                "GET", f"{url}/v1/channels/vision/a", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
            ) as response:
                for _ in response.iter_raw():
                    pass
            ended.set()

        with served(api) as url:
            thread = threading.Thread(target=follow, args=(url,))
            thread.start()
            wait_until(lambda: api.hub.subscribers() == 1, "subscribed")
            begin = time.monotonic()
        assert time.monotonic() - begin < 3
        assert ended.wait(3)
        thread.join(3)
