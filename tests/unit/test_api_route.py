"""`/v1/route`, `/v1/load`, and how clients hear that they are to go, over a store in memory."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeStore, make_api, served

from edgeflow.api import pressure as module
from edgeflow.api.context import Api
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.membership import Location, Member
from edgeflow.sdk.client import Client, parse_sse


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.create_namespace("vision")
    store.create_namespace(SYSTEM_NAMESPACE)
    system = store.namespace(SYSTEM_NAMESPACE)
    for member in (
        Member("chicago", url="http://chicago", location=Location(41.88, -87.63), joined_ms=1),
        Member("la", url="http://la", location=Location(34.05, -118.24), joined_ms=1),
    ):
        system.put(f"members/{member.pop}", member.dump(), content_type="application/json")
    store.local.put_doc("member_state", "la", {"state": "up", "since_ms": 1})
    store.local.put_doc("member_state", "chicago", {"state": "up", "since_ms": 0})
    store.local.put_doc("link_state", "la", {"state": "up", "rtt_ms": 40.0})
    return store


@pytest.fixture
def api(store: FakeStore, tmp_path: Path) -> Api:
    return make_api(tmp_path, store)


@pytest.fixture
def url(api: Api) -> Iterator[str]:
    with served(api) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as client:
        yield client


def drown(api: Api, loop: float, refused: float = 0.0) -> None:
    """The PoP measures this for long enough that it counts."""
    document = {"loop": loop, "backlog": 0.0, "refused": refused, "at_ms": module.time.time_ns() // 1_000_000}
    api.store.local.put_doc("pop_load", "self", document)
    begin_s = time.monotonic()
    for step in range(1, 6):
        api.pressure.look(begin_s + 10 * step)


def test_the_pops_are_ranked_with_reasons_and_may_be_cached_for_a_moment(http: httpx.Client) -> None:
    answer = http.get("/v1/route")
    assert answer.headers["cache-control"] == "private, max-age=5"
    here, la, ny = answer.json()["items"]
    assert (here["pop"], here["self"], here["latency_from"]) == ("chicago", True, "self")
    assert (la["pop"], la["url"], la["latency_ms"], la["eligible"]) == ("la", "http://la", 40.0, True)
    assert la["reasons"] == ["40.0 ms from the PoP that was asked", "its load is not known"]
    assert (ny["pop"], ny["state"], ny["url"], ny["eligible"]) == ("ny", "unknown", None, False)
    near_la = http.get("/v1/route", params={"lat": 34, "lon": -118}).json()["items"]
    assert [one["pop"] for one in near_la] == ["la", "chicago", "ny"] and near_la[0]["distance_km"] < 30


def test_a_pop_that_is_down_takes_no_clients(http: httpx.Client, store: FakeStore) -> None:
    store.local.put_doc("member_state", "la", {"state": "down", "since_ms": 1})
    items = http.get("/v1/route", params={"lat": 34, "lon": -118}).json()["items"]
    assert [(one["pop"], one["eligible"]) for one in items] == [("chicago", True), ("la", False), ("ny", False)]


@pytest.mark.parametrize("params", [{"lat": "34"}, {"lat": "91", "lon": "0"}, {"lat": "x", "lon": "0"}, {"a": "-1"}])
def test_a_place_that_is_none_is_refused(http: httpx.Client, params: dict[str, str]) -> None:
    answer = http.get("/v1/route", params=params)
    assert answer.status_code == 422 and answer.json()["code"] == "bad-parameter"


def test_a_pop_at_rest_says_so_and_keeps_its_clients(http: httpx.Client, api: Api) -> None:
    drown(api, 0.1)
    answer = http.get("/v1/load")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["pop"] == "chicago" and answer.json()["load"] < 0.9 and answer.json()["move"] is None
    assert "edgeflow-load" in answer.headers and "edgeflow-move" not in answer.headers


def test_one_with_too_much_to_do_tells_a_few_clients_and_the_other_pops(
    http: httpx.Client, api: Api, store: FakeStore
) -> None:
    drown(api, 0.97)
    assert http.get("/v1/load").json()["move"] == "http://la"
    answers = [http.get("/v1/channels") for _ in range(20)]
    told = [answer.headers["edgeflow-move"] for answer in answers if "edgeflow-move" in answer.headers]
    assert 1 <= len(told) < 5 and set(told) == {"http://la"} and all(answer.is_success for answer in answers)
    said = json.loads(store.namespace(SYSTEM_NAMESPACE).get("loads/chicago").data)
    assert said["sheds"] and said["load"] > 0.9
    # Streams are taken as before; whoever holds one is told between two frames.
    for step in range(60, 63):
        api.pressure.look(time.monotonic() + step)
    with http.stream("GET", "/v1/channels/vision/x") as stream:
        kinds = parse_sse(stream.iter_bytes())
        document = json.loads(next(text for _, kind, text in kinds if kind == "move"))
    assert (document["pop"], document["url"]) == ("la", "http://la") and "data process" in document["reason"]


def test_without_a_pop_that_has_room_nobody_is_sent_away(http: httpx.Client, api: Api, store: FakeStore) -> None:
    document = json.dumps({"load": 0.8, "sheds": False}).encode()
    store.namespace(SYSTEM_NAMESPACE).put("loads/la", document, content_type="application/json")
    drown(api, 1.0, refused=0.5)
    answer = http.get("/v1/load").json()
    assert answer["load"] > 1 and answer["move"] is None
    with http.stream("GET", "/v1/channels/vision/x") as stream:
        assert stream.status_code == 200


def test_one_that_refuses_events_refuses_streams_and_names_the_next(http: httpx.Client, url: str, api: Api) -> None:
    drown(api, 1.0, refused=0.5)
    answer = http.get("/v1/channels/vision/x")
    assert answer.status_code == 503 and answer.json()["code"] == "shedding"
    assert (answer.json()["url"], answer.json()["pops"]) == ("http://la", ["la"])
    with Client(url, TOKEN, retry_s=1) as client, pytest.raises(Exception, match="too much to do"):
        next(client.subscribe("vision/x", reconnect_s=0.2))


def test_a_store_that_does_not_answer_is_no_place_for_clients(http: httpx.Client, api: Api) -> None:
    api.pressure._looked_s = time.monotonic() - module.STALE_S - 1
    assert http.get("/v1/load").status_code == 503


def test_a_data_process_that_is_silent_is_a_full_load(http: httpx.Client, api: Api, store: FakeStore) -> None:
    store.local.put_doc("pop_load", "self", {"loop": 0.0, "backlog": 0.0, "refused": 0.0, "at_ms": 1})
    api.pressure.look(time.monotonic())
    answer: dict[str, Any] = http.get("/v1/load").json()
    assert answer["load"] >= 1 and "said nothing" in answer["reason"]


def test_a_drained_pop_sends_its_clients_on_and_takes_no_streams(http: httpx.Client, url: str, api: Api) -> None:
    assert http.post("/v1/pops/chicago/drain").json()["wished"] == "draining"
    begin_s = time.monotonic()
    for step in range(3):
        api.pressure.look(begin_s + 10 * step)
    said = http.get("/v1/load").json()
    assert (said["move"], said["reason"]) == ("http://la", "an operator drains it")
    refused = http.get("/v1/channels/vision/a", headers={"Accept": "text/event-stream"})
    assert refused.status_code == 503 and refused.json()["pops"] == ["la"]
    assert http.put("/v1/ekv/vision/k", content=b"x").is_success, "what is here goes on"
    http.post("/v1/pops/chicago/undrain")
    for step in range(3, 6):
        api.pressure.look(begin_s + 10 * step)
    assert http.get("/v1/load").json()["move"] is None
