"""Where a client finds the PoPs of a cluster: what it may be given, and to whom each token goes."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeflow.errors import BadRequest, EdgeflowError, NotFound, Unauthorized, Unavailable
from edgeflow.sdk import members


def answers(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception) -> list[tuple[str, str]]:
    """What `GET /v1/route` says; (url, token) of who asked."""
    asked: list[tuple[str, str]] = []

    def get(url: str, headers: dict[str, str], **_options: Any) -> httpx.Response:
        asked.append((url, headers["Authorization"]))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(members.httpx, "get", get)
    return asked


def ranking(**urls: str | None) -> httpx.Response:
    return httpx.Response(
        200, json={"items": [{"pop": pop, "url": url, "self": pop == "la"} for pop, url in urls.items()]}
    )


def test_urls_with_tokens_of_each_or_one_for_all() -> None:
    assert members.of([("http://a", "1"), ("http://b", "2")], None, {}) == [("http://a", "1"), ("http://b", "2")]
    assert members.of(["http://a", "http://b/"], "t", {"http://a": "1"}) == [("http://a", "1"), ("http://b/", "t")]
    assert members.of(["http://a", "http://a/"], "t", {}) == [("http://a/", "t")], "one PoP is one PoP"


def test_one_url_tells_of_the_others_and_each_gets_its_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, ranking(ny="http://ny", la="http://inside", chicago="http://chicago", x=None))
    found = members.of("http://la.example", None, {"http://la.example": "1", "ny": "2", "chicago": "3"})
    assert asked == [("http://la.example/v1/route", "Bearer 1")]
    assert found == [("http://la.example", "1"), ("http://ny", "2"), ("http://chicago", "3")]
    # Without a token for one it is left out; one that is given for all goes to all.
    assert [url for url, _ in members.of("http://la.example", None, {"http://la.example": "1", "ny": "2"})] == [
        "http://la.example", "http://ny",
    ]  # fmt: skip
    assert {secret for _, secret in members.of("http://la.example", "t", {})} == {"t"}


def test_a_token_that_is_sent_encrypted_is_sent_nowhere_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ranking(la="https://la", ny="http://ny", chicago="https://chicago"))
    assert members.of("https://la", "t", {}) == [("https://la", "t"), ("https://chicago", "t")]


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(404), httpx.Response(200, text="x"), httpx.Response(200, json={"items": [{"url": "http://x"}]})],
)
def test_a_pop_that_knows_of_no_others_is_enough(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response) -> None:
    answers(monkeypatch, answer)
    assert members.of("http://la", "t", {}) == [("http://la", "t")]


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong: list[tuple[Any, str | None, type[EdgeflowError], str]] = [
        ([], "t", BadRequest, "at least one URL"), (["ftp://a"], "t", BadRequest, "not the URL of a PoP"),
        (["http://a?x=1"], "t", BadRequest, "not the URL of a PoP"), (["http://a"], None, BadRequest, "no token for http://a"),
        ("http://a", None, BadRequest, "no token"), (tmp_path / "none.json", None, NotFound, "not the cluster.json"),
        (tmp_path, None, NotFound, "no cluster runs"),
    ]  # fmt: skip
    for cluster, token, kind, text in wrong:
        with pytest.raises(kind, match=text):
            members.of(cluster, token, {})
    answers(monkeypatch, httpx.ConnectError("refused"))
    with pytest.raises(Unavailable, match="http://la cannot be reached"):
        members.of("http://la", "t", {})
    answers(monkeypatch, httpx.Response(401))
    with pytest.raises(Unauthorized):
        members.of("http://la", "t", {})


def test_a_cluster_file_has_the_token_of_each(tmp_path: Path) -> None:
    for pop in ("a", "b"):
        (tmp_path / pop).write_text(f"token-{pop}\n")
    pops = {pop: {"api": {"url": f"http://{pop}", "token_file": pop}} for pop in ("a", "b", "c")}
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({"state": "running", "pops": pops}))
    expected = [("http://a", "token-a"), ("http://b", "token-b")]
    for place in (tmp_path, file, str(file)):
        assert members.of(place, None, {}) == expected
    file.write_text(json.dumps({"state": "stopped", "pops": pops}))
    with pytest.raises(NotFound):
        members.of(file, None, {})
