"""What the stores of a running cluster hold, from outside: their ledgers, whichever way the cluster runs.

What it is: in embedded mode a read of each PoP's Redis by its socket, in Docker mode the same program inside the PoP's data container.
What must stay true: nothing is asked of an agent.
"""

import json
from abc import ABC, abstractmethod

from edgeflow.host import compose
from edgeflow.host.discover import Cluster
from edgeflow.host.errors import DockerFailed
from edgeflow.host.files import read_json
from edgeflow.lab import ledger
from edgeflow.lab.hands import home_of


class NotNow(Exception):
    """The store does not answer at this moment."""


class Books(ABC):
    """The ledgers of a cluster's PoPs. Raises NotNow while a store is away."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @abstractmethod
    def read(self, pop: str, namespace: str) -> ledger.Ledger:
        """Everything of one namespace at one PoP."""

    @abstractmethod
    def waiting(self, pop: str, namespace: str) -> dict[str, int]:
        """What is not finished there, by kind."""


class LocalBooks(Books):
    """Of an embedded cluster."""

    def read(self, pop: str, namespace: str) -> ledger.Ledger:
        try:
            return ledger.read(self._socket(pop), namespace, pop)
        except ledger.ERRORS as error:
            raise NotNow(str(error)) from error

    def waiting(self, pop: str, namespace: str) -> dict[str, int]:
        try:
            return ledger.waiting(self._socket(pop), namespace)
        except ledger.ERRORS as error:
            raise NotNow(str(error)) from error

    def _socket(self, pop: str) -> str:
        settings = read_json(home_of(self.cluster, pop).config_file(pop)) or {}
        return str(settings["store"]["redis_socket"])


class ComposeBooks(Books):
    """Of a cluster of containers."""

    def read(self, pop: str, namespace: str) -> ledger.Ledger:
        return ledger.load(self._ask(pop, namespace))

    def waiting(self, pop: str, namespace: str) -> dict[str, int]:
        found: dict[str, int] = self._ask(pop, namespace, "--waiting")
        return found

    def _ask(self, pop: str, namespace: str, *more: str) -> dict[str, int]:
        program = ["python3", "-m", "edgeflow.lab.ledger", "--config", f"/config/{pop}/pop.json"]
        arguments = ["exec", "-T", f"{pop}-data", *program, "--namespace", namespace, *more]
        try:
            document: dict[str, int] = json.loads(compose.run(self.cluster.home, arguments, quiet=True))
        except (DockerFailed, ValueError) as error:
            raise NotNow(str(error)) from error
        return document


def books_of(cluster: Cluster) -> Books:
    """The ledgers of this cluster."""
    return LocalBooks(cluster) if cluster.mode == "embedded" else ComposeBooks(cluster)
