"""The doors of the key-value store over a store in memory: what each takes and answers, and what each refuses by name."""

import base64
import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served

from edgeflow.api.consistency import parse_durability
from edgeflow.api.context import Api
from edgeflow.api.problems import BadParameter
from edgeflow.core.policies import Policies, parse_rules
from edgeflow.core.tokens import Session, parse_session
from edgeflow.errors import HomeElsewhere, StaleHome, Unavailable, VersionMismatch
from edgeflow.store.records import Value

V = "1700000000001.00000@chicago"


@pytest.fixture(scope="module")
def served_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, str]]:
    api = make_api(tmp_path_factory.mktemp("api"), value_bytes=100_000)
    with served(api) as url:
        yield api, url


@pytest.fixture
def store(served_api: tuple[Api, str]) -> FakeStore:
    api = served_api[0]
    store = FakeStore()
    api.store = store  # type: ignore[assignment]
    api.policies._store = store  # type: ignore[assignment]
    api.stands.clear()
    api.asking.clear()
    return store


@pytest.fixture
def http(served_api: tuple[Api, str], store: FakeStore) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=served_api[1], headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, verify=False
    ) as client:
        yield client


@pytest.fixture
def ns(store: FakeStore) -> FakeNamespace:
    store.create_namespace("ns")
    return store.namespace("ns")


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    return document


def token(**seqs: int) -> str:
    return Session("ns").with_vector({(pop, 1): seq for pop, seq in seqs.items()}).text()


