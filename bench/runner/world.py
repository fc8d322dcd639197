"""What is measured on: a cluster of its own, with functions as processes or as containers, and a reader of what they answer.

What it is: start, apply, look at instances, publish and hear when a handler began, end all of it.
What it is not: a measurement.
What must stay true: everything that was started is ended, also on Ctrl-C: the cluster, its function containers, its folder, the images of the benchmark.
"""

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.errors import EdgeflowError
from edgeflow.host.local import LocalCluster
from edgeflow.runner import images
from edgeflow.runner.docker import stop_all
from edgeflow.sdk.client import ReceivedEvent
from edgeflow.settings import PopSettings

NAMESPACE = "bench"
PREFIX = "edgeflow-bench"
ROOT = Path(__file__).parents[2]
POLL_S = 0.01
LIMIT_S = 60.0

ROOM = {"cpus": 64, "memory_bytes": 64 * 2**30}
"""What instances may be allowed together: more than a small machine has, so that four fit beside the others."""

Say = Callable[[str], None]


class Failed(EdgeflowError):
    """Something that is measured did not happen."""

    code = "bench-failed"
    status = 500
    hint = "Nothing was left running. Try again on a quiet machine; `--quick` takes less."


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first value of `condition` that is true. Raises Failed."""
    deadline_s = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise Failed(f"Not within {limit_s:g} s: {what}.")
        time.sleep(POLL_S)
    return value


@dataclass
class Heard:
    """When the handler of each subject began (seconds of this machine's clock), and what was answered twice."""

    began_s: dict[str, float] = field(default_factory=dict)
    twice: int = 0

    def take(self, subject: str, began_s: float) -> None:
        """One answer."""
        self.twice += subject in self.began_s
        self.began_s.setdefault(subject, began_s)


@dataclass
class World:
    """A running cluster, measured at its first PoP."""

    cluster: LocalCluster
    client: Operator
    pop: str
    id: str
    engine: Any = None
    """None = functions are processes."""
    heard: Heard = field(default_factory=Heard)
    _sent: int = 0

    def apply(self, folder: Path, functions: Mapping[str, Any], namespace: str = NAMESPACE) -> None:
        """Apply a manifest of these functions beside what is in `folder`; until all are ready."""
        file = folder / f"{namespace}.yaml"
        file.write_text(yaml.safe_dump({"namespace": namespace, "functions": dict(functions)}))
        access = self.cluster.pop(self.pop)
        apply_file(file, Target(access.api_url, access.token), timeout_s=120)

    def states(self, function: str) -> list[str]:
        """Of each instance that exists: "running", "paused" or what else its engine calls it."""
        if self.engine is not None:
            labels = [f"edgeflow.cluster={self.id}", f"edgeflow.function={function}"]
            found = self.engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
            return [str(one.status) for one in found]
        states = []
        for file in (self.cluster.home.pop_dir(self.pop) / "state" / "instances").glob("*.json"):
            with suppress(OSError, ValueError):  # it leaves just now
                run = json.loads(file.read_text())
                state = Path(f"/proc/{run['pid']}/stat").read_text().rpartition(")")[2].split()[0]
                if run["function"] == function and state not in "ZX":
                    states.append("paused" if state == "T" else "running")
        return states

    def send(self, channel: str, subject: str) -> float:
        """Publish one event durably; when that began."""
        sent_s = time.time()
        self.client.publish(f"{NAMESPACE}/{channel}", "x", subject=subject)
        return sent_s

    def subject(self) -> str:
        """One that has not been used."""
        self._sent += 1
        return f"s{self._sent}"

    def listen(self) -> None:
        """Take down what is answered on `out/#` from now on."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(EdgeflowError, OSError, RuntimeError):  # the cluster is being ended
            for event in self.client.subscribe(f"{NAMESPACE}/out/#", from_="start"):
                if isinstance(event, ReceivedEvent):
                    self.heard.take(str(event.subject), float(json.loads(event.text())["began"]))


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave anything behind."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def world(pops: Sequence[str], say: Say, engine: Any = None, launcher: Path | None = None) -> Iterator[World]:
    """A cluster of these PoPs in a folder of its own; with `engine`, functions are its containers. `launcher`: of functions of the contract `stdio`."""
    settings: dict[str, Any] = {"runner": dict(ROOM)}
    if engine is not None:
        settings = {
            "mode": "docker",
            "runner": {**ROOM, "image_prefix": PREFIX, "launcher": str(launcher) if launcher else None},
        }
    cluster = LocalCluster(pops, settings=settings)
    id, client = "", None
    try:
        say(f"starting {len(pops)} PoP(s), functions as {'processes' if engine is None else 'containers'}")
        access = cluster.start().pop(pops[0])
        id = PopSettings.load(cluster.home.root / "pops" / pops[0] / "pop.json").cluster
        client = Operator(access.api_url, access.token, retry_s=30.0)
        yield World(cluster, client, pops[0], id, engine)
    finally:
        with undisturbed():
            say("ending the cluster")
            if client is not None:
                client.close()
            cluster.stop()
            if engine is not None and id:
                stop_all(id, grace_s=2, client=engine)
            cluster.stop(purge=True)


def engine_or_reason() -> tuple[Any, str]:
    """The Docker engine, or None and why."""
    try:
        return images.engine(), ""
    except EdgeflowError as error:
        return None, error.message


@contextmanager
def function_image(engine: Any, handler: str, say: Say, programs: Path | None = None) -> Iterator[str]:
    """An image with this handler, and in /programs what is in `programs`, on this clone's function image; its names are removed at the end."""
    base, name = f"{PREFIX}/function", f"{PREFIX}/{secrets.token_hex(4)}:{os.getpid()}"
    try:
        say("building a function image")
        build_target("function", base)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "handler.py").write_text(handler)
            lines = [f"FROM {base}", "COPY handler.py /function/handler.py"]
            if programs is not None:
                shutil.copytree(programs, Path(folder) / "programs")
                lines.append("COPY programs /programs")
            (Path(folder) / "Dockerfile").write_text("\n".join([*lines, ""]))
            _build("-t", name, folder)
        yield name
    finally:
        _untag(engine, name, base)


@contextmanager
def launcher(engine: Any, folder: Path, say: Say) -> Iterator[Path]:
    """The launcher of this clone, as the agent's image has it, in `folder`."""
    name = f"{PREFIX}/launcher"
    try:
        say("building the launcher")
        build_target("launcher", name)
        holder = engine.containers.create(name, "true")
        try:
            pieces, _ = holder.get_archive("/opt/launch")
            with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
                member = archive.extractfile("launch")
                assert member is not None
                (folder / "launch").write_bytes(member.read())
        finally:
            holder.remove()
        yield folder / "launch"
    finally:
        _untag(engine, name)


def build_target(target: str, tag: str) -> None:
    """Build a target of deploy/Dockerfile. Raises Failed."""
    index = [
        f"--build-arg={one}={os.environ[one]}" for one in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if one in os.environ
    ]  # fmt: skip
    _build("-f", "deploy/Dockerfile", "--target", target, "-t", tag, *index, ".")


def _untag(engine: Any, *tags: str) -> None:
    with undisturbed():
        for tag in tags:
            with suppress(Exception):  # it was never built
                engine.images.remove(tag, force=True)


def _build(*arguments: str) -> None:
    command = ["docker", "build", "-q", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failed(f"docker build failed: {result.stderr.strip()[-400:]}")
