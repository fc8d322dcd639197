"""Sessions that wander between PoPs, and strong reads and writes at a home that moves, while links are cut and processes die: histories of what clients saw, before the checkers."""

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest
from ekv_clients import NAMESPACE, Answer, Door, NoAnswer, NotSent, body_of, tag_of
from ekv_world import POPS, EkvWorld, Figure, seed_of_the_run
from histories import Op, Recorder, TakeOver, linearizable, session_violations, too_old
from world import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.usefixtures("programs")]

SESSIONS, STEPS = 6, {True: 60, False: 500}
KEYS = tuple(f"z/{number}" for number in range(4))
REGISTERS = 3
BOUND_S = 0.3
CLIENTS, TURNS = 5, {True: 90, False: 600}
UNANSWERED_S = 0.5
"""A client that got no answer rests, as clients do: else an outage is most of what is seen, the more so the slower the machine comes back."""
HAND_OVER = 0.15
"""Share of the steps after which a session gives its token to whoever wants it, or goes on with somebody else's."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Iterator[EkvWorld]:
    folder = tmp_path_factory.mktemp("sessions")
    with EkvWorld.running(folder, seed=seed_of_the_run(), kinds=("put",)) as running:
        yield running


@pytest.fixture
def world(cluster: EkvWorld) -> Iterator[EkvWorld]:
    """The cluster of this module, healed after each test."""
    yield cluster
    cluster.heal()
    assert cluster.internal_errors() == []


class Wanderers:
    """Sessions in threads: each step at any PoP, with the token of the last answer."""

    def __init__(self, world: EkvWorld, consistency: str) -> None:
        self.recorder = Recorder()
        self.take_overs: list[TakeOver] = []
        self.refused: Counter[str] = Counter()
        self._world = world
        self._consistency = consistency
        self._market: list[tuple[str, str]] = []
        """(pseudo session, its token) of tokens that were given away."""
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []

    @contextlib.contextmanager
    def running(self, steps: int) -> Iterator[None]:
        """All sessions, until they have done their steps."""
        threads = [threading.Thread(target=self._run, args=(number, steps), daemon=True) for number in range(SESSIONS)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(240)
        assert not self._failures, self._failures
        assert not any(thread.is_alive() for thread in threads)

    def _run(self, number: int, steps: int) -> None:
        chance = random.Random(f"{self._world.seed} session {number}")
        name, token, lives = f"s{number}", "", 0
        with contextlib.ExitStack() as stack:
            doors = {pop: stack.enter_context(contextlib.closing(self._world.door(pop))) for pop in POPS}
            try:
                done = 0
                while done < steps:
                    pop = chance.choice(POPS)
                    answered, token = self._step(name, token, pop, doors[pop], chance)
                    if not answered:
                        time.sleep(UNANSWERED_S)
                        continue
                    done += 1
                    if token and chance.random() < HAND_OVER:
                        lives += 1
                        name, token = self._trade(name, token, f"s{number}.{lives}", chance)
                    time.sleep(chance.uniform(0, 0.02))
            except BaseException as error:
                self._failures.append(error)

    def _step(self, name: str, token: str, pop: str, door: Door, chance: random.Random) -> tuple[bool, str]:
        """Whether it was answered, and the token behind it."""
        key = chance.choice(KEYS)
        reads = chance.random() < 0.6
        headers = {"Edgeflow-Session": token} if token else {}
        asked: Mapping[str, str] = {"consistency": self._consistency, "wait": "1s"}
        with self.recorder.running(name, "read" if reads else "write", key, pop=pop) as op:
            if not reads:
                op.value = f"{name}-{op.index}"
            try:
                answer: Answer = door.ask(
                    "GET" if reads else "PUT", f"/v1/ekv/{NAMESPACE}/{key}", None if reads else body_of(str(op.value), 40), headers=headers, timeout_s=10.0, **asked
                )  # fmt: skip
            except NoAnswer as error:
                op.outcome = "refused" if isinstance(error, NotSent) else "unknown"
                return False, token
            if reads:
                op.outcome = "ok" if answer.status in (200, 404) else "refused"
                if answer.status == 200:
                    op.value, op.version = tag_of(answer.body), answer.version
            elif answer.status < 300:
                op.outcome, op.version = "ok", answer.version
            elif answer.status < 500:
                op.outcome = "refused"
            if answer.code and answer.status != 404:
                self.refused[answer.code] += 1
        return answer.status < 500, answer.headers.get("edgeflow-session", token) if op.outcome == "ok" else token

    def _trade(self, name: str, token: str, next_name: str, chance: random.Random) -> tuple[str, str]:
        with self._lock:
            self.take_overs.append(TakeOver(len(self.recorder.ops), given := f"given{len(self.take_overs)}", name))
            self._market.append((given, token))
            taken, its_token = chance.choice(self._market)
            self.take_overs.append(TakeOver(len(self.recorder.ops), next_name, taken))
            return next_name, its_token


@contextlib.contextmanager
def trouble(world: EkvWorld, *, kills: bool = True) -> Iterator[Counter[str]]:
    """Cuts, delays, wrong clocks and dead processes, one after the other, for as long as the block lasts."""
    stopping = threading.Event()
    done: Counter[str] = Counter()
    failures: list[BaseException] = []

    def hurt() -> None:
        chance = random.Random(world.seed)
        try:
            while not stopping.is_set():
                kind = chance.choice(
                    ("cut", "isolate", "far", "clock", *(("data", "redis", "control") if kills else ()))
                )
                pop, other = chance.sample(POPS, 2)
                done[kind] += 1
                if kind == "cut":
                    world.cut(pop, other)
                elif kind == "isolate":
                    world.isolate(pop)
                elif kind == "far":
                    world.cluster.set_link(pop, other, delay_ms=chance.choice((20, 100)))
                elif kind == "clock":
                    world.skew(pop, chance.choice((-2000, -100, 100, 2000)))
                else:
                    world.kill(pop, kind)  # type: ignore[arg-type]
                stopping.wait(chance.uniform(0.3, 1.5))
                world.heal()
                stopping.wait(chance.uniform(0.1, 0.5))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=hurt)
    thread.start()
    try:
        yield done
    finally:
        stopping.set()
        thread.join(60)
        world.heal()
    assert not failures, failures


def seen_by(ops: list[Op]) -> str:
    """How many operations had which outcome."""
    counted = Counter(f"{op.kind} {op.outcome}" for op in ops)
    return ", ".join(f"{count} {what}" for what, count in sorted(counted.items()))


def test_sessions_hold_wherever_their_token_goes(world: EkvWorld, is_short: bool, figure: Figure) -> None:
    wanderers = Wanderers(world, "session")
    with trouble(world) as faults, wanderers.running(STEPS[is_short]):
        pass
    ops = wanderers.recorder.ops
    found = session_violations(ops, wanderers.take_overs)
    figure(
        f"sessions across PoPs (seed {world.seed}): {seen_by(ops)}, tokens handed over {len(wanderers.take_overs) // 2} times, {dict(faults)}, "
        f"refused {dict(wanderers.refused)}: {len(found)} violations"
    )
    assert [str(violation) for violation in found] == []
    assert sum(op.outcome == "ok" for op in ops) > len(ops) / 2


def test_reads_without_a_session_are_seen_to_go_back(world: EkvWorld, figure: Figure) -> None:
    """The control: the same clients without tokens, over slow links."""
    for index, a in enumerate(POPS):
        for b in POPS[index + 1 :]:
            world.cluster.set_link(a, b, delay_ms=200)
    wanderers = Wanderers(world, "local")
    with wanderers.running(40):
        pass
    ops = wanderers.recorder.ops
    found = session_violations(ops)
    old = too_old([op for op in ops if op.kind == "write"], [op for op in ops if op.kind == "read"], 0.0)
    figure(
        f"control: the same without sessions, PoPs 200 ms apart: {dict(Counter(one.guarantee for one in found))}; {len(old)} reads older than what somebody had been told"
    )
    assert old
    assert {"read-your-writes", "monotonic-reads"} <= {one.guarantee for one in found}


class Readers:
    """Clients that write as `durable` or at all PoPs (`replicated:2`), and read locally or with `max_staleness`."""

    def __init__(self, world: EkvWorld, prefix: str) -> None:
        self.recorder = Recorder()
        self.everywhere: list[Op] = []
        """Writes that all PoPs had confirmed."""
        self.local: list[Op] = []
        self.bounded: list[Op] = []
        self.refused: Counter[str] = Counter()
        self._world = world
        self._keys = [f"{prefix}/{number}" for number in range(REGISTERS)]
        self._failures: list[BaseException] = []

    @contextlib.contextmanager
    def running(self, turns: int) -> Iterator[None]:
        """All clients, until they have done their turns."""
        threads = [threading.Thread(target=self._run, args=(number, turns), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(300)
        assert not self._failures, self._failures
        assert not any(thread.is_alive() for thread in threads)

    def _run(self, number: int, turns: int) -> None:
        chance = random.Random(f"{self._world.seed} reader {number}")
        with contextlib.ExitStack() as stack:
            doors = {pop: stack.enter_context(contextlib.closing(self._world.door(pop))) for pop in POPS}
            try:
                for turn in range(turns):
                    pop = chance.choice(POPS)
                    self._turn(f"f{number}.{turn}", pop, doors[pop], chance)
                    time.sleep(chance.uniform(0, 0.02))
            except BaseException as error:
                self._failures.append(error)

    def _turn(self, name: str, pop: str, door: Door, chance: random.Random) -> None:
        key, reads, firmly = chance.choice(self._keys), chance.random() < 0.6, chance.random() < 0.5
        asked: dict[str, str] = {"wait": "1s"}
        if firmly:
            asked |= (
                {"max_staleness": f"{BOUND_S * 1000:.0f}ms"} if reads else {"durability": f"replicated:{len(POPS) - 1}"}
            )
        with self.recorder.running(name, "read" if reads else "write", key, pop=pop) as op:
            try:
                path, body = f"/v1/ekv/{NAMESPACE}/{key}", None if reads else body_of(name, 40)
                answer = door.ask("GET" if reads else "PUT", path, body, timeout_s=15.0, **asked)
            except NoAnswer:
                return
            if answer.code and answer.status != 404:
                self.refused[answer.code] += 1
            if reads and answer.status in (200, 404):
                op.outcome, op.version = "ok", answer.version if answer.status == 200 else None
                (self.bounded if firmly else self.local).append(op)
            elif not reads and answer.status < 300:
                op.outcome, op.version = "ok", answer.version
                if firmly:
                    self.everywhere.append(op)


def test_reads_are_as_fresh_as_they_were_asked_to_be(world: EkvWorld, is_short: bool, figure: Figure) -> None:
    """What all PoPs had confirmed is in every later read anywhere; what anybody had acknowledged is in each read with a bound, once it is older than that."""
    readers = Readers(world, "fresh")
    with trouble(world) as faults, readers.running(TURNS[is_short]):
        pass
    writes = [op for op in readers.recorder.ops if op.kind == "write" and op.outcome == "ok"]
    missed = too_old(readers.everywhere, [*readers.local, *readers.bounded], 0.0)
    stale = too_old(writes, readers.bounded, BOUND_S)
    loose = too_old(writes, readers.local, BOUND_S)
    figure(
        f"freshness (seed {world.seed}): {len(writes)} writes, {len(readers.everywhere)} of them confirmed by all PoPs; {len(readers.local)} local reads, {len(readers.bounded)} with "
        f"max_staleness {BOUND_S * 1000:.0f} ms; {dict(faults)}; refused {dict(readers.refused)}: {len(missed)} reads without what all had confirmed, {len(stale)} older than their "
        f"bound (of the local ones, which have none, {len(loose)})"
    )
    assert [str(one) for one in missed + stale] == []
    assert readers.everywhere and readers.bounded


class Tellers:
    """Clients of a few registers, each with strong reads, writes and compare-and-set at any PoP."""

    def __init__(self, world: EkvWorld, prefix: str, consistency: str | None) -> None:
        self.recorder = Recorder()
        self.refused: Counter[str] = Counter()
        self._world = world
        self._keys = [f"{prefix}/{number}" for number in range(REGISTERS)]
        self._asked = {"wait": "2s", **({"consistency": consistency} if consistency else {})}
        self._failures: list[BaseException] = []
        self._done = 0

    @contextlib.contextmanager
    def running(self, turns: int) -> Iterator[Callable[[float], None]]:
        """All clients; the block gets a function that waits until a share of the work is done."""
        threads = [threading.Thread(target=self._run, args=(number, turns), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        yield lambda share: until(
            lambda: self._failures or self._done >= share * turns * CLIENTS, f"{share:.0%} of the turns", 200
        )
        for thread in threads:
            thread.join(300)
        assert not self._failures, self._failures
        assert not any(thread.is_alive() for thread in threads)

    def _run(self, number: int, turns: int) -> None:
        chance = random.Random(f"{self._world.seed} teller {number}")
        with contextlib.ExitStack() as stack:
            doors = {pop: stack.enter_context(contextlib.closing(self._world.door(pop))) for pop in POPS}
            known: dict[str, tuple[str | None, str | None]] = {}
            try:
                turn = answered = 0
                while answered < turns:
                    pop = chance.choice(POPS)
                    # One that waits for an answer that never comes does nothing else meanwhile: nobody is two clients.
                    if self._turn(f"t{number}.{turn}", pop, doors[pop], chance, known):
                        answered += 1
                        self._done += 1
                        time.sleep(chance.uniform(0, 0.03))
                    else:
                        time.sleep(UNANSWERED_S)
                    turn += 1
            except BaseException as error:
                self._failures.append(error)

    def _turn(
        self,
        name: str,
        pop: str,
        door: Door,
        chance: random.Random,
        known: dict[str, tuple[str | None, str | None]],
    ) -> bool:
        """Whether it was answered. `known`: what the client has read last, as (value, version)."""
        key = chance.choice(self._keys)
        kind = chance.choice(("read", "read", "write", "cas", "cas", "delete"))
        if kind == "cas" and key not in known:
            kind = "read"
        headers = {"Idempotency-Key": f"{self._world.seed}-{key}-{name}"}
        with self.recorder.running(name, kind, key, pop=pop) as op:  # type: ignore[arg-type]
            body = None
            if kind in ("write", "cas"):
                op.value = name
                body = body_of(name, 40)
            if kind == "cas":
                op.expected, version = known[key]
                headers |= {"If-Match": f'"{version}"'} if version else {"If-None-Match": "*"}
            method = {"read": "GET", "delete": "DELETE"}.get(kind, "PUT")
            try:
                answer: Answer = door.ask(
                    method, f"/v1/ekv/{NAMESPACE}/{key}", body, headers=headers, timeout_s=15.0, **self._asked
                )
            except NoAnswer as error:
                op.outcome = "refused" if isinstance(error, NotSent) else "unknown"
                return False
            if answer.code and answer.status != 404:
                self.refused[answer.code] += 1
            if kind == "read" and answer.status in (200, 404):
                op.outcome = "ok"
                op.value, op.version = (tag_of(answer.body), answer.version) if answer.status == 200 else (None, None)
                known[key] = (op.value, op.version)
            elif answer.status < 300:
                op.outcome, op.version = "ok", answer.version
            elif kind == "delete" and answer.status == 404:
                # Nothing was there: as good as a read that found nothing.
                op.kind, op.outcome = "read", "ok"
            elif answer.status == 412:
                op.outcome, op.mismatch = "refused", kind == "cas"
            elif answer.status < 500:
                op.outcome = "refused"
            return answer.status < 500


def give_a_home(world: EkvWorld, pop: str) -> None:
    """`bank/` is decided at one PoP; returns when every PoP knows."""
    body = json.dumps({"rules": [{"prefix": "bank/", "home": pop}]}).encode()
    json_type = {"Content-Type": "application/json"}

    def says(at: str, wanted: int, method: str, path: str, body: bytes | None = None, **asked: str) -> bool:
        with contextlib.suppress(NoAnswer), contextlib.closing(world.door(at)) as door:
            return door.ask(method, path, body, headers=json_type, **asked).status == wanted
        return False

    until(lambda: says(pop, 200, "PUT", f"/v1/policies/{NAMESPACE}", body), "the policy to be taken", 30, every_s=0.2)
    for other in POPS:
        path = f"/v1/ekv/{NAMESPACE}/bank/none"
        until(
            lambda other=other, path=path: says(other, 404, "GET", path, consistency="strong"),
            f"{other} to know the home", 30, every_s=0.2,
        )  # fmt: skip


def test_strong_reads_and_writes_are_linearizable_while_their_home_moves(
    world: EkvWorld, is_short: bool, figure: Figure
) -> None:
    give_a_home(world, "la")
    tellers = Tellers(world, "bank", "strong")
    moves: list[str] = []
    with trouble(world) as faults, tellers.running(TURNS[is_short]) as reached:
        for share, to in ((0.3, "ny"), (0.6, "sf"), (0.8, "la")):
            reached(share)
            moves.append(move(world, to))
    ops = tellers.recorder.ops
    verdicts = linearizable(ops)
    bad = [verdict for verdict in verdicts if not verdict.ok]
    figure(
        f"strong at a home that moves (seed {world.seed}): {seen_by(ops)}; homes {', '.join(moves)}; {dict(faults)}; refused {dict(tellers.refused)}; "
        f"linearizable: {len(verdicts) - len(bad)} of {len(verdicts)} keys, {sum(one.steps for one in verdicts)} steps of search"
    )
    assert bad == []
    assert len(verdicts) == REGISTERS and sum(op.outcome == "ok" for op in ops) > TURNS[is_short] * CLIENTS / 3


def move(world: EkvWorld, to: str) -> str:
    """Hand the home of `bank/` over, asked at the PoP that gets it; again until it is done."""
    body = json.dumps({"prefix": "bank/", "to": to}).encode()
    with contextlib.closing(world.door(to)) as door:

        def moved() -> bool:
            with contextlib.suppress(NoAnswer):
                return (
                    door.ask(
                        "POST", f"/v1/policies/{NAMESPACE}/move", body, headers={"Content-Type": "application/json"}
                    ).status
                    < 300
                )
            return False

        until(moved, f"the home to be at {to}", 60, every_s=0.2)
    return to


def test_local_reads_and_writes_are_seen_not_to_be_linearizable(world: EkvWorld, figure: Figure) -> None:
    """The control: the same clients without a home, over slow links."""
    for index, a in enumerate(POPS):
        for b in POPS[index + 1 :]:
            world.cluster.set_link(a, b, delay_ms=100)
    tellers = Tellers(world, "till", None)
    with tellers.running(40):
        pass
    verdicts = linearizable(tellers.recorder.ops)
    figure(
        f"control: the same with local reads and writes: {sum(not one.ok for one in verdicts)} of {len(verdicts)} keys are not linearizable"
    )
    assert any(not verdict.ok for verdict in verdicts)
