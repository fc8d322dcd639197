"""The broker's and the store's configuration with the real programs: who gets in, who may do what, where they listen."""

import contextlib
import json
import os
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from edgeflow.host import brokerconf, programs, storeconf
from edgeflow.host.ports import any_free

pytestmark = pytest.mark.usefixtures("programs")
PASSWORDS = {"admin": "a" * 40, "gateway": "g" * 40, "operator": "o" * 40}


@contextlib.contextmanager
def running(argv, socket_file, wait_until, log_file):
    with log_file.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, umask=0o077)  # as the supervisor does
    try:
        wait_until(lambda: connects(socket_file), f"{argv[0]} listens:\n{log_file.read_text()}")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def connects(socket_file):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket_file))
        except OSError:
            return False
    return True


@pytest.fixture
def broker(tmp_path, wait_until):
    """Port of a running broker."""
    port = any_free()
    params = brokerconf.BrokerParams(
        bind="127.0.0.1",
        port=port,
        socket=tmp_path / "m.sock",
        function_socket=tmp_path / "f.sock",
        dynsec_file=tmp_path / "dynsec.json",
        plugin=programs.find_plugin(),
        user="root" if os.geteuid() == 0 else None,
    )
    (tmp_path / "mosquitto.conf").write_text(brokerconf.mosquitto_conf(params))
    params.dynsec_file.write_text(brokerconf.dynsec(PASSWORDS))
    params.dynsec_file.chmod(0o600)
    argv = [str(programs.require("mosquitto")), "-c", str(tmp_path / "mosquitto.conf")]
    with running(argv, params.socket, wait_until, tmp_path / "log"):
        yield port


class Session:
    """An MQTT 5 client that remembers reason codes and messages."""

    def __init__(self, port, account, password):
        import paho.mqtt.client as mqtt

        self.messages = []
        self.connected = None
        self.reasons = {}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        if account is not None:
            self.client.username_pw_set(account, password)
        self.client.on_connect = lambda *arguments: setattr(self, "connected", arguments[3])
        self.client.on_message = lambda _c, _u, message: self.messages.append((message.topic, message.payload))
        self.client.on_subscribe = lambda _c, _u, mid, codes, _p: self.reasons.__setitem__(mid, codes[0].value)
        self.client.on_publish = lambda _c, _u, mid, code, _p: self.reasons.__setitem__(mid, code.value)
        self.client.connect("127.0.0.1", port)
        self._wait(lambda: self.connected is not None)

    def _wait(self, condition, deadline_s=5.0):
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end
            self.client.loop(0.02)

    def subscribe(self, topic):
        _, mid = self.client.subscribe(topic, qos=1)
        self._wait(lambda: mid in self.reasons)
        return self.reasons[mid]

    def publish(self, topic, payload=b"x"):
        mid = self.client.publish(topic, payload, qos=1).mid
        self._wait(lambda: mid in self.reasons)
        return self.reasons[mid]

    def received(self, deadline_s=5.0):
        self._wait(lambda: self.messages, deadline_s)
        return self.messages.pop(0)


@pytest.fixture
def session(broker):
    sessions = []

    def make(account, password=None):
        sessions.append(Session(broker, account, password or PASSWORDS.get(account)))
        return sessions[-1]

    yield make
    for each in sessions:
        each.client.disconnect()


@pytest.mark.parametrize(
    ("account", "password"), [(None, None), ("operator", "wrong"), ("nobody", "x"), ("operator", PASSWORDS["gateway"])]
)
def test_nobody_gets_in_without_the_right_password(session, account, password):
    assert session(account, password).connected.is_failure


def test_operator_speaks_on_every_namespace(session):
    listener, speaker = session("operator"), session("gateway")
    assert listener.subscribe("vision/#") in (0, 1)
    assert speaker.publish("vision/frames", b"picture") == 0
    assert listener.received() == ("vision/frames", b"picture")


