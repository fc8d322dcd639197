"""Three PoPs in containers, as `docker compose up` starts them, with one function placed at the second of them."""

import contextlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from image_archives import tar
from needs import missing
from test_compose import commands

from edgeflow.cli.admin import Operator
from edgeflow.core.manifest import parse, resolve
from edgeflow.host.discover import find
from edgeflow.lab.books import books_of
from edgeflow.lab.hands import Target, hands_on, overall
from edgeflow.sdk.client import Client, ReceivedEvent

ROOT = Path(__file__).resolve().parents[2]
POPS = ("chicago", "la", "ny")
MANIFEST = """
namespace: mini
functions:
  upper: {build: ./upper, subscribe: words, publish: loud, place: {pops: [la]}}
  quick: {build: ./upper, subscribe: {channel: murmurs, qos: 0, as: words}, publish: shouts, place: {pops: [la]}}
"""
HANDLER = """
from edgeflow import function


@function
def handle(ctx, words):
    return words.data.upper()
"""
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass
class Compose:
    """One project of the compose file with names and ports of its own."""

    command: list[str]
    home: Path
    app: Path
    made: list[str] = field(default_factory=list)
    """Names of images that are removed at the end."""
    name: str = field(default_factory=lambda: f"edgeflow-test-{secrets.token_hex(3)}")

    def __post_init__(self) -> None:
        ports = free_ports(6)
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.name,
            "EDGEFLOW_NAME": self.name,
            "EDGEFLOW_HOME": str(self.home),
            "EDGEFLOW_APP": str(self.app),
            **{f"EDGEFLOW_API_PORT_{pop.upper()}": str(ports[i]) for i, pop in enumerate(POPS)},
            **{f"EDGEFLOW_MQTT_PORT_{pop.upper()}": str(ports[3 + i]) for i, pop in enumerate(POPS)},
        }

    def run(self, *arguments: str, timeout_s: float = 400) -> str:
        command = [*self.command, "-f", str(ROOT / "docker-compose.yml"), "--project-directory", str(ROOT), *arguments]
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert result.returncode == 0, (
            f"{' '.join(arguments)} failed:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        )
        return result.stdout

    def container(self, engine: Any, service: str) -> Any:
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        (container,) = engine.containers.list(all=True, ignore_removed=True, filters={"label": labels})
        return container

    def functions(self, engine: Any, name: str | None = None) -> list[Any]:
        """Containers of all functions, or of one."""
        cluster = json.loads((self.home / "docker" / "cluster.json").read_text())["cluster"]
        labels = [f"edgeflow.cluster={cluster}", *([f"edgeflow.function={name}"] if name else [])]
        return list(engine.containers.list(all=True, ignore_removed=True, filters={"label": labels}))


@pytest.fixture(scope="module")
def compose(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    tried = commands()
    if not tried:
        missing("docker compose", "scripts/docker-engine installs it")
    folder = tmp_path_factory.mktemp("compose")
    (folder / "app" / "upper").mkdir(parents=True)
    (folder / "app" / "edgeflow.yaml").write_text(MANIFEST)
    (folder / "app" / "upper" / "handler.py").write_text(HANDLER)
    (folder / "home").mkdir()
    project = Compose(tried[0], folder / "home", folder / "app")
    try:
        project.run("up", "--build", "--detach", timeout_s=700)
        app = project.container(engine, "app")
        status = app.wait(timeout=180)["StatusCode"]
        assert status == 0, app.logs().decode()[-3000:]
        yield project
    finally:
        project.run("down", "--volumes", "--timeout", "30")
        for name in project.made:
            with contextlib.suppress(docker.errors.ImageNotFound):
                engine.images.remove(name)


def client(compose: Compose, pop: str) -> Client:
    return Client.from_home(pop, home=compose.home)


class Listener:
    """Collects what a PoP's subscribers see on a channel, in a thread."""

    def __init__(self, compose: Compose, pop: str, channel: str) -> None:
        self.events: list[ReceivedEvent] = []
        self._client = client(compose, pop)
        self._channel = channel
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for event in self._client.subscribe(self._channel, from_="start"):
            if isinstance(event, ReceivedEvent):
                self.events.append(event)

    def data(self) -> list[bytes]:
        return [event.data for event in self.events]


def test_an_event_crosses_three_pops(compose: Compose, wait_until: Callable[..., Any]) -> None:
    seen = Listener(compose, "ny", "mini/loud")
    with client(compose, "chicago") as chicago:
        chicago.publish("mini/words", "hello")
    wait_until(lambda: b"HELLO" in seen.data(), "the result arrives at ny", deadline_s=30)
    assert seen.data().count(b"HELLO") == 1


def test_the_command_line_on_the_host_finds_the_cluster(compose: Compose) -> None:
    command = [sys.executable, "-c", "from edgeflow.cli.main import app; app()", "status", "-o", "json"]
    environment = {**os.environ, "EDGEFLOW_HOME": str(compose.home)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["mode"] == "docker"
    pops = {pop["id"]: pop for pop in document["pops"]}
    assert set(pops) == set(POPS)
    assert {pop["state"] for pop in pops.values()} == {"ready"}
    for file in (pops["la"]["api"]["token_file"], pops["la"]["mqtt"]["password_file"]):
        assert Path(file).stat().st_mode & 0o777 == 0o600


def test_secrets_belong_to_the_owner_of_the_clone(compose: Compose) -> None:
    owner = ROOT.stat().st_uid
    assert {path.stat().st_uid for path in (compose.home / "docker").rglob("*")} == {owner}


def test_the_function_container_is_hardened(compose: Compose, engine: Any) -> None:
    (container,) = compose.functions(engine, "upper")
    host = container.attrs["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"] and host["ReadonlyRootfs"] and not host["Privileged"]
    assert container.attrs["Config"]["User"] == "65534:65534"
    (mount,) = container.attrs["Mounts"]
    assert mount["Source"].endswith(f"/i/{container.labels['edgeflow.instance']}")


def test_a_qos_0_function_hears_the_broker_itself(
    compose: Compose, engine: Any, wait_until: Callable[..., Any]
) -> None:
    (container,) = compose.functions(engine, "quick")
    assert container.attrs["HostConfig"]["NetworkMode"] == "none"
    mounts = {mount["Destination"]: mount["Source"] for mount in container.attrs["Mounts"]}
    assert mounts.keys() == {"/run/edgeflow", "/run/edgeflow-broker"}
    assert mounts["/run/edgeflow-broker"].endswith("/f")
    seen = Listener(compose, "ny", "mini/shouts")
    with client(compose, "chicago") as chicago:
        chicago.publish("mini/murmurs", "hush")
    wait_until(lambda: b"HUSH" in seen.data(), "the result arrives at ny", deadline_s=30)
    assert seen.data().count(b"HUSH") == 1


PUSHED = """
namespace: pushed
functions:
  shout: {image: %s, subscribe: words, publish: loud, place: {pops: [la]}}
"""


def test_an_image_that_was_pushed_elsewhere_runs_where_it_is_placed(
    compose: Compose, engine: Any, wait_until: Callable[..., Any]
) -> None:
    """An archive pushed at ny, an engine that has forgotten the image, a function at la: only what the engine lacks is fetched."""
    (container,) = compose.functions(engine, "upper")
    name = f"{compose.name}/upper:1"
    dockerfile = f"FROM {container.attrs['Config']['Image']}\nCOPY Dockerfile /mark\nLABEL mark={compose.name}\n"
    context = io.BytesIO(tar({"Dockerfile": dockerfile.encode()}))
    built, _ = engine.images.build(fileobj=context, custom_context=True, tag=name, rm=True)
    archive = b"".join(built.save(named=True))
    engine.images.remove(name, force=True)
    compose.made.append(f"edgeflow/loaded:{built.id[7:31]}")
    with Operator.from_home("ny", home=compose.home) as ny, Operator.from_home("la", home=compose.home) as la:
        pushed = ny.push_image(lambda: iter([archive]), [], len(archive))
        assert pushed["names"] == [name] and pushed["loaded"] is False and pushed["id"] == built.id
        assert pushed["here"] == pushed["stored"] > 10_000_000
        wait_until(lambda: la.image(built.id), "the image is known at la", deadline_s=20)
        resolved = resolve(parse(PUSHED % name), {}, applied_ms=int(time.time() * 1000))
        applied = la.apply_manifest(resolved)
        assert applied["missing_images"] == []
        wait_until(lambda: is_ready(la, "pushed", "shout"), "the function is ready at la", deadline_s=60)
        there = la.image(built.id) or {}
        assert there["loaded"] is True and there["used_by"] == ["pushed/shout"]
        assert 0 < there["here"] < 0.15 * there["stored"], "the engine had the other layers"
        seen = Listener(compose, "ny", "pushed/loud")
        ny.publish("pushed/words", "from an archive")
        wait_until(lambda: b"FROM AN ARCHIVE" in seen.data(), "the result arrives at ny", deadline_s=30)
        (container,) = compose.functions(engine, "shout")
        assert container.attrs["Image"] == built.id


def is_ready(client: Operator, namespace: str, name: str) -> bool:
    functions = client.functions(namespace)
    return [one["state"] for one in functions if one["function"] == name] == ["ready"]


@pytest.mark.faults
@pytest.mark.parametrize("part", ["data", "store", "broker", "control", "instance"])
def test_a_killed_part_comes_back_and_nothing_is_lost_or_doubled(
    compose: Compose, engine: Any, wait_until: Callable[..., Any], part: str
) -> None:
    words = [f"{part}-{n}" for n in range(30)]
    seen = Listener(compose, "ny", "mini/loud")
    with client(compose, "chicago") as chicago:
        for n, word in enumerate(words):
            chicago.publish("mini/words", word)
            if n == 10:
                victim = (
                    compose.functions(engine, "upper")[0]
                    if part == "instance"
                    else compose.container(engine, f"la-{part}")
                )
                kill(engine, victim)
    wanted = {word.upper().encode() for word in words}
    wait_until(lambda: wanted <= set(seen.data()), f"all results after the {part} of la was killed", deadline_s=60)
    time.sleep(0.5)  # a doubled result would come right behind
    ours = [data for data in seen.data() if data in wanted]
    assert len(ours) == len(wanted)


@pytest.mark.faults
def test_the_lab_hurts_and_heals_containers_and_reads_their_stores(
    compose: Compose, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in compose.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EDGEFLOW_COMPOSE_FILE", str(ROOT / "docker-compose.yml"))
    hands = hands_on(find(compose.home))
    hands.partition(hands.split("ny", one_way=True))
    hands.wan([("chicago", "la")], delay_ms=5, kbit_s=50_000)
    links, carried = hands.links()
    cut = {
        (origin, to) for link in links for origin, to in ((link.a, link.b), (link.b, link.a)) if link.line(origin).cut
    }
    assert cut == {("ny", "chicago"), ("ny", "la")} and sum(carried.values()) > 0
    hands.heal(all=True)
    assert not any(
        link.line(pop).cut or link.line(pop).delay_ms for link in hands.links()[0] for pop in (link.a, link.b)
    )
    hands.pause(Target("la"))
    assert overall(hands.parts("la")) == "paused" and hands.parts("la")["instances"] == "paused"
    hands.resume("la")
    assert overall(hands.parts("la")) == "runs"
    hands.kill(Target("la"), stay_down=True)
    assert overall(hands.parts("la")) == "down"
    hands.resume("la")
    hands.kill(Target("la", "data"))
    wait_until(lambda: overall(hands.parts("la")) == "runs", "la runs again", deadline_s=60)
    seen = Listener(compose, "ny", "mini/loud")
    with client(compose, "chicago") as chicago:
        chicago.publish("mini/words", "after the lab")
    wait_until(lambda: b"AFTER THE LAB" in seen.data(), "the result arrives at ny", deadline_s=120)
    books = books_of(find(compose.home))
    wait_until(lambda: not books.waiting("la", "mini"), "nothing is under way at la", deadline_s=60)
    wait_until(lambda: books.read("la", "mini").logs == books.read("ny", "mini").logs, "the same logs", deadline_s=60)
    assert books.read("la", "mini").problems(None) == []


def kill(engine: Any, container: Any) -> None:
    """kill -9 from outside: `docker kill` would count as stopped by hand, and the restart policy would leave it stopped."""
    container.reload()
    top = container.top()
    pids = [row[top["Titles"].index("PID")] for row in top["Processes"]]
    engine.containers.run(
        "edgeflow/store",
        ["sh", "-c", f"kill -9 {' '.join(pids)}"],
        remove=True,
        pid_mode="host",
        user="0:0",
        network_mode="none",
    )


def test_down_leaves_nothing_behind(compose: Compose, engine: Any) -> None:
    assert compose.functions(engine)
    compose.run("down", "--volumes", "--timeout", "30")
    assert compose.functions(engine) == []
    assert (
        engine.containers.list(
            all=True, ignore_removed=True, filters={"label": f"com.docker.compose.project={compose.name}"}
        )
        == []
    )
    assert [volume.name for volume in engine.volumes.list() if volume.name.startswith(compose.name)] == []
