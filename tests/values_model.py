"""A PoP's values as the pure model has them (edgeflow.core.merges): what the store does in Redis, done beside it.

What it is: for each PoP what is applied, held by the gate, and parked; what its writers plan from what they see; what is visible. Nothing is ever
forgotten here: that the store forgets tombstones must not show.
What it is not: the clock (versions are taken from the entries that the store wrote), or events.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgeflow.core.cursors import Log
from edgeflow.core.merges import Dot, KeyState, Register
from edgeflow.core.versions import is_ahead
from edgeflow.errors import EdgeflowError, NotFound, VersionMismatch, WrongType
from edgeflow.store.records import Delete, Increment, MapPut, MapRemove, Put, SetAdd, SetRemove, Write

SKEW_MS = 500
GATE_MS = 30_000


@dataclass(frozen=True)
class Entry:
    """One log entry's effects, as the store wrote it down."""

    dot: Dot
    values: Sequence[tuple[str, Register, str, bool]] = ()
    """(key, write, base, whether its body is a blob)."""
    increments: Sequence[tuple[str, int, bool]] = ()
    sets: Sequence[tuple[str, Mapping[str, frozenset[Dot]], Mapping[str, frozenset[Dot]]]] = ()
    maps: Sequence[tuple[str, Mapping[str, Register], str]] = ()
    drops: Sequence[tuple[str, Mapping[Log, tuple[int, int, int]]]] = ()

    @property
    def blobs(self) -> set[str]:
        return {str(one.content) for _, one, _, is_blob in self.values if is_blob}

    @property
    def ordered(self) -> set[str]:
        return {key for key, *_ in (*self.increments, *self.sets, *self.drops)}

    def bare(self) -> Any:
        """Without what only the store decides: versions and deadlines."""
        return (
            [(key, one.content) for key, one, _, _ in self.values], list(self.increments), list(self.sets), list(self.drops),
            [(key, {name: one.content for name, one in fields.items()}, bool(floor)) for key, fields, floor in self.maps],
        )  # fmt: skip


def read_entry(log: Log, seq: int, raw: Mapping[bytes, Any]) -> Entry:
    """An entry as it stands in a log."""
    dot = Dot(log, seq)
    values = [
        (
            key.decode(),
            Register(version.decode(), dot, None if deleted else digest.decode() or data, expires or None),
            base.decode(),
            bool(digest),
        )
        for key, version, digest, _, data, _, _, deleted, expires, base in raw[b"va"]
    ]
    increments = [(key.decode(), by, bool(fresh)) for key, by, *fresh in raw.get(b"inc") or ()]
    sets: list[Any] = []
    maps: list[Any] = []
    drops: list[Any] = []
    for kind, key, *rest in raw.get(b"ty") or ():
        if kind == b"s":
            sets.append((key.decode(), *({one.decode(): _dots(dots) for one, dots in part} for part in rest)))
        elif kind == b"d":
            drops.append((key.decode(), {_log(lane): (life, at, int(total)) for lane, life, at, total in rest[0]}))
        else:
            fields = {
                name.decode(): Register(version.decode(), dot, None if deleted else data)
                for name, version, deleted, _, data, _ in rest[0]
            }
            maps.append((key.decode(), fields, rest[1].decode()))
    return Entry(dot, values, increments, sets, maps, drops)


def _log(name: bytes) -> Log:
    origin, _, epoch = name.decode().rpartition(":")
    return origin, int(epoch)


def _dots(names: Iterable[bytes]) -> frozenset[Dot]:
    parts = [name.rpartition(b":") for name in names]
    return frozenset(Dot(_log(lane), int(seq)) for lane, _, seq in parts)


@dataclass
class Held:
    """A mirrored entry that is not all applied yet."""

    entry: Entry
    due_ms: int
    is_late: bool = False
    is_typed_done: bool = False


@dataclass
class Lineage:
    """The writes of a register, and which of them a later one has seen."""

    written: dict[str, bool] = field(default_factory=dict)
    """Version -> whether it can be lost: it has content."""
    seen: set[str] = field(default_factory=set)


