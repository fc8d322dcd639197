"""What instances use: processor time, memory, processes; asked of the system at the moment somebody wants to know.

What it is: sums over the processes of a session (embedded mode), and the engine's own count of a container (Docker mode).
What it is not: a history, or a limit. Rates are differences between two answers, made by whoever asks.
What must stay true: an instance that ends meanwhile is left out; memory that processes share is counted once.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = 4
"""Questions to the engine at a time."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one instance has used so far, and uses now."""

    cpu_s: float
    """Processor time of its processes that run, and of their children that have ended."""
    memory_bytes: int
    processes: int

    def plus(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(self.cpu_s + other.cpu_s, self.memory_bytes + other.memory_bytes, self.processes + other.processes)


def of_sessions(leaders: Mapping[str, int]) -> dict[str, Usage]:
    """By instance, from the process that leads its session."""
    members: dict[int, list[tuple[Path, list[str]]]] = {pid: [] for pid in leaders.values()}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat(folder)
            if fields and int(fields[3]) in members:
                members[int(fields[3])].append((folder, fields))
    return {instance: _sum(members[pid]) for instance, pid in leaders.items() if members[pid]}


def of_containers(
    client: Any, filters: Mapping[str, Any], label: str, gone: tuple[type[Exception], ...]
) -> dict[str, Usage]:
    """By instance (the value of `label`), of the engine's running containers; those of one instance are added up.

    `gone`: what the client raises about a container that has ended meanwhile.
    """
    containers = client.api.containers(filters=filters)
    found: dict[str, Usage] = {}

    def ask(container: Mapping[str, Any]) -> Usage | None:
        try:
            return of_container(client.api.stats(container["Id"], stream=False, one_shot=True))
        except gone:
            return None

    with ThreadPoolExecutor(THREADS, thread_name_prefix="usage") as pool:
        for container, usage in zip(containers, pool.map(ask, containers), strict=True):
            instance = (container["Labels"] or {}).get(label)
            if usage is not None and instance:
                found[instance] = found[instance].plus(usage) if instance in found else usage
    return found


def of_container(stats: Mapping[str, Any]) -> Usage | None:
    """From the engine's statistics; None for a container that does not run any more."""
    memory = stats.get("memory_stats") or {}
    if "usage" not in memory:
        return None
    # The cache of files counts as used until somebody needs the room (cgroup v2 calls it inactive_file, v1 total_inactive_file).
    more = memory.get("stats") or {}
    cache = int(more.get("inactive_file") or more.get("total_inactive_file") or 0)
    return Usage(
        cpu_s=int(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9, memory_bytes=max(0, int(memory["usage"]) - cache),
        processes=int((stats.get("pids_stats") or {}).get("current") or 0),
    )  # fmt: skip


def _sum(members: Iterable[tuple[Path, list[str]]]) -> Usage:
    cpu_s, memory_bytes, count = 0.0, 0, 0
    for folder, fields in members:
        count += 1
        cpu_s += sum(int(ticks) for ticks in fields[11:15]) / _TICKS
        memory_bytes += _memory(folder, fields)
    return Usage(round(cpu_s, 2), memory_bytes, count)


def _stat(folder: Path) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; empty when it has ended."""
    try:
        # The command's name may hold spaces and parentheses: fields are counted from the last one.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def _memory(folder: Path, fields: list[str]) -> int:
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return int(fields[21]) * _PAGE
