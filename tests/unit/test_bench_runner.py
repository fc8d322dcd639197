"""The runner's benchmark counts what is lost and what comes twice, and its page says which goal was missed and what was not measured."""

import copy
import io
import json
import sys
import tarfile
from typing import Any

import pytest

from bench import archives
from bench.generator import Flood, drive
from bench.measures import Trips
from bench.runner import contracts, report, starts
from bench.runner.contracts import StdioGenerator
from bench.runner.world import Failed, Heard, until

TRIP = {"p50_ms": 40.0, "p99_ms": 90.0, "p50_ms_by_round": [40.0], "trips": 5}
BURST = {
    "events": 9, "handler_ms": 50.0, "published_s": 0.1, "lost": 0, "twice": 0, "most_awake": 4, "four_after_s": 1.5, "took_s": 2.0,
    "oldest": [(0.25, 0.2), (0.5, 0.4), (0.75, 0.0)],
}  # fmt: skip
SIDE = {"p50_ms": 1.0, "p99_ms": 2.0, "per_s": 900.0, "events": 5, "lost": 0, "twice": 0}
PROCESS = {"rss_mb": 60.0, "pss_mb": 50.0, "core_percent": 1.0}


def document() -> dict[str, Any]:
    kinds = {kind: dict(TRIP) for kind in (*starts.SCALES, "bare python")}
    return {
        "machine": {"cpu": "c", "cores": 2, "system": "s", "mosquitto": "2", "redis": "7", "python": "3", "commit": "x"},
        "settings": {"rounds": 1, "seconds": 0.5, "counts": {"warm": 20, "paused": 5, "gone": 3}},
        "modes": {"processes": {"starts": kinds, "burst": dict(BURST)}, "containers": {"note": "no Docker engine (away)"}},
        "contracts": {name: {"edgeflow": dict(SIDE), "direct": dict(SIDE)} for name in contracts.CONTRACTS},
        "images": {"base_bytes": 10**7, "own_bytes": 10**6, "first_bytes": 11 * 10**6, "second_bytes": 10**6, "second_percent": 9.1, "took_s": [1.0, 0.5]},
        "memory": {"la": {"data": PROCESS, "control": PROCESS, "broker": PROCESS, "redis": PROCESS, "rss_mb": 120.0, "pss_mb": 100.0}},
        "busy_percent": 50.0, "took_s": 80.0,
    }  # fmt: skip


def test_the_page_has_everything() -> None:
    text = report.markdown(document())
    for word in (
        "from paused",
        "40.0 / 90.0 ms",
        "no Docker engine (away)",
        "<= 50 ms | yes / -",
        "0.4 at 0.5 s",
        "4, 1.5 s",
        "`stdio` | 1.00 / 2.00 ms",
        "1.00 MB (9.1 %)",
        "120 (100) | <= 130 | yes",
        "the benchmark included; 80 s in all",
    ):
        assert word in text
    assert "**" not in text, "nothing is missed and nothing is lost"


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("modes", "processes", "starts", "paused", "p50_ms"), 50.1, "<= 50 ms | **no** / -"),
        (("modes", "processes", "starts", "gone", "p50_ms"), 740.1, "+ the bare python | **no** / -"),
        (("modes", "processes", "burst", "lost"), 2, "**2 LOST, 0 TWICE**"),
        (("modes", "processes", "burst", "four_after_s"), None, "4, never"),
        (("contracts", "http", "edgeflow", "twice"), 3, "**0 LOST, 3 TWICE**"),
        (("images", "second_percent"), 15.0, "< 15 % | **no**"),
        (("memory", "la", "rss_mb"), 130.1, "<= 130 | **no**"),
    ],
)
def test_what_is_missed_or_lost_stands_there(path: tuple[str, ...], value: Any, word: str) -> None:
    made = copy.deepcopy(document())
    place = made
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert word in report.markdown(made)


def test_contracts_in_containers_stand_beside_those_as_processes() -> None:
    made = document()
    assert "| no Docker engine (away) | - |" in report.markdown(made)
    kinds = {kind: dict(TRIP) for kind in starts.SCALES}
    inside = {name: {"edgeflow": {**SIDE, "per_s": 1234.0, "lost": 2}} for name in contracts.CONTRACTS}
    made["modes"]["containers"] = {
        "starts": {**kinds, "bare python": dict(TRIP)},
        "burst": dict(BURST),
        "contracts": inside,
    }
    assert "| 1.00 / 2.00 ms (**2 LOST, 0 TWICE**) | 1,234 |" in report.markdown(made)


def test_functions_in_an_image_run_the_programs_of_the_folders() -> None:
    made = contracts.functions("la", "programs:1")
    assert {one["image"] for one in made.values()} == {"programs:1"} and not any(
        "build" in one for one in made.values()
    )
    assert made["http"]["command"] == ["python3", "/programs/http/server.py"] and "command" not in made["sdk"]


def test_the_start_from_nothing_may_take_the_program_s_own_time_more() -> None:
    made = document()
    made["modes"]["processes"]["starts"]["gone"]["p50_ms"] = 739.0
    assert "+ the bare python | yes / -" in report.markdown(made)


def test_the_age_of_the_oldest_ends_with_the_last_beginning() -> None:
    points = starts.oldest({"a": 100.0, "b": 100.1}, {"a": 100.6, "b": 101.1}, 0.25)
    assert points == [(0.25, 0.25), (0.5, 0.5), (0.75, 0.65), (1.0, 0.9), (1.25, 0.0)]
    assert starts.most(points) == 0.9
    assert starts.oldest({"a": 1.0}, {}, 0.25) == []


def test_an_answer_that_comes_twice_is_counted() -> None:
    heard = Heard()
    for began_s in (1.0, 2.0):
        heard.take("a", began_s)
    assert heard.twice == 1 and heard.began_s == {"a": 1.0}


def test_a_wait_without_end_is_a_failure() -> None:
    with pytest.raises(Failed, match="the moon"):
        until(lambda: False, "the moon", 0.03)


def test_a_program_for_each_message_is_compared_by_its_answer() -> None:
    right = drive(StdioGenerator(["cat"]), 0.1, 1, pids={})
    assert right.events > 0 and right.lost == right.twice == 0
    silent = StdioGenerator([sys.executable, "-c", "print('x' * 99)"])
    silent.start(7)
    assert silent.answered(1.0) != [(7, 0)]


def test_the_rounds_of_a_contract_become_medians_and_sums() -> None:
    rounds = [
        (Flood(1, p50, 9, 5, 0, 0, {}), Flood(rate, 1, 1, 5, 1, 0, {})) for p50, rate in ((1, 10), (2, 30), (9, 20))
    ]
    found = contracts.cell(rounds)
    assert (found["p50_ms"], found["per_s"], found["events"], found["lost"]) == (2, 20, 30, 3)


def test_made_images_share_their_base() -> None:

    base, own = archives.tar({"base": b"b"}), archives.tar({"own": b"o"})
    with tarfile.open(fileobj=io.BytesIO(archives.docker_archive([base, own], "a:1"))) as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        (about,) = json.load(member)
        layers = [archive.extractfile(name) for name in about["Layers"]]
        assert [layer.read() for layer in layers if layer] == [base, own] and about["RepoTags"] == ["a:1"]


def test_a_kind_without_samples_is_no_figure() -> None:
    with pytest.raises(Failed):
        starts.quantiles({"warm": Trips()})