@dataclass
class ModelPop:
    name: str
    log: Log
    now_ms: int
    keys: dict[str, KeyState] = field(default_factory=dict)
    heads: dict[Log, int] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    parked: list[tuple[int, Entry]] = field(default_factory=list)
    """(when it is due, an entry of one write)."""
    blobs: set[str] = field(default_factory=set)
    lineages: dict[str, Lineage] = field(default_factory=dict)
    is_exact: bool = True
    """False since a snapshot: it does not carry who saw what of writes that are not kept."""

    # -- what is seen here

    def state(self, key: str) -> KeyState:
        return self.keys.get(key, KeyState())

    def kind(self, key: str) -> str | None:
        return self.state(key).kind(self.now_ms)

    def visible(self) -> dict[str, Any]:
        """Every visible key with its type and content."""
        found: dict[str, Any] = {}
        for key, state in self.keys.items():
            kind = state.kind(self.now_ms)
            if kind == "register":
                assert state.register is not None
                found[key] = (kind, state.register.version, state.register.content)
            elif kind == "map":
                found[key] = (kind, {name: one.content for name, one in sorted(state.map.visible.items())})
            elif kind == "set":
                found[key] = (kind, state.set.members)
            elif kind == "counter":
                found[key] = (kind, state.counter.value)
        return found

    def lost(self, key: str) -> set[str]:
        """The writes of a register that lost to one that had not seen them."""
        lineage, one = self.lineages.get(key, Lineage()), self.state(key).register
        return {
            version for version, has_content in lineage.written.items()
            if has_content and version not in lineage.seen and (one is None or version != one.version)
        }  # fmt: skip

    # -- what its writers plan

    def plan(self, batch: Sequence[Write], digests: Mapping[str, str]) -> Entry | type[EdgeflowError]:
        """The entry that a batch becomes, or how it is refused. `digests`: of the bodies that become blobs, by key."""
        values: list[Any] = []
        increments: list[Any] = []
        sets: list[Any] = []
        maps: list[Any] = []
        drops: list[Any] = []
        for one in batch:
            key, state, kind = one.key, self.state(one.key), self.kind(one.key)
            if isinstance(one, Delete):
                version = state.register.version if kind == "register" and state.register is not None else ""
                if kind is None:
                    return NotFound
                if one.if_version is not None and one.if_version != version:
                    return VersionMismatch
                if kind == "register":
                    values.append((key, _write(None), "", False))
                if state.map.visible:
                    maps.append((key, {}, "now"))
                if state.set.dots:
                    sets.append((key, {}, dict(state.set.dots)))
                parts = {
                    log: (part.life, part.seq, part.total)
                    for log, part in state.counter.parts.items()
                    if part.is_visible
                }
                if parts:
                    drops.append((key, parts))
            elif isinstance(one, Put):
                if kind not in (None, "register"):
                    return WrongType
                version = state.register.version if kind == "register" and state.register is not None else ""
                if (one.if_version is not None and one.if_version != version) or (one.if_absent and kind is not None):
                    return VersionMismatch
                values.append((key, _write(digests.get(key, one.data)), "", key in digests))
            elif isinstance(one, Increment):
                if kind not in (None, "counter"):
                    return WrongType
                part = state.counter.parts.get(self.log)
                increments.append((key, one.by, part is None or not part.is_visible))
            elif isinstance(one, SetAdd | SetRemove):
                if kind not in (None, "set"):
                    return WrongType
                seen = {element: state.set.dots.get(element, frozenset()) for element in one.elements}
                if isinstance(one, SetAdd):
                    sets.append((key, seen, {}))
                elif gone := {element: dots for element, dots in seen.items() if dots}:
                    sets.append((key, {}, gone))
            else:
                if kind not in (None, "map"):
                    return WrongType
                fields: dict[str, Register] = {}
                if isinstance(one, MapPut):
                    fields = {name: _write(data) for name, data in one.fields.items()}
                elif isinstance(one, MapRemove):
                    fields = {name: _write(None) for name in one.fields if name in state.map.visible}
                if fields:
                    maps.append((key, fields, ""))
        return Entry(Dot(self.log, self.heads.get(self.log, 0) + 1), values, increments, sets, maps, drops)

    # -- what happens here

    def append(self, entry: Entry) -> None:
        """An entry of its own."""
        self.heads[self.log] = entry.dot.seq
        self.blobs |= entry.blobs
        self._apply_values(entry, own=True)
        self._apply_typed(entry, own=True)

    def mirror(self, entry: Entry) -> None:
        """The next entry of another PoP's log."""
        assert entry.dot.seq == self.heads.get(entry.dot.log, 0) + 1
        self.heads[entry.dot.log] = entry.dot.seq
        self.held.append(Held(entry, self.now_ms + GATE_MS))
        self._release()

    def bring(self, blobs: Iterable[str]) -> None:
        """Bodies came."""
        self.blobs.update(blobs)
        self._release()

    def tick(self) -> None:
        """What the passing of time decides."""
        for one in self.held:
            if one.due_ms <= self.now_ms and one.entry.blobs - self.blobs:
                one.is_late = True
        self._release()
        due = [entry for at_ms, entry in self.parked if at_ms <= self.now_ms]
        self.parked = [one for one in self.parked if one[0] > self.now_ms]
        for entry in due:
            self._apply_values(entry, own=True)
            self._apply_typed(entry, own=True)
        for key, state in self.keys.items():
            one = state.register
            if one is not None and one.expires_ms is not None and one.expires_ms <= self.now_ms:
                self.keys[key] = replace(state, register=Register(one.version, one.dot, None))
                self.lineages.setdefault(key, Lineage()).written[one.version] = False

    def adopt(self, source: "ModelPop", vector: Mapping[Log, int]) -> None:
        """A snapshot of another PoP, whole; `vector` is what that had applied."""
        self.is_exact = False
        for key, theirs in source.keys.items():
            mine = self.state(key)
            self.keys[key] = replace(mine, set=mine.set.merged(theirs.set), counter=mine.counter.merged(theirs.counter))
            if theirs.register is not None:
                self._take_value(key, theirs.register, "")
            if theirs.map.floor:
                self._take_map(key, {}, theirs.map.floor)
            for name, one in theirs.map.fields.items():
                self._take_map(key, {name: one}, "")
        for _, entry in source.parked:
            for key, one, _, _ in entry.values:
                self._take_value(key, one, "")
            for key, fields, floor in entry.maps:
                self._take_map(key, fields, floor)
        for log, seq in vector.items():
            self.heads[log] = max(seq, self.heads.get(log, 0))
        self._release()

    # -- how

    def _release(self) -> None:
        moved = True
        while moved:
            moved = False
            for one in sorted(self.held, key=lambda held: held.entry.dot.seq):
                entry = one.entry
                is_first = not any(
                    not other.is_typed_done and other.entry.dot.log == entry.dot.log and other.entry.dot.seq < entry.dot.seq
                    and other.entry.ordered & entry.ordered
                    for other in self.held
                )  # fmt: skip
                is_whole = entry.blobs <= self.blobs
                if not one.is_typed_done and is_first and (is_whole or one.is_late):
                    if is_whole:
                        self._apply_values(entry)
                    self._apply_typed(entry)
                    one.is_typed_done = moved = True
                    if is_whole:
                        self.held.remove(one)
                elif one.is_typed_done and is_whole:
                    self._apply_values(entry)
                    self.held.remove(one)
                    moved = True

    def _apply_values(self, entry: Entry, *, own: bool = False) -> None:
        for key, one, base, is_blob in entry.values:
            if not own and is_ahead(one.version, self.now_ms, SKEW_MS):
                self._park(one.version, Entry(entry.dot, values=[(key, one, base, is_blob)]))
            else:
                self._write(key, one, base)

    def _write(self, key: str, one: Register, base: str) -> None:
        lineage = self.lineages.setdefault(key, Lineage())
        lineage.written.setdefault(one.version, one.content is not None)
        lineage.seen.add(base)
        mine = self.state(key)
        merged = mine.merged(KeyState(one))
        self.keys[key] = merged

    def _apply_typed(self, entry: Entry, *, own: bool = False) -> None:
        dot = entry.dot
        for key, by, is_fresh in entry.increments:
            state = self.state(key)
            self.keys[key] = replace(state, counter=state.counter.counted(dot, by, is_new_life=is_fresh))
        for key, adds, removes in entry.sets:
            state = self.state(key)
            self.keys[key] = replace(state, set=state.set.applied(dot, adds, removes))
        for key, parts in entry.drops:
            state = self.state(key)
            self.keys[key] = replace(state, counter=state.counter.dropped(parts))
        for key, fields, floor in entry.maps:
            versions = [one.version for one in fields.values()] + [floor]
            if not own and is_ahead(max(versions), self.now_ms, SKEW_MS):
                self._park(max(versions), Entry(dot, maps=[(key, fields, floor)]))
            else:
                state = self.state(key)
                self.keys[key] = replace(state, map=state.map.applied(fields, floor))

    def _take_value(self, key: str, one: Register, base: str) -> None:
        if is_ahead(one.version, self.now_ms, SKEW_MS):
            self._park(one.version, Entry(one.dot, values=[(key, one, base, False)]))
        else:
            self._write(key, one, base)

    def _take_map(self, key: str, fields: Mapping[str, Register], floor: str) -> None:
        version = max([one.version for one in fields.values()] + [floor])
        state = self.state(key)
        if is_ahead(version, self.now_ms, SKEW_MS):
            self._park(version, Entry(Dot(self.log, 0), maps=[(key, fields, floor)]))
        else:
            self.keys[key] = replace(state, map=state.map.applied(fields, floor))

    def _park(self, version: str, entry: Entry) -> None:
        self.parked.append((int(version[:13]) - SKEW_MS, entry))


def _write(content: Any) -> Register:
    return Register("", Dot(("", 0), 0), content)
