"""One namespace of the store: ingest, values, blobs, work, and what can be asked about them.

What it is: the typed client of the Lua library for one `ef:{namespace}:` slot. Replication has its own half in `replica.py`.
What must stay true: every write is one atomic call; a call is repeated after an outage in a way that cannot double its effect.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack
import redis

from edgeflow.core.channels import SYSTEM_NAMESPACE, check_key, matches
from edgeflow.core.cursors import Position, Vector, low_water
from edgeflow.core.events import BlobRef, Event, parse_ekv_ref
from edgeflow.core.routing import Directive
from edgeflow.errors import (
    BodyMissing,
    EdgeflowError,
    ExpressionFailed,
    HomeElsewhere,
    NotFound,
    QueueFull,
    QuotaExceeded,
    TooLarge,
    WrongType,
)
from edgeflow.store.blobs import digest_of
from edgeflow.store.bodies import Body
from edgeflow.store.calls import Rows
from edgeflow.store.calls import now_ms as now_ms
from edgeflow.store.connection import Command, Meanwhile, error_of, home_error
from edgeflow.store.records import (
    Arrival,
    Claim,
    Claimed,
    Commit,
    Ended,
    Expired,
    LogId,
    OwnRelease,
    Receipt,
    Refusal,
    Released,
    RoundResult,
    Value,
    pack_event,
    pack_value,
    unpack_event,
    unpack_stored,
)
from edgeflow.store.values import Values, deadline_of, pack_ops

RING_SIZE = 1024
"""Redeliveries that are recognised per namespace; more than twice any receive maximum."""

NAME_BYTES = 16
"""What is kept of the id that a client gave its event: at every PoP, and in the log."""
FULL_KEYS = "full/"
"""Keys `full/<namespace>/<pop>` of the system namespace: filters of the channels that a PoP has no room for."""
FULL_EVERY_S = 1.0
_SYSTEM = f"ef:{{{SYSTEM_NAMESPACE}}}:"


class _PackedArrival(NamedTuple):
    position: int
    arrival: Arrival
    event: list[Any]
    ref: dict[str, str] | None
    put: list[Any] | None


class Namespace(Values):
    """A handle; opening one costs nothing. Methods raise StoreUnavailable when Redis stays away longer than the settings allow."""

    is_held = False
    """Whether no work of functions at several PoPs is given out: this PoP does not know yet what others have done of it."""
    _full: tuple[str, ...] = ()
    _full_read_s = 0.0

    # -- events and their bodies ------------------------------------------------------------------------------------------

    def data_of(self, event: Event) -> bytes:
        """The body of an event. The gate rules out for released events that are retained that their blob is not here; if it was damaged, CorruptBlob and
        BodyMissing say that it is fetched again. Raises NotFound when it is no longer kept.
        """
        if event.ref is None:
            return event.data or b""
        data = self.read_blob(event.ref.digest)
        if data is None:
            if self.knows_blob(event.ref.digest):
                raise BodyMissing(f"the data of event {event.id} on {event.channel} is not at {self.pop} right now")
            raise NotFound(f"the data of event {event.id} on {event.channel} is no longer kept at {self.pop}")
        return data

    def directives(self, event: Event, blobs: Mapping[str, bytes] | None = None, cause: str = "") -> Rows[Directive]:
        """What `event` does to the functions here. `blobs` are bodies by digest that are on their way into the store; `cause`: see RouteTable.route."""

        def body(event: Event) -> bytes:
            known = blobs.get(event.ref.digest) if blobs and event.ref is not None else None
            return self.body_of(event) if known is None else known

        return self.routes().route(event, now_ms(), body, cause)

    def body_of(self, event: Event) -> bytes:
        """The body of an event, for an expression that looks at it. Raises ExpressionFailed when it is not here."""
        data = event.data or b"" if event.ref is None else self.read_blob(event.ref.digest)
        if data is None:
            raise ExpressionFailed(
                "its data was not readable here when it arrived", hint="Put the value before the event."
            )
        return data

    # -- the round: ingest, commits and claims together ----------------------------------------------------------------

    def ingest(self, arrivals: Sequence[Arrival]) -> Rows[Receipt | Refusal]:
        """Log `arrivals` in one atomic call; per arrival a receipt (class durable or waiting), or why it was refused.

        Bodies above `inline_bytes` become blobs first. A dataref is resolved to what it refers to now, or waits in front of the log.
        """
        return self.round(arrivals=arrivals).receipts

    def round(
        self, *, arrivals: Sequence[Arrival] = (), commits: Sequence[Commit] = (), claims: Sequence[Claim] = (),
        blobs: Sequence[tuple[str, bytes]] = (), turned_away: Mapping[str, int] | None = None, meanwhile: Meanwhile | None = None,
    ) -> RoundResult:  # fmt: skip
        """Blobs, then arrivals, then commits, then claims, in one round trip and one fsync. Arrivals are atomic together, each commit by itself.

        `turned_away` is how many were refused without asking here, by counter. `meanwhile` gets the socket when the round is sent, and returns when its answer is there.

        Claims of a call that was interrupted by an outage may be lost to the caller; see `holds` and `release_claims`. Raises StoreFull when there is
        no room; what is then sent again must say so (`Arrival.again`), since some of it may have been taken.
        """
        if arrivals or commits:
            self._room.check()
        results: dict[int, Receipt | Refusal] = {}
        taken: Rows[_PackedArrival] = []
        own_blobs = list(blobs)
        counts = dict(turned_away or {})
        full = self._full_elsewhere() if arrivals else ()
        for position, arrival in enumerate(arrivals):
            try:
                if any(matches(pattern, arrival.event.channel) for pattern in full):
                    counts["events_refused:full"] = counts.get("events_refused:full", 0) + 1
                    raise QueueFull(f"a function that {arrival.event.channel} leads to at another PoP has a full inbox")
                self._look_up(arrival)
                taken.append(self._pack_arrival(position, arrival, own_blobs))
            except EdgeflowError as error:
                results[position] = Refusal(arrival.event.id, error)
        packed_commits = [self._pack_commit(commit, own_blobs) for commit in commits]
        large, small = self._by_size(own_blobs)
        self._store_blobs(large)

        def prepare(again: bool) -> Rows[Command]:
            commands = self._small_blobs(small)
            if taken:
                commands.append(self._ingest_command(taken, again))
            if commits:
                commands.append(self._commit_command(commits, packed_commits, dict(own_blobs)))
            return commands

        claim_commands = [self._claim_command(claim) for claim in claims]
        # Counted in the same round trip, and behind what may have to be prepared anew.
        count_commands: Rows[Command] = [("HINCRBY", f"{self.prefix}counters", name, by) for name, by in counts.items()]
        commands = [*prepare(False), *claim_commands, *count_commands]
        if not commands:
            return RoundResult([results[position] for position in range(len(arrivals))], [], [], set(), [], set())
        replies = self._connection.run(
            commands, on_outage=lambda: [*prepare(True), *claim_commands, *count_commands], meanwhile=meanwhile
        )
        split = len(replies) - len(claim_commands) - len(count_commands)
        writes = replies[:split]
        if any(isinstance(reply, redis.ResponseError) for reply in writes):
            # Without the claims: what they got must not be claimed a second time. And as a repetition: one write may have been refused (the routes
            # changed between the two) after the other was carried out.
            self._fetched_routes = False
            writes = self._routed(prepare, again=True)
        woken: set[str] = set()
        ended: Rows[Ended] = []
        released: Rows[OwnRelease] = []
        if commits:
            outcomes, inboxes = msgpack.unpackb(writes.pop())
            woken.update(inboxes)
            for commit, (status, detail, epoch, seq, n, prevs) in zip(commits, outcomes, strict=True):
                home = home_error(detail) if status == "elsewhere" else None
                ended.append(Ended("committed" if status == "ok" else status, home.message if home else detail))
                for index, (event, prev) in enumerate(zip(commit.events, prevs, strict=False)):
                    released.append(OwnRelease(n + index, event.at(self.pop, epoch, seq, index, prev)))
        if taken:
            statuses, inboxes = msgpack.unpackb(writes.pop())
            woken.update(inboxes)
            for packed, (status, epoch, seq, version, n, *origin) in zip(taken, statuses, strict=True):
                at = LogId(origin[0] if origin else self.pop, epoch)
                results[packed.position] = self._receipt(packed.arrival, status, at, seq, version)
                if n:
                    released.append(OwnRelease(n, None if packed.arrival.via == "mqtt" else packed.arrival.event))
        claimed = []
        blocked: set[str] = set()
        for claim, reply in zip(claims, replies[split : split + len(claims)], strict=True):
            if isinstance(reply, redis.ResponseError):
                raise error_of(reply)
            items, is_blocked = msgpack.unpackb(reply, raw=True)
            claimed.append([_claimed(item) for item in items])
            if is_blocked:
                blocked.add(f"{claim.function}:{claim.revision}")
        return RoundResult(
            [results[position] for position in range(len(arrivals))],
            ended,
            claimed,
            woken,
            sorted(released, key=lambda one: one.n),
            blocked,
        )

    def _full_elsewhere(self) -> tuple[str, ...]:
        """Filters of channels that other PoPs have no room for, as known here; looked at once a second."""
        now = time.monotonic()
        if now - self._full_read_s > FULL_EVERY_S:
            self._full_read_s = now
            keys = self._connection.one(
                "ZRANGEBYLEX", _SYSTEM + "keys", f"[{FULL_KEYS}{self.name}/", f"[{FULL_KEYS}{self.name}/\xff"
            )
            found: set[str] = set()
            for key in keys:
                if key.decode().rpartition("/")[2] != self.pop:
                    text = self._connection.one("HGET", f"{_SYSTEM}value:{key.decode()}", "data")
                    found.update(json.loads(text) if text else ())
            self._full = tuple(sorted(found))
        return self._full

    def _look_up(self, arrival: Arrival) -> None:
        """What somebody's expression looks at is resolved before it is ingested, so that the same data decides and is delivered."""
        if arrival.dataref is None or not self.routes().looks_inside(arrival.event.channel):
            return
        key, version = parse_ekv_ref(arrival.dataref, self.name)
        value = self.small_values([check_key(key)])[0]
        if value is None or version not in (None, value.version):
            return
        ref = None if value.digest is None else BlobRef(value.digest, value.size)
        content_type = arrival.event.datacontenttype or value.content_type
        data = value.data if ref is None else None
        arrival.event = replace(arrival.event, data=data, ref=ref, datacontenttype=content_type)
        arrival.dataref = None

    def _receipt(self, arrival: Arrival, status: str, log: LogId, seq: int, version: str) -> Receipt | Refusal:
        if status == "full":
            text = f"the inbox of function {version} is full; {arrival.event.channel} takes no more until it has room"
            return Refusal(arrival.event.id, QueueFull(text, retry_after_s=seq / 1000))
        if status == "wrong-type":
            return Refusal(arrival.event.id, WrongType(f"{arrival.put_key!r} is of another type in {self.name}"))
        if status == "elsewhere":
            return Refusal(arrival.event.id, home_error(version) or HomeElsewhere(version))
        if status == "quota":
            text = f"namespace {self.name} sends more {version} a second than its quota at {self.pop} allows"
            return Refusal(arrival.event.id, QuotaExceeded(text, retry_after_s=seq / 1000))
        waiting = status == "waiting" or (status == "again" and seq == 0 and arrival.ring is None)
        return Receipt(
            class_="waiting" if waiting else "durable", origin=log.origin, epoch=log.epoch, seq=seq, id=arrival.event.id, version=version or None,
            duplicate=status == "again",
        )  # fmt: skip

    def _ingest_command(self, taken: Sequence[_PackedArrival], again: bool) -> Command:
        table = self.routes()
        items = []
        for packed in taken:
            arrival = packed.arrival
            item: dict[str, Any] = {"ev": packed.event, "d": self._directives_of(arrival), "via": arrival.via}
            if packed.ref is not None:
                item["ref"] = packed.ref
            if packed.put is not None:
                item["put"] = packed.put
            if arrival.deduplicate:
                # The same event may be handed to several functions by name, and published as well.
                called = f"|{arrival.event.channel}" if table.invoked(arrival.event.channel) is not None else ""
                name = f"{arrival.event.source}|{arrival.event.id}{called}"
                item["id"] = hashlib.blake2b(name.encode(), digest_size=NAME_BYTES).digest()
            if arrival.ring is not None:
                item["ring"] = arrival.ring
                item["again"] = again or arrival.again
            items.append(item)
        return self._command(
            "ef_ingest",
            {
                "arrivals": items, "rv": table.version, "gate_ms": self._limits.gate_timeout_ms, "ring_size": RING_SIZE, "by": self._by,
                "mx": self._limits.inbox_pending,
            },
        )  # fmt: skip

    def _directives_of(self, arrival: Arrival) -> Rows[Directive]:
        if arrival.dataref is None:
            return self.directives(arrival.event)

        def body(_event: Event) -> bytes:
            raise ExpressionFailed(
                f"the value {arrival.dataref!r} was not readable here when the event arrived",
                hint="Put the value before the event.",
            )

        return self.routes().route(arrival.event, now_ms(), body)

    def _commit_command(
        self, commits: Sequence[Commit], packed: Sequence[tuple[Rows[Any], Rows[Any]]], blobs: Mapping[str, bytes]
    ) -> Command:
        table = self.routes()
        items = []
        for commit, (events, values) in zip(commits, packed, strict=True):
            item: dict[str, Any] = {
                "id": commit.id,
                "attempt": commit.attempt,
                "ev": events,
                "va": values,
                "d": [self.directives(event, blobs) for event in commit.events],
            }
            if commit.increments:
                # Each key once: an entry is counted as a whole.
                sums: dict[str, int] = {}
                for key, by in commit.increments:
                    sums[key] = sums.get(key, 0) + by
                item["inc"] = list(sums.items())
            conditions = [
                [write.key, write.if_version or False, write.if_absent]
                for write in commit.values
                if write.if_version or write.if_absent
            ]
            if conditions:
                item["cond"] = conditions
            if commit.ops:
                item["ops"] = pack_ops(commit.ops, self._limits.inline_bytes)
            items.append(item)
        return self._command(
            "ef_commit",
            {
                "commits": items,
                "rv": table.version,
                "gate_ms": self._limits.gate_timeout_ms,
                "by": self._by,
                "set_max": self._limits.set_elements,
                "map_max": self._limits.map_fields,
            },
        )

    def _claim_command(self, claim: Claim) -> Command:
        call: dict[str, Any] = {
            "f": claim.function,
            "r": claim.revision,
            "instance": claim.instance,
            "max": claim.limit,
            "lease_ms": claim.lease_ms,
        }
        if self.is_held:
            call["hold"] = 1
        if down := self.routes().downstream(claim.function):
            call["down"] = [[inbox, bound or self._limits.inbox_pending] for inbox, bound in down]
        return self._command("ef_claim", call)

    def _pack_arrival(self, position: int, arrival: Arrival, blobs: Rows[tuple[str, bytes]]) -> _PackedArrival:
        event = arrival.event
        data = event.data or b""
        if len(data) > self._limits.event_bytes:
            raise TooLarge(f"the body has {len(data)} bytes, an event may have {self._limits.event_bytes}")
        if event.hop > self._limits.hops:
            raise TooLarge(f"event {event.id} went through {event.hop} functions, the limit is {self._limits.hops}")
        if len(event.attributes) > self._limits.attributes or any(
            len(value.encode()) > self._limits.attribute_bytes for value in (*event.attributes.values(), event.subject or "", event.id, event.source)
        ):  # fmt: skip
            raise TooLarge(f"at most {self._limits.attributes} attributes of {self._limits.attribute_bytes} bytes each")
        fields = self._pack_event(event, blobs)
        ref = None
        put = None
        if arrival.dataref is not None:
            key, version = parse_ekv_ref(arrival.dataref, self.name)
            ref = {"key": check_key(key), "version": version or ""}
            fields[5], fields[6] = 0, b""
        if arrival.put_key is not None:
            blob = BlobRef(fields[4], len(data)) if fields[4] else None
            put = pack_value(check_key(arrival.put_key), None if blob else data, blob, event.datacontenttype)
        return _PackedArrival(position, arrival, fields, ref, put)

    # -- the release stream --------------------------------------------------------------------------------------------

    def release_head(self) -> int:
        """Number of the newest released event, 0 when there is none."""
        return int(self._connection.one("GET", self.prefix + "release:n") or 0)

    def read_release(self, after: int, count: int = 100) -> Rows[Released]:
        """Released events behind number `after`, in the order they opened. A jump in `n` means that retention removed what was between."""
        items = self._connection.one("XRANGE", self.prefix + "release", f"({after}-0", "+", "COUNT", count)
        return [_released(item_id, fields) for item_id, fields in items]

    def wait_release(self, client: redis.Redis, after: int, timeout_s: float) -> bool:
        """Block on `client` (of Store.blocking_client) until something is released behind `after`; False after `timeout_s`."""
        key = self.prefix + "release"
        return bool(client.xread({key: f"{after}-0"}, count=1, block=max(1, int(timeout_s * 1000))))

    def low_water(self) -> tuple[int, Vector, int]:
        """The release head, per log up to which seq everything was released here (or became a gap) at a number up to that head, and how many entries are held."""
        # In this order: what was mirrored before the first read and is not held at the second one has been released before the third.
        heads, held, head = self._connection.run([
            ("HGETALL", self.prefix + "heads"), ("ZRANGE", self.prefix + "held", 0, -1), ("GET", self.prefix + "release:n"),
        ])  # fmt: skip
        lowest: dict[tuple[str, int], int] = {}
        for name in held:
            lane, _, seq = name.decode().rpartition(":")
            log = _log_id(lane)
            lowest[log] = min(int(seq), lowest.get(log, int(seq)))
        vector = low_water({_log_id(name.decode()): int(seq) for name, seq in heads.items()}, lowest)
        return int(head or 0), vector, len(held)

    def scan_release(self, after: int, count: int = 1000) -> Rows[Position]:
        """What stands behind number `after`, without its content: several times faster than `read_release`."""
        items = self._connection.one("XRANGE", self.prefix + "release", f"({after}-0", "+", "COUNT", count)
        return [_position(item_id, fields) for item_id, fields in items]

    def removed(self) -> dict[tuple[LogId, str], int]:
        """Per log and channel the highest seq that retention has taken out of the release stream here."""
        found = {}
        for name, seq in self._connection.one("HGETALL", self.prefix + "removed").items():
            origin, epoch, channel = name.decode().split(":", 2)
            found[LogId(origin, int(epoch)), channel] = int(seq)
        return found

    def publisher_cursor(self) -> int | None:
        """Up to which released event the broker has confirmed; None before the first."""
        cursor = self._connection.one("GET", self.prefix + "publisher")
        return None if cursor is None else int(cursor)

    def set_publisher_cursor(self, n: int) -> None:
        """Remember what the broker has confirmed."""
        self._connection.one("SET", self.prefix + "publisher", n)

    # -- work ----------------------------------------------------------------------------------------------------------

    def _pack_event(self, event: Event, blobs: Rows[Body]) -> Rows[Any]:
        """An event as the scripts take it; a body above `inline_bytes` goes to `blobs`, and its digest into the event."""
        fields = pack_event(event)
        data = event.data or b""
        if event.ref is None and len(data) > self._limits.inline_bytes:
            digest = digest_of(data)
            blobs.append((digest, data))
            fields[4], fields[6], fields[7] = digest, b"", 0
        return fields

    def _pack_commit(self, commit: Commit, blobs: Rows[tuple[str, bytes]]) -> tuple[Rows[Any], Rows[Any]]:
        events = [self._pack_event(event, blobs) for event in commit.events]
        values = []
        for write in commit.values:
            ref = write.ref
            if ref is None and write.data is not None and len(write.data) > self._limits.inline_bytes:
                ref = BlobRef(digest_of(write.data), len(write.data))
                blobs.append((ref.digest, write.data))
            fields = pack_value(
                check_key(write.key), None if ref else write.data, ref, write.content_type, deadline_of(write.ttl_ms)
            )
            values.append(fields)
        return events, values

    def fail(self, id: str, attempt: int, reason: str, detail: str, retry_ms: int | None) -> str:
        """End an attempt without a result: again in `retry_ms`, or given up when None. Returns "retry", "dead" or "stale"."""
        delay = -1 if retry_ms is None else retry_ms
        reply = self._call("ef_fail", id=id, attempt=attempt, reason=reason, detail=detail, retry_ms=delay)
        return str(reply.decode())

    def failures(self, id: str) -> int:
        """How many attempts of an invocation have failed so far."""
        return int(self._call("ef_failures", id=id))

    def release_claims(
        self, *, instance: str | None = None, ids: Sequence[str] | None = None, suspect: bool = False
    ) -> int:
        """Give claims back without blame: `ids` of an instance, all of an instance, or (neither) all. `suspect`: claim each alone next time."""
        payload: dict[str, Any] = {"suspect": suspect}
        if instance is not None:
            payload["instance"] = instance
        if ids is not None:
            payload["ids"] = list(ids)
        return len(self._call("ef_release", **payload))

    def has_ready(self, inbox: str) -> bool:
        """Whether anything in an inbox could be claimed now."""
        counts = self._connection.run([("ZCARD", f"{self.prefix}{kind}:{inbox}") for kind in ("ready", "alone")])
        return any(counts)

    def pending_of(self, inbox: str) -> int:
        """How many invocations of an inbox have not ended."""
        return int(self._connection.one("HGET", self.prefix + "pending", inbox) or 0)

    def hand_over(self, function: str, revision: str, to: str | None, limit: int = 500) -> int:
        """Give what a revision that was rolled back has left to the one that serves, or (None) end it as dead letters; at most `limit` at once.

        Returns how many are left in whatever state; -1: these are not what they were taken for.
        """
        payload: dict[str, Any] = {"f": function, "r": revision, "n": limit}
        if to is not None:
            payload["to"] = to
        return int(self._call("ef_hand_over", **payload))

    def holds(self, instance: str) -> Rows[tuple[str, int]]:
        """(invocation, attempt) pairs that the store counts as claimed by an instance."""
        return [
            (id.decode(), attempt)
            for id, attempt in msgpack.unpackb(self._call("ef_holds", instance=instance), raw=True)
        ]

    def tick(self) -> Rows[Expired]:
        """Carry out what the passing of time decides (retries due, join and gate timeouts); returns the attempts whose lease ended."""
        reply = self._call("ef_tick", gate_ms=self._limits.gate_timeout_ms)
        return [
            Expired(id.decode(), attempt, function.decode(), revision.decode(), instance.decode())
            for id, attempt, function, revision, instance in msgpack.unpackb(reply, raw=True)
        ]

    def tidy(self, keep_seq: dict[str, int]) -> int:
        """Forget a bounded piece of what is older than retention: log entries up to `keep_seq` per "origin:epoch", released events, marks, blobs.

        Returns how many blob files were removed.
        """
        now = now_ms()
        unlink = self._call(
            "ef_tidy", logs=keep_seq, keep_from=now - self._limits.retention_ms, ids_from=now - self._limits.id_window_ms,
            orphans_from=now - max(600_000, 2 * self._limits.gate_timeout_ms),
            letters_from=now - self._limits.dead_letter_ms, letters_max=self._limits.dead_letters,
        )  # fmt: skip
        return self.remove_files(unlink) + self.sweep_files()


