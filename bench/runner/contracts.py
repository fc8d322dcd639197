"""What each contract costs: the same echo program as a function of edgeflow, and driven directly by a client over loopback.

What it is: round trips one at a time and events per second of `sdk`, `http`, `stdio` and `mqtt`, as processes on both sides, and as containers on edgeflow's.
What must stay true: both sides run the very same program and answer the same bytes; every answer is counted by its number; in turns, round by round.
"""

import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.flow.http_generator import HttpGenerator
from bench.generator import Answer, Flood, Generator, MqttGenerator, drive
from bench.measures import ATTRIBUTES, CONTENT_TYPE, ECHO, PAYLOAD_BYTES
from bench.packets import NUMBER_BYTES, Broker
from bench.runner.world import NAMESPACE, Say, World, until
from bench.stage import HANDLER, PLAIN, bare_echo

CONTRACTS = ("sdk", "http", "stdio", "mqtt")
WINDOW = 64
Side = tuple[Callable[[], Generator], int]
"""A client, and how many messages it keeps under way."""
HTTP_PROGRAM = '''"""A plain server: the answer is the request."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", self.headers["Content-Type"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Echo).serve_forever()
'''
MQTT_PROGRAM = '''"""A plain paho client: what is heard on HEARD is said on SAID."""

import os
import socket
import statistics

import paho.mqtt.client as mqtt

client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=os.environ["MQTT_CLIENT_ID"], protocol=mqtt.MQTTv5)
client.username_pw_set(os.environ["MQTT_USERNAME"], os.environ["MQTT_PASSWORD"])
client.max_inflight_messages_set(1000)
client.on_socket_open = lambda _client, _data, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client.on_connect = lambda *_: client.subscribe(os.environ["HEARD"], qos=1)
client.on_subscribe = lambda *_: print("ready", flush=True)
client.on_message = lambda _client, _data, message: client.publish(os.environ["SAID"], message.payload, qos=1)
client.connect(os.environ["MQTT_HOST"], int(os.environ["MQTT_PORT"]))
client.loop_forever()
'''


def write(folder: Path) -> None:
    """The folders of the functions."""
    for name, file, text in (
        ("sdk", "handler.py", HANDLER), ("http", "server.py", HTTP_PROGRAM), ("mqtt", "echo.py", MQTT_PROGRAM), ("stdio", "README", "The program is cat.\n"),
    ):  # fmt: skip
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(text)


def functions(pop: str, image: str | None = None) -> dict[str, Any]:
    """The manifest of them: as processes, or with an image that has their folders in /programs."""
    # As a process: the interpreter that runs the same program directly.
    python, at = (sys.executable, "") if image is None else ("python3", "/programs/")
    programs = (
        {"http": f"{at}http/server.py", "mqtt": f"{at}mqtt/echo.py"} if at else {"http": "server.py", "mqtt": "echo.py"}
    )
    commands = {"stdio": ["cat"], **{name: [python, file] for name, file in programs.items()}}
    made: dict[str, Any] = {}
    for name in CONTRACTS:
        made[name] = {
            **({"build": f"./{name}"} if image is None else {"image": image}),
            "subscribe": {"channel": f"{name}/0", "as": "event"}, "publish": f"{name}/1", "place": {"pops": [pop]},
            **({"contract": name, "command": commands[name]} if name in commands else {}),
        }  # fmt: skip
    made["stdio"]["stdio"] = {"content_type": CONTENT_TYPE}
    made["mqtt"]["env"] = {"HEARD": f"{NAMESPACE}/mqtt/0", "SAID": f"{NAMESPACE}/mqtt/1"}
    return made


