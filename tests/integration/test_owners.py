"""Functions at several PoPs, on real stores: who does what, what the others keep, and what is left after any order of losses, returns and cuts."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from store_pops import NAME, START_MS, Clock
from store_pops import StorePop as Pop

from edgeflow.core.events import Event, make_event
from edgeflow.core.ids import caused_invocation_id, invocation_id, output_id
from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.ownership import owner, rank
from edgeflow.core.routing import compile_routes
from edgeflow.store import Arrival, Claim, Claimed, Commit, Receipt, ValueWrite
from edgeflow.store import calls as calls_module
from edgeflow.store.replica import ReplicatedNamespace

AT_A_AND_B = "place: {pops: [a, b]}"
ONE = f"functions:\n  f: {{image: i, subscribe: x, publish: y, {AT_A_AND_B}}}\n"
JOIN = (
    f"functions:\n  f: {{image: i, subscribe: {{join: [x, y], within: 10s, by: subject}}, publish: z, {AT_A_AND_B}}}\n"
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calls_module, "time", clock)
    return clock


@pytest.fixture
def pops(programs: None, clock: Clock, tmp_path: Path) -> Iterator[Callable[..., list[Pop]]]:
    opened: list[Pop] = []

    def open_pops(names: str, text: str) -> list[Pop]:
        for name in names:
            opened.append(Pop(tmp_path, name))
            apply(opened[-1].ns, text)
        return opened

    yield open_pops
    for pop in opened:
        pop.close()


def apply(ns: ReplicatedNamespace, text: str) -> None:
    manifest = parse(f"namespace: {NAME}\n{text}", default_pop="a")
    artifacts = {name: Artifact(image="i") for name in manifest.functions}
    ns.set_routes(compile_routes(resolve(manifest, artifacts, applied_ms=1, default_pop="a"), ns.pop))


def event(channel: str, id: str, subject: str = "k", data: bytes = b"x") -> Event:
    return make_event(f"{NAME}/{channel}", data, id=id, source="test", now_ms=START_MS, subject=subject)


def send(pop: Pop, *events: Event) -> None:
    assert all(isinstance(one, Receipt) for one in pop.ns.ingest([Arrival(one) for one in events]))


def replicate(source: Pop, target: Pop, most: int = 1000) -> int:
    """Entries of the source's own log that the target has not; how many went."""
    own = source.settings.pop
    moved = 0
    for log in source.ns.logs():
        if log.origin == own:
            head = target.ns.logs().get(log, 0)
            entries = source.ns.read_log(log, head, count=most, max_bytes=1 << 30)
            target.ns.mirror(log, head + 1, [raw for _, raw in entries])
            moved += len(entries)
    return moved


def exchange(*pops: Pop) -> None:
    """Until everybody has everything."""
    while any(replicate(source, target) for source in pops for target in pops if source is not target):
        pass


def work(pop: Pop, function: str = "f", limit: int = 64) -> list[Claimed]:
    route = pop.ns.routes().current(function)
    if route is None:
        return []
    return pop.ns.round(claims=[Claim(function, route.revision, "i1", limit, 600_000)]).claimed[0]


def result(one: Claimed, channel: str, **more: Any) -> Commit:
    """As the SDK makes it: output ids follow from the invocation."""
    names = "+".join(sorted(item.event.id for item in one.inputs))
    out = make_event(
        f"{NAME}/{channel}", names.encode(), id=output_id(one.id, 0), source=f"/{NAME}/f", now_ms=START_MS,
        subject=one.inputs[0].event.subject,
    )  # fmt: skip
    return Commit(one.id, one.attempt, events=[out], **more)


def commit(pop: Pop, *commits: Commit) -> list[str]:
    return [ended.status for ended in pop.ns.round(commits=commits).ended]


def out(pop: Pop, *names: str, again: bool = False) -> None:
    """From now on these are out, as this PoP sees it."""
    if pop.ns.set_out(names, again=again):
        while pop.ns.sweep()[0]:
            pass


def seen(pop: Pop, channel: str) -> list[str]:
    """Ids of the released events of a channel, in order."""
    released = pop.ns.read_release(0, 100_000)
    return [
        one.event.id
        for one in released
        if one.event is not None and not one.is_repeated and one.event.channel == f"{NAME}/{channel}"
    ]


