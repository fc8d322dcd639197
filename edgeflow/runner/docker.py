"""Instances as hardened containers (Docker mode).

What it is: a Driver over the local Docker engine. A container has no network, no capability, a read-only root, its limits, and one folder: that of its
own socket. One whose function has a `qos: 0` input also has the folder with the broker's socket for functions; one with `secrets:` the folder with
theirs; one with `network: egress` a network of its PoP that leads outside only (egress.py).
An instance of another contract than `sdk` is a pair: the adapter as just said, and the user's image in the adapter's network namespace, without any socket (pairs.py).
What it is not: an orchestrator: restarts are the reconciler's (restart policy none), and only the control process holds the engine's socket.
What must stay true: nothing of the host, the store, the broker, other instances or the engine is reachable from a container but its own socket; with a
`qos: 0` input also the broker, whose account admits it to its own channels only.

Labels edgeflow.{cluster,pop,namespace,function,revision,instance,content} say what a container is; `stop_all` ends a cluster's containers by them.
Logs stay with the engine (json-file, bounded); `logs` of a container that was removed are gone, its last lines are in the function's state.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import structlog

from edgeflow.core.endings import SIGNALS, how_ended
from edgeflow.core.manifest import ResolvedFunction
from edgeflow.errors import BadManifest, EdgeflowError
from edgeflow.runner import bundles, egress, images, pairs, secret_files
from edgeflow.runner.driver import CannotStart, Observed, Prepared, Progress, StartSpec
from edgeflow.runner.engine_images import EngineImages
from edgeflow.runner.images import EngineUnavailable
from edgeflow.runner.library import ImageLibrary
from edgeflow.runner.ports import ImageStorePort
from edgeflow.runner.usage import Usage, of_containers
from edgeflow.settings import BROKER_FOLDER, PopSettings

log = structlog.get_logger()

NOBODY_ID = 65534
NOBODY = f"{NOBODY_ID}:{NOBODY_ID}"
SOCKET_FOLDER = "/run/edgeflow"
LISTENING_S = 10.0
CPU_SHARES = 256
"""A quarter of the agent's default weight (1024): a busy handler does not slow the agent."""
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}
_LABEL = "edgeflow."


