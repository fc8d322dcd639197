"""A function container reaches its own socket and nothing else; the same probe without the hardening reaches all of it (negative control)."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.types
import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from edgeflow.runner import images, secret_files
from edgeflow.runner.docker import DockerDriver
from edgeflow.runner.driver import CannotStart, Prepared, StartSpec
from edgeflow.runner.venvs import BuildFailed
from edgeflow.settings import (
    ApiSettings,
    LinkSettings,
    MqttSettings,
    PopSettings,
    PublicSettings,
    RunnerSettings,
    StoreSettings,
)

PROBE = Path(__file__).resolve().parent / "probe"
RUN = "/run/ef/t"
TCP_PORT = 7999
pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@dataclass
class Pop:
    """A PoP as instances see it: a volume with the sockets of Redis, of the broker's stand-in and of two instances, and a TCP port."""

    settings: PopSettings
    volume: str
    address: str


def pop_settings(folder: Path, volume: str) -> PopSettings:
    secret = folder / "secret"
    return PopSettings(
        pop="t",
        cluster=f"c-{secrets.token_hex(4)}",
        mode="docker",
        state_dir=folder,
        run_dir=Path(RUN),
        store=StoreSettings(redis_socket=Path(RUN) / "r.sock"),
        mqtt=MqttSettings(password_file=secret, function_socket=Path(RUN) / "f" / "s"),
        link=LinkSettings(port=1, ca=secret, cert=secret, key=secret),
        api=ApiSettings(port=1, token_file=secret),
        public=PublicSettings(
            api_url="", api_token_file=secret, mqtt_host="", mqtt_port=1, mqtt_ws_url="", mqtt_password_file=secret
        ),
        runner=RunnerSettings(image_prefix="edgeflow-test", socket_volume=volume),
    )


@contextmanager
def running(container: DockerContainer) -> Iterator[DockerContainer]:
    """The started container; removed at the end, and its client's sockets closed, which testcontainers leaves open."""
    try:
        with container:
            yield container
    finally:
        container.get_docker_client().client.close()


@pytest.fixture(scope="module")
def pop(engine: Any, built: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pop]:
    volume = f"edgeflow-test-{secrets.token_hex(4)}"
    engine.volumes.create(volume)
    store = DockerContainer(
        built("store"),
        command=f"redis-server --port 0 --unixsocket {RUN}/r.sock --unixsocketperm 777 --save ''",
        volumes=[(volume, RUN, "rw")],
        user="0:0",
        network_mode="none",
    ).waiting_for(LogMessageWaitStrategy("Ready to accept connections"))
    listeners = DockerContainer(
        built("function"),
        command=f"/probe/listeners.py {RUN}/m.sock {RUN}/f/s {RUN}/i/own/s {RUN}/i/other/s {TCP_PORT}",
        volumes=[(volume, RUN, "rw"), (str(PROBE), "/probe", "ro")],
        user="0:0",
        entrypoint="python3",
    ).waiting_for(LogMessageWaitStrategy("listening"))
    try:
        with running(store), running(listeners):
            wrapped = listeners.get_wrapped_container()
            wrapped.reload()
            (network,) = wrapped.attrs["NetworkSettings"]["Networks"].values()
            yield Pop(pop_settings(tmp_path_factory.mktemp("pop"), volume), volume, network["IPAddress"])
    finally:
        engine.volumes.get(volume).remove(force=True)


