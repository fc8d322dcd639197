"""The life of an invocation as the scripts live it, against the table that the documentation is drawn from."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from link_pops import RedisServer, make_settings

from edgeflow.core.events import make_event
from edgeflow.core.lifecycle import FINAL, READY, STATES, STEPS, leads_to
from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.routing import compile_routes
from edgeflow.store import Arrival, Claim, Claimed, Commit, LogId, Store
from edgeflow.store import calls as calls_module
from edgeflow.store.replica import ReplicatedNamespace

MANIFEST = """
namespace: app
channels:
  x: {max_pending: 4, on_full: keep-latest, deadline: 3s}
  z: {max_pending: 2, on_full: drop-oldest}
functions:
  f: {image: i, subscribe: x, ordered: true}
  g: {image: i, subscribe: z}
  s: {image: i, subscribe: w, ordered: true, place: {pops: [a, b]}}
"""


class Clock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def time_ns(self) -> int:
        return self.ms * 1_000_000

    def monotonic(self) -> float:
        return self.ms / 1000


@pytest.fixture
def ns(programs: None, tmp_path: Path) -> Iterator[ReplicatedNamespace]:
    made = make_settings(tmp_path, "a", {"a": 1})
    redis = RedisServer(tmp_path / "a" / "redis", made.store.redis_socket).start()
    store = Store.open(made)
    store.create_namespace("app")
    namespace = store.namespace("app")
    manifest = parse(MANIFEST, default_pop="a")
    artifacts = {name: Artifact(image="i") for name in manifest.functions}
    namespace.set_routes(compile_routes(resolve(manifest, artifacts, applied_ms=1, default_pop="a"), "a"))
    yield namespace
    store.close()
    redis.kill()


class Watcher:
    """Reads the state of every invocation between two operations."""

    def __init__(self, ns: ReplicatedNamespace) -> None:
        self._ns = ns
        self._known: dict[str, str] = {}
        self.seen: set[tuple[str | None, str]] = set()

    def look(self) -> None:
        ids = {key.decode().rpartition(":")[2] for key in self._ns._connection.one("KEYS", "ef:{app}:inv:*")}
        ids |= {id.decode() for id in self._ns._connection.one("HKEYS", "ef:{app}:done")}
        for id in ids:
            info = self._ns.invocation(id)
            assert info is not None and info.state in STATES, info
            before = self._known.get(id)
            if info.state == before:
                continue
            assert before not in FINAL, f"{id} was {before} and is {info.state}"
            assert leads_to(before, info.state), f"{id} went from {before} to {info.state}"
            self.seen.add((before, info.state))
            self._known[id] = info.state


def test_every_step_is_in_the_table_and_every_step_of_the_table_happens(
    ns: ReplicatedNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(calls_module, "time", clock)
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    watcher = Watcher(ns)
    held: list[Claimed] = []
    wanted = {(step.before, step.after) for step in STEPS}

    def one_step(number: int) -> None:
        action = chance.choice(
            ["send", "send", "send", "claim", "commit", "fail", "give-up", "release", "time", "supersede"]
        )
        if action == "send":
            channel = chance.choice("xxzw")
            event = make_event(
                f"app/{channel}", b"", id=f"e{number}", source="t", now_ms=clock.ms, subject=chance.choice("pqrs")
            )
            ns.ingest([Arrival(event)])
        elif action == "claim":
            name = chance.choice("fgs")
            route = ns.routes().current(name)
            assert route is not None
            held.extend(ns.round(claims=[Claim(name, route.revision, "i", chance.randint(1, 3), 60_000)]).claimed[0])
        elif action == "supersede":
            mine = [id.decode() for id in ns._connection.one("ZRANGE", "ef:{app}:mine", 0, -1)]
            if mine:
                over = [chance.choice(mine), "s", "committed", f"{clock.ms:013d}.00000@b", [], "", 0]
                entry = {"v": 1, "k": "end", "t": clock.ms, "x": [], "ev": [], "va": [], "sh": [over]}
                log = LogId("b", 1)
                ns.mirror(log, ns.logs().get(log, 0) + 1, [msgpack.packb(entry, use_bin_type=False)])
        elif action == "time":
            clock.ms += chance.choice([100, 1000, 4000])
            ns.tick()
        elif held:
            one = held.pop(chance.randrange(len(held)))
            if action == "commit":
                ns.round(commits=[Commit(one.id, one.attempt)])
            elif action == "release":
                ns.release_claims(instance="i", ids=[one.id])
            else:
                ns.fail(one.id, one.attempt, "handler-failed", "", 500 if action == "fail" else None)

    # Most runs have seen all after one or two thousand; the rarest steps need several things at once.
    for number in range(25_000):
        one_step(number)
        watcher.look()
        if wanted <= watcher.seen:
            break
    # An operation may take several steps at once (given back and claimed); those of the table must each have been seen alone.
    assert wanted <= watcher.seen, f"never happened: {wanted - watcher.seen}"
    assert (READY, "claimed") in watcher.seen


def test_the_check_sees_a_step_that_is_not_in_the_table(ns: ReplicatedNamespace) -> None:
    watcher = Watcher(ns)
    ns.ingest([Arrival(make_event("app/z", b"", id="e", source="t", now_ms=1))])
    watcher.look()
    (id,) = watcher._known
    ns._connection.one("HSET", f"ef:{{app}}:inv:{id}", "st", "delayed")
    watcher.look()  # ready -> claimed -> delayed
    ns._connection.one("HSET", f"ef:{{app}}:inv:{id}", "st", "turn")
    with pytest.raises(AssertionError, match="went from delayed to turn"):
        watcher.look()
