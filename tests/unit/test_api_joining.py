"""`/v1/pops`: who comes with a token, once; who is drained and leaves; what is refused by name."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeStore, make_api, served

from edgeflow.api.context import Api
from edgeflow.cluster.linkproto import VERSION
from edgeflow.host import certs
from edgeflow.host.invitation import Invitation, parse_invitation, seal, unseal

KEY, REQUEST = certs.new_request("dallas")


@pytest.fixture
def api(tmp_path: Path) -> Api:
    made = make_api(tmp_path)
    certs.ensure_ca(tmp_path / "ca", made.settings.cluster)
    link = made.settings.link.model_copy(
        update={"ca": tmp_path / "ca" / "ca.pem", "ca_key": tmp_path / "ca" / "ca.key"}
    )
    made.settings = made.settings.model_copy(update={"link": link})
    return made


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with served(api) as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def token(http: httpx.Client, **wish: Any) -> Invitation:
    made = http.post("/v1/pops/tokens", json=wish)
    assert made.status_code == 201, made.text
    return parse_invitation(made.json()["token"])


def ask(http: httpx.Client, made: Invitation, **over: Any) -> httpx.Response:
    question = {
        "pop": "dallas", "request": REQUEST.decode(), "link": {"host": "10.0.0.4", "port": 7104}, "url": "http://10.0.0.4:8104", "version": VERSION
    }  # fmt: skip
    sealed = seal(made.secret, made.id, "question", {**question, **over})
    return httpx.post(
        str(http.base_url).rstrip("/") + "/v1/pops/join", json={"id": made.id, "sealed": sealed}
    )  # no bearer token


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["detail"])


def test_a_token_admits_one_pop_once(http: httpx.Client, api: Api) -> None:
    made = token(http)
    assert (made.issuer, made.cluster) == (api.settings.pop, api.settings.cluster)
    answer = ask(http, made)
    assert answer.status_code == 200, answer.text
    given = unseal(made.secret, made.id, "answer", answer.json()["sealed"])
    assert (given["pop"], given["cluster"]) == ("dallas", api.settings.cluster)
    assert api.settings.pop in given["members"] and "dallas" not in given["members"]
    member = http.get("/v1/pops/dallas").json()["member"]
    assert (member["link"]["host"], member["admitted"], member["joined_ms"]) == ("10.0.0.4", api.settings.pop, 0)
    assert "dallas" in [view["id"] for view in http.get("/v1/pops").json()["items"]]
    assert "dallas" in refused(ask(http, made, pop="austin"), 409, "token-used")
    assert ask(http, made).status_code == 200, "the same question again, since the answer may have been lost"
    other_key = certs.new_request("dallas")[1].decode()
    refused(ask(http, made, request=other_key), 409, "token-used")
    (state,) = http.get("/v1/pops/tokens").json()["items"]
    assert (state["used_by"], "secret" in state) == ("dallas", False)


def test_tokens_that_do_not_hold(http: httpx.Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    made = token(http, pop="dallas")
    assert "'dallas', not 'austin'" in refused(ask(http, made, pop="austin"), 403, "bad-token")
    forged = Invitation(made.id, "00" * 32, made.cluster, made.issuer, made.url, made.ca, made.expires_ms)
    refused(ask(http, forged), 403, "bad-token")
    unknown = Invitation("nobody", made.secret, made.cluster, made.issuer, made.url, made.ca, made.expires_ms)
    refused(ask(http, unknown), 403, "bad-token")
    later = time.time_ns() // 1_000_000 + 3_700_000
    monkeypatch.setattr("edgeflow.api.joining.now_ms", lambda: later)
    refused(ask(http, made), 410, "token-expired")


def test_ids_and_versions_that_cannot_come(http: httpx.Client, store: FakeStore, api: Api) -> None:
    made = token(http)
    assert "'la'" in refused(ask(http, made, pop="la"), 409, "pop-exists")
    refused(ask(http, made, pop="No Id"), 400, "bad-request")
    refused(ask(http, made, pop="tokens"), 400, "bad-request")
    assert "speaks link version 9" in refused(ask(http, made, version=9), 400, "bad-request")
    refused(http.post("/v1/pops/tokens", json={"pop": "la"}), 409, "pop-exists")
    assert ask(http, made).status_code == 200, "what was refused has not used the token"


@pytest.fixture
def store(api: Api) -> FakeStore:
    return api.store  # type: ignore[return-value]


def test_an_id_is_free_again_when_its_pop_has_left(http: httpx.Client, api: Api) -> None:
    assert http.post("/v1/pops/la/drain").json()["wished"] == "draining"
    assert http.post("/v1/pops/la/undrain").json()["wished"] == "up"
    assert http.post("/v1/pops/la/leave").json()["state"] == "left"
    assert "la" not in [view["id"] for view in http.get("/v1/pops").json()["items"]]
    assert http.get("/v1/pops/la").json()["member"]["state"] == "left"
    assert "la has left" in refused(http.post("/v1/pops/la/undrain"), 400, "bad-request")
    refused(http.post(f"/v1/pops/{api.settings.pop}/leave"), 400, "bad-request")
    refused(http.post("/v1/pops/nobody/drain"), 404, "not-found")
    made = token(http, pop="la")
    answer = ask(http, made, pop="la", request=certs.new_request("la")[1].decode())
    assert answer.status_code == 200, answer.text
    member = json.loads(api.store.namespace("system").get("members/la").data)
    assert member["state"] == "up" and member["certificate_ms"] > 0 and member["admitted"] == api.settings.pop


def test_a_pop_without_the_ca_admits_nobody(tmp_path: Path) -> None:
    with (
        served(make_api(tmp_path)) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as http,
    ):
        refused(http.post("/v1/pops/tokens", json={}), 501, "cannot-admit")
