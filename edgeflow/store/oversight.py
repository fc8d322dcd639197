"""What can be asked about the work of a namespace, and what people do about it: dead letters, replays, quotas.

What it is: reads that show what is where and since when, and the few writes that an operator asks for.
What it is not: in the way of any event (`namespace.py`), or replication (`replica.py`).
What must stay true: an answer is put together from several reads, so it may be a moment old; redriving, purging and each piece of a replay are
one atomic call that changes nothing when it is repeated.
"""

import contextlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

import msgpack

from edgeflow.core.channels import matches
from edgeflow.core.events import Event
from edgeflow.core.ids import invocation_id
from edgeflow.core.routing import Directive, FunctionRoute, compile_routes
from edgeflow.errors import BadRequest, CorruptEntry, NotFound, QueueFull, Unavailable
from edgeflow.store.calls import Rows, now_ms
from edgeflow.store.connection import Command
from edgeflow.store.namespace import Namespace
from edgeflow.store.records import (
    ChannelInfo,
    DeadLetter,
    InboxStats,
    InvocationInfo,
    LogId,
    PendingJoin,
    Quota,
    Released,
    ReplayDiff,
    ReplayInfo,
    ReplaySpec,
    Result,
    pack_event,
    unpack_entry,
    unpack_event,
    unpack_inputs,
)

_ARRIVAL_REASONS = frozenset({
    "join-timeout", "join-overflow", "gate-timeout", "no-join-key", "no-key", "bad-count", "bad-time", "where-failed",
})  # fmt: skip
"""Dead letters that were never an invocation: their events arrive again."""

REVISION_DOCS = "ef:{local}:revision"
"""Where the runner writes down what revisions ran here (documents of this PoP, see client.LocalState)."""
REPLAY_PIECE = 64
"""Released events that one piece of a replay looks at."""
REPLAY_PENDING = 256
"""A replay waits while so many invocations wait in the inbox it fills: live work goes first."""


