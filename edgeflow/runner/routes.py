"""Installs the routing tables of this PoP.

What must stay true: every namespace has the table of its manifest with, of each function, the revision that serves here, and an empty one without a
manifest; a damaged manifest leaves the table that is there.
"""

from collections.abc import Mapping
from typing import Any

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.failpoints import hit
from edgeflow.core.routing import RouteTable, compile_routes
from edgeflow.runner.manifests import Manifests
from edgeflow.runner.ports import StorePort
from edgeflow.store.drift import DriftBook

log = structlog.get_logger()

ROUTES_EVERY_MS = 5_000
"""How often the tables are installed again even if nothing changed (a store may have been restored from an older state)."""


class Routes:
    """The tables as they were installed last."""

    def __init__(self, store: StorePort, pop: str) -> None:
        self._store = store
        self._pop = pop
        self._drift = DriftBook(store.local)
        self._installed: dict[str, tuple[str, int]] = {}

    def install(self, manifests: Manifests, serving: Mapping[str, Mapping[str, Any]], now_ms: int) -> None:
        """Install what has changed; `serving`: the manifests with the revisions that serve."""
        for name, document in serving.items():
            if name not in self._installed:
                self._store.create_namespace(name)
            self._install(name, compile_routes(document, self._pop), now_ms)
        for name in self._store.namespaces():
            if name not in manifests.all() and not manifests.is_unreadable(name) and name != SYSTEM_NAMESPACE:
                self._install(name, RouteTable(), now_ms)

    def _install(self, namespace: str, table: RouteTable, now_ms: int) -> None:
        version, at_ms = self._installed.get(namespace, ("?", 0))
        if version == table.version and now_ms - at_ms < ROUTES_EVERY_MS:
            return
        if self._store.namespace(namespace).set_routes(table):
            hit("runner-routes-installed")
            if version == table.version:
                self._drift.found("routes", namespace, "the routing table was not the one that was installed")
            log.info(
                "routes_installed",
                namespace=namespace,
                version=table.version,
                functions=[one.function for one in table.functions],
            )
        self._installed[namespace] = (table.version, now_ms)
