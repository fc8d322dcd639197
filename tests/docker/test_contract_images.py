"""Images of others as functions of a PoP in Docker mode: their own runtimes, nothing of edgeflow in them, started as they are.

The PoP's processes run on this machine, which is the engine's; its function containers are those of Docker mode.
"""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeflow.cli.apply import NotApplied, Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.runner.docker import stop_all
from edgeflow.sdk.client import Client, ReceivedEvent
from edgeflow.settings import PopSettings

APPS = Path(__file__).parents[1] / "contracts"
PREFIX = "edgeflow-test"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@dataclass
class Pop:
    """One PoP, the engine, and what may be done with them."""

    cluster: LocalCluster
    client: Client
    target: Target
    engine: Any
    id: str

    def containers(self, function: str, **labels: str) -> list[Any]:
        wanted = {"cluster": self.id, "function": function, **labels}
        filters = {"label": [f"edgeflow.{name}={value}" for name, value in wanted.items()]}
        # One that is removed meanwhile is not there.
        return list(self.engine.containers.list(all=True, filters=filters, ignore_removed=True))

    def apply(self, folder: Path, namespace: str, functions: dict[str, Any], **more: Any) -> None:
        file = folder / f"{namespace}.yaml"
        file.write_text(yaml.safe_dump({"namespace": namespace, "functions": functions}))
        apply_file(file, self.target, **{"timeout_s": 120, **more})

    def outputs(self, channel: str, wanted: set[str], subject: str) -> dict[str, ReceivedEvent]:
        """The event of each of these functions about `subject`, by the last level of its channel."""
        found: dict[str, ReceivedEvent] = {}
        for event in self.client.subscribe(channel, from_="start"):
            if isinstance(event, ReceivedEvent) and event.subject == subject:
                name = event.channel.rpartition("/")[2]
                assert name not in found, f"{name} answered twice"
                found[name] = event
                if wanted <= set(found):
                    break
        return found


