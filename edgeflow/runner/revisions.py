"""What each revision was that ran at this PoP: it may have something left in its inbox, or be gone back to.

What it is: the local documents `revision`, each with the function as its manifest was written.
What must stay true: a revision that runs, or has work left, is known, also to the next control process.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from edgeflow.core.manifest import ResolvedFunction
from edgeflow.runner.manifests import Manifests
from edgeflow.runner.memory import FunctionKey
from edgeflow.runner.ports import StorePort

KEPT_REVISIONS = 5
"""Old revisions of a function whose description is kept."""


class Revisions:
    """The revisions that are known at this PoP, oldest first."""

    def __init__(self, store: StorePort) -> None:
        self._store = store
        self._known: dict[FunctionKey, dict[str, ResolvedFunction]] = {}
        self._specs: dict[tuple[str, str, str], dict[str, Any]] = {}

    def note(self, wanted: Mapping[FunctionKey, ResolvedFunction], manifests: Manifests) -> None:
        """Write down what is wanted here."""
        documents = self._store.local.docs("revision")
        for key, function in wanted.items():
            id = "/".join((*key, function.revision))
            if id not in documents:
                document: dict[str, Any] = {
                    "namespace": key[0], "function": key[1], "spec": manifests.spec(key), "noted_ms": int(time.time() * 1000),
                }  # fmt: skip
                self._store.local.put_doc("revision", id, document)
                self._known.setdefault(key, {})[function.revision] = function
                self._specs[(*key, function.revision)] = document["spec"]
        for id, document in sorted(documents.items(), key=lambda item: int(item[1].get("noted_ms") or 0)):
            key, revision = (document["namespace"], document["function"]), id.rpartition("/")[2]
            if revision not in self._known.get(key, {}):
                function = ResolvedFunction.model_validate(document["spec"], context={"namespace": key[0]})
                self._known.setdefault(key, {})[revision] = function
                self._specs[(*key, revision)] = document["spec"]

    def find(self, key: FunctionKey, revision: str) -> ResolvedFunction | None:
        """What a revision was."""
        return self._known.get(key, {}).get(revision)

    def spec(self, key: FunctionKey, revision: str) -> dict[str, Any] | None:
        """What a revision was, as its manifest was written."""
        return self._specs.get((*key, revision))

    def all(self) -> set[tuple[str, str, str]]:
        """Namespace, function and revision of all."""
        return {(*key, revision) for key, revisions in self._known.items() for revision in revisions}

    def with_work(self, key: FunctionKey, current: Collection[str], running: Iterable[str]) -> frozenset[str]:
        """Revisions beside the current ones that have something left in their inboxes; of those that have not and do not run any more, forgets all but the newest."""
        known, running = self._known.get(key, {}), set(running)
        left = set()
        for revision in (running | set(known)) - set(current):
            stats = self._store.namespace(key[0]).inbox_stats(key[1], revision)
            if stats.pending > 0:
                left.add(revision)
        # The newest are kept for replays, and to go back to.
        spare = [revision for revision in known if revision not in {*running, *left, *current}]
        for revision in spare[: max(0, len(spare) - KEPT_REVISIONS)]:
            self._forget(key, revision)
        return frozenset(left)

    def forget(self, key: FunctionKey) -> None:
        """The function is gone from this PoP."""
        for revision in list(self._known.pop(key, {})):
            self._forget(key, revision)

    def _forget(self, key: FunctionKey, revision: str) -> None:
        self._store.local.delete_doc("revision", "/".join((*key, revision)))
        self._known.get(key, {}).pop(revision, None)
        self._specs.pop((*key, revision), None)
