"""The manifests of all namespaces as this PoP has them.

What it is: the values `manifests/<namespace>` of the system namespace, read again when their version changes.
What must stay true: a damaged manifest changes nothing: what was there before it goes on.
"""

import json
from typing import Any, NamedTuple

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.manifest import ResolvedFunction, ResolvedManifest, check_resolved
from edgeflow.errors import EdgeflowError
from edgeflow.runner.memory import FunctionKey
from edgeflow.runner.ports import StorePort

log = structlog.get_logger()


class Applied(NamedTuple):
    """One manifest, checked, and as it was written."""

    version: str
    manifest: ResolvedManifest
    document: dict[str, Any]


class Manifests:
    """All manifests, by namespace."""

    def __init__(self, store: StorePort) -> None:
        self._store = store
        self._applied: dict[str, Applied] = {}
        self._unreadable: dict[str, str] = {}

    def read(self) -> None:
        """Read what has changed."""
        system = self._store.namespace(SYSTEM_NAMESPACE)
        found: dict[str, str] = {}
        after = ""
        while page := system.list("manifests/", after=after, limit=500):
            found |= {info.key.removeprefix("manifests/"): info.version for info in page}
            after = page[-1].key
            if len(page) < 500:
                break
        for name, version in found.items():
            known = self._applied.get(name)
            if (known is not None and known[0] == version) or self._unreadable.get(name) == version:
                continue
            value = system.get(f"manifests/{name}")
            if value is None:
                continue
            try:
                document = json.loads(value.data)
                manifest = check_resolved(document)
                if manifest.namespace != name:
                    raise ValueError(f"it names the namespace {manifest.namespace!r}")
            except (EdgeflowError, ValueError, TypeError, AttributeError, KeyError) as error:
                # What is there goes on as it was: a damaged manifest must not stop an application.
                self._unreadable[name] = version
                log.error("manifest_unreadable", namespace=name, version=version, reason=str(error))
                continue
            self._unreadable.pop(name, None)
            self._applied[name] = Applied(version, manifest, document)
            log.info("manifest_read", namespace=name, version=version, functions=sorted(manifest.functions))
        for name in set(self._applied) - set(found):
            del self._applied[name]
            log.info("manifest_gone", namespace=name)

    def all(self) -> dict[str, Applied]:
        """By namespace."""
        return self._applied

    def is_unreadable(self, namespace: str) -> bool:
        """Whether the namespace has a manifest that nobody understands."""
        return namespace in self._unreadable

    def spec(self, key: FunctionKey) -> dict[str, Any]:
        """A function as its manifest was written."""
        spec: dict[str, Any] = self._applied[key[0]].document["functions"][key[1]]
        return spec

    def wanted(self, pop: str) -> dict[FunctionKey, ResolvedFunction]:
        """The functions that have a place at a PoP."""
        return {
            (namespace, name): function
            for namespace, applied in self._applied.items()
            for name, function in applied.manifest.functions.items()
            if pop in function.place.pops
        }
