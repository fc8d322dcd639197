"""Instances that follow the work, on a real PoP: asleep, woken, many, and few again; killed at each of these."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(180)]
Wait = Callable[..., Any]
ROUNDS = 3
"""How often one that sleeps is woken; each takes some seconds until it sleeps again."""
SLOW = "import time\n\n@function\ndef handle(ctx, words):\n    began = time.time()\n    time.sleep({})\n    return {{'began': began}}"


class App:
    """One function whose instances follow the work."""

    def __init__(
        self, cluster: LocalCluster, client: Operator, folder: Path, name: str, scale: str, slow_s: float
    ) -> None:
        self.cluster, self.client, self.name = cluster, client, name
        (folder / "f").mkdir()
        (folder / "f" / "handler.py").write_text(f"from edgeflow import function\n{SLOW.format(slow_s)}\n")
        fields = f"build: ./f, subscribe: words, publish: out, scale: {scale}, retry: {{attempts: 20, backoff: 100ms}}"
        (folder / "edgeflow.yaml").write_text(f"namespace: {name}\nfunctions:\n  f: {{{fields}}}\n")
        access = cluster.pop("la")
        apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token))

    def runs(self) -> list[dict[str, Any]]:
        """Processes of the function that run, each with whether it stands still."""
        found = []
        for file in (self.cluster.home.pop_dir("la") / "state" / "instances").glob("*.json"):
            try:
                run = json.loads(file.read_text())
                state = Path(f"/proc/{run['pid']}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if run["namespace"] == self.name and state not in "ZX":
                found.append({**run, "paused": state == "T"})
        return found

    def paused(self) -> list[bool]:
        return [run["paused"] for run in self.runs()]

    def send(self, *texts: str) -> None:
        for text in texts:
            self.client.publish(f"{self.name}/words", text, subject=text)

    def answers(self, count: int) -> dict[str, float]:
        """When each began, in the order of the answers; each once."""
        found: dict[str, float] = {}
        for event in self.client.subscribe(f"{self.name}/out", from_="start"):
            subject = str(event.subject)  # type: ignore[union-attr]
            assert subject not in found, "answered twice"
            found[subject] = json.loads(event.text())["began"]  # type: ignore[union-attr]
            if len(found) == count:
                return found
        raise AssertionError("the stream ended")


def test_what_sleeps_is_paused_and_is_woken_by_the_first_event(
    cluster: LocalCluster, client: Operator, tmp_path: Path, wait_until: Wait
) -> None:
    app = App(cluster, client, tmp_path, "one", "{min: 0, max: 4, idle: 200ms}", 0.0)
    took_ms = []
    for number in range(ROUNDS):
        wait_until(lambda: app.paused() == [True], "it sleeps", 30)
        sent_s = time.time()
        app.send(str(number))
        took_ms.append((app.answers(number + 1)[str(number)] - sent_s) * 1000)
    took_ms.sort()
    print(f"event to handler from paused: p50 {took_ms[ROUNDS // 2]:.1f} ms, {[round(one, 1) for one in took_ms]}")
    assert took_ms[ROUNDS // 2] < 1000
    # Killed while it is paused: another one takes its place, and goes to sleep; nothing is lost.
    wait_until(lambda: app.paused() == [True], "it sleeps", 30)
    (before,) = app.runs()
    os.killpg(before["pid"], signal.SIGKILL)
    app.send("killed")
    assert "killed" in app.answers(ROUNDS + 1)
    wait_until(lambda: app.paused() == [True] and app.runs()[0]["pid"] != before["pid"], "another one sleeps", 30)
    # Data away and back: what is paused cannot come back to its socket by itself.
    cluster.wait_restarted("la", "data", cluster.kill("la", "data"))
    cluster.wait_ready()
    app.send("data")
    assert "data" in app.answers(ROUNDS + 2)
    # Control away: work waits for it, and is done when it is back.
    wait_until(lambda: app.paused() == [True], "it sleeps", 30)
    old = cluster.kill("la", "control")
    cluster.wait_restarted("la", "control", old)
    cluster.wait_ready()
    app.send("control")
    assert "control" in app.answers(ROUNDS + 3)


def test_a_burst_gets_four_and_loses_nothing_though_control_and_instances_are_killed(
    cluster: LocalCluster, client: Operator, tmp_path: Path, wait_until: Wait
) -> None:
    app = App(cluster, client, tmp_path, "two", "{min: 0, max: 4, idle: 1s}", 0.1)
    wait_until(lambda: app.paused() == [True], "it sleeps", 30)
    texts = [str(number) for number in range(400)]
    sent_s = time.time()
    app.send(*texts)
    wait_until(lambda: len(app.runs()) > 1, "more are started", 30)
    old = cluster.kill("la", "control")
    os.killpg(app.runs()[0]["pid"], signal.SIGKILL)
    cluster.wait_restarted("la", "control", old)
    wait_until(lambda: app.paused() == [False] * 4, "there are four", 30)
    began = app.answers(len(texts))
    assert set(began) == set(texts) and list(client.letters("two")) == []
    print(f"0 -> 4: {len(texts)} events, the oldest waited {max(began.values()) - sent_s:.2f} s, all begun")
    wait_until(lambda: app.paused() == [True], "one is left, and sleeps", 60)
