"""What a PoP's Redis says, read directly, and whether it adds up.

What it is: the conservation equations between counters, log and release stream, and the one question that every fault test asks: did each input have exactly one visible
result? Also `python -m edgeflow.lab.ledger --config FILE --namespace NS`, which prints what `read` finds where the socket is out of reach from outside (`dump`, `load`).
What it is not: a user of the product's own reading code, which could hide what it gets wrong: it has a Redis client of its own.
"""

import argparse
import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import redis

ERRORS = (redis.RedisError, OSError)
"""A store that is away."""
CHANNEL, PREV, HEAD = 0, 1, 2
"""Positions in a packed event."""


@dataclass(frozen=True)
class Verdict:
    """How `seen` differs from `sent`: inputs without a result, inputs with several, results of nothing."""

    sent: int
    lost: list[str]
    doubled: list[str]
    strange: list[str]

    def __str__(self) -> str:
        return f"{self.sent} sent, {len(self.lost)} lost, {len(self.doubled)} doubled"

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.strange)


def exactly_once(sent: Iterable[str], seen: Iterable[str]) -> Verdict:
    """Compare the names of inputs with the names that visible results carry, one for each result."""
    wanted, counts = set(sent), Counter(seen)
    return Verdict(
        len(wanted),
        sorted(wanted - set(counts)),
        sorted(name for name in wanted if counts[name] > 1),
        sorted(set(counts) - wanted),
    )


@dataclass(frozen=True)
class Entry:
    """One log entry: `ends` are (invocation, how, function, ...) of what it ended, `events` are packed."""

    kind: str
    ends: list[tuple[Any, ...]]
    events: list[list[Any]]
    values: list[list[Any]]


@dataclass(frozen=True)
class Released:
    """One item of the release stream."""

    position: tuple[str, int, int, int]
    """origin, epoch, seq, index."""
    channel: str
    prev: int
    via: str
    """"mqtt" for what came in over this PoP's broker, "repeated" for what came a second time from another PoP and is shown to nobody."""
    id: str
    subject: str


