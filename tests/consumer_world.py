"""A cluster in memory for the cursors of consumers: logs, mirrors, gates that hold, retention, stores that are lost or go back; and a consumer on it.

What it is: the rules of the store's Lua library as far as the order and the content of release streams go, driven by a seeded generator, and the real
code that reads them (edgeflow.api.tails, edgeflow.api.streams, the memory of the SDK). Between any two reads of a stream something may happen.
"""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeflow.api.streams import ChannelStream, parse_start
from edgeflow.api.tails import Encode, GapEncode, Item, Place, TailHub, _Tail, position_of
from edgeflow.api.tails import Subscription as Feed
from edgeflow.core.channels import matches
from edgeflow.core.cursors import Log, Position, Vector, covers, low_water
from edgeflow.core.events import Event
from edgeflow.errors import StoreUnavailable
from edgeflow.sdk.subscription import ReceivedEvent, Seen
from edgeflow.store.records import Released

NS = "ns"
CHANNELS = ("ns/a", "ns/b", "ns/c/d")


@dataclass
class Entry:
    """One log entry: its events as (channel, id), and whether its data comes late to other PoPs."""

    events: list[tuple[str, str]]
    is_late: bool

    @property
    def channels(self) -> set[str]:
        return {channel for channel, _ in self.events}


@dataclass
class State:
    """What a PoP's store holds, and would get back from a backup."""

    epoch: int = 1
    logs: dict[Log, list[Entry]] = field(default_factory=dict)
    missing: dict[tuple[Log, int], bool] = field(default_factory=dict)
    """Held entries, and whether their data is missing (or only something in front of them)."""
    lanes: dict[tuple[Log, str], list[int]] = field(default_factory=dict)
    prev: dict[tuple[Log, str], int] = field(default_factory=dict)
    release: list[Released] = field(default_factory=list)
    n: int = 0
    removed: dict[tuple[Log, str], int] = field(default_factory=dict)
    graveyard: dict[int, Released] = field(default_factory=dict)
    """For the test: what retention removed."""


