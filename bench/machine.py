"""The machine: what it is, how fast its disk is, and which process used how much of it.

What must stay true: the disk is measured where the cluster keeps its files, the way Redis writes: append, then fdatasync.
"""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeflow.host import programs

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
APPEND_BYTES = 1024
"""About what one event appends to the append-only file in one step."""


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel and the versions of what takes part."""
    cpu = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    memory_kib = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return {
        "cpu": cpu.group(1).strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory_kib.group(1)) / 2**20, 1) if memory_kib else None,
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        "mosquitto": _program_version(programs.MOSQUITTO),
        "redis": _program_version(programs.REDIS),
        "paho": version("paho-mqtt"),
        "redis_py": version("redis"),
        "edgeflow": version("edgeflow"),
        "commit": _commit(),
    }


def fdatasyncs_ms(folder: Path, count: int, *, pause_s: float = 0.0) -> list[float]:
    """How long each of `count` appends with fdatasync took, in a file of its own in `folder`, `pause_s` apart."""
    path = folder / "bench-fdatasync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    times_ms, data = [], b"x" * APPEND_BYTES
    try:
        for number in range(count):
            started_s = time.perf_counter()
            os.pwrite(descriptor, data, number * APPEND_BYTES)
            os.fdatasync(descriptor)
            times_ms.append((time.perf_counter() - started_s) * 1000)
            if pause_s:
                time.sleep(pause_s)
    finally:
        os.close(descriptor)
        path.unlink()
    return times_ms


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds used so far, by name of process, and by everything on the machine."""

    at_s: float
    processes_s: Mapping[str, float]
    machine_s: float


def usage(pids: Mapping[str, int]) -> Usage:
    """Now. Processes that have ended are left out."""
    seconds = {}
    for name, pid in pids.items():
        stat = _read(f"/proc/{pid}/stat")
        if stat:
            fields = stat.rpartition(")")[2].split()
            # This process answers for its children that have ended, the bare echoes.
            times = fields[11:15] if pid == os.getpid() else fields[11:13]
            seconds[name] = sum(int(ticks) for ticks in times) / TICKS_PER_S
    total = [int(field) for field in _read("/proc/stat").split("\n", 1)[0].split()[1:]]
    return Usage(time.monotonic(), seconds, (sum(total[:8]) - total[3] - total[4]) / TICKS_PER_S)


def used(before: Usage, after: Usage) -> dict[str, float]:
    """Processor seconds of each process between two readings; "elsewhere" is what none of them used."""
    seconds = {name: after.processes_s[name] - before.processes_s.get(name, 0.0) for name in after.processes_s}
    seconds["elsewhere"] = max(0.0, after.machine_s - before.machine_s - sum(seconds.values()))
    return seconds


def resident_mib(pid: int) -> float:
    """rss of a process; 0 when it has ended."""
    rss = re.search(r"VmRSS:\s*(\d+)", _read(f"/proc/{pid}/status"))
    return round(int(rss.group(1)) / 1024, 1) if rss else 0.0


def memory_mib(pid: int) -> dict[str, float]:
    """rss and pss (shared pages divided among those who share them) of a process."""
    pss = re.search(r"Pss:\s*(\d+)", _read(f"/proc/{pid}/smaps_rollup"))
    return {"rss": resident_mib(pid), **({"pss": round(int(pss.group(1)) / 1024, 1)} if pss else {})}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _system() -> str:
    name = re.search(r'PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"))
    return name.group(1) if name else sys.platform


def _program_version(program: programs.Requirement) -> str | None:
    found = programs.version_of(program)
    return ".".join(str(part) for part in found) if found else None


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    try:
        result = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
