"""Makes the instances of this PoP equal to what the manifests say.

What it is: a thread of the control process. Each round it reads the manifests, the driver's view and the data process's view, lets plan.py decide, and
acts; it also installs the routing tables, since every PoP needs them.
What it is not: in the way of any event. Instances and the data process go on while it is away, and it adopts what it finds when it comes back.
What must stay true: level-triggered: a round depends on what is there, not on how it came about; a broken manifest, function or build never keeps the
others from being cared for.

Documents for the data process and the api: `instance`, `function_state` (local); for itself: `revision`, what each revision was that ran here and
may have something left in its inbox. For whoever applies a manifest at another PoP: the value
`states/<namespace>/<function>/<pop>` in the system namespace.
"""

import json
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.manifest import ResolvedFunction, ResolvedManifest, check_resolved, size_bytes
from edgeflow.core.manifest_models import DEFAULT_LOG, DEFAULT_PIDS, DEFAULT_TMPFS
from edgeflow.core.routing import RouteTable, compile_routes
from edgeflow.errors import EdgeflowError, StoreUnavailable
from edgeflow.runner.builds import Build, Builds, Key
from edgeflow.runner.driver import Driver, Observed, StartSpec, instance_prefix
from edgeflow.runner.plan import (
    READY,
    FunctionView,
    InstanceView,
    Kill,
    Policy,
    Remove,
    Start,
    StartOld,
    Stop,
    backoff_ms,
    plan,
)
from edgeflow.runner.ports import StorePort
from edgeflow.runner.secret_files import fingerprint
from edgeflow.settings import PopSettings
from edgeflow.store.sealed import Sealer, SecretBook

log = structlog.get_logger()

POLL_S = 1.0
"""Longest time between two rounds; wake-ups are hints only."""
PAUSE_S = 0.2
"""Shortest time between two rounds: the namespaces' wake-ups come with every batch of events."""
STABLE_MS = 30_000
"""An instance that was ready this long wipes out the failures of its revision."""
ROUTES_EVERY_MS = 5_000
"""How often the tables are installed again even if nothing changed (a store may have been restored from an older state)."""
SHARE_EVERY_MS = 2_000
"""Shortest time between two values of `states/...` while only the progress of a build changes."""
MAX_SOCKET_PATH_BYTES = 107
KEPT_REVISIONS = 5
"""Old revisions of a function whose description is kept."""

FunctionKey = tuple[str, str]


@dataclass(slots=True)
class _Memory:
    """What the reconciler remembers about one function; lost at a restart without harm."""

    revision: str = ""
    content: str = ""
    failures: int = 0
    start_from_ms: int = 0
    reason: str = ""
    last_log_lines: list[str] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)
    shared_ms: int = 0


