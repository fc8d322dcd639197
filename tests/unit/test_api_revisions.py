"""History, going back, and what would change, over HTTP on a store in memory."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeStore

from edgeflow.api.context import Api
from edgeflow.api.revisions import KEPT
from edgeflow.core.manifest import parse, resolve

URL = "/v1/functions/vision"


def manifest(**fields: str) -> dict[str, Any]:
    """{function: its fields}."""
    lines = [f"  {name}: {{image: i, place: {{pops: [chicago]}}, {text}}}" for name, text in fields.items()]
    return resolve(parse("namespace: vision\nfunctions:\n" + "\n".join(lines)), {}, applied_ms=1)


@pytest.fixture
def http(served_api: tuple[Api, str], store: FakeStore) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Edgeflow-By": "somebody"}
    with httpx.Client(base_url=served_api[1], headers=headers, trust_env=False, verify=False) as client:
        yield client


def items(http: httpx.Client, name: str = "f") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"{URL}/{name}/revisions").json()["items"]
    return found


def say(store: FakeStore, **state: str) -> None:
    """What the runner at the PoP says."""
    store.namespace("system").put("states/vision/f/chicago", json.dumps(state).encode())


def test_applying_leaves_records_and_names_what_changed(http: httpx.Client) -> None:
    one, two = manifest(f="subscribe: a", g="subscribe: a"), manifest(f="subscribe: a, retry: {attempts: 3}")
    assert [change["change"] for change in http.put(URL, json=one).json()["changes"]] == ["created", "created"]
    dry = http.put(URL, json=two, params={"dry_run": True}).json()
    assert dry["status"] == "updated" and http.get(URL).json() == one, "nothing is written"
    answer = http.put(URL, json=two).json()
    assert answer["changes"] == dry["changes"]
    changed, removed = answer["changes"]
    assert (changed["function"], changed["change"], removed["function"], removed["change"]) == (
        "f",
        "changed",
        "g",
        "removed",
    )
    assert {"field": "retry.attempts", "before": 5, "after": 3} in changed["fields"]
    newest, oldest = items(http)
    assert (newest["change"], newest["by"], newest["pop"]) == ("changed", "somebody", "chicago")
    assert newest["fields"] == [{"field": "retry.attempts", "before": 5, "after": 3}] and oldest["change"] == "created"
    assert [one["change"] for one in items(http, "g")] == ["removed", "created"]
    assert http.put(URL, json=two).json()["status"] == "unchanged" and len(items(http)) == 2
    assert http.get(f"{URL}/nobody/revisions").status_code == 404


def test_going_back_is_applying_one_function_as_it_was(http: httpx.Client, store: FakeStore) -> None:
    first, second = manifest(f="subscribe: a"), manifest(f="subscribe: b", g="subscribe: a")
    http.put(URL, json=first)
    assert http.post(f"{URL}/f/rollback").status_code == 404, "there is nothing before it"
    http.put(URL, json=second)
    old, new = (document["functions"]["f"]["revision"] for document in (first, second))
    answer = http.post(f"{URL}/f/rollback", json={})
    assert answer.status_code == 200 and (answer.json()["revision"], answer.json()["before"]) == (old, new)
    now = http.get(URL).json()["functions"]
    assert now == {"f": first["functions"]["f"], "g": second["functions"]["g"]}
    assert items(http)[0]["change"] == "rolled-back"
    assert http.post(f"{URL}/f/rollback", json={"to": new[:5]}).json()["revision"] == new
    refused = http.post(f"{URL}/f/rollback", json={"to": "zz"})
    assert refused.status_code == 404 and old in refused.json()["detail"]
    assert http.post(f"{URL}/f/rollback", json={"two": "zz"}).status_code == 422


def test_what_serves_is_what_one_goes_back_to_first_and_the_same_again_is_another_try(
    http: httpx.Client, store: FakeStore
) -> None:
    documents = [manifest(f=f"subscribe: {channel}") for channel in "abc"]
    for document in documents:
        http.put(URL, json=document)
    first, _, third = (document["functions"]["f"]["revision"] for document in documents)
    say(store, revision=third, live=first, state="rolled-back", reason="it did not start")
    newest, _, oldest = items(http)
    assert (newest["state"], newest["reason"], oldest["state"]) == ("rolled-back", "it did not start", "live")
    again = http.put(URL, json=documents[2])
    assert again.json()["status"] == "updated" and again.json()["changes"] == [] and items(http)[0]["change"] == "again"
    assert http.post(f"{URL}/f/rollback").json()["revision"] == first


def test_only_the_newest_records_are_kept(http: httpx.Client) -> None:
    for number in range(KEPT + 5):
        http.put(URL, json=manifest(f=f"subscribe: a{number}"))
    found = items(http)
    assert len(found) == KEPT and found[0]["fields"][0]["after"][0]["channel"] == f"vision/a{KEPT + 4}"
    assert http.delete(URL).status_code == 204 and items(http)[0]["change"] == "removed"
