"""The reconciler against a store and a driver in memory: what is wished runs, and what happens is said."""

import json
import time
from typing import Any

import pytest
from runner_world import FakeNamespace, Item, World

from edgeflow.core.manifest import Artifact
from edgeflow.core.routing import RouteTable
from edgeflow.errors import StoreUnavailable, Unavailable
from edgeflow.runner.driver import CannotStart, Observed, Prepared
from edgeflow.runner.venvs import BuildFailed


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


def test_limits_network_and_gpus_reach_the_driver(world: World) -> None:
    world.apply(
        "{f: {image: i, subscribe: a, limits: {pids: 40, tmpfs: 1Mi, log: 128Ki}, network: egress, gpus: 2}, g: {image: i, subscribe: a}}"
    )
    world.settle()
    f, g = sorted(world.driver.started, key=lambda spec: spec.function)
    assert (f.pids, f.tmpfs_bytes, f.log_bytes, f.egress, f.gpus) == (40, 1 << 20, 128 << 10, True, 2)
    assert (g.pids, g.tmpfs_bytes, g.log_bytes, g.egress, g.gpus) == (256, 64 << 20, 8 << 20, False, None)


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