class Reconciler:
    """One round after another, until it is stopped."""

    def __init__(self, settings: PopSettings, store: StorePort, driver: Driver, policy: Policy | None = None) -> None:
        self._settings = settings
        self._store = store
        self._driver = driver
        self._policy = policy or Policy(start_deadline_ms=int(settings.runner.start_deadline_s * 1000))
        self._builds = Builds(driver, self._fetch_bundle)
        sealer = Sealer.load(settings.runner.secrets_key_file, settings.cluster)
        self._secrets = SecretBook(lambda: store.namespace(SYSTEM_NAMESPACE), sealer)
        self._memory: dict[FunctionKey, _Memory] = {}
        self._old_memory: dict[Key, _Memory] = {}
        self._revisions: dict[FunctionKey, dict[str, ResolvedFunction]] = {}
        self._gateways: dict[str, bool] = {}
        self._manifests: dict[str, tuple[str, ResolvedManifest, dict[str, Any]]] = {}
        self._unreadable: dict[str, str] = {}
        self._routes: dict[str, tuple[str, int]] = {}
        self._stopping: dict[str, int] = {}
        self._gave_up: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_round_ms = 0
        self.last_error = ""
        self._states: dict[str, str] = {}

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
            "functions": dict(self._states),
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
        self._read_manifests()
        self._install_routes(now_ms)
        wanted = self._wanted()
        instances = self._look(wanted, now_ms)
        self._remember_revisions(wanted)
        self._gateways = {
            name: bool(state.get("connected")) for name, state in self._store.local.docs("gateway_state").items()
        }
        for key in sorted(set(wanted) | set(instances)):
            try:
                self._care_for(key, wanted.get(key), instances.get(key, []), now_ms)
            except StoreUnavailable:
                raise
            except Exception as error:
                log.exception("function_not_cared_for", namespace=key[0], function=key[1])
                self._memory.setdefault(key, _Memory()).reason = f"{type(error).__name__}: {error}"
        self._forget(wanted, instances)
        self._driver.upkeep()
        self.last_round_ms = now_ms

    def _read_manifests(self) -> None:
        system = self._store.namespace(SYSTEM_NAMESPACE)
        found: dict[str, str] = {}
        after = ""
        while page := system.list("manifests/", after=after, limit=500):
            found |= {info.key.removeprefix("manifests/"): info.version for info in page}
            after = page[-1].key
            if len(page) < 500:
                break
        for name, version in found.items():
            known = self._manifests.get(name)
            if (known is not None and known[0] == version) or self._unreadable.get(name) == version:
                continue
            value = system.get(f"manifests/{name}")
            if value is None:
                continue
            try:
                document = json.loads(value.data)
                manifest = check_resolved(document)
                if manifest.namespace != name:
                    raise ValueError(f"it names the namespace {manifest.namespace!r}")
            except (EdgeflowError, ValueError, TypeError, AttributeError, KeyError) as error:
                # What is there goes on as it was: a damaged manifest must not stop an application.
                self._unreadable[name] = version
                log.error("manifest_unreadable", namespace=name, version=version, reason=str(error))
                continue
            self._unreadable.pop(name, None)
            self._manifests[name] = (version, manifest, document)
            log.info("manifest_read", namespace=name, version=version, functions=sorted(manifest.functions))
        for name in set(self._manifests) - set(found):
            del self._manifests[name]
            log.info("manifest_gone", namespace=name)

    def _install_routes(self, now_ms: int) -> None:
        for name, (_, _, document) in self._manifests.items():
            if name not in self._routes:
                self._store.create_namespace(name)
            self._install(name, compile_routes(document, self._settings.pop), now_ms)
        for name in self._store.namespaces():
            if name not in self._manifests and name not in self._unreadable and name != SYSTEM_NAMESPACE:
                self._install(name, RouteTable(), now_ms)

    def _install(self, namespace: str, table: RouteTable, now_ms: int) -> None:
        version, at_ms = self._routes.get(namespace, ("?", 0))
        if version == table.version and now_ms - at_ms < ROUTES_EVERY_MS:
            return
        if self._store.namespace(namespace).set_routes(table):
            log.info(
                "routes_installed",
                namespace=namespace,
                version=table.version,
                functions=[one.function for one in table.functions],
            )
        self._routes[namespace] = (table.version, now_ms)

    def _wanted(self) -> dict[FunctionKey, ResolvedFunction]:
        return {
            (namespace, name): function
            for namespace, (_, manifest, _) in self._manifests.items()
            for name, function in manifest.functions.items()
            if self._settings.pop in function.place.pops
        }

    def _look(
        self, wanted: Mapping[FunctionKey, ResolvedFunction], now_ms: int
    ) -> dict[FunctionKey, list[InstanceView]]:
        """Instances by function, with what the driver and the data process say; repairs the documents about them."""
        observed = {one.instance: one for one in self._driver.observe()}
        documents = self._store.local.docs("instance")
        states = self._store.local.docs("instance_state")
        for instance in set(documents) - set(observed):
            log.info("instance_gone", instance=instance)
            self._drop(instance)
        for instance in set(states) - set(observed):
            self._store.local.delete_doc("instance_state", instance)
        views: dict[FunctionKey, list[InstanceView]] = {}
        for instance, one in sorted(observed.items()):
            key = (one.namespace, one.function)
            if instance not in documents and one.running:
                self._document(one, now_ms)
            state = states.get(instance, {})
            views.setdefault(key, []).append(
                InstanceView(
                    instance=instance, revision=one.revision, running=one.running, started_ms=one.started_ms, ended=one.ended,
                    state=state.get("state"), since_ms=int(state.get("since_ms") or 0), stopping_since_ms=self._stopping.get(instance),
                    content=one.content,
                )
            )  # fmt: skip
        return views

    def _document(self, one: Observed, now_ms: int) -> None:
        socket = self._socket(one.instance)
        self._make_folder(socket.parent)
        document: dict[str, Any] = {
            "namespace": one.namespace, "function": one.function, "revision": one.revision, "instance": one.instance,
            "socket": str(socket), "created_ms": now_ms,
        }  # fmt: skip
        revision = self._store.local.get_doc("revision", "/".join((one.namespace, one.function, one.revision)))
        if revision is not None:
            # With it the data process can serve an instance of a revision that is no longer in the routing table.
            document["spec"] = revision["spec"]
        self._store.local.put_doc("instance", one.instance, document)

    # -- one function --------------------------------------------------------------------------------------------------

    def _care_for(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView], now_ms: int
    ) -> None:
        namespace, name = key
        memory = self._memory.setdefault(key, _Memory())
        build: Build | None = None
        content = ""
        if function is not None:
            content = self._content_of(namespace, function)
            if (memory.revision, memory.content) != (function.revision, content):
                self._memory[key] = memory = _Memory(function.revision, content, shared=memory.shared)
            build = self._builds.get(namespace, name, function, now_ms)
            stable = [one for one in instances if one.state in READY and one.revision == function.revision]
            if memory.failures and any(now_ms - max(one.since_ms, one.started_ms) > STABLE_MS for one in stable):
                memory.failures, memory.reason, memory.last_log_lines = 0, "", []
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
                log.info(
                    "instance_stopping", namespace=namespace, function=name, instance=action.instance, reason=action.why
                )
                self._stopping[action.instance] = now_ms
                self._driver.stop(action.instance)
            elif isinstance(action, Kill):
                log.warning(
                    "instance_killed", namespace=namespace, function=name, instance=action.instance, reason=action.why
                )
                self._gave_up[action.instance] = action.why
                if action.failed:
                    self._failed(
                        self._memory_of(key, function, instances, action.instance), action.why, action.instance, now_ms
                    )
                self._driver.kill(action.instance)
                self._stopping.setdefault(action.instance, now_ms)
            else:
                self._ended(key, action, self._memory_of(key, function, instances, action.instance), now_ms)
        self._report(key, function, build, memory, instances, now_ms)

    def _memory_of(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView], instance: str
    ) -> _Memory:  # fmt: skip
        """Where a failure of an instance counts: with the function, or with the old revision it belongs to."""
        revision = next(one.revision for one in instances if one.instance == instance)
        if function is not None and revision == function.revision:
            return self._memory[key]
        return self._old_memory.setdefault((*key, revision), _Memory(revision=revision))

    def _old_work(
        self, key: FunctionKey, function: ResolvedFunction | None, instances: list[InstanceView]
    ) -> frozenset[str]:
        """Old revisions that have something left in their inboxes; of those that have not and do not run any more, forgets all but the newest."""
        if function is None:
            return frozenset()
        known = self._revisions.get(key, {})
        running = {one.revision for one in instances}
        left = set()
        for revision in (running | set(known)) - {function.revision}:
            stats = self._store.namespace(key[0]).inbox_stats(key[1], revision)
            if stats.pending > 0:
                left.add(revision)
        # The newest are kept for replays, and to go back to.
        spare = [revision for revision in known if revision not in {*running, *left, function.revision}]
        for revision in spare[: max(0, len(spare) - KEPT_REVISIONS)]:
            self._forget_revision(key, revision)
        return frozenset(left)

    def _start_old(self, key: FunctionKey, revision: str, now_ms: int) -> None:
        function = self._revisions.get(key, {}).get(revision)
        memory = self._old_memory.setdefault((*key, revision), _Memory(revision=revision))
        if function is None or now_ms < memory.start_from_ms:
            return
        build = self._builds.get(*key, function, now_ms)
        if build.prepared is not None:
            log.info("old_revision_resumed", namespace=key[0], function=key[1], revision=revision)
            self._start(key, function, build, memory, now_ms)

    def _remember_revisions(self, wanted: Mapping[FunctionKey, ResolvedFunction]) -> None:
        """Write down what runs here, so that an old revision can be started again for what is left in its inbox."""
        documents = self._store.local.docs("revision")
        for key, function in wanted.items():
            id = "/".join((*key, function.revision))
            if id not in documents:
                spec = self._manifests[key[0]][2]["functions"][key[1]]
                document = {"namespace": key[0], "function": key[1], "spec": spec, "noted_ms": int(time.time() * 1000)}
                self._store.local.put_doc("revision", id, document)
                self._revisions.setdefault(key, {})[function.revision] = function
        for id, document in sorted(documents.items(), key=lambda item: int(item[1].get("noted_ms") or 0)):
            key, revision = (document["namespace"], document["function"]), id.rpartition("/")[2]
            if revision not in self._revisions.get(key, {}):
                function = ResolvedFunction.model_validate(document["spec"], context={"namespace": key[0]})
                self._revisions.setdefault(key, {})[revision] = function

    def _forget_revision(self, key: FunctionKey, revision: str) -> None:
        self._store.local.delete_doc("revision", "/".join((*key, revision)))
        self._revisions.get(key, {}).pop(revision, None)
        self._old_memory.pop((*key, revision), None)

    def _start(self, key: FunctionKey, function: ResolvedFunction, build: Build, memory: _Memory, now_ms: int) -> None:
        namespace, name = key
        instance = f"{instance_prefix(namespace, name)}-{secrets.token_hex(4)}"
        socket = self._socket(instance)
        assert build.prepared is not None
        limits = function.limits
        try:
            if len(str(socket)) > MAX_SOCKET_PATH_BYTES:
                raise EdgeflowError(
                    f"the socket path {socket} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
                    hint="Use a shorter run_dir.",
                )
            given = self._secrets.read(namespace, function.secrets) if function.secrets else {}
            self._document(Observed(instance, namespace, name, function.revision, now_ms, True), now_ms)
            self._driver.start(
                StartSpec(
                    namespace=namespace, function=name, revision=function.revision, instance=instance, socket=socket, prepared=build.prepared,
                    cpus=limits.cpus, memory_bytes=size_bytes(limits.memory), pids=limits.pids or DEFAULT_PIDS,
                    tmpfs_bytes=size_bytes(limits.tmpfs or DEFAULT_TMPFS), log_bytes=size_bytes(limits.log or DEFAULT_LOG),
                    egress=function.network == "egress", gpus=function.gpus, env=function.env, direct=function.direct,
                    secrets={name: data for name, (_, data) in given.items()},
                    content=fingerprint({name: version for name, (version, _) in given.items()}),
                )
            )  # fmt: skip
            log.info(
                "instance_started", namespace=namespace, function=name, revision=function.revision, instance=instance
            )
        except (EdgeflowError, OSError) as error:
            why = f"{error.message} ({error.hint})" if isinstance(error, EdgeflowError) else str(error)
            log.warning("instance_not_started", namespace=namespace, function=name, instance=instance, reason=why)
            self._drop(instance)
            self._failed(memory, why, None, now_ms)
            if memory.failures % 3 == 0:
                self._builds.redo((namespace, name, function.revision))

    def _ended(self, key: FunctionKey, action: Remove, memory: _Memory, now_ms: int) -> None:
        instance = action.instance
        why = self._gave_up.pop(instance, action.why)
        log.info("instance_ended", namespace=key[0], function=key[1], instance=instance, reason=why)
        if action.failed:
            self._failed(memory, why, instance, now_ms)
        self._driver.remove(instance)
        self._stopping.pop(instance, None)
        self._drop(instance)

    def _failed(self, memory: _Memory, why: str, instance: str | None, now_ms: int) -> None:
        memory.failures += 1
        memory.start_from_ms = now_ms + backoff_ms(memory.failures)
        memory.reason = f"instance {instance} {why}" if instance else why
        memory.last_log_lines = self._driver.tail(instance, 20) if instance else []

    # -- what others see -----------------------------------------------------------------------------------------------

    def _report(
        self, key: FunctionKey, function: ResolvedFunction | None, build: Build | None, memory: _Memory, instances: list[InstanceView],
        now_ms: int,
    ) -> None:  # fmt: skip
        namespace, name = key
        id = f"{namespace}/{name}"
        listed = [
            {"instance": one.instance, "revision": one.revision, "state": _state_of(one), "started_ms": one.started_ms}
            for one in instances
        ]
        if function is None:
            state: dict[str, Any] = {"state": "stopped", "revision": "", "reason": "", "last_log_lines": []}
        else:
            state = {**_judge(function, build, memory, instances), "revision": function.revision}
        document = {
            "namespace": namespace,
            "function": name,
            **state,
            "wanted": function.scale.instances if function else 0,
            "instances": listed,
        }
        self._states[id] = state["state"]
        self._store.local.put_doc("function_state", id, document)
        self._share(
            key, {"pop": self._settings.pop, "gateway": self._gateways.get(namespace, False), **state}, memory, now_ms
        )

    def _share(self, key: FunctionKey, state: dict[str, Any], memory: _Memory, now_ms: int) -> None:
        """Replicate the state, so that a manifest applied at one PoP can be watched there. Progress lines at most every two seconds."""
        if state == memory.shared:
            return
        urgent = any(state[name] != memory.shared.get(name) for name in ("state", "revision", "gateway"))
        if not urgent and now_ms - memory.shared_ms < SHARE_EVERY_MS:
            return
        data = json.dumps({**state, "at_ms": now_ms}).encode()
        self._store.namespace(SYSTEM_NAMESPACE).put(self._shared_key(key), data, content_type="application/json")
        memory.shared, memory.shared_ms = state, now_ms

    def _shared_key(self, key: FunctionKey) -> str:
        return f"states/{key[0]}/{key[1]}/{self._settings.pop}"

    def _forget(
        self, wanted: Mapping[FunctionKey, ResolvedFunction], instances: Mapping[FunctionKey, list[InstanceView]]
    ) -> None:
        """Documents of functions that are neither wanted here nor running."""
        known = {(one["namespace"], one["function"]) for one in self._store.local.docs("function_state").values()}
        for key in (known | set(self._memory)) - set(wanted) - set(instances):
            self._store.local.delete_doc("function_state", f"{key[0]}/{key[1]}")
            system = self._store.namespace(SYSTEM_NAMESPACE)
            if system.get(self._shared_key(key)) is not None:
                system.delete(self._shared_key(key))
            self._memory.pop(key, None)
            self._states.pop(f"{key[0]}/{key[1]}", None)
            for revision in list(self._revisions.pop(key, {})):
                self._forget_revision(key, revision)
        self._builds.forget_others(
            {(*key, revision) for key, revisions in self._revisions.items() for revision in revisions}
        )

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _content_of(self, namespace: str, function: ResolvedFunction) -> str:
        """Names the versions of a function's secrets as they are; another one when any of them is set, changed or removed."""
        if not function.secrets:
            return ""
        known = {one.name: one.version for one in self._secrets.list(namespace)}
        return fingerprint({name: known.get(name, "") for name in function.secrets})

    def _fetch_bundle(self, digest: str) -> bytes | None:
        value = self._store.namespace(SYSTEM_NAMESPACE).get(f"bundles/{digest}")
        return None if value is None else value.data

    def _socket(self, instance: str) -> Path:
        return self._settings.run_dir / "i" / instance / "s"

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A container runs under another account than the agent; it is given this folder only, so the mode admits nobody else.
        folder.chmod(0o700 if self._settings.mode == "embedded" else 0o755)

    def _drop(self, instance: str) -> None:
        self._store.local.delete_doc("instance", instance)
        self._store.local.delete_doc("instance_state", instance)
        shutil.rmtree(self._socket(instance).parent, ignore_errors=True)


