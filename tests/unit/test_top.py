"""`top`: what lies between two looks, what the system says of processes and containers, and the route between them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fakes import TOKEN, FakeStore, make_api, served
from typer.testing import CliRunner

from edgeflow.cli import reach, top
from edgeflow.cli.main import app
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.layout import Home
from edgeflow.runner.usage import Usage, of_container, of_sessions


def function(committed: int, **more: Any) -> dict[str, Any]:
    handler = {"p50": 2.0, "p99": 9.5}
    return {
        "namespace": "v", "function": "f", "at": "la", "state": "ready", "reason": None, "stats": {"invocations": committed, "failed": 1, "handler_ms": handler},
        "inbox": {"ready": 3, "delayed": 2, "turn": 1, "claimed": 5, "oldest_ms": 40}, **more,
    }  # fmt: skip


def instance(committed: int, cpu_s: float | None, name: str = "v.f-1") -> dict[str, Any]:
    memory = None if cpu_s is None else 5_000_000
    return {
        "namespace": "v", "function": "f", "revision": "r", "instance": name, "state": "ready", "in_flight": 2, "committed": committed, "failed": 0,
        "since_ms": 1, "cpu_s": cpu_s, "memory_bytes": memory, "processes": None if cpu_s is None else 1,
    }  # fmt: skip


def test_a_row_is_what_lies_between_two_looks() -> None:
    key = ("la", "v", "f")
    before = top.Look(10.0, {key: function(100)}, {("la", "v.f-1"): instance(100, 1.0)})
    now = top.Look(
        12.0, {key: function(150)}, {("la", "v.f-1"): instance(140, 2.5), ("la", "v.f-2"): instance(10, None, "v.f-2")}
    )
    (row,) = top.rows(before, now)
    assert (row["rate_per_s"], row["backlog"], row["in_flight"], row["handler_p99_ms"]) == (25.0, 6, 4, 9.5)
    assert (row["cpu_percent"], row["memory_bytes"]) == (75.0, 5_000_000)
    first, second = row["instances"]
    assert (first["rate_per_s"], first["cpu_percent"]) == (20.0, 75.0)
    # An instance that has just begun, and one that nothing is known of.
    assert (second["rate_per_s"], second["cpu_percent"], second["memory_bytes"]) == (None, None, None)


def test_a_counter_that_began_again_gives_no_rate() -> None:
    key = ("la", "v", "f")
    (row,) = top.rows(top.Look(1.0, {key: function(100)}), top.Look(2.0, {key: function(3)}))
    assert row["rate_per_s"] is None
    (row,) = top.rows(top.Look(1.0), top.Look(2.0, {key: function(3, stats=None, inbox=None)}))
    assert (row["rate_per_s"], row["handler_p50_ms"], row["backlog"], row["memory_bytes"]) == (None, None, 0, None)


def test_a_session_is_counted_with_all_its_processes(wait_until: Callable[..., Any]) -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time\\nwhile True: time.sleep(0.001)'])"
    )
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        used = wait_until(
            lambda: (
                (found := of_sessions({"i": leader.pid}))
                and found["i"].processes == 2
                and found["i"].cpu_s > 0
                and found["i"]
            ),
            "both run",
        )
        assert 2e6 < used.memory_bytes < 200e6
    finally:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait(10)
    assert of_sessions({"i": leader.pid}) == {}


def test_a_container_is_counted_without_the_cache_of_its_files() -> None:
    stats = {"cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}}, "memory_stats": {"usage": 9000, "stats": {"inactive_file": 4000}}, "pids_stats": {"current": 3}}  # fmt: skip
    assert of_container(stats) == Usage(2.5, 5000, 3)
    assert of_container({"memory_stats": {}, "cpu_stats": {}}) is None


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    store = FakeStore()
    (tmp_path / "token").write_text(TOKEN)
    api = make_api(tmp_path, store)
    api.usage = lambda: {"v.f-1": Usage(1.5, 7000, 2)}
    with served(api) as url:
        pops = {
            name: PopAccess(
                name, "ready", address, tmp_path / "token", "h", 1, "ws://h", "operator", tmp_path / "token"
            )
            for name, address in (("chicago", url), ("la", "http://127.0.0.1:9"))
        }
        monkeypatch.setattr(reach, "find", lambda: Cluster("c", "embedded", "ready", Home(tmp_path), pops))
        yield store


def test_the_command_asks_every_pop_and_names_the_silent_one(cluster: FakeStore) -> None:
    cluster.local.documents = {
        "instance": {"v.f-1": {"namespace": "v", "function": "f", "revision": "r"}, "v.f-2": {"namespace": "w", "function": "g", "revision": "r"}},
        "instance_state": {"v.f-1": {"state": "ready", "in_flight": 1, "committed": 4, "failed": 0, "since_ms": 5}},
    }  # fmt: skip
    shown = CliRunner().invoke(app, ["top", "--every", "0.2"])
    assert shown.exit_code == 0 and "not there: la" in shown.output
    done = CliRunner().invoke(app, ["top", "--every", "0.2", "-o", "json"])
    assert json.loads(done.stdout) == [] and "la" in done.stderr
    with top.Operator(reach.find().pop("chicago").api_url, TOKEN) as client:
        first, second = client.instances()
        assert (first["cpu_s"], first["memory_bytes"], first["processes"], first["state"]) == (1.5, 7000, 2, "ready")
        assert (second["cpu_s"], second["state"]) == (None, "starting")
        assert [one["function"] for one in client.instances("w")] == ["g"]


def test_nobody_there_is_an_error_and_not_an_empty_table(cluster: FakeStore) -> None:
    assert CliRunner().invoke(app, ["top", "--pop", "la", "--every", "0.2"]).exit_code == 1
    assert CliRunner().invoke(app, ["top", "--every", "0"]).exit_code == 1
