"""A store in memory for the tests of the API: the same methods and records as edgeflow.store, none of its durability."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from value_fakes import FakeMailbox, FakeValues

from edgeflow.api.__main__ import Server, listen, serve_options
from edgeflow.api.context import Api
from edgeflow.api.streams import FrameEncoder
from edgeflow.api.tails import TailHub, position_of
from edgeflow.core.cursors import Position, Vector
from edgeflow.core.events import BlobRef, Event
from edgeflow.errors import CorruptBlob, NotFound, StoreUnavailable
from edgeflow.settings import PopSettings
from edgeflow.store.blobs import digest_of
from edgeflow.store.records import (
    Arrival,
    ChannelInfo,
    DeadLetter,
    InboxStats,
    InvocationInfo,
    PendingJoin,
    Quota,
    Receipt,
    Refusal,
    Released,
    ReplayDiff,
    ReplayInfo,
    ReplaySpec,
    Result,
)

TOKEN = "test-token"
INLINE_BYTES = 4096


class FakeBody:
    """A body that is open."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.is_cached = False

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        return self._data[offset : self.size if length is None else offset + length]

    def close(self) -> None:
        pass


class FakeWriter:
    """A body that comes piece by piece."""

    def __init__(self, owner: "FakeNamespace") -> None:
        self._owner = owner
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self, digest: str | None = None) -> BlobRef:
        data = bytes(self._data)
        if digest not in (None, digest_of(data)):
            raise CorruptBlob()
        self._owner.blobs[digest_of(data)] = data
        return BlobRef(digest_of(data), len(data))

    def abort(self) -> None:
        self._data.clear()


