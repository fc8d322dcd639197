"""Instances of two containers: an adapter that has the instance's socket, and the user's program in the adapter's network namespace.

What it is: the options of both, and one view of the two.
What it is not: calls of the engine (docker.py), or what the adapter does (edgeflow/sdk/adapters).
What must stay true: the program's container has no socket, no mount of ours but those of its secrets and of the launcher (`stdio`, read-only), and the network that its adapter has: loopback, or
with `network: egress` the outside; half a pair is no instance.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgeflow.runner import secret_files
from edgeflow.runner.contracts import ADAPTERS, SETTING
from edgeflow.runner.driver import StartSpec
from edgeflow.runner.plan import EXIT_TOO_LONG

ADAPTER, PROGRAM = "adapter", "program"
"""Values of the label `edgeflow.role`."""
EFFECTS_PORT = 8790
"""Loopback port of the adapter's HTTP API inside a pair, unless the program listens there itself."""
LAUNCHER_PORT = 8792
"""Loopback port where the launcher of a `stdio` program finds its adapter."""
BROKER_PORT = 1883
"""Loopback port where an `mqtt` program finds the broker: its adapter listens there."""
LISTENING = b"relay_listening"
"""What the adapter of an `mqtt` program says in its log when it listens there."""
LAUNCHER_FOLDER, LAUNCHER_FILE = "/run/edgeflow-launcher", "launch"
ADAPTER_MEMORY_BYTES = 512 * 1024 * 1024
"""A body of the largest size (256 MiB) passes through the adapter; it is not the program's to count."""
STOP_GRACE_S = 5
"""How long a program may take to end once its adapter has finished."""


def program_name(name: str) -> str:
    """Name of the program's container beside its adapter's."""
    return f"{name}-program"


def adapter_options(options: Mapping[str, Any], spec: StartSpec, image: str) -> dict[str, Any]:
    """The adapter's container, from the options of an instance of one container."""
    inside = {"EDGEFLOW_SOCKET", "HOME"}
    environment = {name: value for name, value in options["environment"].items() if name in inside}
    # The program is a container of its own: its command is not the adapter's to run.
    setting = {**spec.adapter, "command": [], "effects_port": _effects_port(spec)}
    if spec.contract == "stdio":
        setting["launcher_port"] = LAUNCHER_PORT
    if spec.contract == "mqtt":
        setting["broker_port"] = BROKER_PORT
    return {
        **options,
        "image": image,
        "labels": _labels(options, ADAPTER),
        "environment": {**environment, SETTING: json.dumps(setting)},
        "entrypoint": ["python3", "-m", ADAPTERS],
        "mounts": [mount for mount in options["mounts"] if mount["Target"] != secret_files.INSIDE],
        "device_requests": [],
        "mem_limit": ADAPTER_MEMORY_BYTES,
        "memswap_limit": ADAPTER_MEMORY_BYTES,
    }


def program_options(
    options: Mapping[str, Any], spec: StartSpec, adapter_id: str, command: Sequence[str] = (), launcher: Any = None
) -> dict[str, Any]:
    """The program's container: the user's image with the manifest's limits, inside the adapter's network namespace.

    For `stdio` also: `command`, the image's own, and `launcher`, the mount of the program that starts it for each invocation.
    """
    hidden = {"EDGEFLOW_SOCKET"}
    environment = {name: value for name, value in options["environment"].items() if name not in hidden}
    environment |= program_environment(spec)
    secrets = [mount for mount in options["mounts"] if mount["Target"] == secret_files.INSIDE]
    found = {
        **options,
        "name": program_name(options["name"]),
        "labels": _labels(options, PROGRAM),
        "environment": environment,
        "mounts": secrets,
        "group_add": options["group_add"] if secrets else [],
        "network_mode": f"container:{adapter_id}",
    }
    given = list(spec.adapter.get("command") or ())
    if spec.contract == "stdio":
        found["mounts"] = [*secrets, launcher]
        found["entrypoint"] = [f"{LAUNCHER_FOLDER}/{LAUNCHER_FILE}", str(LAUNCHER_PORT), *(given or command)]
    elif given:
        found["entrypoint"] = given
    return found


def program_environment(spec: StartSpec) -> dict[str, str]:
    """What a program is told beside the manifest's `env`."""
    told = {"EDGEFLOW_URL": f"http://127.0.0.1:{_effects_port(spec)}"}
    if spec.contract == "http":
        told["PORT"] = str(spec.adapter["http_port"])
    if spec.contract == "mqtt":
        # The port is theirs alone, so the password keeps nobody out; the account is put in behind it.
        told = {
            "MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(BROKER_PORT), "MQTT_USERNAME": "function", "MQTT_PASSWORD": "function",
            "MQTT_CLIENT_ID": spec.function, "MQTT_URL": f"mqtt://function:function@127.0.0.1:{BROKER_PORT}",
        }  # fmt: skip
    return told


def how_it_stands(parts: Mapping[str, str | None]) -> str | None:
    """How an instance ended, None while it runs, from how each of its containers did (None: it runs)."""
    if parts.keys() == {""}:
        return parts[""]
    for role, missing in ((ADAPTER, "its adapter"), (PROGRAM, "its program")):
        if role not in parts:
            return f"was half made, or {missing} was removed"
    if parts[ADAPTER] == EXIT_TOO_LONG:
        return EXIT_TOO_LONG
    if (program := parts[PROGRAM]) is not None:
        return f"ended: its program {program}"
    return parts[ADAPTER]


def _effects_port(spec: StartSpec) -> int:
    return EFFECTS_PORT if spec.adapter.get("http_port") != EFFECTS_PORT else EFFECTS_PORT + 1


def _labels(options: Mapping[str, Any], role: str) -> dict[str, str]:
    return {**options["labels"], "edgeflow.role": role}
