"""Functions at two PoPs while one of them is killed, paused and cut off: what stays goes on, and each input has one visible result in the end."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import until

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.lab import ledger
from edgeflow.lab.hands import Hands, hands_on
from edgeflow.lab.hands import Target as Victim
from edgeflow.sdk.client import Client
from edgeflow.settings import PopSettings
from edgeflow.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800), pytest.mark.usefixtures("programs")]

NAMESPACE, POPS = "shared", ("la", "ny")
EVENTS = {True: 60, False: 400}
"""Of each publisher and fault, by `is_short`."""


class World:
    """The cluster, and what was published and acknowledged at which PoP."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.hands: Hands = hands_on(cluster.find())
        self.sent: list[str] = []
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}

    def settings(self, pop: str) -> PopSettings:
        return PopSettings.load(self.cluster.home.root / "pops" / pop / "pop.json")

    def book(self, pop: str) -> ledger.Ledger:
        return ledger.read(str(self.settings(pop).store.redis_socket), NAMESPACE, pop)

    def store(self, pop: str) -> Store:
        if pop not in self._stores:
            self._stores[pop] = Store.open(self.settings(pop))
        return self._stores[pop]

    def publish(self, pop: str, count: int, between: Callable[[int], None] = lambda _: None) -> list[str]:
        """Publish so many inputs at a PoP, each acknowledged; their subjects."""
        access, mine = self.cluster.pop(pop), []
        with Client(access.api_url, access.token, retry_s=120.0) as client:
            for number in range(count):
                between(number)
                with self._lock:
                    subject = f"s{len(self.sent)}"
                    self.sent.append(subject)
                client.publish(f"{NAMESPACE}/start", {"n": subject}, id=subject, source="test", subject=subject)
                mine.append(subject)
        return mine

    def results(self, pop: str) -> Counter[str]:
        return Counter(self.book(pop).subjects(f"{NAMESPACE}/done"))

    def expect(self, pop: str, subjects: list[str], what: str) -> None:
        """Wait until these have results at a PoP."""
        until(lambda: set(subjects) <= set(self.results(pop)), f"results at {pop}: {what}", 180, every_s=0.5)

    def problems(self) -> list[str]:
        """What is wrong now that all is over."""
        for pop in POPS:
            self.expect(pop, self.sent, "everything")
        namespaces = {pop: self.store(pop).namespace(NAMESPACE) for pop in POPS}

        def quiet() -> bool:
            return all(not one.in_flight() and not one.standby_count() for one in namespaces.values()) and (
                namespaces["la"].logs() == namespaces["ny"].logs()
            )

        until(quiet, "nothing under way, the same logs", 120, every_s=0.5)
        found = []
        for pop, namespace in namespaces.items():
            found += [
                f"{pop}: {subject} has {times} results" for subject, times in self.results(pop).items() if times != 1
            ]
            if strange := set(self.results(pop)) - set(self.sent):
                found.append(f"{pop}: results of nothing: {strange}")
            if (tally := namespace.count_value("tally")) != len(self.sent):
                found.append(f"{pop}: a counter says {tally}, sent were {len(self.sent)}")
            if letters := namespace.dead_letter_count():
                found.append(f"{pop}: {letters} dead letters")
            count = Counter(namespace.counters())
            ends = sum(count[f"invocations_{end}"] for end in ("committed", "superseded", "handed_over"))
            if count["invocations_accepted"] != ends:
                found.append(f"{pop}: accepted and ended invocations: {count}")
        return found

    def superseded(self) -> int:
        """How many commits did not count."""
        return sum(self.store(pop).namespace(NAMESPACE).counters().get("results_superseded", 0) for pop in POPS)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


@pytest.fixture(scope="module")
def world(programs: None) -> Iterator[World]:
    with LocalCluster(POPS) as cluster:
        access = cluster.pop("la")
        file = Path(__file__).parent / "shared" / "edgeflow.yaml"
        apply_file(file, Target(access.api_url, access.token), timeout_s=240)
        running = World(cluster)
        for pop in POPS:  # each has its routes and instances
            running.expect(pop, running.publish(pop, 1), "the first one")
        yield running
        running.close()


def both(world: World, count: int, between: Callable[[int], None]) -> None:
    """Publish at both PoPs at once."""
    failures: list[BaseException] = []

    def run(pop: str, step: Callable[[int], None]) -> None:
        try:
            world.publish(pop, count, step)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(pop, between if pop == "ny" else lambda _: None)) for pop in POPS
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not failures


def test_the_owner_is_killed_in_the_middle_and_returns(
    world: World, is_short: bool, figure: Callable[[str], None]
) -> None:
    count = EVENTS[is_short]
    gone: dict[str, Any] = {}

    def between(number: int) -> None:
        if number == count // 3:
            world.hands.kill(Victim("la"), stay_down=True)
            gone["s"] = time.monotonic()

    mine: list[str] = []

    def at_ny() -> None:
        mine.extend(world.publish("ny", count, between))

    publisher = threading.Thread(target=at_ny)
    publisher.start()
    first = world.publish("la", count // 6)
    publisher.join(600)
    world.expect("ny", mine, "while la is away, joins of its keys too")
    took_s = time.monotonic() - gone["s"]
    world.hands.restart("la")
    world.cluster.wait_ready()
    problems = world.problems()
    figure(f"takeover: la killed in the middle, all of ny's inputs done {took_s:.1f} s later, without it; superseded {world.superseded()}; {len(first)} + {len(mine)} events: {len(problems)} problems")  # fmt: skip
    assert problems == []


def test_the_owner_is_paused_for_longer_than_it_takes_to_be_missed(
    world: World, is_short: bool, figure: Callable[[str], None]
) -> None:
    count = EVENTS[is_short]

    def between(number: int) -> None:
        if number == count // 3:
            world.hands.pause(Victim("la"))

    before = world.superseded()
    world.publish("la", count // 2)
    mine = world.publish("ny", count, between)
    world.expect("ny", mine, "while la stands still")
    world.hands.resume("la")
    problems = world.problems()
    figure(
        f"takeover: la paused until ny had done all; superseded {world.superseded() - before}: {len(problems)} problems"
    )
    assert problems == []


def test_both_go_on_while_they_do_not_hear_each_other(
    world: World, is_short: bool, figure: Callable[[str], None]
) -> None:
    count = EVENTS[is_short]

    def between(number: int) -> None:
        if number == count // 3:
            world.cluster.set_link(*POPS, cut=True)

    before = world.superseded()
    both(world, count, between)
    mine = world.publish("ny", 5) + world.publish("la", 5)
    for pop, few in (("ny", mine[:5]), ("la", mine[5:])):
        world.expect(pop, few, "of its own, cut off from the other")
    world.cluster.set_link(*POPS, cut=False)
    problems = world.problems()
    figure(
        f"takeover: cut in the middle, both went on, then healed; superseded {world.superseded() - before}: {len(problems)} problems"
    )
    assert problems == []
