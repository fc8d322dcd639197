"""Versions: a hybrid logical clock and the PoP, as a text whose order is the order of writes.

What it is: `<ms, 13 digits>.<n, 5 digits>@<pop>`, and the clock that gives them out (Kulkarni et al., Logical Physical Clocks, 2014).
What it is not: a time that anything's safety depends on. The store keeps its clock in Redis (00_prelude.lua) by the same rules.
What must stay true: a clock's versions rise, and rise above every version it has seen; two PoPs never give out the same one.
"""

import re
from dataclasses import dataclass

MAX_N = 99_999
_VERSION = re.compile(r"(\d{13})\.(\d{5})@(.+)")


@dataclass(frozen=True, slots=True, order=True)
class Clock:
    """How far one PoP's clock is. `tick` and `seen` return the clock behind the step."""

    ms: int = 0
    n: int = 0

    def tick(self, now_ms: int) -> "Clock":
        """The next reading: the wall clock's, unless that is not ahead."""
        if now_ms > self.ms:
            return Clock(now_ms)
        return Clock(self.ms, self.n + 1) if self.n < MAX_N else Clock(self.ms + 1)

    def seen(self, version: str) -> "Clock":
        """Not behind a version that was merged."""
        return max(self, parse_version(version))

    def version(self, pop: str) -> str:
        """This reading as a version of `pop`."""
        return f"{self.ms:013d}.{self.n:05d}@{pop}"


def parse_version(version: str) -> Clock:
    """The reading in a version. Raises ValueError."""
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ValueError(f"{version[:60]!r} is not a version")
    return Clock(int(found[1]), int(found[2]))


def is_version(text: str) -> bool:
    """Whether a text has the form of a version."""
    return _VERSION.fullmatch(text) is not None


def is_ahead(version: str, now_ms: int, skew_ms: int) -> bool:
    """Whether a version is too far in the future of a clock that says `now_ms` to be merged yet."""
    return parse_version(version).ms - skew_ms > now_ms