class Pop:
    """One PoP: the handle that `edgeflow.api.tails` reads."""

    def __init__(self, world: "World", pop: str) -> None:
        self.world = world
        self.name = NS
        self.pop = pop
        self.state = State()
        self.highest_epoch = 1
        self.client = None
        self.outages = 0

    # -- what the readers ask, with things going on in between

    def release_head(self) -> int:
        return self._after(self.state.n)

    def low_water(self) -> tuple[int, Vector, int]:
        heads = {log: len(entries) for log, entries in self.state.logs.items()}
        self.world.happen()
        lowest: dict[Log, int] = {}
        for log, seq in self.state.missing:
            lowest[log] = min(seq, lowest.get(log, seq))
        self.world.happen()
        return self._after((self.state.n, low_water(heads, lowest), len(lowest)))

    def read_release(self, after: int, count: int = 100) -> list[Released]:
        return self._after([one for one in self.state.release if one.n > after][:count])

    def scan_release(self, after: int, count: int = 1000) -> list[Position]:
        return self._after([position_of(one) for one in self.state.release if one.n > after][:count])

    def removed(self) -> dict[tuple[Log, str], int]:
        return self._after(dict(self.state.removed))

    def wait_release(self, _client: object, after: int, _timeout_s: float) -> bool:
        return bool(self.state.release) and self.state.release[-1].n > after

    def _after(self, value: Any) -> Any:
        self.world.happen()
        return value

    # -- what a consumer of the test asks

    def hub(self, encode: Encode, encode_gap: GapEncode) -> TailHub:
        return TailHub(StoreOf(self), encode, encode_gap)  # type: ignore[arg-type]

    def was_there(self, first: int, last: int) -> list[Released]:
        """What stood at these numbers before retention took it."""
        return [self.state.graveyard[n] for n in range(first, last + 1) if n in self.state.graveyard]

    def has(self, log: Log, seq: int) -> bool:
        return seq <= len(self.state.logs.get(log, ()))

    # -- what happens to it

    def publish(self, *entries: Entry, order: list[tuple[int, int]]) -> None:
        """Append entries to the own log; release their events in `order` (entry, part)."""
        log = (self.pop, self.state.epoch)
        own = self.state.logs.setdefault(log, [])
        first = len(own) + 1
        own += entries
        for entry, part in order:
            self._event(log, first + entry, part)

    def mirror(self, log: Log, entry: Entry) -> None:
        entries = self.state.logs.setdefault(log, [])
        entries.append(entry)
        seq = len(entries)
        channels = entry.channels
        if entry.is_late or any(self.state.lanes.get((log, channel)) for channel in channels):
            self.state.missing[log, seq] = entry.is_late
            for channel in channels:
                self.state.lanes.setdefault((log, channel), []).append(seq)
        else:
            self._release(log, seq)

    def arrive(self, log: Log, seq: int) -> None:
        """The data of a held entry came."""
        self.state.missing[log, seq] = False
        self._try(log, seq)

    def expire(self, log: Log, seq: int) -> None:
        """The data of a held entry came too late."""
        del self.state.missing[log, seq]
        entry = self.state.logs[log][seq - 1]
        channels = entry.channels
        for channel in channels:
            self.state.lanes[log, channel].remove(seq)
        for channel, _ in entry.events:
            before = self.state.prev.get((log, channel), 0)
            self.state.prev[log, channel] = max(before, seq)
            about = {"channel": channel, "origin": log[0], "epoch": log[1], "from": before, "to": seq}
            self._append(None, {**about, "reason": "gate-timeout"})
        for channel in channels:
            if lane := self.state.lanes[log, channel]:
                self._try(log, lane[0])

    def tidy(self, count: int) -> None:
        for one in self.state.release[:count]:
            position = position_of(one)
            channel = one.event.channel if one.event else (one.gap or {})["channel"]
            lane = (position.log, channel)
            self.state.removed[lane] = max(position.seq, self.state.removed.get(lane, 0))
            self.state.graveyard[one.n] = one
        del self.state.release[:count]

    def come_back_with(self, state: State) -> None:
        """The store is replaced by an older one, or an empty one."""
        own = len(self.state.logs.get((self.pop, self.state.epoch), ()))
        kept = len(state.logs.get((self.pop, self.state.epoch), ()))
        lost_own = kept < own or state.epoch < self.state.epoch or not state.logs
        self.state = copy.deepcopy(state)
        if lost_own:
            self.highest_epoch += 1
            self.state.epoch = self.highest_epoch
        self.outages += 1

    def _try(self, log: Log, seq: int) -> None:
        todo = [seq]
        while todo:
            seq = todo.pop()
            entry = self.state.logs[log][seq - 1]
            channels = entry.channels
            lanes = [self.state.lanes[log, channel] for channel in channels]
            if self.state.missing.get((log, seq)) is False and all(lane[0] == seq for lane in lanes):
                del self.state.missing[log, seq]
                for lane in lanes:
                    lane.pop(0)
                self._release(log, seq)
                todo += [lane[0] for lane in lanes if lane]

    def _release(self, log: Log, seq: int) -> None:
        for part in range(len(self.state.logs[log][seq - 1].events)):
            self._event(log, seq, part)

    def _event(self, log: Log, seq: int, part: int) -> None:
        channel, id = self.state.logs[log][seq - 1].events[part]
        prev = self.state.prev.get((log, channel), 0)
        self.state.prev[log, channel] = seq
        self._append(Event(channel, id, "s", "t", 0, data=b"").at(log[0], log[1], seq, part, prev), None)

    def _append(self, event: Event | None, gap: dict[str, Any] | None) -> None:
        self.state.n += 1
        self.world.now_ms += self.world.random.randrange(2)
        self.state.release.append(Released(self.state.n, event, gap, "", self.world.now_ms))


class StoreOf:
    """The store of one PoP, as a hub knows it."""

    def __init__(self, pop: Pop) -> None:
        self._pop = pop

    @property
    def outages(self) -> int:
        return self._pop.outages

    def namespace(self, _name: str) -> Pop:
        return self._pop

    def has_namespace(self, _name: str) -> bool:
        return True

    def ping(self) -> None:
        pass


class Loop:
    """An event loop that does everything at once."""

    def call_soon_threadsafe(self, step: Callable[..., None], *arguments: Any) -> None:
        step(*arguments)


@dataclass(frozen=True)
class Faults:
    """What may happen besides publishing and mirroring."""

    late: bool = True
    retention: bool = True
    loss: bool = True


