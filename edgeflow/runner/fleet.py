"""The instances of this PoP: what the driver and the data process say about them, and the documents through which the data process hears of them.

What it is: looking at instances, and starting, stopping and forgetting one, each with its document `instance`.
What it is not: the decision to (plan.py), or what is said about functions (reports.py).
What must stay true: a running instance has its document, and one that is gone has none; what this process asked an instance to do is all it remembers.
"""

import secrets
import shutil
from pathlib import Path
from typing import Any

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.failpoints import hit
from edgeflow.core.manifest import ResolvedFunction, size_bytes
from edgeflow.core.manifest_models import DEFAULT_LOG, DEFAULT_PIDS, DEFAULT_TMPFS
from edgeflow.errors import EdgeflowError
from edgeflow.runner.contracts import setting_of
from edgeflow.runner.driver import CannotStart, Driver, Observed, Prepared, StartSpec, instance_prefix
from edgeflow.runner.memory import FunctionKey
from edgeflow.runner.plan import InstanceView
from edgeflow.runner.ports import StorePort
from edgeflow.runner.secret_files import fingerprint
from edgeflow.settings import PopSettings
from edgeflow.store.drift import DriftBook
from edgeflow.store.sealed import Sealer, SecretBook

log = structlog.get_logger()

MAX_SOCKET_PATH_BYTES = 107
ENDED_FROM_OUTSIDE = frozenset({"was ended by SIGKILL", "was ended by SIGTERM"})
"""Signals that a program does not send itself; a container that ran out of memory says so in other words."""


