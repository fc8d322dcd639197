"""The policies of all namespaces as this PoP knows them: values of the system namespace, brought to where they are needed.

What it is: the loading and saving of `policies/<namespace>`, a cache of them, and the installing of homes into the namespaces' slots.
What it is not: what a rule means (edgeflow.core.policies), or the hand-over of a home (edgeflow.api.policies).
What must stay true: a document that cannot be read changes nothing, and is said in the log; what holds here follows the document within a second.
"""

import threading
import time
from typing import TYPE_CHECKING

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.policies import NONE, Policies, load_policies
from edgeflow.errors import EdgeflowError
from edgeflow.store.drift import DriftBook

if TYPE_CHECKING:
    from edgeflow.store.client import Store

log = structlog.get_logger(__name__)

POLICY_KEYS = "policies/"
_PAGE = 500
LATE_S = 60.0


class PolicyBook:
    """The policies that this process has seen last. Thread-safe."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, Policies]] = {}
        self._later_s: dict[str, float] = {}

    def of(self, namespace: str) -> Policies:
        """The policies of a namespace as of the last `look`."""
        known = self._known.get(namespace)
        return NONE if known is None else known[1]

    def load(self, namespace: str) -> tuple[Policies, str | None]:
        """The policies of a namespace as they are stored now, and the version of the document. Raises BadPolicy."""
        value = self._store.namespace(SYSTEM_NAMESPACE).get(POLICY_KEYS + namespace)
        return (NONE, None) if value is None else (load_policies(value.data), value.version)

    def save(self, namespace: str, policies: Policies, version: str | None) -> str:
        """Store them for all PoPs, in place of the document with that version (None: of none), and let them hold here; their version.

        Raises VersionMismatch when somebody was faster.
        """
        receipt = self._store.namespace(SYSTEM_NAMESPACE).put(
            POLICY_KEYS + namespace, policies.dump(), content_type="application/json", if_version=version, if_absent=version is None
        )  # fmt: skip
        self._install(namespace, policies, receipt.version or "")
        return receipt.version or ""

    def look(self) -> bool:
        """Let hold what has changed since the last time; whether something has. A namespace whose document is gone has no homes any more."""
        system = self._store.namespace(SYSTEM_NAMESPACE)
        found: dict[str, str] = {}
        after = ""
        while True:
            page = system.list(POLICY_KEYS, after=after, limit=_PAGE)
            found.update({info.key.removeprefix(POLICY_KEYS): info.version for info in page})
            if len(page) < _PAGE:
                break
            after = page[-1].key
        changed = False
        for namespace in {*found, *self._known}:
            known = self._known.get(namespace)
            version = found.get(namespace, "")
            if known is not None and known[0] == version:
                continue
            try:
                policies, loaded = self.load(namespace)
                self._install(namespace, policies, loaded or "")
                changed = True
            except EdgeflowError as error:
                if error.retryable:
                    raise
                log.error("policies_unreadable", namespace=namespace, error=error.message)
                with self._lock:
                    self._known[namespace] = (version, self.of(namespace))
        return changed

    def check(self, drift: DriftBook) -> None:
        """Whether the homes in the slots are those that are declared; called every few seconds. Those that are not are installed again.

        One in a later term than its policy is a hand-over that is under way: it stays, and is said when it has not come to its end for LATE_S.
        """
        self.look()
        now_s = time.monotonic()
        for namespace, (version, policies) in list(self._known.items()):
            handle = self._store.namespace(namespace)
            declared = {rule.prefix: (rule.term, rule.home or "") for rule in policies.homes()}
            held = {rule.prefix: (rule.term, rule.home or "") for rule in handle.homes().rules}
            later = sorted(prefix for prefix, (term, _) in held.items() if term > policies.term)
            others = {prefix for prefix in {*declared, *held} if declared.get(prefix) != held.get(prefix)} - set(later)
            if others:
                self._install(namespace, policies, version)
                drift.found(
                    "homes", namespace, f"the homes of {', '.join(sorted(others))} were not those of the policies"
                )
            if not later:
                self._later_s.pop(namespace, None)
                drift.settled("homes", namespace)
            elif now_s - self._later_s.setdefault(namespace, now_s) > LATE_S:
                detail = f"the home of {later[0]} is in a later term than its policy; `edgeflow kv policy move` completes a hand-over"
                drift.found("homes", namespace, detail, healed=False)

    def _install(self, namespace: str, policies: Policies, version: str) -> None:
        self._store.namespace(namespace).install_homes(policies)
        with self._lock:
            self._known[namespace] = (version, policies)