class DockerDriver:
    """Instances of one PoP as containers."""

    def __init__(
        self, settings: PopSettings, client: docker.DockerClient | None = None, store: ImageStorePort | None = None
    ) -> None:
        """`store`: where the cluster's images are; without one, images are those of the engine."""
        self._settings = settings
        self._client = client or images.engine()
        self.images: EngineImages | None = None
        if store is not None:
            library = ImageLibrary(store, settings.pop, settings.limits.image_bytes)
            self.images = EngineImages(self._client, library, store, settings.pop, settings.runner.image_prefix)
        self._mountpoint = ""
        self._lock = threading.Lock()
        self._pairs: set[str] = set()
        """Instances of two containers."""
        self._leaving: set[str] = set()
        """Pairs whose program is being ended."""

    def prepare(
        self, namespace: str, name: str, function: ResolvedFunction, bundle: bytes | None, progress: Progress
    ) -> Prepared:
        """Find or pull the image, or build it from the folder."""
        if function.contract != "sdk":
            images.base_id(self._client, self._adapter_image, lambda base: self._pushed(base, progress))
        if function.image is not None:
            if self.images is not None:
                return Prepared(image=self.images.need(function.image, function.image_id, progress))
            images.need_image(self._client, function.image, progress)
            return Prepared(image=function.image)
        if bundle is None or function.bundle is None:
            raise BadManifest(
                f"{namespace}/{name} has neither image nor folder", hint="Apply it again with `edgeflow apply`."
            )
        folder = bundles.unpack(bundle, function.bundle, self._settings.state_dir / "bundles" / function.bundle[:24])
        prefix = self._settings.runner.image_prefix
        tag = images.build_image(
            self._client, folder, f"{namespace}/{name}", prefix=prefix, progress=progress,
            labels={images.CLUSTER_LABEL: self._settings.cluster, images.BUNDLE_LABEL: function.bundle},
            find_base=lambda base: self._pushed(base, progress),
        )  # fmt: skip
        return Prepared(image=tag)

    def _pushed(self, name: str, progress: Progress) -> str | None:
        """An image that was pushed under that name, loaded; None when none was."""
        return None if self.images is None else self.images.stored(name, progress)

    def observe(self) -> list[Observed]:
        """The containers with the labels of this PoP."""
        filters = {"label": [f"{_LABEL}cluster={self._settings.cluster}", f"{_LABEL}pop={self._settings.pop}"]}
        parts: dict[str, dict[str, Any]] = defaultdict(dict)
        for container in self._ask(lambda: self._client.api.containers(all=True, filters=filters)):
            labels = images.labels_of(container)
            parts[labels.get(_LABEL + "instance", container["Id"][:12])][labels.get(_LABEL + "role", "")] = container
        with self._lock:
            observed = [self._observed(instance, of) for instance, of in parts.items() if instance not in self._leaving]
            self._pairs = {instance for instance, of in parts.items() if "" not in of}
        return observed

    def _observed(self, instance: str, parts: dict[str, Any]) -> Observed:
        first = next(iter(parts.values()))
        labels = images.labels_of(first)
        ended = pairs.how_it_stands(
            {
                role: None if one["State"] in ("running", "paused") else self._how(one["Id"])
                for role, one in parts.items()
            }
        )
        return Observed(
            instance=instance, namespace=labels.get(_LABEL + "namespace", ""), function=labels.get(_LABEL + "function", ""),
            revision=labels.get(_LABEL + "revision", ""), started_ms=int(first["Created"]) * 1000, running=ended is None, ended=ended,
            content=labels.get(_LABEL + "content", ""), paused=any(one["State"] == "paused" for one in parts.values()),
        )  # fmt: skip

    def start(self, spec: StartSpec) -> None:
        """Create and start the container; of a pair the adapter's first, whose network namespace the program's joins."""
        if spec.secrets:
            secret_files.write(spec.socket.parent / secret_files.FOLDER, spec.secrets, reader=NOBODY_ID)
        if spec.egress:
            egress.ensure(self._client, self._settings.cluster, self._settings.pop)
        options = self._options(spec)
        if spec.contract == "sdk":
            self._launch(spec, options)
            return
        try:
            adapter = self._launch(spec, pairs.adapter_options(options, spec, self._adapter_image))
            if spec.contract == "mqtt":
                self._wait_listening(spec.instance, adapter)
            command, launcher = self._launched(spec) if spec.contract == "stdio" else ([], None)
            self._launch(spec, pairs.program_options(options, spec, adapter, command, launcher))
        except EdgeflowError:
            self.kill(spec.instance)
            self._remove(spec.instance)
            raise

    def _wait_listening(self, instance: str, adapter: str) -> None:
        """Until the adapter stands where the broker is expected: stock clients try once. Raises CannotStart."""
        deadline_s = time.monotonic() + LISTENING_S
        while pairs.LISTENING not in self._ask(lambda: self._client.api.logs(adapter)):
            if time.monotonic() > deadline_s:
                raise CannotStart(f"the adapter of {instance} does not listen after {LISTENING_S:g} s")
            time.sleep(0.02)

    def _launched(self, spec: StartSpec) -> tuple[list[str], Any]:
        """The image's own command, and the launcher's mount. Raises CannotStart."""
        command = images.command_of(self._client, spec.prepared.image or "")
        if not command and not spec.adapter.get("command"):
            raise CannotStart(
                f"the image {spec.prepared.image} says no program to run", hint="Name it: `command: [program, ...]`."
            )
        source = self._settings.runner.launcher
        target = self._settings.run_dir / "l" / pairs.LAUNCHER_FILE
        try:
            program = source.read_bytes()
            if not target.is_file() or target.read_bytes() != program:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.parent.chmod(0o755)
                fresh = target.with_suffix(".new")
                fresh.write_bytes(program)
                fresh.chmod(0o755)
                fresh.replace(target)
        except OSError as error:
            raise CannotStart(
                f"the launcher for `contract: stdio` cannot be copied from {source}: {error.strerror or error}",
                hint="runner.launcher in the settings of the PoP names it; the agent's image has it.",
            ) from error
        folder = f"{self._volume()}/{target.parent.name}"
        return command, docker.types.Mount(pairs.LAUNCHER_FOLDER, folder, type="bind", read_only=True)

    def _launch(self, spec: StartSpec, options: dict[str, Any]) -> str:
        """The id of a new container that runs. Raises CannotStart, EngineUnavailable."""
        try:
            container = self._client.containers.create(**options)
        except docker.errors.ImageNotFound as error:
            raise CannotStart(f"the image {options['image']} is not on this engine any more") from error
        except docker.errors.APIError as error:
            raise CannotStart(f"the engine does not create {spec.instance}: {error.explanation or error}") from error
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error
        try:
            container.start()
        except (docker.errors.APIError, OSError) as error:
            self._remove(spec.instance)
            if spec.gpus is not None and "could not select device driver" in str(error):
                raise CannotStart(
                    f"{spec.namespace}/{spec.function} wants GPUs (`gpus: {spec.gpus}`), and the engine of PoP {self._settings.pop} has none to give",
                    hint="Place it at a PoP whose engine has them (NVIDIA Container Toolkit), or remove `gpus:`.",
                ) from error
            raise CannotStart(
                f"the engine does not start {spec.instance}: {getattr(error, 'explanation', None) or error}"
            ) from error
        return str(container.id)

    def stop(self, instance: str) -> None:
        """SIGTERM: the SDK finishes the current invocation, gives the rest back and leaves. Of a pair it is the adapter that does."""
        self.resume(instance)
        self._signal(self._name(instance), "SIGTERM")

    def kill(self, instance: str) -> None:
        """SIGKILL."""
        self.resume(instance)
        for name in self._names(instance):
            self._signal(name, "SIGKILL")

    def pause(self, instance: str) -> None:
        """Freeze the container, of a pair both."""
        for name in self._names(instance):
            self._freeze(self._client.api.pause, name)

    def resume(self, instance: str) -> None:
        """Thaw the container, of a pair both; the adapter first."""
        for name in self._names(instance):
            self._freeze(self._client.api.unpause, name)

    def _freeze(self, call: Callable[[str], object], name: str) -> None:
        try:
            call(name)
        except docker.errors.APIError as error:
            # 404: there is none; 409 and 500: it is so already, or does not run.
            if error.status_code not in (404, 409, 500):
                log.warning("container_not_frozen", container=name, reason=str(error.explanation or error))
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error

    def remove(self, instance: str) -> None:
        """Remove the container and its log. The program of a pair, whose adapter has finished, is told to end first."""
        with self._lock:
            is_pair = instance in self._pairs
            if is_pair:
                self._leaving.add(instance)
        if is_pair:
            # It may take seconds, and other instances wait for their turn.
            threading.Thread(target=self._end_pair, args=(instance,), name="end-pair", daemon=True).start()
        else:
            self._remove(instance)

    def _end_pair(self, instance: str) -> None:
        try:
            self._client.api.stop(pairs.program_name(self._name(instance)), timeout=pairs.STOP_GRACE_S)
        except (docker.errors.DockerException, OSError):
            pass  # it is gone, or what follows says why not
        self._remove(instance)
        with self._lock:
            self._leaving.discard(instance)

    def _remove(self, instance: str) -> None:
        for name in self._names(instance):
            try:
                self._client.api.remove_container(name, force=True, v=True)
            except docker.errors.NotFound:
                pass
            except (docker.errors.DockerException, OSError) as error:
                reason = str(getattr(error, "explanation", None) or error)
                log.warning("container_not_removed", instance=instance, container=name, reason=reason)

    def tail(self, instance: str, lines: int) -> list[str]:
        """Last lines of the container's log; of a pair those of its program, and of its adapter where there is room."""
        found: list[str] = []
        for name in reversed(self._names(instance)):
            try:
                raw: bytes = self._client.api.logs(name, tail=lines, stdout=True, stderr=True)
            except (docker.errors.DockerException, OSError):
                continue
            found += raw.decode("utf-8", "replace").splitlines()[: lines - len(found)]
        return found

    def usage(self) -> dict[str, Usage]:
        """What each instance uses, by the engine."""
        filters = {"label": [f"{_LABEL}cluster={self._settings.cluster}", f"{_LABEL}pop={self._settings.pop}"]}
        gone = (docker.errors.DockerException, OSError)
        found: dict[str, Usage] = self._ask(lambda: of_containers(self._client, filters, _LABEL + "instance", gone))
        return found

    def upkeep(self) -> None:
        """Nothing: the engine bounds the logs."""

    def _options(self, spec: StartSpec) -> dict[str, Any]:
        labels = {
            "cluster": self._settings.cluster, "pop": self._settings.pop, "namespace": spec.namespace, "function": spec.function,
            "revision": spec.revision, "instance": spec.instance, "content": spec.content,
        }  # fmt: skip
        mounts = [docker.types.Mount(SOCKET_FOLDER, f"{self._volume()}/i/{spec.instance}", type="bind", read_only=True)]
        groups: list[int] = []
        if spec.direct:
            folder = self._broker_folder()
            mounts.append(
                docker.types.Mount(BROKER_FOLDER, f"{self._volume()}/{folder.name}", type="bind", read_only=True)
            )
            groups.append(folder.stat().st_gid)
        if spec.secrets:
            folder = spec.socket.parent / secret_files.FOLDER
            source = f"{self._volume()}/i/{spec.instance}/{folder.name}"
            mounts.append(docker.types.Mount(secret_files.INSIDE, source, type="bind", read_only=True))
            groups += secret_files.groups(folder, NOBODY_ID)
        return {
            "image": spec.prepared.image,
            "name": self._name(spec.instance),
            "labels": {_LABEL + key: value for key, value in labels.items()},
            "environment": {
                "HOME": "/tmp",
                **_ONE_THREAD,
                **spec.env,
                "EDGEFLOW_SOCKET": f"{SOCKET_FOLDER}/{spec.socket.name}",
                **({"EDGEFLOW_SECRETS": secret_files.INSIDE} if spec.secrets else {}),
            },
            "mounts": mounts,
            "group_add": groups,
            "network_mode": egress.name(self._settings.cluster, self._settings.pop) if spec.egress else "none",
            "user": NOBODY,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "read_only": True,
            "tmpfs": {"/tmp": f"rw,nosuid,nodev,size={spec.tmpfs_bytes},mode=1777"},
            "ipc_mode": "private",
            "pids_limit": spec.pids,
            "device_requests": _device_requests(spec.gpus),
            "mem_limit": spec.memory_bytes,
            "memswap_limit": spec.memory_bytes,
            "nano_cpus": int(spec.cpus * 1e9),
            "cpu_shares": CPU_SHARES,
            "init": True,
            "restart_policy": {"Name": "no"},
            "log_config": docker.types.LogConfig(
                type="json-file", config={"max-size": str(spec.log_bytes // 2), "max-file": "2"}
            ),
        }

    def _volume(self) -> str:
        """Where the engine keeps the volume with the sockets: only the engine resolves this path, also on Docker Desktop."""
        if not self._mountpoint:
            name = self._settings.runner.socket_volume
            if name is None:
                # The agent is no container: the engine of this machine sees its folders as they are.
                self._mountpoint = str(self._settings.run_dir)
                return self._mountpoint
            try:
                self._mountpoint = str(self._client.volumes.get(name).attrs["Mountpoint"])
            except docker.errors.NotFound as error:
                raise CannotStart(
                    f"there is no volume {name!r}", hint="Correct runner.socket_volume in the settings of the PoP."
                ) from error
        return self._mountpoint

    def _broker_folder(self) -> Path:
        """The folder with the broker's socket for functions: directly below run_dir, so that its name is enough to find it in the volume."""
        path = self._settings.mqtt.function_socket
        if path is None or path.parent.parent != self._settings.run_dir:
            raise CannotStart(
                "mqtt.function_socket is not set to <run_dir>/<folder>/<name>", hint="Provision the PoP again."
            )
        return path.parent

    def _name(self, instance: str) -> str:
        return f"edgeflow-{self._settings.pop}-{instance}"

    def _names(self, instance: str) -> list[str]:
        """Names that the containers of an instance have, or would have if it is a pair."""
        name = self._name(instance)
        return [name, pairs.program_name(name)]

    @property
    def _adapter_image(self) -> str:
        return f"{self._settings.runner.image_prefix}/{images.BASE}"

    def _signal(self, container: str, name: str) -> None:
        try:
            self._client.api.kill(container, name)
        except docker.errors.APIError as error:
            # 404: gone; 409: not running. Both are what was wanted.
            if error.status_code not in (404, 409):
                log.warning(
                    "container_not_signalled", container=container, signal=name, reason=str(error.explanation or error)
                )

    def _how(self, id: str) -> str:
        try:
            state = self._client.api.inspect_container(id)["State"]
        except docker.errors.APIError:
            return "ended"
        code = int(state.get("ExitCode") or 0)
        if state.get("OOMKilled"):
            return "ran out of memory (raise `limits: {memory: ...}`)"
        if state.get("Error"):
            return f"did not start: {state['Error']}"
        return how_ended(128 - code if code - 128 in SIGNALS else code)

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error


def stop_all(
    cluster: str, grace_s: float = 10.0, client: docker.DockerClient | None = None, *, pop: str | None = None
) -> int:
    """End and remove all function containers of a cluster, or of one PoP of it. Returns how many there were."""
    client = client or images.engine()
    labels = [f"{_LABEL}cluster={cluster}", *([f"{_LABEL}pop={pop}"] if pop else [])]
    containers = client.containers.list(all=True, ignore_removed=True, filters={"label": labels})
    # The program of a pair ends with its adapter, which has to finish first.
    waited = [one for one in containers if one.labels.get(_LABEL + "role") != pairs.PROGRAM]
    for container in waited:
        if container.status == "running":
            container.kill(signal="SIGTERM")
    deadline_s = time.monotonic() + grace_s
    ids = {one.id for one in waited}
    while time.monotonic() < deadline_s:
        running = client.containers.list(ignore_removed=True, filters={"label": labels, "status": "running"})
        if not ids & {one.id for one in running}:
            break
        time.sleep(0.1)
    for container in containers:
        try:
            container.remove(force=True, v=True)
        except docker.errors.APIError as error:
            # 404: gone; 409: somebody else is removing it.
            if error.status_code not in (404, 409):
                raise
    egress.remove(client, cluster, pop)
    return len(containers)


def _device_requests(gpus: str | int | None) -> list[docker.types.DeviceRequest]:
    if gpus is None:
        return []
    return [docker.types.DeviceRequest(count=-1 if gpus == "all" else int(gpus), capabilities=[["gpu"]])]