class FakeNamespace(FakeValues):
    """One namespace in memory."""

    def __init__(self, name: str, pop: str) -> None:
        super().__init__()
        self.name = name
        self.pop = pop
        self.released: list[Released] = []
        self.arrivals: list[Arrival] = []
        self.joins: list[PendingJoin] = []
        self.letters: list[DeadLetter] = []
        self.stuck: dict[str, Exception] = {}
        """Dead letters that cannot be redriven, and why."""
        self.redriven: list[str] = []
        self.infos: dict[str, InvocationInfo] = {}
        self.results: dict[str, Result] = {}
        self.all_replays: dict[str, ReplayInfo] = {}
        self.diffs: list[ReplayDiff] = []
        self.asked_replays: list[ReplaySpec] = []
        self.allowed: Quota | None = None
        self.refuse: Exception | None = None
        self.lanes_removed: dict[tuple[tuple[str, int], str], int] = {}
        self.head_n = 0
        self._changed = threading.Condition()

    def ingest(self, arrivals: Sequence[Arrival]) -> list[Receipt | Refusal]:
        self._check()
        results: list[Receipt | Refusal] = []
        for arrival in arrivals:
            self.arrivals.append(arrival)
            event = arrival.event
            if self.refuse is not None:
                results.append(Refusal(event.id, self.refuse))  # type: ignore[arg-type]
                continue
            data = event.data or b""
            if arrival.dataref is not None:
                value = self.values.get(arrival.dataref.partition("/")[2])
                if value is None:
                    results.append(Receipt("waiting", self.pop, 0, 0, event.id))
                    continue
                data = value.data
            version = (
                self.put(arrival.put_key, data, content_type=event.datacontenttype).version if arrival.put_key else None
            )
            if len(data) > INLINE_BYTES:
                digest = digest_of(data)
                self.blobs[digest] = data
                event = replace(event, data=None, ref=BlobRef(digest, len(data)))
            else:
                event = replace(event, data=data)
            seq = self.release(event)
            results.append(Receipt("durable", self.pop, 1, seq, event.id, version))
        return results

    def release(
        self, event: Event | None, gap: dict[str, Any] | None = None, at: tuple[str, int, int] | None = None
    ) -> int:
        """`at` is the log position of an event that entered elsewhere."""
        with self._changed:
            self.head_n += 1
            origin, epoch, seq = at or (self.pop, 1, self.head_n)
            positioned = event.at(origin, epoch, seq, 0, 0) if event else None
            self.released.append(Released(self.head_n, positioned, gap, "http", 0))
            self._changed.notify_all()
            return self.head_n

    def forget_released(self, up_to: int) -> None:
        for entry in self.released:
            if entry.event is not None and entry.n <= up_to:
                self.lanes_removed[(entry.event.origin, entry.event.epoch), entry.event.channel] = entry.event.seq
        self.released = [entry for entry in self.released if entry.n > up_to]

    def release_head(self) -> int:
        self._check()
        return self.head_n

    def read_release(self, after: int, count: int = 100) -> list[Released]:
        self._check()
        return [entry for entry in self.released if entry.n > after][:count]

    def low_water(self) -> tuple[int, Vector, int]:
        self._check()
        heads: dict[tuple[str, int], int] = {}
        for log, seq in [(log, seq) for (log, _), seq in self.lanes_removed.items()] + [
            (position.log, position.seq) for position in map(position_of, self.released)
        ]:
            heads[log] = max(seq, heads.get(log, 0))
        return self.head_n, heads, 0

    def scan_release(self, after: int, count: int = 1000) -> list[Position]:
        self._check()
        return [position_of(entry) for entry in self.released if entry.n > after][:count]

    def removed(self) -> dict[tuple[tuple[str, int], str], int]:
        self._check()
        return self.lanes_removed

    def wait_release(self, _client: object, after: int, timeout_s: float) -> bool:
        with self._changed:
            self._check()
            return self._changed.wait_for(lambda: bool(self.released) and self.released[-1].n > after, timeout_s)

    def data_of(self, event: Event) -> bytes:
        if event.ref is None:
            return event.data or b""
        if event.ref.digest not in self.blobs:
            raise NotFound(f"blob {event.ref.digest} is not here")
        return self.blobs[event.ref.digest]

    def blob_size(self, digest: str) -> int | None:
        return len(self.blobs[digest]) if digest in self.blobs else None

    def knows_blob(self, digest: str) -> bool:
        return digest in self.blobs

    def write_notes(self) -> None:
        pass

    def cached_bytes(self) -> int:
        return 0

    def missing_blobs(self) -> list[str]:
        return []

    def read_blob(self, digest: str) -> bytes | None:
        return self.blobs.get(digest)

    def note_read(self, digest: str, *, fetched: bool) -> None:
        pass

    def read_blob_range(self, digest: str, offset: int, length: int) -> bytes:
        return self.blobs[digest][offset : offset + length]

    def open_blob(self, digest: str) -> "FakeBody | None":
        self._check()
        return FakeBody(self.blobs[digest]) if digest in self.blobs else None

    def blob_writer(self, limit_bytes: int | None = None) -> "FakeWriter":
        self._check()
        return FakeWriter(self)

    def channels(self) -> Any:
        names = [entry.event.channel for entry in self.released if entry.event]
        return [ChannelInfo(name, names.count(name)) for name in sorted(set(names))]

    def counters(self) -> dict[str, int]:
        return {"events_ingested": self.head_n, "arrivals_dropped:rejected": 2}

    def standby_count(self) -> int:
        return 0

    def pending_joins(self, function: str | None = None) -> Any:
        return [join for join in self.joins if function in (None, join.function)]

    def dead_letters(self, after: str = "", limit: int = 100) -> Any:
        start = next((i + 1 for i, letter in enumerate(self.letters) if letter.id == after), 0)
        return [replace(letter, inputs=()) for letter in self.letters[start : start + limit]]

    def quota(self) -> Quota | None:
        return self.allowed

    def dead_letter_count(self) -> int:
        return len(self.letters)

    def dead_letter(self, id: str) -> DeadLetter | None:
        return next((letter for letter in self.letters if letter.id == id), None)

    def redrive(self, id: str) -> str:
        self._check()
        if id in self.stuck:
            raise self.stuck[id]
        letter = self.dead_letter(id)
        if letter is None:
            raise NotFound(f"there is no dead letter {id!r}")
        self.letters.remove(letter)
        self.redriven.append(id)
        return "arrivals" if letter.reason == "join-timeout" else "invocation"

    def purge(self, ids: Sequence[str]) -> int:
        before = len(self.letters)
        self.letters = [letter for letter in self.letters if letter.id not in ids]
        return before - len(self.letters)

    def invocation(self, id: str) -> InvocationInfo | None:
        return self.infos.get(id)

    def result(self, id: str) -> Result | None:
        self._check()
        return self.results.get(id)

    def start_replay(self, spec: ReplaySpec) -> ReplayInfo:
        self.asked_replays.append(spec)
        info = ReplayInfo(
            f"r{len(self.all_replays) + 1}", spec.channel, spec.function, spec.revision or "current", spec.from_ms, spec.to_ms, spec.shadow,
            "running", 0, 0, 0, 0, 1000 + len(self.all_replays),
        )  # fmt: skip
        self.all_replays[info.id] = info
        return info

    def replay(self, id: str) -> ReplayInfo | None:
        return self.all_replays.get(id)

    def replays(self) -> Any:
        return list(self.all_replays.values())

    def replay_diff(self, _id: str, after: str = "", limit: int = 100) -> Any:
        return [diff for diff in self.diffs if diff.invocation > after][:limit]

    def cancel_replay(self, id: str) -> None:
        if self.all_replays[id].state == "running":
            self.all_replays[id] = replace(self.all_replays[id], state="cancelled")

    def inbox_stats(self, _function: str, _revision: str) -> InboxStats:
        return InboxStats(3, 1, 2, 40)


