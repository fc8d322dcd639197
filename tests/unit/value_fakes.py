"""Values of a namespace in memory, for the tests of the API: the same methods and records as edgeflow.store.values, one writer, no merges."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from edgeflow.core.channels import check_key
from edgeflow.core.events import BlobRef
from edgeflow.core.policies import Home, Policies
from edgeflow.errors import (
    EdgeflowError,
    HomeElsewhere,
    NoHome,
    NotFound,
    StoreUnavailable,
    Unavailable,
    VersionMismatch,
    WrongType,
)
from edgeflow.store.blobs import digest_of
from edgeflow.store.homes import Homes
from edgeflow.store.records import (
    Change,
    Delete,
    Increment,
    LogId,
    MapPut,
    MapRemove,
    Put,
    Receipt,
    SetAdd,
    SetRemove,
    Value,
    ValueInfo,
    VersionInfo,
    Write,
)
from edgeflow.store.values import Values


class FakeValues:
    """The values of one namespace in memory."""

    pop: str

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.counts: dict[str, int] = {}
        self.sets: dict[str, set[str]] = {}
        self.maps: dict[str, dict[str, bytes]] = {}
        self.losers: dict[str, list[Value]] = {}
        self.blobs: dict[str, bytes] = {}
        self.batches: list[tuple[Sequence[Write], str | None]] = []
        self.receipts: dict[str, Receipt] = {}
        self.applied_here: dict[tuple[str, int], int] = {}
        """Positions of other PoPs' logs."""
        self.numbers: dict[str, int] = {}
        self.forgotten = 0
        self.rules = Policies()
        self.epoch_n = 1
        self.is_away = False
        self._clock = 0
        self._lock = threading.Lock()

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable()

    def _version(self) -> str:
        self._clock += 1
        return f"{1_700_000_000_000 + self._clock:013d}.00000@{self.pop}"

    # -- writing

    def write(self, batch: Sequence[Write], *, id: str | None = None) -> Receipt:
        with self._lock:
            self._check()
            if id in self.receipts:
                return replace(self.receipts[str(id)], duplicate=True)
            for write in batch:
                self._refuse(write)
            version = ""
            for write in batch:
                version = self._do(write) or version
                self._note(write.key)
            self.batches.append((batch, id))
            self._clock += 1
            receipt = Receipt(
                "durable", self.pop, 1, self._clock, f"{self.pop}/1/{self._clock}", version or None
            )  # fmt: skip
            if id is not None:
                self.receipts[id] = receipt
            return receipt

    def put(
        self, key: str, data: bytes | None = None, *, ref: BlobRef | None = None, content_type: str | None = None, ttl_ms: int | None = None,
        if_version: str | None = None, if_absent: bool = False, id: str | None = None,
    ) -> Receipt:  # fmt: skip
        return self.write([Put(key, data, ref, content_type, ttl_ms, if_version, if_absent)], id=id)

    def delete(self, key: str, *, if_version: str | None = None, id: str | None = None) -> Receipt:
        return self.write([Delete(key, if_version)], id=id)

    def as_home(self, _term: int) -> "FakeValues":
        return self

    def _refuse(self, write: Write) -> None:
        check_key(write.key)
        home = self.rules.home(write.key)
        if home is not None and home.pop != self.pop:
            raise HomeElsewhere(f"the home of {write.key!r} is {home.pop!r}", details={"home": home.pop})
        info = self.head(write.key)
        kind = {Increment: "counter", SetAdd: "set", SetRemove: "set", MapPut: "map", MapRemove: "map", Put: "register"}
        if info is not None and not isinstance(write, Delete) and info.kind != kind[type(write)]:
            raise WrongType(f"{write.key!r} is of another type")
        if isinstance(write, Delete) and info is None and not write.missing_ok:
            raise NotFound(f"there is no value {write.key!r}")
        if isinstance(write, Put | Delete):
            have = info.version if info is not None else None
            if (write.if_version is not None and write.if_version != have) or (
                isinstance(write, Put) and write.if_absent and info is not None
            ):
                raise VersionMismatch(f"{write.key!r} has version {have}")

    def _do(self, write: Write) -> str | None:
        if isinstance(write, Put):
            version = self._version()
            data = self.blobs[write.ref.digest] if write.ref is not None else write.data or b""
            digest = write.ref.digest if write.ref is not None else None
            expires_ms = None if write.ttl_ms is None else 1_700_000_000_000 + write.ttl_ms
            self.values[write.key] = Value(
                write.key, version, len(data), write.content_type, digest, data if digest is None else b"", origin=self.pop, expires_ms=expires_ms,
            )  # fmt: skip
            return version
        if isinstance(write, Delete):
            for kind in (self.values, self.counts, self.sets, self.maps):
                kind.pop(write.key, None)  # type: ignore[attr-defined]
        elif isinstance(write, Increment):
            self.counts[write.key] = self.counts.get(write.key, 0) + write.by
        elif isinstance(write, SetAdd):
            self.sets.setdefault(write.key, set()).update(write.elements)
        elif isinstance(write, SetRemove):
            self.sets.get(write.key, set()).difference_update(write.elements)
        elif isinstance(write, MapPut):
            self.maps.setdefault(write.key, {}).update(write.fields)
        else:
            for name in write.fields:
                self.maps.get(write.key, {}).pop(name, None)
        return None

    def _note(self, key: str) -> None:
        self.numbers[key] = max(self.numbers.values(), default=0) + 1

    # -- reading

    def head(self, key: str) -> ValueInfo | None:
        self._check()
        if key in self.values:
            return self.values[key]
        if key in self.counts:
            text = str(self.counts[key])
            return ValueInfo(key, text, len(text), "application/json", None, kind="counter")
        if key in self.sets:
            members = self.sets[key]
            version = hashlib.sha256(repr(sorted(members)).encode()).hexdigest()[:16]
            return ValueInfo(key, version, len(members), "application/json", None, kind="set")
        if key in self.maps:
            version = f"1700000000000.00000@{self.pop}"
            return ValueInfo(key, version, len(self.maps[key]), "application/json", None, kind="map")
        return None

    def small_values(self, keys: Sequence[str]) -> list[Value | None]:
        self._check()
        return [self.values.get(key) for key in keys]

    def get(self, key: str, *, version: str | None = None) -> Value | None:
        self._check()
        kept = [*([self.values[key]] if key in self.values else []), *self.losers.get(key, [])]
        found = next((value for value in kept if version in (None, value.version)), None)
        if found is not None and found.digest is not None:
            found = replace(found, data=self.blobs[found.digest])
        return found

    def versions(self, key: str) -> list[VersionInfo]:
        current = [self.values[key]] if key in self.values else []
        return [
            VersionInfo(value.version, value.size, value.content_type, value.digest, value in current, value.origin)
            for value in [*current, *self.losers.get(key, [])]
        ]

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> list[ValueInfo]:
        names = {*self.values, *self.counts, *self.sets, *self.maps}
        keys = sorted(key for key in names if key.startswith(prefix) and key > after)
        return [info for key in keys[:limit] if (info := self.head(key)) is not None]

    def count_value(self, key: str) -> int | None:
        return self.counts.get(key)

    def set_members(self, key: str) -> Any:
        return sorted(self.sets[key]) if key in self.sets else None

    def map_fields(self, key: str) -> dict[str, bytes] | None:
        return self.maps.get(key)

    def typed_content(self, key: str, kind: str) -> Any:
        return Values.typed_content(self, key, kind)  # type: ignore[arg-type]

    def changes(self, after_n: int, prefix: str = "", limit: int = 100) -> Any:
        self._check()
        found = sorted((n, key) for key, n in self.numbers.items() if n > after_n and key.startswith(prefix))
        return [Change(n, key, self.head(key)) for n, key in found[:limit]]

    def changes_head(self) -> int:
        self._check()
        return max(self.numbers.values(), default=0)

    def changes_from(self) -> int:
        return self.forgotten

    def content_hash(self) -> str:
        return hashlib.sha256(repr([(info.key, info.version) for info in self.list(limit=1000)]).encode()).hexdigest()

    # -- bodies

    def put_blob(self, data: bytes) -> BlobRef:
        digest = digest_of(data)
        self.blobs[digest] = data
        return BlobRef(digest, len(data))

    # -- positions and homes

    def epoch(self) -> int:
        return self.epoch_n

    def logs(self) -> dict[LogId, int]:
        return {LogId(*log): seq for log, seq in {(self.pop, 1): self._clock, **self.applied_here}.items()}

    def applied(self) -> dict[tuple[str, int], int]:
        return {(self.pop, 1): self._clock, **self.applied_here}

    def homes(self) -> Policies:
        return self.rules

    def home_of(self, key: str) -> Home | None:
        return self.rules.home(key)

    def home_for(self, keys: Sequence[str]) -> Home:
        for key in keys:
            home = self.rules.home(key)
            if home is None:
                raise NoHome(f"no policy gives the key {key!r} a home")
            if home.pop != self.pop:
                raise HomeElsewhere(f"the home of {key!r} is {home.pop!r}", details={"home": home.pop})
        assert home is not None
        return home

    def install_homes(self, policies: Policies) -> Homes:
        self.rules = policies
        return Homes(1, self._clock, policies)


class FakeMailbox:
    """A data process that answers what it was told to; a kind it was told nothing of does not answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def submit(self, kind: str, args: Any, timeout_s: float) -> "Future[dict[str, Any]]":
        future: Future[dict[str, Any]] = Future()
        self.asked.append((kind, dict(args)))
        try:
            if kind not in self.answers:
                raise Unavailable(f"the data process of this PoP did not answer {kind!r} within {timeout_s:g} s")
            future.set_result(self.answers[kind](dict(args)))
        except EdgeflowError as error:
            future.set_exception(error)
        return future
