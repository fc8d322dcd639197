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
from edgeflow.core.routing import compile_routes
from edgeflow.flow.accounts import Accounts
from edgeflow.flow.instances import Instances
from edgeflow.flow.reactor import Reactor
from edgeflow.flow.rounds import Rounds
from edgeflow.store import Arrival, Store
from edgeflow.store.replica import ReplicatedNamespace

pytestmark = [pytest.mark.usefixtures("programs")]
NAME = "app"
MANIFEST = f"namespace: {NAME}\nfunctions:\n  f: {{image: i, subscribe: x, retry: {{attempts: 1}}}}\n"
Wait = Callable[..., Any]


class Agent:
    """Instances and rounds on a loop in a thread, over a store; and another door to that store for the test."""

    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder, "a", {"a": 1})
        self.redis = RedisServer(folder / "a" / "redis", self.settings.store.redis_socket).start()
        self.store = Store.open(self.settings)
        self.store.create_namespace(NAME)
        self.ns: ReplicatedNamespace = self.store.namespace(NAME)
        manifest = resolve(parse(MANIFEST, default_pop="a"), {"f": Artifact(image="i")}, applied_ms=1, default_pop="a")
        table = compile_routes(manifest, "a")
        self.ns.set_routes(table)
        self.revision = table.functions[0].revision
        self._loop_store = Store.open(self.settings)
        self._reactor = Reactor()
        accounts = cast(Accounts, SimpleNamespace(keep=list))
        self._instances = Instances(
            self._reactor, self._loop_store, self.settings.limits, lambda _name: None, accounts, lambda *_: None
        )
        rounds = Rounds(self._loop_store, {}, self._instances, lambda _name, _released: None, self._reactor.serve_until)
        self._reactor.after_round += [rounds.run]
        self._reactor.call_every(0.02, lambda: self._instances.notify(NAME))
        self._reactor.call_soon(self._instances.sync)
        self._thread = threading.Thread(target=self._reactor.run)

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
        peer.send({"t": "hello", "protocol": 1, "sdk": "test"})
        peer.expect("welcome")
        peer.send({"t": "ready"})
        return peer

    def send(self, id: str) -> None:
        """One event for the function."""
        event = make_event(f"{NAME}/x", b"x", id=id, source="test", now_ms=time.time_ns() // 1_000_000, subject=id)
        self.ns.ingest([Arrival(event)])

    def is_connected(self, instance: str) -> bool:
        return (self.store.local.get_doc("instance_state", instance) or {}).get("state") in (
            "ready",
            "connected",
            "draining",
        )

    def close(self) -> None:
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