@dataclass
class Ledger:
    """One namespace at one PoP, at one moment."""

    pop: str
    counters: Mapping[str, int]
    heads: Mapping[tuple[str, int], int]
    logs: dict[tuple[str, int], dict[int, bytes]]
    released: list[Released] = field(default_factory=list)
    gaps: list[Any] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    """What is under way, by kind: empty at the end."""

    def entries(self, *, own: bool | None = None) -> list[Entry]:
        """The log's entries, all or only this PoP's own (or the others')."""
        return [
            _entry(raw)
            for (origin, _), items in self.logs.items()
            if own is None or (origin == self.pop) == own
            for raw in items.values()
        ]

    def subjects(self, channel: str) -> list[str]:
        """Subjects of the released events on a channel, in order."""
        return [one.subject for one in self.released if one.channel == channel and one.via != "repeated"]

    def problems(self, subscriptions: Mapping[str, int] | None, superseded: int = 0) -> list[str]:
        """What does not add up. `subscriptions`: how many inputs of functions at this PoP each channel feeds; None = not to be compared.

        `superseded`: how many results of all PoPs did not count, because another PoP had one of the same invocation: so many ends may be there twice.
        """
        found: list[str] = []

        def equal(what: str, left: int, right: int) -> None:
            if left != right:
                found.append(f"{self.pop}: {what}: {left} != {right}")

        count = Counter(self.counters)
        own = self.entries(own=True)
        for log_id, items in self.logs.items():
            if sorted(items) != list(range(1, self.heads[log_id] + 1)):
                found.append(f"{self.pop}: log {log_id} does not go from 1 to {self.heads[log_id]} without a gap")
        equal(
            "events_ingested, events in the log",
            count["events_ingested"],
            sum(entry.kind == "event" for entry in own) + self.waiting.get("waiting", 0),
        )
        commits = [entry for entry in own if entry.kind == "commit"]
        equal("invocations_committed, commits in the log", count["invocations_committed"], len(commits))
        equal(
            "events_emitted, events of commits in the log",
            count["events_emitted"],
            sum(len(entry.events) for entry in commits),
        )
        ended = Counter(end[0] for entry in self.entries() for end in entry.ends)
        if sum(ended.values()) - len(ended) > superseded:
            found += [f"{self.pop}: invocation {id} ended {times} times" for id, times in ended.items() if times > 1]
        equal(
            "arrivals, what became of them",
            count["arrivals"],
            count["arrivals_consumed"] + count["arrivals_duplicate"] + count["arrivals_expired"] + count["arrivals_superseded"]
            + count["arrivals_handed_over"]
            + sum(value for name, value in count.items() if name.startswith("arrivals_dropped")) + self.waiting.get("arrivals", 0),
        )  # fmt: skip
        if subscriptions is not None:
            equal(
                "arrivals, released events that feed functions here",
                count["arrivals"],
                sum(subscriptions.get(one.channel, 0) for one in self.released if one.via != "repeated"),
            )
        given_up = (
            count["invocations_dead"] + count["invocations_expired"]
            + sum(value for name, value in count.items() if name.startswith("invocations_dropped"))
        )  # fmt: skip
        equal("given up, ends in the log", given_up, sum(end[1] != "committed" for entry in own for end in entry.ends))
        equal(
            "invocations_accepted, what became of them",
            count["invocations_accepted"],
            count["invocations_committed"] + given_up + count["invocations_shadowed"] + count["invocations_superseded"]
            + count["invocations_handed_over"] + self.waiting.get("invocations", 0),
        )  # fmt: skip
        equal(
            "standby kept, what became of it",
            count["standby_kept"],
            count["standby_settled"]
            + count["standby_taken"]
            + count["standby_dropped"]
            + self.waiting.get("standby", 0),
        )
        positions = Counter(one.position for one in self.released)
        found += [
            f"{self.pop}: {position} was released {times} times" for position, times in positions.items() if times > 1
        ]
        logged = {
            (origin, epoch, seq, index)
            for (origin, epoch), items in self.logs.items()
            for seq, raw in items.items()
            for index in range(len(_entry(raw).events))
        }
        if not self.waiting:
            equal("released events, events of all logs", len(positions), len(logged))
            found += [f"{self.pop}: {position} was never released" for position in sorted(logged - set(positions))[:10]]
        last: dict[tuple[str, int, str], int] = {}
        for one in self.released:
            lane = (*one.position[:2], one.channel)
            if one.prev != last.get(lane, 0) and one.position[2] != last.get(lane, 0):
                found.append(
                    f"{self.pop}: {one.position} on {one.channel} follows {one.prev}, but {last.get(lane, 0)} was before it"
                )
            last[lane] = one.position[2]
        found += [f"{self.pop}: gap {gap}" for gap in self.gaps]
        return found


def read(socket: str, namespace: str, pop: str) -> Ledger:
    """The ledger of one PoP, from its Redis alone."""
    with _door(socket) as door:
        prefix = prefix_of(namespace)
        heads = {_log_id(name): int(head) for name, head in door.hgetall(prefix + "heads").items()}
        logs = {
            log_id: {
                int(item.split(b"-")[0]): fields[b"e"]
                for item, fields in door.xrange(f"{prefix}log:{log_id[0]}:{log_id[1]}")
            }
            for log_id in heads
        }
        counters = {name.decode(): int(value) for name, value in door.hgetall(prefix + "counters").items()}
        ledger = Ledger(pop, counters, heads, logs)
        for _, fields in door.xrange(prefix + "release"):
            if b"g" in fields:
                ledger.gaps.append(msgpack.unpackb(fields[b"g"], raw=True))
                continue
            packed = msgpack.unpackb(fields[b"e"], raw=True)
            position = (fields[b"o"].decode(), int(fields[b"h"]), int(fields[b"s"]), int(fields[b"i"]))
            ledger.released.append(
                Released(position, packed[CHANNEL].decode(), int(packed[PREV]), fields[b"v"].decode(), *_named(packed))
            )
        ledger.waiting = under_way(door, prefix)
    return ledger


def waiting(socket: str, namespace: str) -> dict[str, int]:
    """What is not finished at one PoP."""
    with _door(socket) as door:
        return under_way(door, prefix_of(namespace))


def prefix_of(namespace: str) -> str:
    """How the store's keys of a namespace begin."""
    return f"ef:{{{namespace}}}:"


