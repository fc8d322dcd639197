"""Store: the door of a PoP's two agent processes to Redis and the blob files.

What must stay true: only these processes reach this Redis; opening a namespace decides its epoch before anything is written.
"""

import json
import secrets
from dataclasses import asdict
from typing import Any

import msgpack
import redis

from edgeflow.core.channels import SYSTEM_NAMESPACE, check_namespace
from edgeflow.errors import StoreUnavailable
from edgeflow.settings import PopSettings
from edgeflow.store.blobs import BlobFiles, Room
from edgeflow.store.connection import Connection
from edgeflow.store.epochs import EpochFile
from edgeflow.store.mailbox import Mailbox
from edgeflow.store.records import Quota
from edgeflow.store.replica import ReplicatedNamespace
from edgeflow.store.wakeups import WAKE_CHANNEL
from edgeflow.store.wakeups import Wakeups as Wakeups

LOCAL = "local"
_LOCAL_WAKE = msgpack.packb([LOCAL, "", []])
_MISSING_ROUNDS = 1000
HINTS = 1000
QUOTA_KEYS = "quotas/"
"""Keys of the system namespace with the quota of a namespace, the same at every PoP."""


class Store:
    """One PoP's store. Thread-safe."""

    def __init__(self, settings: PopSettings, *, patient: bool = False) -> None:
        """Connect and load the library. `patient`: wait for Redis for ever (the data process); else at most `store.retry_s` a call."""
        self.pop = settings.pop
        self._settings = settings
        self._connection = Connection(settings.store.redis_socket, None if patient else settings.store.retry_s)
        self._epochs = EpochFile(settings.state_dir)
        self._handles: dict[str, ReplicatedNamespace] = {}
        self._token = secrets.token_hex(4)
        self._room = Room(settings.state_dir, settings.limits.disk_free_bytes)
        self._connection.load_library()
        self.local = LocalState(self._connection)
        self.mailbox = Mailbox(self._connection)
        self.open_log(SYSTEM_NAMESPACE)
        self.check_epochs()  # before anything is written, by whichever process is first

    @classmethod
    def open(cls, settings: PopSettings, *, patient: bool = False) -> "Store":
        """Same as the constructor."""
        return cls(settings, patient=patient)

    @property
    def outages(self) -> int:
        """How often Redis was lost and came back."""
        return self._connection.outages

    def namespace(self, name: str) -> ReplicatedNamespace:
        """The handle of a namespace; it need not exist yet. Raises BadName."""
        handle = self._handles.get(name)
        if handle is None:
            check_namespace(name)
            handle = self._handles[name] = ReplicatedNamespace(
                name, self.pop, self._connection, BlobFiles(self._settings.state_dir / "blobs" / name), self._settings.limits,
                lambda: self.open_log(name), self._token, self._room,
            )  # fmt: skip
        return handle

    def open_log(self, name: str) -> int:
        """Decide the epoch of this PoP's log of a namespace and tell Redis. Returns it."""
        prefix = f"ef:{{{name}}}:"
        epoch = int(self._connection.one("GET", prefix + "epoch") or 0)
        seq = int(self._connection.one("HGET", prefix + "heads", f"{self.pop}:{epoch}") or 0) if epoch else 0
        decided = self._epochs.decide(name, epoch, seq)
        self._connection.one(*self.namespace(name)._command("ef_open", {"epoch": decided}))
        return decided

    def tail_lost(self, name: str, epoch: int, seq: int) -> int:
        """A peer has this PoP's log of `epoch` up to `seq`, this store less: write in a later epoch from now on. Returns the epoch in use."""
        self._epochs.record({name: (epoch, seq)})
        return self.open_log(name)

    def check_epochs(self) -> None:
        """After an outage: open a new epoch wherever Redis came back with less than was recorded."""
        for name in self.namespaces():
            self.open_log(name)

    def record_heads(self) -> None:
        """Write down (with fsync) how far this PoP's logs are, for `check_epochs`."""
        heads: dict[str, tuple[int, int]] = {}
        for name in self.namespaces():
            own = [(log.epoch, seq) for log, seq in self.namespace(name).logs().items() if log.origin == self.pop]
            if own:
                heads[name] = max(own)
        self._epochs.record(heads)

    def namespaces(self) -> list[str]:
        """All namespaces that this PoP knows, `system` included."""
        system = self.namespace(SYSTEM_NAMESPACE)
        found = [SYSTEM_NAMESPACE]
        after = ""
        for _ in range(_MISSING_ROUNDS):
            page = system.list("namespaces/", after=after, limit=500)
            found += [info.key.removeprefix("namespaces/") for info in page]
            if len(page) < 500:
                break
            after = page[-1].key
        return sorted(found)

    def has_namespace(self, name: str) -> bool:
        """Whether a namespace is known here."""
        return name == SYSTEM_NAMESPACE or self.namespace(SYSTEM_NAMESPACE).head(f"namespaces/{name}") is not None

    def create_namespace(self, name: str) -> bool:
        """Make a namespace known at every PoP; True when it was new here. Raises BadName."""
        check_namespace(name)
        if self.has_namespace(name):
            return False
        self.open_log(name)
        self.namespace(SYSTEM_NAMESPACE).put(f"namespaces/{name}", b"{}", content_type="application/json")
        return True

    def set_quota(self, name: str, quota: Quota | None) -> None:
        """What a namespace may send to each PoP; None = no bound. Holds here at once, at the other PoPs within seconds."""
        system = self.namespace(SYSTEM_NAMESPACE)
        if quota is not None:
            system.put(QUOTA_KEYS + name, json.dumps(asdict(quota)).encode(), content_type="application/json")
        elif system.head(QUOTA_KEYS + name) is not None:
            system.delete(QUOTA_KEYS + name)
        self.namespace(name).set_quota(quota)

    def blocking_client(self) -> redis.Redis:
        """A client with its own connection, for `Namespace.wait_release`."""
        return self._connection.client()

    def wakeups(self) -> "Wakeups":
        """A new listener for changes."""
        return Wakeups(self._settings.store.redis_socket, self._token)

    def ping(self) -> None:
        """Raises StoreUnavailable when Redis does not answer."""
        self._connection.one("PING")

    def close(self) -> None:
        """Close the connections."""
        self.mailbox.close()
        self._connection.close()


