"""More than goes through: functions are offered five times what they can do, behind a channel of each `on_full` policy.

What it is: an open loop, which offers messages at a rate whatever comes back, and the store's own counters before and after.
What must stay true: every message that was offered was handled once, refused or dropped, and the counters say how many of each; what is missing is in the result. A
message's time runs from when it was due, not from when the generator came to it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.flow import cells, functions
from bench.flow.functions import Shape
from bench.generator import LISTEN_S, Generator, quantile
from bench.machine import resident_mib
from bench.stage import NAMESPACE, Say, Stage

TIMES = 5
SETTLE_S = 60.0
"""How long what waits may take to be handled when nothing more is offered."""
WATCHED = ("data", "control", "redis")
SAMPLE_S = 0.2
STEP_S = 0.002
"""How often the generator looks: what is due is sent together, so that it leaves the cores to what it measures."""

Counters = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Overload:
    """What became of what was offered to one function."""

    offered_per_s: float
    offered: int
    handled: int
    twice: int
    refused: Counters
    """By reason."""
    dropped: Counters
    """By reason."""
    p50_ms: float
    p99_ms: float
    """Of what was handled while more was offered: later the queue only drains."""
    last_ms: float
    """Of the slowest of all."""
    handled_per_s: float
    """While more was offered."""
    memory_mib: Mapping[str, tuple[float, float, float]]
    """Resident memory before, the most meanwhile, and after, by process."""

    @property
    def missing(self) -> int:
        """What was offered and neither handled nor refused nor dropped."""
        return self.offered - self.handled - sum(self.refused.values()) - sum(self.dropped.values())

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {**asdict(self), "missing": self.missing}


def counters(stage: Stage) -> dict[str, int]:
    """What the store of the measured PoP counted for the namespace, as "what:reason"."""
    headers = {"Authorization": f"Bearer {stage.access.token}"}
    text = (
        httpx.get(f"{stage.access.api_url}/metrics", headers=headers, trust_env=False, timeout=30)
        .raise_for_status()
        .text
    )
    return {
        f"{sample.labels['what']}:{sample.labels['reason']}": int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "edgeflow_events_total" and sample.labels["namespace"] == NAMESPACE
    }


def measure(stage: Stage, shape: Shape, rate_per_s: float, seconds: float, say: Say) -> Overload:
    """Offer `rate_per_s` for so many seconds, then wait until everything is accounted for."""
    say(f"overload: {shape.name}, {rate_per_s:,.0f}/s")
    pids = {name: pid for name, pid in stage.pids().items() if name.partition("/")[2] in WATCHED}
    memory = {name.partition("/")[2]: [resident_mib(pid)] for name, pid in pids.items()}

    def sample() -> None:
        for name, pid in pids.items():
            memory[name.partition("/")[2]].append(resident_mib(pid))

    before = counters(stage)
    with cells.edgeflow(stage, shape).open(0) as generator:
        offer = _Offer(generator, rate_per_s, seconds, sample)
        offer.run()
        during = len(offer.times_s)
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            offer.hear(1.0)
            refused, dropped = (
                _grown(before, counters(stage), what) for what in ("events_refused", "invocations_dropped")
            )
            accounted = len(offer.times_s) + sum(refused.values()) + sum(dropped.values())
            if accounted >= offer.offered or time.monotonic() > deadline_s:
                break
        offer.hear(LISTEN_S)
    sample()
    times_s = offer.times_s[:during] or [0.0]
    return Overload(
        offer.offered / seconds, offer.offered, len(offer.times_s), offer.twice, refused, dropped, quantile(times_s, 0.5) * 1000,
        quantile(times_s, 0.99) * 1000, max(offer.times_s, default=0.0) * 1000, during / seconds, {name: (values[0], max(values), values[-1]) for name, values in memory.items()},
    )  # fmt: skip


class _Offer:
    """An open loop: message i is due i / rate seconds after the start."""

    def __init__(self, generator: Generator, rate_per_s: float, seconds: float, sample: Callable[[], None]) -> None:
        self._generator = generator
        self._rate_per_s = rate_per_s
        self._seconds = seconds
        self._sample = sample
        self._due_s: dict[int, float] = {}
        self._first = time.time_ns()
        self.offered = 0
        self.twice = 0
        self.times_s: list[float] = []

    def run(self) -> None:
        """Offer everything."""
        started_s = sampled_s = time.perf_counter()
        while (passed_s := time.perf_counter() - started_s) < self._seconds:
            while self.offered < passed_s * self._rate_per_s:
                number = self._first + self.offered
                self._due_s[number] = started_s + self.offered / self._rate_per_s
                self._generator.start(number)
                self.offered += 1
            self.hear(0.0)
            if time.perf_counter() - sampled_s > SAMPLE_S:
                sampled_s = time.perf_counter()
                self._sample()

    def hear(self, seconds: float) -> None:
        """Take answers for so long."""
        until_s = time.perf_counter() + seconds
        while True:
            time.sleep(STEP_S)
            for number, _ in self._generator.answered(0.0):
                due_s = self._due_s.pop(number, None)
                if due_s is None:
                    self.twice += self._first <= number < self._first + self.offered
                else:
                    self.times_s.append(time.perf_counter() - due_s)
            if time.perf_counter() >= until_s:
                return


def _grown(before: Mapping[str, int], after: Mapping[str, int], what: str) -> dict[str, int]:
    """By how much the counters of one kind grew, by reason."""
    return {
        name.partition(":")[2]: value - before.get(name, 0)
        for name, value in after.items()
        if name.partition(":")[0] == what and value > before.get(name, 0)
    }


def all_policies(stage: Stage, capacity_per_s: Mapping[str, float], seconds: float, say: Say) -> list[dict[str, Any]]:
    """The overload of each policy, for each handler of which the capacity is given."""
    return [
        {
            "handler": handler,
            "policy": policy,
            "capacity_per_s": capacity,
            **measure(stage, functions.overloaded(handler, policy), capacity * TIMES, seconds, say).to_json(),
        }
        for handler, capacity in capacity_per_s.items()
        for policy in functions.POLICIES
    ]
