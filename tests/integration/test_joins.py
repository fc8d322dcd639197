"""Joins and windows on a real Redis against an oracle that looks at the whole history at once: the same invocations, each once."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_pops import RedisServer, make_settings
from store_pops import START_MS, Clock

from edgeflow.core.events import make_event
from edgeflow.core.routing import compile_routes
from edgeflow.store import Arrival, Claim, Commit, Receipt, Store
from edgeflow.store import calls as calls_module
from edgeflow.store.replica import ReplicatedNamespace

WITHIN_MS = 10_000
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Bench:
    folder: Path
    clock: Clock
    redis: RedisServer
    store: Store
    names: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    def namespace(self) -> ReplicatedNamespace:
        name = f"n{next(self.names)}"
        self.store.create_namespace(name)
        return self.store.namespace(name)

    def reopen(self, ns: ReplicatedNamespace) -> ReplicatedNamespace:
        """The process that used the store is gone; the next one begins with what is on disk."""
        self.store.close()
        self.store = Store.open(make_settings(self.folder, "a", {"a": 1}))
        handle = self.store.namespace(ns.name)
        handle.release_claims()
        return handle

    def crash(self) -> None:
        self.redis.kill()
        self.redis.start()


@pytest.fixture(scope="module")
def bench(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("j")
    clock = Clock()
    patch = pytest.MonkeyPatch()
    patch.setattr(calls_module, "time", clock)
    made = make_settings(folder, "a", {"a": 1})
    redis = RedisServer(folder / "a" / "redis", made.store.redis_socket).start()
    world = Bench(folder, clock, redis, Store.open(made))
    yield world
    world.store.close()
    redis.kill()
    patch.undo()


def install(ns: ReplicatedNamespace, channels: str, **join: Any) -> None:
    complete = {"by": "subject", "within_ms": WITHIN_MS, "on_timeout": "drop", **join}
    function = {
        "revision": "r1", "inputs": [{"name": one, "channel": f"{ns.name}/{one}"} for one in channels], "join": complete,
        "place": {"pops": ["a"]},
    }  # fmt: skip
    ns.set_routes(compile_routes({"functions": {"f": function}}, "a"))


def arrive(ns: ReplicatedNamespace, channel: str, key: str, id: str, time_ms: int) -> None:
    event = make_event(f"{ns.name}/{channel}", b"", id=id, source="t", now_ms=time_ms, subject=key)
    assert isinstance(ns.ingest([Arrival(event)])[0], Receipt)


def work(ns: ReplicatedNamespace) -> list[tuple[str, tuple[int, int] | None, list[str]]]:
    """(key, window, ids of the inputs) of everything that became an invocation."""
    found = []
    while claimed := ns.round(claims=[Claim("f", "r1", "i", 64, 60_000)]).claimed[0]:
        for one in claimed:
            found.append((one.key, one.window, [item.event.id for item in one.inputs]))
        ended = ns.round(commits=[Commit(one.id, one.attempt) for one in claimed]).ended
        assert {each.status for each in ended} == {"committed"}
    return found


def assert_conserved(ns: ReplicatedNamespace) -> None:
    """DESIGN.md 4.1."""
    counters = ns.counters()
    gone = sum(
        count for name, count in counters.items()
        if name in ("arrivals_consumed", "arrivals_duplicate", "arrivals_expired") or name.startswith("arrivals_dropped:")
    )  # fmt: skip
    assert counters.get("arrivals", 0) == gone + ns.pending_arrivals(), counters
    ended = sum(
        count for name, count in counters.items()
        if name in ("invocations_committed", "invocations_dead", "invocations_expired", "invocations_shadowed")
        or name.startswith("invocations_dropped:")
    )  # fmt: skip
    assert counters.get("invocations_accepted", 0) == ended + ns.in_flight(), counters


# ------------------------------------------------------------------ all, any, k of m

Arrive = tuple[str, str]
"""(channel, key); its id is its place in the list."""
arrivals = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=24)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), st.just("reopen"), st.integers(1, 2 * WITHIN_MS)
    ),
    max_size=24,
)


def oracle_k(history: list[Any], channels: str, k: int, duplicates: str, on_timeout: str) -> list[Any]:
    """Per key the occurrences, by going through its own history alone."""
    found = []
    for key in "xy":
        now, opened, have, fired = START_MS, 0, defaultdict(list), False
        for index, step in enumerate(history):
            if isinstance(step, int):
                now += step
                if have and now >= opened + WITHIN_MS:
                    if not fired and on_timeout == "partial":
                        found.append((key, sorted(id for ids in have.values() for id in ids)))
                    have, fired = defaultdict(list), False
                continue
            if step == "reopen" or step[1] != key:
                continue
            channel, id = step[0], f"e{index}"
            if fired:
                have[channel].append(id)
                if len(have) == len(channels):
                    have, fired = defaultdict(list), False
                continue
            if not have:
                opened = now
            if channel not in have or duplicates == "all":
                have[channel].append(id)
                fresh = len(have[channel]) == 1
            else:
                fresh = False
                if duplicates == "last":
                    have[channel] = [id]
            if fresh and len(have) >= k:
                found.append((key, sorted(each for ids in have.values() for each in ids)))
                fired = k < len(channels)
                if not fired:
                    have = defaultdict(list)
    return sorted(found)


@SLOW
@given(steps, st.sampled_from(["first", "last", "all"]), st.integers(1, 3), st.sampled_from(["drop", "partial"]))
def test_k_of_m_equals_the_oracle(bench: Bench, history: list[Any], duplicates: str, k: int, on_timeout: str) -> None:
    ns = bench.namespace()
    install(ns, "abc", kind="k", k=k, duplicates=duplicates, on_timeout=on_timeout)
    for index, step in enumerate(history):
        if isinstance(step, int):
            bench.clock.ms += step
            ns.tick()
        elif step == "reopen":
            ns = bench.reopen(ns)
        else:
            arrive(ns, *step, f"e{index}", START_MS)
    assert_conserved(ns)
    made = sorted((key, sorted(ids)) for key, _, ids in work(ns))
    assert made == oracle_k(history, "abc", k, duplicates, on_timeout)
    assert_conserved(ns)


def test_the_oracle_sees_another_rule(bench: Bench) -> None:
    """Negative control: a store that joins by one rule is not equal to the oracle of another."""
    history: list[Any] = [("a", "x"), ("a", "x"), ("b", "x"), 2 * WITHIN_MS, ("c", "y")]
    ns = bench.namespace()
    install(ns, "abc", kind="k", k=2, duplicates="last", on_timeout="partial")
    for index, step in enumerate(history):
        if isinstance(step, int):
            bench.clock.ms += step
            ns.tick()
        else:
            arrive(ns, *step, f"e{index}", START_MS)
    made = sorted((key, sorted(ids)) for key, _, ids in work(ns))
    assert made == oracle_k(history, "abc", 2, "last", "partial")
    for k, duplicates, on_timeout in ((2, "first", "partial"), (2, "all", "partial"), (3, "last", "drop")):
        assert made != oracle_k(history, "abc", k, duplicates, on_timeout)


@SLOW
@given(arrivals, st.randoms(use_true_random=False))
def test_all_does_not_depend_on_the_order_when_nothing_repeats(
    bench: Bench, history: list[Arrive], chance: random.Random
) -> None:
    unique = sorted(set(history))
    results = []
    for _ in range(2):
        chance.shuffle(unique)
        ns = bench.namespace()
        install(ns, "abc", kind="all")
        for channel, key in unique:
            arrive(ns, channel, key, f"{channel}{key}", START_MS)
        results.append(sorted((key, sorted(ids)) for key, _, ids in work(ns)))
    assert results[0] == results[1]
    assert [key for key, _ in results[0]] == [key for key in "xy" if all((channel, key) in unique for channel in "abc")]


@SLOW
@given(st.lists(st.sampled_from("xy"), max_size=30), st.integers(1, 5))
def test_collect_makes_groups_in_order_of_arrival(bench: Bench, history: list[str], wanted: int) -> None:
    ns = bench.namespace()
    install(ns, "a", kind="collect", count=wanted)
    for index, key in enumerate(history):
        arrive(ns, "a", key, f"e{index}", START_MS)
    assert_conserved(ns)
    expected = []
    for key in "xy":
        ids = [f"e{index}" for index, each in enumerate(history) if each == key]
        expected += [(key, ids[at : at + wanted]) for at in range(0, len(ids) - wanted + 1, wanted)]
    assert sorted((key, ids) for key, _, ids in work(ns)) == sorted(expected)


# ------------------------------------------------------------------ windows

timed = st.lists(st.tuples(st.sampled_from("xy"), st.integers(0, 60)), max_size=30)
"""(key, seconds after START_MS) in order of arrival."""


def window_join(kind: str, size_s: int, every_s: int, lateness_s: int) -> dict[str, Any]:
    window = {
        "type": kind, "size_ms": size_s * 1000, "every_ms": every_s * 1000, "lateness_ms": lateness_s * 1000, "idle_ms": 5000,
    }  # fmt: skip
    return {"kind": "window", "window": window, "on_timeout": "partial"}


def oracle_windows(history: list[tuple[str, int]], size: int, every: int, lateness: int) -> dict[Any, list[str]]:
    """Every (key, window) with the events that came before the greatest time seen had passed its end and lateness."""
    found: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    mark = 0
    for index, (key, at) in enumerate(history):
        mark = max(mark, at)
        base = START_MS // 1000
        for start in range((base + at) - size + 1, base + at + 1):
            if start % every == 0 and start + size + lateness > base + mark:
                found[key, (start * 1000, (start + size) * 1000)].append((at, index))
    return {window: [f"e{index}" for _, index in sorted(members)] for window, members in found.items()}


def run_windows(bench: Bench, ns: ReplicatedNamespace, history: list[tuple[str, int]]) -> list[Any]:
    for index, (key, at) in enumerate(history):
        arrive(ns, "a", key, f"e{index}", START_MS + at * 1000)
    assert_conserved(ns)
    made = work(ns)
    # What the watermark has not closed is closed by the clock.
    bench.clock.ms += 1_000_000
    ns.tick()
    made += work(ns)
    bench.clock.ms -= 1_000_000
    assert ns.pending_joins() == []
    assert_conserved(ns)
    return made


@SLOW
@given(timed, st.integers(1, 8), st.integers(1, 3), st.integers(0, 5))
def test_sliding_and_tumbling_windows_equal_the_oracle(
    bench: Bench, history: list[tuple[str, int]], every: int, overlap: int, lateness: int
) -> None:
    ns = bench.namespace()
    kind = "tumbling" if overlap == 1 else "sliding"
    install(ns, "a", **window_join(kind, every * overlap, every, lateness))
    made = run_windows(bench, ns, history)
    assert len({(key, window) for key, window, _ in made}) == len(made), "one invocation per key and window"
    assert {(key, window): ids for key, window, ids in made} == oracle_windows(
        history, every * overlap, every, lateness
    )


def clusters(events: list[tuple[int, int]], gap: int) -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = []
    for event in sorted(events):
        if found and event[0] - found[-1][-1][0] < gap:
            found[-1].append(event)
        else:
            found.append([event])
    return found


def oracle_sessions(history: list[tuple[str, int]], gap: int, lateness: int) -> list[Any]:
    """After each event all clusters anew; those whose end the greatest time seen has passed are final."""
    waiting: dict[str, list[tuple[int, int]]] = defaultdict(list)
    final, mark = [], 0
    for index, (key, at) in enumerate([*history, ("", 10_000)]):
        mark = max(mark, at)
        if key and at + gap + lateness > mark:
            waiting[key].append((at, index))
        for each in list(waiting):
            for group in clusters(waiting[each], gap):
                if group[-1][0] + gap + lateness <= mark:
                    final.append((each, [f"e{one}" for _, one in group]))
                    waiting[each] = [event for event in waiting[each] if event not in group]
    return sorted(final)


@SLOW
@given(timed, st.integers(1, 10), st.integers(0, 5))
def test_sessions_equal_the_oracle(bench: Bench, history: list[tuple[str, int]], gap: int, lateness: int) -> None:
    ns = bench.namespace()
    install(ns, "a", **window_join("session", gap, 0, lateness))
    made = run_windows(bench, ns, history)
    assert sorted((key, ids) for key, _, ids in made) == oracle_sessions(history, gap, lateness)
    for _, window, ids in made:
        times = [START_MS + history[int(id[1:])][1] * 1000 for id in ids]
        assert window == (min(times), max(times) + gap * 1000)


@SLOW
@given(timed, st.integers(1, 8), st.randoms(use_true_random=False))
def test_with_enough_lateness_the_order_of_arrival_does_not_matter(
    bench: Bench, history: list[tuple[str, int]], size: int, chance: random.Random
) -> None:
    named = [(f"e{index}", key, at) for index, (key, at) in enumerate(history)]
    results = []
    for _ in range(2):
        ns = bench.namespace()
        install(ns, "a", **window_join("tumbling", size, size, 60))
        for id, key, at in named:
            arrive(ns, "a", key, id, START_MS + at * 1000)
        made = work(ns)
        bench.clock.ms += 1_000_000
        ns.tick()
        made += work(ns)
        bench.clock.ms -= 1_000_000
        results.append(sorted((key, window, sorted(ids)) for key, window, ids in made))
        chance.shuffle(named)
    assert results[0] == results[1]


def test_a_silent_origin_holds_windows_back_for_its_idle_time_only(bench: Bench, tmp_path: Path) -> None:
    other = make_settings(tmp_path, "b", {"a": 1, "b": 2})
    redis = RedisServer(tmp_path / "b" / "redis", other.store.redis_socket).start()
    store = Store.open(other)
    try:
        ns = bench.namespace()
        install(ns, "a", **window_join("tumbling", 10, 10, 0))
        store.create_namespace(ns.name)
        far = store.namespace(ns.name)
        arrive(far, "a", "x", "far", START_MS + 1000)
        log_id = next(one for one in far.logs() if one.origin == "b")
        ns.mirror(log_id, 1, [raw for _, raw in far.read_log(log_id, 0)])
        arrive(ns, "a", "x", "near", START_MS + 2000)
        arrive(ns, "a", "x", "next", START_MS + 30_000)
        assert work(ns) == [], "b has said nothing later than the first window"
        bench.clock.ms += 6000
        arrive(ns, "a", "x", "more", START_MS + 31_000)
        assert [ids for _, _, ids in work(ns)] == [["far", "near"]]
        assert_conserved(ns)
    finally:
        store.close()
        redis.kill()


def test_clocks_that_are_wrong_do_not_close_windows(bench: Bench) -> None:
    ns = bench.namespace()
    install(ns, "a", **window_join("tumbling", 10, 10, 0))
    arrive(ns, "a", "x", "good", bench.clock.ms)
    arrive(ns, "a", "x", "future", bench.clock.ms + 10 * 3_600_000)
    arrive(ns, "a", "x", "1970", 5)
    assert work(ns) == []
    assert sorted((letter.reason, letter.id != "") for letter in ns.dead_letters()) == [("bad-time", True)] * 2
    assert_conserved(ns)


# ------------------------------------------------------------------ bounds, crashes


def test_more_pending_joins_than_allowed_end_the_oldest_as_its_function_says(bench: Bench) -> None:
    ns = bench.namespace()
    install(ns, "ab", kind="all", max_pending=3, on_timeout="dead-letter")
    for number in range(5):
        arrive(ns, "a", f"k{number}", f"a{number}", START_MS)
    assert sorted(join.key for join in ns.pending_joins()) == ["k2", "k3", "k4"]
    assert all(join.missing == ["b"] and join.have == ["a"] for join in ns.pending_joins())
    letters = ns.dead_letters()
    assert [letter.reason for letter in letters] == ["join-overflow"] * 2
    keys = sorted(letter.detail.partition(": only a arrived (1 of 2) when it gave way")[0] for letter in letters)
    assert keys == ["join key k0", "join key k1"]
    arrive(ns, "b", "k4", "b4", START_MS)
    assert [sorted(ids) for _, _, ids in work(ns)] == [["a4", "b4"]]
    assert_conserved(ns)


def test_killing_the_store_between_steps_changes_nothing(bench: Bench) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ns = bench.namespace()
    install(ns, "abc", kind="k", k=2, duplicates="first", on_timeout="partial")
    history: list[Any] = []
    for index in range(120):
        step = chance.choice(
            [(chance.choice("abc"), chance.choice("xy")), (chance.choice("abc"), chance.choice("xy")), 3000]
        )
        history.append(step)
        if chance.random() < 0.06:
            bench.crash()
        if isinstance(step, int):
            bench.clock.ms += step
            ns.tick()
        else:
            arrive(ns, *step, f"e{index}", START_MS)
    made = sorted((key, sorted(ids)) for key, _, ids in work(ns))
    assert made == oracle_k(history, "abc", 2, "first", "partial")
    assert_conserved(ns)