@pytest.fixture(scope="module")
def probe_image(engine: Any, built: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text((PROBE / "probe.py").read_text())
    (folder / "Dockerfile").write_text(
        f'FROM {built("function")}\nCOPY probe.py /function/probe.py\nENTRYPOINT ["python3", "/function/probe.py"]\n'
    )
    return images.build_image(engine, folder, "test/probe", prefix="edgeflow-test")


def targets(engine: Any, pop: Pop) -> list[str]:
    """Where the probe knocks: the PoP's own address, and the machine as containers see it (its gateway), on our port and on the engine's."""
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    return [f"{pop.address}:{TCP_PORT}", f"{gateway}:{TCP_PORT}", f"{gateway}:2375", f"{gateway}:22"]


def start(
    driver: DockerDriver, image: str, instance: str, memory_bytes: int = 128 << 20, *, direct: bool = False
) -> None:
    driver.start(
        StartSpec(
            "test",
            "probe",
            "r1",
            instance,
            Path(RUN) / "i" / instance / "s",
            Prepared(image=image),
            memory_bytes=memory_bytes,
            direct=direct,
        )
    )


def probed(driver: DockerDriver, image: str, wait_until: Callable[..., Any], direct: bool = False) -> dict[str, Any]:
    """What the probe found in a container that the driver started."""
    start(driver, image, "own", direct=direct)
    try:
        assert wait_until(lambda: ended(driver, "own"), "the probe ends", deadline_s=90) == "exited with status 0", (
            driver.tail("own", 20)
        )
        report: dict[str, Any] = json.loads(driver.tail("own", 1)[0])
        return report
    finally:
        driver.remove("own")


def ended(driver: DockerDriver, instance: str) -> str | None:
    return next((seen.ended or "" for seen in driver.observe() if seen.instance == instance and not seen.running), None)


def test_a_function_container_reaches_its_own_socket_only(
    engine: Any, pop: Pop, probe_image: str, wait_until: Callable[..., Any]
) -> None:
    class Probing(DockerDriver):
        """The driver's own options; only the probe's arguments are added."""

        def _options(self, spec: StartSpec) -> dict[str, Any]:
            return {**super()._options(spec), "command": targets(engine, pop)}

    report = probed(Probing(pop.settings, engine), probe_image, wait_until)
    assert report["own_socket"], "it must reach its own socket"
    assert report["sockets_seen"] == ["/run/edgeflow/s"]
    assert report["sockets_reached"] == []
    assert report["targets_reached"] == []
    assert report["names_resolved"] == []
    assert report["interfaces"] == ["lo"]
    assert report["uid"] == report["gid"] == 65534
    assert set(report["groups"]) <= {65534}
    assert report["capabilities"] == 0
    assert report["no_new_privileges"]
    assert report["writable"] == ["/tmp/x"]
    assert report["children"] < 256


def test_a_qos_0_container_reaches_the_brokers_socket_for_functions_too(
    engine: Any, pop: Pop, probe_image: str, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    class Probing(DockerDriver):
        """The driver's own options; the folder whose group counts is here, since the PoP's is inside the volume."""

        def _broker_folder(self) -> Path:
            folder = tmp_path / super()._broker_folder().name
            folder.mkdir(exist_ok=True)
            os.chown(folder, -1, 10_001)
            return folder

        def _options(self, spec: StartSpec) -> dict[str, Any]:
            return {**super()._options(spec), "command": targets(engine, pop)}

    report = probed(Probing(pop.settings, engine), probe_image, wait_until, direct=True)
    assert sorted(report["sockets_seen"]) == ["/run/edgeflow-broker/s", "/run/edgeflow/s"]
    assert report["sockets_reached"] == ["/run/edgeflow-broker/s"] and report["own_socket"]
    assert report["targets_reached"] == [] and report["interfaces"] == ["lo"]
    assert set(report["groups"]) <= {65534, 10_001}
    assert report["writable"] == ["/tmp/x"]


def test_the_probe_finds_what_is_there_without_the_hardening(engine: Any, pop: Pop, probe_image: str) -> None:
    probe = DockerContainer(
        probe_image,
        command=" ".join(targets(engine, pop)[:1]),
        env={"EDGEFLOW_SOCKET": f"{RUN}/i/own/s"},
        volumes=[(pop.volume, RUN, "rw"), ("/var/run/docker.sock", "/var/run/docker.sock", "rw")],
        user="0:0",
    )
    with running(probe) as container:
        wrapped = container.get_wrapped_container()
        assert wrapped.wait(timeout=90)["StatusCode"] == 0
        report = json.loads(wrapped.logs().decode().splitlines()[-1])
    reached = {
        path.replace("/run/docker.sock", "/var/run/docker.sock") if path == "/run/docker.sock" else path
        for path in report["sockets_reached"]
    }
    assert {f"{RUN}/r.sock", f"{RUN}/m.sock", f"{RUN}/i/other/s", "/var/run/docker.sock"} <= reached
    assert report["targets_reached"] == [f"{pop.address}:{TCP_PORT}"]
    assert report["interfaces"] != ["lo"]
    assert report["capabilities"] != 0
    assert "/etc/x" in report["writable"]


def test_an_image_that_is_nowhere_is_named(engine: Any, pop: Pop) -> None:
    with pytest.raises(BuildFailed, match="edgeflow-test/there-is-none"):
        images.need_image(engine, "edgeflow-test/there-is-none:1")
    driver = DockerDriver(pop.settings, engine)
    with pytest.raises(CannotStart, match="edgeflow-test/there-is-none"):
        start(driver, "edgeflow-test/there-is-none:1", "own")


def test_an_image_that_does_not_start_says_why(
    engine: Any, pop: Pop, built: Callable[[str], str], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    driver = DockerDriver(pop.settings, engine)
    (tmp_path / "Dockerfile").write_text(f'FROM {built("function")}\nENTRYPOINT ["/no/such/program"]\n')
    start(driver, images.build_image(engine, tmp_path, "test/no-program", prefix="edgeflow-test"), "own")
    try:
        assert wait_until(lambda: ended(driver, "own"), "it ends", deadline_s=30) == "exited with status 127"
        assert "/no/such/program" in driver.tail("own", 5)[-1]
    finally:
        driver.remove("own")

    (tmp_path / "Dockerfile").write_text(
        f'FROM {built("function")}\nENTRYPOINT ["sh", "-c", "echo model file is missing >&2; exit 3"]\n'
    )
    start(driver, images.build_image(engine, tmp_path, "test/exits", prefix="edgeflow-test"), "own")
    try:
        assert wait_until(lambda: ended(driver, "own"), "it ends", deadline_s=30) == "exited with status 3"
        assert driver.tail("own", 5) == ["model file is missing"]
    finally:
        driver.remove("own")
    assert driver.observe() == []


def test_a_container_that_takes_too_much_memory_is_ended_and_says_so(
    engine: Any, pop: Pop, built: Callable[[str], str], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    driver = DockerDriver(pop.settings, engine)
    (tmp_path / "Dockerfile").write_text(
        f'FROM {built("function")}\nENTRYPOINT ["python3", "-c", "bytearray(512 << 20)"]\n'
    )
    start(
        driver,
        images.build_image(engine, tmp_path, "test/greedy", prefix="edgeflow-test"),
        "own",
        memory_bytes=64 << 20,
    )
    try:
        assert "out of memory" in wait_until(lambda: ended(driver, "own"), "it ends", deadline_s=30)
    finally:
        driver.remove("own")


def test_a_folder_with_wrong_requirements_shows_the_last_lines(
    engine: Any, built: Callable[[str], str], tmp_path: Path
) -> None:
    built("function")
    (tmp_path / "handler.py").write_text("")
    (tmp_path / "requirements.txt").write_text("this is not a requirement\n")
    with pytest.raises(BuildFailed) as failed:
        images.build_image(engine, tmp_path, "test/wrong", prefix="edgeflow-test")
    assert "test-wrong" in str(failed.value)
    assert any("requirement" in line.lower() for line in failed.value.last_lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another account first")
def test_secrets_written_by_an_agent_that_is_not_root_are_read_by_their_group(
    engine: Any, built: Callable[[str], str], tmp_path: Path
) -> None:
    """As in the compose file, where the control process is uid 10001 and may give files to nobody else."""
    tmp_path.chmod(0o755)
    home = tmp_path / "i"
    home.mkdir()
    os.chown(home, 10_001, 10_001)
    for parent in home.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    folder = home / secret_files.FOLDER
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(10_001)
        os.setuid(10_001)
        try:
            secret_files.write(folder, {"token": b"hunter2"}, reader=65534)
        finally:
            os._exit(0 if (folder / "token").exists() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (folder / "token").stat().st_mode & 0o777 == 0o440 and folder.stat().st_mode & 0o777 == 0o750

    def read(groups: list[int]) -> str:
        mount = docker.types.Mount("/run/secrets", str(folder), type="bind", read_only=True)
        command = ["sh", "-c", "cat /run/secrets/token 2>/dev/null || echo refused"]
        output = engine.containers.run(
            built("function"), command, entrypoint="", user="65534:65534", group_add=groups, mounts=[mount], cap_drop=["ALL"],
            network_mode="none", remove=True,
        )  # fmt: skip
        return str(output.decode().strip())

    assert secret_files.groups(folder, 65534) == [10_001]
    assert read([10_001]) == "hunter2"
    assert read([]) == "refused"