class Fleet:
    """All instances of one PoP."""

    def __init__(self, settings: PopSettings, store: StorePort, driver: Driver) -> None:
        self._settings = settings
        self._store = store
        self._driver = driver
        self._stopping: dict[str, int] = {}
        self._gave_up: dict[str, str] = {}
        self._seen: set[str] = set()
        self._drift = DriftBook(store.local)
        sealer = Sealer.load(settings.runner.secrets_key_file, settings.cluster)
        self._secrets = SecretBook(lambda: store.namespace(SYSTEM_NAMESPACE), sealer)

    def look(self) -> dict[FunctionKey, list[InstanceView]]:
        """Instances by function; repairs the documents about them."""
        observed = {one.instance: one for one in self._driver.observe()}
        documents = self._store.local.docs("instance")
        states = self._store.local.docs("instance_state")
        for instance in set(documents) - set(observed):
            log.info("instance_gone", instance=instance)
            if instance in self._seen:
                # It ran under this very process, and did not end: somebody took it away.
                gone = documents[instance]
                detail = f"instance {instance} was removed without having ended"
                self._drift.found("instance", f"{gone.get('namespace')}/{gone.get('function')}", detail)
            self.drop(instance)
        self._seen = {name for name, one in observed.items() if one.running}
        for instance in set(states) - set(observed):
            self._store.local.delete_doc("instance_state", instance)
        views: dict[FunctionKey, list[InstanceView]] = {}
        for instance, one in sorted(observed.items()):
            key = (one.namespace, one.function)
            if instance not in documents and one.running:
                self._document(one)
            state = states.get(instance, {})
            views.setdefault(key, []).append(
                InstanceView(
                    instance=instance, revision=one.revision, running=one.running, started_ms=one.started_ms, ended=one.ended,
                    state=state.get("state"), since_ms=int(state.get("since_ms") or 0), stopping_since_ms=self._stopping.get(instance),
                    content=one.content, paused=one.paused, is_to_park=bool(documents.get(instance, {}).get("park")), woken=bool(state.get("woken")),
                )
            )  # fmt: skip
        return views

    def park(self, instance: str, wanted: bool) -> None:
        """Have the data process send an instance to sleep, or (False) leave it awake."""
        document = self._store.local.get_doc("instance", instance)
        if document is not None:
            self._store.local.put_doc("instance", instance, {**document, "park": wanted})
            hit("runner-parked")

    def content_of(self, namespace: str, function: ResolvedFunction) -> str:
        """Names the versions of a function's secrets as they are; another one when any of them is set, changed or removed."""
        if not function.secrets:
            return ""
        known = {one.name: one.version for one in self._secrets.list(namespace)}
        return fingerprint({name: known.get(name, "") for name in function.secrets})

    def _document(self, one: Observed) -> None:
        socket = self._socket(one.instance)
        self._make_folder(socket.parent)
        document: dict[str, Any] = {
            "namespace": one.namespace, "function": one.function, "revision": one.revision, "instance": one.instance,
            "socket": str(socket), "created_ms": one.started_ms,
        }  # fmt: skip
        revision = self._store.local.get_doc("revision", "/".join((one.namespace, one.function, one.revision)))
        if revision is not None:
            # With it the data process can serve an instance of a revision that is no longer in the routing table.
            document["spec"] = revision["spec"]
        self._store.local.put_doc("instance", one.instance, document)

    def start(self, key: FunctionKey, function: ResolvedFunction, prepared: Prepared, now_ms: int) -> None:
        """Start one instance of a revision. Raises EdgeflowError when it cannot be started; nothing is left of it then."""
        namespace, name = key
        instance = f"{instance_prefix(namespace, name)}-{secrets.token_hex(4)}"
        socket, limits = self._socket(instance), function.limits
        try:
            if len(str(socket)) > MAX_SOCKET_PATH_BYTES:
                raise CannotStart(
                    f"the socket path {socket} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
                    hint="Use a shorter run_dir.",
                )
            given = self._secrets.read(namespace, function.secrets) if function.secrets else {}
            self._document(Observed(instance, namespace, name, function.revision, now_ms, True))
            hit("runner-documented")
            self._driver.start(
                StartSpec(
                    namespace=namespace, function=name, revision=function.revision, instance=instance, socket=socket, prepared=prepared,
                    cpus=limits.cpus, memory_bytes=size_bytes(limits.memory), pids=limits.pids or DEFAULT_PIDS,
                    tmpfs_bytes=size_bytes(limits.tmpfs or DEFAULT_TMPFS), log_bytes=size_bytes(limits.log or DEFAULT_LOG),
                    egress=function.network == "egress", gpus=function.gpus, env=function.env, contract=function.contract,
                    adapter=setting_of(function), direct=function.direct, secrets={name: data for name, (_, data) in given.items()},
                    content=fingerprint({name: version for name, (version, _) in given.items()}),
                )
            )  # fmt: skip
        except (EdgeflowError, OSError) as error:
            self.drop(instance)
            why = f"{error.message} ({error.hint})" if isinstance(error, EdgeflowError) else str(error)
            log.warning("instance_not_started", namespace=namespace, function=name, instance=instance, reason=why)
            raise CannotStart(why) from error
        hit("runner-started")
        log.info("instance_started", namespace=namespace, function=name, revision=function.revision, instance=instance)

    def stop(self, key: FunctionKey, instance: str, why: str, now_ms: int) -> None:
        """Ask an instance to leave."""
        log.info("instance_stopping", namespace=key[0], function=key[1], instance=instance, reason=why)
        self._stopping[instance] = now_ms
        self._driver.stop(instance)

    def kill(self, key: FunctionKey, instance: str, why: str, now_ms: int) -> None:
        """End an instance now."""
        log.warning("instance_killed", namespace=key[0], function=key[1], instance=instance, reason=why)
        self._gave_up[instance] = why
        self._driver.kill(instance)
        self._stopping.setdefault(instance, now_ms)

    def how_it_ended(self, key: FunctionKey, instance: str, how: str) -> str:
        """Why an instance is gone: it may have been this process that gave it up."""
        is_ours = instance in self._gave_up or instance in self._stopping
        why = self._gave_up.pop(instance, how)
        if not is_ours and how in ENDED_FROM_OUTSIDE:
            self._drift.found("instance", f"{key[0]}/{key[1]}", f"instance {instance} {how}, not by edgeflow")
        log.info("instance_ended", namespace=key[0], function=key[1], instance=instance, reason=why)
        return why

    def remove(self, instance: str) -> None:
        """Forget one that has ended."""
        self._driver.remove(instance)
        self._stopping.pop(instance, None)
        self.drop(instance)

    def drop(self, instance: str) -> None:
        """Remove its documents and the folder of its socket."""
        self._store.local.delete_doc("instance", instance)
        self._store.local.delete_doc("instance_state", instance)
        shutil.rmtree(self._socket(instance).parent, ignore_errors=True)

    def _socket(self, instance: str) -> Path:
        return self._settings.run_dir / "i" / instance / "s"

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A container runs under another account than the agent; it is given this folder only, so the mode admits nobody else.
        folder.chmod(0o700 if self._settings.mode == "embedded" else 0o755)
