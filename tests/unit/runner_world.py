"""A PoP for the reconciler: a store and a driver in memory, rounds and time in the test's hands."""

import json
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeflow.core.manifest import Artifact, ResolvedFunction, parse, resolve
from edgeflow.core.routing import RouteTable
from edgeflow.runner.driver import Observed, Prepared, Progress, StartSpec
from edgeflow.runner.reconciler import Reconciler
from edgeflow.settings import PopSettings

START_MS = 1_000_000_000


@dataclass
class Item:
    key: str
    version: str
    data: bytes = b""


@dataclass
class Inbox:
    @property
    def pending(self) -> int:
        return self.ready + self.delayed + self.claimed

    ready: int = 0
    delayed: int = 0
    claimed: int = 0


class FakeNamespace:
    def __init__(self) -> None:
        self.values: dict[str, Item] = {}
        self.routes = RouteTable("never set")
        self.inboxes: dict[tuple[str, str], Inbox] = {}
        self.handed_over: list[tuple[str, str, str | None]] = []
        self.writes = 0

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> "list[Item]":
        return [item for key, item in sorted(self.values.items()) if key.startswith(prefix) and key > after][:limit]

    def get(self, key: str) -> Item | None:
        return self.values.get(key)

    def put(self, key: str, data: bytes, *, content_type: str | None = None) -> Item:
        self.writes += 1
        self.values[key] = Item(key, str(self.writes), data)
        return self.values[key]

    def delete(self, key: str) -> None:
        del self.values[key]

    def set_routes(self, table: RouteTable) -> bool:
        changed = table.version != self.routes.version
        self.routes = table
        return changed

    def hand_over(self, function: str, revision: str, to: str | None) -> int:
        self.handed_over.append((function, revision, to))
        self.inboxes.pop((function, revision), None)
        return 0

    def inbox_stats(self, function: str, revision: str) -> Inbox:
        return self.inboxes.get((function, revision), Inbox())


class FakeLocal:
    def __init__(self) -> None:
        self.documents: dict[str, dict[str, dict[str, Any]]] = {}

    def put_doc(self, kind: str, id: str, document: dict[str, Any]) -> None:
        self.documents.setdefault(kind, {})[id] = json.loads(json.dumps(document))

    def get_doc(self, kind: str, id: str) -> dict[str, Any] | None:
        return self.documents.get(kind, {}).get(id)

    def docs(self, kind: str) -> dict[str, dict[str, Any]]:
        return dict(self.documents.get(kind, {}))

    def wait_hint(self, kind: str, timeout_s: float) -> str | None:
        time.sleep(min(timeout_s, 0.01))
        return None

    def delete_doc(self, kind: str, id: str) -> None:
        self.documents.get(kind, {}).pop(id, None)


class FakeWakeups:
    def wait(self, timeout_s: float) -> set[str]:
        time.sleep(min(timeout_s, 0.01))
        return {"local"}

    def close(self) -> None:
        pass


class FakeStore:
    def __init__(self) -> None:
        self.local = FakeLocal()
        self._namespaces = {"system": FakeNamespace()}

    def namespace(self, name: str) -> FakeNamespace:
        return self._namespaces.setdefault(name, FakeNamespace())

    def namespaces(self) -> list[str]:
        return sorted(self._namespaces)

    def create_namespace(self, name: str) -> bool:
        new = name not in self._namespaces
        self.namespace(name)
        return new

    def wakeups(self) -> FakeWakeups:
        return FakeWakeups()


@dataclass
class FakeDriver:
    instances: dict[str, Observed] = field(default_factory=dict)
    started: list[StartSpec] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    build_error: Exception | None = None
    start_error: Exception | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    now_ms: int = START_MS

    def prepare(
        self, namespace: str, name: str, function: ResolvedFunction, bundle: bytes | None, progress: Progress
    ) -> Prepared:
        progress("collecting parts")
        self.hold.wait(10)
        if self.build_error:
            raise self.build_error
        return Prepared(image=function.image or "built")

    def observe(self) -> list[Observed]:
        return list(self.instances.values())

    def start(self, spec: StartSpec) -> None:
        if self.start_error:
            raise self.start_error
        self.started.append(spec)
        self.instances[spec.instance] = Observed(
            spec.instance, spec.namespace, spec.function, spec.revision, self.now_ms, True, content=spec.content
        )

    def stop(self, instance: str) -> None:
        self.stopped.append(instance)

    def kill(self, instance: str) -> None:
        self.killed.append(instance)
        self.end(instance, "was ended by SIGKILL")

    def pause(self, instance: str) -> None:
        self.instances[instance] = replace(self.instances[instance], paused=True)

    def resume(self, instance: str) -> None:
        self.instances[instance] = replace(self.instances[instance], paused=False)

    def remove(self, instance: str) -> None:
        del self.instances[instance]

    def tail(self, instance: str, lines: int) -> list[str]:
        return [f"last words of {instance}"]

    def upkeep(self) -> None:
        pass

    def end(self, instance: str, how: str) -> None:
        self.instances[instance] = replace(self.instances[instance], running=False, ended=how)


class World:
    """A PoP with a reconciler whose rounds and time are in the test's hands."""

    def __init__(self, folder: Path) -> None:
        self.settings = PopSettings.model_validate({
            "pop": "la", "cluster": "c", "mode": "embedded", "state_dir": folder / "state", "run_dir": folder / "run",
            "store": {"redis_socket": folder / "r"}, "mqtt": {"password_file": folder / "p"},
            "link": {"port": 1, "ca": folder / "a", "cert": folder / "b", "key": folder / "c"}, "api": {"port": 2, "token_file": folder / "t"},
            "public": {"api_url": "http://x", "api_token_file": folder / "t", "mqtt_host": "x", "mqtt_port": 1, "mqtt_ws_url": "ws://x",
                       "mqtt_password_file": folder / "p"},
        })  # fmt: skip
        self.store = FakeStore()
        self.driver = FakeDriver()
        self.driver.hold.set()
        self.now_ms = START_MS
        self.begin()

    def begin(self) -> None:
        """A new control process over the same store and instances."""
        self.reconciler = Reconciler(self.settings, self.store, self.driver)

    def apply(self, functions: str, namespace: str = "vision", **artifacts: Artifact) -> dict[str, Any]:
        manifest = parse(f"namespace: {namespace}\nfunctions: {functions}", default_pop="la")
        document = resolve(manifest, artifacts, applied_ms=1, default_pop="la")
        self.store.namespace("system").put(f"manifests/{namespace}", json.dumps(document).encode())
        return document

    def round(self, times: int = 1, later_ms: int = 0) -> None:
        self.now_ms += later_ms
        self.driver.now_ms = self.now_ms
        for _ in range(times):
            self.reconciler.round(self.now_ms)

    def settle(self) -> None:
        """Rounds until builds are done and what can be started is started."""
        for _ in range(50):
            self.round()
            if all(build.future is None or build.future.done() for build in self.reconciler._builds._builds.values()):
                break
            time.sleep(0.005)
        self.round(3)

    def become(self, state: str, *instances: str) -> None:
        for instance in instances or tuple(self.driver.instances):
            self.store.local.put_doc("instance_state", instance, {"state": state, "since_ms": self.now_ms})

    def state(self, function: str = "vision/f") -> dict[str, Any]:
        return self.store.local.docs("function_state")[function]
