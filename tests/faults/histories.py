"""What clients saw of a replicated store, and whether any store that keeps its promises could have shown them that.

What it is: a recorder of operations with their times and outcomes, and checkers that look at nothing else: linearizability of single registers with compare-and-set (the
search of Wing and Gong with the memory of Lowe), the four session guarantees, and what must be in the store once the work is over.
What it is not: a client, or a look into the store.
What must stay true: an operation whose outcome is unknown may have taken effect at any time after its start, or never; a checker that cannot decide says so (`Undecided`)
and never passes; every checker is shown histories that it must refuse (tests/unit/test_histories.py).
"""

import math
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["read", "write", "delete", "cas"]
Outcome = Literal["ok", "refused", "unknown"]
"""`refused`: certainly without effect. A `cas` that was refused because the register held something else is a statement about the register; any other refusal is none."""


class Undecided(AssertionError):
    """The search took more steps than it was given: neither yes nor no."""


@dataclass(slots=True)
class Op:
    """One operation as its client saw it. `value` is what was written or read (None = nothing there); every written value is unique."""

    client: str
    kind: Kind
    key: str
    value: str | None = None
    expected: str | None = None
    """What a `cas` asked for."""
    outcome: Outcome = "unknown"
    mismatch: bool = False
    """A refused `cas`: the register held something else."""
    version: str | None = None
    """Version that was read, or that a write got."""
    start_s: float = 0.0
    end_s: float = math.inf
    pop: str = ""
    index: int = -1


