"""The lab's hands on a cluster of containers: `docker compose` on its services, `docker` on the containers of functions.

What must stay true: a container that was killed by hand is not started again by the engine (that is the engine's rule for `unless-stopped`), so `kill` starts it itself unless
it is to stay down; function containers that the runner keeps paused stay so after `resume`.
"""

import json
import subprocess
from pathlib import Path

from edgeflow.host import compose
from edgeflow.host.discover import Cluster
from edgeflow.host.errors import DockerFailed
from edgeflow.host.files import ensure_dir, read_json, write_json
from edgeflow.host.linkfile import Link, from_description
from edgeflow.lab.hands import Hands, Part, State, Target

SERVICES: dict[Part, str] = {"control": "control", "data": "data", "broker": "broker", "redis": "store"}
ENGINE_S = 120.0
_WORDS: dict[str, State] = {"running": "runs", "paused": "paused"}


class ComposeHands(Hands):
    """Of the containers of the compose file on this machine's engine."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._folder = cluster.home.root / "docker"

    def links(self) -> tuple[list[Link], dict[tuple[str, str], int]]:
        return from_description(json.loads(self._wan("--show")))

    def change(
        self, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None, kbit_s: float | None = None,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        arguments = ["--between", f"{a},{b}"]
        if delay_ms is not None:
            arguments += ["--delay-ms", str(delay_ms)]
        if kbit_s is not None:
            arguments += ["--kbit-s", str(kbit_s)]
        if cut is not None:
            arguments.append("--cut" if cut else "--no-cut")
        if one_way:
            arguments.append("--one-way")
        self._wan(*arguments)

    def kill(self, target: Target, *, stay_down: bool = False) -> None:
        if stay_down and target.part is not None:
            raise self.no_down_part(target)
        services = self._services(target)
        if services:
            self._compose("kill", "-s", "SIGKILL", *services)
        if "instances" in target.parts and (ids := self._instances(target.pop)):
            _docker("kill", *ids)
        if services and not stay_down:
            self._compose("start", *services)

    def restart(self, pop: str) -> None:
        services = self._services(Target(pop))
        for service in services:
            self._compose("stop", service)
        self._compose("start", *reversed(services))

    def pause(self, target: Target) -> None:
        for service in self._services(target):
            if self._states().get(service) == "runs":
                self._compose("pause", service)
        if "instances" in target.parts:
            ids = self._instances(target.pop, "status=running")
            if ids:
                noted = set((read_json(self._paused_file(target.pop)) or {}).get("containers", []))
                ensure_dir(self._folder)
                write_json(self._paused_file(target.pop), {"containers": sorted({*noted, *ids})})
                _docker("pause", *ids)

    def resume(self, pop: str) -> None:
        states = self._states()
        services = self._services(Target(pop))
        for service in services:
            if states.get(service) == "paused":
                self._compose("unpause", service)
        down = [service for service in reversed(services) if states.get(service, "down") == "down"]
        if down:
            self._compose("start", *down)
        file = self._paused_file(pop)
        there = set(self._instances(pop, "status=paused"))
        ids = [id for id in (read_json(file) or {}).get("containers", []) if id in there]
        if ids:
            _docker("unpause", *ids)
        file.unlink(missing_ok=True)

    def parts(self, pop: str) -> dict[Part, State]:
        states = self._states()
        found: dict[Part, State] = {part: states.get(f"{pop}-{service}", "down") for part, service in SERVICES.items()}
        ours = set((read_json(self._paused_file(pop)) or {}).get("containers", []))
        if ours & set(self._instances(pop, "status=paused")):
            found["instances"] = "paused"
        else:
            found["instances"] = "runs" if self._instances(pop) else "down"
        return found

    def _services(self, target: Target) -> list[str]:
        return [f"{target.pop}-{SERVICES[part]}" for part in target.parts if part in SERVICES]

    def _states(self) -> dict[str, State]:
        """State by service."""
        ids = self._compose("ps", "-q").split()
        if not ids:
            return {}
        form = '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}}'
        lines = _docker("inspect", "--format", form, *ids).splitlines()
        words = dict(line.rpartition(" ")[::2] for line in lines if " " in line)
        return {service: _WORDS.get(status, "down") for service, status in words.items()}

    def _instances(self, pop: str, *filters: str) -> list[str]:
        """Containers of functions at a PoP that run or are paused."""
        labels = [f"label=edgeflow.cluster={self.cluster.id}", f"label=edgeflow.pop={pop}", *filters]
        return _docker("ps", "-q", "--no-trunc", *(word for one in labels for word in ("--filter", one))).split()

    def _paused_file(self, pop: str) -> Path:
        return self._folder / f"paused-{pop}.json"

    def _wan(self, *arguments: str) -> str:
        command = ["python3", "-m", "edgeflow.host.wan", "--config", "/wan/wan.json", *arguments]
        return self._compose("exec", "-T", "wan", *command)

    def _compose(self, *arguments: str) -> str:
        return compose.run(self.cluster.home, arguments, quiet=True)


def _docker(*arguments: str) -> str:
    try:
        result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=ENGINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DockerFailed(f"`docker {arguments[0]}` failed: {error}") from error
    if result.returncode != 0:
        raise DockerFailed(
            f"`docker {arguments[0]}` failed (status {result.returncode}). {result.stderr.strip()[-500:]}"
        )
    return result.stdout
