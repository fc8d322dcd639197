"""One namespace of the store: ingest, values, blobs, work, and what can be asked about them.

What it is: the typed client of the Lua library for one `ef:{namespace}:` slot. Replication has its own half in `replica.py`.
What must stay true: every write is one atomic call; a call is repeated after an outage in a way that cannot double its effect.
"""

import json
import secrets
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
    EdgeflowError,
    ExpressionFailed,
    HomeElsewhere,
    NotFound,
    QueueFull,
    QuotaExceeded,
    TooLarge,
    Unavailable,
    VersionMismatch,
)
from edgeflow.store.blobs import digest_of
from edgeflow.store.bodies import Bodies, Body, Placed
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
    ValueInfo,
    pack_event,
    pack_value,
    unpack_event,
    unpack_stored,
)

RING_SIZE = 1024
"""Redeliveries that are recognised per namespace; more than twice any receive maximum."""

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


class Namespace(Bodies):
    """A handle; opening one costs nothing. Methods raise StoreUnavailable when Redis stays away longer than the settings allow."""

    _full: tuple[str, ...] = ()
    _full_read_s = 0.0

    # -- events and their bodies ------------------------------------------------------------------------------------------

    def data_of(self, event: Event) -> bytes:
        """The body of an event. Raises NotFound when its blob is not here, which the gate rules out for released events that are retained."""
        if event.ref is None:
            return event.data or b""
        data = self.read_blob(event.ref.digest)
        if data is None:
            raise NotFound(f"the data of event {event.id} on {event.channel} is no longer kept at {self.pop}")
        return data

    def directives(self, event: Event, blobs: Mapping[str, bytes] | None = None) -> Rows[Directive]:
        """What `event` does to the functions here. `blobs` are bodies by digest that are on their way into the store."""

        def body(event: Event) -> bytes:
            known = blobs.get(event.ref.digest) if blobs and event.ref is not None else None
            return self.body_of(event) if known is None else known

        return self.routes().route(event, now_ms(), body)

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
        blobs: Sequence[tuple[str, bytes]] = (), meanwhile: Meanwhile | None = None,
    ) -> RoundResult:  # fmt: skip
        """Blobs, then arrivals, then commits, then claims, in one round trip and one fsync. Arrivals are atomic together, each commit by itself.

        `meanwhile` gets the socket when the round is sent, and returns when its answer is there.

        Claims of a call that was interrupted by an outage may be lost to the caller; see `holds` and `release_claims`. Raises StoreFull when there is
        no room; what is then sent again must say so (`Arrival.again`), since some of it may have been taken.
        """
        if arrivals or commits:
            self._room.check()
        results: dict[int, Receipt | Refusal] = {}
        taken: Rows[_PackedArrival] = []
        own_blobs = list(blobs)
        full = self._full_elsewhere() if arrivals else ()
        for position, arrival in enumerate(arrivals):
            try:
                if any(matches(pattern, arrival.event.channel) for pattern in full):
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
        commands = [*prepare(False), *claim_commands]
        if not commands:
            return RoundResult([results[position] for position in range(len(arrivals))], [], [], set(), [], set())
        replies = self._connection.run(
            commands, on_outage=lambda: [*prepare(True), *claim_commands], meanwhile=meanwhile
        )
        split = len(replies) - len(claim_commands)
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
                refused = home_error(detail) if status == "elsewhere" else None
                ended.append(Ended("committed" if status == "ok" else status, refused.message if refused else detail))
                for index, (event, prev) in enumerate(zip(commit.events, prevs, strict=False)):
                    released.append(OwnRelease(n + index, event.at(self.pop, epoch, seq, index, prev)))
        if taken:
            statuses, inboxes = msgpack.unpackb(writes.pop())
            woken.update(inboxes)
            for packed, (*status, n) in zip(taken, statuses, strict=True):
                results[packed.position] = self._receipt(packed.arrival, *status)
                if n:
                    released.append(OwnRelease(n, None if packed.arrival.via == "mqtt" else packed.arrival.event))
        claimed = []
        blocked: set[str] = set()
        for claim, reply in zip(claims, replies[split:], strict=True):
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

    def _receipt(self, arrival: Arrival, status: str, epoch: int, seq: int, version: str) -> Receipt | Refusal:
        if status == "full":
            text = f"the inbox of function {version} is full; {arrival.event.channel} takes no more until it has room"
            return Refusal(arrival.event.id, QueueFull(text, retry_after_s=seq / 1000))
        if status == "elsewhere":
            return Refusal(arrival.event.id, home_error(version) or HomeElsewhere(version))
        if status == "quota":
            text = f"namespace {self.name} sends more {version} a second than its quota at {self.pop} allows"
            return Refusal(arrival.event.id, QuotaExceeded(text, retry_after_s=seq / 1000))
        waiting = status == "waiting" or (status == "again" and seq == 0 and arrival.ring is None)
        return Receipt(
            class_="waiting" if waiting else "durable", origin=self.pop, epoch=epoch, seq=seq, id=arrival.event.id, version=version or None,
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
                item["id"] = f"{arrival.event.source}|{arrival.event.id}{called}"
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
                item["inc"] = commit.increments
            items.append(item)
        return self._command(
            "ef_commit",
            {"commits": items, "rv": table.version, "gate_ms": self._limits.gate_timeout_ms, "by": self._by},
        )

    def _claim_command(self, claim: Claim) -> Command:
        call: dict[str, Any] = {
            "f": claim.function,
            "r": claim.revision,
            "instance": claim.instance,
            "max": claim.limit,
            "lease_ms": claim.lease_ms,
        }
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

    # -- values --------------------------------------------------------------------------------------------------------

    def put(
        self, key: str, data: bytes, *, ref: BlobRef | None = None, content_type: str | None = None, if_version: str | None = None,
        if_absent: bool = False,
    ) -> Receipt:  # fmt: skip
        """Write a value durably; `ref`: its body is stored already. Raises BadName, TooLarge, StoreFull, and VersionMismatch when a condition does not hold."""
        check_key(key)
        self._room.check()
        if len(data) > self._limits.value_bytes:
            raise TooLarge(f"the value has {len(data)} bytes, at most {self._limits.value_bytes} are taken")
        if ref is None and len(data) > self._limits.inline_bytes:
            with self.placed_body(data) as (placed, commands):
                return self._write(pack_value(key, None, placed, content_type), if_version, if_absent, commands)
        return self._write(pack_value(key, None if ref else data, ref, content_type), if_version, if_absent)

    def delete(self, key: str, *, if_version: str | None = None) -> Receipt:
        """Delete a value: a tombstone in the log. Raises NotFound when there is none, VersionMismatch when a condition does not hold."""
        if self.head(check_key(key)) is None:
            raise NotFound(f"there is no value {key!r} in {self.name}")
        return self._write(pack_value(key, None, None, None), if_version, False)

    def _write(self, value: Rows[Any], if_version: str | None, if_absent: bool, before: Placed = list) -> Receipt:
        payload: dict[str, Any] = {
            "value": value,
            "id": "put|" + secrets.token_hex(16),
            "gate_ms": self._limits.gate_timeout_ms,
        }
        if if_version is not None:
            payload["if_version"] = if_version
        if if_absent:
            payload["if_absent"] = True
        def commands(_again: bool) -> Rows[Command]:
            return [*before(), self._command("ef_put", {**payload, "rv": self.routes().version})]

        status, epoch, seq, version = msgpack.unpackb(self._routed(commands)[-1])
        if status == "quota":
            text = f"namespace {self.name} sends more {version} a second than its quota at {self.pop} allows"
            raise QuotaExceeded(text, retry_after_s=seq / 1000)
        if status == "mismatch":
            raise VersionMismatch(
                f"{value[0]!r} has version {version}" if version else f"there is no value {value[0]!r}"
            )
        return Receipt("durable", self.pop, epoch, seq, f"{self.pop}/{epoch}/{seq}", version)

    def head(self, key: str) -> ValueInfo | None:
        """A value without its body, None when there is none here."""
        fields = self._connection.one(
            "HMGET", f"{self.prefix}value:{key}", "version", "size", "type", "digest", "deleted"
        )
        return _value_info(key, fields)

    def heads_of(self, keys: Sequence[str]) -> Rows[ValueInfo | None]:
        """Several values without their bodies, in one round trip."""
        replies = self._connection.run(
            [("HMGET", f"{self.prefix}value:{key}", "version", "size", "type", "digest", "deleted") for key in keys]
        ) if keys else []  # fmt: skip
        return [_value_info(key, fields) for key, fields in zip(keys, replies, strict=True)]

    def small_values(self, keys: Sequence[str]) -> Rows[Value | None]:
        """Several values in one round trip. Those that are blobs (`digest` is set) come without their bodies: `data` is empty."""
        replies = self._connection.run(
            [("HMGET", f"{self.prefix}value:{key}", "version", "size", "type", "digest", "deleted", "data") for key in keys]
        ) if keys else []  # fmt: skip
        values: Rows[Value | None] = []
        for key, fields in zip(keys, replies, strict=True):
            info = _value_info(key, fields)
            if info is None:
                values.append(None)
                continue
            data = b"" if info.digest is not None else fields[5]
            values.append(Value(key, info.version, info.size, info.content_type, info.digest, data))
        return values

    def get(self, key: str, *, version: str | None = None) -> Value | None:
        """A value with its body; None when there is none here, or not in that version (only the current one is kept by key)."""
        fields = self._connection.one(
            "HMGET", f"{self.prefix}value:{check_key(key)}", "version", "size", "type", "digest", "deleted", "data"
        )
        info = _value_info(key, fields)
        if info is None or (version is not None and version != info.version):
            return None
        data = fields[5] if info.digest is None else self.read_blob(info.digest)
        if data is None:
            raise Unavailable(f"the body of {key!r} is not at {self.pop} yet")
        return Value(key, info.version, info.size, info.content_type, info.digest, data)

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> Rows[ValueInfo]:
        """Values whose key starts with `prefix`, in byte order, beginning behind `after`. Fewer than `limit` means the end."""
        low = f"({after}" if after and after >= prefix else f"[{prefix}"
        high = b"[" + prefix.encode() + b"\xff" if prefix else b"+"
        low_bytes = low.encode() if low != "[" else b"-"
        names = self._connection.one("ZRANGEBYLEX", self.prefix + "keys", low_bytes, high, "LIMIT", 0, limit)
        return [info for info in self.heads_of([name.decode() for name in names]) if info is not None]

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

    def low_water(self) -> tuple[int, Vector]:
        """The release head, and per log up to which seq everything was released here (or became a gap) at a number up to that head."""
        # In this order: what was mirrored before the first read and is not held at the second one has been released before the third.
        heads, held, head = self._connection.run([
            ("HGETALL", self.prefix + "heads"), ("ZRANGE", self.prefix + "held", 0, -1), ("GET", self.prefix + "release:n"),
        ])  # fmt: skip
        lowest: dict[tuple[str, int], int] = {}
        for name in held:
            lane, _, seq = name.decode().rpartition(":")
            log = _log_id(lane)
            lowest[log] = min(int(seq), lowest.get(log, int(seq)))
        return int(head or 0), low_water({_log_id(name.decode()): int(seq) for name, seq in heads.items()}, lowest)

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
            values.append(pack_value(check_key(write.key), None if ref else write.data, ref, write.content_type))
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


def _value_info(key: str, fields: Sequence[Any]) -> ValueInfo | None:
    version, size, content_type, digest, deleted = fields[:5]
    if version is None or deleted == b"1":
        return None
    return ValueInfo(key, version.decode(), int(size), content_type.decode() or None, digest.decode() or None)


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
    )  # fmt: skip


def _state(key: str, fields: Sequence[Any] | None) -> Value | None:
    if not fields:
        return None
    version, digest, data, content_type = fields
    return Value(key, version.decode(), len(data), content_type.decode() or None, digest.decode() or None, data)
