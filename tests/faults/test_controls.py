"""Negative controls: pipelines that are known to lose or to double, under one kill, before the same eyes (`ledger.exactly_once`)."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import redis
from world import HERE, until

from edgeflow.lab.ledger import exactly_once

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120), pytest.mark.usefixtures("programs")]

ITEMS = 600
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Children:
    """Processes of the test, killed at its end."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def end() -> None:
            child.kill()
            child.wait()

        self._stack.callback(end)
        return child

    def python(self, script: str, *arguments: str) -> "subprocess.Popen[bytes]":
        return self.start(sys.executable, str(HERE / "controls" / script), *arguments)


@pytest.fixture
def children() -> Iterator[Children]:
    with ExitStack() as stack:
        yield Children(stack)


def test_the_checker_sees_what_is_wrong() -> None:
    assert exactly_once(["a", "b"], ["b", "a"]).ok
    lossy = exactly_once(["a", "b", "c"], ["a", "c", "c", "d"])
    assert (lossy.lost, lossy.doubled, lossy.strange, lossy.ok) == (["b"], ["c"], ["d"], False)


def test_a_shared_subscription_loses_with_its_worker(
    children: Children, figure: Callable[[str], None], tmp_path: Path
) -> None:
    port = _free_port()
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nmax_queued_messages 0\n"
    )
    children.start(_program("mosquitto"), "-c", str(conf))
    until(lambda: _listens(port), "the broker")
    seen: list[str] = []
    ready: set[bytes] = set()

    def came(_client: Any, _data: Any, message: Any) -> None:
        if message.topic == "ready":
            ready.add(message.payload)
        else:
            seen.append(message.payload.decode())

    watching = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_message = came
    client.on_subscribe = lambda *_: watching.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.subscribe([("out", 1), ("ready", 1)])
        assert watching.wait(10)
        dying = children.python("share_worker.py", str(port), "w0", str(ITEMS // 10))
        for number in (1, 2):
            children.python("share_worker.py", str(port), f"w{number}")
        until(lambda: len(ready) == 3, "three workers")
        sent = [f"s{number}" for number in range(ITEMS)]
        for name in sent:
            client.publish("in", name, qos=1)
        assert dying.wait(30) < 0
        children.python("share_worker.py", str(port), "w3")  # as a supervisor would
        until(lambda: len(ready) == 4, "the new worker")
        counts = [-1]

        def stands_still() -> bool:
            counts.append(len(seen))
            return counts[-1] == counts[-2]

        until(stands_still, "the pool to be done", 60, every_s=2.0)
    finally:
        client.disconnect()
        client.loop_stop()
    verdict = exactly_once(sent, seen)
    figure(f"control: MQTT $share pool of three workers, one killed and replaced: {verdict}")
    assert verdict.lost


def test_a_stream_without_a_fence_doubles(children: Children, figure: Callable[[str], None], tmp_path: Path) -> None:
    path = str(tmp_path / "r.sock")
    children.start(_program("redis-server"), "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(tmp_path))
    until(lambda: Path(path).exists(), "Redis")
    sent = [f"s{number}" for number in range(ITEMS)]
    with closing(redis.Redis(unix_socket_path=path)) as door:
        door.xgroup_create("in", "workers", mkstream=True)
        for name in sent:
            door.xadd("in", {"name": name})
        first = children.python("stream_worker.py", path, "first", str(ITEMS // 2))
        assert first.wait(60) < 0
        second = children.python("stream_worker.py", path, "second")
        assert second.wait(60) == 0
        seen = [fields[b"name"].decode() for _, fields in door.xrange("out")]
    verdict = exactly_once(sent, seen)
    figure(f"control: XREADGROUP + XACK, one worker killed between effect and ack: {verdict}")
    assert verdict.doubled and not verdict.lost


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    assert found is not None
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
