"""The PoP's Redis loses power, and its disk fills to the last byte: what was acknowledged as durable is there afterwards.

The power cut is made of two halves: SIGKILL, and then every file cut to the length it had at its last fsync (powercut.c, powercut.py).
"""

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from needs import missing
from powercut import cut
from world import HERE, until

from edgeflow.errors import EdgeflowError
from edgeflow.host.local import LocalCluster
from edgeflow.host.supervisor import default_commands
from edgeflow.lab import ledger
from edgeflow.sdk.client import Client
from edgeflow.settings import PopSettings

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), pytest.mark.usefixtures("programs")]

POP, CHANNEL = "solo", "power/in"
WRITERS = 4
ROUNDS = {True: 2, False: 6}
"""Power cuts, by `is_short`."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled powercut.c."""
    if shutil.which("cc") is None:
        missing("cc", "scripts/test-faults installs it")
    target = tmp_path_factory.mktemp("powercut") / "powercut.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", target, HERE / "powercut.c", "-ldl"],
        check=True,
        timeout=60,
    )
    return target


@contextmanager
def weak_cluster(library: Path, folder: Path, *options: str) -> Iterator[LocalCluster]:
    """A PoP whose Redis comes back from each end as from a power cut; `options` are for Redis."""
    redis = [shutil.which("python3") or "python3", str(HERE / "powercut.py"), str(library), str(folder)]
    with LocalCluster((POP,), commands={"redis": [*redis, *default_commands()["redis"], *options]}) as cluster:
        yield cluster


class Writers:
    """Threads that publish without a pause, and what was acknowledged to them."""

    def __init__(self, cluster: LocalCluster) -> None:
        access = cluster.pop(POP)
        self.acknowledged: list[str] = []
        self._stop = threading.Event()
        self._client = Client(access.api_url, access.token, retry_s=60)
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        number = 0
        while not self._stop.is_set():
            name = f"w{writer}-{number}"
            self._client.publish(CHANNEL, b"x" * 200, subject=name, id=name, source="power")
            self.acknowledged.append(name)
            number += 1

    def more(self, count: int) -> None:
        """Wait for so many further acknowledgements."""
        wanted = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= wanted, f"{wanted} acknowledgements", 90)

    def stop(self) -> list[str]:
        """End them; all that was acknowledged."""
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        self._client.close()
        return self.acknowledged


def logged(cluster: LocalCluster) -> list[str]:
    """Subjects that the log holds, of all epochs."""
    settings = PopSettings.load(cluster.home.root / "pops" / POP / "pop.json")
    return ledger.read(str(settings.store.redis_socket), "power", POP).subjects(CHANNEL)


def power_cuts(library: Path, folder: Path, rounds: int, *options: str) -> tuple[int, ledger.Verdict, list[int]]:
    """(acknowledged, verdict, bytes taken by each cut)."""
    chance = random.Random(7)
    with weak_cluster(library, folder, *options) as cluster:
        writers = Writers(cluster)
        try:
            for _ in range(rounds):
                writers.more(200)
                time.sleep(chance.uniform(0.1, 0.9))  # anywhere between two fsyncs of `everysec`
                old = cluster.kill(POP, "redis")
                cluster.wait_restarted(POP, "redis", old)
            writers.more(100)
        finally:
            acknowledged = writers.stop()
        verdict = ledger.exactly_once(acknowledged, logged(cluster))
    taken = [int(line) for line in (folder / "cuts").read_text().split()][1:]
    assert len(taken) >= rounds
    return len(acknowledged), verdict, taken


def test_a_cut_takes_what_no_fsync_covered(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    covered, never = data / "covered", data / "never"
    covered.write_bytes(b"12345678")
    never.write_bytes(b"1234")
    (tmp_path / "journal").write_text(f"{covered.stat().st_ino} 3\n{covered.stat().st_ino} 5\n")
    assert cut(tmp_path, data) == 3 + 4
    assert (covered.read_bytes(), never.read_bytes()) == (b"12345", b"")


def test_a_power_cut_takes_nothing_that_was_acknowledged(
    library: Path, tmp_path: Path, is_short: bool, figure: Callable[[str], None]
) -> None:
    rounds = ROUNDS[is_short]
    acknowledged, verdict, taken = power_cuts(library, tmp_path / "power", rounds)
    figure(
        f"power cut of Redis, appendfsync always, {rounds} times: {acknowledged} acknowledged as durable, {len(verdict.lost)} lost, "
        f"{len(verdict.doubled)} doubled; bytes taken by the cuts {taken}"
    )
    assert not verdict.lost and not verdict.doubled


def test_the_same_with_everysec_loses(
    library: Path, tmp_path: Path, is_short: bool, figure: Callable[[str], None]
) -> None:
    rounds = ROUNDS[is_short]
    acknowledged, verdict, taken = power_cuts(library, tmp_path / "power", rounds, "--appendfsync", "everysec")
    figure(
        f"control: the same with appendfsync everysec: {acknowledged} acknowledged, {len(verdict.lost)} lost; bytes taken {taken}"
    )
    assert verdict.lost


def test_a_disk_that_is_full_to_the_last_byte(library: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    folder = tmp_path / "power"
    with weak_cluster(library, folder) as cluster:
        writers = Writers(cluster)
        try:
            writers.more(300)
            before = cluster.restarts(POP, "redis")
            (folder / "full").touch()
            until(lambda: cluster.restarts(POP, "redis") >= before + 2, "Redis to end for want of room", 30)
            access = cluster.pop(POP)
            stood = len(writers.acknowledged)
            with (
                Client(access.api_url, access.token, retry_s=0.0, timeout_s=3.0) as client,
                pytest.raises(EdgeflowError) as refused,
            ):
                client.publish(CHANNEL, b"no room", subject="refused")
            assert len(writers.acknowledged) == stood, "acknowledged without room"
            (folder / "full").unlink()
            writers.more(300)
        finally:
            (folder / "full").unlink(missing_ok=True)
            acknowledged = writers.stop()
        verdict = ledger.exactly_once(acknowledged, logged(cluster))
    figure(
        f"disk full to the last byte: Redis ended and came back, {len(acknowledged)} acknowledged as durable, {len(verdict.lost)} lost, "
        f"{len(verdict.doubled)} doubled; meanwhile publishers got {type(refused.value).__name__}"
    )
    assert not verdict.lost and not verdict.doubled
