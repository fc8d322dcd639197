"""Claims ahead of the asking, with a real Redis, the server of the instance protocol, and instances that say what a test tells them."""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from link_pops import RedisServer, make_settings

from edgeflow.core.events import make_event
from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.routing import compile_routes
from edgeflow.core.wire import FrameReader, Message, encode_frame
from edgeflow.flow import ahead
from edgeflow.flow.accounts import Accounts
from edgeflow.flow.instances import Instances
from edgeflow.flow.reactor import Reactor
from edgeflow.flow.rounds import Rounds
from edgeflow.store import Arrival, Store

NAME = "app"
DEADLINE_S = 20.0
SLOW_US = 5_000
"""What handlers say they took: so slow that they ask for one at a time."""

PLAIN = """
functions:
  work: {image: i, subscribe: items, publish: out, retry: {attempts: 3, backoff: 60s, timeout: 30s}}
"""
KEYED = """
functions:
  work: {image: i, subscribe: items, publish: out, ordered: {by: subject}, retry: {attempts: 3, backoff: 60s, timeout: 30s}}
"""
LATEST = """
channels:
  items: {max_pending: 100, on_full: keep-latest}
functions:
  work: {image: i, subscribe: items, publish: out}
"""
SHORT = """
channels:
  items: {deadline: 2s}
functions:
  work: {image: i, subscribe: items, publish: out}
"""


class NoAccounts:
    def keep(self, _functions: object) -> None:
        pass


def no_body(_namespace: str, digest: str, _within_s: float, _done: Callable[[], None]) -> None:
    raise AssertionError(f"no body is elsewhere, {digest} was asked for")


class Pop:
    """The part of a data process that instances talk to, in a thread."""

    def __init__(self, folder: Path, text: str) -> None:
        self.settings = make_settings(folder, "a", {"a": 1})
        self.redis = RedisServer(folder / "a" / "redis", self.settings.store.redis_socket).start()
        try:
            self.store = Store.open(self.settings)
            self.store.create_namespace(NAME)
            self.ns = self.store.namespace(NAME)
            manifest = parse(f"namespace: {NAME}\n{text}", default_pop="a")
            artifacts = {name: Artifact(image="i") for name in manifest.functions}
            self.ns.set_routes(compile_routes(resolve(manifest, artifacts, applied_ms=1, default_pop="a"), "a"))
            self.route = self.ns.routes().functions[0]
            self.folder = folder
            self.connected: list[Instance] = []
            self.reactor = Reactor()
            self.instances = Instances(
                self.reactor,
                self.store,
                self.settings.limits,
                lambda _name: None,
                cast(Accounts, NoAccounts()),
                no_body,
            )
        except BaseException:
            self.redis.kill()
            raise
        rounds = Rounds(self.store, {}, self.instances, lambda _name, _released: None, self.reactor.serve_until)
        self.reactor.after_round.append(rounds.run)
        self.reactor.call_every(0.05, self._tick)
        self.thread = threading.Thread(target=self.reactor.run)
        self.thread.start()

    def _tick(self) -> None:
        self.ns.tick()
        self.instances.check_timeouts()

    def call(self, what: Callable[[], Any]) -> Any:
        """Run something in the reactor's thread."""
        done, answers = threading.Event(), []

        def run() -> None:
            answers.append(what())
            done.set()

        self.reactor.call_soon(run)
        self.reactor.wake()
        assert done.wait(DEADLINE_S)
        return answers[0]

    def instance(self, name: str) -> "Instance":
        path = self.folder / f"{name}.sock"
        document = {"namespace": NAME, "function": "work", "revision": self.route.revision, "socket": str(path)}
        self.store.local.put_doc("instance", name, document)
        self.call(self.instances.sync)
        self.connected.append(Instance(path))
        return self.connected[-1]

    def publish(self, *numbers: int, subject: str = "s") -> None:
        now = int(time.time() * 1000)
        self.ns.ingest(
            [
                Arrival(
                    make_event(f"{NAME}/items", str(n).encode(), id=str(n), source="/t", subject=subject, now_ms=now)
                )
                for n in numbers
            ]
        )
        self.call(lambda: self.instances.notify(NAME))

    def state(self, id: str) -> tuple[str, int]:
        info = self.ns.invocation(id)
        return ("gone", 0) if info is None else (info.state, info.failures)

    def close(self) -> None:
        self.reactor.stop()
        self.thread.join(DEADLINE_S)
        self.instances.close()
        for one in self.connected:
            one.close()
        self.store.close()
        self.redis.kill()


