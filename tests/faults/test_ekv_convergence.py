"""Writers of every type at three PoPs while links, processes, power, disks and clocks fail by a seeded schedule: all PoPs end with the same, and with all that was acknowledged."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
from ekv_clients import Watching
from ekv_world import POPS, EkvWorld, Figure, seed_of_the_run
from histories import going_back
from world import NotInTime, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800), pytest.mark.usefixtures("programs")]

OPERATIONS = {True: 900, False: 10_000}
DISTURBANCES = {True: 10, False: 60}
"""By `is_short`."""
DISTURB: dict[str, Callable[[EkvWorld, random.Random], str]] = {}


def disturbance(function: Callable[[EkvWorld, random.Random], str]) -> Callable[[EkvWorld, random.Random], str]:
    """One kind of disturbance, by the name of its function; what it did is its answer."""
    DISTURB[function.__name__] = function
    return function


def pair(chance: random.Random) -> tuple[str, str]:
    a, b = chance.sample(POPS, 2)
    return a, b


def every_link(world: EkvWorld, **change: float) -> None:
    for a, b in combinations(POPS, 2):
        world.cluster.set_link(a, b, **change)  # type: ignore[arg-type]


@disturbance
def cut(world: EkvWorld, chance: random.Random) -> str:
    a, b = pair(chance)
    world.cut(a, b)
    time.sleep(seconds := chance.uniform(0.5, 4.0))
    world.cluster.set_link(a, b, cut=False)
    return f"{a}-{b} cut for {seconds:.1f} s"


@disturbance
def isolate(world: EkvWorld, chance: random.Random) -> str:
    pop = chance.choice(POPS)
    world.isolate(pop)
    time.sleep(seconds := chance.uniform(0.5, 3.0))
    for other in POPS:
        if other != pop:
            world.cluster.set_link(pop, other, cut=False)
    return f"{pop} alone for {seconds:.1f} s"


@disturbance
def far(world: EkvWorld, chance: random.Random) -> str:
    """Until the next one."""
    a, b = pair(chance)
    every_link(world, delay_ms=0)
    world.cluster.set_link(a, b, delay_ms=(delay := chance.choice((5, 50, 300))))
    return f"{a}-{b} {delay} ms apart from now on"


@disturbance
def narrow(world: EkvWorld, chance: random.Random) -> str:
    """Until the next one: more is written than goes through."""
    a, b = pair(chance)
    every_link(world, kbit_s=0)
    world.cluster.set_link(a, b, kbit_s=1000)
    return f"{a}-{b} 1 Mbit/s from now on"


@disturbance
def kill(world: EkvWorld, chance: random.Random) -> str:
    pop, name = chance.choice(POPS), chance.choice(("data", "control", "redis", "redis"))
    world.kill(pop, name)  # type: ignore[arg-type]
    return f"{pop}/{name} {'without power' if name == 'redis' else 'killed'}"


@disturbance
def stand(world: EkvWorld, chance: random.Random) -> str:
    pop, name = chance.choice(POPS), chance.choice(("data", "control", "redis"))
    world.stand(pop, name, seconds := chance.uniform(0.3, 3.0))  # type: ignore[arg-type]
    return f"{pop}/{name} stood for {seconds:.1f} s"


@disturbance
def full(world: EkvWorld, chance: random.Random) -> str:
    pop = chance.choice(POPS)
    world.fill(pop)
    time.sleep(seconds := chance.uniform(0.5, 2.0))
    (world.folder(pop) / "power" / "full").unlink()
    return f"disk of {pop} full for {seconds:.1f} s"


@disturbance
def wrong_clock(world: EkvWorld, chance: random.Random) -> str:
    """Until the next one."""
    for other in POPS:
        world.skew(other, 0)
    pop = chance.choice(POPS)
    world.skew(pop, off_ms := chance.choice((-3000, -300, 300, 3000)))
    return f"clock of {pop} {off_ms:+d} ms off from now on"


@pytest.fixture
def world(tmp_path: Path, is_short: bool) -> Iterator[EkvWorld]:
    with EkvWorld.running(tmp_path, seed=seed_of_the_run()) as running:
        yield running


def test_all_pops_end_with_the_same_and_with_all_that_was_acknowledged(
    world: EkvWorld, is_short: bool, figure: Figure
) -> None:
    chance = random.Random(world.seed)
    world.replicate_share = 0.1
    count = DISTURBANCES[is_short]
    # Each kind at least once, in any order.
    kinds = [*DISTURB, *(chance.choice([*DISTURB, "kill", "kill"]) for _ in range(count - len(DISTURB)))]
    chance.shuffle(kinds)
    watchers = [Watching(world, pop) for pop in POPS]
    began_s = time.monotonic()
    done: Counter[str] = Counter()
    with world.work(OPERATIONS[is_short]) as work:
        for step, kind in enumerate(kinds):
            work.reach(step / count, 300)
            what = DISTURB[kind](world, chance)
            print(f"{time.monotonic() - began_s:6.1f} s, {work.share:.0%}: {what}")
            done[kind] += 1
        # Some of it lasts; it ends before the writers do, which may wait for it.
        world.heal()
    took_s = time.monotonic() - began_s
    recovered_s = world.converge()
    problems = world.problems()
    for watcher in watchers:
        there = {key: version for key, (version, _) in world.look(watcher.pop).registers.items()}
        try:
            until(lambda watcher=watcher, there=there: watcher.held == there, "what is there", 30)
        except NotInTime:
            problems.append(f"a watcher at {watcher.pop} was not told: {watcher.missing(there)}")
        watcher.stop()
        problems += [f"a watcher at {watcher.pop} was led back: {step}" for step in going_back(watcher.told)]
    figure(
        f"store under faults, {world.summary()}; {sum(done.values())} faults ({', '.join(f'{n} {kind}' for kind, n in done.most_common())}) in {took_s:.0f} s; "
        f"the same everywhere {recovered_s:.1f} s after the last; {sum(len(watcher.told) for watcher in watchers)} changes told to "
        f"watchers over {sum(watcher.connects for watcher in watchers)} connections; lost, doubled or led back: {len(problems)}"
    )
    assert problems == []
