"""Images on real PoPs of embedded mode: pushed by the command at one, known at the other, fetched over the link, and no engine anywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_archives import docker_archive, layer

from edgeflow.cli.admin import Operator
from edgeflow.errors import Unavailable
from edgeflow.host.local import LocalCluster

pytestmark = pytest.mark.timeout(120)
BASE = layer({"base": os.urandom(6_000_000)})


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(("chicago", "la")) as cluster:
        yield cluster


def edgeflow(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGEFLOW_HOME": str(cluster.home.root)}
    command = [sys.executable, "-c", "from edgeflow.cli.main import app; app()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_an_image_is_pushed_at_one_pop_and_loaded_at_the_other(
    cluster: LocalCluster, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    fetched = []
    one, two = (
        docker_archive([BASE, layer({"app": os.urandom(200_000)})], f"vision/{name}:1") for name in ("one", "two")
    )
    archive = tmp_path / "one.tar"
    archive.write_bytes(one)
    at = {pop: cluster.pop(pop) for pop in ("chicago", "la")}
    with (
        Operator(at["chicago"].api_url, at["chicago"].token) as chicago,
        Operator(at["la"].api_url, at["la"].token) as la,
    ):

        def known_at_la(pushed: dict[str, Any]) -> None:
            assert pushed["pop"] == "chicago" and pushed["here"] == pushed["stored"] and pushed["loaded"] is None
            there = wait_until(lambda: la.image(pushed["id"]), "the image is known at la")
            fetched.append(pushed["stored"] - there["here"])

        done = edgeflow(cluster, "images", "push", str(archive), "--pop", "chicago", "-o", "json")
        assert done.returncode == 0, done.stderr
        known_at_la(json.loads(done.stdout))
        done = edgeflow(cluster, "images", "load", "vision/one:1", "--pop", "la")
        assert done.returncode == 0 and "not on an engine" in done.stdout, done.stderr
        assert "has no container engine" in done.stderr
        pushed = chicago.push_image(lambda: iter([two]), ["vision/two:2"], len(two))
        known_at_la(pushed)
        loaded = la.load_image(pushed["id"])
        assert loaded["here"] == loaded["stored"] and loaded["names"] == ["vision/two:2", "vision/two:1"]
        assert 0 < fetched[1] < 0.15 * fetched[0], "the base was there already"
        listed = edgeflow(cluster, "images", "list", "--pop", "la")
        assert "vision/two:1" in listed.stdout and "vision/one:1" in listed.stdout
        assert edgeflow(cluster, "images", "rm", "vision/two:1", "--yes", "--pop", "la").returncode == 0
        assert [image["names"] for image in la.images()] == [["vision/one:1"]]


def test_what_is_wrong_is_said(cluster: LocalCluster, tmp_path: Path) -> None:
    archive = tmp_path / "cut.tar"
    archive.write_bytes(docker_archive([BASE])[:3_000_000])
    done = edgeflow(cluster, "images", "push", str(archive))
    assert done.returncode == 1 and "the archive" in done.stderr and "hint:" in done.stderr
    done = edgeflow(cluster, "images", "rm", "vision/none", "--yes")
    assert done.returncode == 1 and "there is no image 'vision/none'" in done.stderr


def test_an_upload_whose_pop_dies_leaves_nothing_and_is_repeated(
    cluster: LocalCluster, wait_until: Callable[..., Any]
) -> None:
    archive = docker_archive([BASE, layer({"app": os.urandom(3_000_000)})], "vision/killed:1")
    access = cluster.pop("chicago")
    old_pid = cluster.pid("chicago", "control")
    assert old_pid is not None

    def dying() -> Iterator[bytes]:
        yield archive[: len(archive) // 2]
        cluster.kill("chicago", "control")
        yield archive[len(archive) // 2 :]

    with Operator(access.api_url, access.token, retry_s=1) as chicago, pytest.raises(Unavailable):
        chicago.push_image(dying, [], len(archive))
    cluster.wait_restarted("chicago", "control", old_pid)
    cluster.wait_ready()
    with Operator(access.api_url, access.token, retry_s=20) as chicago:
        assert all("vision/killed:1" not in image["names"] for image in chicago.images())
        pushed = chicago.push_image(lambda: iter([archive]), [], len(archive))
        assert pushed["names"] == ["vision/killed:1"] and pushed["here"] == pushed["stored"]
