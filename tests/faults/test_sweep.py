"""A crash at every step: kill -9, and a stop that outlives the lease, at each fail point. After each, everything adds up.

Kill: the process ends right there. Stop: it stands there until its attempts have been taken from it, and goes on then: what it still believes to hold
must be refused.
"""

import signal
import threading
import time
from collections.abc import Callable

import pytest
from world import ATTEMPT_S, NAMESPACE, Process, World, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180), pytest.mark.usefixtures("programs")]

INPUTS = 12
SKIP = {
    "gateway-received": 2, "round-before-store": 5, "round-under-way": 5, "round-after-store": 5, "claim-after-store": 3, "claim-handed-over": 3,
    "sdk-before-handler": 1, "sdk-after-handler": 1, "sdk-commit-sent": 1, "commit-collected": 3, "commit-stored": 3, "commit-answered": 3,
    "publisher-published": 3, "publisher-confirmed": 3, "link-sender-read": 2, "link-sender-flushed": 2, "link-sender-acked": 2,
    "link-receiver-before-mirror": 2, "link-receiver-mirrored": 2, "tick-before": 1, "tick-after": 1,
}  # fmt: skip
"""How many passes go by first, so that it strikes in the middle of the work."""
SWEPT = (
    "gateway-received", "gateway-before-ingest", "gateway-after-ingest", "gateway-acked", "round-before-store", "round-under-way", "round-after-store",
    "claim-after-store", "claim-handed-over", "sdk-before-handler", "sdk-after-handler", "sdk-commit-sent", "commit-collected", "commit-stored",
    "commit-answered", "fail-before", "fail-after", "publisher-published", "publisher-confirmed", "publisher-cursor", "link-sender-read",
    "link-sender-flushed", "link-sender-acked", "link-receiver-before-mirror", "link-receiver-mirrored", "link-blob-stored", "tick-before",
    "tick-after", "api-before-ingest", "api-after-ingest",
)  # fmt: skip
STOPPED_IN_SHORT = ("gateway-after-ingest", "sdk-after-handler", "commit-collected", "link-receiver-mirrored")
LONGEST_LEASE_S = 10.0
SHORTEST_STOP_S = 2.0


def test_undisturbed(world: World) -> None:
    world.expect(world.publish(INPUTS))
    assert world.check() == []


@pytest.mark.parametrize("point", SWEPT)
def test_killed_at(world: World, point: str) -> None:
    world.arm(point, "kill", skip=SKIP.get(point, 0))
    inputs = world.publish(INPUTS)
    struck = world.fired(point)
    until(lambda: not struck.alive, f"the process at {point} to be gone")
    world.expect(inputs)
    assert world.check() == []


@pytest.mark.parametrize("point", SWEPT)
def test_stopped_at(world: World, point: str, is_short: bool, figure: Callable[[str], None]) -> None:
    if is_short and point not in STOPPED_IN_SHORT:
        pytest.skip("in the long form")
    stale = world.counters("la")["commits_stale"] + world.counters("ny")["commits_stale"]
    world.arm(point, "stop", skip=SKIP.get(point, 0))
    inputs: list[str] = []
    publishing = threading.Thread(target=lambda: inputs.extend(world.publish(INPUTS)))
    publishing.start()
    struck = world.fired(point)
    began_s = time.monotonic()
    taken = 0
    try:
        taken = OUTLIVE[struck.kind](world, struck)
    finally:
        struck.signal(signal.SIGCONT)
        if struck.kind == "instance":
            # Given up while it stood, it leaves; whatever it still sends, nobody takes.
            try:
                until(lambda: not (taken and struck.alive), "the stopped instance to leave", 20)
            finally:
                world.cluster.kill(struck.pop, "control", signal.SIGCONT)
    publishing.join(60)
    assert len(inputs) == INPUTS
    world.expect(inputs)
    assert world.check() == []
    refused = world.counters("la")["commits_stale"] + world.counters("ny")["commits_stale"] - stale
    figure(
        f"stopped at {point}: {struck.kind} of {struck.pop} for {time.monotonic() - began_s:.1f} s, {taken} attempts taken from it, {refused} late commits refused by the store"
    )
    if point == "commit-collected":
        assert taken > 0 and refused > 0
    if point in ("sdk-before-handler", "sdk-after-handler"):
        assert taken == 1


def _outlive_data(world: World, struck: Process) -> int:
    """Nobody else looks at leases while it stands, so a second agent does: what has ended is failed, to be tried again.

    Where several are claimed at once their leases are longer than a test should last: then all of them end, as after a jump of the clock.
    """
    namespace = world.store(struck.pop).namespace(NAMESPACE)
    door, key = world.door(struck.pop), world.prefix + "claimed"

    def outlived() -> bool:
        due = [score for _, score in door.zrange(key, 0, -1, withscores=True)]
        return not due or min(due) < time.time() * 1000 or min(due) > (began_s + LONGEST_LEASE_S) * 1000

    began_s = time.time()
    time.sleep(SHORTEST_STOP_S)
    until(outlived, "a lease to end", LONGEST_LEASE_S + 5)
    taken = [(one.id, one.attempt) for one in namespace.tick()]
    if not taken:
        claimed = [id.decode() for id in door.zrange(key, 0, -1)]
        taken = [(id, int(door.hget(f"{world.prefix}inv:{id}", "n"))) for id in claimed]
    outcomes = [namespace.fail(id, attempt, "lease-expired", "", 100) for id, attempt in taken]
    return outcomes.count("retry")


def _outlive_instance(world: World, struck: Process) -> int:
    """The agent ends the attempt after its timeout. The runner stands still, so that the instance is there to go on afterwards.

    One whose last commit was on its way has no attempt that could end, if all other work was done by others: then nothing is taken from it.
    """
    id = next(id for id, pid in world.instances(struck.pop).items() if pid == struck.pid)
    world.cluster.kill(struck.pop, "control", signal.SIGSTOP)
    local, door = world.store(struck.pop).local, world.door(struck.pop)

    def given_up() -> bool:
        return (local.get_doc("instance_state", id) or {}).get("state") == "hung"

    until(lambda: given_up() or not door.zcard(world.prefix + "claimed"), "its attempt to be ended", 20 * ATTEMPT_S)
    time.sleep(2 * ATTEMPT_S)  # another instance has the work now, and the state is written once a second
    return int(given_up())


def _outlive_control(_world: World, _struck: Process) -> int:
    time.sleep(SHORTEST_STOP_S)
    return 0


OUTLIVE = {"data": _outlive_data, "instance": _outlive_instance, "control": _outlive_control}
