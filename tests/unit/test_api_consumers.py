"""Durable consumers over HTTP: where they begin, what moves them, and what is refused."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served

from edgeflow.api import streams
from edgeflow.api.context import Api
from edgeflow.core.events import Event
from edgeflow.sdk.client import parse_sse

Wait = Callable[..., Any]


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
def http(api: Api) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        served(api) as url,
        httpx.Client(base_url=url, headers=headers, trust_env=False, verify=False, timeout=10) as client,
    ):
        yield client


def publish(namespace: FakeNamespace, *ids: str, channel: str = "vision/a") -> None:
    for id in ids:
        namespace.release(Event(channel, id, "s", "t", 0, data=b""))


def follow(
    http: httpx.Client, count: int, path: str = "vision/a?durable=pager", **headers: str
) -> tuple[list[str], list[str]]:
    """The ids and the cursors of the next `count` events."""
    ids: list[str] = []
    cursors: list[str] = []
    with http.stream("GET", f"/v1/channels/{path}", headers=headers) as response:
        assert response.status_code == 200, response.read()
        for cursor, _, text in parse_sse(response.iter_raw()):
            if len(ids) == count:
                break
            if text:
                ids.append(json.loads(text)["id"])
                cursors.append(cursor or "")
                if len(ids) == count:
                    break
    return ids, cursors


def ack(http: httpx.Client, cursor: str, name: str = "pager") -> httpx.Response:
    return http.post(f"/v1/consumers/vision/{name}/ack", json={"cursor": cursor})


def test_it_begins_at_once_and_comes_back_where_it_acknowledged(http: httpx.Client, vision: FakeNamespace) -> None:
    publish(vision, "before")
    follow(http, 0)
    publish(vision, "1", "2", "3")
    ids, cursors = follow(http, 2)
    assert ids == ["1", "2"]
    assert follow(http, 2)[0] == ["1", "2"]
    view = ack(http, cursors[1]).json()
    assert view["cursor"] == cursors[1]
    assert view["behind"] == 1
    assert follow(http, 1)[0] == ["3"]
    assert ack(http, cursors[0]).status_code == 200
    assert follow(http, 2)[0] == ["2", "3"]


def test_a_new_one_can_begin_at_the_start_and_is_there_in_a_namespace_that_was_not(
    http: httpx.Client, store: FakeStore
) -> None:
    follow(http, 0, "later/a?durable=pager&from=start")
    assert store.has_namespace("later")
    publish(store.namespace("later"), "1", "2", channel="later/a")
    assert follow(http, 2, "later/a?durable=pager")[0] == ["1", "2"]
    assert follow(http, 2, "later/a?durable=another&from=start")[0] == ["1", "2"]


def test_last_event_id_is_newer_than_what_is_stored(http: httpx.Client, vision: FakeNamespace) -> None:
    follow(http, 0)
    publish(vision, "1", "2", "3")
    _, cursors = follow(http, 2)
    assert follow(http, 1, **{"Last-Event-ID": cursors[1]})[0] == ["3"]
    assert follow(http, 1)[0] == ["1"]


def test_one_that_was_registered_elsewhere_goes_on_with_its_last_event_id(
    http: httpx.Client, vision: FakeNamespace
) -> None:
    publish(vision, "1", "2", "3")
    cursor = "la:40.9f3ca1b2;chicago.1.2"
    assert follow(http, 1, **{"Last-Event-ID": cursor})[0] == ["3"]
    (view,) = http.get("/v1/consumers/vision").json()["items"]
    assert (view["name"], view["filter"], view["cursor"], view["behind"]) == ("pager", "vision/a", cursor, None)


def test_list_and_delete(http: httpx.Client, vision: FakeNamespace) -> None:
    for number in range(3):
        follow(http, 0, f"vision/%23?durable=c{number}")
    items = http.get("/v1/consumers/vision").json()["items"]
    assert [(item["name"], item["filter"]) for item in items] == [(f"c{number}", "vision/#") for number in range(3)]
    assert http.delete("/v1/consumers/vision/c1").status_code == 204
    assert http.delete("/v1/consumers/vision/c1").json()["code"] == "not-found"
    assert [item["name"] for item in http.get("/v1/consumers/vision").json()["items"]] == ["c0", "c2"]
    follow(http, 0, "vision/b?durable=c0")
    assert [item["filter"] for item in http.get("/v1/consumers/vision").json()["items"]] == ["vision/b", "vision/#"]


def test_an_acknowledgement_may_be_now_or_start(http: httpx.Client, vision: FakeNamespace) -> None:
    follow(http, 0)
    publish(vision, "1", "2")
    assert ack(http, "now").json()["behind"] == 0
    publish(vision, "3")
    assert follow(http, 1)[0] == ["3"]
    assert ack(http, "start").json()["cursor"] == "chicago:0"
    assert follow(http, 3)[0] == ["1", "2", "3"]


def test_refusals(http: httpx.Client, vision: FakeNamespace) -> None:
    follow(http, 0)
    assert http.get("/v1/channels/vision/a?durable=No!").json()["code"] == "bad-name"
    assert http.get("/v1/channels/system/a?durable=pager").json()["code"] == "reserved"
    assert ack(http, "soon").json()["code"] == "bad-parameter"
    assert ack(http, "la:1", name="nobody").json()["code"] == "not-found"
    assert http.post("/v1/consumers/vision/pager/ack", json={}).status_code == 422
    assert http.get("/v1/consumers/nowhere").json()["code"] == "not-found"


def test_its_stream_ends_when_its_store_is_away(
    http: httpx.Client, store: FakeStore, vision: FakeNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its client goes on at another PoP; a stream of nobody's waits."""
    monkeypatch.setitem(streams.ChannelStream.__init__.__kwdefaults__, "heartbeat_s", 0.1)
    with (
        http.stream("GET", "/v1/channels/vision/a?durable=pager") as durable,
        http.stream("GET", "/v1/channels/vision/a") as plain,
    ):
        chunks, others = durable.iter_raw(), plain.iter_raw()
        next(chunks), next(others)
        store.is_away = vision.is_away = True
        begin = time.monotonic()
        for _ in chunks:
            assert time.monotonic() - begin < 5
        for _ in range(3):
            assert b"heartbeat" in next(others)