class Instance:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))
        self._reader = FrameReader()
        self._read: deque[Message] = deque()
        self.send({"t": "hello", "protocol": 1, "sdk": "test"})
        assert self.next()["t"] == "welcome"
        self.send({"t": "ready"})

    def send(self, *messages: Message) -> None:
        self._socket.sendall(b"".join(encode_frame(one) for one in messages))

    def next(self) -> Message:
        while not self._read:
            self._read.extend(self._reader.feed(self._socket.recv(65536)))
        return self._read.popleft()

    def claim(self, limit: int = 1) -> list[Message]:
        self.send({"t": "claim", "max": limit})
        return self.work()

    def work(self) -> list[Message]:
        while (message := self.next())["t"] != "work":
            assert message["t"] == "committed" and message["status"] == "committed", message
        return list(message["items"])

    def close(self) -> None:
        self._socket.close()


def commit(item: Message, **more: Any) -> Message:
    return {
        "t": "commit", "invocation": item["invocation"], "attempt": item["attempt"], "outputs": [], "values": [],
        "timing": {"queued_us": 0, "handler_us": SLOW_US, "fetch_us": 0}, **more,
    }  # fmt: skip


def body(item: Message) -> int:
    return int(item["inputs"][0]["event"]["d"])


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture
def pop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pop]:
    one = Pop(tmp_path, getattr(request, "param", PLAIN))
    yield one
    one.close()


def warm(pop: Pop, instance: Instance) -> Message:
    """Let the agent learn how slow the handler is; returns what the instance works on then, with 2 claimed ahead of it in vain."""
    pop.publish(0, 1, 2, 3)
    (first,) = instance.claim()
    instance.send(commit(first), {"t": "claim", "max": 1})
    (second,) = instance.work()
    assert (body(first), body(second)) == (0, 1)
    return second


def held(pop: Pop, name: str) -> int:
    return len(pop.ns.holds(name))


def test_the_next_one_is_claimed_while_one_is_worked_on(pop: Pop) -> None:
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    one.send(commit(second), {"t": "claim", "max": 1})
    assert [body(item) for item in one.work()] == [2]
    wait_until(lambda: held(pop, "one") == 2, "the next claimed ahead")


def test_what_was_claimed_ahead_of_a_crash_is_not_blamed_and_not_suspected(pop: Pop) -> None:
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    (waiting,) = {id for id, _ in pop.ns.holds("one")} - {second["invocation"]}
    one.close()
    wait_until(lambda: pop.state(second["invocation"]) == ("delayed", 1), "the crash counts against what was worked on")
    wait_until(lambda: pop.state(waiting) == ("ready", 0), "the one ahead is as if nothing had happened")
    other = pop.instance("other")
    # Not alone, as those are claimed that are suspected: together with the other that waits.
    assert sorted(body(item) for item in other.claim(10)) == [2, 3]


def test_a_commit_that_was_sent_before_a_crash_counts_and_is_not_blamed(pop: Pop) -> None:
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    # In one write, so that the socket is seen closed in the round of the commit at the latest.
    one.send(commit(second, outputs=[{"channel": f"{NAME}/out", "data": b"done"}]), {"t": "claim", "max": 1})
    one.close()
    wait_until(lambda: pop.state(second["invocation"])[0] == "committed", "committed")
    counters = pop.ns.counters()
    assert counters["invocations_committed"] == 2
    assert counters.get("commits_stale", 0) == 0
    assert counters["events_emitted"] == 1


def test_who_asks_first_gets_what_was_claimed_ahead_for_another(pop: Pop) -> None:
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    other = pop.instance("other")
    (third,) = other.claim()
    assert body(third) == 2
    other.send(commit(third), {"t": "claim", "max": 1})
    assert [body(item) for item in other.work()] == [3]
    one.send(commit(second))
    wait_until(lambda: pop.ns.counters()["invocations_committed"] == 3, "both commits count")
    other.close()
    wait_until(lambda: pop.ns.counters().get("attempts_failed") == 1, "the one that the other died of")


