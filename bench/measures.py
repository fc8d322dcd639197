"""The measurements: round trips one at a time, events per second with many under way, and what processes cost while nothing happens.

What must stay true: edgeflow and its references are measured in turns, round by round, so that what else the machine does hits all of them; every
answer is counted by the number it carries, and a measurement in which one is lost or comes twice says so.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.generator import Flood, MqttGenerator, drive, quantile
from bench.machine import fdatasyncs_ms, memory_mib, usage, used
from bench.packets import Attributes, Broker
from bench.pahos import Pinger
from bench.stage import CHAINS, NAMESPACE, PLAIN, Say, Stage, bare_echo, chain_channels

PAYLOAD_BYTES = 100
CONTENT_TYPE = "application/octet-stream"
ATTRIBUTES: Attributes = (
    ("specversion", "1.0"),
    ("id", "0123456789abcdef0123456789abcdef"),
    ("source", "/bench/generator"),
    ("type", "edgeflow.message"),
    ("time", "2025-01-01T00:00:00.000Z"),
    ("subject", "clip-000001/000001"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)
"""With the content type: the eight CloudEvents attributes of a published event."""
FSYNCS = 100
FSYNC_PAUSE_S = 0.002
"""Between two of them: a store that gets one event at a time does not sync in a tight loop, where each would take half as long."""


@dataclass
class Trips:
    """Round trips of one path, in ms, by round."""

    rounds: list[list[float]] = field(default_factory=list)

    def median(self, share: float) -> float:
        """The median over the rounds of a quantile."""
        return statistics.median(quantile(samples, share) for samples in self.rounds)

    def to_json(self) -> dict[str, Any]:
        """p50, p99 (medians over the rounds), the p50 of each round, and how many trips."""
        return {
            "p50_ms": round(self.median(0.5), 3),
            "p99_ms": round(self.median(0.99), 3),
            "p50_ms_by_round": [round(quantile(samples, 0.5), 3) for samples in self.rounds],
            "trips": sum(len(samples) for samples in self.rounds),
        }


@dataclass(frozen=True, slots=True)
class Path:
    """Where a ping goes in and where its answer comes out."""

    name: str
    requests: str
    answers: str
    qos: int = 1


ECHO = Path("bare echo", f"{PLAIN}/ping", f"{PLAIN}/pong")
FAST_ECHO = Path("bare echo, QoS 0", f"{PLAIN}/ping0", f"{PLAIN}/pong0", qos=0)
FAST = Path("qos 0 function", f"{NAMESPACE}/fast/0", f"{NAMESPACE}/fast/1", qos=0)


def chain_path(length: int) -> Path:
    """The chain of `length` functions."""
    channels = chain_channels(length)
    return Path(f"chain of {length}", f"{NAMESPACE}/{channels[0]}", f"{NAMESPACE}/{channels[-1]}")


def published_attributes(stage: Stage, path: Path | None = None) -> tuple[Attributes, str | None]:
    """What edgeflow puts on an event that it publishes: the bare echo answers with the same. `path` = through one function."""
    path = path or chain_path(1)
    pinger = Pinger(stage.broker, path.answers)
    try:
        pinger.ping(path.requests, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES, timeout_s=30.0)
        assert pinger.last is not None
        properties = pinger.last.properties
        return list(getattr(properties, "UserProperty", ())), getattr(properties, "ContentType", None)
    finally:
        pinger.close()


def round_trips(
    stage: Stage, paths: Sequence[Path], rounds: int, seconds: float, say: Say
) -> tuple[dict[str, Trips], list[float]]:
    """Trips by name of path, measured in turns of `seconds`; and the fdatasync times (ms) taken between the turns."""
    broker = stage.broker
    trips = {path.name: Trips() for path in paths}
    disk_ms: list[float] = []
    attributes, content_type = published_attributes(stage)
    pingers: dict[str, Pinger] = {}
    echoes = []
    try:
        for path in paths:
            pingers[path.name] = Pinger(broker, path.answers, qos=path.qos)
            if path.requests.startswith(PLAIN):
                echo = bare_echo(broker, path.requests, path.answers, attributes, content_type, qos=path.qos)
                echo.__enter__()
                echoes.append(echo)
        for number in range(rounds + 1):
            disk_ms += fdatasyncs_ms(stage.cluster.home.root, FSYNCS, pause_s=FSYNC_PAUSE_S)
            for path in paths:
                say(f"round trips: {path.name}, {'warm-up' if number == 0 else f'round {number} of {rounds}'}")
                samples = _trips(pingers[path.name], path, seconds if number else min(0.5, seconds))
                if number:
                    trips[path.name].rounds.append(samples)
    finally:
        for pinger in pingers.values():
            pinger.close()
        for echo in echoes:
            echo.__exit__(None, None, None)
    return trips, disk_ms


def busy_fdatasyncs_ms(stage: Stage, seconds: float) -> list[float]:
    """Like the times between the turns, but while events flow one at a time: the disk as the stores of all PoPs share it."""
    path = chain_path(1)
    pinger = Pinger(stage.broker, path.answers)
    try:
        with ThreadPoolExecutor(1) as pool:
            times_ms = pool.submit(
                fdatasyncs_ms, stage.cluster.home.root, FSYNCS, pause_s=max(FSYNC_PAUSE_S, seconds / FSYNCS)
            )
            _trips(pinger, path, seconds)
            return times_ms.result()
    finally:
        pinger.close()


def _trips(pinger: Pinger, path: Path, seconds: float) -> list[float]:
    samples = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        samples.append(pinger.ping(path.requests, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES) * 1000)
    return samples


def flood(broker: Broker, path: Path, seconds: float, window: int, pids: Mapping[str, int]) -> Flood:
    """Keep `window` events under way for `seconds`."""
    generator = MqttGenerator(broker, [path.requests], path.answers, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES)
    try:
        return drive(generator, seconds, window, pids=pids)
    finally:
        generator.close()


def floods(
    stage: Stage, rounds: int, seconds: float, window: int, own_pid: int, say: Say, *, references: bool = True
) -> dict[str, list[Flood]]:
    """Rounds of: one function; and, as `references`, the bare echo and the generator talking to itself through the broker (its ceiling)."""
    broker = stage.broker
    attributes, content_type = published_attributes(stage)
    ceiling = Path("generator alone", f"{PLAIN}/self", f"{PLAIN}/self")
    results: dict[str, list[Flood]] = {}
    with bare_echo(broker, ECHO.requests, ECHO.answers, attributes, content_type) as echo_pid:
        pids = {**stage.pids(), "generator": own_pid, "bare echo": echo_pid}
        for number in range(1, rounds + 1):
            for path, share in ((chain_path(1), 1.0), (ECHO, 0.4), (ceiling, 0.3))[: 3 if references else 1]:
                say(f"events per second: {path.name}, round {number} of {rounds}")
                result = flood(broker, path, seconds * share, window, pids)
                results.setdefault(path.name, []).append(result)
    return results


def idle(stage: Stage, seconds: float) -> dict[str, dict[str, float]]:
    """By process: rss and pss (MiB), and the share of one core (%) that it used in `seconds` in which nothing happened."""
    pids = stage.pids()
    before = usage(pids)
    time.sleep(seconds)
    after = usage(pids)
    spent = used(before, after)
    took_s = after.at_s - before.at_s
    return {
        name: {**(memory_mib(pids[name]) if name in pids else {}), "core_percent": round(seconds * 100 / took_s, 2)}
        for name, seconds in spent.items()
    }


def added_by_one(trips: Mapping[str, Trips]) -> list[float]:
    """The added p50 (ms) of each function behind the first, round by round."""
    lengths = [trips[chain_path(length).name].rounds for length in range(1, CHAINS + 1)]
    return [
        quantile(longer, 0.5) - quantile(shorter, 0.5)
        for by_round in zip(*lengths, strict=True)
        for shorter, longer in pairwise(by_round)
    ]
