"""Functions in containers that do not do as they should, an engine that is slow or gone, a control process that dies: a true status, no work lost, no orphans."""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from container_pop import PREFIX, ContainerPop, container_pop
from engine_proxy import EngineProxy

from edgeflow.runner import images

pytestmark = [pytest.mark.docker, pytest.mark.faults, pytest.mark.timeout(300)]
Wait = Callable[..., Any]

HANDLER = """
import os
import signal
import sys
import time

from edgeflow import function

MODE = os.environ.get("MODE", "")
if MODE == "exits":
    print("the model file is missing", file=sys.stderr, flush=True)
    os._exit(3)
if MODE == "silent":
    print("still loading", flush=True)
    time.sleep(10_000)


def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.05)


@function
def handle(ctx, events):
    data = events.data
    if MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if data == b"memory":
        print("about to take all there is", flush=True)
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1) * (8 << 20)))
    if data == b"forks":
        while True:
            if os.fork() == 0:
                bomb()
    if data == b"disk":
        with open("/tmp/full", "wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
    if data == b"talks":
        for number in range(20_000):
            print("x" * 500, flush=False)
    if data == b"hangs":
        time.sleep(10_000)
    return data.upper()
"""


@pytest.fixture(scope="module")
def proxy() -> Iterator[EngineProxy]:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:
        one = EngineProxy(Path(folder) / "d.sock")
        yield one
        one.close()


@pytest.fixture(scope="module")
def image(engine: Any, built: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "handler.py").write_text(HANDLER)
    (folder / "Dockerfile").write_text(f"FROM {built('function')}\nCOPY . /function/\n")
    return images.build_image(engine, folder, "test/odd", prefix=PREFIX)


@pytest.fixture(scope="module")
def pop(programs: None, engine: Any, image: str, proxy: EngineProxy) -> Iterator[ContainerPop]:
    with container_pop(engine, docker_host=proxy.url, start_deadline_s=8) as one:
        yield one


def odd(image: str, mode: str = "", **more: Any) -> dict[str, Any]:
    return {
        "image": image, "subscribe": {"channel": "in", "as": "events"}, "publish": "out", "env": {"MODE": mode},
        "retry": {"attempts": 2, "backoff": "50ms", "timeout": "20s"}, "limits": {"memory": "128Mi", "tmpfs": "4Mi", "pids": 40, "cpus": 0.5},
        **more,
    }  # fmt: skip


def failing(pop: ContainerPop, namespace: str, word: str) -> Callable[[], Any]:
    def look() -> Any:
        state = pop.state(namespace, "f")
        return state if word in (state["reason"] or "") else None

    return look


def letter(pop: ContainerPop, namespace: str) -> dict[str, Any] | None:
    return next(iter(pop.client.dead_letters(namespace)), None)


def gone(pop: ContainerPop, namespace: str) -> bool:
    return all(one.labels["edgeflow.namespace"] != namespace for one in pop.containers())


@pytest.mark.parametrize(
    ("mode", "reason", "line"),
    [
        ("exits", "exited with status 3", "the model file is missing"),
        ("silent", "did not become ready within 8 s", "still loading"),
    ],
)
def test_an_image_that_does_not_come_up_says_why(
    pop: ContainerPop, image: str, wait_until: Wait, mode: str, reason: str, line: str
) -> None:
    pop.client.publish(f"{mode}/in", b"early")
    pop.apply(mode, {"f": odd(image, mode)}, wait=False)
    state = wait_until(failing(pop, mode, reason), "it is said", deadline_s=60)
    assert state["state"] in ("failing", "rolled-back") and any(line in one for one in state["last_log_lines"])
    if mode == "exits":
        state = wait_until(failing(pop, mode, "times in a row"), "a loop is said to be one", deadline_s=60)
    pop.client.delete_manifest(mode)
    wait_until(lambda: gone(pop, mode), "nothing is left of it", deadline_s=60)


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"memory", "instance-crashed", ""),
        (b"forks", "handler-failed", "limits: {pids: ...}"),
        (b"disk", "handler-failed", "limits: {tmpfs: ...}"),
    ],
)
def test_what_takes_all_there_is_costs_itself_only(
    pop: ContainerPop, image: str, wait_until: Wait, data: bytes, reason: str, said: str
) -> None:
    name = data.decode()
    pop.apply(name, {"f": odd(image)})
    pop.apply("beside", {"f": odd(image)})
    pop.client.publish(f"{name}/in", data)
    found = wait_until(lambda: letter(pop, name), "it is given up", deadline_s=60)
    assert found["reason"] == reason and said in found["detail"]
    if data == b"memory":
        state = wait_until(failing(pop, name, "ran out of memory"), "it is said", deadline_s=20)
        assert any("about to take all there is" in line for line in state["last_log_lines"])
    (answer,) = pop.client.invoke("beside/f", b"well")
    assert bytes(answer.data) == b"WELL"
    (answer,) = pop.client.invoke(f"{name}/f", b"again", timeout_s=60)
    assert bytes(answer.data) == b"AGAIN", "it goes on with what is no trouble"
    failure = wait_until(
        lambda: (pop.state(name, "f")["stats"] or {}).get("last_failure"), "it is shown", deadline_s=10
    )
    assert failure["reason"] == reason
    for one in (name, "beside"):
        pop.client.delete_manifest(one)
    wait_until(lambda: gone(pop, name) and gone(pop, "beside"), "nothing is left of it", deadline_s=60)


