"""The agent's side of the instance protocol on a real Redis: what the end of an instance costs the work that it was given."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from link_pops import RedisServer, make_settings
from sdk_agent import Peer

from edgeflow.core.events import make_event
from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.policies import Home
from edgeflow.core.routing import compile_routes
from edgeflow.core.tokens import parse_session
from edgeflow.errors import StaleHome, Unavailable
from edgeflow.flow.accounts import Accounts
from edgeflow.flow.instances import Instances
from edgeflow.flow.reactor import Reactor
from edgeflow.flow.reads import WAITING
from edgeflow.flow.rounds import Rounds
from edgeflow.store import Arrival, Store
from edgeflow.store.replica import ReplicatedNamespace

pytestmark = [pytest.mark.usefixtures("programs")]
NAME = "app"
MANIFEST = "namespace: {name}\nfunctions:\n  f: {{image: i, subscribe: x, publish: y, retry: {{attempts: {attempts}, backoff: 1ms}}}}\n"
Wait = Callable[..., Any]


class Agent:
    """Instances and rounds on a loop in a thread, over a store; and another door to that store for the test."""

    def __init__(self, folder: Path, attempts: int = 1) -> None:
        self.settings = make_settings(folder, "a", {"a": 1})
        self.redis = RedisServer(folder / "a" / "redis", self.settings.store.redis_socket).start()
        self.store = Store.open(self.settings)
        self.store.create_namespace(NAME)
        self.ns: ReplicatedNamespace = self.store.namespace(NAME)
        text = MANIFEST.format(name=NAME, attempts=attempts)
        manifest = resolve(parse(text, default_pop="a"), {"f": Artifact(image="i")}, applied_ms=1, default_pop="a")
        table = compile_routes(manifest, "a")
        self.ns.set_routes(table)
        self.revision = table.functions[0].revision
        self._loop_store = Store.open(self.settings)
        self._reactor = Reactor()
        accounts = cast(Accounts, SimpleNamespace(keep=list))
        self.instances = self._instances = Instances(
            self._reactor, self._loop_store, self.settings.limits, lambda _name: None, accounts, lambda *_: None
        )
        rounds = Rounds(self._loop_store, {}, self._instances, lambda _name, _released: None, self._reactor.serve_until)
        self._reactor.after_round += [rounds.run]
        self._reactor.call_every(0.02, self._tick)
        self._reactor.call_soon(self._instances.sync)
        self._thread = threading.Thread(target=self._reactor.run)
        self._peers: list[Peer] = []

    def _tick(self) -> None:
        self._loop_store.namespace(NAME).tick()
        self._instances.check_timeouts()
        self._instances.notify(NAME)

    def listen(self, *instances: str) -> None:
        """Begin, with these instances expected."""
        for instance in instances:
            document = {
                "namespace": NAME, "function": "f", "revision": self.revision, "instance": instance, "socket": str(self._socket(instance)),
            }  # fmt: skip
            self.store.local.put_doc("instance", instance, document)
        self._thread.start()

    def connect(self, instance: str, wait_until: Wait) -> Peer:
        """An instance that is ready and does what the test says."""
        path = self._socket(instance)
        wait_until(path.exists, "the agent listens")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        peer = Peer(sock)
        self._peers.append(peer)
        peer.send({"t": "hello", "protocol": 1, "sdk": "test"})
        peer.expect("welcome")
        peer.send({"t": "ready"})
        return peer

    def send(self, id: str) -> None:
        """One event for the function."""
        event = make_event(f"{NAME}/x", b"x", id=id, source="test", now_ms=time.time_ns() // 1_000_000, subject=id)
        self.ns.ingest([Arrival(event)])

    def on_loop(self, step: Callable[[], None]) -> None:
        """Has the loop do something."""
        self._reactor.call_soon(step)

    def is_connected(self, instance: str) -> bool:
        return (self.store.local.get_doc("instance_state", instance) or {}).get("state") in (
            "ready",
            "connected",
            "draining",
        )

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._reactor.stop()
        if self._thread.is_alive():
            self._thread.join(10)
        self._instances.close()
        self._loop_store.close()
        self.store.close()
        self.redis.kill()

    def _socket(self, instance: str) -> Path:
        return self.settings.run_dir / "i" / instance / "s"


@pytest.fixture
def agent(tmp_path: Path, programs: None) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.close()


@pytest.fixture
def patient(tmp_path: Path, programs: None) -> Iterator[Agent]:
    """One whose function is tried several times."""
    agent = Agent(tmp_path, attempts=3)
    yield agent
    agent.close()


@pytest.mark.parametrize("says_so", [True, False])
def test_work_that_crosses_a_farewell_is_not_blamed(agent: Agent, wait_until: Wait, says_so: bool) -> None:
    """An instance is told to end while its claim is outstanding: the work that comes just then was never begun. Without a word it is a crash."""
    agent.listen("one", "two")
    leaving = agent.connect("one", wait_until)
    leaving.send({"t": "claim", "max": 1})
    agent.send("crossing")
    wait_until(lambda: agent.ns.holds("one"), "the work is on its way")
    if says_so:
        leaving.send({"t": "leave"})
    leaving.close()
    if not says_so:
        wait_until(lambda: agent.ns.dead_letters(), "the only attempt is used up")
        return
    heir = agent.connect("two", wait_until)
    heir.send({"t": "claim", "max": 1})
    (work,) = heir.expect("work")["items"]
    assert agent.ns.failures(work["invocation"]) == 0
    heir.send({"t": "commit", "invocation": work["invocation"], "attempt": work["attempt"]})
    assert heir.expect("committed")["status"] == "committed"
    assert agent.ns.dead_letters() == []
    heir.close()


def test_who_leaves_is_given_nothing_more_and_its_last_commit_counts(agent: Agent, wait_until: Wait) -> None:
    agent.listen("one")
    leaving = agent.connect("one", wait_until)
    leaving.send({"t": "claim", "max": 1})
    agent.send("first")
    (work,) = leaving.expect("work")["items"]
    done = {"t": "commit", "invocation": work["invocation"], "attempt": work["attempt"]}
    leaving.send(done, {"t": "claim", "max": 1}, {"t": "leave"})
    assert leaving.expect("committed")["status"] == "committed"
    agent.send("second")
    assert leaving.silent(0.3)
    leaving.close()
    wait_until(lambda: not agent.is_connected("one"), "the agent sees it")
    assert (agent.ns.inbox_stats("f", agent.revision).ready, agent.ns.dead_letters()) == (1, [])


# -- what a commit is bound to -----------------------------------------------------------------------------------------


def work_of(peer: Peer) -> dict[str, Any]:
    """The next invocation that an instance is given."""
    peer.send({"t": "claim", "max": 1})
    (work,) = peer.expect("work")["items"]
    return dict(work)


def commit_of(work: dict[str, Any], *values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"t": "commit", "invocation": work["invocation"], "attempt": work["attempt"], "values": list(values), **more}


def test_a_commit_whose_condition_does_not_hold_is_a_failed_attempt_and_writes_nothing(
    patient: Agent, wait_until: Wait
) -> None:
    patient.listen("one")
    peer = patient.connect("one", wait_until)
    version = patient.ns.put("k", b"1").version
    patient.send("e")
    work = work_of(peer)
    newer = patient.ns.put("k", b"2").version  # somebody is faster
    bound = {"key": "k", "data": b"3", "if_version": version}
    effects = {"increments": [{"key": "n", "by": 1}], "outputs": [{"channel": f"{NAME}/y", "data": b"out"}]}
    peer.send(commit_of(work, bound, {"key": "beside", "data": b"x"}, **effects))
    answer = peer.expect("committed")
    assert (answer["status"], "'k' has version" in answer["error"], str(newer) in answer["error"]) == (
        "failed",
        True,
        True,
    )
    assert (patient.ns.head("beside"), patient.ns.head("n")) == (None, None)
    again = work_of(peer)
    assert (again["invocation"], again["attempt"] > work["attempt"]) == (work["invocation"], True)
    peer.send(commit_of(again, {**bound, "if_version": newer}, {"key": "beside", "data": b"x"}, **effects))
    assert peer.expect("committed")["status"] == "committed"
    value = patient.ns.get("k")
    assert value is not None
    assert (value.data, patient.ns.count_value("n"), patient.ns.failures(work["invocation"])) == (b"3", 1, 0)
    assert patient.ns.dead_letters() == []


@pytest.mark.parametrize(
    ("write", "holds"),
    [
        ({"key": "there", "data": b"x", "if_absent": True}, False),
        ({"key": "counted", "data": b"x", "if_absent": True}, False),
        ({"key": "gone", "data": b"x", "if_absent": True}, True),
        ({"key": "free", "data": b"x", "if_absent": True}, True),
        ({"key": "free", "data": b"x", "if_version": "1763651112223.00000@a"}, False),
        ({"key": "counted", "delete": True, "if_version": "1"}, False),
        ({"key": "there", "delete": True, "if_version": "there"}, True),
        ({"key": "there", "delete": True, "if_version": "other"}, False),
        ({"key": "free", "delete": True, "if_absent": True}, True),
    ],
)
def test_conditions(agent: Agent, wait_until: Wait, write: dict[str, Any], holds: bool) -> None:
    agent.listen("one")
    peer = agent.connect("one", wait_until)
    version = agent.ns.put("there", b"1").version
    agent.ns.put("gone", b"1")
    agent.ns.delete("gone")
    agent.ns.increment("counted")
    agent.send("e")
    if write.get("if_version") == "there":
        write = {**write, "if_version": version}
    peer.send(commit_of(work_of(peer), write))
    answer = peer.expect("committed")
    assert answer["status"] == ("committed" if holds else "failed"), answer
    letters = agent.ns.dead_letters()
    assert [letter.reason for letter in letters] == ([] if holds else ["precondition-failed"])  # its only attempt


# -- reads -------------------------------------------------------------------------------------------------------------


class Others:
    """The other PoPs, as far as a read needs them: they answer when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], Callable[[Any], None]]] = []
        self.known_ms: int | None = None
        self.asked_ms: int | None = None

    def call(self, peer: str, kind: str, ns: str, body: Any, timeout_s: float, done: Callable[[Any], None]) -> None:
        assert (kind, ns) == ("home", NAME)
        self.calls.append((peer, dict(body), done))

    def sync(self, ns: str, within_s: float, done: Callable[[int | None], None]) -> None:
        done(self.asked_ms)

    def staleness_ms(self, namespace: str) -> int | None:
        return self.known_ms


