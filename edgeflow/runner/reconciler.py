"""Makes the instances of this PoP equal to what the manifests say.

What it is: a thread of the control process. Each round it reads the manifests (manifests.py), the driver's view and the data process's view (fleet.py),
lets plan.py decide, and acts; it also installs the routing tables (routes.py), since every PoP needs them, and says how each function stands (reports.py).
What it is not: in the way of any event. Instances and the data process go on while it is away, and it adopts what it finds when it comes back.
What must stay true: level-triggered: a round depends on what is there, not on how it came about; a broken manifest, function or build never keeps the
others from being cared for.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.manifest import ResolvedFunction
from edgeflow.errors import EdgeflowError, StoreUnavailable
from edgeflow.runner.builds import Build, Builds, Key
from edgeflow.runner.driver import Driver
from edgeflow.runner.fleet import Fleet
from edgeflow.runner.manifests import Manifests
from edgeflow.runner.memory import FunctionKey, Memory
from edgeflow.runner.plan import READY, FunctionView, InstanceView, Kill, Policy, Remove, Start, StartOld, Stop, plan
from edgeflow.runner.ports import StorePort
from edgeflow.runner.reports import Reports
from edgeflow.runner.revisions import Revisions
from edgeflow.runner.routes import Routes
from edgeflow.settings import PopSettings

log = structlog.get_logger()

POLL_S = 1.0
"""Longest time between two rounds; wake-ups are hints only."""
PAUSE_S = 0.2
"""Shortest time between two rounds: the namespaces' wake-ups come with every batch of events."""
STABLE_MS = 30_000
"""An instance that was ready this long wipes out the failures of its revision."""


