"""Makes the instances of this PoP equal to what the manifests say.

What it is: a thread of the control process. Each round it reads the manifests (manifests.py), the driver's view and the data process's view (fleet.py),
lets rollout.py and plan.py decide, and acts; it also installs the routing tables (routes.py), since every PoP needs them, and says how each function
stands (reports.py).
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
from edgeflow.core.failpoints import hit
from edgeflow.core.manifest import ResolvedFunction, size_bytes
from edgeflow.errors import EdgeflowError, StoreUnavailable, Unavailable
from edgeflow.runner.builds import Build, Builds, Key
from edgeflow.runner.driver import Driver
from edgeflow.runner.elastic import Elastic
from edgeflow.runner.fleet import Fleet
from edgeflow.runner.manifests import Manifests
from edgeflow.runner.memory import FunctionKey, Memory
from edgeflow.runner.plan import (
    READY,
    Coming,
    FunctionView,
    InstanceView,
    Kill,
    Park,
    Pause,
    Policy,
    Remove,
    Start,
    StartOld,
    Stop,
    plan,
)
from edgeflow.runner.ports import StorePort
from edgeflow.runner.reports import Reports
from edgeflow.runner.revisions import Revisions
from edgeflow.runner.rollout import Facts, Rollout
from edgeflow.runner.rollouts import Rollouts
from edgeflow.runner.room import Room
from edgeflow.runner.routes import Routes
from edgeflow.runner.waker import Waker
from edgeflow.settings import PopSettings

log = structlog.get_logger()

POLL_S = 1.0
"""Longest time between two rounds; wake-ups are hints only."""
PAUSE_S = 0.2
"""Shortest time between two rounds: the namespaces' wake-ups come with every batch of events."""
LATE_MS = 10_000
"""A round that takes longer is said to: the engine does not answer."""
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
        self._elastic = Elastic(store)
        self._room = Room.of(settings.runner)
        self._waker = Waker(store.local, driver)
        self._rollouts = Rollouts(store, self._revisions)
        self._memory: dict[Key, Memory] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_round_ms = 0
        self.last_error = ""

    # -- the thread ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="reconciler", daemon=True)
        self._thread.start()
        self._waker.start()

    def stop(self) -> None:
        """Stop the thread. Instances stay: the next control process adopts them, and whoever takes the PoP down ends them."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._waker.stop()
        self._builds.close()

    def status(self) -> dict[str, Any]:
        """{running, last_round_ms, last_error, functions: {"<ns>/<fn>": state}}."""
        alive = self._thread is not None and self._thread.is_alive()
        silent_ms = time.time() * 1000 - self.last_round_ms if self.last_round_ms else 0
        late = f"the runner has been waiting for {silent_ms / 1000:.0f} s" if silent_ms > LATE_MS else ""
        return {
            "running": alive,
            "last_round_ms": self.last_round_ms,
            "last_error": self.last_error or late,
            "functions": dict(self._reports.states),
        }

    def _loop(self) -> None:
        wakeups = self._store.wakeups()
        try:
            while not self._stop.is_set():
                try:
                    self.round(int(time.time() * 1000))
                    self.last_error = ""
                except Unavailable as error:
                    # The store or the engine is away: what runs goes on, and the next round looks again.
                    self.last_error = error.message
                    log.warning("round_not_made", reason=error.message)
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
        wanted = self._manifests.wanted(self._pop)
        self._revisions.note(wanted, self._manifests)
        self._rollouts.look()
        self._routes.install(self._manifests, self._rollouts.serving(self._manifests), now_ms)
        instances = self._fleet.look()
        self._reports.look()
        self._elastic.look()
        self._count(instances)
        for key in sorted(set(wanted) | set(instances)):
            try:
                self._care_for(key, wanted.get(key), instances.get(key, []), now_ms)
            except StoreUnavailable:
                raise
            except Exception as error:
                log.exception("function_not_cared_for", namespace=key[0], function=key[1])
                revision = wanted[key].revision if key in wanted else ""
                self._memory_of((*key, revision)).reason = f"{type(error).__name__}: {error}"
        self._forget(wanted, instances)
        self._driver.upkeep()
        self.last_round_ms = now_ms

    def _care_for(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView], now_ms: int
    ) -> None:
        """`function`: as the manifest wants it. Until that is ready, or when it was rolled back, another revision serves."""
        if function is None:
            self._act(key, FunctionView(None, 0, False, 0, instances), now_ms)
            self._reports.report(key, None, None, None, Memory(), instances, now_ms)
            return
        rollout, build = self._roll_out(key, function, instances, now_ms)
        memory = self._current_memory(key, function)
        live = function if rollout.live == function.revision else self._revisions.find(key, rollout.live)
        assert live is not None
        live_build = build if live is function else self._builds.get(*key, live, now_ms)
        live_memory = self._current_memory(key, live)
        current = {live.revision}
        coming = None
        if rollout.phase == "rolling":
            current.add(function.revision)
            coming = Coming(
                function.revision,
                max(1, function.scale.least),
                build.prepared is not None,
                memory.start_from_ms,
                memory.content,
            )
        old_work = self._revisions.with_work(key, current, {one.revision for one in instances})
        if rollout.phase == "rolled-back" and rollout.target in old_work:
            self._hand_over(key, function, live)
            old_work -= {rollout.target}
        active, exist = self._elastic.decide(key, live, instances, now_ms)
        view = FunctionView(
            revision=live.revision,
            wanted=exist,
            prepared=live_build.prepared is not None,
            start_from_ms=live_memory.start_from_ms,
            instances=instances,
            old_work=old_work,
            coming=coming,
            active=active,
            content=live_memory.content,
        )
        self._act(key, view, now_ms)
        self._reports.report(key, function, rollout, build, memory, instances, now_ms)

    def _roll_out(
        self, key: FunctionKey, function: ResolvedFunction, instances: list[InstanceView], now_ms: int
    ) -> tuple[Rollout, Build]:
        """Moves the rollout of a function on; new events follow at once."""
        known = self._rollouts.get(key)
        memory = self._current_memory(key, function)
        is_tried = known is None or known.target != function.revision or known.phase != "rolled-back"
        build = self._builds.get(*key, function, now_ms) if is_tried else Build()
        ready = [one for one in instances if one.state in READY and one.revision == function.revision and one.running]
        ready = [one for one in ready if one.content == memory.content]
        if memory.failures and any(now_ms - max(one.since_ms, one.started_ms) > STABLE_MS for one in ready):
            memory.stable()
        facts = Facts(
            startable=build.prepared is not None or bool(build.error),
            ready=len(ready) >= max(1, function.scale.least),
            failures=memory.failures,
            reason=memory.reason or build.error or memory.waits,
            last_log_lines=tuple(memory.last_log_lines or build.last_lines),
            asked=self._rollouts.asked(key) if known is not None and known.phase != "live" else "",
        )
        rollout = self._rollouts.step(key, function, facts, now_ms)
        if (
            rollout.phase == "rolling"
            and known is not None
            and (known.phase, known.target) != ("rolling", rollout.target)
        ):
            self._memory.pop((*key, function.revision), None)  # what it did at another time is not held against it
        if known is not None and rollout.live != known.live:
            self._routes.install(self._manifests, self._rollouts.serving(self._manifests), now_ms)
        return rollout, build

    def _hand_over(self, key: FunctionKey, bad: ResolvedFunction, live: ResolvedFunction) -> None:
        """What is left for a revision that was rolled back goes to the one that serves, if that can take it."""
        to = live.revision if _work_of(bad) == _work_of(live) else None
        left = self._store.namespace(key[0]).hand_over(key[1], bad.revision, to)
        hit("runner-handed-over")
        log.info("work_handed_over", namespace=key[0], function=key[1], revision=bad.revision, to=to, left=left)

    def _act(self, key: FunctionKey, view: FunctionView, now_ms: int) -> None:
        revision_of = {one.instance: one.revision for one in view.instances}
        for action in plan(view, self._policy, now_ms):
            if isinstance(action, Start):
                revision = view.coming.revision if action.is_coming and view.coming is not None else view.revision
                assert revision is not None
                self._start(key, revision, now_ms)
            elif isinstance(action, StartOld):
                log.info("old_revision_resumed", namespace=key[0], function=key[1], revision=action.revision)
                self._start(key, action.revision, now_ms)
            elif isinstance(action, Park):
                self._fleet.park(action.instance, action.wanted)
            elif isinstance(action, Pause):
                (self._waker.pause if action.wanted else self._waker.resume)(action.instance)
            elif isinstance(action, Stop):
                self._fleet.stop(key, action.instance, action.why, now_ms)
            else:
                memory = self._memory_of((*key, revision_of[action.instance]))
                if isinstance(action, Kill):
                    if action.failed:
                        self._failed(memory, action.why, action.instance, now_ms)
                    self._fleet.kill(key, action.instance, action.why, now_ms)
                else:
                    self._ended(key, action, memory, now_ms)

    def _memory_of(self, key: Key) -> Memory:
        return self._memory.setdefault(key, Memory())

    def _current_memory(self, key: FunctionKey, function: ResolvedFunction) -> Memory:
        """The memory of a revision with its secrets as they are now: with others it is another matter."""
        content = self._fleet.content_of(key[0], function)
        memory = self._memory_of((*key, function.revision))
        if memory.content != content:
            memory = self._memory[(*key, function.revision)] = Memory(content)
        return memory

    def _start(self, key: FunctionKey, revision: str, now_ms: int) -> None:
        function, memory = self._revisions.find(key, revision), self._memory_of((*key, revision))
        if function is None or now_ms < memory.start_from_ms:
            return  # perhaps a failure that was found in this very round
        build = self._builds.get(*key, function, now_ms)
        if build.prepared is None:
            return
        cpus, memory_bytes = function.limits.cpus, size_bytes(function.limits.memory)
        memory.waits = self._room.refusal(cpus, memory_bytes)
        if memory.waits:
            return
        self._room.take(cpus, memory_bytes)
        try:
            self._fleet.start(key, function, build.prepared, now_ms)
        except EdgeflowError as error:
            self._failed(memory, error.message, None, now_ms)
            if memory.failures % 3 == 0:
                self._builds.redo((*key, revision))

    def _count(self, instances: Mapping[FunctionKey, list[InstanceView]]) -> None:
        """What is taken of the room: a paused instance uses no CPU, and keeps its memory."""
        self._room.clear()
        for key, all_of in instances.items():
            for one in all_of:
                function = self._revisions.find(key, one.revision)
                if one.running and function is not None:
                    self._room.take(0.0 if one.paused else function.limits.cpus, size_bytes(function.limits.memory))

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
        known = {(namespace, name) for namespace, name, _ in {*self._memory, *self._revisions.all()}}
        self._rollouts.forget(known - set(wanted))
        gone = (self._reports.known() | known) - set(wanted) - set(instances)
        self._reports.forget(gone)
        self._elastic.forget(gone)
        for key in gone:
            self._revisions.forget(key)
        revisions = self._revisions.all()
        self._builds.forget_others(revisions)
        for id in set(self._memory) - revisions:
            del self._memory[id]

    def _fetch_bundle(self, digest: str) -> bytes | None:
        value = self._store.namespace(SYSTEM_NAMESPACE).get(f"bundles/{digest}")
        return None if value is None else value.data


def _work_of(function: ResolvedFunction) -> tuple[Any, ...]:
    """What an invocation of a function consists of: one of another function with the same can take it."""
    inputs = [one.name for one in function.inputs]
    return inputs, function.join, [one.name for one in function.latest], function.keyed