class Recorder:
    """Collects operations of many threads. `running` notes start and end around the call; what is not settled in it stays `unknown`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ops: list[Op] = []
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def running(self, client: str, kind: Kind, key: str, **about: Any) -> Iterator[Op]:
        """The block carries the operation out and sets `outcome`, `value` and `version` of what it is given."""
        op = Op(client, kind, key, **about)
        with self._lock:
            op.index = len(self.ops)
            self.ops.append(op)
        op.start_s = self._clock()
        try:
            yield op
        finally:
            if op.outcome != "unknown":
                op.end_s = self._clock()


# -- linearizability of a register ------------------------------------------------------------------------------------


@dataclass
class Linearity:
    """What the search found for one key."""

    key: str
    ok: bool
    steps: int
    stuck: Op | None = None
    """The first operation that had to be over, and fits nowhere."""


def linearizable(ops: Iterable[Op], *, steps: int = 2_000_000) -> list[Linearity]:
    """One verdict per key. Raises Undecided when a key takes more than `steps`."""
    by_key: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.outcome == "refused" and not op.mismatch:
            continue  # certainly without effect, and says nothing
        if op.kind == "read" and op.outcome != "ok":
            continue  # a read without an answer has seen nothing
        by_key[op.key].append(op)
    return [_linearize(key, mine, steps) for key, mine in sorted(by_key.items())]


class _Node:
    __slots__ = ("after", "before", "is_call", "op", "partner", "slot")

    def __init__(self, op: Op | None, is_call: bool, slot: int) -> None:
        self.op, self.is_call, self.slot = op, is_call, slot
        self.partner: _Node | None = None
        self.before: _Node | None = None
        self.after: _Node | None = None


def _apply(state: str | None, op: Op) -> tuple[bool, str | None]:
    """Whether `op` may happen to a register that holds `state`, and what it holds then."""
    if op.kind == "read":
        return state == op.value, state
    if op.kind == "write":
        return True, op.value
    if op.kind == "delete":
        return True, None
    if op.outcome == "refused":
        return state != op.expected, state
    return state == op.expected, op.value


UNSEEN = "\0unseen"
"""What a register holds after a write of unknown outcome whose value nobody has ever seen: one such value is like another."""


def _known(ops: Sequence[Op]) -> list[Op]:
    """The same history with what can be known of unknown outcomes: a value that was seen was written, before whoever saw it first was done.

    By whom is known when only one operation could have written it.
    """
    writers = Counter(op.value for op in ops if op.kind in ("write", "cas") and op.outcome != "refused")
    seen_s: dict[str | None, float] = {}
    for op in ops:
        sees = op.value if op.kind == "read" else op.expected if op.kind == "cas" else None
        if sees is not None and op.outcome == "ok":
            seen_s[sees] = min(op.end_s, seen_s.get(sees, math.inf))
    while True:
        # What a compare-and-set found was there before what it made of it was seen.
        found = {
            op.expected: seen_s[op.value]
            for op in ops
            if op.kind == "cas" and op.outcome == "unknown" and op.expected is not None and op.value in seen_s and writers[op.value] == 1
            and seen_s[op.value] < seen_s.get(op.expected, math.inf)
        }  # fmt: skip
        if not found:
            break
        seen_s.update(found)
    asked_for = {op.expected for op in ops if op.kind == "cas"}
    known = []
    for op in ops:
        if op.outcome == "unknown" and op.kind in ("write", "cas"):
            if op.value in seen_s and writers[op.value] == 1:
                op = replace(op, outcome="ok", end_s=max(op.start_s, seen_s[op.value]))
            elif op.value not in asked_for and op.value not in seen_s:
                op = replace(op, value=UNSEEN)
        known.append(op)
    return known


def _forerunners(ops: Sequence[Op]) -> dict[int, int]:
    """Slot of an operation of unknown outcome -> slot of the one that does the same and began before it: of several that are alike the earliest is tried first, and no others."""
    last: dict[tuple[str, str | None, str | None], int] = {}
    found = {}
    for slot in sorted(range(len(ops)), key=lambda slot: ops[slot].start_s):
        if ops[slot].outcome == "unknown":
            alike = (ops[slot].kind, ops[slot].expected, ops[slot].value)
            if alike in last:
                found[slot] = last[alike]
            last[alike] = slot
    return found


def _linearize(key: str, told: Sequence[Op], most_steps: int) -> Linearity:
    ops = _known(told)
    forerunners = _forerunners(ops)
    head = _Node(None, False, -1)
    points: list[tuple[float, int, _Node]] = []
    for slot, op in enumerate(ops):
        called = _Node(op, True, slot)
        points.append((op.start_s, 0, called))
        if op.outcome != "unknown":
            ended = _Node(op, False, slot)
            called.partner = ended
            points.append((op.end_s, 1, ended))
    last = head
    for _, _, node in sorted(points, key=lambda point: point[:2]):
        last.after, node.before = node, last
        last = node
    owed = sum(op.outcome != "unknown" for op in ops)
    state: str | None = None
    done = 0
    seen: set[tuple[int, str | None]] = set()
    stack: list[tuple[_Node, str | None]] = []
    node = head.after
    steps = 0
    furthest, stuck = -1, None
    while owed:
        steps += 1
        if steps > most_steps:
            raise Undecided(f"{key}: {len(ops)} operations, no answer within {most_steps} steps")
        assert node is None or node.op is not None
        if node is not None and node.is_call:
            assert node.op is not None
            fits, becomes = _apply(state, node.op)
            if node.partner is None:
                # One that changes nothing need not have happened.
                first = forerunners.get(node.slot)
                fits = fits and becomes != state and (first is None or bool(done >> first & 1))
            mark = (done | 1 << node.slot, becomes)
            if fits and mark not in seen:
                seen.add(mark)
                stack.append((node, state))
                state, done = mark[1], mark[0]
                owed -= node.partner is not None
                _lift(node)
                node = head.after
            else:
                node = node.after
            continue
        # An operation is over that was not placed yet (or nothing is left to place): what was placed last is placed differently.
        if node is not None and len(stack) > furthest:
            furthest, stuck = len(stack), told[node.slot]
        if not stack:
            return Linearity(key, False, steps, stuck)
        placed, state = stack.pop()
        done &= ~(1 << placed.slot)
        owed += placed.partner is not None
        _put_back(placed)
        node = placed.after
    return Linearity(key, True, steps)


def _lift(node: _Node) -> None:
    for one in (node, node.partner):
        if one is not None:
            assert one.before is not None
            one.before.after = one.after
            if one.after is not None:
                one.after.before = one.before


def _put_back(node: _Node) -> None:
    for one in (node.partner, node):
        if one is not None:
            assert one.before is not None
            one.before.after = one
            if one.after is not None:
                one.after.before = one


# -- sessions ---------------------------------------------------------------------------------------------------------

Guarantee = Literal["read-your-writes", "monotonic-reads", "monotonic-writes", "writes-follow-reads", "freshness"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One operation that a session must not have seen."""

    guarantee: Guarantee
    op: Op
    earlier: str
    """The version that it contradicts."""

    def __str__(self) -> str:
        op = self.op
        return f"{self.guarantee}: {op.client} at {op.pop or '?'}: {op.kind} {op.key} -> {op.version}, after {self.earlier}"