class TestBadInput:
    @pytest.mark.parametrize(
        ("query", "named"),
        [
            ("consistency=eventual", "consistency"),
            ("max_staleness=soon", "max_staleness"),
            ("max_staleness=-1", "max_staleness"),
            ("wait=forever", "wait"),
            ("wait=2h", "at most 60 s"),
            ("version=1&wait=1s", "is not a version"),
            ("version=99&consistency=strong", "reads the current version"),
        ],
    )
    def test_words_of_a_read_that_there_are_not(
        self, http: httpx.Client, ns: FakeNamespace, query: str, named: str
    ) -> None:
        assert named in problem(http.get(f"/v1/ekv/ns/k?{query}"), 422, "bad-parameter")["detail"]

    @pytest.mark.parametrize(
        ("query", "named"),
        [
            ("durability=fast", "'fast' is not a class"),
            ("durability=replicated", "'replicated' is not a class"),
            ("durability=replicated:0", "is not a class"),
            ("durability=replicated:3", "more than the 2 other PoPs"),
            ("consistency=sloppy", "consistency"),
            ("ttl=0s", "1 ms at least"),
            ("ttl=never", "is not a duration"),
        ],
    )
    def test_words_of_a_write_that_there_are_not(
        self, http: httpx.Client, ns: FakeNamespace, query: str, named: str
    ) -> None:
        for answer in (
            http.put(f"/v1/ekv/ns/k?{query}", content=b"x"),
            *([] if "ttl" in query else [http.post(f"/v1/ekv/ns/n?op=increment&{query}")]),
        ):
            assert named in problem(answer, 422, "bad-parameter")["detail"]
        assert ns.batches == []

    @pytest.mark.parametrize("key", ["a//b", "a/", "%23", "a+b", "a%00b", "x" * 513, "%2F"])
    def test_illegal_keys(self, http: httpx.Client, ns: FakeNamespace, key: str) -> None:
        for answer in (
            http.put(f"/v1/ekv/ns/{key}", content=b"x"),
            http.get(f"/v1/ekv/ns/{key}"),
            http.delete(f"/v1/ekv/ns/{key}"),
            http.post(f"/v1/ekv/ns/{key}?op=increment"),
        ):
            problem(answer, 400, "bad-name")
        name = httpx.URL(f"http://h/{key}").path[1:]
        batch = {"writes": [{"op": "put", "key": "fine", "data": "x"}, {"op": "put", "key": name, "data": "x"}]}
        problem(http.post("/v1/ekv/ns", json=batch), 400, "bad-name")
        assert ns.batches == []

    @pytest.mark.parametrize("key", ["_consumers/x", "_x"])
    def test_keys_of_edgeflow(self, http: httpx.Client, ns: FakeNamespace, key: str) -> None:
        problem(http.put(f"/v1/ekv/ns/{key}", content=b"x"), 403, "reserved")
        problem(http.post(f"/v1/ekv/ns/{key}?op=add", json={"elements": ["x"]}), 403, "reserved")
        problem(http.post("/v1/ekv/ns", json={"writes": [{"op": "delete", "key": key}]}), 403, "reserved")

    def test_the_system_namespace(self, http: httpx.Client) -> None:
        problem(http.put("/v1/ekv/system/policies/ns", content=b"x"), 403, "reserved")
        problem(http.post("/v1/ekv/system", json={"writes": [{"op": "put", "key": "k", "data": ""}]}), 403, "reserved")
        problem(http.put("/v1/policies/system", json={"rules": []}), 403, "reserved")

    def test_tokens_of_another_namespace_and_none_at_all(self, http: httpx.Client, ns: FakeNamespace) -> None:
        other = Session("other").with_vector({("la", 1): 3}).text()
        for bad, named in (
            (other, "'other', not of 'ns'"),
            ("rubbish", "is not a session token"),
            ("ns:!", "is not what"),
        ):
            headers = {"Edgeflow-Session": bad}
            for answer in (
                http.get("/v1/ekv/ns/k", headers=headers),
                http.get("/v1/ekv/ns", headers=headers),
                http.put("/v1/ekv/ns/k", content=b"x", headers=headers),
            ):
                assert named in problem(answer, 400, "bad-session")["detail"]
        assert ns.batches == []

    def test_a_wrong_type(self, http: httpx.Client, ns: FakeNamespace) -> None:
        http.put("/v1/ekv/ns/value", content=b"x")
        http.post("/v1/ekv/ns/count?op=increment")
        problem(http.post("/v1/ekv/ns/value?op=increment"), 409, "wrong-type")
        problem(http.post("/v1/ekv/ns/count?op=add", json={"elements": ["x"]}), 409, "wrong-type")
        problem(http.put("/v1/ekv/ns/count", content=b"x"), 409, "wrong-type")

    @pytest.mark.parametrize(
        ("op", "body", "status", "code", "named"),
        [
            ("grow", b"{}", 422, "bad-parameter", "op"),
            ("increment", b"{", 400, "bad-request", "not JSON"),
            ("increment", b'{"by": "3"}', 422, "bad-parameter", "by"),
            ("increment", b'{"by": 1.5}', 422, "bad-parameter", "by"),
            ("increment", b'{"add": 1}', 422, "bad-parameter", "add"),
            ("add", b'{"elements": []}', 422, "bad-parameter", "elements"),
            ("add", b'{"elements": "x"}', 422, "bad-parameter", "elements"),
            ("remove", b"", 400, "bad-request", "not JSON"),
            ("set", b'{"fields": {"a": 1}}', 422, "bad-parameter", "fields"),
            ("set", b'{"fields": {"a": {"data_base64": "!"}}}', 422, "bad-parameter", "data_base64"),
            ("unset", b'{"fields": [1]}', 422, "bad-parameter", "fields"),
        ],
    )
    def test_operations(
        self, http: httpx.Client, ns: FakeNamespace, op: str, body: bytes, status: int, code: str, named: str
    ) -> None:
        assert named in problem(http.post(f"/v1/ekv/ns/k?op={op}", content=body), status, code)["detail"]
        assert ns.batches == []

    @pytest.mark.parametrize(
        ("writes", "named"),
        [
            ([], "writes"),
            ([{"op": "put", "key": "k"}], "exactly one of data, json and data_base64"),
            ([{"op": "put", "key": "k", "data": "x", "json": 1}], "exactly one of"),
            ([{"op": "put", "key": "k", "data_base64": "?"}], "not base64"),
            ([{"op": "put", "key": "k", "data": "x", "ttl": "0s"}], "ttl"),
            ([{"op": "put", "key": "k", "data": "x", "tll": "1s"}], "tll"),
            ([{"op": "take", "key": "k"}], "op"),
            ([{"op": "delete"}], "key"),
            ([{"op": "increment", "key": "k", "by": True}], "by"),
            ([{"op": "put", "key": "k", "data": "x"}] * 1001, "writes"),
        ],
    )
    def test_batches(self, http: httpx.Client, ns: FakeNamespace, writes: Any, named: str) -> None:
        assert named in problem(http.post("/v1/ekv/ns", json={"writes": writes}), 422, "bad-parameter")["detail"]
        assert ns.batches == []

    @pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 201])
    def test_ids(self, http: httpx.Client, ns: FakeNamespace, key: str) -> None:
        headers = {"Idempotency-Key": key.encode()}
        problem(http.put("/v1/ekv/ns/k", content=b"x", headers=headers), 422, "bad-parameter")

    def test_a_body_that_ends_early_or_is_not_what_it_says(
        self, served_api: tuple[Api, str], http: httpx.Client, ns: FakeNamespace
    ) -> None:
        wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        problem(
            http.put("/v1/ekv/ns/k", content=b"x", headers={"Repr-Digest": f"sha-256=:{wrong}:"}),
            400,
            "digest-mismatch",
        )
        problem(http.put("/v1/ekv/ns/k", content=b"x" * 100_001), 413, "too-large")
        address = urlsplit(served_api[1])
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=5) as sock:
            head = f"PUT /v1/ekv/ns/k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 10\r\n\r\nabc"
            sock.sendall(head.encode())
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1000)
        # Longer than announced: what is too much is no part of this request, and is no request either.
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=5) as sock:
            sock.sendall(head.replace("10", "2").encode())
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert len(ns.batches) == 1
        assert http.get("/v1/ekv/ns/k").content == b"ab"

    def test_ranges(self, http: httpx.Client, ns: FakeNamespace) -> None:
        http.put("/v1/ekv/ns/k", content=b"0123456789")
        answer = http.get("/v1/ekv/ns/k", headers={"Range": "bytes=10-"})
        assert problem(answer, 416, "bad-range")["size"] == 10
        assert answer.headers["content-range"] == "bytes */10"

    def test_receipts_and_places(self, http: httpx.Client, ns: FakeNamespace) -> None:
        problem(http.get("/v1/receipts/ns/la/0/1"), 422, "bad-parameter")
        problem(http.get("/v1/receipts/ns/la/x/1"), 422, "bad-parameter")
        assert "'mars'" in problem(http.get("/v1/receipts/ns/la/1/1?pop=mars"), 422, "bad-parameter")["detail"]
        problem(http.get("/v1/receipts/none/la/1/1"), 404, "not-found")
        problem(http.get("/v1/ekv/ns?watch=1", headers={"Last-Event-ID": "nonsense"}), 422, "bad-parameter")
        problem(http.get("/v1/ekv/ns?watch=1&from_version=1"), 422, "bad-parameter")
        problem(http.get("/v1/ekv/none?watch=1"), 404, "not-found")
        assert "a list" in problem(http.get("/v1/ekv/ns?consistency=strong"), 422, "bad-parameter")["detail"]

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"rules": "x"}, 422, "bad-parameter"),
            ({"rules": [], "more": 1}, 422, "bad-parameter"),
            ({"rules": [{"prefix": "a", "home": "mars"}]}, 400, "bad-policy"),
            ({"rules": [{"prefix": "a//b", "place": "lazy"}]}, 400, "bad-policy"),
        ],
    )
    def test_policies(self, http: httpx.Client, ns: FakeNamespace, body: Any, status: int, code: str) -> None:
        problem(http.put("/v1/policies/ns", json=body), status, code)
        problem(http.post("/v1/policies/ns/move", json={"prefix": "a", "to": "mars"}), 400, "bad-policy")
        problem(http.post("/v1/policies/ns/move", json={"prefix": "a", "to": "la"}), 404, "not-found")


