"""One PoP whose agent runs on this machine and whose functions are containers, for tests that look at both sides."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster
from edgeflow.settings import PopSettings

PREFIX = "edgeflow-test"


@dataclass
class ContainerPop:
    """The PoP `la`."""

    cluster: LocalCluster
    client: Operator
    engine: Any
    id: str
    """Of the cluster."""

    @property
    def settings(self) -> PopSettings:
        return PopSettings.load(self.cluster.home.root / "pops" / "la" / "pop.json")

    def apply(self, namespace: str, functions: Mapping[str, Any], *, wait: bool = True) -> None:
        """Apply a manifest; `wait`: until all of its functions are ready."""
        access = self.cluster.pop("la")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "edgeflow.yaml"
            file.write_text(yaml.safe_dump({"namespace": namespace, "functions": dict(functions)}))
            apply_file(file, Target(access.api_url, access.token), wait=wait, timeout_s=90)

    def containers(self, function: str | None = None) -> list[Any]:
        """The function containers of this PoP, or of one function, ended ones too."""
        labels = [f"edgeflow.cluster={self.id}", *([f"edgeflow.function={function}"] if function else [])]
        return list(self.engine.containers.list(all=True, ignore_removed=True, filters={"label": labels}))

    def state(self, namespace: str, function: str) -> dict[str, Any]:
        """What the API says of a function."""
        return dict(self.client.function(namespace, function))


@contextmanager
def container_pop(engine: Any, *, docker_host: str | None = None, **runner: Any) -> Iterator[ContainerPop]:
    """A running PoP; `docker_host`: where its control process finds the engine, `runner`: settings below `runner`."""
    before = os.environ.get("DOCKER_HOST")
    if docker_host is not None:
        os.environ["DOCKER_HOST"] = docker_host  # the supervisor and the control process inherit it
    settings = {"mode": "docker", "runner": {"image_prefix": PREFIX, **runner}}
    cluster = LocalCluster(["la"], settings=settings)
    try:
        with cluster:
            access = cluster.pop("la")
            known = PopSettings.load(cluster.home.root / "pops" / "la" / "pop.json")
            with Operator(access.api_url, access.token, retry_s=30.0) as client:
                yield ContainerPop(cluster, client, engine, known.cluster)
        labels = [f"edgeflow.cluster={known.cluster}"]
        assert engine.containers.list(all=True, ignore_removed=True, filters={"label": labels}) == [], (
            "the end of the cluster ends its containers"
        )
    finally:
        if docker_host is not None:
            if before is None:
                del os.environ["DOCKER_HOST"]
            else:
                os.environ["DOCKER_HOST"] = before
