"""The reconciler against a store and a driver in memory."""

import json
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edgeflow.core.manifest import Artifact, ResolvedFunction, parse, resolve
from edgeflow.core.routing import RouteTable
from edgeflow.errors import StoreUnavailable, Unavailable
from edgeflow.runner import waker
from edgeflow.runner.driver import CannotStart, Observed, Prepared, Progress, StartSpec
from edgeflow.runner.reconciler import Reconciler
from edgeflow.runner.venvs import BuildFailed
from edgeflow.settings import PopSettings
from edgeflow.store.sealed import Sealer, SecretBook

START_MS = 1_000_000_000


@dataclass
class Item:
    key: str
    version: str
    data: bytes = b""


@dataclass
class Inbox:
    @property
    def pending(self) -> int:
        return self.ready + self.delayed + self.claimed

    ready: int = 0
    delayed: int = 0
    claimed: int = 0


class FakeNamespace:
    def __init__(self) -> None:
        self.values: dict[str, Item] = {}
        self.routes = RouteTable("never set")
        self.inboxes: dict[tuple[str, str], Inbox] = {}
        self.handed_over: list[tuple[str, str, str | None]] = []
        self.writes = 0

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> "list[Item]":
        return [item for key, item in sorted(self.values.items()) if key.startswith(prefix) and key > after][:limit]

    def get(self, key: str) -> Item | None:
        return self.values.get(key)

    def put(self, key: str, data: bytes, *, content_type: str | None = None) -> Item:
        self.writes += 1
        self.values[key] = Item(key, str(self.writes), data)
        return self.values[key]

    def delete(self, key: str) -> None:
        del self.values[key]

    def set_routes(self, table: RouteTable) -> bool:
        changed = table.version != self.routes.version
        self.routes = table
        return changed

    def hand_over(self, function: str, revision: str, to: str | None) -> int:
        self.handed_over.append((function, revision, to))
        self.inboxes.pop((function, revision), None)
        return 0

    def inbox_stats(self, function: str, revision: str) -> Inbox:
        return self.inboxes.get((function, revision), Inbox())


class FakeLocal:
    def __init__(self) -> None:
        self.documents: dict[str, dict[str, dict[str, Any]]] = {}

    def put_doc(self, kind: str, id: str, document: dict[str, Any]) -> None:
        self.documents.setdefault(kind, {})[id] = json.loads(json.dumps(document))

    def get_doc(self, kind: str, id: str) -> dict[str, Any] | None:
        return self.documents.get(kind, {}).get(id)

    def docs(self, kind: str) -> dict[str, dict[str, Any]]:
        return dict(self.documents.get(kind, {}))

    def wait_hint(self, kind: str, timeout_s: float) -> str | None:
        time.sleep(min(timeout_s, 0.01))
        return None

    def delete_doc(self, kind: str, id: str) -> None:
        self.documents.get(kind, {}).pop(id, None)


class FakeWakeups:
    def wait(self, timeout_s: float) -> set[str]:
        time.sleep(min(timeout_s, 0.01))
        return {"local"}

    def close(self) -> None:
        pass


class FakeStore:
    def __init__(self) -> None:
        self.local = FakeLocal()
        self._namespaces = {"system": FakeNamespace()}

    def namespace(self, name: str) -> FakeNamespace:
        return self._namespaces.setdefault(name, FakeNamespace())

    def namespaces(self) -> list[str]:
        return sorted(self._namespaces)

    def create_namespace(self, name: str) -> bool:
        new = name not in self._namespaces
        self.namespace(name)
        return new

    def wakeups(self) -> FakeWakeups:
        return FakeWakeups()