def test_it_goes_back_when_the_handler_is_slower_than_ever(pop: Pop) -> None:
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    wait_until(lambda: held(pop, "one") == 1, "it went back")
    assert pop.state(second["invocation"]) == ("claimed", 0)
    assert pop.ns.inbox_stats("work", pop.route.revision).ready == 2
    one.send(commit(second), {"t": "claim", "max": 2})
    assert sorted(body(item) for item in one.work()) == [2, 3]


def test_it_goes_back_when_the_instance_is_drained(pop: Pop) -> None:
    one = pop.instance("one")
    warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    document = pop.store.local.get_doc("instance", "one")
    assert document is not None
    pop.store.local.put_doc("instance", "one", {**document, "drain": True})
    pop.call(pop.instances.sync)
    assert one.next()["t"] in ("drain", "committed")
    assert held(pop, "one") == 1


def test_a_lease_that_ends_before_it_is_handed_over_is_nobodys_fault(pop: Pop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT_S", 60.0)
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    ((id, attempt),) = [pair for pair in pop.ns.holds("one") if pair[0] != second["invocation"]]
    pop.call(lambda: pop.instances.expire(NAME, id, attempt, "work"))
    # It is ready, and claimed again with the next attempt at once or a moment later.
    wait_until(lambda: dict(pop.ns.holds("one")).get(id, attempt + 1) == attempt + 1, "the old attempt is over")
    assert pop.state(id) in (("ready", 0), ("claimed", 0))
    one.send(commit(second), {"t": "claim", "max": 1})
    (third,) = one.work()
    one.send(commit(third), {"t": "claim", "max": 1})
    (fourth,) = one.work()
    assert sorted((body(third), body(fourth))) == [2, 3]
    assert pop.ns.counters().get("attempts_failed", 0) == 0


@pytest.mark.parametrize("pop", [KEYED], indirect=True)
def test_one_key_stays_one_at_a_time(pop: Pop) -> None:
    one, other = pop.instance("one"), pop.instance("other")
    pop.publish(*range(6))
    (item,) = one.claim()
    other.send({"t": "claim", "max": 1})
    for n in range(5):
        assert body(item) == n
        assert held(pop, "one") + held(pop, "other") == 1
        one.send(commit(item))
        # Whoever asked has the next one once this one is committed, and not before.
        (item,) = other.work()
        one.send({"t": "claim", "max": 1})
        one, other = other, one
    assert body(item) == 5


@pytest.mark.parametrize("pop", [LATEST], indirect=True)
def test_nothing_is_claimed_ahead_where_something_newer_may_come(pop: Pop) -> None:
    one = pop.instance("one")
    pop.publish(0, subject="a")
    (item,) = one.claim()
    one.send(commit(item), {"t": "claim", "max": 1})
    pop.publish(1, subject="b")
    pop.publish(2, subject="c")
    (item,) = one.work()
    pop.publish(3, subject="d")
    one.send({"t": "list", "r": 1, "prefix": "", "limit": 1})
    while one.next()["t"] != "reply":
        pass
    assert held(pop, "one") == 1


@pytest.mark.parametrize("pop", [SHORT], indirect=True)
def test_what_passes_its_deadline_ahead_is_not_begun(pop: Pop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT_S", 60.0)
    one = pop.instance("one")
    second = warm(pop, one)
    wait_until(lambda: held(pop, "one") == 2, "one claimed ahead")
    published_ms = second["inputs"][0]["event"]["t"]
    wait_until(lambda: time.time() * 1000 > published_ms + 2500, "the deadline to pass")
    one.send(commit(second), {"t": "claim", "max": 1})
    wait_until(lambda: pop.ns.counters().get("invocations_expired", 0) == 2, "both are ended for being late")
    assert pop.ns.counters()["invocations_committed"] == 2


def test_a_handler_reads_what_the_one_before_it_has_written(pop: Pop) -> None:
    one = pop.instance("one")
    item = warm(pop, one)
    pop.publish(*range(10, 40))
    for n in range(30):
        written = {"key": "last", "data": str(n).encode(), "content_type": None, "delete": False}
        # All in one write: the read is there before the round that carries out the commit.
        one.send(commit(item, values=[written]), {"t": "claim", "max": 1}, {"t": "get", "r": n, "key": "last"})
        came: dict[str, Message] = {}
        while not {"work", "reply"} <= came.keys():
            message = one.next()
            came[message["t"]] = message
        assert came["reply"]["value"]["data"] == str(n).encode()
        (item,) = came["work"]["items"]
