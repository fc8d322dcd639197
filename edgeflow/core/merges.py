"""How concurrent writes of several PoPs become one state, without I/O: registers, counters, sets and maps.

What it is: each type as a state with two ways forward, an operation of a log applied and another PoP's state merged. The Lua library
(store/lua/22_values.lua, 46_pages.lua) keeps the same states in Redis by the same rules; tests drive both side by side.
What it is not: what a writer may do (its conditions are the store's), or when a tombstone may be forgotten (45_values.lua).
What must stay true: merging is commutative, associative and idempotent; applying the operations of all logs, those of one log in its order, gives
the same state whatever the order between logs, and the same as merging states that saw parts of them; an operation applied twice counts once.

Where it comes from: Shapiro et al., A comprehensive study of Convergent and Commutative Replicated Data Types, 2011 (registers, counters);
Bieniusa et al., An Optimized Conflict-free Replicated Set, 2012 (the set: observed dots are removed, no tombstones).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from edgeflow.core.cursors import Log

INT64 = 2**63


class Dot(NamedTuple):
    """The log entry that wrote something: its name in causality."""

    log: Log
    seq: int

    def __str__(self) -> str:
        return f"{self.log[0]}:{self.log[1]}:{self.seq}"


# -- registers and maps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """One write. `content` None is a tombstone."""

    version: str
    dot: Dot
    content: str | bytes | None
    expires_ms: int | None = None


def latest(one: Register | None, other: Register | None) -> Register | None:
    """Of two writes the one that stays: the higher version."""
    if one is None or other is None:
        return one or other
    return other if other.version > one.version else one


@dataclass(frozen=True, slots=True)
class RegisterMap:
    """A register per field, and the version below which all fields are deleted."""

    fields: Mapping[str, Register] = field(default_factory=dict)
    floor: str = ""

    @property
    def visible(self) -> dict[str, Register]:
        """The fields that are there."""
        return {name: one for name, one in self.fields.items() if one.content is not None}

    def applied(self, writes: Mapping[str, Register], floor: str = "") -> "RegisterMap":
        """After an operation that writes fields, or deletes all below `floor`."""
        return self.merged(RegisterMap(writes, floor))

    def merged(self, other: "RegisterMap") -> "RegisterMap":
        """What both have seen."""
        floor = max(self.floor, other.floor)
        fields = dict(self.fields)
        for name, one in other.fields.items():
            fields[name] = latest(fields.get(name), one) or one
        return RegisterMap({name: one for name, one in fields.items() if one.version > floor}, floor)


# -- counters ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Component:
    """What one log has added to a counter: its sum up to an entry, and up to where that is deleted.

    A log's operations on a key come in its order, so that the sum up to an entry is the same everywhere. A log that counts again after a deletion
    that it has seen begins a new life, so that what came before can be forgotten.
    """

    life: int = 0
    """The entry that began it."""
    seq: int = 0
    total: int = 0
    gone_seq: int = 0
    gone_total: int = 0

    @property
    def is_visible(self) -> bool:
        """Whether anything was counted that is not deleted."""
        return self.seq > self.gone_seq

    @property
    def value(self) -> int:
        """What it adds to the counter."""
        return self.total - self.gone_total if self.is_visible else 0

    def counted(self, seq: int, by: int, *, is_new_life: bool) -> "Component":
        """After an increment; one that would not fit into 64 bits is left out."""
        if seq <= self.seq:
            return self
        if seq < self.life:
            # Of a life of whose end a deletion has told already.
            return replace(self, seq=seq)
        one = replace(self, life=seq, total=0, gone_seq=0, gone_total=0) if is_new_life and seq > self.life else self
        total = one.total + by
        return replace(one, seq=seq, total=total if -INT64 <= total < INT64 else one.total)

    def dropped(self, life: int, seq: int, total: int) -> "Component":
        """After a deletion of what was counted up to `seq` in `life`."""
        return self.merged(Component(life, 0, 0, seq, total))

    def merged(self, other: "Component") -> "Component":
        """What both have seen."""
        if self.life != other.life:
            later, earlier = (self, other) if self.life > other.life else (other, self)
            # The sum of the later life is not known to go as far; that its log was applied as far is.
            return replace(later, seq=max(later.seq, earlier.seq))
        counted = max(self, other, key=lambda one: one.seq)
        gone = max(self, other, key=lambda one: one.gone_seq)
        return Component(self.life, counted.seq, counted.total, gone.gone_seq, gone.gone_total)


@dataclass(frozen=True, slots=True)
class Counter:
    """The sum of its components."""

    parts: Mapping[Log, Component] = field(default_factory=dict)

    @property
    def is_visible(self) -> bool:
        """Whether there is a counter, whatever its value."""
        return any(part.is_visible for part in self.parts.values())

    @property
    def value(self) -> int:
        """Its value."""
        return sum(part.value for part in self.parts.values())

    def counted(self, dot: Dot, by: int, *, is_new_life: bool) -> "Counter":
        """After an increment."""
        part = self.parts.get(dot.log, Component()).counted(dot.seq, by, is_new_life=is_new_life)
        return Counter({**self.parts, dot.log: part})

    def dropped(self, gone: Mapping[Log, tuple[int, int, int]]) -> "Counter":
        """After a deletion of (life, seq, total) per component."""
        parts = dict(self.parts)
        for log, one in gone.items():
            parts[log] = parts.get(log, Component()).dropped(*one)
        return Counter(parts)

    def merged(self, other: "Counter") -> "Counter":
        """What both have seen."""
        logs = {*self.parts, *other.parts}
        none = Component()
        return Counter({log: self.parts.get(log, none).merged(other.parts.get(log, none)) for log in logs})


def counter_value(fields: Mapping[bytes, bytes]) -> int:
    """The value of a counter from what the store keeps of it: per component `<log>` its sum, `|n` how far it is counted, `|d` what is deleted."""
    total = 0
    for name, number in fields.items():
        if name.endswith(b"|n"):
            component = name[:-2]
            until, _, deleted = fields.get(component + b"|d", b"0 0").partition(b" ")
            if int(number) > int(until):
                total += int(fields.get(component, 0)) - int(deleted)
    return total


# -- sets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddWinsSet:
    """Per element the entries that hold it in. `seen`: up to where the operations of each log are applied; `unborn`: what was removed before it came."""

    dots: Mapping[str, frozenset[Dot]] = field(default_factory=dict)
    seen: Mapping[Log, int] = field(default_factory=dict)
    unborn: frozenset[tuple[Dot, str]] = frozenset()

    @property
    def members(self) -> list[str]:
        """The elements, in byte order."""
        return sorted(self.dots, key=str.encode)

    def applied(
        self, dot: Dot, adds: Mapping[str, Iterable[Dot]], removes: Mapping[str, Iterable[Dot]]
    ) -> "AddWinsSet":
        """After one entry's operation: per element the dots that its writer had seen, which go; what it adds is held in by the entry itself."""
        if dot.seq <= self.seen.get(dot.log, 0):
            return self
        dots, unborn = dict(self.dots), set(self.unborn)
        for element, gone in (*removes.items(), *adds.items()):
            unborn.update((one, element) for one in gone if one.seq > self.seen.get(one.log, 0))
            left = dots.get(element, frozenset()) - frozenset(gone)
            if element in adds and (dot, element) not in unborn:
                left |= {dot}
            unborn.discard((dot, element))
            dots[element] = left
        seen = {**self.seen, dot.log: dot.seq}
        return AddWinsSet({name: left for name, left in dots.items() if left}, seen, frozenset(unborn))

    def merged(self, other: "AddWinsSet") -> "AddWinsSet":
        """What both have seen: what one has and the other has seen and has not was removed."""
        dots = {}
        for element in {*self.dots, *other.dots}:
            mine, theirs = self.dots.get(element, frozenset()), other.dots.get(element, frozenset())
            left = (mine & theirs) | other._unseen(mine, element) | self._unseen(theirs, element)
            if left:
                dots[element] = left
        seen = {log: max(self.seen.get(log, 0), other.seen.get(log, 0)) for log in {*self.seen, *other.seen}}
        unborn = {(dot, element) for dot, element in self.unborn | other.unborn if dot.seq > seen.get(dot.log, 0)}
        return AddWinsSet(dots, seen, frozenset(unborn))

    def _unseen(self, dots: frozenset[Dot], element: str) -> frozenset[Dot]:
        return frozenset(
            dot for dot in dots if dot.seq > self.seen.get(dot.log, 0) and (dot, element) not in self.unborn
        )


def set_version(applied: Mapping[str, int]) -> str:
    """A text that is the same wherever the same operations on a set are applied."""
    text = ",".join(f"{log}:{seq}" for log, seq in sorted(applied.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# -- a key -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyState:
    """Everything under one key. First writes of several types at several PoPs may meet; one of them is visible then."""

    register: Register | None = None
    map: RegisterMap = RegisterMap()
    set: AddWinsSet = AddWinsSet()
    counter: Counter = Counter()

    def kind(self, now_ms: int) -> str | None:
        """The type that is visible, None when nothing is."""
        one = self.register
        if one is not None and one.content is not None and (one.expires_ms is None or one.expires_ms > now_ms):
            return "register"
        if self.map.visible:
            return "map"
        if self.set.dots:
            return "set"
        return "counter" if self.counter.is_visible else None

    def merged(self, other: "KeyState") -> "KeyState":
        """What both have seen."""
        return KeyState(
            latest(self.register, other.register), self.map.merged(other.map), self.set.merged(other.set), self.counter.merged(other.counter),
        )  # fmt: skip