def test_a_handler_that_hangs_and_one_that_talks_without_end(pop: ContainerPop, image: str, wait_until: Wait) -> None:
    pop.apply("hangs", {"f": odd(image, retry={"attempts": 1, "timeout": "1s"}, limits={"log": "64Ki"})})
    pop.client.publish("hangs/in", b"hangs")
    found = wait_until(lambda: letter(pop, "hangs"), "it is given up", deadline_s=30)
    assert found["reason"] == "timeout"
    assert pop.client.invoke("hangs/f", b"talks", timeout_s=60)
    (container,) = [one for one in pop.containers("f") if one.status == "running"]
    assert 0 < len(container.logs()) <= 70 * 1024, "the engine keeps the end of it"
    pop.client.delete_manifest("hangs")
    wait_until(lambda: gone(pop, "hangs"), "nothing is left of it", deadline_s=60)


def test_work_goes_on_while_the_engine_is_gone_or_slow_and_it_is_said(
    pop: ContainerPop, proxy: EngineProxy, image: str, wait_until: Wait
) -> None:
    pop.apply("works", {"f": odd(image)})
    (before,) = pop.containers("f")
    proxy.cut()
    try:
        state = wait_until(failing(pop, "works", "engine is not reachable"), "it is said", deadline_s=30)
        assert pop.client.pops()[0]["state"] == "degraded" and "engine" in pop.client.pops()[0]["reason"]
        for number in range(20):
            (answer,) = pop.client.invoke("works/f", f"n{number}".encode())
            assert bytes(answer.data) == f"N{number}".encode()
        before.kill()
        pop.client.publish("works/in", b"later", id="later")
    finally:
        proxy.heal()
    (answer,) = pop.client.invoke("works/f", b"after", timeout_s=60)
    assert bytes(answer.data) == b"AFTER", "an instance that died meanwhile is replaced"
    proxy.delay_s = 0.5
    try:
        (slow,) = [one for one in pop.containers("f") if one.status == "running"]
        slow.kill()
        (answer,) = pop.client.invoke("works/f", b"slow", timeout_s=120)
        assert bytes(answer.data) == b"SLOW"
    finally:
        proxy.delay_s = 0.0
    state = wait_until(
        lambda: (one := pop.state("works", "f"))["state"] == "ready" and one, "all is well", deadline_s=30
    )
    assert "engine" not in (state["reason"] or "") and list(pop.client.dead_letters("works")) == []
    wait_until(lambda: pop.state("works", "f")["inbox"] == {**pop.state("works", "f")["inbox"], "ready": 0, "claimed": 0, "delayed": 0}, "nothing waits")  # fmt: skip
    assert len(pop.containers("f")) == 1, "no orphans"


def test_a_control_process_that_dies_is_not_missed_and_finds_its_containers_again(
    pop: ContainerPop, image: str, wait_until: Wait
) -> None:
    pop.apply("works", {"f": odd(image)})
    (before,) = pop.containers("f")
    old = pop.cluster.kill("la", "control", signal.SIGKILL)
    pop.cluster.wait_restarted("la", "control", old)
    (answer,) = pop.client.invoke("works/f", b"still", timeout_s=60)
    assert bytes(answer.data) == b"STILL"
    wait_until(lambda: pop.state("works", "f")["state"] == "ready", "it is ready", deadline_s=30)
    assert [one.id for one in pop.containers("f")] == [before.id], "adopted, not started again"


def test_one_that_does_not_hear_is_ended_and_nothing_is_left(pop: ContainerPop, image: str, wait_until: Wait) -> None:
    """Last, since it takes its 35 s: SIGTERM is ignored from the first event on."""
    pop.apply("deaf", {"f": odd(image, "deaf")})
    assert pop.client.invoke("deaf/f", b"x")
    asked_s = time.monotonic()
    for namespace in ("deaf", "works"):
        pop.client.delete_manifest(namespace)
    wait_until(lambda: gone(pop, "works"), "the one that hears leaves", deadline_s=20)
    wait_until(lambda: pop.containers() == [], "no orphans", deadline_s=60)
    assert time.monotonic() - asked_s > 30, "it was given its time"