@dataclass(frozen=True, slots=True)
class TakeOver:
    """From `index` on, session `to` has the token of session `of` too (as of then)."""

    index: int
    to: str
    of: str


def session_violations(ops: Sequence[Op], take_overs: Sequence[TakeOver] = ()) -> list[Violation]:
    """What contradicts the guarantees of each `client` (one session, one operation at a time, in the order of `ops`).

    A read that finds nothing is fine when somebody may have deleted the key with a later version than the session has seen.
    """
    deletions: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.kind == "delete" and op.outcome != "refused":
            deletions[op.key].append(op)
    read: dict[str, dict[str, str]] = defaultdict(dict)
    written: dict[str, dict[str, str]] = defaultdict(dict)
    found: list[Violation] = []
    pending = sorted(take_overs, key=lambda one: one.index)
    for position, op in enumerate(ops):
        while pending and pending[0].index <= position:
            taken = pending.pop(0)
            for floors in (read, written):
                for key, version in floors[taken.of].items():
                    floors[taken.to][key] = max(version, floors[taken.to].get(key, ""))
        if op.outcome != "ok":
            continue
        seen, wrote = read[op.client], written[op.client]
        if op.kind == "read":
            for guarantee, floors in (("read-your-writes", wrote), ("monotonic-reads", seen)):
                floor = floors.get(op.key)
                if floor is not None and not _reaches(op, floor, deletions[op.key]):
                    found.append(Violation(guarantee, op, floor))  # type: ignore[arg-type]
            if op.version is not None:
                seen[op.key] = max(op.version, seen.get(op.key, ""))
        elif op.version is not None:
            # A version is larger than every one that the writer's PoP knew: of any key, not only of this one.
            for guarantee, floors in (("monotonic-writes", wrote), ("writes-follow-reads", seen)):
                floor = max(floors.values(), default="")
                if op.version <= floor:
                    found.append(Violation(guarantee, op, floor))  # type: ignore[arg-type]
            wrote[op.key] = max(op.version, wrote.get(op.key, ""))
    return found


def _reaches(op: Op, floor: str, deletions: Sequence[Op]) -> bool:
    if op.version is not None:
        return op.version >= floor
    return any(one.start_s <= op.end_s and (one.version is None or one.version >= floor) for one in deletions)


def too_old(writes: Sequence[Op], reads: Iterable[Op], bound_s: float) -> list[Violation]:
    """Reads that miss a write which had been acknowledged more than `bound_s` before they began. Versions only grow: nothing is deleted in such a history."""
    ended: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for op in sorted(writes, key=lambda op: op.end_s):
        if op.outcome == "ok" and op.version is not None:
            newest = max(op.version, ended[op.key][-1][1]) if ended[op.key] else op.version
            ended[op.key].append((op.end_s, newest))
    found = []
    for op in reads:
        known = ended[op.key]
        at = bisect_left(known, (op.start_s - bound_s, ""))
        if op.outcome == "ok" and at and (op.version or "") < known[at - 1][1]:
            found.append(Violation("freshness", op, known[at - 1][1]))
    return found


def going_back(seen: Iterable[tuple[Hashable, str]]) -> list[tuple[Hashable, str, str]]:
    """(key, version, later version shown before it) of each step back in what one observer was shown, in order."""
    newest: dict[Hashable, str] = {}
    found = []
    for key, version in seen:
        if key in newest and version < newest[key]:
            found.append((key, version, newest[key]))
        newest[key] = max(version, newest.get(key, ""))
    return found


# -- what must be there at the end ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Written:
    """One attempt to write a register. `value` None = a deletion. `expires_s`: it may be gone from then on."""

    key: str
    value: str | None
    version: str | None = None
    """None: it was not said, so it may be any."""
    outcome: Outcome = "unknown"
    forgivable: bool = False
    """Acknowledged at a PoP that was destroyed before anybody else had it, at a class that says no more."""
    expires_s: float = math.inf


@dataclass
class Kept:
    """What became of acknowledged writes at one PoP."""

    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    """Something is there that nobody wrote so."""

    @property
    def ok(self) -> bool:
        """Nothing is lost, nothing is strange."""
        return not (self.lost or self.strange)


