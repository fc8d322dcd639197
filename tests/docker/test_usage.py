"""What the engine says of containers is what `top` shows: of an instance of one container, of a pair, and of none that is not ours."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.runner.docker import DockerDriver
from edgeflow.settings import PopSettings

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def settings(tmp_path: Path) -> PopSettings:
    secret = tmp_path / "secret"
    return PopSettings.model_validate({
        "pop": "t", "cluster": f"edgeflow-usage-{secrets.token_hex(4)}", "mode": "docker", "state_dir": tmp_path, "run_dir": tmp_path / "run",
        "store": {"redis_socket": secret}, "mqtt": {"password_file": secret}, "link": {"port": 1, "ca": secret, "cert": secret, "key": secret},
        "api": {"port": 1, "token_file": secret},
        "public": {"api_url": "", "api_token_file": secret, "mqtt_host": "", "mqtt_port": 1, "mqtt_ws_url": "", "mqtt_password_file": secret},
    })  # fmt: skip


@pytest.fixture
def run(engine: Any, settings: PopSettings, built: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    containers = []

    def start(program: str, **labels: str) -> Any:
        ours = {
            "edgeflow.cluster": settings.cluster,
            "edgeflow.pop": "t",
            **{f"edgeflow.{name}": text for name, text in labels.items()},
        }
        container = engine.containers.run(
            built("function"), ["-c", program], entrypoint="python3", detach=True, network_mode="none", labels=ours
        )
        containers.append(container)
        return container

    yield start
    for container in containers:
        container.remove(force=True)


def test_instances_are_counted_by_the_engine(
    settings: PopSettings, run: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    driver = DockerDriver(settings)
    run("import time\nheld = b'x' * 50_000_000\nwhile True: pass", instance="busy")
    run("import time; time.sleep(100)", instance="pair", role="adapter")
    run("import time; time.sleep(100)", instance="pair", role="program")
    run("pass", instance="ended").wait()
    run("import time; time.sleep(100)", instance="elsewhere", cluster="another", pop="t")
    used = wait_until(
        lambda: (found := driver.usage()).keys() == {"busy", "pair"} and found["busy"].cpu_s > 0.2 and found,
        "all are counted",
        30,
    )
    assert used["busy"].memory_bytes > 50_000_000 and used["busy"].processes == 1
    assert used["pair"].processes == 2 and used["pair"].memory_bytes < 50_000_000
