"""A gateway in front of a full inbox, on a real store: what it refuses by itself is counted as the store counts, and takes nobody's room."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from link_pops import RedisServer, make_settings

from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.mqttprops import PublishProperties
from edgeflow.core.routing import compile_routes
from edgeflow.flow import refusals
from edgeflow.flow.gateway import Gateway
from edgeflow.flow.pahofast import Message
from edgeflow.settings import Limits
from edgeflow.store import Claim, Commit, Store
from edgeflow.store.replica import ReplicatedNamespace

MANIFEST = """
namespace: app
channels:
  x: {max_pending: 5}
functions:
  f: {image: i, subscribe: x}
"""


class Session:
    """Keeps what is acknowledged."""

    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, message: Message) -> None:
        self.acked.append(message.mid)

    def flush(self) -> None: ...

    def read(self, wanted: bool) -> None: ...


class NoTime:
    def monotonic(self) -> float:
        return 1.0


@pytest.fixture
def store(programs: None, tmp_path: Path) -> Iterator[Store]:
    made = make_settings(tmp_path, "a", {"a": 1})
    redis = RedisServer(tmp_path / "a" / "redis", made.store.redis_socket).start()
    opened = Store.open(made)
    opened.create_namespace("app")
    apply(opened.namespace("app"), MANIFEST)
    yield opened
    opened.close()
    redis.kill()


def apply(ns: ReplicatedNamespace, text: str) -> None:
    manifest = parse(text, default_pop="a")
    artifacts = {name: Artifact(image="i") for name in manifest.functions}
    ns.set_routes(compile_routes(resolve(manifest, artifacts, applied_ms=1, default_pop="a"), "a"))


def message(mid: int) -> Message:
    made = Message(mid, b"app/x")
    made.decoded = PublishProperties()
    made.qos, made.payload = 1, b"%d" % mid
    return made


def test_every_message_is_ingested_or_refused_and_all_room_is_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time stands: only what ends makes room, and each end makes room for one.
    monkeypatch.setattr(refusals, "time", NoTime())
    ns = store.namespace("app")
    session: Any = Session()
    gateway = Gateway(ns, Limits(), "/pops/a/mqtt", None, lambda _name: False)  # type: ignore[arg-type]
    gateway.session = session
    route = ns.routes().current("f")
    assert route is not None
    mid = asked = 0
    commits: list[Commit] = []
    for _ in range(30):
        for _ in range(20):
            mid += 1
            gateway.take(message(mid))
        arrivals = gateway.collected(64)
        asked += len(arrivals)
        result = ns.round(
            arrivals=arrivals, commits=commits, claims=[Claim("f", route.revision, "i", 2, 30_000)],
            turned_away=gateway.turned_away,
        )  # fmt: skip
        gateway.finish(result.receipts, [route.inbox] * len(commits))
        commits = [Commit(one.id, one.attempt) for one in result.claimed[0]]
    assert session.acked == list(range(1, mid + 1))
    counters = ns.counters()
    assert counters["events_ingested"] + counters["events_refused:full"] == mid
    # The 5 that had room at first, and one for each that ended before the last round; with no more questions than the first round's.
    assert counters["events_ingested"] == 5 + 2 * 28
    assert asked == 20 + 2 * 28
    assert ns.pending() == {route.inbox: 5 - 2}, "what the last round committed is room that nobody has asked for yet"


def test_what_was_turned_away_is_counted_once_also_when_the_round_is_prepared_anew(
    store: Store, tmp_path: Path
) -> None:
    ns = store.namespace("app")
    with_old_routes = Store.open(make_settings(tmp_path, "a", {"a": 1}))
    other = with_old_routes.namespace("app")
    assert other.routes().version == ns.routes().version
    apply(ns, MANIFEST.replace("max_pending: 5", "max_pending: 6"))
    gateway = Gateway(other, Limits(), "/pops/a/mqtt", None, lambda _name: False)  # type: ignore[arg-type]
    gateway.take(message(1))
    other.round(arrivals=gateway.collected(64), turned_away={"events_refused:full": 3})
    assert other.routes().version == ns.routes().version
    assert ns.counters()["events_refused:full"] == 3 and ns.counters()["events_ingested"] == 1
    ns.round(turned_away={"events_refused:full": 2, "events_refused:quota": 1})
    assert ns.counters()["events_refused:full"] == 5 and ns.counters()["events_refused:quota"] == 1
    with_old_routes.close()