def under_way(door: Any, prefix: str) -> dict[str, int]:
    """What is not finished, by kind; kinds with nothing are left out."""
    invocations = sum(1 for _ in door.scan_iter(match=_pattern(prefix + "inv:"), count=10_000))
    arrivals = 0
    for key in door.scan_iter(match=_pattern(prefix + "join:"), count=10_000):
        packed = [value for name, value in door.hgetall(key).items() if not name.startswith(b"\0") and value]
        arrivals += sum(len(msgpack.unpackb(value, raw=True, strict_map_key=False)) for value in packed)
    for key in door.scan_iter(match=_pattern(prefix + "joined:"), count=10_000):
        arrivals += door.llen(key)
    waiting = sum(door.llen(prefix + "waiting:" + name.decode()) for name in door.zrange(prefix + "waiting", 0, -1))
    kinds = {
        "invocations": invocations, "arrivals": arrivals, "waiting": waiting, "held": door.zcard(prefix + "held"),
        "claimed": door.zcard(prefix + "claimed"), "delayed": door.zcard(prefix + "delayed"), "joins": door.zcard(prefix + "joins"),
        "dead": door.zcard(prefix + "dead"), "standby": door.hlen(prefix + "standby"),
        "parked": door.zcard(prefix + "parked"),
    }  # fmt: skip
    return {kind: count for kind, count in kinds.items() if count}


def dump(ledger: Ledger) -> dict[str, Any]:
    """A ledger as JSON."""
    return {
        "pop": ledger.pop, "counters": dict(ledger.counters), "waiting": ledger.waiting, "gaps": [repr(gap) for gap in ledger.gaps],
        "heads": [[*log_id, head] for log_id, head in ledger.heads.items()],
        "logs": [[*log_id, {seq: base64.b64encode(raw).decode() for seq, raw in items.items()}] for log_id, items in ledger.logs.items()],
        "released": [asdict(one) for one in ledger.released],
    }  # fmt: skip


def load(document: Mapping[str, Any]) -> Ledger:
    """What `dump` has said."""
    return Ledger(
        pop=document["pop"], counters=document["counters"], waiting=document["waiting"], gaps=document["gaps"],
        heads={(origin, int(epoch)): int(head) for origin, epoch, head in document["heads"]},
        logs={
            (origin, int(epoch)): {int(seq): base64.b64decode(raw) for seq, raw in items.items()}
            for origin, epoch, items in document["logs"]
        },
        released=[Released(**{**one, "position": tuple(one["position"])}) for one in document["released"]],
    )  # fmt: skip


def _door(socket: str) -> Any:
    return redis.Redis(unix_socket_path=socket, protocol=2, socket_timeout=20)


def _pattern(prefix: str) -> str:
    return "".join(f"\\{letter}" if letter in "{}[]?*" else letter for letter in prefix) + "*"


def _entry(raw: bytes) -> Entry:
    fields = msgpack.unpackb(raw, raw=True, strict_map_key=False)
    ends = [tuple(part.decode() if isinstance(part, bytes) else part for part in end) for end in fields[b"x"] or ()]
    # An empty Lua table is packed as a list or as a map.
    return Entry(fields[b"k"].decode(), ends, list(fields[b"ev"] or ()), list(fields[b"va"] or ()))


def _named(packed: list[Any]) -> tuple[str, str]:
    head = msgpack.unpackb(packed[HEAD])
    return str(head["i"]), str(head.get("u", ""))


def _log_id(name: bytes) -> tuple[str, int]:
    origin, _, epoch = name.decode().rpartition(":")
    return origin, int(epoch)


def main() -> None:
    """Print the ledger of the PoP whose settings are in a file, or only what is under way there."""
    parser = argparse.ArgumentParser(prog="python -m edgeflow.lab.ledger", description="What a PoP's store holds.")
    parser.add_argument("--config", type=Path, required=True, help="the PoP's pop.json")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--waiting", action="store_true", help="only what is not finished")
    args = parser.parse_args()
    settings = json.loads(args.config.read_text())
    socket = settings["store"]["redis_socket"]
    print(
        json.dumps(
            waiting(socket, args.namespace) if args.waiting else dump(read(socket, args.namespace, settings["pop"]))
        )
    )


if __name__ == "__main__":
    main()