@dataclass
class FakeDriver:
    instances: dict[str, Observed] = field(default_factory=dict)
    started: list[StartSpec] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    build_error: Exception | None = None
    start_error: Exception | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    now_ms: int = START_MS

    def prepare(
        self, namespace: str, name: str, function: ResolvedFunction, bundle: bytes | None, progress: Progress
    ) -> Prepared:
        progress("collecting parts")
        self.hold.wait(10)
        if self.build_error:
            raise self.build_error
        return Prepared(image=function.image or "built")

    def observe(self) -> list[Observed]:
        return list(self.instances.values())

    def start(self, spec: StartSpec) -> None:
        if self.start_error:
            raise self.start_error
        self.started.append(spec)
        self.instances[spec.instance] = Observed(
            spec.instance, spec.namespace, spec.function, spec.revision, self.now_ms, True, content=spec.content
        )

    def stop(self, instance: str) -> None:
        self.stopped.append(instance)

    def kill(self, instance: str) -> None:
        self.killed.append(instance)
        self.end(instance, "was ended by SIGKILL")

    def pause(self, instance: str) -> None:
        self.instances[instance] = replace(self.instances[instance], paused=True)

    def resume(self, instance: str) -> None:
        self.instances[instance] = replace(self.instances[instance], paused=False)

    def remove(self, instance: str) -> None:
        del self.instances[instance]

    def tail(self, instance: str, lines: int) -> list[str]:
        return [f"last words of {instance}"]

    def upkeep(self) -> None:
        pass

    def end(self, instance: str, how: str) -> None:
        self.instances[instance] = replace(self.instances[instance], running=False, ended=how)


class World:
    """A PoP with a reconciler whose rounds and time are in the test's hands."""

    def __init__(self, folder: Path) -> None:
        self.settings = PopSettings.model_validate({
            "pop": "la", "cluster": "c", "mode": "embedded", "state_dir": folder / "state", "run_dir": folder / "run",
            "store": {"redis_socket": folder / "r"}, "mqtt": {"password_file": folder / "p"},
            "link": {"port": 1, "ca": folder / "a", "cert": folder / "b", "key": folder / "c"}, "api": {"port": 2, "token_file": folder / "t"},
            "public": {"api_url": "http://x", "api_token_file": folder / "t", "mqtt_host": "x", "mqtt_port": 1, "mqtt_ws_url": "ws://x",
                       "mqtt_password_file": folder / "p"},
        })  # fmt: skip
        self.store = FakeStore()
        self.driver = FakeDriver()
        self.driver.hold.set()
        self.now_ms = START_MS
        self.begin()

    def begin(self) -> None:
        """A new control process over the same store and instances."""
        self.reconciler = Reconciler(self.settings, self.store, self.driver)

    def apply(self, functions: str, namespace: str = "vision", **artifacts: Artifact) -> dict[str, Any]:
        manifest = parse(f"namespace: {namespace}\nfunctions: {functions}", default_pop="la")
        document = resolve(manifest, artifacts, applied_ms=1, default_pop="la")
        self.store.namespace("system").put(f"manifests/{namespace}", json.dumps(document).encode())
        return document

    def round(self, times: int = 1, later_ms: int = 0) -> None:
        self.now_ms += later_ms
        self.driver.now_ms = self.now_ms
        for _ in range(times):
            self.reconciler.round(self.now_ms)

    def settle(self) -> None:
        """Rounds until builds are done and what can be started is started."""
        for _ in range(50):
            self.round()
            if all(build.future is None or build.future.done() for build in self.reconciler._builds._builds.values()):
                break
            time.sleep(0.005)
        self.round(3)

    def become(self, state: str, *instances: str) -> None:
        for instance in instances or tuple(self.driver.instances):
            self.store.local.put_doc("instance_state", instance, {"state": state, "since_ms": self.now_ms})

    def state(self, function: str = "vision/f") -> dict[str, Any]:
        return self.store.local.docs("function_state")[function]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_function_comes_up_and_says_so(world: World) -> None:
    document = world.apply("{f: {image: i, subscribe: a, scale: {instances: 2}, env: {A: b}}}")
    world.settle()
    assert len(world.driver.started) == 2
    spec = world.driver.started[0]
    assert (spec.namespace, spec.function, spec.env, spec.prepared) == ("vision", "f", {"A": "b"}, Prepared(image="i"))
    assert spec.memory_bytes == 512 * 1024 * 1024
    assert world.state()["state"] == "starting"
    instance = world.store.local.docs("instance")[spec.instance]
    assert instance["socket"] == str(spec.socket) and instance["spec"] == document["functions"]["f"]
    assert spec.socket.parent.is_dir() and spec.socket.parent.stat().st_mode & 0o777 == 0o700
    world.become("ready")
    world.round()
    assert world.state()["state"] == "ready" and world.state()["revision"] == spec.revision
    shared = json.loads(world.store.namespace("system").values["states/vision/f/la"].data)
    assert shared["state"] == "ready" and shared["revision"] == spec.revision and shared["pop"] == "la"


