"""Finds the running cluster, whichever way it runs, and says how to reach its PoPs.

What it is: `find()`: embedded from `$EDGEFLOW_HOME/cluster.json` while its supervisor runs, else containers, from the document and the secrets that
their init job left in `$EDGEFLOW_HOME/docker/`.
What it is not: a health check of the application, or a client of the API.
What must stay true: what it returns was running a moment ago; a folder left by a dead supervisor is not a running cluster.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from edgeflow.host.errors import NoCluster, NoSuchPop
from edgeflow.host.files import read_json
from edgeflow.host.layout import Home, default_home
from edgeflow.host.supervisor import HomeLock

ASK_S = 2.0
"""How long a PoP's API may take to say how it is."""


@dataclass(frozen=True)
class PopAccess:
    """How a client on this machine reaches one PoP."""

    id: str
    state: str
    api_url: str
    api_token_file: Path
    mqtt_host: str
    mqtt_port: int
    mqtt_ws_url: str
    mqtt_username: str
    mqtt_password_file: Path
    reason: str = ""
    """Why it is not ready; empty when it is."""
    processes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Embedded mode: redis, broker, data, control -> pid, state, restarts, log."""

    @property
    def token(self) -> str:
        return self.api_token_file.read_text().strip()

    @property
    def mqtt_password(self) -> str:
        return self.mqtt_password_file.read_text().strip()


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    id: str
    mode: str
    state: str
    home: Home
    pops: Mapping[str, PopAccess]
    supervisor_pid: int | None = None
    wan_config: Path | None = None

    def pop(self, pop: str | None = None) -> PopAccess:
        """The PoP with this id; None = the first. Raises NoSuchPop."""
        if pop is None:
            return next(iter(self.pops.values()))
        if pop not in self.pops:
            raise NoSuchPop(f"There is no PoP {pop!r}.", hint=f"PoPs of this cluster: {', '.join(self.pops)}.")
        return self.pops[pop]


def find(home: Path | None = None) -> Cluster:
    """The running cluster. Raises NoCluster.

    With a supervisor on `home` (default: $EDGEFLOW_HOME) it is that one, else the containers on this machine's engine. Where neither `home` nor
    $EDGEFLOW_HOME is given, the cluster of `edgeflow dev` in this folder comes second.
    """
    place = Home((home or default_home()).absolute())
    places = [place] if home is not None or "EDGEFLOW_HOME" in os.environ else [place, Home(place.root / "dev")]
    for one in places:
        if HomeLock.is_held(one):
            cluster = read_embedded(one)
            if cluster is not None:
                return with_joined(cluster)
    cluster = find_docker(place)
    if cluster is not None:
        return cluster
    raise NoCluster(f"No cluster runs from {place.root}, and no containers of one were found.")


def read_embedded(home: Home) -> Cluster | None:
    """What cluster.json says about an embedded cluster; None when there is none."""
    document = read_json(home.cluster_file)
    if document is None or document.get("mode") != "embedded":
        return None
    return from_document(home, document)


def with_joined(cluster: Cluster) -> Cluster:
    """The cluster with the PoPs that joined it from folders below its own and run now."""
    pops = dict(cluster.pops)
    for place in cluster.home.all_joined():
        other = read_embedded(place) if HomeLock.is_held(place) else None
        if other is not None and other.id == cluster.id:
            pops.update(other.pops)
    return replace(cluster, pops=pops)


def from_document(home: Home, document: Mapping[str, Any]) -> Cluster:
    """A Cluster from the content of a cluster.json."""
    pops = {pop: _access(home, pop, entry) for pop, entry in document["pops"].items()}
    wan = document.get("wan") or {}
    return Cluster(
        id=document["cluster"],
        mode=document["mode"],
        state=document["state"],
        home=home,
        pops=pops,
        supervisor_pid=(document.get("supervisor") or {}).get("pid"),
        wan_config=Path(wan["config"]) if wan.get("config") else None,
    )


def find_docker(home: Home) -> Cluster | None:
    """The cluster of containers whose init job wrote into `home`, its states asked now; None when no PoP of it answers."""
    document = read_json(home.root / "docker" / "cluster.json")
    if document is None:
        return None
    cluster = from_document(home, document)
    with ThreadPoolExecutor(max_workers=len(cluster.pops)) as pool:
        asked = list(pool.map(_ask_state, cluster.pops.values()))
    if all(access.state in ("stopped", "foreign") for access in asked):
        return None
    states = {access.state for access in asked}
    state = next(state for state in ("stopped", "foreign", "degraded", "ready") if state in states)
    return replace(
        cluster, state="ready" if state == "ready" else "degraded", pops={access.id: access for access in asked}
    )


def _ask_state(access: PopAccess) -> PopAccess:
    """The PoP with its state as its API tells it now; "foreign" when what answers there is not this PoP."""
    try:
        headers = {"Authorization": f"Bearer {access.token}"}
        with httpx.Client(base_url=access.api_url, timeout=ASK_S, trust_env=False) as client:
            if client.get("/v1/pops", headers=headers).status_code in (401, 403):
                return replace(access, state="foreign", reason=f"another cluster answers at {access.api_url}")
            answer = client.get("/readyz")
    except (httpx.HTTPError, OSError) as error:
        return replace(access, state="stopped", reason=f"the API at {access.api_url} does not answer: {error}")
    if answer.status_code == 200:
        return replace(access, state="ready", reason="")
    return replace(access, state="degraded", reason=answer.text[:300])


def _access(home: Home, pop: str, entry: Mapping[str, Any]) -> PopAccess:
    api, mqtt = entry["api"], entry["mqtt"]
    return PopAccess(
        id=pop,
        state=entry["state"],
        api_url=api["url"],
        api_token_file=home.root / api["token_file"],
        mqtt_host=mqtt["host"],
        mqtt_port=int(mqtt["port"]),
        mqtt_ws_url=mqtt["ws_url"],
        mqtt_username=mqtt["username"],
        mqtt_password_file=home.root / mqtt["password_file"],
        reason=entry.get("reason") or "",
        processes=entry.get("processes") or {},
    )
