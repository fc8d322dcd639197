"""The verbs of the lab, as a user types them, on a cluster whose agents are stand-ins."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from host_fakes import commands

from edgeflow.host.local import LocalCluster
from edgeflow.lab.hands import until

COMMAND = [sys.executable, "-c", "from edgeflow.cli.main import app; app()", "lab"]
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def cluster(programs: None) -> Any:
    with LocalCluster(("la", "ny", "sf"), commands=commands()) as made:
        yield made


def lab(cluster: LocalCluster, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "EDGEFLOW_HOME": str(cluster.home.root), "COLUMNS": "200"}
    result = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def status(cluster: LocalCluster) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(lab(cluster, "status", "-o", "json").stdout)
    return document


def state_of(cluster: LocalCluster, pop: str) -> str:
    return next(str(one["state"]) for one in status(cluster)["pops"] if one["id"] == pop)


def lines(cluster: LocalCluster) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["from"], line["to"]): line for line in status(cluster)["links"]}


def test_links_become_long_narrow_and_cut_in_one_direction_and_whole_again(cluster: LocalCluster) -> None:
    lab(cluster, "wan", "--delay", "20ms", "--bandwidth", "50Mbit")
    lab(cluster, "wan", "--between", "ny,la", "--delay", "1s", "--one-way")
    there = lines(cluster)
    assert {(line["delay_ms"], line["kbit_s"]) for pair, line in there.items() if pair != ("ny", "la")} == {
        (20, 50_000)
    }
    assert there["ny", "la"]["delay_ms"] == 1000
    lab(cluster, "partition", "sf", "--one-way")
    lab(cluster, "partition", "la,ny")
    cut = {pair for pair, line in lines(cluster).items() if line["cut"]}
    assert cut == {("sf", "la"), ("sf", "ny"), ("la", "ny"), ("ny", "la")}
    lab(cluster, "heal")
    there = lines(cluster)
    assert not any(line["cut"] for line in there.values()) and there["ny", "la"]["delay_ms"] == 1000
    lab(cluster, "heal", "--all")
    assert {(line["delay_ms"], line["kbit_s"]) for line in lines(cluster).values()} == {(0, 0)}


def test_a_pop_is_killed_and_comes_back_or_stays_down_until_it_is_resumed(cluster: LocalCluster) -> None:
    before = {name: cluster.pid("la", name) for name in ("redis", "broker", "data", "control")}
    lab(cluster, "kill", "la")
    for name, pid in before.items():
        cluster.wait_restarted("la", name, pid, timeout_s=DEADLINE_S)
    lab(cluster, "kill", "la", "--stay-down")
    until(lambda: cluster.pop("la").state == "off", "the cluster says so", DEADLINE_S)
    assert state_of(cluster, "la") == "down" and state_of(cluster, "ny") == "runs"
    assert "lab resume" in cluster.pop("la").reason
    lab(cluster, "resume")
    assert cluster.wait_ready(timeout_s=DEADLINE_S).pop("la").state == "ready"


def test_a_paused_part_stands_and_goes_on_as_the_same_process(cluster: LocalCluster) -> None:
    cluster.wait_ready(timeout_s=DEADLINE_S)
    pids = {name: cluster.pid("ny", name) for name in ("redis", "data")}
    lab(cluster, "pause", "ny/data")
    assert state_of(cluster, "ny") == "partly paused"
    lab(cluster, "pause", "ny")
    assert state_of(cluster, "ny") == "paused"
    assert Path(f"/proc/{pids['redis']}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    lab(cluster, "resume", "ny")
    assert state_of(cluster, "ny") == "runs"
    assert pids == {name: cluster.pid("ny", name) for name in ("redis", "data")}


def test_a_restart_ends_everything_in_order_and_starts_it(cluster: LocalCluster) -> None:
    cluster.wait_ready(timeout_s=DEADLINE_S)
    before = cluster.pid("sf", "redis")
    lab(cluster, "restart", "sf")
    assert before is not None
    cluster.wait_restarted("sf", "redis", before, timeout_s=DEADLINE_S)
    cluster.wait_ready(timeout_s=DEADLINE_S)
    assert "exit status 0" in str(cluster.process("sf", "redis")["last_exit"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kill", "paris"], ["no PoP 'paris'", "la, ny, sf"]),
        (["kill", "la/disk"], ["no part of a PoP", "broker"]),
        (["kill", "la/data", "--stay-down"], ["cannot stay down alone"]),
        (["wan", "--between", "la,ny"], ["nothing to change"]),
        (["wan", "--delay", "20"], ["not a delay", "20ms"]),
        (["wan", "--delay", "2m"], ["not a delay"]),
        (["wan", "--delay", "90s"], ["60000 ms"]),
        (["wan", "--delay", "20ms", "--one-way"], ["needs two PoPs"]),
        (["wan", "--bandwidth", "50MB"], ["not a bandwidth", "50Mbit"]),
        (["partition", "la,la"], ["does not name two PoPs"]),
    ],
)
def test_nonsense_is_refused_by_name(cluster: LocalCluster, arguments: list[str], words: list[str]) -> None:
    result = lab(cluster, *arguments, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "EDGEFLOW_HOME": str(tmp_path)}
    result = subprocess.run(
        [*COMMAND, "status"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1 and "edgeflow up" in result.stderr
