"""Docker mode from outside: `docker compose` for the repository's compose file.

What it is: the compose commands behind `up`, `down`, `logs` and `link` in Docker mode, v2 (`docker compose`) or v1 (`docker-compose`).
What it is not: a driver for function containers; that is the runner's, through the engine's API.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgeflow.host.errors import DockerFailed
from edgeflow.host.layout import Home

ENGINE_S = 10.0
"""How long the engine may take to answer."""


def engine_version() -> str | None:
    """Version of the engine this user can talk to; None when there is none."""
    if shutil.which("docker") is None:
        return None
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def compose_command() -> list[str] | None:
    """`docker compose` or `docker-compose`, whichever there is; None without both."""
    if shutil.which("docker") is not None:
        result = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=ENGINE_S, check=False)
        if result.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") is not None else None


def find_compose_file() -> Path | None:
    """$EDGEFLOW_COMPOSE_FILE, else docker-compose.yml in this folder or in the clone this package runs from."""
    named = os.environ.get("EDGEFLOW_COMPOSE_FILE")
    if named:
        return Path(named).absolute()
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        file = folder / "docker-compose.yml"
        if file.is_file() and "edgeflow.host.provision" in file.read_text(errors="replace"):
            return file
    return None


def available() -> bool:
    """Whether Docker mode can be used here: engine, compose and compose file."""
    return find_compose_file() is not None and engine_version() is not None and compose_command() is not None


def command(home: Home) -> tuple[list[str], dict[str, str]]:
    """The beginning of every compose command and its environment. Raises DockerFailed naming what is missing."""
    file = find_compose_file()
    if file is None:
        raise DockerFailed(
            "There is no docker-compose.yml of edgeflow here.", hint="Run it in a clone, or set EDGEFLOW_COMPOSE_FILE."
        )
    base = compose_command()
    if base is None:
        raise DockerFailed(
            "Neither `docker compose` nor `docker-compose` is installed.", hint="Debian: apt-get install docker-compose"
        )
    environment = {**os.environ, "EDGEFLOW_HOME": str(home.root)}
    return [*base, "-f", str(file), "--project-directory", str(file.parent)], environment


def run(home: Home, arguments: Sequence[str], *, quiet: bool = False) -> str:
    """Run a compose command; its output is shown unless `quiet`. Returns stdout when quiet. Raises DockerFailed."""
    base, environment = command(home)
    result = subprocess.run([*base, *arguments], env=environment, capture_output=quiet, text=True, check=False)
    if result.returncode != 0:
        tail = "\n".join((result.stderr or "").splitlines()[-20:]) if quiet else ""
        raise DockerFailed(f"`{' '.join([*base[:2], *arguments])}` failed (status {result.returncode}). {tail}".strip())
    return result.stdout or ""
