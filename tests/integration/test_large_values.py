"""Values of hundreds of MiB on real PoPs: through API, disk, link and instances, while every process of edgeflow stays small."""

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster, ProcessName
from edgeflow.sdk.client import Client

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("programs")]
Wait = Callable[..., Any]
MIB = 1024 * 1024
LARGE = 200 * MIB
AGENTS: tuple[ProcessName, ...] = ("data", "control")
GROWTH = 64 * MIB
"""What a process may grow by while LARGE goes through it: pieces, windows, buffers, and a margin."""

MANIFEST = """
namespace: big
functions:
  digest: {build: ./digest, subscribe: ask, publish: answer, place: {pops: [b]}, retry: {attempts: 1, timeout: 120s}}
  make:   {build: ./make, subscribe: order, publish: made, place: {pops: [b]}, retry: {attempts: 1, timeout: 120s}}
"""
DIGEST = """
import hashlib
from edgeflow import function

@function
def handle(ctx, ask):
    value = ctx.ekv.get(ask.text())
    found, size = hashlib.sha256(), 0
    for piece in value.pieces():
        found.update(piece)
        size += len(piece)
    return {"key": value.key, "sha256": found.hexdigest(), "size": size, "whole": hashlib.sha256(value.data).hexdigest() if size < 2**26 else None}
"""
MAKE = """
from edgeflow import function

@function
def handle(ctx, order):
    size = int(order.text())
    ctx.ekv.put("made/" + order.text(), bytes(range(256)) * (size // 256), content_type="application/x-made")
    return size
"""


def large_body(seed: int, size: int = LARGE) -> Iterator[bytes]:
    """Random bytes, the same for the same seed, never all in memory."""
    chance = random.Random(seed)
    for at in range(0, size, MIB):
        yield chance.randbytes(min(MIB, size - at))


def sha256_of(pieces: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


class Agents:
    """The agent's processes of the PoPs, and the most memory each had."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._pids: dict[str, int] = {}
        for pop in cluster.pops:
            for kind in AGENTS:
                pid = cluster.pid(pop, kind)
                assert pid is not None
                self._pids[f"{pop}/{kind}"] = pid
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._peaks()

    def growth(self) -> dict[str, int]:
        """Bytes by process."""
        return {name: peak - self._before[name] for name, peak in self._peaks().items()}

    def _peaks(self) -> dict[str, int]:
        return {name: _peak(pid) for name, pid in self._pids.items()}


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def cluster(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("app")
    for name, text in (("digest", DIGEST), ("make", MAKE)):
        (folder / name).mkdir()
        (folder / name / "handler.py").write_text(text)
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    with LocalCluster(["a", "b"]) as cluster:
        cluster.wait_ready()
        access = cluster.pop("a")
        apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token))
        yield cluster


def http_of(cluster: LocalCluster, pop: str) -> httpx.Client:
    access = cluster.pop(pop)
    return httpx.Client(base_url=access.api_url, headers={"Authorization": f"Bearer {access.token}"}, timeout=60)


def invoke(cluster: LocalCluster, function: str, body: str) -> Any:
    access = cluster.pop("a")
    with Client(access.api_url, access.token) as client:
        (event,) = client.invoke(function, body, timeout_s=120)
        return event.json()


def test_200_mib_from_one_pop_to_the_other_and_into_a_handler(cluster: LocalCluster, wait_until: Wait) -> None:
    expected = sha256_of(large_body(1))
    agents = Agents(cluster)
    with http_of(cluster, "a") as at_a, http_of(cluster, "b") as at_b:
        at_a.put("/v1/ekv/big/model", content=large_body(1)).raise_for_status()
        wait_until(lambda: at_b.head("/v1/ekv/big/model").status_code == 200, "the value is at b", 60)
        with at_b.stream("GET", f"/v1/blobs/big/sha256:{expected}") as answer:
            assert answer.status_code == 200
            assert sha256_of(answer.iter_bytes(MIB)) == expected
    found = invoke(cluster, "big/digest", "model")
    assert (found["sha256"], found["size"]) == (expected, LARGE)
    growth = agents.growth()
    print("grew by MiB:", {name: round(grown / MIB, 1) for name, grown in growth.items()})
    assert all(grown < GROWTH for grown in growth.values()), growth


def test_an_instance_puts_more_than_fits_into_a_frame(cluster: LocalCluster, wait_until: Wait) -> None:
    size = 100 * MIB
    agents = Agents(cluster)
    assert invoke(cluster, "big/make", str(size)) == size
    growth = agents.growth()
    with http_of(cluster, "a") as at_a:
        wait_until(lambda: at_a.head(f"/v1/ekv/big/made/{size}").status_code == 200, "the value is at a", 60)
        head = at_a.head(f"/v1/ekv/big/made/{size}")
        assert (head.headers["Content-Length"], head.headers["Content-Type"]) == (str(size), "application/x-made")
        expected = sha256_of(bytes(range(256)) * 4096 for _ in range(size // MIB))
        with at_a.stream("GET", f"/v1/blobs/big/sha256:{expected}") as answer:
            assert sha256_of(answer.iter_bytes(MIB)) == expected
    print("grew by MiB:", {name: round(grown / MIB, 1) for name, grown in growth.items()})
    assert all(grown < GROWTH for grown in growth.values()), growth


def test_a_handler_reads_a_body_that_was_damaged_at_its_pop(cluster: LocalCluster, wait_until: Wait) -> None:
    data = os.urandom(20 * MIB)
    digest = hashlib.sha256(data).hexdigest()
    with http_of(cluster, "a") as at_a, http_of(cluster, "b") as at_b:
        at_a.put("/v1/ekv/big/damaged", content=data).raise_for_status()
        wait_until(lambda: at_b.get(f"/v1/blobs/big/sha256:{digest}").status_code == 200, "the body is at b", 60)
        (path,) = [one for one in cluster.home.root.glob(f"**/blobs/big/{digest[:2]}/{digest}") if "/b/" in str(one)]
        with open(path, "r+b") as file:
            file.seek(9 * MIB)
            file.write(b"damage")
        found = invoke(cluster, "big/digest", "damaged")
        assert (found["sha256"], found["whole"]) == (digest, digest)
        assert at_b.get(f"/v1/blobs/big/sha256:{digest}").content == data