def assert_conserved(ns: ReplicatedNamespace) -> None:
    count = Counter(ns.counters())
    dropped = sum(number for name, number in count.items() if name.startswith("invocations_dropped:"))
    assert count["invocations_accepted"] == dropped + ns.in_flight() + sum(
        count[f"invocations_{end}"] for end in ("committed", "dead", "expired", "shadowed", "superseded", "handed_over")
    ), count  # fmt: skip
    assert count["arrivals"] == ns.pending_arrivals() + sum(
        number for name, number in count.items() if name.startswith("arrivals_dropped:")
    ) + sum(count[f"arrivals_{end}"] for end in ("consumed", "duplicate", "expired", "superseded", "handed_over")), count  # fmt: skip
    assert count["standby_kept"] == ns.standby_count() + sum(
        count[f"standby_{end}"] for end in ("settled", "taken", "dropped")
    ), count  # fmt: skip


def test_an_event_is_handled_where_it_entered_and_kept_at_the_other_until_that_is_done(
    pops: Callable[..., list[Pop]],
) -> None:
    a, b = pops("ab", ONE)
    send(a, event("x", "1"), event("x", "2"))
    send(b, event("x", "3"))
    exchange(a, b)
    assert (a.ns.standby_count(), b.ns.standby_count()) == (1, 2)
    at_a, at_b = work(a), work(b)
    assert [one.inputs[0].event.id for one in at_a] == ["1", "2"]
    assert [one.inputs[0].event.id for one in at_b] == ["3"]
    commit(a, *(result(one, "y") for one in at_a))
    commit(b, *(result(one, "y") for one in at_b))
    exchange(a, b)
    assert sorted(seen(a, "y")) == sorted(seen(b, "y")) and len(seen(a, "y")) == 3
    for pop in (a, b):
        assert pop.ns.standby_count() == 0 and not work(pop)
        assert_conserved(pop.ns)


def test_what_entered_elsewhere_has_one_owner_by_rank(pops: Callable[..., list[Pop]]) -> None:
    a, b, c = pops("abc", ONE)
    send(c, *(event("x", str(number)) for number in range(3)))
    exchange(a, b, c)
    chosen = owner(rank("f", "c", ("a", "b")), ())
    claimed = {pop.settings.pop: len(work(pop)) for pop in (a, b, c)}
    assert claimed == {"a": 0, "b": 0, "c": 0} | {chosen: 3}


def test_the_end_may_come_before_the_arrival(pops: Callable[..., list[Pop]]) -> None:
    a, b, c = pops("abc", ONE)
    send(c, event("x", "1"))
    chosen, other = (a, b) if rank("f", "c", ("a", "b"))[0] == "a" else (b, a)
    replicate(c, chosen)
    (one,) = work(chosen)
    commit(chosen, result(one, "y"))
    replicate(chosen, other)
    replicate(c, other)
    assert other.ns.standby_count() == 0
    out(other, chosen.settings.pop)
    assert not work(other)
    assert_conserved(other.ns)


def test_a_lost_owner_is_taken_over_and_finds_its_work_done(pops: Callable[..., list[Pop]]) -> None:
    a, b = pops("ab", ONE)
    send(a, *(event("x", str(number)) for number in range(4)))
    begun = work(a, limit=1)
    replicate(a, b)
    assert not work(b)
    out(b, "a")
    taken = work(b)
    assert [one.inputs[0].event.id for one in taken] == ["0", "1", "2", "3"], "in the order in which they came"
    assert {one.id for one in begun} < {one.id for one in taken}, "the same work has the same name"
    commit(b, *(result(one, "y") for one in taken))
    replicate(b, a)
    assert commit(a, result(begun[0], "y")) == ["stale"]
    assert not work(a) and a.ns.counters()["invocations_superseded"] == 4
    out(b)
    exchange(a, b)
    assert seen(a, "y") == seen(b, "y") and len(seen(a, "y")) == 4
    for pop in (a, b):
        assert_conserved(pop.ns)


def test_what_is_not_begun_goes_back_to_the_owner_that_returns(pops: Callable[..., list[Pop]]) -> None:
    a, b = pops("ab", ONE)
    send(a, *(event("x", str(number)) for number in range(4)))
    replicate(a, b)
    out(b, "a")
    begun = work(b, limit=1)
    out(b)
    assert not work(b), "the rest is the owner's again"
    commit(b, result(begun[0], "y"))
    exchange(a, b)
    assert [one.inputs[0].event.id for one in work(a)] == ["1", "2", "3"]
    assert b.ns.counters()["invocations_handed_over"] == 3
    for pop in (a, b):
        assert_conserved(pop.ns)


