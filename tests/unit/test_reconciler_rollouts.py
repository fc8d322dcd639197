"""The reconciler: revisions that take over, and those that do not."""

import json

import pytest
from runner_world import Inbox, World


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
