"""What is measured on: a cluster of three PoPs in the demo's layout, echo functions at one of them, and a bare echo at that PoP's broker.

What must stay true: everything that was started is ended, whatever happens; the bare echo goes through the very broker that edgeflow goes through.
"""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.packets import Attributes, Broker
from bench.processes import python_process
from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.discover import PopAccess
from edgeflow.host.files import read_json
from edgeflow.host.local import LocalCluster

NAMESPACE = "bench"
PLAIN = "Bench"
"""First level of the bare echo's topics: with its capital it is no namespace and never becomes one, so edgeflow takes nothing in from there."""
CHAINS = 3
HANDLER = """from edgeflow import function


@function
def handle(ctx, event):
    return event.data
"""

Say = Callable[[str], None]


def chain_channels(length: int) -> list[str]:
    """The channels of the chain of `length` functions, from what is published to what comes out."""
    return [f"chain{length}/{step}" for step in range(length + 1)]


def echo_function(subscribe: Any, publish: str, pop: str) -> dict[str, Any]:
    """A manifest entry."""
    return {"build": "./echo", "subscribe": subscribe, "publish": publish, "place": {"pops": [pop]}}


@dataclass
class Stage:
    """A running cluster with its echo functions."""

    cluster: LocalCluster
    pop: str
    """The measured PoP."""
    access: PopAccess

    @property
    def broker(self) -> Broker:
        """The measured PoP's broker, as a client on this machine reaches it."""
        return Broker(
            self.access.mqtt_host, self.access.mqtt_port, self.access.mqtt_username, self.access.mqtt_password
        )

    @property
    def store_socket(self) -> str:
        """The unix socket of the measured PoP's Redis."""
        return str((read_json(self.cluster.home.config_file(self.pop)) or {})["store"]["redis_socket"])

    def apply(self, manifest_file: Path) -> None:
        """Apply a manifest; returns when its functions are ready."""
        apply_file(manifest_file, Target(self.access.api_url, self.access.token), timeout_s=90.0)

    def pids(self) -> dict[str, int]:
        """Processes of the cluster: "<pop>/<process>", "<pop>/instance <function> <run>", "links" and "supervisor"."""
        document = read_json(self.cluster.home.cluster_file) or {}
        pids = {
            "supervisor": (document.get("supervisor") or {}).get("pid"),
            "links": (document.get("wan") or {}).get("pid"),
        }
        for pop, entry in document.get("pops", {}).items():
            for name, process in entry["processes"].items():
                pids[f"{pop}/{name}"] = process["pid"]
            for path in sorted((self.cluster.home.pop_dir(pop) / "state" / "instances").glob("*.json")):
                run = read_json(path) or {}
                if run.get("function"):
                    pids[f"{pop}/instance {run['function']} {path.stem}"] = run.get("pid")
        return {name: pid for name, pid in pids.items() if pid}


WriteApplication = Callable[[Path, str], Path]
"""(folder, PoP) -> the manifest that was written there."""


@contextmanager
def running(
    pops: Sequence[str], measured: str, say: Say, write_application: WriteApplication | None = None
) -> Iterator[Stage]:
    """A cluster with everything applied (None = the echo functions of `make bench`); ended and removed at the end."""
    cluster = LocalCluster(pops)
    try:
        say(f"starting {len(pops)} PoPs")
        access = cluster.start().pop(measured)
        stage = Stage(cluster, measured, access)
        say("applying the functions")
        stage.apply((write_application or _write_application)(cluster.home.root / "bench-application", measured))
        yield stage
    finally:
        # A second Ctrl-C must not leave processes behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        say("ending the cluster")
        cluster.stop(purge=True)
        signal.signal(signal.SIGINT, before)


@contextmanager
def bare_echo(
    broker: Broker, requests: str, answers: str, attributes: Attributes, content_type: str | None, *, qos: int = 1
) -> Iterator[int]:
    """A process that answers on `answers` what comes on `requests`; its pid."""
    asked = {
        "broker": {"host": broker.host, "port": broker.port, "username": broker.username, "password": broker.password},
        "requests": requests,
        "answers": answers,
        "attributes": [list(pair) for pair in attributes],
        "content_type": content_type,
        "qos": qos,
    }
    with python_process("bench.pahos", asked) as pid:
        yield pid


def _write_application(folder: Path, pop: str) -> Path:
    """The manifest and its one function folder; the path of the manifest."""
    (folder / "echo").mkdir(parents=True)
    (folder / "echo" / "handler.py").write_text(HANDLER)
    functions: dict[str, Any] = {}
    for length in range(1, CHAINS + 1):
        channels = chain_channels(length)
        for step in range(length):
            subscribe = {"channel": channels[step], "as": "event"}
            functions[f"chain{length}-{step + 1}"] = echo_function(subscribe, channels[step + 1], pop)
    functions["fast"] = echo_function({"channel": "fast/0", "qos": 0, "as": "event"}, "fast/1", pop)
    file = folder / "edgeflow.yaml"
    file.write_text(json.dumps({"namespace": NAMESPACE, "functions": functions}, indent=2))  # JSON is YAML
    return file