def kept(writes: Iterable[Written], there: Mapping[str, tuple[str, str]], now_s: float = 0.0) -> Kept:
    """Compare all attempts with what a PoP shows: key -> (version, value). Last writer wins: the highest acknowledged version, or a later one, must be there."""
    result = Kept()
    by_key: dict[str, list[Written]] = defaultdict(list)
    for one in writes:
        by_key[one.key].append(one)
    for key in sorted(by_key.keys() | there.keys()):
        mine = by_key.get(key, [])
        sure = [one for one in mine if one.outcome == "ok" and one.version is not None]
        result.acknowledged += sum(one.outcome == "ok" for one in mine)
        floor = max((one for one in sure if not one.forgivable), key=lambda one: one.version or "", default=None)
        unsure = [one for one in mine if one.outcome == "unknown" or (one.outcome == "ok" and one.version is None)]
        if key not in there:
            could = floor is None or floor.value is None or floor.expires_s <= now_s
            later = [one for one in sure if floor is not None and (one.version or "") > (floor.version or "")]
            gone = any(one.value is None or one.expires_s <= now_s for one in unsure + later)
            if not could and not gone:
                assert floor is not None
                result.lost.append(f"{key}: {floor.version} is not there")
            continue
        version, value = there[key]
        if floor is not None and version < (floor.version or ""):
            result.lost.append(f"{key}: {floor.version} was acknowledged, {version} is there")
        by_version = [one for one in sure if one.version == version]
        candidates = by_version or unsure
        if not any(one.value == value for one in candidates):
            result.strange.append(f"{key}: {version} is there with {value[:60]!r}, which nobody wrote so")
        elif by_version and by_version[0].expires_s <= now_s:
            result.strange.append(
                f"{key}: {version} is still there, {now_s - by_version[0].expires_s:.1f} s after its end"
            )
    return result


@dataclass(slots=True)
class Added:
    """One attempt to add to a counter."""

    key: str
    by: int
    outcome: Outcome = "unknown"
    forgivable: bool = False


def miscounted(adds: Iterable[Added], counts: Mapping[str, int]) -> list[str]:
    """Counters that are not the sum of what was acknowledged, give or take what nobody knows the outcome of."""
    sure: dict[str, int] = defaultdict(int)
    less: dict[str, int] = defaultdict(int)
    more: dict[str, int] = defaultdict(int)
    for one in adds:
        open_ended = one.outcome == "unknown" or one.forgivable
        if one.outcome == "ok":
            sure[one.key] += one.by
        if open_ended:
            # Forgivable ones are in the sum and may be missing; unknown ones are not in it and may be there.
            step = -one.by if one.outcome == "ok" else one.by
            less[one.key] += min(step, 0)
            more[one.key] += max(step, 0)
    return [
        f"{key}: {counts.get(key, 0)}, acknowledged were {sure[key]} ({less[key]:+d}..{more[key]:+d} unknown)"
        for key in sorted(sure.keys() | more.keys() | counts.keys())
        if not sure[key] + less[key] <= counts.get(key, 0) <= sure[key] + more[key]
    ]


@dataclass(slots=True)
class Member:
    """One attempt to put a member in (or take it out of) a set, or a field into a map (`value` None = taken out), by the only writer of that member."""

    key: str
    member: str
    value: str | None
    outcome: Outcome = "unknown"
    forgivable: bool = False


def misplaced(attempts: Iterable[Member], there: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Members whose state is neither what their writer was told last nor what a later attempt of unknown outcome would have made of it."""
    allowed: dict[tuple[str, str], set[str | None]] = defaultdict(lambda: {None})
    for one in attempts:
        place = (one.key, one.member)
        if one.outcome == "ok" and not one.forgivable:
            allowed[place] = {one.value}
        elif one.outcome != "refused":
            allowed[place] = allowed[place] | {one.value}
    found = [
        f"{key}/{member}: {there.get(key, {}).get(member)!r}, may be {sorted(map(repr, values))}"
        for (key, member), values in sorted(allowed.items())
        if there.get(key, {}).get(member) not in values
    ]
    found += [
        f"{key}/{member}: nobody put it there"
        for key, members in sorted(there.items())
        for member in sorted(members)
        if (key, member) not in allowed
    ]
    return found
