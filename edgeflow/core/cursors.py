"""Cursors of event streams: where a consumer stands, in a form that every PoP of the cluster understands.

What it is: the text `<pop>:<n>.<mark>;<vector>` and the arithmetic of vectors. `<pop>:<n>` is a position of one PoP's release stream. The mark is a
fingerprint of what stands there, so that the PoP can tell whether its stream is still the same one. The vector says, for each log (origin, epoch),
up to which seq everything has been passed: delivered, told as a gap, or not asked for. It holds at every PoP.
What it is not: the reading of a store (edgeflow.api.tails), or the state of a consumer (edgeflow.api.consumers).
What must stay true: a vector may claim too little, which repeats events, and never too much, which would lose them; a vector does not depend on
what a consumer filters by.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Log = tuple[str, int]
"""(origin, epoch)."""
Vector = Mapping[Log, int]
"""Highest seq per log up to which all is passed. Treated as immutable."""
Step = tuple[Log, int] | None
"""The log position of one entry of a release stream; None for one that has none."""

EMPTY: Vector = {}
MAX_VECTOR_BYTES = 1024
"""A longer vector is left out of a cursor: then it resumes exactly only at the PoP that gave it, and elsewhere from the beginning."""
MAX_CURSOR_BYTES = 2048
_MAX_DIGITS = 18
_MARK = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place to go on from. `pop` is None for a bare number, which counts at the PoP that is asked."""

    pop: str | None
    n: int
    mark: str = ""
    vector: Vector = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.pop or ''}:{self.n}{'.' if self.mark else ''}{self.mark}{vector_text(self.vector)}"


def parse_cursor(text: str) -> Cursor:
    """Inverse of `str(cursor)`; also takes `<pop>:<n>` and `<n>`. Raises ValueError."""
    if len(text) > MAX_CURSOR_BYTES:
        raise ValueError("too long")
    place, _, rest = text.partition(";")
    pop, _, position = place.rpartition(":")
    if ":" in place and not pop:
        raise ValueError("no PoP in front of the colon")
    number, dot, mark = position.partition(".")
    if dot and not _MARK.fullmatch(mark):
        raise ValueError(f"{mark[:40]!r} is not a mark")
    vector: dict[Log, int] = {}
    for item in rest.split(",") if rest else ():
        origin, epoch, seq = item.rsplit(".", 2)
        vector[origin, _number(epoch)] = _number(seq)
    return Cursor(pop or None, _number(number), mark, vector)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ValueError(f"{text[:40]!r} is not a number")
    return int(text)


def vector_text(vector: Vector) -> str:
    """A vector as it stands in a cursor, with the semicolon in front; nothing when it is empty or longer than MAX_VECTOR_BYTES."""
    text = ",".join(f"{origin}.{epoch}.{seq}" for (origin, epoch), seq in sorted(vector.items()) if seq > 0)
    return f";{text}" if text and len(text) <= MAX_VECTOR_BYTES else ""


class Position(NamedTuple):
    """What stands at number `n` of a release stream, without its content: an event, or a gap (`part` -1, `seq` its last position)."""

    n: int
    log: Log
    seq: int
    part: int
    """Which of the events of its log entry this is."""
    released_ms: int
    first: int
    """The lowest seq that this entry is about; `seq` itself unless it is a gap of several."""

    @property
    def mark(self) -> str:
        """Fingerprint. The time of the release is in it: a stream that begins again has other marks, even where the same event stands at the same n."""
        origin, epoch = self.log
        return format(zlib.crc32(f"{origin}|{epoch}|{self.seq}|{self.part}|{self.released_ms}".encode()), "08x")

    @property
    def step(self) -> Step:
        """For `passed`. A gap that names no log position passes none."""
        return (self.log, self.first) if self.first > 0 else None


def covers(vector: Vector, log: Log, seq: int) -> bool:
    """Whether a consumer with this vector has passed that log position."""
    return seq <= vector.get(log, 0)


def merged(one: Vector, other: Vector) -> Vector:
    """What both together have passed. `one` itself when `other` adds nothing."""
    ahead = {log: seq for log, seq in other.items() if seq > one.get(log, 0)}
    return {**one, **ahead} if ahead else one


def low_water(heads: Vector, held: Vector) -> Vector:
    """What a PoP has released of each log without a hole, given how far it has the log and the lowest seq that its gate holds."""
    return {log: min(seq, held.get(log, seq + 1) - 1) for log, seq in heads.items()}


def passed(steps: Sequence[Step], known: Vector, at_end: Vector | None) -> list[Vector]:
    """The vectors of a reader of `steps`: before the first of them, then behind each.

    `known` holds before the first step. `at_end` is what holds behind the last one, or None when that is not known, as when more has been released
    behind it: release order is not log order, so what comes later may be older. From the end backwards each step takes back what is not passed yet.
    """
    if at_end is None:
        return [known] * (len(steps) + 1)
    vectors: list[Vector] = [merged(known, at_end)]
    current = dict(at_end)
    for step in reversed(steps):
        if step is not None and covers(current, *step):
            current[step[0]] = step[1] - 1
            vectors.append(merged(known, current))
        else:
            vectors.append(vectors[-1])
    vectors.reverse()
    return vectors
