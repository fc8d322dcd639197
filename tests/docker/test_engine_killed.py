"""SIGKILL for the Docker engine: what runs goes on, what is gone is started again, nothing is lost, no container is left over."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from container_pop import PREFIX, ContainerPop, container_pop
from own_engine import OwnEngine, own_engine

from edgeflow.runner import images
from edgeflow.sdk.client import ReceivedEvent

pytestmark = [pytest.mark.docker, pytest.mark.faults, pytest.mark.timeout(400)]
Wait = Callable[..., Any]
EVENTS = 40
HANDLER = """
import time

from edgeflow import function


@function
def handle(ctx, events):
    time.sleep(0.05)
    return events.data.upper()
"""


@pytest.fixture(scope="module")
def mortal(programs: None, engine: Any) -> Iterator[OwnEngine]:
    """An engine of this test's own, below /var/tmp: /tmp may be in memory, or have no room for images."""
    folder = Path(tempfile.mkdtemp(prefix="efd-", dir="/var/tmp"))
    try:
        with own_engine(folder) as one:
            yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(engine: Any, mortal: OwnEngine, built: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("steady")
    (folder / "handler.py").write_text(HANDLER)
    (folder / "Dockerfile").write_text(f"FROM {built('function')}\nCOPY . /function/\n")
    name = images.build_image(engine, folder, "test/steady", prefix=PREFIX)
    mortal.client.images.load(engine.images.get(name).save(named=name))
    return name


@pytest.fixture(scope="module")
def pop(mortal: OwnEngine, image: str) -> Iterator[ContainerPop]:
    with container_pop(mortal.client, docker_host=mortal.url) as one:
        yield one


def test_a_killed_engine_costs_time_only(pop: ContainerPop, mortal: OwnEngine, image: str, wait_until: Wait) -> None:
    pop.apply("works", {"f": {"image": image, "subscribe": {"channel": "in", "as": "events"}, "publish": "out"}})
    for number in range(EVENTS):
        pop.client.publish("works/in", f"before{number}".encode(), id=f"before{number}")
    mortal.kill()
    wait_until(lambda: "engine is not reachable" in (pop.state("works", "f")["reason"] or ""), "it is said")
    (answer,) = pop.client.invoke("works/f", b"still")
    assert bytes(answer.data) == b"STILL", "its container goes on"
    for number in range(EVENTS):
        pop.client.publish("works/in", f"while{number}".encode(), id=f"while{number}")
    mortal.start()
    for number in range(EVENTS):
        pop.client.publish("works/in", f"after{number}".encode(), id=f"after{number}")
    wanted = {"STILL"} | {
        f"{word}{number}".upper() for word in ("before", "while", "after") for number in range(EVENTS)
    }
    answers: list[str] = []
    for event in pop.client.subscribe("works/out", from_="start", reconnect_s=90.0):
        assert isinstance(event, ReceivedEvent), f"a gap: {event}"
        answers.append(bytes(event.data).decode())
        if len(answers) == len(wanted):
            break
    assert sorted(answers) == sorted(wanted), "each once"
    state = wait_until(lambda: (one := pop.state("works", "f"))["state"] == "ready" and one, "all is well", 60)
    assert "engine" not in (state["reason"] or "") and list(pop.client.dead_letters("works")) == []
    running = [one for one in pop.containers("f") if one.status == "running"]
    assert len(running) == 1 and len(pop.containers("f")) == 1, "no orphans"
