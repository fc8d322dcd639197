"""From an event to the first line of its handler: warm, paused, and with no instance there; and 0 -> 4 instances under a burst.

What it is: measurements of functions as processes or as containers, with what a bare start of the same program costs beside them.
What must stay true: both times are of one machine's clock: before publish in this process, and in the handler's first line; kinds are measured in turns, and the
first of each is not kept.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measures import Trips
from bench.runner.world import PREFIX, Failed, Say, World, until

HANDLER = """import os
import time

from edgeflow import function


@function
def handle(ctx, event):
    began = time.time()
    time.sleep(float(os.environ.get("PAUSE_S", "0")))
    return {"began": began}
"""
BURST_HANDLER_S = 0.15
"""With so many events, as long as it takes four instances more than 4 s: with less, fewer than four are enough."""
SETTLE_S = 0.3
"""Between the moment an instance is asleep, gone or idle, and the next event: what put it there has ended."""
STEP_S = 0.25
IDLE = "200ms"
SCALES: Mapping[str, Mapping[str, Any]] = {
    "warm": {"instances": 1},
    "paused": {"min": 0, "max": 1, "pool": 1, "idle": IDLE},
    "gone": {"min": 0, "max": 1, "pool": 0, "idle": IDLE},
}
STATES = {"warm": ["running"], "paused": ["paused"], "gone": []}
BARE = "import time, edgeflow; print(time.time())"


@dataclass(frozen=True, slots=True)
class Counts:
    """Starts of each kind in a round, and the events of the burst."""

    warm: int
    paused: int
    gone: int
    burst: int


def functions(world: World, source: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest: one function for each kind from `source` (build or image), and `burst`, whose handler takes its time."""
    place = {"place": {"pops": [world.pop]}}
    kinds = {
        kind: {
            **source,
            "subscribe": {"channel": kind, "as": "event"},
            "publish": f"out/{kind}",
            "scale": dict(scale),
            **place,
        }
        for kind, scale in SCALES.items()
    }
    burst = {
        **source, "subscribe": {"channel": "burst", "as": "event"}, "publish": "out/burst", "scale": {"min": 0, "max": 4, "idle": "2s"},
        "env": {"PAUSE_S": str(BURST_HANDLER_S)}, **place,
    }  # fmt: skip
    return {**kinds, "burst": burst}


def starts(world: World, rounds: int, counts: Counts, image: str | None, say: Say) -> dict[str, Trips]:
    """By kind, and `bare python` and with an image `docker run`: milliseconds."""
    trips = {kind: Trips() for kind in (*SCALES, "bare python", *(["docker run"] if image else []))}
    for number in range(rounds + 1):
        for kind in trips:
            say(f"start: {kind}, round {number} of {rounds}" if number else f"start: {kind}, warm-up")
            count = {"warm": counts.warm, "paused": counts.paused}.get(kind, counts.gone) if number else 1
            samples = [_sample(world, kind, image) for _ in range(count)]
            if number:
                trips[kind].rounds.append(samples)
    return trips


def _sample(world: World, kind: str, image: str | None) -> float:
    if kind not in SCALES:
        sent_s = time.time()
        return (
            _bare_python() if kind == "bare python" else _docker_run(world.engine, str(image))
        ) * 1000 - sent_s * 1000
    if kind != "warm":
        until(lambda: world.states(kind) == STATES[kind], f"the instance of '{kind}' is {kind}")
        time.sleep(SETTLE_S)
    subject = world.subject()
    sent_s = world.send(kind, subject)
    return (float(until(lambda: world.heard.began_s.get(subject), f"{kind}: an answer")) - sent_s) * 1000


def _bare_python() -> float:
    return float(subprocess.run([sys.executable, "-c", BARE], capture_output=True, check=True).stdout)


def _docker_run(engine: Any, image: str) -> float:
    options = {"network_mode": "none", "remove": True, "labels": {PREFIX: "bare"}}
    return float(engine.containers.run(image, ["-c", BARE], entrypoint="python3", **options))


def burst(world: World, count: int, say: Say) -> dict[str, Any]:
    """Publish `count` events at once while no instance is awake; all must be answered, each once."""
    say(f"0 -> 4: a burst of {count} events")
    until(lambda: "running" not in world.states("burst"), "the function of the burst sleeps")
    time.sleep(SETTLE_S)
    twice = world.heard.twice
    began_s = time.time()
    sent = {}
    awake: list[tuple[float, int]] = []
    for _ in range(count):
        subject = world.subject()
        sent[subject] = world.send("burst", subject)
    published_s = time.time() - began_s
    deadline_s = time.monotonic() + 60
    while not sent.keys() <= world.heard.began_s.keys() and time.monotonic() < deadline_s:
        awake.append((time.time() - began_s, world.states("burst").count("running")))
        time.sleep(0.05)
    heard = {subject: world.heard.began_s[subject] for subject in sent if subject in world.heard.began_s}
    return {
        "events": count, "handler_ms": BURST_HANDLER_S * 1000, "published_s": round(published_s, 2), "lost": count - len(heard),
        "twice": world.heard.twice - twice, "most_awake": max((number for _, number in awake), default=0),
        "four_after_s": next((round(at, 2) for at, number in awake if number >= 4), None),
        "took_s": round(max(heard.values(), default=began_s) - began_s, 2), "oldest": oldest(sent, heard, STEP_S),
    }  # fmt: skip


def oldest(sent_s: Mapping[str, float], began_s: Mapping[str, float], step_s: float) -> list[tuple[float, float]]:
    """(seconds since the first event, age of the oldest that no handler has begun), each `step_s` until the last was begun; without what was lost."""
    if not began_s:
        return []
    first = min(sent_s.values())
    points, at = [], step_s
    while first + at < max(began_s.values()) + step_s:
        waiting = [sent for subject, sent in sent_s.items() if sent <= first + at < began_s.get(subject, 0)]
        points.append((round(at, 2), round(first + at - min(waiting), 2) if waiting else 0.0))
        at += step_s
    return points


def write(folder: Path) -> None:
    """The folder of the functions."""
    (folder / "starts").mkdir(parents=True)
    (folder / "starts" / "handler.py").write_text(HANDLER)


def quantiles(trips: Mapping[str, Trips]) -> dict[str, Any]:
    """As JSON. Raises Failed when nothing was measured."""
    if any(not one.rounds or not all(one.rounds) for one in trips.values()):
        raise Failed("There is no sample of some kind of start.")
    return {kind: one.to_json() for kind, one in trips.items()}


def most(points: Sequence[tuple[float, float]]) -> float:
    """The greatest age."""
    return max((age for _, age in points), default=0.0)
