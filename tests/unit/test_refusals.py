"""What was refused stands for a short time for what comes next, no longer than there is room, and for nothing else."""

import pytest

from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.routing import RouteTable, compile_routes
from edgeflow.errors import BadEvent, QueueFull, QuotaExceeded
from edgeflow.flow import refusals
from edgeflow.flow.refusals import REFUSED_S, Refusals

MANIFEST = """
namespace: n
functions:
  f: {image: i, subscribe: x}
  g: {image: i, subscribe: x}
  chosen: {image: i, subscribe: {channel: some, where: data.wanted}}
"""


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(refusals, "time", clock)
    return clock


@pytest.fixture(scope="module")
def table() -> RouteTable:
    manifest = parse(MANIFEST, default_pop="a")
    artifacts = {name: Artifact(image="i") for name in manifest.functions}
    return compile_routes(resolve(manifest, artifacts, applied_ms=1, default_pop="a"), "a")


def test_a_full_channel_is_refused_for_a_while(clock: Clock, table: RouteTable) -> None:
    known, error = Refusals(), QueueFull("the inbox of f is full")
    assert known.of("n/x", 1) is None
    known.learn(table, "n/x", 1, error)
    assert known.of("n/x", 1) is error and known.of("n/y", 1) is None
    clock.now_s += REFUSED_S
    assert known.of("n/x", 1) is None


def test_as_many_are_asked_for_as_have_ended(clock: Clock, table: RouteTable) -> None:
    known, error = Refusals(), QueueFull("the inbox of f is full")
    inbox = table.inboxes("n/x")[0]
    known.learn(table, "n/x", 1, error)
    known.ended([inbox, inbox, "other:1"])
    assert [known.of("n/x", 1) for _ in range(4)] == [None, None, error, error]
    # A refusal says what is so now: what ended before is no room any more.
    known.ended([inbox])
    known.learn(table, "n/x", 1, error)
    assert known.of("n/x", 1) is error


def test_where_the_event_decides_the_store_is_asked(clock: Clock, table: RouteTable) -> None:
    known = Refusals()
    assert table.takes_all("n/x") and not table.takes_all("n/some") and table.takes_all("n/_invoke/chosen")
    known.learn(table, "n/some", 1, QueueFull("the inbox of chosen is full"))
    assert known.of("n/some", 1) is None


def test_an_exceeded_quota_holds_for_all_that_is_as_large(clock: Clock, table: RouteTable) -> None:
    known, error = Refusals(), QuotaExceeded("too many bytes", retry_after_s=REFUSED_S / 2)
    known.learn(table, "n/x", 1000, error)
    assert known.of("n/y", 1000) is error and known.of("n/x", 2000) is error
    assert known.of("n/x", 999) is None, "there may be room for a smaller one"
    clock.now_s += REFUSED_S / 2
    assert known.of("n/x", 1000) is None
    known.learn(table, "n/x", 0, QuotaExceeded("too many events", retry_after_s=3600))
    clock.now_s += REFUSED_S
    assert known.of("n/x", 0) is None, "a larger quota counts at once"


def test_what_is_wrong_with_one_event_is_not_held_against_the_next(clock: Clock, table: RouteTable) -> None:
    known = Refusals()
    known.learn(table, "n/x", 1, BadEvent("no key"))
    assert known.of("n/x", 1) is None
