"""kill -9 of any instance, data process, broker or Redis of any PoP in the middle of the main job: every frame exactly once."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from video import FRAMES, POPS, Video, violations

pytestmark = [pytest.mark.timeout(240), pytest.mark.faults]
Wait = Callable[..., Any]
PLACED = {"extract": "chicago", "detect": "la", "classify": "la", "augment": "ny", "assemble": "ny"}


def instance_pids(video: Video, function: str) -> list[int]:
    folder = video.cluster.home.root / "pops" / PLACED[function] / "state" / "instances"
    documents = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return [int(one["pid"]) for one in documents if one["function"] == function]


def test_undisturbed(video: Video, wait_until: Wait) -> None:
    chunk = video.send()
    video.expect_exactly_once(chunk, wait_until)


@pytest.mark.parametrize("pop", POPS)
@pytest.mark.parametrize("process", ["data", "broker", "redis"])
def test_a_killed_process(video: Video, wait_until: Wait, pop: str, process: Any) -> None:
    chunk = video.send()
    wait_until(lambda: len(video.augmented.of_chunk(chunk)) >= 5, "the first frames", 60)
    assert not video.films.of_chunk(chunk), "the job was over before the kill"
    old = video.cluster.kill(pop, process)
    video.cluster.wait_restarted(pop, process, old)
    video.expect_exactly_once(chunk, wait_until)


@pytest.mark.parametrize("function", PLACED)
def test_a_killed_instance(video: Video, wait_until: Wait, function: str) -> None:
    (pid,) = wait_until(lambda: instance_pids(video, function), f"an instance of {function}")
    chunk = video.send()
    wait_until(lambda: video.in_flight(PLACED[function], function) > 0, f"{function} to work", 60, every_s=0.005)
    os.kill(pid, signal.SIGKILL)
    video.expect_exactly_once(chunk, wait_until)
    assert pid not in instance_pids(video, function)


def test_the_check_sees_a_lost_and_a_doubled_frame() -> None:
    good = [(f"id{number}", f"c/{number}") for number in range(FRAMES)]
    assert violations(good, "c", FRAMES) == []
    assert violations(good[:-1], "c", FRAMES) == [f"frame c/{FRAMES - 1} is missing"]
    assert violations([*good, good[3]], "c", FRAMES) == ["id id3 came 2 times", "frame c/3 came 2 times"]
    assert violations([*good, ("other", "c/3")], "c", FRAMES) == ["frame c/3 came 2 times"]