class StdioGenerator:
    """The program started for each message, as the contract does: one at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._waiting: list[int] = []

    def start(self, number: int) -> None:
        """Queue it."""
        self._waiting.append(number)

    def answered(self, timeout_s: float) -> list[Answer]:
        """Run one."""
        if not self._waiting:
            time.sleep(min(timeout_s, 0.05))
            return []
        data = bytes(PAYLOAD_BYTES - NUMBER_BYTES) + self._waiting.pop(0).to_bytes(NUMBER_BYTES, "big")
        answer = subprocess.run(self._command, input=data, stdout=subprocess.PIPE, check=True, timeout=timeout_s + 10)
        return [(int.from_bytes(answer.stdout[-NUMBER_BYTES:], "big"), 0)]

    def close(self) -> None:
        """Nothing is kept."""


def measure(world: World, folder: Path, rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    """By contract: as a function, and directly; one at a time, and as many as go through."""
    broker = _broker(world)
    with ExitStack() as stack:
        stack.enter_context(bare_echo(broker, ECHO.requests, ECHO.answers, ATTRIBUTES, CONTENT_TYPE))
        port = stack.enter_context(_http_program(folder))
        stack.enter_context(_mqtt_program(folder, broker))
        direct: dict[str, Side] = {
            "sdk": (_over_mqtt(broker, ECHO.requests, ECHO.answers), WINDOW),
            "http": (lambda: HttpGenerator([port], ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES, 1), 1),
            "stdio": (lambda: StdioGenerator(["cat"]), 1),
            "mqtt": (_over_mqtt(broker, f"{PLAIN}/heard", f"{PLAIN}/said"), WINDOW),
        }
        return _sides({"edgeflow": _ours(broker), "direct": direct}, rounds, seconds, say)


def measure_ours(world: World, rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    """By contract, as a function only."""
    return _sides({"edgeflow": _ours(_broker(world))}, rounds, seconds, say)


def _broker(world: World) -> Broker:
    access = world.cluster.pop(world.pop)
    return Broker(access.mqtt_host, access.mqtt_port, access.mqtt_username, access.mqtt_password)


def _over_mqtt(broker: Broker, requests: str, answers: str) -> Callable[[], Generator]:
    return lambda: MqttGenerator(broker, [requests], answers, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES)


def _ours(broker: Broker) -> dict[str, Side]:
    return {name: (_over_mqtt(broker, f"{NAMESPACE}/{name}/0", f"{NAMESPACE}/{name}/1"), WINDOW) for name in CONTRACTS}


def _sides(sides: dict[str, dict[str, Side]], rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    found: dict[tuple[str, str], list[tuple[Flood, Flood]]] = {}
    # Each drive has a warm-up of its own.
    for number in range(1, rounds + 1):
        for name in CONTRACTS:
            for side, of in sides.items():
                make, window = of[name]
                say(f"contract {name}, {side}, round {number} of {rounds}")
                pair = (_drive(make, seconds, 1), _drive(make, seconds, window))
                found.setdefault((name, side), []).append(pair)
    return {name: {side: cell(found[name, side]) for side in sides} for name in CONTRACTS}


def cell(pairs: Sequence[tuple[Flood, Flood]]) -> dict[str, Any]:
    """Medians over the rounds; what was lost or came twice in any of them."""
    middle = statistics.median
    return {
        "p50_ms": round(middle(one.p50_ms for one, _ in pairs), 3), "p99_ms": round(middle(one.p99_ms for one, _ in pairs), 3),
        "per_s": round(middle(many.events_per_s for _, many in pairs), 1), "events": sum(one.events for pair in pairs for one in pair),
        "lost": sum(one.lost for pair in pairs for one in pair), "twice": sum(one.twice for pair in pairs for one in pair),
    }  # fmt: skip


def _drive(make: Callable[[], Generator], seconds: float, window: int) -> Flood:
    generator = make()
    try:
        return drive(generator, seconds, window, pids={})
    finally:
        generator.close()


@contextmanager
def _program(command: Sequence[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def _http_program(folder: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    with _program([sys.executable, str(folder / "http" / "server.py")], {"PORT": str(port)}):
        until(listens, "the plain server listens", 20)
        yield port


@contextmanager
def _mqtt_program(folder: Path, broker: Broker) -> Iterator[None]:
    environment = {
        "MQTT_HOST": broker.host, "MQTT_PORT": str(broker.port), "MQTT_USERNAME": broker.username, "MQTT_PASSWORD": broker.password,
        "MQTT_CLIENT_ID": f"bench-runner-{secrets.token_hex(8)}", "HEARD": f"{PLAIN}/heard", "SAID": f"{PLAIN}/said",
    }  # fmt: skip
    with _program([sys.executable, str(folder / "mqtt" / "echo.py")], environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