def test_a_pop_that_drains_hands_over_what_it_has_not_begun(pops: Callable[..., list[Pop]]) -> None:
    a, b = pops("ab", ONE)
    send(a, *(event("x", str(number)) for number in range(3)))
    exchange(a, b)
    begun = work(a, limit=1)
    for pop in (a, b):
        out(pop, "a")
    assert not work(a)
    assert len(work(b)) == 3, "b does not know yet that one is begun"
    commit(a, result(begun[0], "y"))
    exchange(a, b)
    assert b.ns.counters()["invocations_superseded"] == 1
    for pop in (a, b):
        assert_conserved(pop.ns)


def test_two_results_of_one_invocation_are_one_everywhere(pops: Callable[..., list[Pop]], clock: Clock) -> None:
    a, b, c = pops("abc", ONE)
    send(a, event("x", "1"))
    replicate(a, b)
    out(b, "a")
    (at_a,), (at_b,) = work(a), work(b)
    assert at_a.id == at_b.id
    at_a_too = result(at_a, "y", values=[ValueWrite("v", b"of a")], increments=[("n", 1)])
    assert commit(a, at_a_too) == ["committed"]
    clock.ms += 50
    assert commit(b, result(at_b, "y", values=[ValueWrite("v", b"of b")], increments=[("n", 1)])) == ["committed"]
    replicate(b, c)  # c sees them the other way round
    exchange(a, b, c)
    for pop in (a, b, c):
        assert seen(pop, "y") == [output_id(at_a.id, 0)], "each id once"
        value = pop.ns.get("v")
        assert value is not None and value.data == b"of b", "the later one counts"
        assert pop.ns.count_value("n") == 1, "what the other has added is taken back"
        assert_conserved(pop.ns)
    assert a.ns.counters()["results_superseded"] == 1 and "results_superseded" not in b.ns.counters()


def test_the_check_sees_two_results_where_ends_say_nothing(pops: Callable[..., list[Pop]]) -> None:
    """Negative control: the same without what an entry says of its invocation."""
    a, b = pops("ab", ONE)
    send(a, event("x", "1"))
    replicate(a, b)
    out(b, "a")
    (at_a,), (at_b,) = work(a), work(b)
    commit(a, result(at_a, "y", increments=[("n", 1)]))
    commit(b, result(at_b, "y", increments=[("n", 1)]))
    for log in b.ns.logs():
        if log.origin == "b":
            entries = [msgpack.unpackb(raw, raw=True, strict_map_key=False) for _, raw in b.ns.read_log(log, 0)]
            silent = [{name: part for name, part in entry.items() if name != b"sh"} for entry in entries]
            a.ns.mirror(log, 1, [msgpack.packb(entry, use_bin_type=False) for entry in silent])
    assert seen(a, "y") == [output_id(at_a.id, 0)] * 2 and a.ns.count_value("n") == 2


def test_what_follows_from_two_results_is_one_invocation(pops: Callable[..., list[Pop]], clock: Clock) -> None:
    text = ONE + "  g: {image: i, subscribe: y, publish: z, place: {pops: [a, b, c]}}\n"
    a, b, c = pops("abc", text)
    send(a, event("x", "1"))
    replicate(a, b)
    out(b, "a")
    (at_a,), (at_b,) = work(a), work(b)
    commit(a, result(at_a, "y"))
    clock.ms += 50
    commit(b, result(at_b, "y"))
    (next_a,), (next_b,) = work(a, "g"), work(b, "g")
    assert next_a.id == next_b.id == caused_invocation_id("g", at_a.id, 0)
    commit(a, result(next_a, "z"))
    clock.ms += 50
    commit(b, result(next_b, "z"))
    out(b)
    exchange(a, b, c)
    for pop in (a, b, c):
        assert len(seen(pop, "y")) == len(seen(pop, "z")) == 1
        assert pop.ns.standby_count() == 0 and not work(pop, "g")
        assert_conserved(pop.ns)


def test_a_dead_letter_gives_way_to_a_result(pops: Callable[..., list[Pop]]) -> None:
    a, b = pops("ab", ONE)
    send(a, event("x", "1"))
    replicate(a, b)
    out(b, "a")
    (at_a,), (at_b,) = work(a), work(b)
    assert a.ns.fail(at_a.id, at_a.attempt, "handler-failed", "no", None) == "dead"
    commit(b, result(at_b, "y"))
    exchange(a, b)
    assert a.ns.dead_letter_count() == 0 and a.ns.counters()["dead_letters_superseded"] == 1
    assert len(seen(a, "y")) == len(seen(b, "y")) == 1
    for pop in (a, b):
        assert_conserved(pop.ns)