def asked(peer: Peer, **request: Any) -> dict[str, Any]:
    """The reply to a request."""
    peer.send({"r": 7, **request})
    reply = peer.expect("reply")
    assert reply["r"] == 7
    return dict(reply)


def test_heads_versions_and_lists(agent: Agent, wait_until: Wait) -> None:
    agent.listen("one")
    peer = agent.connect("one", wait_until)
    version = agent.ns.put("a", b"12", content_type="text/x", ttl_ms=60_000).version
    agent.ns.set_add("s", ["x", "y"])
    head = asked(peer, t="head", key="a")["value"]
    assert (head["version"], head["size"], head["content_type"], head["kind"], head["origin"]) == (
        version,
        2,
        "text/x",
        "register",
        "a",
    )
    assert head["expires_ms"] > time.time() * 1000
    assert "data" not in head
    assert asked(peer, t="head", key="none")["value"] is None
    assert [one["kind"] for one in asked(peer, t="list", prefix="", after="", limit=10)["items"]] == ["register", "set"]
    (kept,) = asked(peer, t="versions", key="a")["items"]
    assert (kept["version"], kept["current"], kept["origin"]) == (version, True, "a")
    shown = asked(peer, t="get", key="s")["value"]
    assert (shown["data"], shown["kind"]) == (b'["x","y"]', "set")
    assert asked(peer, t="head", key="//")["code"] == "bad-name"


