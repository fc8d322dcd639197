"""What a PoP has is destroyed, set back to an old backup, damaged, trimmed away or written by a wrong clock: each by itself, so that what came of it is certain."""

import contextlib
import random
import time
from pathlib import Path

import pytest
from ekv_clients import LASTING, NAMESPACE, Done, NoAnswer, body_of, tag_of
from ekv_world import EkvWorld, Figure, seed_of_the_run
from histories import Written, kept
from world import NotInTime, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), pytest.mark.usefixtures("programs")]

WORK = {True: 150, False: 1500}
"""Operations of a part, by `is_short`."""
BODY = 600_000
DISASTERS = ("away", "destroyed", "set back")
ROUNDS = 8


def settled(world: EkvWorld, what: str, figure: Figure, deadline_s: float = 90.0) -> None:
    """Heal, wait for the same content everywhere, and check it."""
    world.heal()
    recovered_s = world.converge(deadline_s)
    problems = world.problems()
    figure(
        f"{what}, {world.summary()}; the same everywhere {recovered_s:.1f} s after it was healed; lost or doubled: {len(problems)}"
    )
    assert problems == []


def test_a_pop_is_destroyed_and_comes_back_empty(tmp_path: Path, is_short: bool, figure: Figure) -> None:
    """What others had confirmed is everywhere; what only it had may be gone; it gets the rest back and is a full member."""
    count = WORK[is_short]
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), kinds=LASTING) as world:
        world.replicate_share = 0.5
        with world.work(count):
            pass
        world.converge()
        # Its last writes reach one of the two others only, or nobody.
        world.cut("la", "sf")
        with world.work(count) as work:
            work.reach(0.3)
            world.cut("la", "ny")
            work.reach(0.6)
            world.destroy("la", returns=True)
            world.heal()
        with world.work(count):
            pass
        replicated = sum(one.pop == "la" and one.class_ == "replicated" and one.outcome == "ok" for one in world.done)
        assert replicated
        settled(world, f"a PoP destroyed, {replicated} writes of it acknowledged as replicated", figure)


def test_a_pop_is_destroyed_for_good(tmp_path: Path, is_short: bool, figure: Figure) -> None:
    if is_short:
        pytest.skip("the long form has it; that a destroyed PoP's writes are with the others is in the test above too")
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), kinds=LASTING) as world:
        world.replicate_share = 0.5
        with world.work(WORK[is_short]) as work:
            work.reach(0.4)
            world.cut("la", "sf")  # ny alone has its last writes
            work.reach(0.7)
            world.destroy("la", returns=False)
        world.heal()
        settled(world, "a PoP destroyed for good", figure)


def test_an_old_backup_of_a_pop(tmp_path: Path, is_short: bool, figure: Figure) -> None:
    """Whatever others had of it comes back; it never gives a log position twice."""
    count = WORK[is_short]
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), kinds=LASTING) as world:
        with world.work(count):
            pass
        world.backup("la", tmp_path / "backup")
        with world.work(count):
            pass
        world.converge()
        with world.work(count, pops=("ny", "sf")) as work:
            work.reach(0.3)
            world.restore("la", tmp_path / "backup")
        with world.work(count):
            pass
        settled(world, "an old backup of a PoP", figure)


def test_bodies_that_the_disk_has_damaged(tmp_path: Path, figure: Figure) -> None:
    """One bit is wrong in one file, another is cut short: nobody is shown a byte of it that is wrong, and both come back from a peer."""
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), power=False) as world:
        tags = [f"body{number}" for number in range(4)]
        with contextlib.closing(world.door("la")) as door, contextlib.closing(world.door("ny")) as there:
            for tag in tags:
                assert door.ask("PUT", f"/v1/ekv/{NAMESPACE}/r/{tag}", body_of(tag, BODY)).status < 300
            for tag in tags:
                until(
                    lambda tag=tag: there.ask("GET", f"/v1/ekv/{NAMESPACE}/r/{tag}").status == 200, f"{tag} at ny", 30
                )
            files = world.blob_files("ny")
            sizes = [path.stat().st_size for path in files]
            assert len(files) == len(tags)
            flipped, torn = files[:2]
            data = bytearray(flipped.read_bytes())
            data[len(data) // 2] ^= 1
            flipped.write_bytes(data)
            torn.write_bytes(torn.read_bytes()[: BODY // 3])
            refused = 0

            def whole() -> bool:
                nonlocal refused
                for tag in tags:
                    with contextlib.suppress(NoAnswer):
                        answer = there.ask("GET", f"/v1/ekv/{NAMESPACE}/r/{tag}")
                        if answer.status == 200:
                            assert tag_of(answer.body) == tag, "a damaged body was shown"
                            continue
                        assert answer.code in ("corrupt-blob", "unavailable"), answer.code
                    refused += 1
                    return False
                return True

            began_s = time.monotonic()
            until(whole, "all bodies again", 60, every_s=0.05)
            took_s = time.monotonic() - began_s
        figure(
            f"2 of 4 large bodies damaged on a PoP's disk: no wrong byte was shown, {refused} readers were told to wait, all whole after {took_s:.1f} s"
        )
        assert [path.stat().st_size for path in world.blob_files("ny")] == sizes


def test_a_log_that_was_trimmed_before_a_peer_had_it(tmp_path: Path, is_short: bool, figure: Figure) -> None:
    limits = {"log_bytes": 60_000, "retention_ms": 1_000}
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), kinds=LASTING, settings={"limits": limits}) as world:
        with world.work(60):
            pass
        world.isolate("sf")
        with world.work(WORK[is_short] * 4, writers_per_pop=3, pause_s=0.0):
            pass
        until(lambda: world.trimmed("la", "ny") and world.trimmed("ny", "la"), "the logs to be trimmed", 60)
        settled(world, "logs trimmed before a PoP that was cut off had them", figure)


def test_a_clock_that_is_far_ahead(tmp_path: Path, is_short: bool, figure: Figure) -> None:
    """It may win against others for as long as it is ahead; it never keeps them from writing, and nothing is lost."""
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), kinds=LASTING) as world:
        chance = random.Random(world.seed)
        with world.work(WORK[is_short]) as work:
            for step, off_ms in enumerate((4_000, -4_000, 2_000, -1_000)):
                work.reach(step / 4)
                world.skew(chance.choice(world.cluster.pops), off_ms)
        settled(world, "clocks up to 4 s off", figure)