class OverseenNamespace(Namespace):
    """A namespace with the questions and interventions of an operator."""

    def channels(self) -> Rows[ChannelInfo]:
        """The channels that have had events at this PoP."""
        counts = self._connection.one("HGETALL", self.prefix + "channels")
        return sorted(
            (ChannelInfo(name.decode(), int(events)) for name, events in counts.items()), key=lambda info: info.name
        )

    def counters(self) -> dict[str, int]:
        """All counters; they change inside the scripts, so they always agree with the log."""
        return {
            name.decode(): int(value)
            for name, value in self._connection.one("HGETALL", self.prefix + "counters").items()
        }

    def in_flight(self) -> int:
        """Invocations that have not ended: they wait for their turn, are ready, delayed or claimed."""
        return sum(int(number) for number in self._connection.one("HVALS", self.prefix + "pending"))

    def pending(self) -> dict[str, int]:
        """Invocations that have not ended, by inbox ("function:revision")."""
        found = self._connection.one("HGETALL", self.prefix + "pending")
        return {inbox.decode(): int(number) for inbox, number in found.items()}

    def inbox_stats(self, function: str, revision: str) -> InboxStats:
        """Depths of the inbox of one revision."""
        inbox = f"{function}:{revision}"
        ready, alone, head, delayed, claimed, pending = self._connection.run([
            ("ZCARD", f"{self.prefix}ready:{inbox}"), ("ZCARD", f"{self.prefix}alone:{inbox}"),
            ("ZRANGE", f"{self.prefix}ready:{inbox}", 0, 0),
            ("ZRANGE", self.prefix + "delayed", 0, -1), ("ZRANGE", self.prefix + "claimed", 0, -1),
            ("HGET", self.prefix + "pending", inbox),
        ])  # fmt: skip
        oldest = 0
        if head:
            since = self._connection.one("HGET", f"{self.prefix}inv:{head[0].decode()}", "rdy")
            oldest = max(0, now_ms() - int(since) // 1000) if since else 0
        counts = []
        for ids in (delayed, claimed):
            owners = (
                self._connection.run([("HMGET", f"{self.prefix}inv:{id.decode()}", "f", "r") for id in ids])
                if ids
                else []
            )
            counts.append(sum(1 for owner in owners if owner == [function.encode(), revision.encode()]))
        turn = max(0, int(pending or 0) - ready - alone - sum(counts))
        return InboxStats(ready + alone, counts[0], counts[1], oldest, turn)

    def pending_joins(self, function: str | None = None, limit: int = 1000) -> Rows[PendingJoin]:
        """Joins that wait, the one that is due first in front. Those that fired and only wait for what belongs to them are left out."""
        joins = []
        flat = self._connection.one("ZRANGE", self.prefix + "joins", 0, limit - 1, "WITHSCORES")
        for raw, due in zip(flat[::2], flat[1::2], strict=True):
            name = raw.decode()
            fields = self._connection.one("HGETALL", f"{self.prefix}join:{name}")
            about = {key[1:].decode(): value for key, value in fields.items() if key[:1] == b"\0"}
            if not about or b"\0fired" in fields or (function is not None and about["f"].decode() != function):
                continue
            have = sorted(key.decode() for key in fields if key[:1] != b"\0")
            missing: Rows[str] = []
            kind = about["k"].decode()
            if kind != "all":
                have = [str(self._connection.one("LLEN", f"{self.prefix}joined:{name}"))]
            elif (route := self.routes().current(about["f"].decode())) is not None:
                missing = sorted({one.name for one in route.inputs} - set(have))
            window = (int(about["a"]), int(about["b"])) if "a" in about else None
            joins.append(
                PendingJoin(
                    about["f"].decode(), about["j"].decode(errors="replace"), kind, have, int(float(about["n"])), int(float(about["at"])),
                    int(float(due)), missing, window,
                )
            )  # fmt: skip
        return joins

    def pending_arrivals(self) -> int:
        """Arrivals that wait in joins."""
        total = 0
        for raw in self._connection.one("ZRANGE", self.prefix + "joins", 0, -1):
            name = raw.decode()
            total += self._connection.one("LLEN", f"{self.prefix}joined:{name}")
            fields = self._connection.one("HGETALL", f"{self.prefix}join:{name}")
            total += sum(len(unpack_inputs(value)) for key, value in fields.items() if key[:1] != b"\0" and value)
        return total

    def dead_letters(self, after: str = "", limit: int = 100) -> Rows[DeadLetter]:
        """Dead letters, oldest first, beginning behind the id `after`; without their inputs."""
        start = 0
        if after:
            rank = self._connection.one("ZRANK", self.prefix + "dead", after)
            start = 0 if rank is None else rank + 1
        ids = [id.decode() for id in self._connection.one("ZRANGE", self.prefix + "dead", start, start + limit - 1)]
        replies = self._connection.run(
            [("HMGET", f"{self.prefix}dead:{id}", "f", "r", "reason", "detail", "at", "attempts") for id in ids]
        ) if ids else []  # fmt: skip
        letters = (_letter(id, fields) for id, fields in zip(ids, replies, strict=True))
        return [letter for letter in letters if letter is not None]

    def dead_letter_count(self) -> int:
        """How many dead letters are kept here."""
        return int(self._connection.one("ZCARD", self.prefix + "dead"))

    def dead_letter(self, id: str) -> DeadLetter | None:
        """One dead letter with its inputs."""
        names = ("f", "r", "reason", "detail", "at", "attempts", "in")
        return _letter(id, self._connection.one("HMGET", f"{self.prefix}dead:{id}", *names))

    def describe(self) -> str:
        """A short JSON text for logs: head, in flight, counters."""
        return json.dumps({"release": self.release_head(), "in_flight": self.in_flight(), **self.counters()})

    # -- invocations ---------------------------------------------------------------------------------------------------

    def invocation(self, id: str) -> InvocationInfo | None:
        """One invocation as this PoP knows it; None when it is not known (any more)."""
        fields, done, letter, outcome = self._connection.run([
            ("HMGET", f"{self.prefix}inv:{id}", "f", "r", "st", "n", "x", "acc", "by", "why"), ("HGET", self.prefix + "done", id),
            ("HMGET", f"{self.prefix}dead:{id}", "f", "r", "reason", "attempts"), ("HGET", self.prefix + "outcomes", id),
        ])  # fmt: skip
        if fields[0] is not None:
            function, revision, state = (part.decode() for part in fields[:3])
            by = fields[6].decode() if state == "claimed" and fields[6] else None
            why = (fields[7] or b"").decode()
            return InvocationInfo(
                id, function, revision, state, int(fields[3]), int(fields[4]), int(fields[5]) // 1000, by, why
            )
        if letter[0] is not None:
            function, revision, reason = (part.decode() for part in letter[:3])
            attempts = int(letter[3])
            return InvocationInfo(id, function, revision, "dead", attempts, attempts, 0, None, reason)
        if done is None and outcome is not None:  # another PoP did it
            return InvocationInfo(id, "", "", msgpack.unpackb(outcome)[1], 0, 0, 0)
        if done is None:
            return None
        mark = done.decode()
        attempt = int(mark) if mark.isdigit() else 0
        return InvocationInfo(id, "", "", "committed" if attempt else mark, attempt, 0, 0)

    def result(self, id: str) -> Result | None:
        """How an invocation that was asked for ended, wherever it ran; None while it has not, or when that is forgotten."""
        packed = self._connection.one("HGET", self.prefix + "results", id)
        if packed is None:
            return None
        status, detail, origin, epoch, seq = msgpack.unpackb(packed)
        if status != "committed":
            return Result(status, detail)
        items = self.read_log(LogId(origin, epoch), seq - 1, count=1)
        if not items or items[0][0] != seq:
            raise NotFound(f"the outputs of invocation {id} are no longer kept at {self.pop}")
        return Result(status, "", _entry_events(items[0][1], origin, epoch, seq))

    def read_log(
        self, log: LogId, after: int, *, count: int = 64, max_bytes: int = 256 * 1024
    ) -> Rows[tuple[int, bytes]]:
        """(seq, entry) pairs behind `after`, at least one if there is any, then up to `max_bytes` of entries."""
        items = self._connection.one(
            "XRANGE", f"{self.prefix}log:{log.origin}:{log.epoch}", f"({after}-0", "+", "COUNT", count
        )
        found: Rows[tuple[int, bytes]] = []
        size = 0
        for item_id, fields in items:
            raw = fields[b"e"] if isinstance(fields, dict) else fields[1]
            size += len(raw)
            if found and size > max_bytes:
                break
            found.append((int(item_id.split(b"-")[0]), raw))
        return found

    # -- dead letters --------------------------------------------------------------------------------------------------

    def redrive(self, id: str) -> str:
        """Give a dead letter another chance with the function's current revision; it is a dead letter no more.

        Returns "invocation" when it became one at once, "arrivals" when its events arrived again (they never were an invocation, so filters, keys
        and joins are looked at anew). Raises NotFound for an unknown id or a function that is not placed here (any more), Unavailable when its data
        is not here, BadRequest when its events do not fit the function as it is now, QueueFull when the function's inbox has no room.
        """
        letter = self.dead_letter(id)
        if letter is None:
            raise NotFound(f"there is no dead letter {id!r} in {self.name} at {self.pop}")
        arrives = letter.reason in _ARRIVAL_REASONS
        repeated = False

        def prepare(again: bool) -> Rows[Command]:
            nonlocal repeated
            repeated = again
            route = self.routes().current(letter.function)
            if route is None:
                raise NotFound(
                    f"function {letter.function} is not placed at {self.pop} any more",
                    hint="Apply a manifest with it first, or purge the dead letter.",
                )
            call: dict[str, Any] = {"id": id, "rv": self.routes().version, "mx": self._limits.inbox_pending}
            if arrives:
                call["each"] = [self._again(route, one.event) for one in letter.inputs]
                if not any(call["each"]):
                    raise BadRequest(
                        f"function {letter.function} does not subscribe to the events of this dead letter any more"
                    )
            else:
                pairs = [(one.name, one.event) for one in letter.inputs]
                call["d"] = self.routes().whole(route, pairs, self.body_of)
            return [self._command("ef_redrive", call)]

        status, *about = self._routed(prepare)[-1]
        if status == b"full":
            function, retry_ms = about
            raise QueueFull(
                f"the inbox of function {function.decode()} is full; dead letter {id} stays until it has room",
                retry_after_s=retry_ms / 1000,
            )
        if status == b"absent" and not repeated:
            raise NotFound(f"dead letter {id!r} was redriven or purged meanwhile")
        if status == b"missing":
            raise Unavailable(f"data of dead letter {id!r} is not readable at {self.pop}")
        return "arrivals" if arrives else "invocation"

    def _again(self, route: FunctionRoute, event: Event) -> Rows[Directive]:
        return self.routes().again(route.function, event, now_ms(), self.body_of)

    def purge(self, ids: Sequence[str]) -> int:
        """Forget dead letters for good; returns how many were there."""
        return sum(int(self._call("ef_purge", ids=list(ids[at : at + 200]))) for at in range(0, len(ids), 200))

    def has_chores(self) -> bool:
        """Whether there are dead letters to announce or replays to carry on: one question, asked often."""
        return bool(self._connection.one("EXISTS", self.prefix + "dead:new", self.prefix + "replays:running"))

    def unannounced_letters(self) -> Rows[DeadLetter]:
        """Dead letters that were not announced on `_dead/<function>` yet."""
        ids = self._connection.one("SRANDMEMBER", self.prefix + "dead:new", 100)
        letters = [self.dead_letter(id.decode()) for id in ids]
        return [letter for letter in letters if letter is not None]

    def announced(self, id: str) -> None:
        """A dead letter has been announced."""
        self._connection.one("SREM", self.prefix + "dead:new", id)

    # -- quota ---------------------------------------------------------------------------------------------------------

    def set_quota(self, quota: Quota | None) -> None:
        """What the namespace may send to this PoP; None = no bound. Kept at this PoP; the agents copy it from the system namespace."""
        packed: dict[str, float] | bool = False
        if quota is not None and (quota.events_per_s or quota.bytes_per_s):
            packed = {
                "events": quota.events_per_s or 0, "bytes": quota.bytes_per_s or 0, "burst": quota.burst_s,
            }  # fmt: skip
        self._connection.one(*self._command("ef_quota", {"quota": packed}))

    def quota(self) -> Quota | None:
        """The bound that holds here."""
        events, size, burst = self._connection.one("HMGET", self.prefix + "quota", "events", "bytes", "burst")
        if events is None:
            return None
        return Quota(float(events) or None, float(size) or None, float(burst))

    # -- replays -------------------------------------------------------------------------------------------------------

    def start_replay(self, spec: ReplaySpec) -> ReplayInfo:
        """Begin to hand retained events once more to a function; `run_replays` carries it on.

        Raises NotFound when the function is not placed here, or its revision is not kept.
        """
        table = self._table_of(spec.function, spec.revision)
        functions = json.loads(table)[0]
        id = secrets.token_hex(6)
        fields: dict[str, str | int] = {
            "state": "running", "spec": json.dumps([spec.channel, spec.function, functions[0]["revision"], spec.from_ms, spec.to_ms, spec.shadow]),
            "table": table, "position": 0, "end": self.release_head(), "started": now_ms(),
        }  # fmt: skip
        flat = [part for pair in fields.items() for part in pair]
        self._connection.run([
            ("HSET", f"{self.prefix}replay:{id}", *flat), ("ZADD", self.prefix + "replays", fields["started"], id),
            ("SADD", self.prefix + "replays:running", id),
        ])  # fmt: skip
        info = self.replay(id)
        assert info is not None
        return info

    def _table_of(self, function: str, revision: str | None) -> str:
        """Text of a routing table with one function in one revision."""
        current = self.routes().current(function)
        if current is None:
            raise NotFound(f"function {function} of {self.name} is not placed at {self.pop}")
        if revision in (None, current.revision):
            functions, _ = json.loads(self.routes().to_json())
            return json.dumps([[one for one in functions if one["function"] == function], {}])
        text = self._connection.one("HGET", REVISION_DOCS, f"{self.name}/{function}/{revision}")
        if text is None:
            raise NotFound(
                f"revision {revision} of function {function} is not kept at {self.pop}",
                hint="The last few revisions are kept; `edgeflow get functions` shows the current one.",
            )
        return compile_routes({"functions": {function: json.loads(text)["spec"]}}, self.pop).to_json()

    def replay(self, id: str) -> ReplayInfo | None:
        """One replay and how far it is."""
        names = ("spec", "state", "read", "invoked", "committed", "dead", "started")
        fields = self._connection.one("HMGET", f"{self.prefix}replay:{id}", *names)
        if fields[0] is None:
            return None
        channel, function, revision, from_ms, to_ms, shadow = json.loads(fields[0])
        read, invoked, committed, dead, started = (int(field or 0) for field in fields[2:])
        return ReplayInfo(
            id, channel, function, revision, from_ms, to_ms, shadow, fields[1].decode(), read, invoked, committed, dead, started
        )  # fmt: skip

    def replays(self) -> Rows[ReplayInfo]:
        """All replays that are known here, the newest first."""
        found = (self.replay(id.decode()) for id in self._connection.one("ZREVRANGE", self.prefix + "replays", 0, -1))
        return [info for info in found if info is not None]

    def cancel_replay(self, id: str, *, forget: bool = False) -> bool:
        """Stop a replay; what it has started goes on. `forget`: with its record and its shadow's outputs. False when there is none."""
        return bool(self._call("ef_end_replay", replay=id, forget=forget))

    def run_replays(self) -> None:
        """Carry each running replay one piece on, unless its inbox is busy."""
        for raw in self._connection.one("SMEMBERS", self.prefix + "replays:running"):
            id = raw.decode()
            info = self.replay(id)
            if info is None or info.state != "running":
                self._connection.one("SREM", self.prefix + "replays:running", id)
            elif self.inbox_stats(info.function, info.revision).pending < REPLAY_PENDING:
                self._run_piece(info)

    def _run_piece(self, info: ReplayInfo) -> None:
        table, position, end = self._connection.one(
            "HMGET", f"{self.prefix}replay:{info.id}", "table", "position", "end"
        )
        after = int(position)
        batch = self.read_release(after, REPLAY_PIECE)
        batch = [released for released in batch if released.n <= int(end)]
        last = not batch or batch[-1].n >= int(end)
        routes = type(self.routes()).from_json("replay", table.decode())
        items = []
        for released in batch:
            event = released.event
            if event is None or not _in_replay(info, released):
                continue
            directives = routes.again(info.function, event, now_ms(), self.body_of)
            for directive in directives:
                directive["rp"] = info.id
                directive.pop("mx", None)
                directive.pop("of", None)
                if info.shadow:
                    directive["sh"] = 1
                if "g" in directive:
                    directive["g"] += "~" + info.id
            fields = pack_event(event)
            fields[1] = event.prev
            if directives:
                items.append([directives, ["", event.origin, event.epoch, event.seq, event.index, fields]])
        self._call(
            "ef_replay", replay=info.id, items=items, after=after, position=batch[-1].n if batch else after, last=last
        )  # fmt: skip

    def replay_diff(self, id: str, after: str = "", limit: int = 100) -> Rows[ReplayDiff]:
        """What a shadow replay would have published beside what was recorded for the same inputs, by invocation, beginning behind `after`."""
        info = self.replay(id)
        if info is None:
            raise NotFound(f"there is no replay {id!r} in {self.name} at {self.pop}")
        names = sorted(name.decode() for name in self._connection.one("HKEYS", f"{self.prefix}shadow:{id}"))
        page = [name for name in names if name > after][:limit]
        if not page:
            return []
        shadows = {}
        for name, packed in zip(page, self._connection.one("HMGET", f"{self.prefix}shadow:{id}", *page), strict=True):
            shadows[name] = msgpack.unpackb(packed, raw=True)
        originals = {name: _original(info.function, fields) for name, fields in shadows.items()}
        recorded = self._recorded(set(originals.values()))
        diffs = []
        for name, fields in shadows.items():
            made = [unpack_event(event, self.pop, 0, 0, index) for index, event in enumerate(fields[4])]
            before = recorded.get(originals[name])
            same = fields[0] == b"committed" and before is not None and self._effects(before) == self._effects(made)
            diffs.append(ReplayDiff(name, before, made, same))
        return diffs

    def _effects(self, events: Sequence[Event]) -> Rows[Any]:
        found = []
        for event in events:
            digest = event.ref.digest if event.ref is not None else None
            found.append(
                (
                    event.channel,
                    event.subject,
                    event.type,
                    event.datacontenttype,
                    dict(event.attributes),
                    digest,
                    event.data,
                )
            )
        return found

    def _recorded(self, wanted: set[str]) -> dict[str, Rows[Event]]:
        """Outputs of committed invocations by their id, or by the mark of their inputs, as far as this PoP's own log still has them."""
        found: dict[str, Rows[Event]] = {}
        for raw in self._connection.one("HKEYS", self.prefix + "heads"):
            origin, _, epoch = raw.decode().rpartition(":")
            if origin != self.pop:
                continue
            log, seq = LogId(origin, int(epoch)), 0
            while len(found) < len(wanted) and (items := self.read_log(log, seq, count=500, max_bytes=1 << 26)):
                for seq, entry in items:
                    with contextlib.suppress(CorruptEntry):
                        for ended in unpack_entry(entry)[b"x"] or ():
                            names = {ended[0].decode(), *(part.decode() for part in ended[5:6])}
                            for name in names & wanted:
                                found[name] = _entry_events(entry, origin, int(epoch), seq)
        return found


def _letter(id: str, fields: Sequence[Any]) -> DeadLetter | None:
    if fields[0] is None:
        return None
    function, revision, reason, detail = (field.decode(errors="replace") for field in fields[:4])
    inputs = tuple(unpack_inputs(fields[6])) if len(fields) > 6 else ()
    return DeadLetter(id, function, revision, reason, detail, int(float(fields[4])), int(fields[5]), inputs)


def _in_replay(info: ReplayInfo, released: Released) -> bool:
    if released.event is None or released.is_repeated or not matches(info.channel, released.event.channel):
        return False
    return (info.from_ms is None or released.released_ms >= info.from_ms) and (
        info.to_ms is None or released.released_ms <= info.to_ms
    )


def _original(function: str, fields: Sequence[Any]) -> str:
    """The id under which the same inputs were handled before, or their mark when there are several."""
    _, (origin, epoch, seq, index), mark, inputs = fields[:4]
    return mark.decode() if inputs > 1 else invocation_id(function, origin.decode(), epoch, seq, index)


def _entry_events(raw: bytes, origin: str, epoch: int, seq: int) -> Rows[Event]:
    return [unpack_event(fields, origin, epoch, seq, index) for index, fields in enumerate(unpack_entry(raw)[b"ev"])]
