"""Supervision with the real Redis and broker, and stand-ins for the agent's two processes."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from host_fakes import API, DATA, IDLE, commands

from edgeflow.host import discover, lifecycle
from edgeflow.host.children import Child, ChildSpec, watch_children
from edgeflow.host.errors import AlreadyRunning, NoCluster, NoSuchPop, ProcessFailing, StartTimeout
from edgeflow.host.files import read_json
from edgeflow.host.local import LocalCluster
from edgeflow.host.supervisor import HomeLock

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture
def cluster():
    with LocalCluster(("a", "b"), commands=commands()) as made:
        yield made


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pids_of(cluster):
    document = read_json(cluster.home.cluster_file)
    pids = [entry["pid"] for pop in document["pops"].values() for entry in pop["processes"].values()]
    return [*pids, document["wan"]["pid"], document["supervisor"]["pid"]]


def test_what_is_killed_runs_again_and_the_others_are_left_alone(cluster, wait_until):
    others = {name: cluster.pid("b", name) for name in ("redis", "broker", "data", "control")}
    for name in ("redis", "broker", "data", "control"):
        old = cluster.kill("a", name)
        assert cluster.wait_restarted("a", name, old, timeout_s=10) != old
        assert cluster.restarts("a", name) == 1
        assert cluster.process("a", name)["last_exit"] == "killed by SIGKILL"
    cluster.wait_ready(timeout_s=20)
    assert {name: cluster.pid("b", name) for name in others} == others
    wan = read_json(cluster.home.cluster_file)["wan"]["pid"]
    os.kill(wan, signal.SIGKILL)
    wait_until(lambda: read_json(cluster.home.cluster_file)["wan"]["pid"] not in (None, wan), "the proxy runs again")


def test_nothing_survives_a_killed_supervisor_and_the_next_start_works(cluster, wait_until):
    pids = pids_of(cluster)
    identity = cluster.home.identity_file.read_text()
    cluster.kill_supervisor()
    wait_until(lambda: not any(alive(pid) for pid in pids), "all processes are gone")
    with pytest.raises(NoCluster):
        cluster.find()
    cluster.start()
    assert cluster.find().state == "ready"
    assert cluster.home.identity_file.read_text() == identity


def test_stop_ends_all_in_order(cluster):
    pids = pids_of(cluster)
    run_root = Path(read_json(cluster.home.identity_file)["run_root"])
    assert run_root.exists()
    cluster.stop()
    assert not run_root.exists()
    assert not any(alive(pid) for pid in pids)
    document = read_json(cluster.home.cluster_file)
    assert document["state"] == "stopped"
    assert document["supervisor"] is None
    assert not HomeLock.is_held(cluster.home)


def test_order_of_the_end(wait_until):
    note = "import os, signal, sys, json, pathlib, time\n"
    note += "place = pathlib.Path(json.load(open(sys.argv[1]))['state_dir']) / 'order'\n"
    ending = "signal.signal(signal.SIGTERM, lambda *_: (place.open('a').write('NAME\\n'), os._exit(0)))\n"
    data = note + ending.replace("NAME", "data") + DATA
    control = note + ending.replace("NAME", "control") + API
    with LocalCluster(("a",), commands=commands(data=data, control=control)) as cluster:
        cluster.stop()
        assert (cluster.home.pop_dir("a") / "state" / "order").read_text().split() == ["control", "data"]


def test_what_does_not_end_is_killed_with_what_it_started(tmp_path, wait_until):
    stubborn = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
while True: signal.pause()
"""

    async def run():
        watch_children()
        spec = ChildSpec("a", "data", [sys.executable, "-c", stubborn], tmp_path / "log", stop_s=0.3)
        child = Child(spec, lambda: None)
        child.start()
        async with asyncio.timeout(20):
            while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text().strip():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            pid = child.pid
            await child.stop()
        return pid, int((tmp_path / "log").read_text())

    pids = asyncio.run(run())
    wait_until(lambda: not any(alive(pid) for pid in pids), "both are gone")


def test_up_twice_is_one_cluster(cluster):
    pids = pids_of(cluster)
    assert lifecycle.up(mode="embedded", home=cluster.home.root).id == cluster.find().id
    assert pids_of(cluster) == pids
    with pytest.raises(AlreadyRunning):
        lifecycle.up(mode="embedded", home=cluster.home.root, pops=("a", "c"))
    with pytest.raises(AlreadyRunning):
        HomeLock.take(cluster.home)


def test_crash_loop_is_reported_by_name_with_its_last_lines():
    cluster = LocalCluster(("a", "b"), commands=commands(data="print('no such thing: x'); raise SystemExit(3)"))
    try:
        with pytest.raises(ProcessFailing) as failed:
            cluster.start(timeout_s=30)
        assert "/data does not stay up (exit status 3" in failed.value.message
        assert "no such thing: x" in failed.value.message
        assert not HomeLock.is_held(cluster.home)
    finally:
        cluster.stop(purge=True)


def test_program_that_cannot_start_is_reported():
    cluster = LocalCluster(("a",), commands={**commands(), "data": ["/no/such/program"]})
    try:
        with pytest.raises(ProcessFailing, match="cannot start /no/such/program"):
            cluster.start(timeout_s=30)
    finally:
        cluster.stop(purge=True)


def test_never_ready_says_what_is_missing():
    cluster = LocalCluster(("a",), commands=commands(control=IDLE))
    try:
        with pytest.raises(StartTimeout, match="a: waiting for control"):
            cluster.start(timeout_s=2)
        assert not HomeLock.is_held(cluster.home)
    finally:
        cluster.stop(purge=True)


def test_settings_reach_the_pops():
    with LocalCluster(("a",), commands=commands(), settings={"limits": {"hops": 3}}) as cluster:
        assert read_json(cluster.home.config_file("a"))["limits"]["hops"] == 3


def test_access_is_complete(cluster):
    access = cluster.pop("b")
    assert access.token == access.api_token_file.read_text().strip()
    assert access.mqtt_username == "operator"
    assert access.mqtt_password_file.stat().st_mode & 0o077 == 0
    with pytest.raises(NoSuchPop):
        cluster.pop("c")


def test_purge_leaves_nothing_of_ours_and_all_of_others(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.txt").write_text("the user's own")
    cluster = LocalCluster(("a",), home=home, commands=commands())
    cluster.start()
    run_root = Path(read_json(cluster.home.identity_file)["run_root"])
    lifecycle.down(home=home, purge=True)
    assert [entry.name for entry in home.iterdir()] == ["notes.txt"]
    assert not run_root.exists()


def test_a_dead_folder_is_not_a_cluster(tmp_path):
    (tmp_path / "cluster.json").write_text('{"cluster": "x", "mode": "embedded", "state": "ready", "pops": {}}')
    with pytest.raises(NoCluster):
        discover.find(tmp_path)
    with contextlib.suppress(FileNotFoundError):
        assert lifecycle.down(home=tmp_path) is False