def test_one_disaster_after_the_other(tmp_path: Path, is_short: bool, figure: Figure) -> None:
    """In one cluster whose logs are short, so that who was away is brought up by snapshots: PoPs cut off, destroyed, set back to backups of any age, killed on the way."""
    if is_short:
        pytest.skip("the long form has it; each kind of disaster is in a test above")
    limits = {"log_bytes": 60_000, "retention_ms": 1_000}
    seed = seed_of_the_run()
    chance = random.Random(seed)
    recovered_s: list[float] = []
    done: list[str] = []
    with EkvWorld.running(tmp_path, seed=seed, kinds=LASTING, settings={"limits": limits}) as world:
        backups: dict[str, Path] = {}
        kinds = ["away", "destroyed", "set back", *(chance.choice(DISASTERS) for _ in range(ROUNDS - 3))]
        for number, kind in enumerate(kinds):
            pop = chance.choice(world.cluster.pops)
            others = [other for other in world.cluster.pops if other != pop]
            if kind == "set back" and pop not in backups:
                world.backup(pop, backups.setdefault(pop, tmp_path / f"backup{number}"))
            with world.work(WORK[True]):
                pass
            if kind == "away":
                world.isolate(pop)
                with world.work(3 * WORK[True], writers_per_pop=3, pause_s=0.0):
                    pass
            else:
                # Whatever it had acknowledged is with the others: nothing may be lost.
                world.converge()
                with world.work(2 * WORK[True], pops=others, writers_per_pop=3, pause_s=0.0) as work:
                    work.reach(0.3)
                    if kind == "destroyed":
                        world.destroy(pop, returns=True)
                    else:
                        world.restore(pop, backups[pop])
            world.heal()
            time.sleep(chance.uniform(0.0, 1.0))
            for _ in range(chance.randrange(3)):
                # In the middle of being brought up.
                world.kill(chance.choice(world.cluster.pops), chance.choice(("data", "redis")))
                time.sleep(chance.uniform(0.1, 1.5))
            recovered_s.append(world.converge())
            done.append(f"{pop} {kind}")
            print(f"{done[-1]}: the same everywhere after {recovered_s[-1]:.1f} s")
            problems = world.problems()
            assert problems == [], f"after {done}: {problems}"
            if chance.random() < 0.3:
                world.backup(pop, backups.setdefault(pop, tmp_path / f"backup{number}b"))
    figure(
        f"one disaster after the other, {world.summary()}: {', '.join(done)}; the same everywhere after {', '.join(f'{one:.1f}' for one in recovered_s)} s; lost or doubled: 0"
    )


# -- controls: what is wrong is seen ----------------------------------------------------------------------------------


def test_a_store_that_syncs_once_a_second_is_seen_to_lose(tmp_path: Path, figure: Figure) -> None:
    """One PoP alone, so that no peer gives back what the power cut took."""
    options = ("--appendfsync", "everysec")
    with EkvWorld.running(
        tmp_path, seed=seed_of_the_run(), pops=("la",), kinds=("put",), redis_options=options
    ) as world:
        lost: list[str] = []
        for _ in range(8):
            with world.work(60, pause_s=0.0) as work:
                work.reach(0.9)
                world.kill("la", "redis")
            seen = world.look("la")
            lost = kept([Written(one.key, one.value, one.version, one.outcome) for one in world.done if one.number >= 0],
                        {key: shown for key, shown in seen.registers.items() if key != "r/first"}).lost  # fmt: skip
            if lost:
                break
        figure(
            f"control: appendfsync everysec and a power cut, one PoP, {world.summary()}: {len(lost)} keys seen to be lost"
        )
        assert lost


def test_a_hidden_write_and_one_that_is_done_twice_are_seen(tmp_path: Path) -> None:
    """A value that is at one PoP only and that nobody owns up to; and an increment that was acknowledged once and counted twice."""
    with EkvWorld.running(tmp_path, seed=seed_of_the_run(), pops=("la", "ny"), kinds=LASTING, power=False) as world:
        with world.work(60):
            pass
        world.converge()
        assert world.problems() == []
        world.isolate("ny")
        with contextlib.closing(world.door("ny")) as door:
            assert door.ask("PUT", f"/v1/ekv/{NAMESPACE}/r/0", body_of("hidden", 50)).status < 300
        with pytest.raises(NotInTime):
            world.converge(1.0)
        assert len(set(world.hashes().values())) == 2
        world.heal()
        world.converge()
        assert [line for line in world.problems() if "strange" in line] == world.problems() != []
        before = len(world.problems())
        with contextlib.closing(world.door("la")) as door:
            for key in ("once", "again"):
                headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
                answer = door.ask("POST", f"/v1/ekv/{NAMESPACE}/c/9", b'{"by": 7}', headers=headers, op="increment")
                assert answer.status < 300
        world.done.append(Done(len(world.done), "la", "incr", "c/9", by=7, outcome="ok"))
        world.converge()
        doubled = [line for line in world.problems() if "counter c/9" in line]
        assert len(doubled) == 2 and len(world.problems()) == before + 2