class World:
    """All PoPs, and everything that was published."""

    def __init__(self, seed: int, pops: int = 3, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.pops = [Pop(self, name) for name in ("la", "ny", "sf")[:pops]]
        self.published: dict[str, tuple[Log, int, str]] = {}
        self.now_ms = 1
        self.backups: dict[str, State] = {}
        self.restlessness = 0.0
        self._busy = False

    def happen(self) -> None:
        """Sometimes something happens between two reads."""
        if not self._busy and self.random.random() < self.restlessness:
            self.step()

    def step(self) -> None:
        """One thing happens."""
        self._busy = True
        choices = [self._publish] * 4 + [self._mirror] * 8
        if self.faults.late:
            choices += [self._arrive] * 3 + [self._expire]
        if self.faults.retention:
            choices += [self._tidy]
        if self.faults.loss and self.random.random() < 0.1:
            choices += [self._backup, self._lose, self._restore] * 2
        self.random.choice(choices)()
        self._busy = False

    def settle(self) -> None:
        """Everything that can still arrive anywhere does."""
        self._busy = True
        moved = True
        while moved:
            moved = False
            for pop in self.pops:
                while self._mirror_one(pop):
                    moved = True
                for log, seq in [key for key, is_missing in pop.state.missing.items() if is_missing]:
                    pop.arrive(log, seq)
                    moved = True
        assert not any(pop.state.missing for pop in self.pops)
        self._busy = False

    def _publish(self) -> None:
        pop = self.random.choice(self.pops)
        entries = [self._entry() for _ in range(self.random.choice((1, 1, 1, 2)))]
        order = [(index, part) for index, entry in enumerate(entries) for part in range(len(entry.events))]
        if len(entries) == 2 and not entries[0].channels & entries[1].channels:
            # The second one came about in the middle of the first one's release, as a dead letter does.
            outer, inner = ([one for one in order if one[0] == index] for index in (0, 1))
            cut = self.random.randrange(len(outer) + 1)
            order = [*outer[:cut], *inner, *outer[cut:]]
        log = (pop.pop, pop.state.epoch)
        first = len(pop.state.logs.get(log, ())) + 1
        pop.publish(*entries, order=order)
        for index, entry in enumerate(entries):
            for channel, id in entry.events:
                self.published[id] = (log, first + index, channel)

    def _entry(self) -> Entry:
        number = self.random.choice((0, 1, 1, 1, 1, 2, 3))
        start = len(self.published) + self.random.randrange(10**9) * 1000
        events = [(self.random.choice(CHANNELS), f"e{start + part}") for part in range(number)]
        return Entry(events, self.faults.late and bool(events) and self.random.random() < 0.25)

    def _mirror(self) -> None:
        pop = self.random.choice(self.pops)
        for _ in range(self.random.choice((1, 1, 2, 5))):
            self._mirror_one(pop)

    def _mirror_one(self, pop: Pop) -> bool:
        """The next entry of some log that another PoP has more of."""
        ahead = [
            (log, entries[have])
            for other in self.pops
            if other is not pop
            for log, entries in other.state.logs.items()
            if (have := len(pop.state.logs.get(log, ()))) < len(entries) and log != (pop.pop, pop.state.epoch)
        ]
        if ahead:
            pop.mirror(*self.random.choice(ahead))
        return bool(ahead)

    def _held(self) -> list[tuple[Pop, Log, int]]:
        return [(pop, log, seq) for pop in self.pops for (log, seq), missing in pop.state.missing.items() if missing]

    def _arrive(self) -> None:
        if held := self._held():
            pop, log, seq = self.random.choice(held)
            pop.arrive(log, seq)

    def _expire(self) -> None:
        if held := self._held():
            pop, log, seq = self.random.choice(held)
            pop.expire(log, seq)

    def _tidy(self) -> None:
        self.random.choice(self.pops).tidy(self.random.choice((1, 3, 10)))

    def _backup(self) -> None:
        pop = self.random.choice(self.pops)
        self.backups[pop.pop] = copy.deepcopy(pop.state)

    def _lose(self) -> None:
        self.random.choice(self.pops).come_back_with(State())

    def _restore(self) -> None:
        pop = self.random.choice(self.pops)
        if pop.pop in self.backups:
            pop.come_back_with(self.backups[pop.pop])


class AnyPop(Protocol):
    """A PoP of this cluster in memory, or one on a real store."""

    pop: str

    @property
    def client(self) -> Any: ...

    def hub(self, encode: Encode, encode_gap: GapEncode) -> TailHub: ...
    def was_there(self, first: int, last: int) -> list[Released]: ...
    def has(self, log: Log, seq: int) -> bool: ...


class AnyWorld(Protocol):
    """Where events are published."""

    random: random.Random
    published: dict[str, tuple[Log, int, str]]


class Consumer:
    """A consumer of a filter: what it was given, what it was told is missing, and what its memory let through."""

    def __init__(self, world: AnyWorld, pattern: str) -> None:
        self.world = world
        self.pattern = pattern
        self.cursor: str | None = None
        self.acked: str | None = None
        self.given: Counter[str] = Counter()
        self.yielded: Counter[str] = Counter()
        self.gaps: list[dict[str, Any]] = []
        self.missed: set[str] = set()
        self.seen = Seen()
        self._feed: Feed | None = None

    def connect(self, pop: AnyPop) -> None:
        """Come (again) with the newest cursor."""

        def encode(_handle: object, released: Released) -> bytes:
            return json.dumps({"id": released.event.id} if released.event else released.gap).encode()

        def encode_gap(first: int, last: int, _reason: str) -> bytes:
            there = pop.was_there(first, last)
            missed = [one.event.id for one in there if one.event]
            return json.dumps({"missed": missed, "gaps": [one.gap for one in there if one.gap]}).encode()

        hub = pop.hub(encode, encode_gap)
        try:
            begin = hub.begin(NS, parse_start(self.cursor or "start", None), self.pattern)
        except StoreUnavailable:
            self.connect(pop)
            return
        self._pop = pop
        self._handle = hub._store.namespace(NS)
        self._stream = ChannelStream(hub, pop.pop, self.pattern, begin, lambda: True)
        self._feed = None
        self._is_live = False
        self._tail = _Tail(hub, NS, Loop())  # type: ignore[arg-type]
        self._tail._client = pop.client
        hub._tails[NS] = self._tail
        if begin.gaps:
            self.gaps += [dict(gap) for gap in begin.gaps]
        else:
            self._heartbeat(self._stream._place)

    def crash(self, pop: AnyPop) -> None:
        """Forget everything but what was acknowledged, and come again."""
        self.cursor = self.acked
        self.seen = Seen()
        self.connect(pop)

    def read(self, most: int = 10**9) -> bool:
        """Read once and take up to `most` frames, then be cut off. Whether there may be more."""
        stream, feed = self._stream, self._feed
        if feed is None or not self._is_live:
            try:
                items, at_end = stream._read()
            except StoreUnavailable:
                stream._was_away = True
                return True
            if stream._ended or not self._take(items, most):
                self.connect(self._pop)
            elif feed is not None and feed.joined_at is not None and stream._place.n >= feed.joined_at:
                self._is_live = True
            elif at_end and feed is None:
                self._feed = Feed(self.pattern)
                self._tail.joining.append(self._feed)
                self._tail._step(self._handle)
            return True
        self._tail._step(self._handle)
        items = [item for item in feed._items if item.n > stream._place.n]
        feed._items.clear()
        feed._held_bytes = 0
        if stream._hub.outages != stream._outages and not stream._still_fits():
            self.connect(self._pop)
            return True
        if not self._take(
            [one for one in items if one.step is None or not covers(stream._begin.known, *one.step)], most
        ):
            self.connect(self._pop)
        elif feed.closed:
            self.connect(self._pop)
            return True
        elif items:
            stream._place = items[-1].place
        elif feed.place.n >= stream._place.n:
            stream._place = feed.place
            self._heartbeat(stream._place)
        return bool(items)

    def _heartbeat(self, place: Place) -> None:
        if self.world.random.random() < 0.7:
            self.cursor = self._stream._cursors.text(place) or self.cursor

    def _take(self, items: Sequence[Item], most: int) -> bool:
        """Take the frames; False when the stream was cut before all were taken."""
        for item in items[:most]:
            self.cursor = self._stream._cursors.text(item.place) or self.cursor
            document = json.loads(item.frame)
            if "id" in document:
                self._event(document["id"])
            elif "missed" in document:
                self.missed.update(document["missed"])
                self.gaps += document["gaps"]
            else:
                self.gaps.append(document)
            if self.world.random.random() < 0.2:
                self.acked = self.cursor
        return len(items) <= most

    def _event(self, id: str) -> None:
        log, seq, channel = self.world.published[id]
        assert matches(self.pattern, channel)
        self.given[id] += 1
        event = ReceivedEvent(channel, id, "s", "t", 0, None, None, {}, log[0], log[1], seq, "", lambda: b"")
        if self.seen.is_new(event):
            self.yielded[id] += 1

    def was_told(self, id: str) -> bool:
        """Whether a gap said that this event is missing."""
        log, seq, channel = self.world.published[id]
        about = [
            gap for gap in self.gaps if (gap["origin"], gap["epoch"]) == log and gap.get("channel", channel) == channel
        ]
        return id in self.missed or any(
            gap["from"] + (gap["reason"] == "gate-timeout") <= seq <= gap["to"] for gap in about
        )

    def drain(self, pop: AnyPop) -> None:
        """Read at `pop` until nothing more comes."""
        self.connect(pop)
        quiet = 0
        while quiet < 3:
            quiet = 0 if self.read() else quiet + 1

    def owed(self, pop: AnyPop) -> set[str]:
        """What is in the logs that `pop` has, matches, and was neither yielded nor told as missing."""
        return {
            id
            for id, (log, seq, channel) in self.world.published.items()
            if matches(self.pattern, channel) and pop.has(log, seq) and not self.yielded[id] and not self.was_told(id)
        }
