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
    fetched = {}
    access = cluster.pop("la")
    with Operator(access.api_url, access.token) as la:
        for name in ("one", "two"):
            archive = tmp_path / f"{name}.tar"
            archive.write_bytes(docker_archive([BASE, layer({"app": os.urandom(200_000)})], f"vision/{name}:1"))
            done = edgeflow(cluster, "images", "push", str(archive), "--pop", "chicago", "-o", "json")
            assert done.returncode == 0, done.stderr
            pushed = json.loads(done.stdout)
            assert pushed["pop"] == "chicago" and pushed["here"] == pushed["stored"] and pushed["loaded"] is None
            there = wait_until(lambda id=pushed["id"]: la.image(id), "the image is known at la")
            done = edgeflow(cluster, "images", "load", f"vision/{name}:1", "--pop", "la")
            assert done.returncode == 0 and "not on an engine" in done.stdout, done.stderr
            assert "has no container engine" in done.stderr
            assert (la.image(pushed["id"]) or {})["here"] == pushed["stored"]
            fetched[name] = pushed["stored"] - there["here"]
        assert 0 < fetched["two"] < 0.15 * fetched["one"], "the base was there already"
        listed = edgeflow(cluster, "images", "list", "--pop", "la")
        assert "vision/two:1" in listed.stdout and "vision/one:1" in listed.stdout
        assert edgeflow(cluster, "images", "rm", "vision/two:1", "--yes", "--pop", "la").returncode == 0
        assert [one["names"] for one in la.images()] == [["vision/one:1"]]


def test_what_is_wrong_is_said(cluster: LocalCluster, tmp_path: Path) -> None:
    archive = tmp_path / "cut.tar"
    archive.write_bytes(docker_archive([BASE])[:3_000_000])
    done = edgeflow(cluster, "images", "push", str(archive))
    assert done.returncode == 1 and "the archive" in done.stderr and "hint:" in done.stderr
    done = edgeflow(cluster, "images", "rm", "vision/none", "--yes")
    assert done.returncode == 1 and "there is no image 'vision/none'" in done.stderr
