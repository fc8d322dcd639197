"""The compose file as the installed compose command reads it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from needs import missing

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.docker


def commands() -> list[list[str]]:
    """Every compose command of this machine: v1 and v2 may both be there."""
    found = []
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    ):
        found.append(["docker", "compose"])
    if shutil.which("docker-compose"):
        found.append(["docker-compose"])
    return found


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    tried = commands()
    if not tried:
        missing("docker compose", "scripts/docker-engine installs it")
    for command in tried:
        environment = {
            **os.environ,
            "EDGEFLOW_NAME": "check",
            "EDGEFLOW_HOME": str(tmp_path),
            "EDGEFLOW_API_PORT_LA": "9999",
        }
        result = subprocess.run(
            [*command, "-f", str(ROOT / "docker-compose.yml"), "config"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        document: dict[str, Any] = yaml.safe_load(result.stdout)
        assert len(document["services"]) == 3 * 4 + 4
        assert document["volumes"]["la-run"]["name"] == "check-la-run"
        assert "9999" in str(document["services"]["la-control"]["ports"])
        assert "9999" in str(document["services"]["init"]["command"])