class LocalState:
    """Small JSON documents that belong to this PoP alone, shared by its two agent processes. Never replicated."""

    _PREFIX = "ef:{local}:"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._blocking: redis.Redis | None = None

    def hint(self, kind: str, text: str) -> None:
        """Tell whoever takes hints of a kind. At most HINTS wait; the oldest go."""
        key = f"{self._PREFIX}hints:{kind}"
        self._connection.run([("RPUSH", key, text), ("LTRIM", key, -HINTS, -1)])

    def wait_hint(self, kind: str, timeout_s: float) -> str | None:
        """Take the next hint of a kind, at most `timeout_s` later. For one thread; raises StoreUnavailable."""
        if self._blocking is None:
            self._blocking = self._connection.client()
        try:
            found: Any = self._blocking.blpop([f"{self._PREFIX}hints:{kind}"], timeout=timeout_s)
        except redis.RedisError as error:
            raise StoreUnavailable(str(error)) from error
        return None if found is None else str(found[1].decode())

    def put_doc(self, kind: str, id: str, document: dict[str, Any], *, wake: bool = True) -> None:
        """Write a document and wake who listens, unless it is there already just so. Without `wake` nobody hears of it."""
        text = json.dumps(document, sort_keys=True)
        if self._connection.one("HGET", self._PREFIX + kind, id) != text.encode():
            hint = [("PUBLISH", WAKE_CHANNEL, _LOCAL_WAKE)] if wake else []
            self._connection.run([("HSET", self._PREFIX + kind, id, text), *hint])

    def get_doc(self, kind: str, id: str) -> dict[str, Any] | None:
        """A document, or None."""
        text = self._connection.one("HGET", self._PREFIX + kind, id)
        return None if text is None else dict(json.loads(text))

    def docs(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of a kind by id."""
        return {
            id.decode(): json.loads(text) for id, text in self._connection.one("HGETALL", self._PREFIX + kind).items()
        }

    def delete_doc(self, kind: str, id: str) -> None:
        """Remove a document if it is there."""
        if self._connection.one("HDEL", self._PREFIX + kind, id):
            self._connection.one("PUBLISH", WAKE_CHANNEL, _LOCAL_WAKE)