def test_a_version_that_is_on_its_way_is_waited_for(agent: Agent, wait_until: Wait) -> None:
    agent.listen("one")
    peer = agent.connect("one", wait_until)
    late = "9999999999999.00000@b"
    reply = asked(peer, t="get", key="k", version=late, wait_ms=50)
    assert (reply["ok"], reply["code"]) == (False, "behind")
    assert asked(peer, t="get", key="k", version="nonsense", wait_ms=50)["code"] == "bad-request"
    assert asked(peer, t="get", key="k", version=late)["value"] is None
    version = agent.ns.put("other", b"0").version  # whatever is written next is later
    peer.send({"t": "get", "r": 1, "key": "k", "version": version, "wait_ms": 20_000})
    assert peer.silent()
    agent.ns.put("k", b"come")
    assert peer.expect("reply")["ok"] is True


def test_one_instance_has_so_many_reads_wait_and_no_more(agent: Agent, wait_until: Wait) -> None:
    agent.listen("one", "two")
    peer, other = agent.connect("one", wait_until), agent.connect("two", wait_until)
    ask = {"t": "get", "key": "k", "version": "9999999999999.00000@b", "wait_ms": 60_000}
    peer.send(*({**ask, "r": n} for n in range(WAITING)))
    assert peer.silent()
    assert asked(peer, **ask)["code"] == "throttled"
    assert asked(peer, t="get", key="k")["value"] is None  # what can be answered is
    other.send({**ask, "r": 1})
    assert other.silent()
    agent.ns.increment("k")  # of another type, which is as good as any version
    assert {peer.expect("reply")["r"] for _ in range(WAITING)} == set(range(WAITING))  # as they were looked at
    assert other.expect("reply")["ok"] is True
    agent.ns.delete("k")
    peer.send({**ask, "r": 1})
    assert peer.silent()  # there is room again


