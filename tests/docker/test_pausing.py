"""Containers that are parked and paused, and woken by the first event, on a PoP in Docker mode."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.runner import images
from edgeflow.runner.docker import stop_all
from edgeflow.sdk.client import Client, ReceivedEvent
from edgeflow.settings import PopSettings

PREFIX = "edgeflow-test"
ROUNDS = 3
"""How often one that sleeps is woken; each takes some seconds until it sleeps again."""
pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
HANDLER = "import time\nfrom edgeflow import function\n\n@function\ndef handle(ctx, words):\n    return {'began': time.time()}\n"


@pytest.fixture(scope="module")
def cluster(programs: None, engine: Any, built: Callable[[str], str]) -> Iterator[LocalCluster]:
    """Its processes run on this machine; the folder of its sockets is a volume of the engine."""
    volume = f"{PREFIX}-{secrets.token_hex(4)}"
    settings = {"mode": "docker", "runner": {"image_prefix": PREFIX, "socket_volume": volume}}
    with LocalCluster(["la"], settings=settings) as running:
        known = PopSettings.load(running.home.root / "pops" / "la" / "pop.json")
        options = {"type": "none", "o": "bind", "device": str(known.run_dir)}
        engine.volumes.create(volume, driver_opts=options)
        # The engine mounts a volume for as long as a container has it.
        keeper = engine.containers.create(
            built("function"), entrypoint=["sleep", "infinity"], volumes={volume: {"bind": "/run/ef"}}, network_mode="none", init=True
        )  # fmt: skip
        try:
            keeper.start()
            yield running
        finally:
            stop_all(known.cluster, grace_s=5, client=engine)
            keeper.remove(force=True)
            engine.volumes.get(volume).remove(force=True)


def test_a_container_that_sleeps_is_frozen_and_woken_by_the_first_event(
    cluster: LocalCluster, engine: Any, built: Callable[[str], str], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "Dockerfile").write_text(f"FROM {built('function')}\nCOPY handler.py /function/handler.py\n")
    image = images.build_image(engine, tmp_path, "test/sleeper", prefix=PREFIX)
    fields = f"image: '{image}', subscribe: words, publish: out, scale: {{min: 0, max: 2, idle: 200ms}}"
    (tmp_path / "edgeflow.yaml").write_text(f"namespace: naps\nfunctions:\n  f: {{{fields}}}\n")
    known = PopSettings.load(cluster.home.root / "pops" / "la" / "pop.json")
    labels = [f"edgeflow.cluster={known.cluster}", "edgeflow.function=f"]

    def states() -> list[str]:
        return [one.status for one in engine.containers.list(all=True, ignore_removed=True, filters={"label": labels})]

    access = cluster.pop("la")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120)
    took_ms = []
    with Client(access.api_url, access.token) as client:
        for number in range(ROUNDS):
            wait_until(lambda: states() == ["paused"], "it sleeps", 30)
            sent_s = time.time()
            client.publish("naps/words", "x", subject=str(number))
            for event in client.subscribe("naps/out", from_="start"):
                if isinstance(event, ReceivedEvent) and event.subject == str(number):
                    took_ms.append((json.loads(event.text())["began"] - sent_s) * 1000)
                    break
        took_ms.sort()
        print(
            f"event to handler from a paused container: p50 {took_ms[ROUNDS // 2]:.1f} ms, {[round(one, 1) for one in took_ms]}"
        )
        assert took_ms[ROUNDS // 2] < 1000
        # One that sleeps is asked to leave as any other: it does so by itself, at once.
        wait_until(lambda: states() == ["paused"], "it sleeps", 30)
        (sleeper,) = engine.containers.list(all=True, ignore_removed=True, filters={"label": labels})
        (tmp_path / "edgeflow.yaml").write_text(f"namespace: naps\nfunctions:\n  f: {{{fields}, env: {{A: b}}}}\n")
        asked_s = time.monotonic()
        apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120)
        wait_until(
            lambda: (
                sleeper.id
                not in [
                    one.id for one in engine.containers.list(all=True, ignore_removed=True, filters={"label": labels})
                ]
            ),
            "the old one leaves",
            30,
        )
        assert time.monotonic() - asked_s < 30
