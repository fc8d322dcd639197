"""Routes about work: invoke, invocations, dead letters, joins, replays, quotas, over a store in memory."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, empty_store, make_api, served

from edgeflow.api.context import Api
from edgeflow.core.events import BlobRef, Event
from edgeflow.core.ids import invocation_id
from edgeflow.core.manifest import parse, resolve
from edgeflow.errors import CorruptEntry, QueueFull, QuotaExceeded, StoreUnavailable, Unavailable
from edgeflow.store.blobs import digest_of
from edgeflow.store.records import DeadLetter, Input, InvocationInfo, PendingJoin, Quota, ReplayDiff, Result
from edgeflow.store.sealed import Sealer, SecretBook

MANIFEST = """
namespace: vision
functions:
  detect: {image: vision/detect:1, subscribe: frames, publish: faces, place: {pops: [chicago]}}
  distant: {image: vision/distant:1, subscribe: frames, publish: far, place: {pops: [la]}}
  classify:
    image: vision/classify:1
    subscribe: {join: [frames, faces]}
    publish: matches
    place: {pops: [chicago]}
  direct: {image: vision/direct:1, subscribe: {channel: pings, qos: 0}, publish: pongs, place: {pops: [chicago]}}
"""
INVOKE = "/v1/functions/vision/detect/invoke"


@pytest.fixture
def store(served_api: tuple[Api, str]) -> FakeStore:
    store = empty_store(served_api[0])
    document = resolve(parse(MANIFEST), {}, applied_ms=1)
    store.namespace("system").put("manifests/vision", json.dumps(document).encode())
    return store


@pytest.fixture
def vision(store: FakeStore) -> FakeNamespace:
    store.create_namespace("vision")
    return store.namespace("vision")


@pytest.fixture
def http(served_api: tuple[Api, str], store: FakeStore) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=served_api[1], headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, verify=False
    ) as client:
        yield client


def check_problem(response: Any, status: int, code: str, **members: Any) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["hint"]
    for name, value in members.items():
        assert problem[name] == value
    return problem


def output(channel: str = "vision/faces", data: bytes = b"{}", **more: Any) -> Event:
    return Event(channel, "o1", "/f", "t", 1_700_000_000_000, data=data, **more).at("la", 1, 9, 0, 0)


def first_id(function: str = "detect") -> str:
    return invocation_id(function, "chicago", 1, 1, 0)


class TestInvoke:
    def test_one_output_is_the_answer(self, http: httpx.Client, vision: FakeNamespace) -> None:
        event = output(data=b'{"n":1}', datacontenttype="application/json", subject="clip/ü", attributes={"chunk": "7"})
        vision.results[first_id()] = Result("committed", "", [event])
        response = http.post(INVOKE, content=b"picture", headers={"ce-subject": "s1", "content-type": "image/png"})
        assert (response.status_code, response.content) == (200, b'{"n":1}')
        headers = response.headers
        assert headers["content-type"] == "application/json"
        assert headers["ce-subject"] == "clip/%C3%BC"
        assert (headers["ce-id"], headers["ce-channel"], headers["ce-chunk"]) == ("o1", "vision/faces", "7")
        assert (headers["ce-specversion"], headers["ce-origin"], headers["ce-seq"]) == ("1.0", "la", "9")
        assert headers["edgeflow-invocation"] == first_id()
        arrival = vision.arrivals[0]
        assert (arrival.event.channel, arrival.event.data) == ("vision/_invoke/detect", b"picture")
        assert (arrival.event.subject, arrival.event.datacontenttype) == ("s1", "image/png")
        assert not arrival.deduplicate

    def test_no_output(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.results[first_id()] = Result("committed")
        response = http.post(INVOKE)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["edgeflow-invocation"] == first_id()

    def test_several_outputs_are_a_batch(self, http: httpx.Client, vision: FakeNamespace) -> None:
        large = b"\xff" * 1_200_000
        vision.blobs[digest_of(large)] = large
        events = [
            output(data=b"text", datacontenttype="text/plain"),
            replace(output(), data=None, ref=BlobRef(digest_of(large), len(large))),
        ]
        vision.results[first_id()] = Result("committed", "", events)
        response = http.post(INVOKE, content=b"x")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/cloudevents-batch+json"
        first, second = response.json()
        assert (first["data"], first["channel"]) == ("text", "vision/faces")
        assert second["dataref"].startswith("http://pop.test:8101/v1/blobs/vision/sha256:")
        assert second["size"] == len(large)

    def test_a_large_output_by_itself_is_sent_as_it_is(self, http: httpx.Client, vision: FakeNamespace) -> None:
        large = b"\xff" * 1_200_000
        vision.blobs[digest_of(large)] = large
        vision.results[first_id()] = Result(
            "committed", "", [replace(output(), data=None, ref=BlobRef(digest_of(large), len(large)))]
        )
        assert http.post(INVOKE, content=b"x").content == large

    def test_it_waits_for_the_body_of_an_output(
        self, http: httpx.Client, vision: FakeNamespace, served_api: tuple[Api, str], wait_until: Callable[..., Any]
    ) -> None:
        large = b"\xff" * 5000
        event = replace(output(), data=None, ref=BlobRef(digest_of(large), len(large)))
        vision.results[first_id()] = Result("committed", "", [event])
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(http.post(INVOKE, content=b"x", timeout=20)))
        asking.start()
        wait_until(lambda: served_api[0].waits.waiting() == 1, "somebody who waits")
        vision.blobs[digest_of(large)] = large
        asking.join(10)
        assert answers[0].content == large

    def test_it_waits_for_the_result(
        self, http: httpx.Client, vision: FakeNamespace, served_api: tuple[Api, str], wait_until: Callable[..., Any]
    ) -> None:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(http.post(INVOKE, content=b"x", timeout=20)))
        asking.start()
        api = served_api[0]
        wait_until(lambda: vision.arrivals and api.waits.waiting() == 1, "the event, and somebody who waits")
        vision.results[first_id()] = Result("committed", "", [output()])
        asking.join(10)
        assert answers[0].status_code == 200
        wait_until(lambda: api.waits.waiting() == 0, "nobody waits")

    def test_many_wait_at_once(self, http: httpx.Client, vision: FakeNamespace) -> None:
        ids = {invocation_id("detect", "chicago", 1, seq, 0) for seq in range(1, 61)}
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda: answers.append(http.post(INVOKE, content=b"x", timeout=30))) for _ in ids
        ]
        for thread in asking:
            thread.start()
        for id in ids:
            vision.results[id] = Result("committed")
        for thread in asking:
            thread.join(30)
        assert {answer.headers["edgeflow-invocation"] for answer in answers} == ids

    def test_too_late_says_where_to_ask(self, http: httpx.Client, vision: FakeNamespace) -> None:
        begin_s = time.monotonic()
        problem = check_problem(
            http.post(INVOKE, params={"timeout": "50ms"}, content=b"x"),
            504,
            "invocation-pending",
            invocation=first_id(),
        )
        assert time.monotonic() - begin_s < 5
        assert "chicago" in problem["detail"]
        assert f"edgeflow get invocation {first_id()}" in problem["hint"]

    def test_a_function_at_another_pop_is_called_the_same_way(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.results[first_id("distant")] = Result("committed", "", [output("vision/far")])
        assert http.post("/v1/functions/vision/distant/invoke", content=b"x").status_code == 200
        late = http.post("/v1/functions/vision/distant/invoke?timeout=10ms", content=b"x")
        assert "PoP la" in check_problem(late, 504, "invocation-pending")["detail"]

    @pytest.mark.parametrize(
        ("result", "code", "word"),
        [
            (Result("dead", "handler-failed"), "invocation-dead", "handler-failed"),
            (Result("expired", "deadline"), "invocation-dropped", "deadline"),
            (Result("dropped"), "invocation-dropped", "dropped"),
        ],
    )
    def test_no_result(self, http: httpx.Client, vision: FakeNamespace, result: Result, code: str, word: str) -> None:
        vision.results[first_id()] = result
        problem = check_problem(http.post(INVOKE, content=b"x"), 502, code, invocation=first_id(), reason=result.reason)
        assert word in problem["detail"]
        assert (problem.get("dead_letter") == first_id()) == (result.status == "dead")

    def test_an_id_of_ones_own_is_taken_once(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.results[first_id()] = Result("committed")
        http.post(INVOKE, content=b"x", headers={"ce-id": "mine"})
        assert (vision.arrivals[0].event.id, vision.arrivals[0].deduplicate) == ("mine", True)

    def test_structured_events(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.results[first_id()] = Result("committed")
        document = {"specversion": "1.0", "id": "s1", "source": "/s", "type": "t", "data": {"n": 1}}
        http.post(INVOKE, json=document, headers={"content-type": "application/cloudevents+json"})
        assert (vision.arrivals[0].event.id, vision.arrivals[0].event.data) == ("s1", b'{"n":1}')

    def test_data_by_reference_must_be_there(self, http: httpx.Client, vision: FakeNamespace) -> None:
        gone = http.post(INVOKE, json={"dataref": "ekv:vision/clip"})
        assert "clip" in check_problem(gone, 404, "not-found")["detail"]
        assert not vision.arrivals
        vision.put("clip", b"video")
        vision.results[invocation_id("detect", "chicago", 1, 1, 0)] = Result("committed")
        assert http.post(INVOKE, json={"dataref": "ekv:vision/clip"}).status_code == 204
        assert vision.arrivals[0].dataref == "ekv:vision/clip"

    @pytest.mark.parametrize(
        ("path", "status", "code", "word"),
        [
            ("vision/nope", 404, "not-found", "classify, detect, direct, distant"), ("other/detect", 404, "not-found", "no manifest"),
            ("Vision/detect", 400, "bad-name", "Vision"), ("vision/classify", 422, "not-invocable", "joins"), ("vision/direct", 422, "not-invocable", "qos: 0"),
            ("vision/detect?timeout=soon", 422, "bad-parameter", "timeout"), ("vision/detect?timeout=1h", 422, "bad-parameter", "timeout"),
            ("vision/detect?timeout=0s", 422, "bad-parameter", "timeout"),
        ],
    )  # fmt: skip
    def test_bad_calls(
        self, http: httpx.Client, store: FakeStore, path: str, status: int, code: str, word: str
    ) -> None:
        name, _, query = path.partition("?")
        response = http.post(f"/v1/functions/{name}/invoke?{query}", content=b"x")
        assert word in check_problem(response, status, code)["detail"]
        assert not store.namespace("vision").arrivals

    def test_bad_events_are_refused_as_for_publishing(self, http: httpx.Client, vision: FakeNamespace) -> None:
        check_problem(http.post(INVOKE, content=b"x", headers={"ce-id": ""}), 400, "bad-event")
        check_problem(http.post(INVOKE, content=b"x" * 2000), 413, "too-large")
        batch = {"content-type": "application/cloudevents-batch+json"}
        check_problem(http.post(INVOKE, content=b"[]", headers=batch), 400, "bad-event")
        check_problem(
            http.post("/v1/channels/vision/frames", content=b"[]", headers=batch), 415, "unsupported-media-type"
        )
        one = {"specversion": "1.0", "input": "frame", "data": "x"}
        problem = check_problem(http.post(INVOKE, json=[one], headers=batch), 400, "bad-event")
        assert "no input 'frame'" in problem["detail"] and "frames" in problem["hint"]
        assert not vision.arrivals

    def test_all_inputs_of_a_join_come_in_one_batch(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.results[invocation_id("classify", "chicago", 1, 1, 0)] = Result("committed")
        inputs = [{"specversion": "1.0", "input": name, "subject": "ä/1", "data": name} for name in ("frames", "faces")]
        batch = {"content-type": "application/cloudevents-batch+json"}
        assert http.post("/v1/functions/vision/classify/invoke", json=inputs, headers=batch).status_code == 204
        event = vision.arrivals[0].event
        assert (event.channel, event.subject, event.datacontenttype) == (
            "vision/_invoke/classify",
            "ä/1",
            batch["content-type"],
        )
        assert json.loads(event.data or b"") == inputs

    @pytest.mark.parametrize(("error", "wait"), [(QueueFull("q", retry_after_s=2.2), "3"), (QuotaExceeded("q"), "1")])
    def test_too_much_says_when_to_come_back(
        self, http: httpx.Client, vision: FakeNamespace, error: QueueFull, wait: str
    ) -> None:
        vision.refuse = error
        for path in (INVOKE, "/v1/channels/vision/frames"):
            response = http.post(path, content=b"x")
            check_problem(response, 429, error.code)
            assert response.headers["retry-after"] == wait

    def test_a_store_that_goes_away_delays_the_answer(
        self, http: httpx.Client, vision: FakeNamespace, served_api: tuple[Api, str], wait_until: Callable[..., Any]
    ) -> None:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(http.post(INVOKE, content=b"x", timeout=20)))
        asking.start()
        wait_until(lambda: served_api[0].waits.waiting() == 1, "somebody who waits")
        vision.is_away = True
        vision.results[first_id()] = Result("committed")
        asking.join(0.2)
        assert asking.is_alive()
        vision.is_away = False
        asking.join(10)
        assert answers[0].status_code == 204

    def test_a_client_that_leaves_is_not_waited_for(
        self, http: httpx.Client, vision: FakeNamespace, served_api: tuple[Api, str], wait_until: Callable[..., Any]
    ) -> None:
        with pytest.raises(httpx.ReadTimeout):
            http.post(INVOKE, content=b"x", timeout=0.3)
        wait_until(lambda: served_api[0].waits.waiting() == 0, "nobody waits")

    def test_leaving_ends_the_waits(
        self, vision: FakeNamespace, store: FakeStore, tmp_path: Any, wait_until: Callable[..., Any]
    ) -> None:
        api = make_api(tmp_path, store)
        answers: list[Any] = []
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with served(api) as url:
            asking = threading.Thread(
                target=lambda: answers.append(httpx.post(url + INVOKE, headers=headers, timeout=20, trust_env=False))
            )
            asking.start()
            wait_until(lambda: api.waits.waiting() == 1, "somebody who waits")
        asking.join(10)
        check_problem(answers[0], 503, "unavailable")


class TestInvocations:
    INFO = InvocationInfo("i1", "detect", "r1", "claimed", 2, 1, 1000, "instance-1", "handler-failed")

    def test_what_is_known_here(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.infos["i1"] = self.INFO
        view = http.get("/v1/invocations/vision/i1").json()
        assert (view["state"], view["attempt"], view["failures"], view["by"]) == ("claimed", 2, 1, "instance-1")
        assert (view["pop"], view["function"], view["reason"], view["result"]) == (
            "chicago",
            "detect",
            "handler-failed",
            None,
        )

    def test_a_result_alone(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.results["i2"] = Result("committed", "", [output(data=b'{"n":1}', datacontenttype="application/json")])
        view = http.get("/v1/invocations/vision/i2").json()
        assert (view["state"], view["function"], view["result"]["status"]) == ("committed", None, "committed")
        assert view["result"]["outputs"][0]["data"] == {"n": 1}

    def test_unknown_here_names_the_other_pops(self, http: httpx.Client, vision: FakeNamespace) -> None:
        problem = check_problem(http.get("/v1/invocations/vision/nope"), 404, "not-found", pops=["la"])
        assert "la" in problem["detail"]
        assert "nope" in problem["detail"]
        check_problem(http.get("/v1/invocations/other/nope"), 404, "not-found")


def letter(number: int, function: str = "detect", reason: str = "handler-failed") -> DeadLetter:
    event = Event("vision/frames", f"e{number}", "s", "t", 0, data=b"x")
    return DeadLetter(
        f"d{number:05d}", function, "r", reason, "ValueError: no", 1000 + number, 5, (Input("frames", event),)
    )


class TestDeadLetters:
    def test_filters(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(1), letter(2, "classify"), letter(3, reason="timeout"), letter(4)]

        def ids(**params: Any) -> list[str]:
            items = http.get("/v1/dead-letters", params={"namespace": "vision", **params}).json()["items"]
            return [item["id"] for item in items]

        assert ids(function="detect") == ["d00001", "d00003", "d00004"]
        assert ids(reason="timeout") == ["d00003"]
        assert ids(before_ms=1003) == ["d00001", "d00002"]
        assert ids(function="detect", limit=1, after="d00001") == ["d00003"]

    def test_one_again(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(1), letter(2, reason="join-timeout")]
        assert http.post("/v1/dead-letters/vision/d00001/redrive").json() == {"id": "d00001", "as": "invocation"}
        assert http.post("/v1/dead-letters/vision/d00002/redrive").json() == {"id": "d00002", "as": "arrivals"}
        assert vision.redriven == ["d00001", "d00002"]
        problem = check_problem(http.post("/v1/dead-letters/vision/d00001/redrive"), 404, "not-found", pops=["la"])
        assert "la" in problem["detail"]

    def test_one_whose_data_is_gone(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(1)]
        vision.stuck["d00001"] = Unavailable("the data of frames is no longer kept")
        problem = check_problem(http.post("/v1/dead-letters/vision/d00001/redrive"), 503, "unavailable")
        assert "frames" in problem["detail"]

    def test_all_that_match_again(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(n, "detect" if n % 2 else "classify") for n in range(1201)]
        vision.stuck["d00007"] = CorruptEntry("damaged")
        vision.stuck["d00601"] = Unavailable("no data")
        answer = http.post("/v1/dead-letters/vision/redrive", params={"function": "detect"}).json()
        assert answer["redriven"] == 598
        assert [item["id"] for item in answer["failed"]] == ["d00007", "d00601"]
        assert answer["failed"][0] == {"id": "d00007", "code": "corrupt-entry", "detail": "damaged"}
        assert answer["next"] is None
        assert len(vision.letters) == 603

    def test_pieces(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(n, "detect" if n % 3 else "classify") for n in range(1, 30)]
        vision.stuck["d00005"] = CorruptEntry("damaged")
        after, total, asked = "", 0, 0
        while True:
            params = {"function": "detect", "limit": 4, "after": after}
            answer = http.post("/v1/dead-letters/vision/redrive", params=params).json()
            total += answer["redriven"] + len(answer["failed"])
            asked += 1
            if answer["next"] is None:
                break
            after = answer["next"]
        assert total == 20
        assert asked in (5, 6)
        assert [one.id for one in vision.letters if one.function == "detect"] == ["d00005"]

    def test_what_comes_back_meanwhile_is_not_touched(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(1), letter(2)]
        later = replace(letter(3), at_ms=int(time.time() * 1000) + 60_000)
        vision.letters.append(later)
        assert http.post("/v1/dead-letters/vision/redrive").json()["redriven"] == 2
        assert vision.letters == [later]

    def test_a_full_queue_is_a_pause(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(1), letter(2), letter(3)]
        vision.stuck["d00002"] = QueueFull("full", retry_after_s=0.5)
        answer = http.post("/v1/dead-letters/vision/redrive").json()
        assert (answer["redriven"], answer["failed"], answer["retry_after_s"]) == (1, [], 0.5)
        assert (answer["code"], answer["detail"]) == ("queue-full", "full")
        vision.stuck.clear()
        answer = http.post("/v1/dead-letters/vision/redrive", params={"after": answer["next"]}).json()
        assert (answer["redriven"], answer["next"]) == (2, None)

    def test_an_away_store_in_the_middle(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(1), letter(2)]
        vision.stuck["d00002"] = StoreUnavailable()
        answer = http.post("/v1/dead-letters/vision/redrive").json()
        assert (answer["redriven"], answer["retry_after_s"], answer["code"]) == (1, 1.0, "store-unavailable")
        check_problem(http.post("/v1/dead-letters/vision/redrive"), 503, "store-unavailable")

    def test_purge(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.letters = [letter(n, "detect" if n % 2 else "classify") for n in range(1100)]
        assert http.delete("/v1/dead-letters/vision/d00000").status_code == 204
        check_problem(http.delete("/v1/dead-letters/vision/d00000"), 404, "not-found")
        assert http.delete("/v1/dead-letters/vision", params={"before_ms": 1010}).json() == {"purged": 9, "next": None}
        answer = http.delete("/v1/dead-letters/vision", params={"function": "detect", "limit": 7}).json()
        assert answer["purged"] == 7
        assert next(one.id for one in vision.letters if one.function == "detect") == "d00025"
        assert http.delete("/v1/dead-letters/vision", params={"function": "detect"}).json()["purged"] == 538
        assert http.delete("/v1/dead-letters/vision").json()["purged"] == 545
        assert vision.letters == []

    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_of_a_function_elsewhere(self, http: httpx.Client, vision: FakeNamespace, method: str) -> None:
        path = {"GET": "/v1/dead-letters?namespace=vision&", "POST": "/v1/dead-letters/vision/redrive?", "DELETE": "/v1/dead-letters/vision?"}[method]  # fmt: skip
        problem = check_problem(http.request(method, path + "function=distant"), 421, "at-another-pop", pops=["la"])
        assert "la" in problem["detail"]
        check_problem(http.request(method, path + "function=nope"), 404, "not-found")
        assert http.request(method, path + "function=detect").status_code == 200
        vision.letters = [letter(1, "distant")]  # from a time when it was placed here
        assert http.request(method, path + "function=distant").status_code == 200

    def test_bad_parameters(self, http: httpx.Client, vision: FakeNamespace) -> None:
        assert (
            "before_ms"
            in check_problem(http.delete("/v1/dead-letters/vision?before_ms=x"), 422, "bad-parameter")["detail"]
        )
        assert (
            "after"
            in check_problem(http.post("/v1/dead-letters/vision/redrive?after=x"), 422, "bad-parameter")["detail"]
        )
        check_problem(http.post("/v1/dead-letters/other/redrive"), 404, "not-found")
        check_problem(http.delete("/v1/dead-letters/Other"), 400, "bad-name")


class TestJoins:
    def test_what_is_there_and_what_is_missing(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.joins = [
            PendingJoin("classify", "clip/1", "all", ["frames"], 2, 1000, 2000, ["faces"]),
            PendingJoin("mean", "s", "window", ["3"], 0, 900, 1500, [], (0, 1000)),
        ]
        window, pair = http.get("/v1/joins?namespace=vision").json()["items"]
        assert (pair["have"], pair["missing"], pair["needed"], pair["window"]) == (["frames"], ["faces"], 2, None)
        assert (window["have"], window["window"], window["due_ms"]) == (["3"], [0, 1000], 1500)

    def test_of_a_function_elsewhere(self, http: httpx.Client, vision: FakeNamespace) -> None:
        check_problem(http.get("/v1/joins?namespace=vision&function=distant"), 421, "at-another-pop", pops=["la"])
        check_problem(http.get("/v1/joins?namespace=vision&function=nope"), 404, "not-found")
        assert http.get("/v1/joins?namespace=vision&function=classify").json() == {"items": []}


class TestReplays:
    def test_start_and_follow(self, http: httpx.Client, vision: FakeNamespace) -> None:
        body = {"channel": "frames", "function": "detect", "from": "1h", "to": "2026-01-02T03:04:05Z", "shadow": True}
        began_ms = int(time.time() * 1000)
        response = http.post("/v1/replays/vision", json={**body, "to": None})
        assert response.status_code == 201
        assert response.headers["location"] == "/v1/replays/vision/r1"
        spec = vision.asked_replays[0]
        assert (spec.channel, spec.function, spec.revision, spec.shadow, spec.to_ms) == (
            "vision/frames",
            "detect",
            None,
            True,
            None,
        )
        assert spec.from_ms is not None and 0 <= spec.from_ms - (began_ms - 3_600_000) < 10_000
        view = http.get("/v1/replays/vision/r1").json()
        assert (view["state"], view["function"], view["shadow"]) == ("running", "detect", True)
        http.post("/v1/replays/vision", json={"channel": "vision/frames", "function": "detect@abc"})
        assert vision.asked_replays[1].revision == "abc"
        assert http.post("/v1/replays/vision", json={"channel": "#", "function": "detect"}).status_code == 201
        assert vision.asked_replays[2].channel == "vision/#"
        assert [item["id"] for item in http.get("/v1/replays/vision").json()["items"]] == ["r3", "r2", "r1"]
        for _ in range(2):
            assert http.delete("/v1/replays/vision/r1").status_code == 204
        assert http.get("/v1/replays/vision/r1").json()["state"] == "cancelled"

    def test_comparisons(self, http: httpx.Client, vision: FakeNamespace) -> None:
        http.post("/v1/replays/vision", json={"channel": "frames", "function": "detect", "shadow": True})
        vision.diffs = [ReplayDiff(f"i{n}", None if n == 2 else [output()], [output()], n != 1) for n in range(3)]
        page = http.get("/v1/replays/vision/r1/diff?limit=2").json()
        assert [(item["invocation"], item["same"]) for item in page["items"]] == [("i0", True), ("i1", False)]
        assert page["items"][0]["recorded"][0]["channel"] == "vision/faces"
        rest = http.get("/v1/replays/vision/r1/diff", params={"limit": 2, "after": page["next"]}).json()
        assert rest["items"][0]["recorded"] is None
        assert rest["next"] is None

    def test_a_real_one_has_nothing_to_compare(self, http: httpx.Client, vision: FakeNamespace) -> None:
        http.post("/v1/replays/vision", json={"channel": "frames", "function": "detect"})
        assert "shadow" in check_problem(http.get("/v1/replays/vision/r1/diff"), 422, "bad-parameter")["detail"]

    @pytest.mark.parametrize(
        ("change", "status", "code", "word"),
        [
            ({"channel": None}, 422, "bad-parameter", "channel"), ({"channel": "a/+"}, 422, "bad-parameter", "channel"), ({"channel": "a+"}, 422, "bad-parameter", "channel"),
            ({"channel": "other"}, 422, "bad-parameter", "channel"), ({"function": "nope"}, 404, "not-found", "nope"), ({"function": "detect@"}, 422, "bad-parameter", "function"),
            ({"function": "distant"}, 421, "at-another-pop", "la"), ({"from": "yesterday"}, 422, "bad-parameter", "from"), ({"from": "1h", "to": "2h"}, 422, "bad-parameter", "to"),
            ({"to": "2026-01-02T03:04:05"}, 422, "bad-parameter", "to"), ({"shadow": "yes"}, 422, "bad-parameter", "shadow"), ({"speed": 2}, 422, "bad-parameter", "speed"),
        ],
    )  # fmt: skip
    def test_bad_requests(
        self, http: httpx.Client, vision: FakeNamespace, change: dict[str, Any], status: int, code: str, word: str
    ) -> None:
        response = http.post("/v1/replays/vision", json={"channel": "frames", "function": "detect", **change})
        assert word in check_problem(response, status, code)["detail"]
        assert not vision.asked_replays

    def test_bodies_that_are_none(self, http: httpx.Client, vision: FakeNamespace) -> None:
        check_problem(http.post("/v1/replays/vision", content=b"{"), 400, "bad-request")
        check_problem(http.post("/v1/replays/vision", content=b"[]"), 422, "bad-parameter")
        check_problem(http.post("/v1/replays/vision", content=b" " * 70_000), 413, "too-large")

    def test_absent_ones(self, http: httpx.Client, vision: FakeNamespace) -> None:
        for method, path in (("GET", ""), ("GET", "/diff"), ("DELETE", "")):
            problem = check_problem(http.request(method, f"/v1/replays/vision/r9{path}"), 404, "not-found", pops=["la"])
            assert "la" in problem["detail"]
        check_problem(http.get("/v1/replays/other"), 404, "not-found")


class TestSecrets:
    def test_set_list_remove_and_never_back(self, store: FakeStore, tmp_path: Path) -> None:
        key = tmp_path / "secrets.key"
        key.write_text("k" * 43)
        api = make_api(tmp_path, store)
        api.secrets = SecretBook(lambda: store.namespace("system"), Sealer.load(key, "c"))
        store.namespace("system").put("manifests/vision", b'{"functions": {"f": {"secrets": ["token"]}, "g": {}}}')
        with served(api) as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            answer = http.put("/v1/secrets/vision/token", content=b"hunter2")
            assert answer.status_code == 201 and answer.json()["used_by"] == ["f"]
            again = http.put("/v1/secrets/vision/token", content=b"hunter3")
            assert again.status_code == 200 and again.json()["version"] != answer.json()["version"]
            listed = http.get("/v1/secrets/vision")
            assert [(one["name"], one["used_by"]) for one in listed.json()["items"]] == [("token", ["f"])]
            assert http.get("/v1/secrets/other").json()["items"] == []
            kept = http.get("/v1/ekv/system/secrets/vision/token")
            for text in (answer.text, again.text, listed.text, kept.text):
                assert "hunter" not in text
            assert api.secrets.read("vision", ["token"])["token"][1] == b"hunter3"
            check_problem(http.get("/v1/secrets/vision/token"), 405, "method-not-allowed")
            check_problem(http.put("/v1/secrets/vision/token", content=b""), 400, "bad-request")
            check_problem(http.put("/v1/secrets/vision/token", content=b"x" * 70_000), 413, "too-large")
            check_problem(http.put("/v1/secrets/vision/..%2fx", content=b"x"), 404, "not-found")
            check_problem(http.put("/v1/secrets/vision/-x", content=b"x"), 400, "bad-name")
            check_problem(http.put("/v1/secrets/system/x", content=b"x"), 403, "reserved")
            assert http.delete("/v1/secrets/vision/token").status_code == 204
            check_problem(http.delete("/v1/secrets/vision/token"), 404, "not-found")

    def test_without_a_key(self, http: httpx.Client) -> None:
        check_problem(http.put("/v1/secrets/vision/token", content=b"x"), 501, "no-secrets-here")
        assert http.get("/v1/secrets/vision").json() == {"items": []}


class TestQuotas:
    def test_set_show_clear(self, http: httpx.Client, vision: FakeNamespace) -> None:
        check_problem(http.get("/v1/namespaces/vision/quota"), 404, "not-found")
        view = http.put("/v1/namespaces/vision/quota", json={"events_per_s": 100, "bytes_per_s": 1e6}).json()
        assert view == {
            "namespace": "vision", "events_per_s": 100.0, "bytes_per_s": 1e6, "link_bytes_per_s": None, "burst_s": 2.0
        }  # fmt: skip
        assert vision.allowed == Quota(100, 1e6, 2.0)
        assert http.get("/v1/namespaces/vision/quota").json() == view
        assert http.delete("/v1/namespaces/vision/quota").status_code == 204
        assert vision.allowed is None
        check_problem(http.delete("/v1/namespaces/vision/quota"), 404, "not-found")

    def test_before_the_first_event(self, http: httpx.Client, store: FakeStore) -> None:
        assert http.put("/v1/namespaces/new/quota", json={"events_per_s": 1}).status_code == 200
        assert store.has_namespace("new")

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            ({}, "events_per_s"), ({"events_per_s": 0}, "events_per_s"), ({"bytes_per_s": -1}, "bytes_per_s"), ({"events_per_s": "9"}, "events_per_s"),
            ({"events": 9}, "events"), ({"events_per_s": 1, "burst_s": 0}, "burst_s"), ({"events_per_s": True}, "events_per_s"),
        ],
    )  # fmt: skip
    def test_bad_quotas(self, http: httpx.Client, vision: FakeNamespace, body: dict[str, Any], word: str) -> None:
        assert word in check_problem(http.put("/v1/namespaces/vision/quota", json=body), 422, "bad-parameter")["detail"]
        assert vision.allowed is None

    def test_of_the_system(self, http: httpx.Client) -> None:
        check_problem(http.put("/v1/namespaces/system/quota", json={"events_per_s": 1}), 403, "reserved")


class TestReservedKeys:
    @pytest.mark.parametrize("key", ["_state/detect/k", "_consumers/me", "_"])
    def test_they_can_be_read_only(self, http: httpx.Client, vision: FakeNamespace, key: str) -> None:
        vision.put(key, b"x")
        assert http.get(f"/v1/ekv/vision/{key}").content == b"x"
        check_problem(http.put(f"/v1/ekv/vision/{key}", content=b"y"), 403, "reserved")
        check_problem(http.delete(f"/v1/ekv/vision/{key}"), 403, "reserved")
        check_problem(http.post(f"/v1/channels/vision/frames?put={key}", content=b"y"), 403, "reserved")
        assert vision.values[key].data == b"x"


class TestCounters:
    def test_a_number_with_itself_as_the_etag(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.counts["seen/left"] = 42
        response = http.get("/v1/ekv/vision/seen/left")
        assert (response.json(), response.headers["content-type"], response.headers["etag"]) == (
            42,
            "application/json",
            '"42"',
        )
        assert http.get("/v1/ekv/vision/seen/left", headers={"If-None-Match": '"42"'}).status_code == 304
        vision.counts["seen/left"] = 43
        assert http.get("/v1/ekv/vision/seen/left", headers={"If-None-Match": '"42"'}).json() == 43
        assert http.head("/v1/ekv/vision/seen/left").headers["content-length"] == "2"
        check_problem(http.get("/v1/ekv/vision/seen/left?version=43"), 404, "not-found")

    def test_a_value_of_that_name_comes_first(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.put("k", b"value")
        vision.counts["k"] = 1
        assert http.get("/v1/ekv/vision/k").content == b"value"