@pytest.fixture(scope="module")
def image(engine: Any, built: Callable[[str], str]) -> Callable[[str], str]:
    """`image("flask")` builds that target of tests/contracts/Dockerfile and returns its tag."""

    def build(target: str) -> str:
        built("base"), built("python"), built("function")
        tag = f"{PREFIX}/contract-{target}"
        index = [
            f"--build-arg={name}={os.environ[name]}"
            for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
            if os.environ.get(name)
        ]
        command = ["docker", "build", "-q", "--target", target, "-t", tag, *index, str(APPS)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{target} does not build:\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        return tag

    return build


@pytest.fixture(scope="module")
def launcher(engine: Any, built: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher as the agent's image has it."""
    folder = tmp_path_factory.mktemp("launcher")
    holder = engine.containers.create(built("launcher"), "true")
    try:
        pieces, _ = holder.get_archive("/opt/launch")
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            member = archive.extractfile("launch")
            assert member is not None
            (folder / "launch").write_bytes(member.read())
    finally:
        holder.remove()
    return folder / "launch"


@pytest.fixture(scope="module")
def pop(programs: None, engine: Any, built: Callable[[str], str], launcher: Path) -> Iterator[Pop]:
    # More functions than a small machine has room for; each does next to nothing.
    settings = {"mode": "docker", "runner": {"image_prefix": PREFIX, "launcher": str(launcher), "cpus": 64}}
    cluster_id = ""
    try:
        with LocalCluster(["la"], settings=settings) as cluster:
            cluster_id = PopSettings.load(cluster.home.root / "pops" / "la" / "pop.json").cluster
            access = cluster.pop("la")
            with Client(access.api_url, access.token) as client:
                yield Pop(cluster, client, Target(access.api_url, access.token), engine, cluster_id)
    finally:
        # Behind the end of the control process, which would start others in their place.
        if cluster_id:
            stop_all(cluster_id, grace_s=5, client=engine)


def foreign() -> dict[str, Any]:
    """The functions of the embedded twin, with images in place of folders and commands, and one more."""
    functions: dict[str, Any] = yaml.safe_load((APPS / "edgeflow.yaml").read_text())["functions"]
    for name, function in functions.items():
        del function["build"], function["command"]
        function["image"] = f"{PREFIX}/contract-{'flask' if name == 'joined' else name}"
    del functions["mqtt"]
    functions["express"] = {
        "contract": "http",
        "image": f"{PREFIX}/contract-express",
        "subscribe": "words",
        "publish": "out/express",
    }
    return functions


def test_images_of_others_are_functions_as_they_are(pop: Pop, image: Callable[[str], str], tmp_path: Path) -> None:
    functions = foreign()
    for name in sorted(set(functions) - {"joined"}):
        image(name)
    pop.apply(tmp_path, "foreign", functions)
    pop.client.publish("foreign/words", "hello", subject="s/1", datacontenttype="text/plain")
    pop.client.publish("foreign/colours", "red", subject="s/1", datacontenttype="text/plain")
    found = pop.outputs("foreign/out/+", set(functions), "s/1")
    assert found["framework"].data == b"HELLO" and found["signature"].data == b"OK"
    assert found["flask"].json() == {"letters": 5, "subject": "s/1"}
    assert found["joined"].json() == {"words": "hello", "colours": "red"}
    assert found["sdk"].json() == {"length": 5} and found["sdk"].type == "com.example.length"
    assert found["watchdog"].data == b"olleh"
    assert found["express"].data == b"s/1: hello"
    assert found["shell"].data == b"HELLO of s/1" and found["shell"].datacontenttype == "text/plain"


@pytest.mark.faults
def test_express_as_npm_installs_it_is_a_function(pop: Pop, image: Callable[[str], str], tmp_path: Path) -> None:
    """Among the long tests for its image: npm is three hundred packages of Debian."""
    if os.environ.get("EDGEFLOW_FAULTS") == "short":
        pytest.skip("the image with npm is built in the long form only")
    function = {"contract": "http", "image": image("express-npm"), "subscribe": "words", "publish": "out/express"}
    pop.apply(tmp_path, "npm", {"express": function})
    pop.client.publish("npm/words", "hello", subject="s/1", datacontenttype="text/plain")
    assert pop.outputs("npm/out/+", {"express"}, "s/1")["express"].data == b"s/1: hello"


def test_stock_mqtt_clients_are_a_function(pop: Pop, image: Callable[[str], str], tmp_path: Path) -> None:
    function = {"contract": "mqtt", "image": image("mqtt"), "subscribe": "plain", "publish": "out/mqtt"}
    # Its channels stand in its script, as in any program of somebody else's.
    pop.apply(tmp_path, "foreign", {**foreign(), "mqtt": function})
    for number in range(3):
        pop.client.publish("foreign/plain", f"line {number}")
    heard = []
    for event in pop.client.subscribe("foreign/out/mqtt", from_="start"):
        assert isinstance(event, ReceivedEvent)
        heard.append(event.data)
        if len(heard) == 3:
            break
    assert heard == [b"heard line 0", b"heard line 1", b"heard line 2"]
    (program,) = pop.containers("mqtt", role="program")
    account = next(one for one in program.attrs["Config"]["Env"] if one.startswith("MQTT_PASSWORD="))
    assert program.attrs["Mounts"] == [] and account == "MQTT_PASSWORD=function", "the account is the adapter's alone"


def test_the_programs_container_has_neither_socket_nor_network(pop: Pop) -> None:
    (adapter,) = pop.containers("flask", role="adapter")
    (program,) = pop.containers("flask", role="program")
    inside = program.attrs["HostConfig"]
    assert program.attrs["Mounts"] == [] and inside["NetworkMode"] == f"container:{adapter.id}"
    assert (
        inside["CapDrop"] == ["ALL"] and inside["ReadonlyRootfs"] and program.attrs["Config"]["User"] == "65534:65534"
    )
    assert not any("SOCKET" in one or "ADAPTER" in one for one in program.attrs["Config"]["Env"])
    assert adapter.attrs["HostConfig"]["NetworkMode"] == "none" and len(adapter.attrs["Mounts"]) == 1
    code, listing = program.exec_run(["ls", "/sys/class/net"])
    assert code == 0 and listing.split() == [b"lo"]


@pytest.mark.parametrize("role", ["program", "adapter"])
def test_half_a_pair_that_is_killed_is_replaced_whole(pop: Pop, wait_until: Callable[..., Any], role: str) -> None:
    (victim,) = pop.containers("watchdog", role=role)
    before = {one.id for one in pop.containers("watchdog")}
    victim.kill()
    pop.client.publish("foreign/words", "again", subject=f"s/{role}", datacontenttype="text/plain")
    assert pop.outputs("foreign/out/+", {"watchdog"}, f"s/{role}")["watchdog"].data == b"niaga"

    def replaced() -> bool:
        now = pop.containers("watchdog")
        return len(now) == 2 and not before & {one.id for one in now} and all(one.status == "running" for one in now)

    wait_until(replaced, "one new pair runs", deadline_s=40)


@pytest.mark.usefixtures("soon_believed")
def test_a_program_that_ends_is_reported_with_its_last_lines(
    pop: Pop, image: Callable[[str], str], tmp_path: Path
) -> None:
    image("flask")
    bad = {
        "contract": "http", "image": f"{PREFIX}/contract-flask", "command": ["sh", "-c", "echo no model file >&2; exit 3"],
        "subscribe": "words",
    }  # fmt: skip
    with pytest.raises(NotApplied) as caught:
        pop.apply(tmp_path, "broken", {"f": bad}, timeout_s=60)
    assert "its program exited with status 3" in caught.value.message and "no model file" in caught.value.message
    pop.apply(tmp_path, "broken", {"f": {**bad, "command": ["python", "app.py"], "publish": "out/f"}})
    pop.client.publish("broken/words", "hi", subject="s/1")
    assert pop.outputs("broken/out/+", {"f"}, "s/1")["f"].json()["letters"] == 2


@pytest.mark.parametrize("role", ["adapter", "program"])
def test_half_a_pair_that_nobody_finished_is_removed(
    pop: Pop, built: Callable[[str], str], wait_until: Callable[..., Any], role: str
) -> None:
    """As a control process leaves it that is killed between the two."""
    labels = {
        "cluster": pop.id, "pop": "la", "namespace": "foreign", "function": "flask", "revision": "none", "instance": f"half-{role}", "role": role,
    }  # fmt: skip
    name = f"edgeflow-la-half-{role}{'-program' if role == 'program' else ''}"
    orphan = pop.engine.containers.create(
        built("function"), entrypoint=["sleep", "600"], name=name, labels={f"edgeflow.{key}": value for key, value in labels.items()}, network_mode="none",
        init=True,
    )  # fmt: skip
    try:
        orphan.start()
        wait_until(lambda: not pop.containers("flask", instance=f"half-{role}"), "it is removed", deadline_s=30)
        assert len(pop.containers("flask")) == 2, "the whole pair goes on"
    finally:
        for left in pop.containers("flask", instance=f"half-{role}"):
            left.remove(force=True)


def test_logs_have_what_the_program_prints(pop: Pop, wait_until: Callable[..., Any]) -> None:
    (program,) = pop.containers("signature", role="program")
    wait_until(lambda: b"heard s/1" in program.logs(), "the program's line is in its log")


def test_nothing_is_left_of_functions_that_are_gone(pop: Pop, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    from edgeflow.cli.apply import PopApi

    with PopApi(pop.target) as api:
        assert api._http.delete("/v1/functions/foreign").status_code == 204
    names = ("express", "flask", "framework", "joined", "sdk", "signature", "watchdog")
    wait_until(lambda: not any(pop.containers(name) for name in names), "all containers leave", 60)
