"""The rollouts of all functions of this PoP, and which revision serves.

What it is: the local documents `rollout`, one per function, each moved on by rollout.py.
What must stay true: what serves here survives the control process; a revision that nobody can describe any more is not gone back to.
"""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.failpoints import hit
from edgeflow.core.manifest import ResolvedFunction
from edgeflow.runner.manifests import Manifests
from edgeflow.runner.memory import FunctionKey
from edgeflow.runner.ports import StorePort
from edgeflow.runner.revisions import Revisions
from edgeflow.runner.rollout import Facts, Rollout, step

log = structlog.get_logger()

HISTORY_PAGE = 100


class Rollouts:
    """How each function stands."""

    def __init__(self, store: StorePort, revisions: Revisions) -> None:
        self._store = store
        self._revisions = revisions
        self._known: dict[FunctionKey, Rollout] = {}

    def look(self) -> None:
        """Read what is written down; once a round."""
        self._known = {}
        for id, document in self._store.local.docs("rollout").items():
            namespace, _, name = id.partition("/")
            found = Rollout(**{**document, "last_log_lines": tuple(document["last_log_lines"])})
            if all(self._revisions.find((namespace, name), one) for one in (found.live, found.before) if one):
                self._known[(namespace, name)] = found

    def get(self, key: FunctionKey) -> Rollout | None:
        """How a function stands; None before its first revision, or when what served is not known any more."""
        return self._known.get(key)

    def step(self, key: FunctionKey, function: ResolvedFunction, facts: Facts, now_ms: int) -> Rollout:
        """Move a function on, and write it down."""
        before = self._known.get(key)
        after = step(before, function.revision, facts, function.rollout.deadline_ms, now_ms)
        if after != before:
            document = {**asdict(after), "last_log_lines": list(after.last_log_lines)}
            self._store.local.put_doc("rollout", "/".join(key), document)
            self._known[key] = after
            hit("runner-rollout-noted")
            if before is None or after.phase != before.phase or after.target != before.target:
                log.info(
                    "rollout", namespace=key[0], function=key[1], phase=after.phase, live=after.live, target=after.target,
                    reason=after.reason,
                )  # fmt: skip
        return after

    def asked(self, key: FunctionKey) -> str:
        """The newest record of a function's history."""
        prefix = f"revisions/{key[0]}/{key[1]}/"
        after = newest = ""
        while page := self._store.namespace(SYSTEM_NAMESPACE).list(prefix, after=after, limit=HISTORY_PAGE):
            after = newest = page[-1].key
            if len(page) < HISTORY_PAGE:
                break
        return newest

    def serving(self, manifests: Manifests) -> dict[str, dict[str, Any]]:
        """The manifests by namespace with, of each function, the revision that serves here."""
        documents = {namespace: applied.document for namespace, applied in manifests.all().items()}
        for (namespace, name), rollout in self._known.items():
            function = documents.get(namespace, {}).get("functions", {}).get(name)
            if function is None or rollout.live == function["revision"]:
                continue
            # Between an apply and the next step it may be a revision that the rollout has not heard of.
            spec = self._revisions.spec((namespace, name), rollout.live)
            if spec is not None:
                document = documents[namespace]
                # Whose an event is is for the newest manifest to say, whatever revision serves here: the PoPs have to agree.
                spec = {**spec, "place": function["place"]}
                documents[namespace] = {**document, "functions": {**document["functions"], name: spec}}
        return documents

    def forget(self, keys: Collection[FunctionKey]) -> None:
        """These functions are not wanted here any more: whatever comes back under their names begins anew."""
        for key in keys:
            if self._known.pop(key, None) is not None:
                self._store.local.delete_doc("rollout", "/".join(key))