@pytest.mark.parametrize("account", ["operator", "gateway"])
def test_control_topics_are_closed(session, account):
    client = session(account)
    assert client.subscribe("$CONTROL/#") >= 0x80
    assert client.subscribe("$CONTROL/dynamic-security/v1/response") >= 0x80
    assert client.publish("$CONTROL/dynamic-security/v1", b'{"commands":[{"command":"listClients"}]}') == 0x87


def test_admin_administers_and_does_nothing_else(session):
    admin = session("admin")
    assert admin.subscribe("vision/#") >= 0x80
    assert admin.publish("vision/frames") == 0x87
    assert admin.subscribe("$CONTROL/dynamic-security/v1/response") < 0x80
    admin.publish("$CONTROL/dynamic-security/v1", b'{"commands":[{"command":"listClients"}]}')
    answer = json.loads(admin.received()[1])
    assert set(answer["responses"][0]["data"]["clients"]) == set(PASSWORDS)


def test_revoked_right_ends_deliveries_too(session):
    admin, listener, speaker = session("admin"), session("operator"), session("gateway")
    assert listener.subscribe("vision/#") < 0x80
    command = {"commands": [{"command": "removeClientRole", "username": "operator", "rolename": "operator"}]}
    admin.publish("$CONTROL/dynamic-security/v1", json.dumps(command).encode())
    with contextlib.suppress(AssertionError):
        speaker.publish("vision/frames")
        listener.received(0.5)
    assert listener.messages == []


def test_accounts_stay_private_when_the_broker_rewrites_them(session, tmp_path, wait_until):
    admin = session("admin")
    admin.publish("$CONTROL/dynamic-security/v1", b'{"commands":[{"command":"createRole","rolename":"more"}]}')
    wait_until(lambda: "more" in (tmp_path / "dynsec.json").read_text(), "the file is rewritten")
    assert stat.S_IMODE((tmp_path / "dynsec.json").stat().st_mode) == 0o600
    document = json.loads((tmp_path / "dynsec.json").read_text())
    assert set(document["defaultACLAccess"].values()) == {False}


def test_listens_on_loopback_only(broker):
    assert listeners(broker) == {"0100007F"}


def listeners(port):
    """Hexadecimal addresses that listen on a TCP port."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        address, hexport = fields[1].split(":")
        if fields[3] == "0A" and int(hexport, 16) == port:
            found.add(address)
    return found


def test_store_keeps_what_it_acknowledged_and_listens_on_its_socket_only(tmp_path, wait_until):
    data_dir = tmp_path / "redis"
    data_dir.mkdir()
    params = storeconf.StoreParams(tmp_path / "r.sock", data_dir, 64 << 20)
    (tmp_path / "redis.conf").write_text(storeconf.redis_conf(params))
    argv = [str(programs.require("redis-server")), str(tmp_path / "redis.conf")]
    with running(argv, params.socket, wait_until, tmp_path / "log") as process:
        wait_until(lambda: talk(params.socket, "PING") == ["+PONG"], "it answers")
        assert stat.S_IMODE(params.socket.stat().st_mode) == 0o700
        assert talk(params.socket, "CONFIG GET appendfsync") == ["*2", "$11", "appendfsync", "$6", "always"]
        assert talk(params.socket, "CONFIG GET maxmemory-policy")[-1] == "noeviction"
        assert talk(params.socket, "CONFIG GET port")[-1] == "0"
        assert talk(params.socket, "SET key value") == ["+OK"]
        process.kill()
        process.wait()
    with running(argv, params.socket, wait_until, tmp_path / "log"):
        wait_until(lambda: talk(params.socket, "PING") == ["+PONG"], "it has loaded its data")
        assert talk(params.socket, "GET key") == ["$5", "value"]


def talk(socket_file, command):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(socket_file))
        client.sendall(command.encode() + b"\r\n")
        return client.recv(4096).decode().split()
