"""Routes, authentication, problems and limits, over a store in memory."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served

from edgeflow.api.context import Api
from edgeflow.core.events import Event
from edgeflow.core.manifest import Artifact, parse, resolve, revision_of
from edgeflow.errors import Unavailable
from edgeflow.store.records import DeadLetter, Input, PendingJoin

MANIFEST = """
namespace: vision
functions:
  detect: {image: vision/detect:1, subscribe: frames, publish: faces, place: {pops: [chicago]}}
  classify:
    image: vision/classify:1
    subscribe: {join: [frames, faces]}
    publish: matches
    place: {pops: [la]}
"""


@pytest.fixture(scope="module")
def served_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, str]]:
    api = make_api(tmp_path_factory.mktemp("api"), event_bytes=1000, value_bytes=2000)
    with served(api) as url:
        yield api, url


@pytest.fixture
def api(served_api: tuple[Api, str]) -> Api:
    return served_api[0]


@pytest.fixture
def store(api: Api) -> FakeStore:
    store = FakeStore()
    api.store = store  # type: ignore[assignment]
    return store


@pytest.fixture
def http(served_api: tuple[Api, str], store: FakeStore) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=served_api[1], headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, verify=False
    ) as client:
        yield client


@pytest.fixture
def vision(store: FakeStore) -> FakeNamespace:
    store.create_namespace("vision")
    return store.namespace("vision")


def check_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "hint"}
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["hint"]
    assert "Traceback" not in response.text
    return problem


class TestAuthentication:
    OPEN = ("/healthz", "/readyz", "/live/vision/frames")

    @pytest.mark.parametrize("path", OPEN)
    def test_open_paths_need_no_token(self, http: httpx.Client, path: str) -> None:
        assert http.get(path, headers={"Authorization": ""}).status_code == 200

    @pytest.mark.parametrize(
        "path",
        ["/v1/pops", "/v1/channels", "/v1/channels/vision/frames", "/v1/ekv/vision/k", "/metrics", "/openapi.json", "/nowhere", "/live", "/healthz/x", "//healthz"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer x{TOKEN}"]
    )
    def test_everything_else_needs_the_token(self, http: httpx.Client, path: str, header: str) -> None:
        response = http.get(path, headers={"Authorization": header})
        check_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"

    def test_the_scheme_is_not_case_sensitive(self, http: httpx.Client) -> None:
        assert http.get("/v1/pops", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200

    def test_refused_methods_on_closed_paths_are_401_first(self, http: httpx.Client) -> None:
        check_problem(http.request("PATCH", "/v1/pops", headers={"Authorization": ""}), 401, "unauthorized")


class TestProblems:
    def test_unknown_route(self, http: httpx.Client) -> None:
        check_problem(http.get("/v1/nowhere"), 404, "not-found")

    def test_wrong_method(self, http: httpx.Client) -> None:
        response = http.request("PATCH", "/v1/pops")
        check_problem(response, 405, "method-not-allowed")
        assert "GET" in response.headers["allow"]

    def test_bad_parameter(self, http: httpx.Client, vision: FakeNamespace) -> None:
        problem = check_problem(http.get("/v1/ekv/vision/?limit=zero"), 422, "bad-parameter")
        assert "limit" in problem["detail"]

    def test_a_bug_tells_nothing(self, http: httpx.Client, vision: FakeNamespace) -> None:
        def broken() -> None:
            raise ZeroDivisionError("secret")

        vision.channels = broken  # type: ignore[assignment,method-assign]
        response = http.get("/v1/channels?namespace=vision")
        check_problem(response, 500, "internal")
        assert "secret" not in response.text

    def test_an_away_store_is_503_and_says_when_to_come_back(self, http: httpx.Client, store: FakeStore) -> None:
        store.is_away = True
        response = http.get("/readyz")
        check_problem(response, 503, "store-unavailable")
        assert response.headers["retry-after"] == "1"

    def test_answers_are_never_run_by_a_browser(self, http: httpx.Client) -> None:
        headers = http.get("/v1/pops").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in headers["content-security-policy"]


class TestPublish:
    def test_binary_mode(self, http: httpx.Client, store: FakeStore) -> None:
        headers = {
            "ce-id": "e1", "ce-source": "/cam", "ce-type": "frame", "ce-subject": "clip%2F%C3%BC", "ce-time": "2026-01-02T03:04:05.006Z", "ce-chunk": "7",
            "traceparent": "00-1-2-01", "content-type": "image/jpeg", "ce-origin": "evil", "ce-epoch": "9", "ce-seq": "9", "ce-prev": "9",
        }  # fmt: skip
        response = http.post("/v1/channels/vision/cam/left", content=b"\xff\xd8", headers=headers)
        assert response.status_code == 201
        assert response.json() == {
            "class": "durable",
            "origin": "chicago",
            "epoch": 1,
            "seq": 1,
            "id": "e1",
            "version": None,
        }
        arrival = store.namespace("vision").arrivals[0]
        event = arrival.event
        assert (event.channel, event.id, event.source, event.type, event.subject) == (
            "vision/cam/left",
            "e1",
            "/cam",
            "frame",
            "clip/ü",
        )
        assert event.data == b"\xff\xd8"
        assert event.datacontenttype == "image/jpeg"
        assert event.time_ms == 1767323045006
        assert dict(event.attributes) == {"chunk": "7", "traceparent": "00-1-2-01"}
        assert (event.origin, event.epoch, event.seq) == ("", 0, 0)
        assert arrival.deduplicate
        assert store.has_namespace("vision")

    def test_without_any_header_it_is_a_new_event_each_time(self, http: httpx.Client, store: FakeStore) -> None:
        ids = {http.post("/v1/channels/vision/frames", content=b"x").json()["id"] for _ in range(2)}
        assert len(ids) == 2
        assert not store.namespace("vision").arrivals[0].deduplicate

    def test_structured_mode(self, http: httpx.Client, store: FakeStore) -> None:
        document = {
            "specversion": "1.0",
            "id": "s1",
            "source": "/s",
            "type": "t",
            "data_base64": base64.b64encode(b"abc").decode(),
            "seq": 5,
        }
        response = http.post(
            "/v1/channels/vision/frames", json=document, headers={"content-type": "application/cloudevents+json"}
        )
        assert response.status_code == 201
        event = store.namespace("vision").arrivals[0].event
        assert (event.id, event.data, event.seq) == ("s1", b"abc", 0)

    def test_batches_are_refused_by_name(self, http: httpx.Client) -> None:
        response = http.post(
            "/v1/channels/vision/frames", content=b"[]", headers={"content-type": "application/cloudevents-batch+json"}
        )
        assert "batch" in check_problem(response, 415, "unsupported-media-type")["detail"]

    def test_dataref_to_a_value(self, http: httpx.Client, store: FakeStore) -> None:
        http.put("/v1/ekv/vision/clip7", content=b"video", headers={"content-type": "video/mp4"})
        response = http.post("/v1/channels/vision/chunks", json={"dataref": "ekv:vision/clip7"})
        assert response.status_code == 201
        arrival = store.namespace("vision").arrivals[0]
        assert arrival.dataref == "ekv:vision/clip7"
        assert arrival.event.data == b""

    def test_dataref_that_is_not_readable_yet_waits(self, http: httpx.Client) -> None:
        response = http.post("/v1/channels/vision/chunks", content=b'{"dataref": "ekv:vision/later"}')
        assert response.status_code == 202
        assert response.json()["class"] == "waiting"

    def test_a_json_document_with_more_than_a_dataref_is_data(self, http: httpx.Client, store: FakeStore) -> None:
        http.post("/v1/channels/vision/chunks", json={"dataref": "ekv:vision/x", "n": 1})
        assert store.namespace("vision").arrivals[0].dataref is None

    def test_put_and_publish_in_one(self, http: httpx.Client, store: FakeStore) -> None:
        receipt = http.post("/v1/channels/vision/chunks?put=clips/a", content=b"abc").json()
        assert receipt["version"] == store.namespace("vision").values["clips/a"].version

    def test_put_with_a_dataref_is_refused(self, http: httpx.Client) -> None:
        check_problem(
            http.post("/v1/channels/vision/chunks?put=a", content=b'{"dataref": "ekv:vision/x"}'), 422, "bad-parameter"
        )

    @pytest.mark.parametrize(
        ("params", "headers"),
        [({"ack": "fast"}, {}), ({"ack": "replicated(0)"}, {}), ({}, {"Prefer": "wait=3, ack=replicated"})],
    )
    def test_other_acknowledgement_classes_are_refused_by_name(
        self, http: httpx.Client, params: dict[str, str], headers: dict[str, str]
    ) -> None:
        problem = check_problem(
            http.post("/v1/channels/vision/x", params=params, headers=headers, content=b""), 400, "ack-not-supported"
        )
        assert params.get("ack", "replicated") in problem["detail"]

    def test_durable_may_be_asked_for(self, http: httpx.Client) -> None:
        assert (
            http.post("/v1/channels/vision/x?ack=durable", headers={"Prefer": "ack=durable"}, content=b"").status_code
            == 201
        )

    @pytest.mark.parametrize(
        ("path", "status", "code"),
        [
            ("/v1/channels/Vision/x", 400, "bad-name"), ("/v1/channels/vision/a/+/b", 400, "bad-name"), ("/v1/channels/vision/a%23", 400, "bad-name"),
            ("/v1/channels/vision/a//b", 400, "bad-name"), ("/v1/channels/vision/", 400, "bad-name"), ("/v1/channels/vision/_dead", 403, "reserved"),
            ("/v1/channels/system/x", 403, "reserved"), ("/v1/channels/vision/%00", 400, "bad-name"), ("/v1/channels/vision/" + "x" * 600, 400, "bad-name"),
        ],
    )  # fmt: skip
    def test_bad_channels(self, http: httpx.Client, store: FakeStore, path: str, status: int, code: str) -> None:
        check_problem(http.post(path, content=b"x"), status, code)
        assert not store.has_namespace("vision")

    @pytest.mark.parametrize(
        ("headers", "content"),
        [
            ({"ce-id": ""}, b"x"), ({"ce-Bad_Name": "x"}, b"x"), ({"ce-subject": "a%00b"}, b"x"), ({"ce-subject": "%ff"}, b"x"), ({"ce-time": "now"}, b"x"),
            ({"ce-specversion": "0.3"}, b"x"), ({"ce-datacontenttype": "text/plain"}, b"x"), ({"ce-big": "x" * 5000}, b"x"),
            ({f"ce-a{i}": "x" for i in range(70)}, b"x"), ({"content-type": "application/cloudevents+json"}, b"{"),
            ({"content-type": "application/cloudevents+json"}, b"[" * 900),
        ],
    )  # fmt: skip
    def test_bad_attributes(self, http: httpx.Client, headers: dict[str, str], content: bytes) -> None:
        check_problem(http.post("/v1/channels/vision/x", content=content, headers=headers), 400, "bad-event")

    def test_a_refusal_of_the_store_is_the_answer(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.refuse = Unavailable("the disk is nearly full")
        problem = check_problem(http.post("/v1/channels/vision/x", content=b"x"), 503, "unavailable")
        assert "disk" in problem["detail"]


class TestLimits:
    def test_content_length_is_refused_before_the_body_is_read(self, http: httpx.Client) -> None:
        check_problem(http.post("/v1/channels/vision/x", content=b"x" * 1001), 413, "too-large")

    def test_a_body_without_a_length_is_counted(self, http: httpx.Client) -> None:
        taken = []

        def body() -> Iterator[bytes]:
            for _ in range(100):
                taken.append(1)
                yield b"x" * 100

        response = http.put("/v1/ekv/vision/k", content=body())
        check_problem(response, 413, "too-large")
        assert response.headers["connection"] == "close"

    def test_the_limit_itself_is_fine(self, http: httpx.Client) -> None:
        assert http.post("/v1/channels/vision/x", content=b"x" * 1000).status_code == 201
        assert http.put("/v1/ekv/vision/k", content=b"x" * 2000).status_code == 200

    def test_structured_json_may_be_longer_but_not_its_data(self, http: httpx.Client) -> None:
        def send(size: int) -> Any:
            document = {
                "specversion": "1.0",
                "id": "1",
                "source": "s",
                "type": "t",
                "data_base64": base64.b64encode(b"x" * size).decode(),
            }
            return http.post(
                "/v1/channels/vision/x", json=document, headers={"content-type": "application/cloudevents+json"}
            )

        assert send(1000).status_code == 201
        check_problem(send(1001), 413, "too-large")

    def test_the_budget_of_all_bodies(self, http: httpx.Client, api: Api, wait_until: Callable[..., Any]) -> None:
        budget = api.budget
        budget.take(256 * 1024 * 1024 - 10)
        response = http.put("/v1/ekv/vision/k", content=b"x" * 100)
        check_problem(response, 503, "busy")
        budget.give_back(256 * 1024 * 1024 - 10)
        wait_until(lambda: budget.held_bytes == 0, "given back")
        assert http.put("/v1/ekv/vision/k", content=b"x" * 100).status_code == 200
        wait_until(lambda: budget.held_bytes == 0, "given back")


class TestValues:
    def test_put_get_head_delete(self, http: httpx.Client) -> None:
        put = http.put("/v1/ekv/vision/models/a b%2Fc", content=b"\x00\x01", headers={"content-type": "image/png"})
        assert put.status_code == 200
        tag = put.headers["etag"]
        assert tag == f'"{put.json()["version"]}"'
        got = http.get("/v1/ekv/vision/models/a%20b/c")
        assert (got.content, got.headers["etag"], got.headers["content-type"]) == (b"\x00\x01", tag, "image/png")
        head = http.head("/v1/ekv/vision/models/a%20b/c")
        assert (head.content, head.headers["etag"], head.headers["content-length"]) == (b"", tag, "2")
        assert http.delete("/v1/ekv/vision/models/a%20b/c").status_code == 204
        check_problem(http.get("/v1/ekv/vision/models/a%20b/c"), 404, "not-found")
        check_problem(http.delete("/v1/ekv/vision/models/a%20b/c"), 404, "not-found")

    def test_conditions(self, http: httpx.Client) -> None:
        check_problem(http.put("/v1/ekv/vision/k", content=b"0", headers={"If-Match": "*"}), 412, "version-mismatch")
        first = http.put("/v1/ekv/vision/k", content=b"1", headers={"If-None-Match": "*"})
        assert first.status_code == 200
        check_problem(
            http.put("/v1/ekv/vision/k", content=b"2", headers={"If-None-Match": "*"}), 412, "version-mismatch"
        )
        second = http.put("/v1/ekv/vision/k", content=b"2", headers={"If-Match": first.headers["etag"]})
        assert second.status_code == 200
        check_problem(
            http.put("/v1/ekv/vision/k", content=b"3", headers={"If-Match": first.headers["etag"]}),
            412,
            "version-mismatch",
        )
        check_problem(
            http.delete("/v1/ekv/vision/k", headers={"If-Match": first.headers["etag"]}), 412, "version-mismatch"
        )
        assert http.get("/v1/ekv/vision/k", headers={"If-None-Match": second.headers["etag"]}).status_code == 304
        assert http.head("/v1/ekv/vision/k", headers={"If-None-Match": second.headers["etag"]}).status_code == 304
        assert http.get("/v1/ekv/vision/k", headers={"If-None-Match": first.headers["etag"]}).content == b"2"
        check_problem(
            http.get("/v1/ekv/vision/k", headers={"If-Match": first.headers["etag"]}), 412, "version-mismatch"
        )
        assert http.delete("/v1/ekv/vision/k", headers={"If-Match": "*"}).status_code == 204

    @pytest.mark.parametrize("tag", ["abc", '"a", "b"', '""', '"'])
    def test_bad_tags(self, http: httpx.Client, vision: FakeNamespace, tag: str) -> None:
        check_problem(http.put("/v1/ekv/vision/k", content=b"", headers={"If-Match": tag}), 422, "bad-parameter")

    def test_if_none_match_with_a_version_is_refused_on_put(self, http: httpx.Client) -> None:
        check_problem(http.put("/v1/ekv/vision/k", content=b"", headers={"If-None-Match": '"x"'}), 422, "bad-parameter")

    def test_a_version_that_is_not_kept(self, http: httpx.Client) -> None:
        version = http.put("/v1/ekv/vision/k", content=b"1").json()["version"]
        assert http.get("/v1/ekv/vision/k", params={"version": version}).content == b"1"
        assert "other" in check_problem(http.get("/v1/ekv/vision/k?version=other"), 404, "not-found")["detail"]

    def test_pages(self, http: httpx.Client) -> None:
        for name in ("a/1", "a/2", "a/3", "b/1"):
            http.put(f"/v1/ekv/vision/{name}", content=b"x")
        first = http.get("/v1/ekv/vision/?prefix=a/&limit=2").json()
        assert [item["key"] for item in first["items"]] == ["a/1", "a/2"]
        second = http.get("/v1/ekv/vision", params={"prefix": "a/", "limit": 2, "after": first["next"]}).json()
        assert [item["key"] for item in second["items"]] == ["a/3"]
        assert second["next"] is None

    def test_an_unknown_namespace_is_404_and_is_not_made_by_reading(self, http: httpx.Client, store: FakeStore) -> None:
        check_problem(http.get("/v1/ekv/nothing/k"), 404, "not-found")
        check_problem(http.get("/v1/ekv/nothing/"), 404, "not-found")
        assert not store.has_namespace("nothing")

    def test_the_system_namespace_is_read_only(self, http: httpx.Client) -> None:
        check_problem(http.put("/v1/ekv/system/manifests/x", content=b"{}"), 403, "reserved")
        check_problem(http.delete("/v1/ekv/system/manifests/x"), 403, "reserved")
        assert http.get("/v1/ekv/system/").status_code == 200

    def test_what_curl_says_by_itself_is_no_content_type(self, http: httpx.Client) -> None:
        http.put("/v1/ekv/vision/k", content=b"x", headers={"content-type": "application/x-www-form-urlencoded"})
        assert http.get("/v1/ekv/vision/k").headers["content-type"] == "application/octet-stream"


class TestBlobs:
    def test_a_blob_in_pieces(self, http: httpx.Client, vision: FakeNamespace) -> None:
        data = bytes(range(256)) * 10_000
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        vision.blobs[digest] = data
        got = http.get(f"/v1/blobs/vision/{digest}")
        assert got.content == data
        assert got.headers["etag"] == f'"{digest}"'
        assert http.head(f"/v1/blobs/vision/{digest}").headers["content-length"] == str(len(data))

    def test_absent_and_bad_digests(self, http: httpx.Client, vision: FakeNamespace) -> None:
        check_problem(http.get("/v1/blobs/vision/sha256:" + "0" * 64), 404, "not-found")
        check_problem(http.get("/v1/blobs/vision/sha256:zz"), 400, "bad-request")
        check_problem(http.get("/v1/blobs/vision/..%2f..%2fetc"), 404, "not-found")

    def test_bundles(self, http: httpx.Client, store: FakeStore) -> None:
        data = gzip.compress(b"tar")
        name = hashlib.sha256(data).hexdigest()
        assert http.put(f"/v1/bundles/{name}", content=data).status_code == 201
        assert http.put(f"/v1/bundles/{name}", content=data).status_code == 200
        assert store.namespace("system").values[f"bundles/{name}"].data == data
        check_problem(http.put(f"/v1/bundles/{'0' * 64}", content=data), 400, "bad-bundle")
        check_problem(http.put("/v1/bundles/x", content=data), 400, "bad-bundle")
        other = hashlib.sha256(b"zip").hexdigest()
        check_problem(http.put(f"/v1/bundles/{other}", content=b"zip"), 400, "bad-bundle")


class TestFunctions:
    @staticmethod
    def resolved(applied_ms: int = 1) -> dict[str, Any]:
        return resolve(parse(MANIFEST), {}, applied_ms=applied_ms)

    def test_apply_is_idempotent(self, http: httpx.Client, store: FakeStore) -> None:
        first = http.put("/v1/functions/vision", json=self.resolved())
        assert (first.status_code, first.json()["status"]) == (201, "created")
        again = http.put("/v1/functions/vision", json=self.resolved(applied_ms=2))
        assert (again.status_code, again.json()["status"]) == (200, "unchanged")
        assert again.headers["etag"] == first.headers["etag"]
        changed = resolve(parse(MANIFEST.replace("detect:1", "detect:2")), {}, applied_ms=3)
        assert http.put("/v1/functions/vision", json=changed).json()["status"] == "updated"
        assert store.has_namespace("vision")
        assert http.get("/v1/functions/vision").json()["applied_ms"] == 3

    def test_yaml(self, http: httpx.Client) -> None:
        response = http.put("/v1/functions/vision", content=MANIFEST, headers={"content-type": "application/yaml"})
        assert response.status_code == 201
        assert response.json()["revisions"] == {
            name: function["revision"] for name, function in self.resolved()["functions"].items()
        }

    @pytest.mark.parametrize(
        ("content", "kind", "word"),
        [
            ("{", "application/json", "JSON"), ("[]", "application/json", "object"), ("{}", "application/json", "namespace"),
            ("namespace: vision\nfunctions:\n  a: {build: ./a, subscribe: x, publish: y}\n", "application/yaml", "build"),
            (MANIFEST.replace("[la]", "[mars]"), "application/yaml", "mars"), (MANIFEST.replace("namespace: vision", "namespace: other"), "application/yaml", "other"),
            (MANIFEST.replace("publish: faces", "publish: faces, colour: red"), "application/yaml", "colour"), ("\xff", "application/yaml", ""),
        ],
    )  # fmt: skip
    def test_bad_manifests(self, http: httpx.Client, content: str, kind: str, word: str) -> None:
        response = http.put("/v1/functions/vision", content=content.encode("latin-1"), headers={"content-type": kind})
        assert word in check_problem(response, 400, "bad-manifest")["detail"]

    def test_a_missing_bundle_is_named(self, http: httpx.Client) -> None:
        manifest = parse(
            "namespace: vision\nfunctions:\n  a: {build: ./a, subscribe: x, publish: y, place: {pops: [la]}}\n"
        )
        document = resolve(manifest, {"a": Artifact(bundle="ab" * 32)}, applied_ms=1)
        assert "bundle" in check_problem(http.put("/v1/functions/vision", json=document), 400, "bad-manifest")["detail"]

    def test_another_media_type(self, http: httpx.Client) -> None:
        check_problem(
            http.put("/v1/functions/vision", content=b"", headers={"content-type": "text/html"}),
            415,
            "unsupported-media-type",
        )

    def test_a_function_at_several_pops_is_described_by_the_one_that_is_asked(self, http: httpx.Client) -> None:
        document = self.resolved()
        function = document["functions"]["detect"]
        function["place"] = {"pops": ["la", "chicago"]}
        function["revision"] = revision_of(function)
        assert http.put("/v1/functions/vision", json=document).status_code == 201
        here = http.get("/v1/functions/vision/detect").json()
        assert (here["at"], here["pops"], here["run"]) == ("chicago", ["la", "chicago"], "once")

    def test_status_here_and_elsewhere(self, http: httpx.Client, store: FakeStore) -> None:
        document = self.resolved()
        http.put("/v1/functions/vision", json=document)
        revision = {name: function["revision"] for name, function in document["functions"].items()}
        store.local.documents = {
            "function_state": {
                "vision/detect": {"state": "ready", "revision": revision["detect"], "reason": "", "last_log_lines": []}
            },
            "function_stats": {
                "vision/detect": {"invocations": 5, "failed": 0, "platform_ms": {"p50": 1.0, "p99": 2.0}}
            },
            "instance": {"i1": {"namespace": "vision", "function": "detect", "revision": revision["detect"]}},
            "instance_state": {"i1": {"state": "ready", "in_flight": 1}},
        }
        here = http.get("/v1/functions/vision/detect").json()
        assert (here["state"], here["at"], here["inbox"]["ready"]) == ("ready", "chicago", 3)
        assert here["instances"] == [
            {"instance": "i1", "state": "ready", "in_flight": 1, "revision": revision["detect"]}
        ]
        there = http.get("/v1/functions/vision/classify").json()
        assert (there["state"], there["at"], there["inbox"]) == ("unknown", "la", None)
        store.namespace("system").put(
            "states/vision/classify/la",
            json.dumps({"state": "failing", "revision": revision["classify"], "reason": "no image"}).encode(),
        )
        there = http.get("/v1/functions/vision/classify").json()
        assert (there["state"], there["reason"]) == ("failing", "no image")
        assert len(http.get("/v1/functions").json()["items"]) == 2
        assert http.get("/v1/functions?namespace=other").json()["items"] == []

    def test_a_state_of_an_older_revision_does_not_count(self, http: httpx.Client, store: FakeStore) -> None:
        http.put("/v1/functions/vision", json=self.resolved())
        store.local.documents = {"function_state": {"vision/detect": {"state": "ready", "revision": "old"}}}
        assert http.get("/v1/functions/vision/detect").json()["state"] == "unknown"

    def test_absent_ones(self, http: httpx.Client) -> None:
        check_problem(http.get("/v1/functions/vision"), 404, "not-found")
        check_problem(http.delete("/v1/functions/vision"), 404, "not-found")
        http.put("/v1/functions/vision", json=self.resolved())
        assert "classify" in check_problem(http.get("/v1/functions/vision/nope"), 404, "not-found")["detail"]
        assert http.delete("/v1/functions/vision").status_code == 204


class TestQuestions:
    def test_pops(self, http: httpx.Client, store: FakeStore, vision: FakeNamespace) -> None:
        store.local.documents = {
            "link_state": {"la": {"state": "up", "rtt_ms": 1.5}},
            "gateway_state": {"vision": {"connected": True}},
        }
        here, la, ny = http.get("/v1/pops").json()["items"]
        assert (here["id"], here["self"], here["state"], here["mode"]) == ("chicago", True, "ready", "embedded")
        assert [view["namespace"] for view in here["namespaces"]] == ["system", "vision"]
        assert (la["id"], la["state"], la["link"]["rtt_ms"]) == ("la", "up", 1.5)
        assert (ny["id"], ny["state"]) == ("ny", "unknown")
        store.local.documents["gateway_state"]["vision"]["connected"] = False
        assert http.get("/v1/pops").json()["items"][0]["state"] == "degraded"

    def test_a_runner_that_cannot_work_is_said_at_the_pop(self, tmp_path: Path) -> None:
        api = make_api(tmp_path)
        api.runner_error = lambda: "the Docker engine is not reachable"
        with served(api) as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            (here, *_) = http.get("/v1/pops").json()["items"]
            assert (here["state"], here["reason"]) == ("degraded", "the Docker engine is not reachable")
            assert http.get("/readyz").status_code == 200, "it takes writes"

    def test_joins_and_dead_letters(self, http: httpx.Client, vision: FakeNamespace) -> None:
        vision.joins = [PendingJoin("classify", "clip/1", "all", ["frames"], 2, 1000, 2000)]
        assert http.get("/v1/joins?namespace=vision").json()["items"][0]["have"] == ["frames"]
        event = Event("vision/frames", "e1", "s", "t", 0, data=b"x")
        vision.letters = [
            DeadLetter(f"d{i}", "classify", "r", "failed", "ValueError: no", 5 + i, 5, (Input("frames", event),))
            for i in range(3)
        ]
        page = http.get("/v1/dead-letters?namespace=vision&limit=2").json()
        assert [item["id"] for item in page["items"]] == ["d0", "d1"]
        assert [
            item["id"]
            for item in http.get("/v1/dead-letters", params={"namespace": "vision", "after": page["next"]}).json()[
                "items"
            ]
        ] == ["d2"]
        assert len(http.get("/v1/dead-letters").json()["items"]) == 3
        assert http.get("/v1/dead-letters/vision/d1").json()["inputs"][0]["event"]["id"] == "e1"
        check_problem(http.get("/v1/dead-letters/vision/nope"), 404, "not-found")

    def test_channels(self, http: httpx.Client) -> None:
        http.post("/v1/channels/vision/b", content=b"")
        http.post("/v1/channels/vision/a", content=b"")
        assert http.get("/v1/channels").json()["items"] == [
            {"channel": "vision/a", "events": 1},
            {"channel": "vision/b", "events": 1},
        ]
        check_problem(http.get("/v1/channels?namespace=other"), 404, "not-found")

    def test_metrics(self, http: httpx.Client, store: FakeStore, vision: FakeNamespace) -> None:
        vision.joins = [PendingJoin("classify", "clip/1", "all", ["frames"], 2, 1000, 2000)]
        store.local.documents = {
            "function_state": {"vision/detect": {"state": "ready", "revision": "r"}},
            "function_stats": {
                "vision/detect": {
                    "invocations": 5,
                    "failed": 1,
                    "platform_ms": {"p50": 1.5, "p99": 20},
                    "waiting_ms": None,
                }
            },
            "link_state": {"la": {"state": "up", "rtt_ms": 1.5, "entries_behind": 3, "last_error": None}},
            "gateway_state": {"vision": {"connected": True}},
        }
        response = http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in (
            'edgeflow_events_total{namespace="vision",reason="rejected",what="arrivals_dropped"} 2.0', 'edgeflow_joins_pending{function="classify",namespace="vision"} 1.0',
            'edgeflow_inbox_invocations{function="detect",namespace="vision",state="ready"} 3.0', 'edgeflow_link_up{peer="la"} 1.0',
            'edgeflow_function_seconds{function="detect",namespace="vision",quantile="0.5",what="platform"} 0.0015', 'edgeflow_link_round_trip_seconds{peer="la"} 0.0015',
            'edgeflow_gateway_connected{namespace="vision"} 1.0',
        ):  # fmt: skip
            assert line in response.text, line


class TestDescription:
    def test_openapi_is_whole(self, http: httpx.Client) -> None:
        document = http.get("/openapi.json").json()
        ids = []
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                ids.append(operation["operationId"])
                assert operation["summary"], (path, method)
                assert operation["description"], (path, method)
                if path.startswith("/v1"):
                    problem = operation["responses"]["401"]["content"]["application/problem+json"]["schema"]
                    assert problem == {"$ref": "#/components/schemas/Problem"}
        assert len(ids) == len(set(ids))
        text = json.dumps(document)
        for name in re.findall(r"#/components/schemas/(\w+)", text):
            assert name in document["components"]["schemas"], name
        assert "HTTPValidationError" not in text

    def test_each_route_is_in_the_documentation(self, http: httpx.Client) -> None:
        page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
        for path, operations in http.get("/openapi.json").json()["paths"].items():
            for method in operations:
                assert f"`{method.upper()} {path}`" in page, f"{method.upper()} {path}"

    def test_the_page_is_self_contained(self, http: httpx.Client) -> None:
        response = http.get("/live/vision/augmented")
        policy = response.headers["content-security-policy"]
        for kind in ("script", "style"):
            for block in re.findall(rf"<{kind}>(.*?)</{kind}>", response.text, re.DOTALL):
                assert base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() in policy
        assert "default-src 'none'" in policy
        assert not re.search(r"(src|href)=\"(?!data:)", response.text)
        assert "https://" not in response.text
        check_problem(http.get("/live/Vision/x"), 400, "bad-name")