def _log_id(name: str) -> LogId:
    origin, _, epoch = name.rpartition(":")
    return LogId(origin, int(epoch))


def _position(item_id: bytes, flat: Any) -> Position:
    fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
    n, log = int(item_id.split(b"-")[0]), LogId(fields[b"o"].decode(), int(fields[b"h"]))
    at = int(float(fields[b"t"]))
    if b"g" in fields:
        _, first, last, why = msgpack.unpackb(fields[b"g"])
        return Position(n, log, last, -1, at, first + 1 if why == "lost" else last)
    seq = int(fields[b"s"])
    return Position(n, log, seq, int(fields[b"i"]), at, seq)


def _released(item_id: bytes, flat: Any) -> Released:
    fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
    n = int(item_id.split(b"-")[0])
    origin, epoch = fields[b"o"].decode(), int(fields[b"h"])
    at = int(float(fields[b"t"]))
    if b"g" in fields:
        channel, first, last, why = msgpack.unpackb(fields[b"g"])
        gap = {"channel": channel, "origin": origin, "epoch": epoch, "from": first, "to": last, "reason": why}
        return Released(n, None, gap, "", at)
    event = unpack_event(msgpack.unpackb(fields[b"e"], raw=True), origin, epoch, int(fields[b"s"]), int(fields[b"i"]))
    return Released(n, event, None, fields[b"v"].decode(), at)


def _claimed(item: Sequence[Any]) -> Claimed:
    id, attempt, accepted, ready, packed, about = item
    known = (id.decode(), attempt, int(accepted), int(ready), unpack_stored(packed))
    if not about:
        return Claimed(*known)
    window = about.get(b"w")
    start, end = (int(part) for part in window.split(b"|")) if window else (0, 0)
    state_key = about.get(b"z", b"").decode()
    return Claimed(
        *known, key=about.get(b"k", b"").decode(errors="replace"), window=(start, end) if window else None, state_key=state_key,
        state=_state(state_key, about.get(b"v")), replay=about.get(b"rp", b"").decode(), shadow=b"sh" in about,
        alone=b"al" in about, expires_ms=int(about[b"e"]) if b"e" in about else None,
    )  # fmt: skip


def _state(key: str, fields: Sequence[Any] | None) -> Value | None:
    if not fields:
        return None
    version, digest, data, content_type = fields
    return Value(key, version.decode(), len(data), content_type.decode() or None, digest.decode() or None, data)
