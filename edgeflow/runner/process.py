"""Instances as local processes (embedded mode).

What it is: a Driver whose instances are `python -m edgeflow.sdk.runtime` (or the adapter of another contract, which starts the function's program) in the
function's virtual environment.
What it is not: isolation. Instances run under the agent's account, reach what the machine reaches, and of `limits:` only `log`, `outputs` and
`output_bytes` hold: embedded mode is single-trust. `gpus:` is refused, since nothing here could give some and not others.
What must stay true: instances outlive the control process (it may be killed and restarted beside them) and are found again by their run files; a process is
signalled only when boot, pid and start time match its run file, so never one that got the same pid later.

Run files: `<state_dir>/instances/<instance>.json` with {instance, namespace, function, revision, socket, pid, start_ticks, boot, started_ms, log, log_bytes, content}.
`stop_all` ends everything by them, for those who take a PoP down.
Logs: `<state_dir>/../logs/instances/<instance>.log`, bounded, kept for the last few instances of a function.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from edgeflow.core import failpoints
from edgeflow.core.endings import how_ended
from edgeflow.core.manifest import ResolvedFunction
from edgeflow.errors import BadManifest
from edgeflow.runner import bundles, secret_files
from edgeflow.runner.contracts import SETTING, module_of
from edgeflow.runner.driver import CannotStart, Observed, Prepared, Progress, StartSpec, instance_prefix
from edgeflow.runner.usage import Usage, of_sessions
from edgeflow.runner.venvs import Venvs
from edgeflow.settings import PopSettings

log = structlog.get_logger()

NICE = 10
"""Added to the priority of instances, so that a busy handler does not slow the agent (measured: p99 14 ms -> 8 ms)."""
MAX_LOG_BYTES = 8 * 1024 * 1024
KEPT_LOGS = 5
"""Logs of ended instances that are kept for each function."""

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", failpoints.VARIABLE)
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)
"""One thread for each instance: several of them share the PoP's cores, and a function's `env:` may say otherwise."""


class ProcessDriver:
    """Instances of one PoP as local processes."""

    def __init__(self, settings: PopSettings) -> None:
        self._state_dir = settings.state_dir
        self._runs = _run_folder(settings.state_dir)
        self._bundles = settings.state_dir / "bundles"
        self._logs = settings.state_dir.parent / "logs" / "instances"
        for folder in (self._runs, self._bundles, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._dev_dir = settings.runner.dev_dir
        self._venvs = Venvs.of(settings)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def prepare(
        self, namespace: str, name: str, function: ResolvedFunction, bundle: bytes | None, progress: Progress
    ) -> Prepared:
        """Unpack the folder and build its environment."""
        if function.source is not None:
            return self._prepare_source(f"{namespace}/{name}", Path(function.source.folder), function, progress)
        if function.bundle is None or bundle is None:
            raise BadManifest(
                f"{namespace}/{name}: image {function.image!r} cannot run here: this cluster runs functions as processes",
                hint="Give `build: <folder>` instead of `image:`, or start the cluster with `edgeflow up --mode docker`.",
            )
        if function.gpus is not None:
            raise BadManifest(
                f"{namespace}/{name}: `gpus:` is for containers, and this cluster runs functions as processes, which see what the machine has",
                hint="Remove `gpus:`, or start the cluster with `edgeflow up --mode docker`.",
            )
        folder = bundles.unpack(bundle, function.bundle, self._bundles / function.bundle[:24])
        if function.contract != "sdk" and not function.command:
            raise BadManifest(
                f"{namespace}/{name} has no `command:`, and this cluster runs functions as processes",
                hint="Write the program and its arguments: `command: [python, server.py]`.",
            )
        if function.contract == "sdk" and not (folder / "handler.py").is_file():
            raise BadManifest(
                f"{namespace}/{name}: its folder has no handler.py, and this cluster runs functions as processes",
                hint="Add a handler.py (a Dockerfile alone needs a cluster started with `edgeflow up --mode docker`).",
            )
        return Prepared(folder=folder, python=self._environment(folder, function, progress))

    def _prepare_source(self, name: str, folder: Path, function: ResolvedFunction, progress: Progress) -> Prepared:
        if self._dev_dir is None:
            raise BadManifest(
                f"{name}: runs from the folder {folder}, which only a cluster of `edgeflow dev` does",
                hint="Apply the manifest with `edgeflow apply`.",
            )
        if not (folder / "handler.py").is_file():
            raise BadManifest(f"{name}: {folder} has no handler.py", hint="Add one.")
        return Prepared(folder=folder, python=self._environment(folder, function, progress), is_live=True)

    def _environment(self, folder: Path, function: ResolvedFunction, progress: Progress) -> Path:
        requirements = folder / "requirements.txt"
        text = requirements.read_bytes() if requirements.is_file() else b""
        return self._venvs.ensure(text, progress, mqtt=function.direct and function.contract == "sdk")

    def observe(self) -> list[Observed]:
        """What the run files say, checked against the processes."""
        observed = []
        for path in sorted(self._runs.glob("*.json")):
            run = _read(path)
            if run is None:
                path.unlink(missing_ok=True)
                continue
            ended = self._ended(run)
            observed.append(
                Observed(
                    instance=run["instance"], namespace=run["namespace"], function=run["function"], revision=run["revision"],
                    started_ms=run["started_ms"], running=ended is None, ended=ended,
                    paused=ended is None and is_stopped(run["pid"]), content=run.get("content", ""),
                )
            )  # fmt: skip
        return observed

    def start(self, spec: StartSpec) -> None:
        """Start the process: its own session, lower priority, output to its log file."""
        if spec.prepared.python is None or spec.prepared.folder is None:
            raise CannotStart(f"{spec.instance}: there is no folder to run")
        log_path = self._logs / f"{spec.instance}.log"
        run: dict[str, Any] = {
            "instance": spec.instance, "namespace": spec.namespace, "function": spec.function, "revision": spec.revision,
            "socket": str(spec.socket), "pid": None, "start_ticks": None, "boot": _boot_id(), "started_ms": int(time.time() * 1000),
            "log": str(log_path), "log_bytes": spec.log_bytes, "content": spec.content,
        }  # fmt: skip
        # Written before the start too: a control process that dies in between finds the instance by its socket.
        _write(self._runs / f"{spec.instance}.json", run)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment["PATH"] = f"{spec.prepared.python.parent}:{environment.get('PATH', os.defpath)}"
        environment |= {**_ONE_THREAD, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **spec.env}
        environment |= {"EDGEFLOW_SOCKET": str(spec.socket), "EDGEFLOW_HANDLER": str(spec.prepared.folder)}
        if spec.secrets:
            folder = spec.socket.parent / secret_files.FOLDER
            secret_files.write(folder, spec.secrets, reader=None)
            environment["EDGEFLOW_SECRETS"] = str(folder)
        if spec.adapter:
            # Ports of the manifest are those of a container; beside each other every program has its own.
            environment[SETTING] = json.dumps({**spec.adapter, "http_port": 0})
        program = module_of(spec.contract)
        if spec.prepared.is_live and self._dev_dir is not None:
            program = "edgeflow.sdk.reload"
            environment["EDGEFLOW_FAILURES"] = str(self._dev_dir / "failed")
        try:
            with log_path.open("ab") as output:
                child = subprocess.Popen(
                    [str(spec.prepared.python), "-m", program], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=environment, cwd=spec.prepared.folder, start_new_session=True, close_fds=True,
                )  # fmt: skip
        except OSError as error:
            (self._runs / f"{spec.instance}.json").unlink(missing_ok=True)
            raise CannotStart(f"{spec.instance}: {error}") from error
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE))
            # Where the kernel groups processes by session (sched_autogroup), a nice value orders within a session only: the session needs one too.
            Path(f"/proc/{child.pid}/autogroup").write_text(str(NICE))
        with self._lock:
            self._children[spec.instance] = child
        _write(self._runs / f"{spec.instance}.json", {**run, "pid": child.pid, "start_ticks": start_ticks(child.pid)})

    def stop(self, instance: str) -> None:
        """SIGTERM: the SDK finishes the current invocation, gives the rest back and leaves."""
        self._signal(instance, signal.SIGTERM, group=False)
        self.resume(instance)

    def kill(self, instance: str) -> None:
        """SIGKILL to the process and what it started."""
        self._signal(instance, signal.SIGKILL, group=True)

    def pause(self, instance: str) -> None:
        """SIGSTOP to the process and what it started."""
        self._signal(instance, signal.SIGSTOP, group=True)

    def resume(self, instance: str) -> None:
        """SIGCONT to the process and what it started."""
        self._signal(instance, signal.SIGCONT, group=True)

    def remove(self, instance: str) -> None:
        """Forget it, and the oldest logs of its function."""
        path = self._runs / f"{instance}.json"
        run = _read(path)
        with self._lock:
            self._children.pop(instance, None)
        path.unlink(missing_ok=True)
        if run is not None:
            self._forget_logs(run["namespace"], run["function"])

    def tail(self, instance: str, lines: int) -> list[str]:
        """Last lines of its log file."""
        return tail(self._logs / f"{instance}.log", lines)

    def usage(self) -> dict[str, Usage]:
        """What each instance uses."""
        runs = [run for path in self._runs.glob("*.json") if (run := _read(path)) is not None and is_running(run)]
        return of_sessions({run["instance"]: run["pid"] for run in runs})

    def upkeep(self) -> None:
        """Cut logs that grew past their bound."""
        for path in self._logs.glob("*.log"):
            run = _read(self._runs / f"{path.stem}.json") or {}
            limit_bytes = int(run.get("log_bytes") or MAX_LOG_BYTES)
            with contextlib.suppress(OSError):
                if path.stat().st_size > limit_bytes:
                    _cut(path, limit_bytes // 4)

    def _ended(self, run: dict[str, Any]) -> str | None:
        """None while it runs, else how it ended."""
        with self._lock:
            child = self._children.get(run["instance"])
        if child is not None:
            if _has_exited(child.pid):
                # Not reaped yet, so its id cannot belong to anyone else: end what it left behind.
                _signal_session(child.pid, signal.SIGKILL)
            status = child.poll()
            return None if status is None else how_ended(status)
        if run["pid"] is None:
            found = _find_by_socket(run["socket"])
            if found is None:
                return "did not start"
            run |= {"pid": found, "start_ticks": start_ticks(found)}
            _write(self._runs / f"{run['instance']}.json", run)
            log.info("instance_adopted", instance=run["instance"], pid=found)
        return None if is_running(run) else "ended while the control process was away"

    def _signal(self, instance: str, number: int, *, group: bool) -> None:
        run = _read(self._runs / f"{instance}.json")
        if run is not None and run["pid"] is not None and is_running(run):
            send(run, number, group=group)

    def _forget_logs(self, namespace: str, function: str) -> None:
        live = {path.stem for path in self._runs.glob("*.json")}
        ended = [path for path in log_files(self._state_dir, namespace, function) if path.stem not in live]
        for path in ended[KEPT_LOGS:]:
            path.unlink(missing_ok=True)
            path.with_suffix(".log.1").unlink(missing_ok=True)


def log_files(state_dir: Path, namespace: str, function: str) -> list[Path]:
    """Log files of a function's instances at this PoP, newest first; those of ended instances too."""
    found = (state_dir.parent / "logs" / "instances").glob(f"{instance_prefix(namespace, function)}-*.log")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def running(state_dir: Path) -> list[dict[str, Any]]:
    """The run files of the instances of a PoP whose processes run."""
    runs = []
    for path in sorted(_run_folder(state_dir).glob("*.json")):
        run = _read(path)
        if run is None:
            continue
        if run["pid"] is None and (found := _find_by_socket(run["socket"])) is not None:
            run |= {"pid": found, "start_ticks": start_ticks(found)}
        if is_running(run):
            runs.append(run)
    return runs


