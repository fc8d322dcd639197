"""Put and get, one at a time and by several clients, in turns.

What must stay true: all systems are measured in each round with the same bodies; every body that is read is compared; what was wrong is counted.
"""

import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.ekv.systems import System
from bench.generator import quantile

Open = Callable[[], System]
What = Literal["put", "get"]
KEYS = 50
"""Keys that puts go to in turn, and gets read."""
NONCE_BYTES = 16
LARGE_ROUNDS = 1
"""Of large bodies, which are measured without a warm-up: nothing about them is cold."""


@dataclass(frozen=True, slots=True)
class Size:
    """A size of bodies. Small ones are measured for a time, large ones so many times."""

    name: str
    size: int
    clients: int
    large: bool = False


SIZES = (
    Size("100 B", 100, 8),
    Size("64 KiB", 65_536, 4),
    Size("1 MB", 1_000_000, 2),
    Size("100 MB", 100_000_000, 1, large=True),
)


@dataclass
class Measured:
    """Rounds of one cell."""

    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    count: int = 0
    wrong: int = 0
    note: str = ""

    def to_json(self, size: int) -> dict[str, Any]:
        """Medians over the rounds."""
        if not self.per_s:
            return {"note": self.note}
        per_s = statistics.median(self.per_s)
        return {
            "p50_ms": round(statistics.median(self.p50_ms), 3), "p99_ms": round(statistics.median(self.p99_ms), 3), "per_s": round(per_s, 1),
            "mb_per_s": round(per_s * size / 1e6, 1), "count": self.count, "wrong": self.wrong, "note": self.note,
            "p50_ms_by_round": [round(one, 3) for one in self.p50_ms],
        }  # fmt: skip


def bodies(size: Size) -> list[bytes]:
    """A few different bodies, random so that nothing gets smaller on its way."""
    chance = random.Random(size.size)
    return [chance.randbytes(size.size) for _ in range(1 if size.large else 5)]


def fresh(body: bytes) -> bytes:
    """The body with a beginning that nobody has had before: a store that knows a body already would have nothing to do."""
    return os.urandom(NONCE_BYTES) + body[NONCE_BYTES:]


def measure(
    systems: Mapping[str, Open], sizes: Sequence[Size], rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[tuple[str, str, What], Measured]:
    """All cells; a round that warms up comes first and is not kept."""
    results: dict[tuple[str, str, What], Measured] = {}
    for size in sizes:
        made = bodies(size)
        for number in range(*((1, LARGE_ROUNDS + 1) if size.large else (0, rounds + 1))):
            for name, opened in systems.items():
                say(f"{size.name}, {name}, {'warm-up' if number == 0 else f'round {number}'}")
                for what in ("put", "get"):
                    cell = results.setdefault((name, size.name, what), Measured())  # type: ignore[arg-type]
                    if cell.note:
                        continue
                    try:
                        one = (
                            _large(opened, what, made)
                            if size.large
                            else _small(opened, what, made, seconds if number else seconds / 3, size)
                        )  # type: ignore[arg-type]
                    except Exception as error:
                        # A system that cannot do it says so in the table.
                        cell.note = f"{type(error).__name__}: {error}"[:200]
                        continue
                    if number:
                        _keep(cell, *one)
    return results


def _keep(cell: Measured, times_ms: list[float], count: int, took_s: float, wrong: int) -> None:
    cell.p50_ms.append(quantile(times_ms, 0.5))
    cell.p99_ms.append(quantile(times_ms, 0.99))
    cell.per_s.append(count / took_s)
    cell.count += count + len(times_ms)
    cell.wrong += wrong


def _large(opened: Open, what: What, made: Sequence[bytes]) -> tuple[list[float], int, float, int]:
    """One client, one body after the other."""
    times_ms = []
    wrong = 0
    with closing(opened()) as system:
        for number, body in enumerate(made):
            key = f"large/{number}"
            if what == "get":
                system.put(key, body)
            sent = fresh(body) if what == "put" else body
            began_s = time.perf_counter()
            if what == "put":
                system.put(key, sent)
            else:
                found = system.get(key)
            times_ms.append((time.perf_counter() - began_s) * 1000)
            if what == "get":
                wrong += found != body
    return sorted(times_ms), len(times_ms), sum(times_ms) / 1000, wrong


def _small(
    opened: Open, what: What, made: Sequence[bytes], seconds: float, size: Size
) -> tuple[list[float], int, float, int]:
    """First one at a time, then by several clients at once for the rate."""
    with closing(opened()) as system:
        if what == "get":
            for number in range(KEYS):
                system.put(f"g{size.size}/{number}", made[number % len(made)])
        times_ms, _, wrong = _loop(system, what, made, seconds / 2, size, 0)
    counts = [0] * size.clients
    wrongs = [0] * size.clients
    failures: list[BaseException] = []
    ready = threading.Barrier(size.clients + 1)

    def client(index: int) -> None:
        try:
            with closing(opened()) as system:
                ready.wait(30)
                _, counts[index], wrongs[index] = _loop(system, what, made, seconds / 2, size, index)
        except BaseException as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(size.clients)]
    for thread in threads:
        thread.start()
    try:
        ready.wait(30)
    except threading.BrokenBarrierError:
        pass
    began_s = time.perf_counter()
    for thread in threads:
        thread.join(60)
    if failures:
        raise failures[0]
    return times_ms, sum(counts), time.perf_counter() - began_s, wrong + sum(wrongs)


def _loop(
    system: System, what: What, made: Sequence[bytes], seconds: float, size: Size, first: int
) -> tuple[list[float], int, int]:
    times_ms: list[float] = []
    wrong = 0
    end_s = time.perf_counter() + seconds
    for number in itertools.count(first * 7):
        key, body = f"{what[0]}{size.size}/{number % KEYS}", made[number % KEYS % len(made)]
        sent = fresh(body) if what == "put" else body
        began_s = time.perf_counter()
        if began_s > end_s:
            break
        if what == "put":
            system.put(key, sent)
            times_ms.append((time.perf_counter() - began_s) * 1000)
        else:
            found = system.get(key)
            times_ms.append((time.perf_counter() - began_s) * 1000)
            wrong += found != body
    return sorted(times_ms), len(times_ms), wrong
