"""Instances that wait until their PoP has what the session of an input has seen: answered then, or refused in time, and never by a loop that waits."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgeflow.core.tokens import Session as Token
from edgeflow.core.tokens import parse_session
from edgeflow.flow import covering as module
from edgeflow.flow.covering import Covering
from edgeflow.store.records import LogId


class Namespace:
    def __init__(self) -> None:
        self.la = 0
        self.held = 0

    def applied(self) -> dict[tuple[str, int], int]:
        return {("la", 1): self.la - self.held}

    def logs(self) -> dict[LogId, int]:
        return {LogId("la", 1): self.la}


class Instance:
    """One connected instance."""

    def __init__(self) -> None:
        self.spec = SimpleNamespace(namespace="ns")
        self.sent: list[dict[str, Any]] = []
        self.closed = False
        self.behind_commits: list[Callable[[], None]] | None = None

    def read(self, answer: Callable[[], None]) -> None:
        answer() if self.behind_commits is None else self.behind_commits.append(answer)

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def flush(self) -> None:
        pass


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def ns() -> Namespace:
    return Namespace()


@pytest.fixture
def covering(ns: Namespace) -> Covering:
    return Covering(cast(Any, SimpleNamespace(namespace=lambda _name: ns)))


def ask(covering: Covering, instance: Instance, text: object) -> None:
    covering.ask(cast(Any, instance), {"t": "session", "r": 1, "token": text})


def token(la: int) -> str:
    return Token("ns").with_vector({("la", 1): la}).text()


def test_the_answer_comes_when_all_is_applied_and_names_what_is_shown(
    covering: Covering, ns: Namespace, now: list[float]
) -> None:
    instance = Instance()
    ask(covering, instance, token(5))
    ns.la, ns.held = 6, 2
    covering.look("ns")
    covering.look("other")
    assert instance.sent == []
    ns.held = 1
    covering.look("other")
    assert instance.sent == []
    covering.look("ns")
    (reply,) = instance.sent
    assert reply["ok"]
    assert parse_session(reply["token"], "ns") == parse_session(token(6), "ns")
    covering.look()
    assert len(instance.sent) == 1


def test_nothing_asked_for_is_answered_at_once_without_what_all_have(covering: Covering, ns: Namespace) -> None:
    instance = Instance()
    ns.la = 6
    covering.passed = lambda _name: {LogId("la", 1): 6}
    ask(covering, instance, "")
    assert parse_session(instance.sent[0]["token"], "ns") == Token("ns")


def test_who_waits_too_long_is_refused_and_who_is_gone_is_forgotten(covering: Covering, now: list[float]) -> None:
    late, gone = Instance(), Instance()
    ask(covering, late, token(5))
    ask(covering, gone, token(5))
    now[0] += module.WAIT_S - 0.1
    gone.closed = True
    covering.look()
    assert late.sent == []
    now[0] += 0.2
    covering.look()
    assert (late.sent[0]["ok"], late.sent[0]["code"]) == (False, "behind")
    assert gone.sent == []
    assert covering._waiting == []


def test_a_wide_token_waits_until_this_pop_is_complete_as_of_the_question(covering: Covering, now: list[float]) -> None:
    instance = Instance()
    stale: list[int | None] = [None]
    covering.staleness_ms = lambda _name: stale[0]
    ask(covering, instance, Token("ns", is_wide=True).text())
    for staleness_ms, waited_s in ((None, 0.1), (300, 0.1), (5000, 0.1)):
        stale[0] = staleness_ms
        now[0] += waited_s
        covering.look("ns")
        assert instance.sent == []
    stale[0] = 200
    covering.look("ns")
    assert instance.sent[0]["ok"]


@pytest.mark.parametrize("text", ["rubbish", Token("other").text()])
def test_a_token_that_is_none_is_refused_by_name(covering: Covering, text: str) -> None:
    instance = Instance()
    ask(covering, instance, text)
    assert (instance.sent[0]["ok"], instance.sent[0]["code"]) == (False, "bad-session")


def test_reads_wait_for_the_commits_in_front_of_them(covering: Covering, ns: Namespace) -> None:
    instance = Instance()
    instance.behind_commits = []
    ns.la = 9
    ask(covering, instance, token(5))
    assert instance.sent == []
    instance.behind_commits[0]()
    assert instance.sent[0]["ok"]