def _state_of(one: InstanceView) -> str:
    if not one.running:
        return "ended"
    return "stopping" if one.stopping_since_ms is not None else one.state or "starting"


def _judge(
    function: ResolvedFunction, build: Build | None, memory: _Memory, instances: list[InstanceView]
) -> dict[str, Any]:
    """State, reason and last log lines of a function that is wanted here."""
    current = [one for one in instances if one.revision == function.revision and one.content == memory.content]
    ready = sum(1 for one in current if one.running and _state_of(one) in READY)
    if ready >= function.scale.instances:
        return {"state": "ready", "reason": "", "last_log_lines": []}
    if build is not None and build.prepared is None:
        if build.error:
            return {"state": "failing", "reason": build.error, "last_log_lines": build.last_lines}
        return {"state": "building", "reason": build.progress[-1] if build.progress else "", "last_log_lines": []}
    if memory.failures:
        return {"state": "failing", "reason": memory.reason, "last_log_lines": memory.last_log_lines}
    return {
        "state": "starting",
        "reason": f"{ready} of {function.scale.instances} instances ready",
        "last_log_lines": [],
    }


class Runner:
    """What the control process holds: the driver of the PoP's mode and the reconciler over it."""

    def __init__(self, settings: PopSettings, store: StorePort) -> None:
        self._reconciler = Reconciler(settings, store, _driver_for(settings))

    def start(self) -> None:
        """Start caring."""
        self._reconciler.start()

    def stop(self) -> None:
        """Stop caring; instances stay."""
        self._reconciler.stop()

    def status(self) -> dict[str, Any]:
        """See Reconciler.status."""
        return self._reconciler.status()


def _driver_for(settings: PopSettings) -> Driver:
    if settings.mode == "docker":
        from edgeflow.runner.docker import DockerDriver

        return DockerDriver(settings)
    from edgeflow.runner.process import ProcessDriver

    return ProcessDriver(settings)