def test_a_read_that_may_be_too_old_is_refused_by_name(agent: Agent, wait_until: Wait) -> None:
    agent.listen("one")
    peer = agent.connect("one", wait_until)
    agent.ns.put("k", b"here")
    ask = {"t": "get", "key": "k", "max_staleness_ms": 100}
    assert asked(peer, **ask)["code"] == "stale"  # no links: nothing is known
    others = agent.instances.reads.elsewhere = Others()
    others.known_ms = 80
    assert asked(peer, **ask)["value"]["data"] == b"here"
    others.known_ms, others.asked_ms = 500, 90
    assert asked(peer, **ask)["value"]["data"] == b"here"
    assert [one["key"] for one in asked(peer, **{**ask, "t": "list", "prefix": ""})["items"]] == ["k"]
    others.asked_ms = None
    assert asked(peer, **ask)["code"] == "stale"


def test_a_strong_read_is_answered_by_the_home_or_refused_by_name(agent: Agent, wait_until: Wait) -> None:
    agent.listen("one")
    peer = agent.connect("one", wait_until)
    ask = {"t": "get", "key": "h/k", "strong": True}
    assert asked(peer, **ask)["code"] == "no-home"
    agent.ns.put("h/k", b"a copy")
    agent.ns.set_home(Home("h/", "b", 1))
    assert asked(peer, **ask)["code"] == "home-unreachable"  # no links
    others = agent.instances.reads.elsewhere = Others()
    value = {
        "key": "h/k", "version": "1763651112223.00000@b", "size": 3, "content_type": None, "digest": None, "kind": "register", "origin": "b",
        "expires_ms": None, "data": b"now", "content": None,
    }  # fmt: skip

    def told(outcome: Any, **request: Any) -> dict[str, Any]:
        peer.send({"r": 7, **ask, **request})
        wait_until(lambda: others.calls, "the home is asked")
        name, body, done = others.calls.pop()
        assert (name, body) == ("b", {"op": "read", "key": "h/k"})
        agent.on_loop(lambda: done(outcome))
        return dict(peer.expect("reply"))

    reply = told({"value": value, "seen": [["b", 1, 9]]})
    assert reply["value"]["data"] == b"now"
    assert parse_session(reply["token"], NAME).missing({("b", 1): 8}) == 1
    assert parse_session(reply["token"], NAME).missing({("b", 1): 9}) == 0
    assert "data" not in told({"value": value, "seen": []}, t="head")["value"]
    assert told({"value": None, "seen": []})["value"] is None
    assert told(Unavailable("cut"))["code"] == "home-unreachable"
    # It has just been handed over: the answer comes from the next one, which is this PoP.
    peer.send({"r": 7, **ask})
    wait_until(lambda: others.calls, "the home is asked")
    agent.ns.set_home(Home("h/", "a", 2))
    agent.on_loop(lambda: others.calls.pop()[2](StaleHome("it moved")))
    assert peer.expect("reply")["value"]["data"] == b"a copy"
    assert others.calls == []


def test_one_that_is_parked_has_nothing_claimed_and_work_wakes_it(agent: Agent, wait_until: Wait) -> None:
    """It is told to park while it has work: it ends that, a claim that crosses `park` is void, and the next event wakes it with a hint for the runner."""

    def park(wanted: bool) -> None:
        document = agent.store.local.get_doc("instance", "one") or {}
        agent.store.local.put_doc("instance", "one", {**document, "park": wanted})
        agent._reactor.call_soon(agent._instances.sync)
        agent._reactor.wake()

    def state() -> dict[str, Any]:
        return agent.store.local.get_doc("instance_state", "one") or {}

    agent.listen("one")
    one = agent.connect("one", wait_until)
    one.send({"t": "claim", "max": 1})
    agent.send("first")
    (work,) = one.expect("work")["items"]
    park(True)
    one.expect("park")
    one.send({"t": "claim", "max": 1}, {"t": "commit", "invocation": work["invocation"], "attempt": work["attempt"]})
    assert one.expect("committed")["status"] == "committed"
    agent.send("second")
    wait_until(lambda: agent.ns.inbox_stats("f", agent.revision).ready, "it has come")
    assert agent.ns.holds("one") == []
    one.send({"t": "parked"})
    one.expect("unpark")
    assert agent.store.local.wait_hint("wake", 5) == "one" and agent.ns.holds("one") == []
    wait_until(lambda: state() | {"state": "waking", "woken": True} == state(), "the runner can see it")
    # Until the runner has heard of it, it is not sent to sleep again.
    park(True)
    one.send({"t": "claim", "max": 1})
    (work,) = one.expect("work")["items"]
    one.send({"t": "commit", "invocation": work["invocation"], "attempt": work["attempt"]})
    assert one.expect("committed")["status"] == "committed"
    park(False)
    wait_until(lambda: "woken" not in state(), "it has heard", 5)
    park(True)
    one.expect("park")
    one.send({"t": "parked"})
    wait_until(lambda: state().get("state") == "parked", "it sleeps")
    park(False)
    one.expect("unpark")
    assert agent.store.local.wait_hint("wake", 5) == "one"
    one.close()
