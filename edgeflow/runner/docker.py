"""Instances as hardened containers (Docker mode).

What it is: a Driver over the local Docker engine. A container has no network, no capability, a read-only root, its limits, and one folder: that of its
own socket. One whose function has a `qos: 0` input also has the folder with the broker's socket for functions; one with `secrets:` the folder with
theirs; one with `network: egress` a network of its PoP that leads outside only (egress.py).
What it is not: an orchestrator: restarts are the reconciler's (restart policy none), and only the control process holds the engine's socket.
What must stay true: nothing of the host, the store, the broker, other instances or the engine is reachable from a container but its own socket; with a
`qos: 0` input also the broker, whose account admits it to its own channels only.

Labels edgeflow.{cluster,pop,namespace,function,revision,instance,content} say what a container is; `stop_all` ends a cluster's containers by them.
Logs stay with the engine (json-file, bounded); `logs` of a container that was removed are gone, its last lines are in the function's state.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import structlog

from edgeflow.core.manifest import ResolvedFunction
from edgeflow.errors import BadManifest
from edgeflow.runner import bundles, egress, images, secret_files
from edgeflow.runner.driver import CannotStart, Observed, Prepared, Progress, StartSpec
from edgeflow.runner.images import EngineUnavailable
from edgeflow.settings import BROKER_FOLDER, PopSettings

log = structlog.get_logger()

NOBODY_ID = 65534
NOBODY = f"{NOBODY_ID}:{NOBODY_ID}"
SOCKET_FOLDER = "/run/edgeflow"
SECRETS_FOLDER = "/run/secrets"
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

    def __init__(self, settings: PopSettings, client: docker.DockerClient | None = None) -> None:
        self._settings = settings
        self._client = client or images.engine()
        self._mountpoint = ""

    def prepare(
        self, namespace: str, name: str, function: ResolvedFunction, bundle: bytes | None, progress: Progress
    ) -> Prepared:
        """Find or pull the image, or build it from the folder."""
        if function.image is not None:
            images.need_image(self._client, function.image, progress)
            return Prepared(image=function.image)
        if bundle is None or function.bundle is None:
            raise BadManifest(
                f"{namespace}/{name} has neither image nor folder", hint="Apply it again with `edgeflow apply`."
            )
        folder = bundles.unpack(bundle, function.bundle, self._settings.state_dir / "bundles" / function.bundle[:24])
        prefix = self._settings.runner.image_prefix
        return Prepared(
            image=images.build_image(self._client, folder, f"{namespace}/{name}", prefix=prefix, progress=progress)
        )

    def observe(self) -> list[Observed]:
        """The containers with the labels of this PoP."""
        filters = {"label": [f"{_LABEL}cluster={self._settings.cluster}", f"{_LABEL}pop={self._settings.pop}"]}
        observed = []
        for container in self._ask(lambda: self._client.api.containers(all=True, filters=filters)):
            labels = images.labels_of(container)
            running = container["State"] in ("running", "paused")
            observed.append(
                Observed(
                    instance=labels.get(_LABEL + "instance", container["Id"][:12]), namespace=labels.get(_LABEL + "namespace", ""),
                    function=labels.get(_LABEL + "function", ""), revision=labels.get(_LABEL + "revision", ""),
                    started_ms=int(container["Created"]) * 1000, running=running, ended=None if running else self._how(container["Id"]),
                    content=labels.get(_LABEL + "content", ""),
                )
            )  # fmt: skip
        return observed

    def start(self, spec: StartSpec) -> None:
        """Create and start the container."""
        if spec.secrets:
            secret_files.write(spec.socket.parent / secret_files.FOLDER, spec.secrets, reader=NOBODY_ID)
        if spec.egress:
            egress.ensure(self._client, self._settings.cluster, self._settings.pop)
        try:
            container = self._client.containers.create(**self._options(spec))
        except docker.errors.ImageNotFound as error:
            raise CannotStart(f"the image {spec.prepared.image} is not on this engine any more") from error
        except docker.errors.APIError as error:
            raise CannotStart(f"the engine does not create {spec.instance}: {error.explanation or error}") from error
        except (docker.errors.DockerException, OSError) as error:
            raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error
        try:
            container.start()
        except (docker.errors.APIError, OSError) as error:
            self.remove(spec.instance)
            if spec.gpus is not None and "could not select device driver" in str(error):
                raise CannotStart(
                    f"{spec.namespace}/{spec.function} wants GPUs (`gpus: {spec.gpus}`), and the engine of PoP {self._settings.pop} has none to give",
                    hint="Place it at a PoP whose engine has them (NVIDIA Container Toolkit), or remove `gpus:`.",
                ) from error
            raise CannotStart(
                f"the engine does not start {spec.instance}: {getattr(error, 'explanation', None) or error}"
            ) from error

    def stop(self, instance: str) -> None:
        """SIGTERM: the SDK finishes the current invocation, gives the rest back and leaves."""
        self._signal(instance, "SIGTERM")

    def kill(self, instance: str) -> None:
        """SIGKILL."""
        self._signal(instance, "SIGKILL")

    def remove(self, instance: str) -> None:
        """Remove the container and its log."""
        try:
            self._client.api.remove_container(self._name(instance), force=True, v=True)
        except docker.errors.NotFound:
            pass
        except docker.errors.APIError as error:
            log.warning("container_not_removed", instance=instance, reason=str(error.explanation or error))

    def tail(self, instance: str, lines: int) -> list[str]:
        """Last lines of the container's log."""
        try:
            raw: bytes = self._client.api.logs(self._name(instance), tail=lines, stdout=True, stderr=True)
        except (docker.errors.DockerException, OSError):
            return []
        return raw.decode("utf-8", "replace").splitlines()

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
            mounts.append(docker.types.Mount(SECRETS_FOLDER, source, type="bind", read_only=True))
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
                **({"EDGEFLOW_SECRETS": SECRETS_FOLDER} if spec.secrets else {}),
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

    def _signal(self, instance: str, name: str) -> None:
        try:
            self._client.api.kill(self._name(instance), name)
        except docker.errors.APIError as error:
            # 404: gone; 409: not running. Both are what was wanted.
            if error.status_code not in (404, 409):
                log.warning(
                    "container_not_signalled", instance=instance, signal=name, reason=str(error.explanation or error)
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
        if code > 128:
            try:
                return f"was ended by {signal.Signals(code - 128).name}"
            except ValueError:
                pass
        return f"exited with status {code}"

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
    containers = client.containers.list(all=True, filters={"label": labels})
    for container in containers:
        if container.status == "running":
            container.kill(signal="SIGTERM")
    deadline_s = time.monotonic() + grace_s
    while time.monotonic() < deadline_s:
        if not client.containers.list(filters={"label": labels, "status": "running"}):
            break
        time.sleep(0.1)
    for container in containers:
        try:
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            pass
    egress.remove(client, cluster, pop)
    return len(containers)


def _device_requests(gpus: str | int | None) -> list[docker.types.DeviceRequest]:
    if gpus is None:
        return []
    return [docker.types.DeviceRequest(count=-1 if gpus == "all" else int(gpus), capabilities=[["gpu"]])]
