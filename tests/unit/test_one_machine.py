"""deploy/host: what one PoP on a machine of its own is started with fits what is there."""

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from edgeflow.cli.main import app
from edgeflow.host import lifecycle
from edgeflow.host.errors import AlreadyRunning, DockerFailed
from edgeflow.host.layout import Home, plan
from edgeflow.host.ports import API_PORT, MQTT_PORT
from edgeflow.host.supervisor import HomeLock

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "host" / "edgeflow.service"
PROXY = ROOT / "deploy" / "host" / "haproxy.cfg"


def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    return unit["Service"]


def test_the_unit_starts_a_command_that_there_is() -> None:
    program, *arguments = shlex.split(service()["ExecStart"])
    assert Path(program).name == "edgeflow"
    command = typer.main.get_command(app)
    name, options = arguments[0], arguments[1:]
    up = command.get_command(None, name)  # type: ignore[attr-defined]
    context = up.make_context(name, list(options))
    assert (context.params["mode"], context.params["detach"]) == ("embedded", False), "the supervisor is the service"


def test_the_unit_lets_the_supervisor_end_in_order() -> None:
    assert service()["KillMode"] == "mixed", "a signal to all at once would end Redis before the data process"
    assert float(service()["TimeoutStopSec"]) > lifecycle.STOP_S


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    program = tmp_path / "edgeflow"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/edgeflow/.venv/bin/edgeflow", str(program)))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    said = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert (verified.returncode, said) == (0, []), verified.stderr


def test_the_proxy_leads_to_the_ports_of_a_first_pop() -> None:
    servers = [line.split()[2] for line in PROXY.read_text().splitlines() if line.strip().startswith("server ")]
    assert servers == [f"127.0.0.1:{API_PORT}", f"127.0.0.1:{MQTT_PORT}"]


def test_an_address_is_for_embedded_mode() -> None:
    assert lifecycle.choose_mode("auto", None, "192.0.2.1") == "embedded"
    with pytest.raises(DockerFailed, match="embedded"):
        lifecycle.choose_mode("docker", None, "192.0.2.1")


def test_a_running_cluster_keeps_its_address(tmp_path: Path) -> None:
    home = Home(tmp_path)
    identity, _ = plan(home, ("a",), any_ports=True, host="192.0.2.1")
    lock = HomeLock.take(home)
    try:
        home.cluster_file.write_text('{"cluster": "c", "mode": "embedded", "state": "ready", "pops": {}}')
        with pytest.raises(AlreadyRunning, match=r"192\.0\.2\.1"):
            lifecycle.up(home=tmp_path, host="192.0.2.2")
    finally:
        lock.release()
        identity.run_root.rmdir()
