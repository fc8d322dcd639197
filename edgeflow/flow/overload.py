"""What the system namespace says about a namespace, as its flow needs it: its quota, its functions, and which PoPs have no room.

What it is: once a second, quotas are copied to where the scripts look at them, and full inboxes of this PoP are told to the others.
What it is not: the refusal itself (the ingest script, and `Namespace.round` for what is full elsewhere).
What must stay true: what is told late only lets some more in: the log keeps it, and nothing that was acknowledged is dropped for it.
"""

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import EdgeflowError
from edgeflow.settings import PopSettings
from edgeflow.store import Store
from edgeflow.store.client import QUOTA_KEYS
from edgeflow.store.drift import DriftBook
from edgeflow.store.namespace import FULL_KEYS
from edgeflow.store.records import Quota, Value

log = structlog.get_logger(__name__)

ROOM_AGAIN = 0.8
"""A channel that was full takes events again when its inbox is down to this part of its bound."""
READ_EVERY_S = 1.0


class Manifests:
    """The functions of each namespace, wherever they are placed; read again once a second at most."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    def has_function(self, namespace: str, function: str) -> bool:
        """Whether the manifest of a namespace has this function."""
        read_s, functions = self._known.get(namespace, (0.0, frozenset()))
        now = time.monotonic()
        if function not in functions and now - read_s > READ_EVERY_S:
            value = self._store.namespace(SYSTEM_NAMESPACE).get(f"manifests/{namespace}")
            functions = frozenset(json.loads(value.data)["functions"]) if value is not None else frozenset()
            self._known[namespace] = (now, functions)
        return function in functions


class Overload:
    """Quotas and full inboxes of one PoP."""

    def __init__(self, store: Store, settings: PopSettings) -> None:
        self._store = store
        self._pop = settings.pop
        self._limit = settings.limits.inbox_pending
        self._quotas: dict[str, str] = {}
        self._rates: dict[str, float | None] = {}
        self._full: dict[str, list[str]] = {}

    def look(self, namespaces: Iterable[str]) -> None:
        """Bring both up to date; called once a second."""
        system = self._store.namespace(SYSTEM_NAMESPACE)
        for name in namespaces:
            info = system.head(QUOTA_KEYS + name)
            version = info.version if info is not None else ""
            if version != self._quotas.get(name):
                self._set_quota(name, version)
            self._tell_full(name)

    def link_rate(self, name: str) -> float | None:
        """Bytes a second that this PoP sends of a namespace to each other PoP; None = no bound."""
        return self._rates.get(name)

    def check(self, drift: DriftBook) -> None:
        """Whether the quotas in the slots are those that are declared; called every few seconds. Those that are not are set again."""
        system = self._store.namespace(SYSTEM_NAMESPACE)
        for name, version in list(self._quotas.items()):
            value = system.get(QUOTA_KEYS + name)
            if (value.version if value is not None else "") != version:
                continue  # `look` is about to set it
            with contextlib.suppress(ValueError, TypeError):
                quota = _in_slot(_quota_of(value))
                held = self._store.namespace(name).quota()
                if held != quota:
                    self._store.namespace(name).set_quota(quota)
                    drift.found(
                        "quota", name, f"the quota that held here was {_said(held)}, declared is {_said(quota)}"
                    )

    def _set_quota(self, name: str, version: str) -> None:
        value = self._store.namespace(SYSTEM_NAMESPACE).get(QUOTA_KEYS + name) if version else None
        try:
            quota = _quota_of(value)
            self._store.namespace(name).set_quota(_in_slot(quota))
            self._rates[name] = quota.link_bytes_per_s if quota is not None else None
        except (ValueError, TypeError) as error:
            log.error("quota_unreadable", namespace=name, reason=str(error))
        self._quotas[name] = version

    def _tell_full(self, name: str) -> None:
        namespace = self._store.namespace(name)
        table = namespace.routes()
        if not table.functions:
            return
        pending = namespace.pending()
        before = self._full.get(name, [])
        full = []
        for route in table.functions:
            for source in route.inputs:
                policy = table.policy(source.channel)
                if policy.on_full != "refuse":
                    continue
                bound = policy.max_pending or self._limit
                if pending.get(route.inbox, 0) >= bound * (ROOM_AGAIN if source.channel in before else 1):
                    full.append(source.channel)
        if full == before:
            return
        key = f"{FULL_KEYS}{name}/{self._pop}"
        system = self._store.namespace(SYSTEM_NAMESPACE)
        try:
            if full:
                system.put(key, json.dumps(full).encode(), content_type="application/json")
            else:
                system.delete(key)
        except EdgeflowError as error:
            log.warning("full_not_told", namespace=name, reason=error.message)
            return
        self._full[name] = full


def _quota_of(value: Value | None) -> Quota | None:
    """The declared quota. Raises ValueError or TypeError when nobody understands it."""
    return Quota(**json.loads(value.data)) if value is not None else None


def _in_slot(quota: Quota | None) -> Quota | None:
    """What of a quota the scripts look at."""
    if quota is None or (quota.events_per_s is None and quota.bytes_per_s is None):
        return None
    return replace(quota, link_bytes_per_s=None)


def _said(quota: Quota | None) -> str:
    if quota is None:
        return "none"
    return ", ".join(f"{name} {value:g}" for name, value in asdict(quota).items() if value is not None)