class FakeLocal:
    """Status documents in memory."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, dict[str, Any]]] = {}

    def put_doc(self, kind: str, id: str, document: dict[str, Any], *, wake: bool = True) -> None:
        self.documents.setdefault(kind, {})[id] = document

    def delete_doc(self, kind: str, id: str) -> None:
        self.documents.get(kind, {}).pop(id, None)

    def docs(self, kind: str) -> dict[str, dict[str, Any]]:
        return self.documents.get(kind, {})

    def get_doc(self, kind: str, id: str) -> dict[str, Any] | None:
        return self.docs(kind).get(id)


class FakeClient:
    """Stands for the connection of a blocking read."""

    def close(self) -> None:
        pass


class FakeWakeups:
    """Hints of a store in memory: none. Whoever listens has to look by itself."""

    def wait(self, timeout_s: float) -> set[str]:
        threading.Event().wait(min(timeout_s, 0.02))
        return set()

    def close(self) -> None:
        pass


class FakeStore:
    """A PoP's store in memory."""

    def __init__(self, pop: str = "chicago") -> None:
        self.pop = pop
        self.local = FakeLocal()
        self.handles: dict[str, FakeNamespace] = {"system": FakeNamespace("system", pop)}
        self.known = {"system"}
        self.is_away = False
        self.outages = 0
        self.mailbox = FakeMailbox()

    def namespace(self, name: str) -> FakeNamespace:
        return self.handles.setdefault(name, FakeNamespace(name, self.pop))

    def namespaces(self) -> list[str]:
        return sorted(self.known)

    def has_namespace(self, name: str) -> bool:
        if self.is_away:
            raise StoreUnavailable()
        return name in self.known

    def create_namespace(self, name: str) -> bool:
        if name in self.known:
            return False
        self.known.add(name)
        self.namespace("system").put(f"namespaces/{name}", b"{}")
        return True

    def set_quota(self, name: str, quota: Quota | None) -> None:
        system = self.namespace("system")
        if quota is None:
            system.values.pop(f"quotas/{name}", None)
        else:
            system.put(f"quotas/{name}", json.dumps(asdict(quota)).encode())
        self.namespace(name).allowed = quota

    def blocking_client(self) -> FakeClient:
        return FakeClient()

    def wakeups(self) -> FakeWakeups:
        return FakeWakeups()

    def ping(self) -> None:
        if self.is_away:
            raise StoreUnavailable()


def make_settings(folder: Path, pop: str = "chicago", **limits: int) -> PopSettings:
    """Settings of one PoP of three."""
    return PopSettings.model_validate({
        "pop": pop, "cluster": "c-test", "mode": "embedded", "state_dir": folder / "state", "run_dir": folder / "run",
        "store": {"redis_socket": folder / "r.sock"},
        "mqtt": {"socket": folder / "m.sock", "password_file": folder / "pw"},
        "link": {"port": 1, "ca": folder / "ca", "cert": folder / "c", "key": folder / "k", "peers": {"la": {"host": "h", "port": 2}, "ny": {"host": "h", "port": 3}}},
        "api": {"port": 1, "token_file": folder / "token"},
        "public": {
            "api_url": "http://pop.test:8101", "api_token_file": folder / "token", "mqtt_host": "pop.test", "mqtt_port": 1891,
            "mqtt_ws_url": "ws://pop.test:8101/mqtt", "mqtt_password_file": folder / "pw",
        },
        "limits": limits,
    })  # fmt: skip


def make_api(folder: Path, store: Any | None = None, *, pop: str = "chicago", **limits: int) -> Api:
    """The dependencies of an app over a store in memory."""
    settings = make_settings(folder, pop, **limits)
    store = store or FakeStore(settings.pop)
    encoder = FrameEncoder(settings.public.api_url)
    return Api(settings, store, TOKEN, TailHub(store, encoder.event, encoder.gap), runner_alive=lambda: True)


def empty_store(api: Api) -> FakeStore:
    """Has the API stand on a new store."""
    store = FakeStore()
    api.store = store  # type: ignore[assignment]
    return store


@contextmanager
def served(api: Api, port: int = 0) -> Iterator[str]:
    """The app on a real port of the loopback interface; its base URL."""
    listener = listen("127.0.0.1", port)
    server = Server(serve_options(api), api)
    thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),), name="served-api")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive(), "the server did not leave"