class Reconciler:
    """One round after another, until it is stopped."""

    def __init__(self, settings: PopSettings, store: StorePort, driver: Driver, policy: Policy | None = None) -> None:
        self._pop = settings.pop
        self._store = store
        self._driver = driver
        self._policy = policy or Policy(start_deadline_ms=int(settings.runner.start_deadline_s * 1000))
        self._builds = Builds(driver, self._fetch_bundle)
        self._manifests = Manifests(store)
        self._routes = Routes(store, settings.pop)
        self._fleet = Fleet(settings, store, driver)
        self._revisions = Revisions(store)
        self._reports = Reports(store, settings.pop)
        self._memory: dict[FunctionKey, Memory] = {}
        self._old_memory: dict[Key, Memory] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_round_ms = 0
        self.last_error = ""

    # -- the thread ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Instances stay: the next control process adopts them, and whoever takes the PoP down ends them."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._builds.close()

    def status(self) -> dict[str, Any]:
        """{running, last_round_ms, last_error, functions: {"<ns>/<fn>": state}}."""
        alive = self._thread is not None and self._thread.is_alive()
        return {
            "running": alive,
            "last_round_ms": self.last_round_ms,
            "last_error": self.last_error,
            "functions": dict(self._reports.states),
        }

    def _loop(self) -> None:
        wakeups = self._store.wakeups()
        try:
            while not self._stop.is_set():
                try:
                    self.round(int(time.time() * 1000))
                    self.last_error = ""
                except StoreUnavailable as error:
                    self.last_error = error.message
                    log.warning("round_without_store", reason=error.message)
                except Exception as error:
                    self.last_error = f"{type(error).__name__}: {error}"
                    log.exception("round_failed")
                self._wait(wakeups)
        finally:
            wakeups.close()

    def _wait(self, wakeups: Any) -> None:
        """Until something that matters here changes, at most POLL_S."""
        now_ms = time.time() * 1000
        # A start that is due earlier, after a failure, is not kept waiting.
        due_s = (
            min(
                (memory.start_from_ms - now_ms for memory in self._memory.values() if memory.start_from_ms > now_ms),
                default=1e6,
            )
            / 1000
        )
        deadline_s = time.monotonic() + min(POLL_S, due_s)
        self._stop.wait(PAUSE_S)
        while not self._stop.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
            started_s = time.monotonic()
            changed = wakeups.wait(left_s)
            if changed & {SYSTEM_NAMESPACE, "local"}:
                return
            # Without a connection `wait` returns at once; and other namespaces' wake-ups are not worth more than this.
            if changed or time.monotonic() - started_s < PAUSE_S:
                self._stop.wait(PAUSE_S)

    # -- one round -----------------------------------------------------------------------------------------------------

    def round(self, now_ms: int) -> None:
        """Look at everything once and act."""
        self._manifests.read()
        self._routes.install(self._manifests, now_ms)
        wanted = self._manifests.wanted(self._pop)
        instances = self._fleet.look()
        self._revisions.note(wanted, self._manifests)
        self._reports.look()
        for key in sorted(set(wanted) | set(instances)):
            try:
                self._care_for(key, wanted.get(key), instances.get(key, []), now_ms)
            except StoreUnavailable:
                raise
            except Exception as error:
                log.exception("function_not_cared_for", namespace=key[0], function=key[1])
                self._memory.setdefault(key, Memory()).reason = f"{type(error).__name__}: {error}"
        self._forget(wanted, instances)
        self._driver.upkeep()
        self.last_round_ms = now_ms

    def _care_for(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView], now_ms: int
    ) -> None:
        namespace, name = key
        memory = self._memory.setdefault(key, Memory())
        build: Build | None = None
        content = ""
        if function is not None:
            content = self._fleet.content_of(namespace, function)
            if (memory.revision, memory.content) != (function.revision, content):
                self._memory[key] = memory = Memory(function.revision, content, shared=memory.shared)
            build = self._builds.get(namespace, name, function, now_ms)
            stable = [one for one in instances if one.state in READY and one.revision == function.revision]
            if memory.failures and any(now_ms - max(one.since_ms, one.started_ms) > STABLE_MS for one in stable):
                memory.stable()
        view = FunctionView(
            revision=function.revision if function else None,
            wanted=function.scale.instances if function else 0,
            prepared=build is not None and build.prepared is not None,
            start_from_ms=memory.start_from_ms,
            instances=instances,
            old_work=self._old_work(key, function, instances),
            content=content,
        )
        for action in plan(view, self._policy, now_ms):
            if isinstance(action, Start):
                assert function is not None and build is not None
                if now_ms < memory.start_from_ms:
                    continue  # a failure that was found in this very round
                self._start(key, function, build, memory, now_ms)
            elif isinstance(action, StartOld):
                self._start_old(key, action.revision, now_ms)
            elif isinstance(action, Stop):
                self._fleet.stop(key, action.instance, action.why, now_ms)
            else:
                memory_of = self._memory_of(key, function, instances, action.instance)
                if isinstance(action, Kill):
                    if action.failed:
                        self._failed(memory_of, action.why, action.instance, now_ms)
                    self._fleet.kill(key, action.instance, action.why, now_ms)
                else:
                    self._ended(key, action, memory_of, now_ms)
        self._reports.report(key, function, build, memory, instances, now_ms)

    def _memory_of(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView], instance: str
    ) -> Memory:  # fmt: skip
        """Where a failure of an instance counts: with the function, or with the old revision it belongs to."""
        revision = next(one.revision for one in instances if one.instance == instance)
        if function is not None and revision == function.revision:
            return self._memory[key]
        return self._old_memory.setdefault((*key, revision), Memory(revision=revision))

    def _old_work(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView]
    ) -> frozenset[str]:
        if function is None:
            return frozenset()
        return self._revisions.with_work(key, function.revision, {one.revision for one in instances})

    def _start_old(self, key: FunctionKey, revision: str, now_ms: int) -> None:
        function = self._revisions.find(key, revision)
        memory = self._old_memory.setdefault((*key, revision), Memory(revision=revision))
        if function is None or now_ms < memory.start_from_ms:
            return
        build = self._builds.get(*key, function, now_ms)
        if build.prepared is not None:
            log.info("old_revision_resumed", namespace=key[0], function=key[1], revision=revision)
            self._start(key, function, build, memory, now_ms)

    def _start(self, key: FunctionKey, function: ResolvedFunction, build: Build, memory: Memory, now_ms: int) -> None:
        assert build.prepared is not None
        try:
            self._fleet.start(key, function, build.prepared, now_ms)
        except EdgeflowError as error:
            self._failed(memory, error.message, None, now_ms)
            if memory.failures % 3 == 0:
                self._builds.redo((*key, function.revision))

    def _ended(self, key: FunctionKey, action: Remove, memory: Memory, now_ms: int) -> None:
        why = self._fleet.how_it_ended(key, action.instance, action.why)
        if action.failed:
            self._failed(memory, why, action.instance, now_ms)
        self._fleet.remove(action.instance)

    def _failed(self, memory: Memory, why: str, instance: str | None, now_ms: int) -> None:
        lines = self._driver.tail(instance, 20) if instance else []
        memory.failed(f"instance {instance} {why}" if instance else why, lines, now_ms)

    def _forget(
        self, wanted: Mapping[FunctionKey, ResolvedFunction], instances: Mapping[FunctionKey, list[InstanceView]]
    ) -> None:
        """What is kept about functions that are neither wanted here nor running."""
        gone = (self._reports.known() | set(self._memory)) - set(wanted) - set(instances)
        self._reports.forget(gone)
        for key in gone:
            self._memory.pop(key, None)
            self._revisions.forget(key)
        known = self._revisions.all()
        self._builds.forget_others(known)
        for id in set(self._old_memory) - known:
            del self._old_memory[id]

    def _fetch_bundle(self, digest: str) -> bytes | None:
        value = self._store.namespace(SYSTEM_NAMESPACE).get(f"bundles/{digest}")
        return None if value is None else value.data
