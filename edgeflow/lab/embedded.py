"""The lab's hands on an embedded cluster: signals to local processes.

What it is: kills, stops and starts of the processes that the supervisor watches and of the instances beside them, by what cluster.json and the run files say.
What must stay true: a PoP that stays down is held by a file that the supervisor looks at before each start, so nothing comes back before `resume`; `resume` lets go on what
`pause` has stopped and nothing else: instances that the runner keeps asleep stay so.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgeflow.host.files import read_json, write_json
from edgeflow.host.layout import Home
from edgeflow.host.linkfile import Link, carried_bytes, change_link, load_links
from edgeflow.lab.errors import NotPossibleHere
from edgeflow.lab.hands import Hands, Part, State, Target, home_of, until
from edgeflow.runner import process as instances

GONE_S = 30.0
ENDS_S = 60.0
"""How long a process may take to finish what it does after SIGTERM."""


class EmbeddedHands(Hands):
    """Of a cluster under a supervisor on this machine."""

    def links(self) -> tuple[list[Link], dict[tuple[str, str], int]]:
        file = self.cluster.home.wan_file
        if not file.exists():
            return [], {}
        return list(load_links(file).links), carried_bytes(file)

    def change(
        self, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None, kbit_s: float | None = None,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        if self.cluster.wan_config is None:
            raise NotPossibleHere(
                "A cluster of one PoP has no links.", hint="Start one with more: `edgeflow up --pops la,ny`."
            )
        change_link(self.cluster.wan_config, a, b, delay_ms=delay_ms, cut=cut, kbit_s=kbit_s, one_way=one_way)

    def kill(self, target: Target, *, stay_down: bool = False) -> None:
        if stay_down and target.part is not None:
            raise self.no_down_part(target)
        if stay_down:
            self._home(target.pop).hold_file(target.pop).touch()
        struck = [pid for part in target.parts for pid in self._strike(target.pop, part, signal.SIGKILL)]
        until(partial(_none_alive, struck), f"{target} to be gone", GONE_S)

    def restart(self, pop: str) -> None:
        hold = self._home(pop).hold_file(pop)
        hold.touch()
        try:
            for part in ("control", "data", "broker", "redis"):
                pids = self._pids(pop, part)
                for pid in pids:
                    _signal(pid, signal.SIGTERM)
                until(partial(_none_alive, pids), f"{pop}/{part} to end", ENDS_S)
                if part == "control":
                    instances.stop_all(self._state_dir(pop))
        finally:
            hold.unlink(missing_ok=True)

    def pause(self, target: Target) -> None:
        file = self._paused_file(target.pop)
        paused: list[list[int]] = (read_json(file) or {}).get("processes", [])
        for part in target.parts:
            for pid in self._pids(target.pop, part):
                ticks = instances.start_ticks(pid)
                if ticks is not None and not instances.is_stopped(pid):
                    paused.append([pid, ticks, int(part == "instances")])
        write_json(file, {"processes": paused})
        for pid, _, is_instance in paused:
            _signal(pid, signal.SIGSTOP, group=bool(is_instance))
        until(
            lambda: all(instances.is_stopped(pid) or not _alive(pid) for pid, *_ in paused), f"{target} to stop", GONE_S
        )

    def resume(self, pop: str) -> None:
        self._home(pop).hold_file(pop).unlink(missing_ok=True)
        file = self._paused_file(pop)
        for pid, ticks, is_instance in (read_json(file) or {}).get("processes", []):
            if instances.start_ticks(pid) == ticks:
                _signal(pid, signal.SIGCONT, group=bool(is_instance))
        file.unlink(missing_ok=True)

    def parts(self, pop: str) -> dict[Part, State]:
        ours = {pid for pid, *_ in (read_json(self._paused_file(pop)) or {}).get("processes", [])}
        found: dict[Part, State] = {}
        for part in Target(pop).parts:
            pids = [pid for pid in self._pids(pop, part) if _alive(pid)]
            stopped = [pid for pid in pids if instances.is_stopped(pid) and (part != "instances" or pid in ours)]
            found[part] = "paused" if stopped else "runs" if pids else "down"
        return found

    def pid(self, pop: str, part: Part) -> int | None:
        """The process of one part; None while there is none."""
        return next(iter(self._pids(pop, part)), None)

    def _strike(self, pop: str, part: Part, number: signal.Signals) -> list[int]:
        pids = self._pids(pop, part)
        for pid in pids:
            _signal(pid, number, group=part == "instances")
        return pids

    def _pids(self, pop: str, part: Part) -> list[int]:
        if part == "instances":
            return [run["pid"] for run in instances.running(self._state_dir(pop))]
        document: Mapping[str, Any] = read_json(self._home(pop).cluster_file) or {}
        pid = document["pops"][pop]["processes"][part]["pid"]
        return [] if pid is None else [int(pid)]

    def _state_dir(self, pop: str) -> Path:
        settings = read_json(self._home(pop).config_file(pop)) or {}
        return Path(settings["state_dir"])

    def _paused_file(self, pop: str) -> Path:
        return self._home(pop).pop_dir(pop) / "paused.json"

    def _home(self, pop: str) -> Home:
        return home_of(self.cluster, pop)


def _alive(pid: int) -> bool:
    return instances.start_ticks(pid) is not None


def _none_alive(pids: Iterable[int]) -> bool:
    return not any(map(_alive, pids))


def _signal(pid: int, number: signal.Signals, *, group: bool = False) -> None:
    if group:
        instances.send({"pid": pid}, number, group=True)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
