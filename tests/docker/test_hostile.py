"""What a hostile function tries from inside its container, on a PoP that works: all of it is refused, and who works beside it notices nothing.

The table of docs/isolation.md is what this probe printed. Negative control: `tests/docker/test_isolation.py::test_the_probe_finds_what_is_there_without_the_hardening`,
and here the same network attempts with `network: egress`, which reach what they may.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest
from container_pop import PREFIX, ContainerPop, container_pop

from edgeflow.core.ids import invocation_id
from edgeflow.runner import egress, images

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).resolve().parent / "probe"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
Wait = Callable[..., Any]

STEADY = """
from edgeflow import function


@function
def handle(ctx, events):
    return events.data
"""


@pytest.fixture(scope="module")
def image(
    engine: Any, built: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], str]:
    """`image(name, handler)`: the base image with that handler.py, and the probe beside it."""

    def build(name: str, handler: str, entrypoint: str = "") -> str:
        folder = tmp_path_factory.mktemp(name)
        (folder / "handler.py").write_text(handler)
        (folder / "hostile.py").write_text((PROBE / "hostile.py").read_text())
        (folder / "Dockerfile").write_text(f"FROM {built('function')}\nCOPY . /function/\n{entrypoint}")
        return images.build_image(engine, folder, f"test/{name}", prefix=PREFIX)

    return build


@pytest.fixture(scope="module")
def pop(programs: None, engine: Any, built: Callable[[str], str]) -> Iterator[ContainerPop]:
    built("function")
    with container_pop(engine) as one:
        yield one


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    """A port that the machine offers on all of its addresses: the outside, as a container with `network: egress` sees it."""
    server = socket.create_server(("0.0.0.0", 0))
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    yield int(server.getsockname()[1])
    server.close()


def _serve(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def gateway_of(engine: Any, network: str) -> str:
    return str(engine.networks.get(network).attrs["IPAM"]["Config"][0]["Gateway"])


def test_all_that_a_hostile_function_tries_is_refused(
    pop: ContainerPop, engine: Any, image: Callable[..., str], outside: int, wait_until: Wait
) -> None:
    steady = image("steady", STEADY)
    pop.apply("victim", {"steady": {"image": steady, "subscribe": {"channel": "in", "as": "events"}, "publish": "out"}})
    client = pop.client
    body = bytes(range(256)) * 2000
    client.put("victim/secret", b"theirs")
    client.put("victim/large", body)
    client.set_secret("victim", "token", b"a-needle")
    receipt = client.publish("victim/in", body, id="v-first")
    assert receipt.class_ == "durable"
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    gateway = gateway_of(engine, "bridge")
    settings = pop.settings
    ports = [outside, settings.api.port, settings.mqtt.port, settings.link.port]
    hostile = image("hostile", STEADY, 'ENTRYPOINT ["python3", "/function/hostile.py"]\n')
    theirs = invocation_id("steady", receipt.origin, receipt.epoch, receipt.seq, 0)
    assert client.invocation("victim", theirs) is not None, "it is one that there is"
    environment = {
        "TARGETS": " ".join(f"{gateway}:{port}" for port in ports), "FOREIGN_DIGEST": digest, "FOREIGN_INVOCATION": theirs,
    }  # fmt: skip
    function = {
        "image": hostile, "subscribe": {"channel": "in", "as": "events"}, "publish": "out", "env": environment,
        "limits": {"outputs": 5, "output_bytes": "256Ki"}, "retry": {"attempts": 20, "backoff": "10ms"},
    }  # fmt: skip
    pop.apply("hostile", {"probe": function}, wait=False)

    reported: list[dict[str, Any]] = []
    done = 0

    def rows() -> bool:
        """The probe's report; meanwhile the victim works."""
        nonlocal done
        done += 1
        client.publish("victim/in", b"on time", id=f"v-{done}")
        client.publish("hostile/in", b"x", id=f"h-{done}")
        for container in pop.containers("probe"):
            try:
                lines = container.logs().decode("utf-8", "replace").splitlines()
            except docker.errors.APIError:
                continue  # it has just been removed
            for line in lines:
                if line.startswith('{"rows"'):
                    reported[:] = json.loads(line)["rows"]
        if not reported:
            state = pop.state("hostile", "probe")
            assert state["state"] != "failing", (state["reason"], state["last_log_lines"])
        return bool(reported)

    wait_until(rows, "the probe has tried everything", deadline_s=120, every_s=0.2)
    print(table(reported))
    assert [row for row in reported if not row["refused"]] == []
    assert len(reported) > 80
    documented = set(
        re.findall(r"^\| \w+ \| (.+?) \| refused", (ROOT / "docs" / "isolation.md").read_text(), re.MULTILINE)
    )
    assert documented == {shown(row) for row in reported}, "docs/isolation.md has the table of this probe"

    wait_until(
        lambda: client.function("victim", "steady")["stats"]["invocations"] >= done + 1,
        "the victim's work is done",
        deadline_s=30,
    )
    assert list(client.dead_letters("victim")) == []
    assert client.ekv.get("victim/secret").data == b"theirs"  # type: ignore[union-attr]
    assert sorted(info.key for info in client.ekv.list("victim/")) == ["victim/large", "victim/secret"]
    assert client.ekv.get("hostile/stolen") is None
    assert client.function("victim", "steady")["stats"]["failed"] == 0


def shown(row: dict[str, Any]) -> str:
    """A row's attempt without what differs from machine to machine."""
    return re.sub(r" \(\d+\)$", "", row["tried"])


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| area | tried | |", "|---|---|---|"]
    seen = set()
    for row in rows:
        line = f"| {row['area']} | {shown(row)} | {'refused' if row['refused'] else 'REACHED'}: {row['said']} |"
        if (row["area"], shown(row)) not in seen:
            seen.add((row["area"], shown(row)))
            lines.append(line)
    return "\n".join(lines)


