"""Sessions of inputs: what they have seen is here before a handler reads, and what it has read goes on with its outputs."""

from collections.abc import Sequence
from typing import Any

import pytest

from edgeflow.core.tokens import Session, parse_session
from edgeflow.errors import BadName, BadOutput, BadSession, Behind
from edgeflow.sdk.ekv import Ekv, InputSession
from edgeflow.sdk.outcome import Outcome


def token(**seqs: int) -> str:
    return Session("ns").with_vector({(pop, 1): seq for pop, seq in seqs.items()}).text()


class Port:
    """A PoP that has applied some of la's log."""

    def __init__(self, la: int, ny: int = 0) -> None:
        self.la = la
        self.ny = ny
        self.asked: list[str] = []

    def session(self, wanted: str) -> str:
        self.asked.append(wanted)
        if wanted and parse_session(wanted, "ns").missing({("la", 1): self.la}):
            raise Behind()
        return token(la=self.la)

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request["t"])
        if request.get("strong"):
            return {"value": None, "token": token(ny=self.ny)}
        return {"value": None, "items": []}

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        raise NotImplementedError

    def fetch_piece(self, digest: str, offset: int) -> bytes:
        raise NotImplementedError

    def store_blob(self, digest: str, data: bytes) -> None:
        raise NotImplementedError


def test_the_first_read_waits_for_what_all_inputs_have_seen() -> None:
    port = Port(la=7)
    session = InputSession("ns", [token(la=3), None, "", token(la=5)], port)
    ekv = Ekv("f", port, Outcome(port), session)
    assert port.asked == []
    ekv.get("a")
    ekv.list("b")
    assert port.asked == [token(la=5), "get", "list"]


def test_outputs_carry_what_was_seen_and_read() -> None:
    port = Port(la=7)
    session = InputSession("ns", [token(la=3, ny=4)], port)
    assert session.for_output() == token(la=3, ny=4)
    assert port.asked == []
    with pytest.raises(Behind):
        session.before_read()  # this PoP has nothing of ny
    session = InputSession("ns", [token(la=3)], port)
    session.before_read()
    port.la = 9
    assert session.for_output() == token(la=9)
    count = len(port.asked)
    assert session.for_output() == token(la=9)
    assert len(port.asked) == count  # nothing was read in between
    session.before_read()
    port.la = 11
    assert session.for_output() == token(la=11)


def test_what_was_read_at_the_home_of_a_key_goes_on_with_the_outputs() -> None:
    port = Port(la=7, ny=3)
    session = InputSession("ns", [token(la=3)], port)
    assert Ekv("f", port, Outcome(port), session).get("a", strong=True) is None
    assert session.for_output() == token(la=7, ny=3)
    alone = InputSession("ns", [], port)
    Ekv("f", port, Outcome(port), alone).get("a", strong=True)
    assert alone.for_output() == ""


def test_without_a_session_nothing_is_asked_and_nothing_is_said() -> None:
    port = Port(la=7)
    session = InputSession("ns", [None, ""], port)
    session.before_read()
    assert session.for_output() == ""
    assert port.asked == []


def test_a_token_that_is_none_is_refused_by_name() -> None:
    for wrong in ("rubbish", Session("other").text()):
        session = InputSession("ns", [wrong], Port(la=7))
        with pytest.raises(BadSession):
            session.before_read()
        with pytest.raises(BadSession):
            session.for_output()


def test_a_value_with_a_deadline() -> None:
    port = Port(la=7)
    outcome = Outcome(port)
    ekv = Ekv("f", port, outcome)
    ekv.put("k", "x", ttl_s=1.5)
    ekv.put("l", "x")
    values = {one["key"]: one for one in outcome.commit_fields()["values"]}
    assert values["k"]["ttl_ms"] == 1500
    assert "ttl_ms" not in values["l"]
    for wrong in (0, -1, 1e12):
        with pytest.raises(BadOutput, match="ttl_s"):
            ekv.put("k", "x", ttl_s=wrong)


def test_operations_on_sets_and_maps_go_with_the_commit_in_their_order() -> None:
    port = Port(la=7)
    outcome = Outcome(port)
    ekv = Ekv("f", port, outcome)
    ekv.set_add("s", "a", "b")
    ekv.set_remove("s", "a")
    ekv.map_put("m", {"x": "1", "y": b"\xff"})
    ekv.map_remove("m", "z")
    assert outcome.commit_fields()["ops"] == [
        {"op": "add", "key": "s", "elements": ["a", "b"]},
        {"op": "remove", "key": "s", "elements": ["a"]},
        {"op": "set", "key": "m", "fields": {"x": b"1", "y": b"\xff"}},
        {"op": "unset", "key": "m", "fields": ["z"]},
    ]
    before = outcome.commit_fields()
    for wrong in (
        lambda: ekv.map_put("s", {"x": "1"}),
        lambda: ekv.set_add("m", "a"),
        lambda: ekv.put("s", "x"),
        lambda: ekv.delete("m"),
        lambda: ekv.increment("s"),
        lambda: ekv.set_add("t", 5),  # type: ignore[arg-type]
        lambda: ekv.map_put("n", {"x": 5}),  # type: ignore[dict-item]
    ):
        with pytest.raises(BadOutput):
            wrong()
    with pytest.raises(BadName):
        ekv.set_add("_s", "a")
    assert outcome.commit_fields() == before
