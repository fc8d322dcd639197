"""What somebody changes by hand at a real PoP is shown, and put right."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from paho.mqtt.client import Client as MqttClient
from paho.mqtt.enums import CallbackAPIVersion
from typer.testing import CliRunner

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.cli.main import app
from edgeflow.host.local import LocalCluster
from edgeflow.settings import PopSettings

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(240)]
Wait = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(["la"]) as running:
        yield running


@pytest.fixture(scope="module")
def settings(cluster: LocalCluster) -> PopSettings:
    return PopSettings.load(cluster.home.pop_dir("la") / "pop.json")


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Operator]:
    access = cluster.pop("la")
    with Operator(access.api_url, access.token) as one:
        yield one


@pytest.fixture
def store(settings: PopSettings) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(settings.store.redis_socket)) as one:
        yield one


@pytest.fixture(autouse=True)
def application(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "handler.py").write_text(
        "from edgeflow import function\n\n@function\ndef handle(ctx, words):\n    return words.text() + '!'\n"
    )
    (tmp_path / "edgeflow.yaml").write_text(
        "namespace: d\nfunctions:\n  f: {build: ./f, subscribe: words, publish: out}\n"
    )
    access = cluster.pop("la")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token))


def drifted(client: Operator, what: str) -> dict[str, Any] | None:
    items = client._call("GET", "/v1/drift").json()["items"]
    return next((one for one in items if one["what"] == what), None)


def healed(client: Operator, what: str) -> bool:
    one = drifted(client, what)
    return one is not None and one["healed_ms"] is not None


def test_tables_in_the_slot(
    client: Operator, store: redis.Redis, cluster: LocalCluster, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_quota("d", {"events_per_s": 500.0})
    client.set_policies("d", [{"prefix": "m/", "home": "la"}], None)
    table = store.get("ef:{d}:routes")
    wait_until(lambda: store.hget("ef:{d}:quota", "events"), "the quota holds", 30)
    homes = wait_until(lambda: store.hgetall("ef:{d}:homes"), "the home holds", 30)

    def change_and_look() -> bool:
        # What was declared a moment ago may be installed once more: so each is changed until that is noticed.
        if not healed(client, "quota"):
            store.hset("ef:{d}:quota", "events", "1")
        if not healed(client, "homes"):
            store.delete("ef:{d}:homes")
        return all(healed(client, what) for what in ("routes", "quota", "homes"))

    store.set("ef:{d}:routes", b'{"version": "x", "functions": []}')
    wait_until(change_and_look, "all is found", 60, 1.0)
    wait_until(lambda: float(store.hget("ef:{d}:quota", "events") or 0) == 500, "the quota is right again", 60)  # type: ignore[arg-type]
    wait_until(lambda: store.hgetall("ef:{d}:homes") == homes, "the homes are right again", 60)
    assert store.get("ef:{d}:routes") == table
    assert client.invoke("d/f", "a")[0].text() == "a!"
    monkeypatch.setenv("EDGEFLOW_HOME", str(cluster.home.root))
    shown = CliRunner().invoke(app, ["status"])
    assert shown.exit_code == 0 and "drift at la, healed" in shown.stdout, shown.output
    counted = re.search(r'edgeflow_drift_total\{what="routes"\} (\S+)', client._call("GET", "/metrics").text)
    assert counted is not None and float(counted[1]) >= 1
    client.clear_quota("d")


def test_an_instance_that_somebody_kills(client: Operator, settings: PopSettings, wait_until: Wait) -> None:
    (one,) = client.functions("d")
    (instance,) = one["instances"]
    file = settings.state_dir / "instances" / f"{instance['instance']}.json"
    os.killpg(json.loads(file.read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: healed(client, "instance"), "it is noticed", 60)
    wait_until(lambda: [one["state"] for one in client.functions("d")] == ["ready"], "there is another one", 60)
    assert client.functions("d")[0]["instances"][0]["instance"] != instance["instance"]


def test_accounts_of_the_broker(client: Operator, settings: PopSettings, wait_until: Wait) -> None:
    password = settings.mqtt.admin_password_file
    assert password is not None
    answered = threading.Event()
    admin = MqttClient(CallbackAPIVersion.VERSION2, transport="unix")
    admin.username_pw_set(settings.mqtt.admin_username, password.read_text().strip())
    admin.on_message = lambda *_: answered.set()
    admin.on_connect = lambda *_: admin.subscribe("$CONTROL/dynamic-security/v1/response", qos=1)
    admin.on_subscribe = lambda *_: admin.publish(
        "$CONTROL/dynamic-security/v1",
        json.dumps({"commands": [{"command": "deleteClient", "username": "gateway"}, {"command": "deleteRole", "rolename": "operator"}]}),
    )  # fmt: skip
    admin.connect(str(settings.mqtt.socket), 1)
    admin.loop_start()
    try:
        assert answered.wait(30)
    finally:
        admin.disconnect()
        admin.loop_stop()
    wait_until(lambda: healed(client, "account"), "the accounts are there again", 60)
    spaces = lambda: {one["namespace"]: one["gateway"] for one in client.namespaces()}  # noqa: E731
    wait_until(lambda: (spaces()["d"] or {}).get("connected"), "the gateway is back", 60)
