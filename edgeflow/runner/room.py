"""Room at a PoP: how much CPU and memory its instances may take together, and what of it is taken.

What it is: admission. An instance counts with its `limits`; a paused one with its memory only.
What it is not: enforcement of those limits, which is the engine's.
What must stay true: what does not fit is not started, and the reason says what it needs and what there is; what runs is never ended for lack of room.
"""

import os
from dataclasses import dataclass

from edgeflow.settings import RunnerSettings

CPUS_TIMES, MEMORY_TIMES = 16, 4
"""Limits are ceilings that few instances reach, and fewer at the same time: unless the settings say otherwise they may add up to so many times what the
machine has."""
GIB = 1024**3


@dataclass(slots=True)
class Room:
    """What there is, and what is taken."""

    cpus: float
    memory_bytes: int
    taken_cpus: float = 0.0
    taken_bytes: int = 0

    @classmethod
    def of(cls, settings: RunnerSettings) -> "Room":
        """By the settings, else by the machine."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(settings.cpus or CPUS_TIMES * (os.cpu_count() or 1), settings.memory_bytes or MEMORY_TIMES * machine)

    def clear(self) -> None:
        """Nothing is taken."""
        self.taken_cpus, self.taken_bytes = 0.0, 0

    def take(self, cpus: float, memory_bytes: int) -> None:
        """Count an instance."""
        self.taken_cpus += cpus
        self.taken_bytes += memory_bytes

    def refusal(self, cpus: float, memory_bytes: int) -> str:
        """Why an instance does not fit now; empty if it does."""
        if self.taken_cpus + cpus > self.cpus + 1e-9:
            return f"waits for room: needs {cpus:g} CPUs, {max(0.0, self.cpus - self.taken_cpus):g} of {self.cpus:g} are free"
        if self.taken_bytes + memory_bytes > self.memory_bytes:
            free = max(0, self.memory_bytes - self.taken_bytes) / GIB
            return f"waits for room: needs {memory_bytes / GIB:.2g} GiB, {free:.2g} of {self.memory_bytes / GIB:.2g} are free"
        return ""