LISTENER = """
import socket
import threading

from edgeflow import function

server = socket.create_server(("0.0.0.0", 4000))
threading.Thread(target=lambda: [server.accept()[0].close() for _ in iter(int, 1)], daemon=True).start()


@function
def handle(ctx, events):
    host, _, port = events.data.decode().rpartition(":")
    with socket.socket() as one:
        one.settimeout(3)
        try:
            one.connect((host, int(port)))
        except OSError as error:
            return f"refused: {error}"
    return "reached"
"""


def test_egress_leads_outside_and_to_nobody_else(
    pop: ContainerPop, engine: Any, image: Callable[..., str], outside: int, wait_until: Wait
) -> None:
    knocks = image("knocks", LISTENER)
    common = {"image": knocks, "subscribe": {"channel": "in", "as": "events"}, "publish": "out"}
    other = {**common, "subscribe": {"channel": "in2", "as": "events"}}
    pop.apply("open", {"one": {**common, "network": "egress"}, "two": {**other, "network": "egress"}})
    pop.apply("shut", {"one": common})
    network = egress.name(pop.id, "la")
    (two,) = pop.containers("two")
    address = two.attrs["NetworkSettings"]["Networks"][network]["IPAddress"]
    settings, gateway = pop.settings, gateway_of(engine, network)

    def ask(function: str, target: str) -> str:
        (answer,) = pop.client.invoke(function, target.encode())
        return bytes(answer.data).decode()

    assert ask("open/one", f"{gateway}:{outside}") == "reached"
    assert ask("open/two", f"{address}:4000") == "reached", "the other one listens (it reaches itself)"
    assert ask("open/one", f"{address}:4000").startswith("refused"), "containers on the bridge are kept apart"
    for port in (settings.api.port, settings.mqtt.port, settings.link.port):
        assert ask("open/one", f"{gateway}:{port}").startswith("refused")
    assert ask("shut/one", f"{gateway}:{outside}").startswith("refused")
    for name, mode in (("open", network), ("shut", "none")):
        (container,) = [one for one in pop.containers("one") if one.labels["edgeflow.namespace"] == name]
        assert container.attrs["HostConfig"]["NetworkMode"] == mode
        assert container.attrs["HostConfig"]["CapDrop"] == ["ALL"]
    for namespace in ("open", "shut"):
        pop.client.delete_manifest(namespace)
    wait_until(
        lambda: not [one for one in pop.containers() if one.labels["edgeflow.function"] in ("one", "two")],
        "they end",
        deadline_s=40,
    )
    egress.remove(engine, pop.id)
    assert engine.networks.list(names=[network]) == []


def test_limits_and_secrets_are_what_the_engine_was_told(
    pop: ContainerPop, image: Callable[..., str], wait_until: Wait
) -> None:
    handler = (
        "from pathlib import Path\nfrom edgeflow import function\n\n\n@function\ndef handle(ctx, events):\n"
        "    path = Path('/run/secrets/token')\n    return f'{path.read_text()} {path.stat().st_mode & 0o777:o} {sorted(p.name for p in path.parent.iterdir())}'\n"
    )
    pop.client.set_secret("told", "token", b"hunter2")
    pop.client.set_secret("told", "other", b"not-for-it")
    function = {
        "image": image("told", handler), "subscribe": {"channel": "in", "as": "events"}, "publish": "out", "secrets": ["token"],
        "limits": {"pids": 33, "tmpfs": "2Mi", "log": "256Ki", "memory": "96Mi", "cpus": 0.5},
    }  # fmt: skip
    pop.apply("told", {"f": function})
    (container,) = pop.containers("f")
    host = container.attrs["HostConfig"]
    assert (host["PidsLimit"], host["Memory"], host["NanoCpus"]) == (33, 96 << 20, 500_000_000)
    assert "size=2097152" in host["Tmpfs"]["/tmp"]
    assert host["LogConfig"]["Config"] == {"max-size": "131072", "max-file": "2"}
    (answer,) = pop.client.invoke("told/f", b"?")
    text = bytes(answer.data).decode()
    assert text.startswith("hunter2 4") and text.endswith("['token']")
    assert "hunter2" not in json.dumps(container.attrs) and "hunter2" not in container.logs().decode()
    pop.client.set_secret("told", "token", b"hunter3")
    wait_until(
        lambda: bytes(pop.client.invoke("told/f", b"?")[0].data).startswith(b"hunter3"),
        "the new one is used",
        deadline_s=40,
    )


def test_gpus_are_asked_of_the_engine_and_refused_with_a_reason(
    pop: ContainerPop, engine: Any, image: Callable[..., str], wait_until: Wait
) -> None:
    if "nvidia" in (engine.info().get("Runtimes") or {}):
        pytest.skip("this engine has GPUs to give")
    pop.apply(
        "seer",
        {"f": {"image": image("steady", STEADY), "subscribe": {"channel": "in", "as": "events"}, "gpus": 1}},
        wait=False,
    )
    state = wait_until(
        lambda: (found := pop.state("seer", "f"))["state"] == "failing" and found, "it is refused", deadline_s=30
    )
    assert "wants GPUs" in state["reason"] and "engine of PoP la has none" in state["reason"]
    assert pop.containers("f") == [] or all(one.labels["edgeflow.namespace"] != "seer" for one in pop.containers("f"))
    pop.client.delete_manifest("seer")