class TestReading:
    def test_ranges_of_inline_and_stored_bodies(self, http: httpx.Client, ns: FakeNamespace) -> None:
        big = bytes(range(256)) * 300
        ns.put("big", ref=ns.put_blob(big), content_type="image/png")
        http.put("/v1/ekv/ns/small", content=big[:1000])
        for name, body in (("big", big), ("small", big[:1000])):
            part = http.get(f"/v1/ekv/ns/{name}", headers={"Range": "bytes=10-29"})
            assert (part.status_code, part.content) == (206, body[10:30])
            assert part.headers["content-range"] == f"bytes 10-29/{len(body)}"
            assert part.headers["content-length"] == "20"
            assert http.get(f"/v1/ekv/ns/{name}", headers={"Range": "bytes=-5"}).content == body[-5:]
            tag = part.headers["etag"]
            for if_range, status in ((tag, 206), ('"other"', 200)):
                answer = http.get(f"/v1/ekv/ns/{name}", headers={"Range": "bytes=0-0", "If-Range": if_range})
                assert answer.status_code == status
            assert http.get(f"/v1/ekv/ns/{name}").content == body
        digest = base64.b64encode(hashlib.sha256(big).digest()).decode()
        assert http.get("/v1/ekv/ns/big").headers["repr-digest"] == f"sha-256=:{digest}:"

    def test_types(self, http: httpx.Client, ns: FakeNamespace) -> None:
        assert http.post("/v1/ekv/ns/n?op=increment").status_code == 200
        http.post("/v1/ekv/ns/n?op=increment", json={"by": 2**60})
        http.post("/v1/ekv/ns/s?op=add", json={"elements": ["b", "a", "ü"]})
        http.post("/v1/ekv/ns/s?op=remove", json={"elements": ["b"]})
        fields = {"text": "ü", "raw": {"data_base64": base64.b64encode(b"\xff").decode()}, "gone": "x"}
        http.post("/v1/ekv/ns/m?op=set", json={"fields": fields})
        http.post("/v1/ekv/ns/m?op=unset", json={"fields": ["gone"]})
        del fields["gone"]
        for key, kind, content in (("n", "counter", 2**60 + 1), ("s", "set", ["a", "ü"]), ("m", "map", fields)):
            answer = http.get(f"/v1/ekv/ns/{key}")
            assert answer.json() == content
            assert answer.headers["edgeflow-kind"] == kind
            assert answer.headers["content-type"] == "application/json"
            head = http.head(f"/v1/ekv/ns/{key}")
            assert head.headers["content-length"] == str(len(answer.content))
            assert http.get(f"/v1/ekv/ns/{key}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        kinds = {item["key"]: item["kind"] for item in http.get("/v1/ekv/ns").json()["items"]}
        assert kinds == {"n": "counter", "s": "set", "m": "map"}

    def test_versions(self, http: httpx.Client, ns: FakeNamespace) -> None:
        http.put("/v1/ekv/ns/k", content=b"won")
        lost = "1600000000000.00000@la"
        ns.losers["k"] = [Value("k", lost, 4, None, None, b"lost", origin="la")]
        for query in ("versions", "versions=1"):
            items = http.get(f"/v1/ekv/ns/k?{query}").json()["items"]
            assert [(item["current"], item["origin"]) for item in items] == [(True, "chicago"), (False, "la")]
        assert http.get("/v1/ekv/ns/k", params={"version": lost}).content == b"lost"
        problem(http.get("/v1/ekv/ns/none?versions"), 404, "not-found")

    def test_a_version_that_comes_later_is_waited_for(self, http: httpx.Client, ns: FakeNamespace) -> None:
        http.put("/v1/ekv/ns/k", content=b"1")
        later = "1700000000999.00000@la"
        problem(http.get("/v1/ekv/ns/k", params={"version": later, "wait": "0.1s"}), 503, "behind")
        version = ns.values["k"].version
        assert http.get("/v1/ekv/ns/k", params={"version": version, "wait": "5s"}).content == b"1"
        assert http.get("/v1/ekv/none/k", params={"version": later, "wait": "0.05s"}).status_code == 503

    def test_deadlines(self, http: httpx.Client, ns: FakeNamespace) -> None:
        http.put("/v1/ekv/ns/k?ttl=90s", content=b"x")
        assert http.get("/v1/ekv/ns/k").headers["edgeflow-expires"] == "1700000090000"
        assert http.get("/v1/ekv/ns").json()["items"][0]["expires_ms"] == 1_700_000_090_000


class TestSessions:
    def test_a_pop_that_has_not_what_was_seen_waits_and_then_says_so(
        self, http: httpx.Client, ns: FakeNamespace
    ) -> None:
        http.put("/v1/ekv/ns/k", content=b"x")
        headers = {"Edgeflow-Session": token(la=5)}
        answer = http.get("/v1/ekv/ns/k?wait=0.1s", headers=headers)
        assert "chicago" in problem(answer, 503, "behind")["detail"]
        assert answer.headers["retry-after"]
        assert http.get("/v1/ekv/ns/k?consistency=local", headers=headers).content == b"x"
        ns.applied_here["la", 1] = 5
        answer = http.get("/v1/ekv/ns/k", headers=headers)
        assert answer.content == b"x"
        told = parse_session(answer.headers["edgeflow-session"], "ns")
        assert told.missing({("la", 1): 5, ("chicago", 1): ns._clock}) == 0
        assert told.missing({("la", 1): 4, ("chicago", 1): ns._clock}) == 1
        # What is not there was seen not to be there, and lists show as much.
        assert http.get("/v1/ekv/ns/none?consistency=session").status_code == 404
        assert "edgeflow-session" in http.get("/v1/ekv/ns?consistency=session").headers
        assert "edgeflow-session" not in http.get("/v1/ekv/ns/k").headers

    def test_a_write_waits_for_what_was_seen_so_that_it_is_newer(self, http: httpx.Client, ns: FakeNamespace) -> None:
        headers = {"Edgeflow-Session": token(la=5)}
        problem(http.put("/v1/ekv/ns/k?wait=0.1s", content=b"x", headers=headers), 503, "behind")
        problem(http.post("/v1/ekv/ns/n?op=increment&wait=0.1s", json={"by": 1}, headers=headers), 503, "behind")
        assert http.get("/v1/ekv/ns/k").status_code == 404
        ns.applied_here["la", 1] = 5
        assert http.put("/v1/ekv/ns/k", content=b"x", headers=headers).status_code == 200

    def test_what_every_member_has_is_left_out(self, http: httpx.Client, store: FakeStore, ns: FakeNamespace) -> None:
        store.mailbox.answers["stand"] = lambda _args: {
            "passed": [["la", 1, 5], ["chicago", 1, 10**6]], "staleness_ms": 0, "floor": "",
        }  # fmt: skip
        ns.applied_here.update({("la", 1): 6, ("ny", 1): 1})
        answer = http.put("/v1/ekv/ns/k", content=b"x", headers={"Edgeflow-Session": token(la=5, ny=1)})
        assert parse_session(answer.headers["edgeflow-session"], "ns") == parse_session(token(ny=1), "ns")

    def test_a_wide_token_is_served_when_this_pop_is_complete_now(
        self, http: httpx.Client, store: FakeStore, ns: FakeNamespace
    ) -> None:
        http.put("/v1/ekv/ns/k", content=b"x")
        headers = {"Edgeflow-Session": Session("ns", is_wide=True).text()}
        problem(http.get("/v1/ekv/ns/k?wait=0.1s", headers=headers), 503, "behind")
        staleness: list[int | None] = [60_000]
        store.mailbox.answers["sync"] = lambda _args: {"staleness_ms": staleness[0]}
        problem(http.get("/v1/ekv/ns/k?wait=0.1s", headers=headers), 503, "behind")
        staleness[0] = 0
        answer = http.get("/v1/ekv/ns/k", headers=headers)
        assert answer.content == b"x"

    def test_staleness(self, http: httpx.Client, store: FakeStore, ns: FakeNamespace) -> None:
        http.put("/v1/ekv/ns/k", content=b"x")
        known: dict[str, int | None] = {"stand": None, "sync": None}
        for kind in known:
            store.mailbox.answers[kind] = lambda _args, kind=kind: {
                "passed": [],
                "staleness_ms": known[kind],
                "floor": "",
            }  # type: ignore[misc]
        assert "unknown" in problem(http.get("/v1/ekv/ns/k?max_staleness=100ms"), 503, "stale")["detail"]
        known["sync"] = 150
        assert "150 ms" in problem(http.get("/v1/ekv/ns/k?max_staleness=100"), 503, "stale")["detail"]
        assert http.get("/v1/ekv/ns/k?max_staleness=200").content == b"x"
        ns.values["copy"] = Value("copy", V, 1, None, None, b"c", origin="la")
        assert "age" not in http.get("/v1/ekv/ns/copy").headers
        store.mailbox.answers["stand"] = lambda _args: {"passed": [], "staleness_ms": 3500, "floor": ""}
        http.get("/v1/ekv/ns?consistency=local")
        assert http.get("/v1/ekv/ns/k").headers.get("age") is None


class TestWriting:
    def test_a_repeated_write_is_one(self, http: httpx.Client, ns: FakeNamespace) -> None:
        headers = {"Idempotency-Key": "order-7"}
        first = http.post("/v1/ekv/ns/n?op=increment", json={"by": 5}, headers=headers).json()
        again = http.post("/v1/ekv/ns/n?op=increment", json={"by": 5}, headers=headers).json()
        assert again == {**first, "duplicate": True}
        assert http.get("/v1/ekv/ns/n").json() == 5
        http.post("/v1/ekv/ns/n?op=increment", json={"by": 5})
        assert http.get("/v1/ekv/ns/n").json() == 10

    def test_a_batch_happens_as_a_whole(self, http: httpx.Client, ns: FakeNamespace) -> None:
        writes = [
            {"op": "put", "key": "a", "json": {"ü": [1]}},
            {"op": "put", "key": "b", "data": "text", "ttl": "1h"},
            {"op": "increment", "key": "n", "by": -2},
            {"op": "add", "key": "s", "elements": ["x"]},
            {"op": "set", "key": "m", "fields": {"f": "v"}},
        ]
        answer = http.post("/v1/ekv/ns", json={"writes": writes})
        assert answer.json()["class"] == "durable"
        assert answer.headers["edgeflow-receipt"] == f"chicago/1/{answer.json()['seq']}"
        assert len(ns.batches) == 1
        assert http.get("/v1/ekv/ns/a").content == '{"ü":[1]}'.encode()
        assert http.get("/v1/ekv/ns/a").headers["content-type"] == "application/json"
        assert http.get("/v1/ekv/ns/b").headers["content-type"] == "text/plain; charset=utf-8"
        writes[0] = {"op": "put", "key": "a", "data": "no", "if_version": "other"}
        problem(http.post("/v1/ekv/ns", json={"writes": writes}), 412, "version-mismatch")
        assert len(ns.batches) == 1

    def test_copies(self, http: httpx.Client, store: FakeStore, ns: FakeNamespace) -> None:
        confirmed = [0]
        store.mailbox.answers["await"] = lambda _args: {"confirmed": confirmed[0]}
        answer = http.put("/v1/ekv/ns/k?durability=replicated:1&wait=0.1s", content=b"x")
        told = problem(answer, 504, "not-replicated")
        assert told["receipt"]["class"] == "durable"
        assert told["confirmed"] == 0
        assert told["session"] == answer.headers["edgeflow-session"]
        assert answer.headers["etag"]
        assert http.get("/v1/ekv/ns/k").content == b"x"
        confirmed[0] = 2
        answer = http.put("/v1/ekv/ns/k?durability=replicated:1", content=b"y")
        assert answer.json()["class"] == "replicated:2"
        _, asked = [one for one in store.mailbox.asked if one[0] == "await"][-1]
        assert {name: asked[name] for name in ("ns", "origin", "k")} == {"ns": "ns", "origin": "chicago", "k": 1}
        store.mailbox.answers.clear()
        answer = http.put("/v1/ekv/ns/k?durability=replicated:1&wait=0.1s", content=b"z")
        assert problem(answer, 504, "not-replicated")["receipt"]["seq"]

    def test_an_event_with_copies(self, http: httpx.Client, store: FakeStore, ns: FakeNamespace) -> None:
        confirmed = [1]
        store.mailbox.answers["await"] = lambda _args: {"confirmed": confirmed[0]}
        for url in ("/v1/channels/ns/c?ack=replicated:1", "/v1/channels/ns/c?ack=replicated(1)"):
            assert http.post(url, content=b"x").json()["class"] == "replicated:1"
        prefer = {"Prefer": "ack=replicated:1, wait=3"}
        assert http.post("/v1/channels/ns/c", content=b"x", headers=prefer).json()["class"] == "replicated:1"
        confirmed[0] = 0
        told = problem(http.post("/v1/channels/ns/c?ack=replicated:1&wait=0.1s", content=b"x"), 504, "not-replicated")
        assert told["receipt"]["class"] == "durable"
        assert len(ns.released) == 4
        problem(http.post("/v1/channels/ns/c?ack=replicated:3", content=b"x"), 422, "bad-parameter")
        waiting = http.post("/v1/channels/ns/c?ack=replicated:1", json={"dataref": "ekv:ns/later"})
        assert (waiting.status_code, waiting.json()["class"]) == (202, "waiting")
        assert len(ns.released) == 4

    def test_durability_words(self) -> None:
        assert [parse_durability(text) for text in (None, "durable", "replicated:1", "replicated(2)")] == [0, 0, 1, 2]
        for text in ("", "replicated:", "replicated:x", "replicated:100", "durable:1"):
            with pytest.raises(BadParameter):
                parse_durability(text)


class TestHomes:
    @pytest.fixture
    def asked(self, store: FakeStore, ns: FakeNamespace) -> list[dict[str, Any]]:
        ns.rules = Policies(parse_rules([{"prefix": "h/", "home": "la"}, {"prefix": "mine/", "home": "chicago"}]), 1)
        asked: list[dict[str, Any]] = []

        def answer(arguments: dict[str, Any]) -> dict[str, Any]:
            asked.append(arguments)
            if arguments["op"] == "write":
                return {
                    "receipt": {"class": "durable", "origin": "la", "epoch": 1, "seq": 9, "id": "la/1/9", "version": V}
                }
            value = {
                "key": "h/k", "version": V, "size": 4, "content_type": "text/plain", "digest": None, "kind": "register", "origin": "la",
                "expires_ms": None, "data": b"home", "content": None,
            }  # fmt: skip
            return {"value": value if arguments["key"] == "h/k" else None, "seen": [["la", 1, 9]]}

        store.mailbox.answers["home"] = answer
        return asked

    def test_a_write_goes_to_the_home_with_its_id_and_conditions(
        self, http: httpx.Client, asked: list[dict[str, Any]]
    ) -> None:
        headers = {"If-Match": f'"{V}"', "Idempotency-Key": "once"}
        answer = http.put("/v1/ekv/ns/h/k?ttl=1s", content=b"x", headers=headers)
        assert (answer.json()["origin"], answer.headers["etag"]) == ("la", f'"{V}"')
        (question,) = asked
        assert (question["pop"], question["ns"], question["id"], question["strong"]) == ("la", "ns", "key|once", False)
        assert question["writes"] == [
            {"op": "put", "key": "h/k", "data": b"x", "ttl_ms": 1000, "if_version": V, "if_absent": False}
        ]
        seen = parse_session(answer.headers["edgeflow-session"], "ns")
        assert seen.missing({("la", 1): 9}) == 0 < seen.missing({})
        assert http.delete("/v1/ekv/ns/h/k").status_code == 204

    def test_a_large_body_goes_as_a_reference(
        self, http: httpx.Client, ns: FakeNamespace, asked: list[dict[str, Any]]
    ) -> None:
        http.put("/v1/ekv/ns/h/k", content=b"x" * 90_000)
        digest = "sha256:" + hashlib.sha256(b"x" * 90_000).hexdigest()
        assert asked[0]["needs"] == [digest]
        assert asked[0]["writes"][0]["ref"] == [digest, 90_000]
        assert digest in ns.blobs

    def test_strong(self, http: httpx.Client, ns: FakeNamespace, asked: list[dict[str, Any]]) -> None:
        answer = http.get("/v1/ekv/ns/h/k?consistency=strong")
        assert (answer.content, answer.headers["content-type"]) == (b"home", "text/plain")
        problem(http.get("/v1/ekv/ns/h/none?consistency=strong"), 404, "not-found")
        assert http.put("/v1/ekv/ns/h/k?consistency=strong", content=b"x").status_code == 200
        assert asked[-1]["strong"] is True
        for answer in (
            http.get("/v1/ekv/ns/free?consistency=strong"),
            http.put("/v1/ekv/ns/free?consistency=strong", content=b"x"),
        ):
            assert "'free'" in problem(answer, 422, "no-home")["detail"]
        assert http.put("/v1/ekv/ns/mine/k?consistency=strong", content=b"m").json()["origin"] == "chicago"
        assert http.get("/v1/ekv/ns/mine/k?consistency=strong").content == b"m"
        problem(
            http.put("/v1/ekv/ns/h/k?consistency=strong", content=b"x", headers={"If-Match": "*"}), 422, "bad-parameter"
        )

    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (Unavailable("the link to la is down"), 503, "home-unreachable"),
            (VersionMismatch("other"), 412, "version-mismatch"),
            (StaleHome("moving", details={"home": "la"}), 409, "stale-home"),
            (HomeElsewhere("moved", details={"home": "ny"}), 421, "home-elsewhere"),
        ],
    )
    def test_what_the_home_says_is_passed_on(
        self,
        http: httpx.Client,
        store: FakeStore,
        asked: list[dict[str, Any]],
        error: Exception,
        status: int,
        code: str,
    ) -> None:
        def refuse(_arguments: dict[str, Any]) -> dict[str, Any]:
            raise error

        store.mailbox.answers["home"] = refuse
        answer = http.put("/v1/ekv/ns/h/k?wait=0.2s", content=b"x")
        if code == "home-elsewhere":  # and this PoP still says la
            assert answer.status_code in (409, 421)
        else:
            problem(answer, status, code)
        assert asked == []

    def test_a_home_that_is_being_handed_over_is_asked_again(
        self, http: httpx.Client, store: FakeStore, asked: list[dict[str, Any]]
    ) -> None:
        whole: Callable[[dict[str, Any]], dict[str, Any]] = store.mailbox.answers["home"]
        times = [0]

        def later(arguments: dict[str, Any]) -> dict[str, Any]:
            times[0] += 1
            if times[0] < 3:
                raise StaleHome("moving", details={"home": "ny"})
            return whole(arguments)

        store.mailbox.answers["home"] = later
        assert http.put("/v1/ekv/ns/h/k", content=b"x").status_code == 200
        assert len(asked) == 1