def test_an_invocation_that_was_given_up_is_not_done_by_the_next_owner(pops: Callable[..., list[Pop]]) -> None:
    a, b = pops("ab", ONE)
    send(a, event("x", "1"))
    (one,) = work(a)
    a.ns.fail(one.id, one.attempt, "handler-failed", "no", None)
    exchange(a, b)
    out(b, "a")
    assert not work(b) and b.ns.standby_count() == 0
    found = b.ns.invocation(one.id)
    assert found is not None and found.state == "dead"


@pytest.mark.parametrize("lost", [True, False])
def test_a_join_is_made_where_its_key_belongs_and_finished_by_the_next(
    pops: Callable[..., list[Pop]], lost: bool
) -> None:
    a, b = pops("ab", JOIN)
    keys = [f"k{number}" for number in range(8)]
    send(a, *(event("x", f"x-{key}", key) for key in keys))
    exchange(a, b)
    owners = {key: rank("f", key, ("a", "b"))[0] for key in keys}
    assert set(owners.values()) == {"a", "b"}
    for pop in (a, b):
        assert {one.key for one in pop.ns.pending_joins()} == {
            key for key, of in owners.items() if of == pop.settings.pop
        }
    if lost:
        out(b, "a")
        assert {one.key for one in b.ns.pending_joins()} == set(keys)
    send(b, *(event("y", f"y-{key}", key) for key in keys))
    at_b = work(b)
    assert {one.key for one in at_b} == {key for key in keys if lost or owners[key] == "b"}
    commit(b, *(result(one, "z") for one in at_b))
    exchange(a, b)
    at_a = work(a)
    assert {one.key for one in at_a} == {key for key in keys if not lost and owners[key] == "a"}
    commit(a, *(result(one, "z") for one in at_a))
    exchange(a, b)
    for pop in (a, b):
        assert len(seen(pop, "z")) == len(set(seen(pop, "z"))) == len(keys)
        assert pop.ns.standby_count() == 0 and not pop.ns.pending_joins()
        assert_conserved(pop.ns)


def test_repetitions_and_joins_that_gave_up_are_nobodys_any_more(pops: Callable[..., list[Pop]], clock: Clock) -> None:
    a, b = pops("ab", JOIN)
    key = next(key for key in (f"k{number}" for number in range(20)) if rank("f", key, ("a", "b"))[0] == "a")
    send(a, event("x", "1", key), event("x", "2", key))
    exchange(a, b)
    assert b.ns.standby_count() == 1, "the repetition is over"
    clock.ms += 11_000
    a.ns.tick()
    exchange(a, b)
    assert b.ns.standby_count() == 0
    assert [letter.reason for letter in a.ns.dead_letters()] == ["join-timeout"]
    out(b, "a")
    assert not b.ns.pending_joins()
    for pop in (a, b):
        assert_conserved(pop.ns)


@pytest.mark.parametrize("run", ["local", "every"])
def test_each_pop_does_its_own(pops: Callable[..., list[Pop]], run: str) -> None:
    place = f"place: {{pops: [a, b], run: {run}}}"
    a, b, c = pops("abc", f"functions:\n  f: {{image: i, subscribe: x, publish: y, {place}}}\n")
    for pop in (a, b, c):
        send(pop, event("x", pop.settings.pop))
    exchange(a, b, c)
    done = {pop.settings.pop: work(pop) for pop in (a, b)}
    inputs = {name: sorted(one.inputs[0].event.id for one in claimed) for name, claimed in done.items()}
    assert inputs == ({"a": ["a"], "b": ["b"]} if run == "local" else {"a": ["a", "b", "c"], "b": ["a", "b", "c"]})
    names = [one.id for claimed in done.values() for one in claimed]
    assert len(set(names)) == len(names), "work of each PoP has names of its own"
    commit(a, *(result(one, "y") for one in done["a"]))
    commit(b, *(result(one, "y") for one in done["b"]))
    exchange(a, b, c)
    assert len(seen(c, "y")) == len(names) and a.ns.standby_count() == 0


