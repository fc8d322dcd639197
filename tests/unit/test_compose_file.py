"""What docker-compose.yml promises: loopback only, the Docker socket for control and app only, no rights, the store without a network."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
POPS = ("chicago", "la", "ny")


def published(service: dict[str, Any]) -> list[str]:
    return [str(port) for port in service.get("ports", [])]


def test_ports_are_published_on_loopback_only() -> None:
    exposed = [
        f"{name}: {port}"
        for name, service in SERVICES.items()
        for port in published(service)
        if not port.startswith("127.0.0.1:")
    ]
    assert not exposed
    assert {name for name, service in SERVICES.items() if published(service)} == {
        f"{pop}-{part}" for pop in POPS for part in ("broker", "control")
    }


def test_only_control_and_app_hold_the_docker_socket() -> None:
    holders = {
        name
        for name, service in SERVICES.items()
        if any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    }
    assert holders == {"app", *(f"{pop}-control" for pop in POPS)}


@pytest.mark.parametrize("pop", POPS)
def test_store_has_no_network(pop: str) -> None:
    assert SERVICES[f"{pop}-store"]["network_mode"] == "none"


def test_every_lasting_part_is_hardened_and_restarted() -> None:
    for name, service in SERVICES.items():
        if name in ("init", "function", "app"):
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_a_pop_sees_its_own_volumes_only() -> None:
    for pop in POPS:
        for part in ("broker", "store", "data", "control"):
            volumes = [str(volume) for volume in SERVICES[f"{pop}-{part}"]["volumes"]]
            own = [volume for volume in volumes if volume.startswith(f"{pop}-")]
            assert [volume for volume in volumes if volume not in own and "docker.sock" not in volume] == []
    for pop in POPS:
        assert not any("-config" in volume or "-state" in volume for volume in SERVICES[f"{pop}-broker"]["volumes"])
        assert not any("-config" in volume or "-state" in volume for volume in SERVICES[f"{pop}-store"]["volumes"])


def test_no_feature_of_the_newer_builder() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "--mount" not in dockerfile.replace("(no --mount", "")
    assert "<<EOF" not in dockerfile
    assert "# syntax" not in dockerfile
