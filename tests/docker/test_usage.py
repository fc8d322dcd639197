"""What `top` and `logs` show of containers: of an instance of one container, of a pair, and of none that is not ours."""

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli import logs
from edgeflow.errors import NotFound
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.layout import Home
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


def test_logs_are_those_of_the_function_at_all_pops(
    settings: PopSettings, run: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    code = "import json, time; print('one'); print(json.dumps({'event': 'seen', 'n': 1}), flush=True); time.sleep(100)"
    for pop in ("t", "u"):
        run(code, instance=f"v.f-{pop}", function="f", namespace="v", pop=pop)
    run(code, instance="v.g-1", function="g", namespace="v")
    access = {pop: PopAccess(pop, "ready", "", tmp_path, "", 1, "", "", tmp_path) for pop in ("t", "u")}
    cluster = Cluster(settings.cluster, "docker", "ready", Home(tmp_path), access)
    told: list[tuple[str, str]] = []

    def shown(function: str, pop: str | None, lines: int) -> list[tuple[str, str]]:
        told.clear()
        logs._docker_logs(cluster, function, pop, None, follow=False, lines=lines, show=lambda *one: told.append(one))
        return sorted(told)

    seen = '{"event": "seen", "n": 1}'
    both = [("t f-t", "one"), ("t f-t", seen), ("u f-u", "one"), ("u f-u", seen)]
    wait_until(lambda: shown("v/f", None, 50) == sorted(both), f"all lines: {told}", 30)
    assert shown("f", "u", 1) == [("u f-u", seen)]
    with pytest.raises(NotFound):
        shown("w/f", None, 1)
    follower = threading.Thread(
        target=logs._docker_logs, args=(cluster, "v/f", None, None), daemon=True,
        kwargs={"follow": True, "lines": 50, "show": lambda *one: told.append(one)},
    )  # fmt: skip
    told.clear()
    follower.start()
    run(code, instance="v.f-late", function="f", namespace="v")
    wait_until(
        lambda: sorted(told) == sorted([*both, ("t f-late", "one"), ("t f-late", seen)]),
        f"one that came late too: {told}",
        30,
    )
