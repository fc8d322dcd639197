"""Thousands of events while processes at both PoPs are killed and stopped at random: nothing lost, nothing doubled.

The schedule comes from a seed, which is printed; EDGEFLOW_FAULTS_SEED repeats one. Kills and stops are spread over the work by its progress, not by
the clock, so that the test ends by itself on any machine.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from world import POPS, World, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800), pytest.mark.usefixtures("programs")]

EVENTS = {True: 1_000, False: 10_000}
DISTURBANCES = {True: 12, False: 60}
"""By `is_short`."""
PUBLISHERS = 4
PROCESSES = ("data", "redis", "broker", "control")
LONGEST_STOP_S = {"data": 8.0, "redis": 3.0, "broker": 3.0, "control": 3.0, "instance": 3.0}
"""Longer than a lease for the data process (5 s and the timeout), longer than an attempt for an instance."""


@pytest.fixture
def world() -> Iterator[World]:
    with World.running(respawn=False) as running:
        yield running


def disturb(world: World, chance: random.Random) -> str:
    """One kill, stop or cut; what it was."""
    pop, what = chance.choice(POPS), chance.choice([*PROCESSES, "data", "instance", "instance", "link"])
    stops, share = chance.random() < 0.4, chance.uniform(0.1, 1.0)
    if what == "link":
        world.cluster.set_link(*POPS, cut=True)
        time.sleep(3.0 * share)
        world.cluster.set_link(*POPS, cut=False)
        return f"link cut for {3.0 * share:.1f} s"
    if what == "instance":
        running = sorted(world.instances(pop).items())
        if not running:
            return f"no instance at {pop}"
        name, pid = chance.choice(running)
    else:
        name, pid = what, until(lambda: world.cluster.pid(pop, what), f"{pop}/{what} runs", 60)
    try:
        os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
    except ProcessLookupError:
        return f"{pop}/{name} had just ended"
    if not stops:
        return f"{pop}/{name} killed"
    try:
        time.sleep(LONGEST_STOP_S[what] * share)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the runner replaces an instance that stands for too long
            os.kill(pid, signal.SIGCONT)
    return f"{pop}/{name} stopped for {LONGEST_STOP_S[what] * share:.1f} s"


def test_nothing_is_lost_or_doubled_under_a_random_schedule(
    world: World, is_short: bool, figure: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("EDGEFLOW_FAULTS_SEED") or time.time_ns() % 1_000_000)
    print(f"\nEDGEFLOW_FAULTS_SEED={seed}")
    chance = random.Random(seed)
    events, disturbances = EVENTS[is_short], DISTURBANCES[is_short]
    numbers = world.number(events)
    failures: list[BaseException] = []

    def publish(mine: range, pop: str) -> None:
        try:
            for number in mine:
                world.publish_over_http(number, pop)
        except BaseException as error:
            failures.append(error)

    publishers = [
        threading.Thread(target=publish, args=(numbers[first::PUBLISHERS], POPS[first % 2]))
        for first in range(PUBLISHERS)
    ]
    began_s = time.monotonic()
    for publisher in publishers:
        publisher.start()
    done: Counter[str] = Counter()
    for step in range(disturbances):
        wanted = events * step // disturbances
        until(lambda wanted=wanted: failures or len(world.watchers["la"].subjects) >= wanted, f"{wanted} results", 300)
        assert not failures
        what = disturb(world, chance)
        print(f"{time.monotonic() - began_s:6.1f} s, {wanted} results: {what}")
        done["stops" if "stopped" in what else "cuts" if "cut" in what else "kills"] += 1
    for publisher in publishers:
        publisher.join(300)
    assert not failures and not any(publisher.is_alive() for publisher in publishers)
    world.expect((f"s{number}" for number in numbers), 300)
    took_s = time.monotonic() - began_s
    problems = world.check(mqtt_too=False, deadline_s=120)
    counters = {pop: world.counters(pop) for pop in POPS}
    figure(
        f"random schedule (seed {seed}): {events} events through chain and join in {took_s:.0f} s, {done['kills']} kills, {done['stops']} stops, "
        f"{done['cuts']} cuts: {len(problems)} problems; attempts failed {sum(one['attempts_failed'] for one in counters.values())}, "
        f"late commits refused {sum(one['commits_stale'] for one in counters.values())}, repeated publishes recognised "
        f"{sum(one['events_duplicate'] for one in counters.values())}"
    )
    assert problems == []