def test_routes_are_installed_for_every_manifest_and_cleared_with_it(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}, g: {image: i, subscribe: a, place: {pops: [ny]}}}")
    world.round()
    assert [one.function for one in world.store.namespace("vision").routes.functions] == ["f"]
    world.store.namespace("system").delete("manifests/vision")
    world.round()
    assert world.store.namespace("vision").routes == RouteTable()


def test_routes_come_back_after_the_store_lost_them(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.round()
    world.store.namespace("vision").routes = RouteTable("older")
    world.round(later_ms=6_000)
    assert [one.function for one in world.store.namespace("vision").routes.functions] == ["f"]


def test_functions_of_other_pops_are_left_to_them(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a, place: {pops: [ny]}}}")
    world.settle()
    assert world.driver.started == [] and world.store.local.docs("function_state") == {}


def test_a_crash_is_reported_and_started_again_after_a_while(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    (first,) = world.driver.instances
    world.driver.end(first, "exited with status 3")
    world.round()
    state = world.state()
    assert state["state"] == "failing" and state["reason"] == f"instance {first} exited with status 3"
    assert state["last_log_lines"] == [f"last words of {first}"]
    assert first not in world.store.local.docs("instance")
    world.round()
    (second,) = world.driver.instances
    world.become("ready")
    world.round()
    assert world.state()["state"] == "ready" and second != first
    world.driver.end(second, "exited with status 3")
    world.round()
    world.round(later_ms=499)
    assert world.driver.instances == {}, "the second failure in a row has to wait"
    world.round(later_ms=1)
    world.become("ready")
    world.round(later_ms=31_000)
    (third,) = world.driver.instances
    world.driver.end(third, "exited with status 3")
    world.round(2)
    assert len(world.driver.instances) == 1, "a stable instance wiped the failures out"


def test_hung_instances_are_replaced(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    (first,) = world.driver.instances
    world.become("hung")
    world.round(3)
    assert world.driver.killed == [first] and len(world.driver.instances) == 1 and first not in world.driver.instances
    assert first not in world.store.local.docs("instance_state")


def test_a_new_revision_takes_over_before_the_old_one_leaves(world: World) -> None:
    old = world.apply("{f: {image: i, subscribe: a}}")["functions"]["f"]["revision"]
    world.settle()
    world.become("ready")
    (first,) = world.driver.instances
    world.apply("{f: {image: j, subscribe: a}}")
    world.store.namespace("vision").inboxes["f", old] = Inbox(claimed=1)
    world.settle()
    assert world.driver.stopped == [] and len(world.driver.instances) == 2
    world.become("ready")
    world.round()
    assert world.driver.stopped == [], "the old inbox is not empty"
    world.store.namespace("vision").inboxes.clear()
    world.round()
    assert world.driver.stopped == [first]
    world.driver.end(first, "exited with status 0")
    world.round()
    assert first not in world.driver.instances and world.state()["state"] == "ready"


def test_what_is_left_for_an_old_revision_is_done_even_if_its_instances_die_and_the_control_process_too(
    world: World,
) -> None:
    old = world.apply("{f: {image: i, subscribe: a, publish: b}}")["functions"]["f"]
    world.settle()
    world.become("ready")
    (first,) = world.driver.instances
    world.apply("{f: {image: j, subscribe: a}}")
    world.store.namespace("vision").inboxes["f", old["revision"]] = Inbox(delayed=3)
    world.settle()
    world.become("ready")
    world.driver.end(first, "was ended by SIGKILL")
    world.driver.remove(first)
    world.begin()
    world.settle()
    (again,) = [one for one in world.driver.instances.values() if one.revision == old["revision"]]
    assert world.store.local.docs("instance")[again.instance]["spec"] == old
    world.store.namespace("vision").inboxes.clear()
    world.round()
    assert world.driver.stopped == [again.instance]
    world.driver.end(again.instance, "exited with status 0")
    world.round(2)
    assert [one.revision == old["revision"] for one in world.driver.instances.values()] == [False]
    kept = {old["revision"], world.state()["revision"]}
    assert set(world.store.local.docs("revision")) == {f"vision/f/{revision}" for revision in kept}


def test_a_removed_function_is_stopped_and_forgotten(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    world.store.namespace("system").delete("manifests/vision")
    (first,) = world.driver.instances
    world.round()
    assert world.driver.stopped == [first] and world.state()["state"] == "stopped"
    world.round(later_ms=36_000)
    assert world.driver.killed == [first]
    world.round(2)
    assert world.driver.instances == {} and world.store.local.docs("function_state") == {}
    assert "states/vision/f/la" not in world.store.namespace("system").values


def test_a_new_control_process_adopts_what_runs(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    world.become("ready")
    before = set(world.driver.instances)
    world.begin()
    world.settle()
    assert (
        set(world.driver.instances) == before and len(world.driver.started) == 1 and world.state()["state"] == "ready"
    )


def test_documents_follow_what_really_runs(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    (first,) = world.driver.instances
    world.store.local.put_doc("instance", "ghost", {"namespace": "vision", "function": "f"})
    world.store.local.put_doc("instance_state", "ghost", {"state": "ready"})
    world.store.local.delete_doc("instance", first)
    world.round()
    assert set(world.store.local.docs("instance")) == {first} and "ghost" not in world.store.local.docs(
        "instance_state"
    )


def test_a_failed_build_says_why_and_is_tried_again(world: World) -> None:
    world.driver.build_error = BuildFailed(
        "cannot install the requirements: ERROR: no such thing", ["line 1", "ERROR: no such thing"]
    )
    world.apply("{f: {image: i, subscribe: a}, g: {image: j, subscribe: a}}")
    world.settle()
    state = world.state()
    assert (
        state["state"] == "failing"
        and "no such thing" in state["reason"]
        and state["last_log_lines"] == ["line 1", "ERROR: no such thing"]
    )
    world.driver.build_error = None
    world.round(later_ms=9_000)
    world.settle()
    assert len(world.driver.started) == 2


def test_progress_of_a_build_is_shown(world: World) -> None:
    world.driver.hold.clear()
    world.apply("{f: {image: i, subscribe: a}}")
    deadline_s = time.monotonic() + 5
    while (
        world.store.local.docs("function_state").get("vision/f", {}).get("reason") != "collecting parts"
        and time.monotonic() < deadline_s
    ):
        world.round()
    assert world.state()["state"] == "building" and world.state()["reason"] == "collecting parts"
    world.driver.hold.set()


def test_an_instance_that_cannot_be_started_is_reported(world: World) -> None:
    world.driver.start_error = CannotStart("the engine does not start it: no space left")
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    assert world.state()["state"] == "failing" and "no space left" in world.state()["reason"]
    assert world.store.local.docs("instance") == {}


def test_a_bundle_is_waited_for(world: World) -> None:
    world.apply("{f: {build: ./f, subscribe: a}}", f=Artifact(bundle="a" * 64))
    world.settle()
    assert world.state()["state"] == "building" and "waiting for the bundle" in world.state()["reason"]
    world.store.namespace("system").put("bundles/" + "a" * 64, b"...")
    world.round(later_ms=300)
    world.settle()
    assert len(world.driver.started) == 1


def test_a_damaged_manifest_stops_nothing(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    world.store.namespace("system").put("manifests/vision", b"{")
    world.store.namespace("system").put("manifests/other", b'{"namespace": "vision"}')
    world.apply("{g: {image: i, subscribe: a}}", namespace="third")
    world.settle()
    assert world.driver.stopped == [] and {one.function for one in world.driver.instances.values()} == {"f", "g"}


def test_states_are_written_only_when_they_change(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    world.become("ready")
    world.round(5)
    writes = world.store.namespace("system").writes
    world.round(20, later_ms=1000)
    assert world.store.namespace("system").writes == writes


def test_the_thread_outlives_an_outage_of_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    calls = 0
    list_before = FakeNamespace.list

    def fails_first(self: FakeNamespace, *args: Any, **more: Any) -> list[Item]:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise StoreUnavailable()
        return list_before(self, *args, **more)

    monkeypatch.setattr(FakeNamespace, "list", fails_first)
    world.reconciler.start()
    deadline_s = time.monotonic() + 10
    while not world.driver.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert world.driver.started and world.reconciler.status()["running"]
    world.reconciler.stop()
    assert not world.reconciler.status()["running"]


# -- revisions ---------------------------------------------------------------------------------------------------------


def roll_out(world: World, then: str = "{f: {image: j, subscribe: a, publish: b}}") -> tuple[str, str]:
    """A first revision that serves, and a second one whose instances have been started."""
    old = world.apply("{f: {image: i, subscribe: a}}")["functions"]["f"]["revision"]
    world.settle()
    world.become("ready")
    world.round()
    new = world.apply(then)["functions"]["f"]["revision"]
    world.settle()
    return old, new


def serving(world: World) -> list[str]:
    return [one.revision for one in world.store.namespace("vision").routes.functions]


def of(world: World, revision: str) -> list[str]:
    return [one.instance for one in world.driver.instances.values() if one.revision == revision]


def test_events_go_to_a_new_revision_when_it_is_ready_and_not_before(world: World) -> None:
    old, new = roll_out(world)
    assert serving(world) == [old] and len(of(world, new)) == 1
    assert world.state()["state"] == "starting" and (world.state()["revision"], world.state()["live"]) == (new, old)
    world.driver.end(*of(world, old), "was ended by SIGKILL")
    world.round(2)
    assert len(of(world, old)) == 1, "what serves is cared for meanwhile"
    world.become("ready")
    world.round()
    assert serving(world) == [new] and world.state()["state"] == "ready" and world.state()["live"] == new
    assert world.driver.stopped == of(world, old)


def test_what_does_not_get_ready_is_rolled_back_by_itself_with_the_reason(world: World) -> None:
    old, new = roll_out(world)
    world.round(later_ms=59_000)
    assert world.state()["state"] == "starting"
    world.driver.end(*of(world, new), "exited with status 3")
    world.round()
    assert world.state()["state"] == "failing"
    (bad,) = [one.instance for one in world.driver.started if one.revision == new][:1]
    world.round(later_ms=1_001)
    state = world.state()
    assert state["state"] == "rolled-back" and f"instance {bad} exited with status 3" in state["reason"]
    assert state["last_log_lines"] == [f"last words of {bad}"] and serving(world) == [old]
    shared = json.loads(world.store.namespace("system").values["states/vision/f/la"].data)
    assert shared["state"] == "rolled-back" and shared["live"] == old
    world.round(2)
    assert set(world.driver.stopped) == set(of(world, new)), "its instances leave"
    for instance in of(world, new):
        world.driver.end(instance, "exited with status 0")
    world.begin()
    world.round(3, later_ms=200_000)
    assert world.state()["state"] == "rolled-back" and of(world, new) == [], "a restarted control process keeps to it"
    # The next apply is not held up, and neither is the same one once more.
    world.store.namespace("system").put(f"revisions/vision/f/{world.now_ms:013d}-{new}", b"{}")
    world.round()
    world.settle()
    assert len(of(world, new)) == 1 and world.state()["state"] == "starting"
    world.become("ready")
    world.round()
    assert serving(world) == [new]


@pytest.mark.parametrize(("then", "taken"), [("{image: j, subscribe: a, publish: b}", True), ("{image: j, subscribe: [a, c]}", False)])  # fmt: skip
def test_what_crashes_after_it_went_live_goes_back_with_its_work(world: World, then: str, taken: bool) -> None:
    old, new = roll_out(world, f"{{f: {then}}}")
    world.become("ready")
    world.round()
    assert serving(world) == [new]
    for instance in of(world, old):
        world.driver.end(instance, "exited with status 0")
    world.store.namespace("vision").inboxes["f", new] = Inbox(ready=3)
    for _ in range(3):
        world.round(later_ms=2_000)
        for instance in of(world, new):
            world.driver.end(instance, "exited with status 1")
        world.round(2)
    assert world.state()["state"] == "rolled-back" and "3 times in a row" in world.state()["reason"]
    assert serving(world) == [old]
    world.round()
    assert world.store.namespace("vision").handed_over == [("f", new, old if taken else None)]
    world.round(2)
    assert len(of(world, old)) == 1 and of(world, new) == []


def test_a_stuck_rollout_gives_way_to_the_next_apply(world: World) -> None:
    old, new = roll_out(world)
    third = world.apply("{f: {image: k, subscribe: a}}")["functions"]["f"]["revision"]
    world.settle()
    assert serving(world) == [old] and len(of(world, third)) == 1
    world.become("ready", *of(world, third))
    world.round()
    assert serving(world) == [third]
    assert set(of(world, new)) <= set(world.driver.stopped)


def with_secrets(world: World, folder: Path) -> SecretBook:
    """Gives the PoP the cluster's key; the secrets as an operator sets them."""
    (folder / "secrets.key").write_text("k" * 43)
    runner = world.settings.runner.model_copy(update={"secrets_key_file": folder / "secrets.key"})
    world.settings = world.settings.model_copy(update={"runner": runner})
    world.begin()
    return SecretBook(lambda: world.store.namespace("system"), Sealer("k" * 43, world.settings.cluster))


def test_limits_network_and_gpus_reach_the_driver(world: World) -> None:
    world.apply(
        "{f: {image: i, subscribe: a, limits: {pids: 40, tmpfs: 1Mi, log: 128Ki}, network: egress, gpus: 2}, g: {image: i, subscribe: a}}"
    )
    world.settle()
    f, g = sorted(world.driver.started, key=lambda spec: spec.function)
    assert (f.pids, f.tmpfs_bytes, f.log_bytes, f.egress, f.gpus) == (40, 1 << 20, 128 << 10, True, 2)
    assert (g.pids, g.tmpfs_bytes, g.log_bytes, g.egress, g.gpus) == (256, 64 << 20, 8 << 20, False, None)


def test_a_secret_is_waited_for_given_and_its_change_replaces_what_runs(world: World, tmp_path: Path) -> None:
    book = with_secrets(world, tmp_path)
    book.set("other", "token", b"of another namespace")
    world.apply("{f: {image: i, subscribe: a, secrets: [token]}}")
    world.settle()
    assert world.driver.started == [] and world.state()["state"] == "failing"
    assert (
        "vision/token is not set" in world.state()["reason"]
        and "edgeflow secret set vision/token" in world.state()["reason"]
    )

    book.set("vision", "token", b"hunter2")
    world.round()
    (first,) = world.driver.started
    assert first.secrets == {"token": b"hunter2"} and "hunter2" not in repr(first)
    world.become("ready")
    world.round(3)
    assert world.state()["state"] == "ready" and len(world.driver.started) == 1

    book.set("vision", "token", b"two")
    world.round()
    second = world.driver.started[1]
    assert second.secrets == {"token": b"two"} and second.revision == first.revision
    world.round()
    assert world.driver.stopped == [], "the first one works until the second one is ready"
    world.become("ready", second.instance)
    world.round()
    assert world.driver.stopped == [first.instance]


def test_a_secret_that_is_removed_stays_with_what_runs(world: World, tmp_path: Path) -> None:
    book = with_secrets(world, tmp_path)
    book.set("vision", "token", b"one")
    world.apply("{f: {image: i, subscribe: a, secrets: [token]}}")
    world.settle()
    (spec,) = world.driver.started
    world.become("ready")
    world.round()
    book.remove("vision", "token")
    world.round(3, later_ms=1000)
    assert world.driver.stopped == [] and set(world.driver.instances) == {spec.instance}
    assert world.state()["state"] == "failing" and "is not set" in world.state()["reason"]


def test_a_pop_without_the_key_says_so(world: World) -> None:
    SecretBook(lambda: world.store.namespace("system"), Sealer("k" * 43, "c")).set("vision", "token", b"one")
    world.apply("{f: {image: i, subscribe: a, secrets: [token]}}")
    world.settle()
    assert world.state()["state"] == "failing" and "secrets_key_file" in world.state()["reason"]


def test_what_ended_lately_is_said_while_the_next_one_is_ready_and_a_loop_is_counted(world: World) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    for times in (1, 2):
        (one,) = world.driver.instances
        world.become("ready")
        world.round()
        world.driver.end(one, "ran out of memory (raise `limits: {memory: ...}`)")
        world.round(2, later_ms=600)
        assert world.state()["state"] == "failing" and f"instance {one} ran out of memory" in world.state()["reason"]
        assert ("(2 times in a row)" in world.state()["reason"]) == (times == 2)
    world.round(2, later_ms=600)
    world.become("ready")
    world.round()
    assert world.state()["state"] == "ready" and "2 times in a row" in world.state()["reason"]
    assert world.state()["last_log_lines"]
    world.round(later_ms=31_000)
    assert world.state()["state"] == "ready" and world.state()["reason"] == ""


def test_an_engine_that_is_away_is_said_and_nothing_is_touched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.apply("{f: {image: i, subscribe: a}}")
    world.settle()
    before = dict(world.driver.instances)

    def away() -> list[Observed]:
        raise Unavailable("the engine is not reachable")

    monkeypatch.setattr(world.driver, "observe", away)
    world.reconciler.start()
    deadline_s = time.monotonic() + 10
    while not world.reconciler.status()["last_error"] and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert world.reconciler.status()["last_error"] == "the engine is not reachable"
    assert world.driver.instances == before and world.driver.stopped == world.driver.killed == []
    world.reconciler.stop()


def test_a_round_that_does_not_end_is_said(world: World) -> None:
    world.round()
    world.reconciler.last_round_ms = int(time.time() * 1000) - 25_000
    assert "has been waiting for 25 s" in world.reconciler.status()["last_error"]
    world.reconciler.last_round_ms = int(time.time() * 1000)
    assert world.reconciler.status()["last_error"] == ""


# -- numbers that follow the work ----------------------------------------------------------------------------------------


def follow(world: World, **woken: bool) -> None:
    """What the data process does: who is asked to park parks, who is not is awake."""
    for instance, document in world.store.local.docs("instance").items():
        state = "parked" if document.get("park") and not woken.get("woken") else "ready"
        world.store.local.put_doc("instance_state", instance, {"state": state, "since_ms": world.now_ms, **woken})


def awake(world: World) -> int:
    return sum(not one.paused for one in world.driver.instances.values())


def test_without_work_one_is_kept_that_sleeps_and_work_wakes_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waker, "FRESH_S", 0.0)
    world.apply("{f: {image: i, subscribe: a, scale: {min: 0, max: 4, idle: 10s}}}")
    world.settle()
    world.become("ready")
    assert (len(world.driver.instances), awake(world)) == (1, 1)
    world.round()
    follow(world)
    world.round()
    assert awake(world) == 0 and world.state()["state"] == "ready"
    world.round(20, later_ms=1000)
    assert (len(world.driver.instances), awake(world)) == (1, 0), "it stays as it is"
    follow(world, woken=True)
    world.round(2)
    assert awake(world) == 1
    follow(world)
    world.round(later_ms=9_000)
    assert awake(world) == 1, "it is kept awake for a while"
    world.round(later_ms=1_500)
    follow(world)
    world.round()
    assert awake(world) == 0


def test_a_burst_gets_as_many_as_there_may_be_and_a_restarted_control_process_goes_on_from_what_runs(
    world: World,
) -> None:
    world.apply("{f: {image: i, subscribe: a, scale: {min: 0, max: 4, idle: 10s}}}")
    world.settle()
    revision = world.state()["revision"]
    world.store.namespace("vision").inboxes["f", revision] = Inbox(ready=100)
    for _ in range(4):
        follow(world)
        world.round()
    assert (len(world.driver.instances), awake(world)) == (4, 4)
    world.store.local.put_doc(
        "load", "vision/f", {"revision": revision, "arrivals_per_s": 0, "service_ms": 5, "last_ms": world.now_ms}
    )
    world.begin()
    world.settle()
    assert (len(world.driver.instances), awake(world)) == (4, 4)
    world.store.namespace("vision").inboxes.clear()
    world.round(later_ms=9_000)
    assert awake(world) == 4
    world.round(later_ms=2_000)
    assert len(world.driver.stopped) == 3, "one is kept"
    follow(world)
    world.round(2)
    assert sum(one.paused for one in world.driver.instances.values()) == 1


def test_what_finds_no_room_waits_and_says_so(world: World) -> None:
    world.settings = world.settings.model_copy(
        update={"runner": world.settings.runner.model_copy(update={"cpus": 1.5})}
    )
    world.begin()
    world.apply("{f: {image: i, subscribe: a}, g: {image: i, subscribe: a}}")
    world.settle()
    assert [one.function for one in world.driver.instances.values()] == ["f"]
    state = world.state("vision/g")
    assert (state["state"], state["reason"]) == ("starting", "waits for room: needs 1 CPUs, 0.5 of 1.5 are free")
    world.apply("{g: {image: i, subscribe: a}}")
    world.round()
    world.driver.end(next(iter(world.driver.instances)), "exited with status 0")
    world.round(2)
    assert [one.function for one in world.driver.instances.values()] == ["g"]
