"""What the reconciler decides, case by case, and that it always gets where it should."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgeflow.runner.plan import (
    Action,
    Coming,
    FunctionView,
    InstanceView,
    Kill,
    Policy,
    Remove,
    Start,
    StartOld,
    Stop,
    backoff_ms,
    plan,
)

POLICY = Policy()
NOW = 10_000_000
IDLE = FunctionView(revision="r2", wanted=1, prepared=True, start_from_ms=0, instances=())


def instance(name: str, revision: str = "r2", **more: object) -> InstanceView:
    settings: dict[str, object] = {
        "running": True,
        "started_ms": NOW - 1000,
        "state": "ready",
        "since_ms": NOW - 500,
        **more,
    }
    return InstanceView(name, revision, **settings)  # type: ignore[arg-type]


def decide(*instances: InstanceView, now_ms: int = NOW, **more: object) -> list[Action]:
    return plan(replace(IDLE, instances=instances, **more), POLICY, now_ms)  # type: ignore[arg-type]


def test_starts_what_is_missing_when_it_can() -> None:
    assert decide(wanted=2) == [Start(), Start()]
    assert decide(instance("a"), wanted=2) == [Start()]
    assert decide(prepared=False) == []
    assert decide(start_from_ms=NOW + 1) == []
    assert decide(instance("a")) == []


def test_an_instance_that_has_ended_is_removed_and_counts_as_a_failure() -> None:
    ended = instance("a", running=False, ended="exited with status 1")
    assert decide(ended) == [Remove("a", "exited with status 1", failed=True), Start()]


def test_leaving_as_told_or_after_the_functions_own_deadline_is_no_failure() -> None:
    told = instance("a", running=False, ended="exited with status 0", stopping_since_ms=NOW - 5)
    late = instance("b", running=False, ended="exited with status 75")
    assert decide(told, late) == [Remove("a", "exited with status 0"), Remove("b", "exited with status 75"), Start()]


def test_hung_instances_are_killed_at_once_and_replaced() -> None:
    assert decide(instance("a", state="hung")) == [Kill("a", "its handler does not return"), Start()]


def test_an_instance_without_its_socket_gets_some_time() -> None:
    assert decide(instance("a", state="lost", started_ms=0, since_ms=NOW - POLICY.lost_ms)) == []
    (kill, start) = decide(instance("a", state="lost", started_ms=0, since_ms=NOW - POLICY.lost_ms - 1))
    assert isinstance(kill, Kill) and kill.failed and start == Start()


def test_an_instance_must_become_ready_in_time() -> None:
    young = instance("a", state="connected", started_ms=NOW - POLICY.start_deadline_ms, since_ms=0)
    assert decide(young) == []
    old = replace(young, started_ms=young.started_ms - 1)
    assert [type(action) for action in decide(old)] == [Kill, Start]
    assert decide(replace(old, since_ms=NOW - 1)) == [], "the data process came back just now"


def test_old_instances_stay_until_the_new_ones_are_ready_and_their_inbox_is_empty() -> None:
    old = instance("old", "r1")
    assert decide(old) == [Start()]
    assert decide(old, instance("new", state="connected")) == []
    assert decide(old, instance("new"), old_work=frozenset({"r1"})) == []
    assert [type(action) for action in decide(old, instance("new"))] == [Stop]


def test_what_is_left_for_an_old_revision_keeps_an_instance_of_it() -> None:
    assert decide(instance("new"), old_work=frozenset({"r1"})) == [StartOld("r1")]
    leaving = instance("old", "r1", stopping_since_ms=NOW)
    assert decide(instance("new"), leaving, old_work=frozenset({"r1"})) == [StartOld("r1")]
    assert decide(instance("new"), instance("old", "r1"), old_work=frozenset({"r1"})) == []


def test_surplus_instances_leave_the_ones_that_are_not_ready_first() -> None:
    actions = decide(instance("a"), instance("b", state="connected"), instance("c", started_ms=NOW - 1), wanted=1)
    assert [action.instance for action in actions if isinstance(action, Stop)] == ["b", "c"]


def test_a_function_that_is_not_wanted_is_stopped() -> None:
    assert [type(action) for action in decide(instance("a"), revision=None, wanted=0)] == [Stop]


def test_who_does_not_leave_is_killed_after_the_grace() -> None:
    assert decide(instance("a", stopping_since_ms=NOW - POLICY.stop_grace_ms), revision=None) == []
    assert [
        type(action)
        for action in decide(instance("a", stopping_since_ms=NOW - POLICY.stop_grace_ms - 1), revision=None)
    ] == [Kill]


def test_an_instance_with_other_secrets_is_replaced_like_one_of_an_older_revision() -> None:
    view = replace(IDLE, wanted=1, content="new", old_work=frozenset())
    stale = instance("stale", state="ready", content="old")
    assert plan(replace(view, instances=[stale]), POLICY, NOW) == [Start()]
    heir = instance("heir", state="connected", content="new")
    assert plan(replace(view, instances=[stale, heir]), POLICY, NOW) == [], "the old one goes when the new one is ready"
    (stop,) = plan(replace(view, instances=[stale, replace(heir, state="ready")]), POLICY, NOW)
    assert isinstance(stop, Stop) and stop.instance == "stale" and "other secrets" in stop.why


def test_backoff_grows_to_a_bound() -> None:
    assert [backoff_ms(failures) for failures in (0, 1, 2, 3, 4, 9, 100)] == [0, 0, 500, 1000, 2000, 60_000, 60_000]


@given(
    st.lists(
        st.builds(
            InstanceView, st.uuids().map(str), st.sampled_from(["r1", "r2"]), st.booleans(), st.integers(0, NOW),
            ended=st.sampled_from(["exited with status 1", "exited with status 75"]),
            state=st.sampled_from([None, "listening", "connected", "ready", "parked", "lost", "hung"]),
            since_ms=st.integers(0, NOW), stopping_since_ms=st.none() | st.integers(0, NOW),
        ),
        max_size=6,
    ),
    st.integers(0, 3),
)  # fmt: skip
def test_from_any_state_it_gets_to_exactly_what_is_wanted(instances: list[InstanceView], wanted: int) -> None:
    now_ms, count = NOW, 0
    for _ in range(12):
        view = replace(IDLE, wanted=wanted, instances=instances)
        by_name = {one.instance: one for one in instances}
        for action in plan(view, POLICY, now_ms):
            if isinstance(action, Start):
                count += 1
                by_name[f"new-{count}"] = instance(f"new-{count}", since_ms=now_ms, started_ms=now_ms)
            elif isinstance(action, StartOld):
                raise AssertionError("nothing is left for old revisions here")
            elif isinstance(action, Remove):
                del by_name[action.instance]
            else:
                by_name[action.instance] = replace(
                    by_name[action.instance], running=False, ended="x", stopping_since_ms=now_ms
                )
        instances = list(by_name.values())
        now_ms += 200_000
    assert len(instances) == wanted and all(one.revision == "r2" and one.running for one in instances)


def test_a_coming_revision_is_started_beside_the_one_that_serves() -> None:
    serving = InstanceView("a", "one", True, 0, state="ready", since_ms=0)
    view = FunctionView("one", 1, True, 0, [serving], coming=Coming("two", 2, True, 0))
    assert plan(view, Policy(), 10) == [Start(is_coming=True)] * 2
    fresh = InstanceView("b", "two", True, 5, state="ready", since_ms=5)
    view = FunctionView("one", 1, True, 0, [serving, fresh], coming=Coming("two", 1, True, 0))
    assert plan(view, Policy(), 10) == [], "neither the one nor the other is too much"
    view = FunctionView("one", 1, True, 0, [serving, fresh], coming=None)
    assert plan(view, Policy(), 10) == [Stop("b", "belongs to revision two, which was replaced")]