class TestPolicies:
    def test_rules_are_set_shown_and_change_with_their_version(self, http: httpx.Client, ns: FakeNamespace) -> None:
        assert http.get("/v1/policies/ns").json() == {"namespace": "ns", "term": 0, "rules": [], "version": None}
        rules = [{"prefix": "a/", "place": {"pin": ["la"]}, "home": "la"}, {"prefix": "", "place": "lazy"}]
        first = http.put("/v1/policies/ns", json={"rules": rules})
        assert first.json()["term"] == 1
        assert http.get("/v1/policies/ns").headers["etag"] == first.headers["etag"]
        shown = http.get("/v1/policies/ns?key=a/x").json()["rules"][0]
        assert shown == {"prefix": "a/x", "place": {"pin": ["la"]}, "home": "la", "term": 1}
        assert http.get("/v1/policies/ns?key=b").json()["rules"][0]["place"] == "lazy"
        # It holds at once.
        assert ns.rules.home("a/x") is not None
        headers = {"If-Match": '"other"'}
        problem(http.put("/v1/policies/ns", json={"rules": []}, headers=headers), 412, "version-mismatch")
        headers = {"If-Match": first.headers["etag"]}
        assert http.put("/v1/policies/ns", json={"rules": []}, headers=headers).json()["rules"] == []

    def test_a_move_stops_the_old_home_waits_and_begins_the_new_one(
        self, http: httpx.Client, store: FakeStore, ns: FakeNamespace
    ) -> None:
        http.put("/v1/policies/ns", json={"rules": [{"prefix": "a/", "home": "la"}]})
        steps: list[Any] = []
        has = iter([False, True])

        def home(arguments: dict[str, Any]) -> dict[str, Any]:
            steps.append((arguments["op"], arguments["pop"], arguments["to"], arguments["term"]))
            return {"origin": arguments["pop"], "epoch": 1, "seq": 7}

        def asked(arguments: dict[str, Any]) -> dict[str, Any]:
            steps.append(("has", arguments["pop"], arguments["origin"], arguments["seq"]))
            return {"has": next(has)}

        store.mailbox.answers.update(home=home, has=asked)
        answer = http.post("/v1/policies/ns/move", json={"prefix": "a/", "to": "ny"})
        assert answer.json() == {
            "prefix": "a/", "home": "ny", "term": 2, "before": "la", "forced": False, "lost": None,
        }  # fmt: skip
        assert steps == [
            ("set-home", "la", "ny", 2), ("has", "ny", "la", 7), ("has", "ny", "la", 7), ("set-home", "ny", "ny", 2),
        ]  # fmt: skip
        home_now = ns.rules.home("a/x")
        assert home_now is not None
        assert (home_now.pop, home_now.term) == ("ny", 2)

    def test_a_move_that_cannot_hear_of_the_old_home_needs_force(self, http: httpx.Client, store: FakeStore) -> None:
        store.create_namespace("ns")
        http.put("/v1/policies/ns", json={"rules": [{"prefix": "a/", "home": "la"}]})

        def home(arguments: dict[str, Any]) -> dict[str, Any]:
            if arguments["pop"] == "la":
                raise Unavailable("the link to la is down")
            return {"origin": arguments["pop"], "epoch": 1, "seq": 7}

        store.mailbox.answers["home"] = home
        problem(http.post("/v1/policies/ns/move", json={"prefix": "a/", "to": "ny"}), 503, "home-unreachable")
        assert http.get("/v1/policies/ns?key=a/x").json()["rules"][0]["home"] == "la"
        answer = http.post("/v1/policies/ns/move", json={"prefix": "a/", "to": "ny", "force": True}).json()
        assert answer["forced"]
        assert "la has acknowledged" in answer["lost"]
        assert http.get("/v1/policies/ns?key=a/x").json()["rules"][0]["home"] == "ny"