def test_local_joins_of_one_key_at_two_pops_are_two(pops: Callable[..., list[Pop]]) -> None:
    a, b = pops("ab", JOIN.replace("[a, b]}", "[a, b], run: local}"))
    for pop in (a, b):
        send(pop, event("x", f"x{pop.settings.pop}"), event("y", f"y{pop.settings.pop}"))
    exchange(a, b)
    (at_a,), (at_b,) = work(a), work(b)
    assert at_a.id != at_b.id
    assert {item.event.id for item in at_a.inputs} == {"xa", "ya"}


def test_nothing_is_given_out_while_it_is_not_known_what_others_did(pops: Callable[..., list[Pop]]) -> None:
    (a,) = pops("a", ONE + "  own: {image: i, subscribe: x, place: {pops: [a]}}\n")
    send(a, event("x", "1"))
    a.ns.is_held = True
    assert not work(a) and len(work(a, "own")) == 1
    a.ns.is_held = False
    (one,) = work(a)
    came = one.inputs[0].event
    assert one.id == invocation_id("f", came.origin, came.epoch, came.seq, came.index)


CHAIN = f"""functions:
  f: {{image: i, subscribe: x, publish: y, {AT_A_AND_B}}}
  g: {{image: i, subscribe: y, publish: z, place: {{pops: [a, b, c]}}}}
  j: {{image: i, subscribe: {{join: [x, z], within: 1h, by: subject}}, publish: done, place: {{pops: [c, b]}}}}
"""
NEXT = {"f": "y", "g": "z", "j": "done"}


@pytest.mark.parametrize("turn", range(4))
def test_any_order_of_losses_and_returns_leaves_one_result_of_each(
    pops: Callable[..., list[Pop]], clock: Clock, turn: int
) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    all_pops = pops("abc", CHAIN)
    held: list[tuple[Pop, str, Claimed]] = []
    sent: list[str] = []

    def step() -> None:
        action = chance.choice(
            ["send", "send", "move", "move", "move", "move", "claim", "claim", "commit", "commit", "out", "fail"]
        )
        pop, other = chance.sample(all_pops, 2)
        clock.ms += chance.randrange(20)
        if action == "send":
            sent.append(f"e{len(sent)}")
            send(pop, event("x", sent[-1], sent[-1]))
        elif action == "move":
            replicate(pop, other, chance.choice([1, 2, 100]))
        elif action == "claim":
            function = chance.choice("fgj")
            held.extend((pop, function, one) for one in work(pop, function, chance.randint(1, 3)))
        elif action == "out":
            names = [one.settings.pop for one in all_pops if one is not pop]
            assert pop.ns.set_out(chance.sample(names, chance.choice([0, 0, 1, 2]))) in (True, False)
            for _ in range(chance.choice([0, 1, 100])):
                pop.ns.sweep()
        elif held:
            at, function, one = held.pop(chance.randrange(len(held)))
            if action == "commit":
                finish(at, function, one)
            else:
                at.ns.fail(one.id, one.attempt, "handler-failed", "", 10)

    def finish(at: Pop, function: str, one: Claimed) -> None:
        name = one.inputs[0].event.subject
        commit(
            at, result(one, NEXT[function], values=[ValueWrite(f"{function}/{name}", at.settings.pop.encode())], increments=[(f"n{function}", 1)]),
        )  # fmt: skip

    for _ in range(150):
        step()
    for pop in all_pops:
        out(pop, again=True)
    for at, function, one in held:
        finish(at, function, one)
    for _ in range(50):
        clock.ms += 1000
        exchange(*all_pops)
        for pop in all_pops:
            pop.ns.tick()
            for function in "fgj":
                for one in work(pop, function):
                    finish(pop, function, one)
    exchange(*all_pops)
    for pop in all_pops:
        for channel in NEXT.values():
            ids = seen(pop, channel)
            assert len(ids) == len(set(ids)) == len(sent), (pop.settings.pop, channel)
        assert [pop.ns.count_value(f"n{function}") or 0 for function in "fgj"] == [len(sent)] * 3
        assert pop.ns.standby_count() == 0 and pop.ns.in_flight() == 0 and not pop.ns.pending_joins()
        assert not pop.ns.dead_letters()
        assert_conserved(pop.ns)
    values = [
        {info.key: (info.version, info.digest) for info in pop.ns.list(limit=1000)} for pop in all_pops
    ]  # fmt: skip
    assert values[0] == values[1] == values[2]
