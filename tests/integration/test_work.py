"""Work on a real Redis: order of keys, state, side inputs, full inboxes, deadlines, quotas, dead letters, replays; one promise a test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_pops import make_settings
from store_pops import NAME, START_MS, Clock
from store_pops import StorePop as Pop

from edgeflow.core.events import Event, make_event
from edgeflow.core.ids import invocation_id
from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.routing import compile_routes, state_key
from edgeflow.errors import BadRequest, NotFound, QueueFull, QuotaExceeded
from edgeflow.flow.letters import announce
from edgeflow.store import Arrival, Claim, Claimed, Commit, Receipt, Refusal, ValueWrite
from edgeflow.store import calls as calls_module
from edgeflow.store.records import MapPut, Quota, ReplaySpec, SetAdd, SetRemove
from edgeflow.store.replica import ReplicatedNamespace


def apply(ns: ReplicatedNamespace, text: str) -> None:
    """Install the routes of a manifest: the part below `namespace:`."""
    manifest = parse(f"namespace: {NAME}\n{text}", default_pop="a")
    artifacts = {name: Artifact(image="i") for name in manifest.functions}
    ns.set_routes(compile_routes(resolve(manifest, artifacts, applied_ms=1, default_pop="a"), ns.pop))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calls_module, "time", clock)
    return clock


@pytest.fixture
def pops(programs: None, clock: Clock, tmp_path: Path) -> Iterator[Callable[..., Pop]]:
    opened: list[Pop] = []

    def open_pop(pop: str = "a", **limits: int) -> Pop:
        opened.append(Pop(tmp_path, pop, **limits))
        return opened[-1]

    yield open_pop
    for pop in opened:
        pop.close()


def event(channel: str, id: str, data: Any = b"x", subject: str | None = "k", **more: Any) -> Event:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return make_event(f"{NAME}/{channel}", body, id=id, source="test", now_ms=START_MS, subject=subject, **more)


def send(ns: ReplicatedNamespace, *events: Event) -> list[Receipt | Refusal]:
    return ns.ingest([Arrival(one) for one in events])


def claim(ns: ReplicatedNamespace, function: str, limit: int = 64) -> list[Claimed]:
    route = ns.routes().current(function)
    assert route is not None
    return ns.round(claims=[Claim(function, route.revision, "i1", limit, 30_000)]).claimed[0]


def commit(ns: ReplicatedNamespace, *commits: Commit) -> list[str]:
    return [ended.status for ended in ns.round(commits=commits).ended]


def ids(claimed: list[Claimed]) -> list[str]:
    return [one.inputs[0].event.id for one in claimed]


def replicate(source: Pop, target: Pop) -> None:
    for log_id in source.ns.logs():
        if log_id.origin == source.settings.pop:
            entries = source.ns.read_log(log_id, 0, count=1000, max_bytes=1 << 30)
            target.ns.mirror(log_id, 1, [raw for _, raw in entries])


def assert_conserved(ns: ReplicatedNamespace) -> None:
    counters = ns.counters()
    ended = sum(
        count for name, count in counters.items()
        if name in ("invocations_committed", "invocations_dead", "invocations_expired", "invocations_shadowed")
        or name.startswith("invocations_dropped:")
    )  # fmt: skip
    assert counters.get("invocations_accepted", 0) == ended + ns.in_flight(), counters


# -- which events ------------------------------------------------------------------------------------------------------


def test_filters_with_captures_conditions_and_keys_from_the_data(pops: Callable[..., Pop]) -> None:
    pop = pops()
    apply(
        pop.ns,
        "functions:\n  f: {image: i, publish: [], subscribe: {join: {collect: data.count}, channel: 'cam/{id}/frames',"
        " by: \"join('/', [captures.id, data.shot])\", where: 'data.count > `1`', as: frames}}\n",
    )
    large = {"count": 2, "shot": "s", "pad": "p" * 300_000}
    results = send(
        pop.ns, event("cam/1/frames", "a", {"count": 2, "shot": "s"}), event("cam/2/frames", "b", {"count": 2, "shot": "s"}),
        event("cam/1/frames", "small", {"count": 1, "shot": "s"}), event("cam/1/other", "elsewhere", {"count": 2}), event("cam/1/frames", "c", large),
        event("cam/1/frames", "text", b"no json"), event("cam/1/frames", "wrong", {"count": 2, "shot": [1]}),
    )  # fmt: skip
    assert all(isinstance(result, Receipt) for result in results)
    work = claim(pop.ns, "f")
    assert [(one.key, [item.event.id for item in one.inputs]) for one in work] == [("1/s", ["a", "c"])]
    assert [join.key for join in pop.ns.pending_joins()] == ["2/s"]
    assert [(letter.reason, letter.inputs) for letter in pop.ns.dead_letters()] == [("no-join-key", ())]


def test_a_condition_on_mirrored_data_and_on_values_decides_the_same(pops: Callable[..., Pop]) -> None:
    here, there = pops("a"), pops("b")
    apply(here.ns, "functions:\n  f: {image: i, subscribe: {channel: x, where: data.ok}}\n")
    send(there.ns, event("x", "yes", {"ok": True}), event("x", "no", {"ok": False}), event("x", "odd", {"ok": 7}))
    replicate(there, here)
    here.ns.put("k", b'{"ok": true}')
    here.ns.ingest([Arrival(event("x", "value", b""), dataref=f"ekv:{NAME}/k")])
    here.ns.ingest([Arrival(event("x", "later", b""), dataref=f"ekv:{NAME}/missing")])
    here.ns.put("missing", b'{"ok": true}')
    assert ids(claim(here.ns, "f")) == ["yes", "value"]
    letters = {letter.detail.partition(":")[0]: letter for letter in here.ns.dead_letters()}
    assert set(letters) == {"where-failed"} and len(here.ns.dead_letters()) == 2


def test_a_side_input_is_the_newest_of_its_key_and_starts_nothing(pops: Callable[..., Pop]) -> None:
    pop = pops()
    apply(
        pop.ns,
        "functions:\n  f: {image: i, subscribe: frames, latest: [settings, {channel: 'calibration/{cam}', as: calibration, by: subject}]}\n",
    )
    send(pop.ns, event("frames", "first"), event("settings", "s1"), event("settings", "s2", b"z" * 9000))
    send(pop.ns, event("calibration/1", "c1", subject="k"), event("calibration/1", "c2", subject="other"))
    assert claim(pop.ns, "f")[0].inputs[0].event.id == "first"
    send(pop.ns, event("frames", "second"), event("settings", "s3"))
    work = claim(pop.ns, "f")
    assert [(item.name, item.event.id) for item in work[0].inputs] == [
        ("frames", "second"), ("settings", "s2"), ("calibration", "c1"),
    ]  # fmt: skip
    assert pop.ns.data_of(work[0].inputs[1].event) == b"z" * 9000, "what was handed over stays readable"


# -- order and state ---------------------------------------------------------------------------------------------------

KEYED = "functions:\n  f: {image: i, subscribe: x, publish: y, state: {by: subject}, retry: {attempts: 2}}\n"


def test_one_key_goes_one_at_a_time_in_order_and_takes_its_state_along(pops: Callable[..., Pop], clock: Clock) -> None:
    ns = pops().ns
    apply(ns, KEYED)
    send(ns, *(event("x", f"{key}{number}", subject=key) for number in range(3) for key in ("k", "other")))
    first = claim(ns, "f")
    assert ids(first) == ["k0", "other0"] and first[0].state is None
    assert (first[0].key, first[0].state_key) == ("k", state_key("f", "k"))
    assert claim(ns, "f") == [], "the next of a key waits"
    assert commit(ns, Commit(first[0].id, 1, [event("y", "out")], [ValueWrite(first[0].state_key, b"1")])) == [
        "committed"
    ]
    second = claim(ns, "f")
    assert ids(second) == ["k1"] and second[0].state is not None and second[0].state.data == b"1"
    # A retry keeps its place: k2 does not overtake k1.
    assert ns.fail(second[0].id, 1, "handler-failed", "", 1000) == "retry"
    assert claim(ns, "f") == []
    clock.ms += 2000
    ns.tick()
    again = claim(ns, "f")
    assert ids(again) == ["k1"] and again[0].attempt == 2
    # A dead letter lets the next go.
    assert ns.fail(again[0].id, 2, "handler-failed", "", None) == "dead"
    assert ids(claim(ns, "f")) == ["k2"]
    assert_conserved(ns)


def test_state_and_outputs_of_a_stale_attempt_are_not_written(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, KEYED)
    send(ns, event("x", "1"))
    zombie = claim(ns, "f")[0]
    ns.release_claims(instance="i1")
    fresh = claim(ns, "f")[0]
    assert commit(ns, Commit(zombie.id, zombie.attempt, [], [ValueWrite(zombie.state_key, b"zombie")], [("n", 5)])) == [
        "stale"
    ]
    assert commit(ns, Commit(fresh.id, fresh.attempt, [], [ValueWrite(fresh.state_key, b"fresh")], [("n", 1)])) == [
        "committed"
    ]
    assert commit(ns, Commit(fresh.id, fresh.attempt, [], [ValueWrite(fresh.state_key, b"twice")], [("n", 1)])) == [
        "committed"
    ]
    value = ns.get(fresh.state_key)
    assert value is not None and value.data == b"fresh" and ns.count_value("n") == 1
    assert ns.counters()["commits_stale"] == 1


def test_increments_count_once_at_every_pop(pops: Callable[..., Pop]) -> None:
    here, there = pops("a"), pops("b")
    apply(here.ns, "functions:\n  f: {image: i, subscribe: x}\n")
    send(here.ns, *(event("x", str(number)) for number in range(5)))
    for one in claim(here.ns, "f"):
        commit(here.ns, Commit(one.id, one.attempt, increments=[("hits", 2), ("hits", 1), ("down", -1)]))
    replicate(here, there)
    replicate(here, there)
    for pop in (here, there):
        assert (pop.ns.count_value("hits"), pop.ns.count_value("down"), pop.ns.count_value("none")) == (15, -5, None)


def test_a_commit_changes_sets_and_maps_once_and_a_wrong_type_leaves_all_of_it_out(pops: Callable[..., Pop]) -> None:
    here, there = pops("a"), pops("b")
    apply(here.ns, "functions:\n  f: {image: i, subscribe: x}\n")
    send(here.ns, event("x", "1"), event("x", "2"))
    here.ns.put("plain", b"1")
    here.ns.set_add("gone", ["x"])
    first, second = claim(here.ns, "f")
    ops = [SetAdd("online", ["ann", "bob"]), SetRemove("online", ["ann"]), MapPut("seats", {"1": b"ann"})]
    done = Commit(
        first.id,
        1,
        values=[ValueWrite("gone"), ValueWrite("soon", b"1", ttl_ms=60_000)],
        increments=[("n", 1)],
        ops=ops,
    )
    assert commit(here.ns, done) == commit(here.ns, done) == ["committed"]
    for wrong in (Commit(second.id, 1, values=[ValueWrite("w", b"1")], ops=[SetAdd("plain", ["x"])]),
                  Commit(second.id, 1, values=[ValueWrite("w", b"1"), ValueWrite("online", b"1")]),
                  Commit(second.id, 1, values=[ValueWrite("w", b"1")], increments=[("seats", 1)])):  # fmt: skip
        (ended,) = here.ns.round(commits=[wrong]).ended
        assert ended.status == "wrong-type" and ended.detail in ("plain", "online", "seats")
    assert here.ns.head("w") is None and here.ns.invocation(second.id).state == "claimed"  # type: ignore[union-attr]
    replicate(here, there)
    replicate(here, there)
    for pop in (here, there):
        assert (pop.ns.set_members("online"), pop.ns.map_fields("seats"), pop.ns.count_value("n")) == (
            ["bob"],
            {"1": b"ann"},
            1,
        )
        assert pop.ns.head("gone") is None and pop.ns.head("soon").expires_ms == START_MS + 60_000  # type: ignore[union-attr]


# -- overload ----------------------------------------------------------------------------------------------------------


def limited(policy: str) -> str:
    return f"channels:\n  x: {policy}\nfunctions:\n  f: {{image: i, subscribe: x}}\n"


def test_a_full_inbox_refuses_and_takes_again_when_it_has_room(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, limited("{max_pending: 2}"))
    results = send(ns, *(event("x", str(number)) for number in range(3)), event("free", "z"))
    assert [type(result) for result in results] == [Receipt, Receipt, Refusal, Receipt]
    refusal = results[2]
    assert isinstance(refusal, Refusal) and isinstance(refusal.error, QueueFull) and refusal.error.retry_after_s > 0
    assert [one.event.id for one in ns.read_release(0) if one.event] == ["0", "1", "z"], (
        "what is refused leaves no trace"
    )
    first = claim(ns, "f", 1)[0]
    assert isinstance(send(ns, event("x", "more"))[0], Refusal), "what is worked on counts"
    commit(ns, Commit(first.id, first.attempt))
    assert isinstance(send(ns, event("x", "more"))[0], Receipt)
    assert ns.counters()["events_refused:full"] == 2
    assert_conserved(ns)


def test_the_default_bound_holds_without_a_policy(pops: Callable[..., Pop]) -> None:
    ns = pops(inbox_pending=3).ns
    apply(ns, "functions:\n  f: {image: i, subscribe: x}\n")
    results = send(ns, *(event("x", str(number)) for number in range(5)))
    assert [isinstance(result, Refusal) for result in results] == [False] * 3 + [True] * 2


def test_drop_oldest_keeps_the_newest_and_counts(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, limited("{max_pending: 3, on_full: drop-oldest}"))
    assert all(isinstance(result, Receipt) for result in send(ns, *(event("x", str(number)) for number in range(10))))
    assert ids(claim(ns, "f")) == ["7", "8", "9"]
    # All are being worked on: the new one has to go.
    send(ns, event("x", "late"))
    assert claim(ns, "f") == []
    assert ns.counters()["invocations_dropped:full"] == 8
    assert_conserved(ns)


def test_keep_latest_replaces_the_one_of_the_same_subject(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, limited("{max_pending: 2, on_full: keep-latest}"))
    order = [("a", "1"), ("b", "2"), ("b", "3"), ("a", "4"), ("b", "5"), ("c", "6")]
    send(ns, *(event("x", id, subject=subject) for subject, id in order))
    assert sorted(ids(claim(ns, "f"))) == ["5", "6"], "a's 4 was the oldest when c came"
    assert ns.counters()["invocations_dropped:newer"] == 3
    assert ns.counters()["invocations_dropped:full"] == 1
    assert_conserved(ns)


def test_keep_latest_lets_the_newest_of_a_subject_wait_and_no_older_one(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, limited("{max_pending: 100, on_full: keep-latest}"))
    for number in range(10):
        send(ns, *(event("x", f"{subject}{number}", subject=subject) for subject in "abc"))
        send(ns, event("x", f"b{number}!", subject="b"))
    # Each in the place in which its subject first waited, though b's came most often and last; and far from full.
    assert ids(claim(ns, "f")) == ["a9", "b9!", "c9"]
    assert ns.counters()["invocations_dropped:newer"] == 37
    assert_conserved(ns)


@pytest.mark.parametrize("suspect", [False, True])
def test_keep_latest_does_not_go_back_to_an_older_one(pops: Callable[..., Pop], clock: Clock, suspect: bool) -> None:
    ns = pops().ns
    apply(ns, limited("{max_pending: 100, on_full: keep-latest}"))
    send(ns, *(event("x", f"{subject}1", subject=subject) for subject in "abcd"))
    fails, waits, returns, stays = claim(ns, "f", 4)
    # Of a and b attempts fail; a newer one of a comes before its next attempt, of b while it waits again.
    for one in (fails, waits):
        ns.fail(one.id, one.attempt, "handler-failed", "", 500)
    send(ns, event("x", "a2", subject="a"), event("x", "c2", subject="c"))
    clock.ms += 1000
    ns.tick()
    send(ns, event("x", "b2", subject="b"))
    # c's is given back when a newer one waits, d's when there is none; then one comes.
    ns.release_claims(instance="i1", ids=[returns.id, stays.id], suspect=suspect)
    send(ns, event("x", "d2", subject="d"))
    handled = ids(claim(ns, "f", 10)) + ids(claim(ns, "f", 10))
    assert sorted(handled) == ["a2", "b2", "c2", "d2"]
    assert ns.counters()["invocations_dropped:newer"] == 4
    assert_conserved(ns)


def test_keep_latest_leaves_alone_what_is_asked_for_again(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, limited("{max_pending: 100, on_full: keep-latest}"))
    for number in range(5):
        send(ns, event("x", f"a{number}", subject="a"))
        (one,) = claim(ns, "f")
        if number:
            commit(ns, Commit(one.id, one.attempt))
        else:
            ns.fail(one.id, one.attempt, "handler-failed", "", None)
    send(ns, event("x", "now", subject="a"))
    # Older ones of the subject come behind the one that waits, and a newer one behind them.
    (letter,) = ns.dead_letters()
    assert ns.redrive(letter.id) == "invocation"
    ns.start_replay(ReplaySpec(f"{NAME}/x", "f"))
    ns.run_replays()
    send(ns, event("x", "later", subject="a"))
    handled = claim(ns, "f")
    assert ids(handled) == ["later", "a0", "a0", "a1", "a2", "a3", "a4", "now"]
    assert ns.counters()["invocations_dropped:newer"] == 1
    assert_conserved(ns)


def test_what_is_past_its_deadline_is_not_started(pops: Callable[..., Pop], clock: Clock) -> None:
    ns = pops().ns
    apply(ns, limited("{deadline: 2s}"))
    send(ns, event("x", "old"))
    clock.ms += 1500
    send(ns, event("x", "new"))
    clock.ms += 1000
    assert ids(claim(ns, "f")) == ["new"]
    assert ns.counters()["invocations_expired"] == 1
    assert ns.invocation(invocation_id("f", "a", ns.epoch(), 1, 0)).state == "expired"  # type: ignore[union-attr]
    assert_conserved(ns)


def test_a_function_is_not_fed_while_the_one_behind_it_is_full(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(
        ns,
        "channels:\n  y: {max_pending: 1}\nfunctions:\n  f: {image: i, subscribe: x, publish: y}\n  g: {image: i, subscribe: y, publish: z}\n",
    )
    send(ns, event("x", "1"), event("x", "2"))
    first = claim(ns, "f", 1)[0]
    commit(ns, Commit(first.id, first.attempt, [event("y", "out")]))
    route = ns.routes().current("f")
    assert route is not None
    blocked = ns.round(claims=[Claim("f", route.revision, "i1", 1, 1000)])
    assert blocked.claimed == [[]] and blocked.blocked == {route.inbox}
    done = claim(ns, "g")[0]
    commit(ns, Commit(done.id, done.attempt))
    assert ids(claim(ns, "f")) == ["2"]


def test_a_cycle_does_not_block_itself(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(
        ns,
        "channels:\n  x: {max_pending: 1}\nfunctions:\n  f: {image: i, subscribe: x, publish: y}\n  g: {image: i, subscribe: y, publish: x}\n",
    )
    send(ns, event("x", "1"))
    assert ids(claim(ns, "f")) == ["1"]


def test_a_quota_refuses_with_the_time_to_wait_and_fills_again(pops: Callable[..., Pop], clock: Clock) -> None:
    pop = pops()
    pop.store.set_quota(NAME, Quota(events_per_s=10, bytes_per_s=1000, burst_s=1))
    results = send(pop.ns, *(event("x", str(number)) for number in range(12)))
    assert [isinstance(result, Refusal) for result in results] == [False] * 10 + [True] * 2
    refused = results[-1]
    assert isinstance(refused, Refusal) and isinstance(refused.error, QuotaExceeded)
    assert 0 < refused.error.retry_after_s <= 0.2
    clock.ms += 100
    assert isinstance(send(pop.ns, event("x", "again"))[0], Receipt)
    clock.ms += 10_000
    assert isinstance(send(pop.ns, event("x", "large", b"z" * 5000))[0], Receipt), (
        "larger than the bucket: passes when it is full"
    )
    with pytest.raises(QuotaExceeded):
        pop.ns.put("k", b"v")
    pop.store.set_quota(NAME, None)
    assert isinstance(send(pop.ns, event("x", "free"))[0], Receipt) and pop.ns.quota() is None
    assert pop.ns.counters()["events_refused:quota"] == 2 and pop.ns.counters()["values_refused:quota"] == 1


def test_a_bound_that_is_added_later_does_not_know_of_debts(pops: Callable[..., Pop], clock: Clock) -> None:
    pop = pops()
    pop.store.set_quota(NAME, Quota(events_per_s=100))
    for number in range(20):
        send(pop.ns, event("x", str(number), b"z" * 100_000))
    pop.store.set_quota(NAME, Quota(events_per_s=100, bytes_per_s=1000))
    assert isinstance(send(pop.ns, event("x", "small"))[0], Receipt)


# -- invocations by name -----------------------------------------------------------------------------------------------


def test_an_invocation_by_name_goes_to_that_function_alone_and_its_outcome_is_known_at_every_pop(
    pops: Callable[..., Pop],
) -> None:
    here, there = pops("a"), pops("b")
    apply(
        here.ns,
        "functions:\n  f: {image: i, subscribe: x, publish: y}\n  g: {image: i, subscribe: x}\n  j: {image: i, subscribe: {join: [x, z]}}\n",
    )
    asked = there.ns.ingest([Arrival(event("_invoke/f", "ask"))])[0]
    assert isinstance(asked, Receipt)
    id = invocation_id("f", "b", asked.epoch, asked.seq, 0)
    replicate(there, here)
    assert claim(here.ns, "g") == []
    work = claim(here.ns, "f")
    assert [one.id for one in work] == [id] and work[0].inputs[0].name == "x"
    assert here.ns.result(id) is None and there.ns.result(id) is None
    commit(here.ns, Commit(id, 1, [event("y", "answer", b"42")]))
    replicate(here, there)
    for pop in (here, there):
        result = pop.ns.result(id)
        assert result is not None and result.status == "committed" and [one.data for one in result.events] == [b"42"]
    dead = here.ns.ingest([Arrival(event("_invoke/f", "ask again"))])[0]
    assert isinstance(dead, Receipt)
    gone = claim(here.ns, "f")[0]
    here.ns.fail(gone.id, 1, "handler-failed", "ValueError", None)
    result = here.ns.result(gone.id)
    assert result is not None and (result.status, result.reason) == ("dead", "handler-failed")
    send(here.ns, event("_invoke/j", "join"))
    assert "not-invocable" in {letter.reason for letter in here.ns.dead_letters()}


# -- dead letters ------------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_announced_once_redriven_once_and_can_be_purged(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, "functions:\n  f: {image: i, subscribe: x}\n  watch: {image: i, subscribe: _dead/f, publish: []}\n")
    send(ns, event("x", "1", b"z" * 9000), event("x", "2"))
    for one in claim(ns, "f"):
        ns.fail(one.id, one.attempt, "handler-failed", "ValueError: no\nTraceback", None)
    limits = make_settings(Path("/nonexistent"), "a", {"a": 1}).limits
    assert announce(ns, limits) and not announce(ns, limits)
    told = claim(ns, "watch")
    assert {json.loads(one.inputs[0].event.data or b"")["reason"] for one in told} == {"handler-failed"} and len(
        told
    ) == 2
    large = invocation_id("f", "a", ns.epoch(), 1, 0)
    (small,) = (letter.id for letter in ns.dead_letters() if letter.id != large)
    assert ns.redrive(large) == "invocation"
    with pytest.raises(NotFound):
        ns.redrive(large)
    work = claim(ns, "f")
    assert len(work) == 1 and ns.data_of(work[0].inputs[0].event) == b"z" * 9000
    commit(ns, Commit(work[0].id, work[0].attempt))
    assert ns.purge([small, "unknown"]) == 1 and ns.dead_letters() == []
    assert_conserved(ns)


@pytest.mark.parametrize("on_full", ["refuse", "drop-oldest", "keep-latest"])
def test_a_redrive_takes_nobody_s_place(pops: Callable[..., Pop], clock: Clock, on_full: str) -> None:
    ns = pops().ns
    functions = (
        "functions:\n  f: {image: i, subscribe: x}\n  pair: {image: i, subscribe: {join: [left, right], within: 1s}}\n"
    )
    apply(ns, f"channels:\n  '#': {{max_pending: 2, on_full: {on_full}}}\n{functions}")
    for id in ("1", "2"):
        send(ns, event("x", id, subject=id))
    for one in claim(ns, "f"):
        ns.fail(one.id, one.attempt, "handler-failed", "", None)
    send(ns, event("left", "lonely"))
    clock.ms += 2000
    ns.tick()
    for id in ("3", "4"):
        send(ns, event("x", id, subject=id), event("left", f"l{id}", subject=id), event("right", f"r{id}", subject=id))
    letters = {letter.function: letter.id for letter in ns.dead_letters()}
    for function, id in letters.items():
        with pytest.raises(QueueFull) as caught:
            ns.redrive(id)
        assert f"inbox of function {function} is full" in caught.value.message and caught.value.retry_after_s > 0
        assert ns.dead_letter(id) is not None
    assert ns.counters().get("dead_letters_redriven", 0) == 0
    done = claim(ns, "f")
    assert sorted(one.inputs[0].event.id for one in done) == ["3", "4"]
    commit(ns, Commit(done[0].id, done[0].attempt))
    assert ns.redrive(letters["f"]) == "invocation"
    commit(ns, *(Commit(one.id, one.attempt) for one in claim(ns, "pair")))
    assert ns.redrive(letters["pair"]) == "arrivals"
    assert_conserved(ns)


def test_what_never_was_an_invocation_arrives_again_by_the_rules_of_now(pops: Callable[..., Pop], clock: Clock) -> None:
    ns = pops().ns
    apply(ns, "functions:\n  f: {image: i, subscribe: {join: [x, y], within: 1s}}\n")
    send(ns, event("x", "lonely"), event("x", "nobody", subject=None))
    clock.ms += 2000
    ns.tick()
    by_reason = {letter.reason: letter.id for letter in ns.dead_letters()}
    assert set(by_reason) == {"join-timeout", "no-join-key"}
    assert ns.redrive(by_reason["join-timeout"]) == "arrivals"
    send(ns, event("y", "partner"))
    assert [sorted(item.event.id for item in one.inputs) for one in claim(ns, "f")] == [["lonely", "partner"]]
    apply(ns, "functions:\n  f: {image: i, subscribe: other}\n")
    with pytest.raises(BadRequest):
        ns.redrive(by_reason["no-join-key"])
    assert ns.dead_letter(by_reason["no-join-key"]) is not None, "a redrive that cannot be is no loss"


def test_dead_letters_are_bounded_in_number_and_age(pops: Callable[..., Pop], clock: Clock) -> None:
    ns = pops(dead_letters=3, dead_letter_ms=60_000).ns
    apply(ns, "functions:\n  f: {image: i, subscribe: {join: [x, y]}}\n")
    send(ns, *(event("x", str(number), subject=None) for number in range(5)))
    ns.tidy({})
    assert len(ns.dead_letters()) == 3 and ns.counters()["dead_letters_expired"] == 2
    clock.ms += 61_000
    ns.tidy({})
    assert ns.dead_letters() == []


# -- replays -----------------------------------------------------------------------------------------------------------


def finish_replay(ns: ReplicatedNamespace, id: str, handle: Callable[[Claimed], Commit]) -> None:
    for _ in range(100):
        ns.run_replays()
        for one in claim(ns, "f"):
            assert one.replay == id
            commit(ns, handle(one))
        info = ns.replay(id)
        assert info is not None
        if info.state == "done" and ns.in_flight() == 0:
            return
    raise AssertionError("the replay does not end")


def test_a_shadow_replay_publishes_nothing_and_shows_the_differences(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, "functions:\n  f: {image: i, subscribe: x, publish: y}\n")
    send(ns, *(event("x", str(number)) for number in range(100)), event("z", "other"))
    while work := claim(ns, "f"):
        for one in work:
            data = one.inputs[0].event.id.encode()
            commit(ns, Commit(one.id, one.attempt, [event("y", "o" + one.id, data)]))
    head, counters = ns.release_head(), ns.counters()
    info = ns.start_replay(ReplaySpec(f"{NAME}/x", "f", shadow=True))

    def changed(one: Claimed) -> Commit:
        assert one.shadow
        id = one.inputs[0].event.id
        return Commit(
            one.id,
            one.attempt,
            [event("y", "s" + one.id, b"new" if id == "7" else id.encode())],
            # It would not hold; of a shadow nothing is written anyway.
            [ValueWrite("k", b"v", if_version="1763651112223.00000@nobody")],
        )

    finish_replay(ns, info.id, changed)
    assert ns.release_head() == head and ns.get("k") is None, "a shadow leaves no trace"
    assert ns.counters()["invocations_committed"] == counters["invocations_committed"]
    done = ns.replay(info.id)
    assert done is not None and (done.read, done.invoked, done.committed, done.dead) == (100, 100, 100, 0)
    diffs = []
    while page := ns.replay_diff(info.id, diffs[-1].invocation if diffs else "", 30):
        diffs += page
    assert len(diffs) == 100
    different = [diff for diff in diffs if not diff.same]
    assert [(diff.recorded[0].data, diff.shadow[0].data) for diff in different if diff.recorded] == [(b"7", b"new")]
    assert ns.cancel_replay(info.id, forget=True) and ns.replay(info.id) is None
    assert_conserved(ns)


def test_a_replay_makes_new_work_once_however_often_a_piece_is_repeated(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, "functions:\n  f: {image: i, subscribe: x, publish: y}\n")
    send(ns, *(event("x", str(number)) for number in range(10)))
    for one in claim(ns, "f"):
        commit(ns, Commit(one.id, one.attempt))
    info = ns.start_replay(ReplaySpec(f"{NAME}/x", "f"))
    seen: list[str] = []

    def handle(one: Claimed) -> Commit:
        seen.append(one.inputs[0].event.id)
        return Commit(one.id, one.attempt, [event("y", one.id)])

    finish_replay(ns, info.id, handle)
    assert sorted(seen, key=int) == [str(number) for number in range(10)]
    with pytest.raises(NotFound):
        ns.start_replay(ReplaySpec(f"{NAME}/x", "f", revision="ffffffffffff"))
    with pytest.raises(NotFound):
        ns.start_replay(ReplaySpec(f"{NAME}/x", "unknown"))
    assert_conserved(ns)


# -- revisions that are rolled back --------------------------------------------------------------------------------------

ONE = "functions:\n  f: {image: i, subscribe: x, retry: {attempts: 2}}\n"
TWO = "functions:\n  f: {image: i, subscribe: x, retry: {attempts: 2}, env: {A: b}}\n"


def take(ns: ReplicatedNamespace, revision: str, limit: int = 10, instance: str = "i1") -> list[Claimed]:
    return ns.round(claims=[Claim("f", revision, instance, limit, 60_000)]).claimed[0]


def revision_of(ns: ReplicatedNamespace) -> str:
    return ns.routes().functions[0].revision


@pytest.mark.parametrize("keyed", ["", ", ordered: {by: subject}"])
def test_what_a_revision_has_left_goes_to_the_one_that_serves_and_is_done_once(
    pops: Callable[..., Pop], clock: Clock, keyed: str
) -> None:
    ns = pops().ns
    one, two = (text.replace("subscribe: x", "subscribe: x" + keyed) for text in (ONE, TWO))
    apply(ns, one)
    old = revision_of(ns)
    apply(ns, two)
    new = revision_of(ns)
    assert ns.hand_over("f", new, old) == -1, "it serves"
    send(ns, *(event("x", str(n), subject=str(n % 2)) for n in range(6)))
    (running,) = take(ns, new, 1, "i1")
    (failed,) = take(ns, new, 1, "i2")
    ns.fail(failed.id, failed.attempt, "instance-crashed", "", 1000)
    apply(ns, one)
    assert ns.hand_over("f", new, "another") == -1, "what it would go to does not serve"
    left = ns.hand_over("f", new, old, 2)
    while ns.inbox_stats("f", new).ready:
        left = ns.hand_over("f", new, old, 2)
    assert left == ns.inbox_stats("f", new).pending > 0, (
        "what runs, waits for its turn or for its retry is still to come"
    )
    assert commit(ns, Commit(running.id, running.attempt, [], [])) == ["committed"], "who has it may end it"
    done = [running.id]
    clock.ms += 2000
    for _ in range(10):
        ns.tick()
        for work in take(ns, old, 10, "i3"):
            assert ns.failures(work.id) == 0, "failures of the other revision are not held against it"
            assert commit(ns, Commit(work.id, work.attempt, [], [])) == ["committed"]
            done.append(work.id)
    assert len(done) == len(set(done)) == 6
    assert (ns.inbox_stats("f", new).pending, ns.inbox_stats("f", old).pending) == (0, 0)
    assert_conserved(ns)
    apply(ns, two)
    send(ns, event("x", "later"))
    (late,) = take(ns, new, 1, "i4")
    ns.release_claims(instance="i4")
    assert [one.id for one in take(ns, new, 1, "i4")] == [late.id], "tried again, it keeps its work"


def test_what_nobody_can_take_becomes_dead_letters_that_say_why(pops: Callable[..., Pop]) -> None:
    ns = pops().ns
    apply(ns, ONE)
    apply(ns, TWO)
    new = revision_of(ns)
    send(ns, event("x", "1"), event("x", "2"))
    apply(ns, ONE)
    assert ns.hand_over("f", new, None) == 0
    assert [letter.reason for letter in ns.dead_letters()] == ["rolled-back", "rolled-back"]
    assert_conserved(ns)
