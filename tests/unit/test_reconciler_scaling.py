"""The reconciler: numbers that follow the work, and what there is room for."""

import pytest
from runner_world import Inbox, World

from edgeflow.runner import waker


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
