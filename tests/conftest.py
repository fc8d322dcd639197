"""What every test may use: a condition awaited with a deadline, and the outside programs or a word why not.

What must stay true: no test sleeps to wait; a missing engine, broker or store skips a test on a laptop and fails it in CI; on several workers
(scripts/test) what shares a cluster, or the engine's images, is done by one of them.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from needs import missing
from xdist.scheduler import LoadScopeScheduling

# How long an example takes says something about the machine, not about what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).parents[1]
PATIENCE = 2
"""How much longer than a test says it waits before it fails: for slow machines, and for what runs beside it."""


class FileScheduling(LoadScopeScheduling):
    """A file's tests go to one worker; so do all that need the engine, and all that use the one cluster with the video application."""

    def _split_scope(self, nodeid: str) -> str:
        return _share(nodeid.partition("::")[0])


@cache
def _share(file: str) -> str:
    if file.startswith("tests/docker/"):
        return "docker"
    return "video" if re.search(r"\bvideo: Video\b", (ROOT / file).read_text()) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With `--dist loadfile`."""
    return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """`wait_until(condition, what, deadline_s=30)`: polls until `condition()` is true and returns its value."""

    def wait(condition: Callable[[], Any], what: str, deadline_s: float = 30.0, every_s: float = 0.02) -> Any:
        end_s = time.monotonic() + PATIENCE * deadline_s
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end_s:
                pytest.fail(f"not within {PATIENCE * deadline_s:g} s: {what}")
            time.sleep(every_s)

    return wait


@pytest.fixture
def soon_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`apply` believes sooner than usually that a function fails: nothing that these tests apply gets better by itself."""
    monkeypatch.setattr("edgeflow.cli.apply.FAILING_S", 1.0)


@pytest.fixture(scope="session")
def programs() -> None:
    """The real Mosquitto and Redis."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name in ("mosquitto", "redis-server"):
        if shutil.which(name, path=path) is None:
            missing(name, "scripts/setup installs it")


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine; testcontainers works beside it."""
    import docker
    from docker.errors import DockerException

    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException as error:
        missing("a Docker engine", f"scripts/docker-engine installs and starts one ({error})")
        return
    yield client
    client.close()