class TestWatching:
    def follow(self, http: httpx.Client, query: str, until: str, headers: dict[str, str] | None = None) -> str:
        text = ""
        with http.stream("GET", f"/v1/ekv/ns?watch=1{query}", headers=headers, timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for piece in answer.iter_text():
                text += piece
                if until in text:
                    return text
        return text

    def test_what_is_there_comes_first_and_then_what_changes(self, http: httpx.Client, ns: FakeNamespace) -> None:
        for number in range(250):
            ns.put(f"p/{number:03}", b"x")
        ns.put("other", b"x")
        text = self.follow(http, "&prefix=p/", "listed")
        assert text.count("event: change") == 250
        assert '"keys":250' in self.follow(http, "&prefix=p/", '"keys"')
        last = text[text.rindex("id: ") :].split("\n")[0].removeprefix("id: ")
        ns.put("p/001", b"new")
        ns.delete("p/002")
        ns.put("other", b"y")
        text = self.follow(http, "&prefix=p/", '"deleted":true', {"Last-Event-ID": last})
        assert "listed" not in text
        told = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
        assert [(one["key"], one["deleted"]) for one in told] == [("p/001", False), ("p/002", True)]

    @pytest.mark.parametrize("last", ["la:1:3", "chicago:2:3", "chicago:1:999999"])
    def test_a_place_that_is_not_known_here_begins_anew(self, http: httpx.Client, ns: FakeNamespace, last: str) -> None:
        ns.put("k", b"x")
        text = self.follow(http, "", "listed", {"Last-Event-ID": last})
        assert text.index("event: listing") < text.index('"key":"k"')

    def test_deletions_that_are_forgotten_begin_it_anew(self, http: httpx.Client, ns: FakeNamespace) -> None:
        ns.put("k", b"x")
        ns.put("l", b"x")
        ns.forgotten = 2
        assert "event: listing" in self.follow(http, "", "listed", {"Last-Event-ID": "chicago:1:1"})
        assert "event: listing" not in self.follow(http, "", "heartbeat", {"Last-Event-ID": "chicago:1:2"})

    def test_a_deletion_that_is_forgotten_before_it_was_told_ends_the_stream(
        self, http: httpx.Client, ns: FakeNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ns.put("k", b"x")
        ns.put("l", b"x")
        first = self.follow(http, "", "listed")
        assert '"key":"k"' in first
        look = FakeNamespace.changes

        def forgets(handle: FakeNamespace, *args: Any, **named: Any) -> Any:
            # As a snapshot removes a key, or the upkeep a tombstone: between two looks of the watcher.
            monkeypatch.setattr(FakeNamespace, "changes", look)
            handle.delete("k")
            handle.forgotten = handle.numbers.pop("k")
            return look(handle, *args, **named)

        monkeypatch.setattr(FakeNamespace, "changes", forgets)
        text = self.follow(http, "", "nothing of this: the stream ends")
        assert text.count("event: listed") == 1
        last = text[text.rindex("id: ") :].split("\n")[0].removeprefix("id: ")
        again = self.follow(http, "", "listed", {"Last-Event-ID": last})
        assert again.index("event: listing") < again.index('"key":"l"')
        assert '"key":"k"' not in again

    def test_where_to_begin(self, http: httpx.Client, ns: FakeNamespace) -> None:
        ns.put("old", b"x")
        version = ns.values["old"].version
        ns.put("new", b"x")
        text = self.follow(http, f"&from_version={version}", "listed")
        assert '"key":"new"' in text
        assert '"key":"old"' not in text
        assert '"key"' not in self.follow(http, "&from_version=now", "listed")


def test_standing(http: httpx.Client, store: FakeStore, ns: FakeNamespace) -> None:
    ns.put("k", b"x")
    store.mailbox.answers["stand"] = lambda _args: {"passed": [["la", 1, 3]], "staleness_ms": 12, "floor": ""}
    store.mailbox.answers["has"] = lambda args: {"has": args["seq"] == 2}
    plain = http.get("/v1/standing/ns").json()
    assert (plain["staleness_ms"], plain["passed"], plain["hash"]) == (12, [["la", 1, 3]], None)
    before = http.get("/v1/standing/ns?hash=1").json()["hash"]
    ns.put("k", b"y")
    assert http.get("/v1/standing/ns?hash=1").json()["hash"] != before
    assert http.get("/v1/receipts/ns/la/1/2?pop=la").json()["applied"]
    assert not http.get("/v1/receipts/ns/la/1/3").json()["applied"]
    problem(http.get("/v1/standing/none"), 404, "not-found")


def test_settings_of_the_module(tmp_path: Path) -> None:
    assert make_api(tmp_path).policies.of("anything") == Policies()