def stop_all(state_dir: Path, grace_s: float = 10.0, on_wait: Callable[[int], None] = lambda left: None) -> int:
    """End all instances of a PoP whose control process does not run any more. Returns how many there were.

    SIGTERM, then SIGKILL after `grace_s` seconds. `on_wait` gets the number still running.
    """
    runs = running(state_dir)
    for run in runs:
        send(run, signal.SIGTERM, group=False)
        send(run, signal.SIGCONT, group=True)
    count, deadline_s = len(runs), time.monotonic() + grace_s
    while runs and time.monotonic() < deadline_s:
        time.sleep(0.05)
        runs = [run for run in runs if is_running(run)]
        on_wait(len(runs))
    for run in runs:
        send(run, signal.SIGKILL, group=True)
    for path in _run_folder(state_dir).glob("*.json"):
        path.unlink(missing_ok=True)
    return count


def send(run: dict[str, Any], number: int, *, group: bool) -> None:
    """Signal the process of a run file (or all of its session); no error when it is gone."""
    if group:
        _signal_session(run["pid"], number)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(run["pid"], number)


def _signal_session(leader: int, number: int) -> None:
    """Signal all processes of the session of an instance: the program of an adapter has a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != leader:
            with contextlib.suppress(OSError):
                if os.getsid(int(folder.name)) == leader:
                    os.kill(int(folder.name), number)


def is_running(run: dict[str, Any]) -> bool:
    """Whether the very process of a run file runs: same boot, same pid, same start."""
    return (
        run["boot"] == _boot_id()
        and run["pid"] is not None
        and start_ticks(run["pid"]) == run["start_ticks"] is not None
    )


def tail(path: Path, lines: int) -> list[str]:
    """Last lines of a text file; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def _run_folder(state_dir: Path) -> Path:
    return state_dir / "instances"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.keys() >= {"instance", "pid", "boot", "socket"} else None


def _write(path: Path, run: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(run))
    temporary.replace(path)


def _cut(path: Path, kept_bytes: int) -> None:
    # The process keeps its descriptor (opened for appending), so the file is emptied, not replaced.
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - kept_bytes))
        path.with_suffix(".log.1").write_bytes(file.read())
        file.truncate(0)


def _has_exited(pid: int) -> bool:
    try:
        # WNOWAIT leaves it a zombie.
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of `pid`; None when it does not run (a zombie does not)."""
    try:
        # The command's name may hold spaces and parentheses: fields are counted from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_stopped(pid: int | None) -> bool:
    """Whether a process stands still."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _find_by_socket(socket: str) -> int | None:
    """The session leader that was started for this socket."""
    wanted = f"EDGEFLOW_SOCKET={socket}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0") and os.getsid(int(folder.name)) == int(
                    folder.name
                ):
                    return int(folder.name)
    return None
