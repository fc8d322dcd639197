"""The network of function containers that may reach the outside (`network: egress`).

What it is: one bridge network for each PoP, made when it is first needed and removed with the PoP's containers.
What it is not: a firewall towards the outside. Whoever is on it reaches whatever the engine's machine reaches: the internet, the local network, and what
the machine itself offers on all its addresses. The bridge's name is fixed (`bridge`), so that an operator's own rules can name it.
What must stay true: containers on it do not reach each other, nor the broker, the store or the agent, which are on other networks or none; an engine that
cannot keep containers of one bridge apart is refused.
"""

import hashlib
from typing import Any

import docker
import docker.errors
import structlog

from edgeflow.runner.driver import CannotStart
from edgeflow.runner.images import EngineUnavailable

log = structlog.get_logger()

_ICC = "com.docker.network.bridge.enable_icc"
_NAME = "com.docker.network.bridge.name"


def name(cluster: str, pop: str) -> str:
    """The network of one PoP."""
    return f"edgeflow-{cluster}-{pop}-egress"


def bridge(cluster: str, pop: str) -> str:
    """Its interface on the engine's machine; at most 15 characters."""
    return "ef-" + hashlib.sha256(f"{cluster}/{pop}".encode()).hexdigest()[:10]


def ensure(client: docker.DockerClient, cluster: str, pop: str) -> None:
    """Make the network of a PoP unless it is there. Raises CannotStart, EngineUnavailable."""
    wanted = name(cluster, pop)
    try:
        for network in client.networks.list(names=[wanted]):
            if network.name == wanted:
                if (network.attrs.get("Options") or {}).get(_ICC) != "false":
                    raise CannotStart(
                        f"the network {wanted} is there and lets its containers reach each other",
                        hint=f"Remove it (`docker network rm {wanted}`): it is made again as it has to be.",
                    )
                return
        # Without this the engine takes the option below and does not act on it.
        if not client.info().get("BridgeNfIptables", False):
            raise CannotStart(
                "`network: egress` needs an engine that keeps the containers of a bridge apart, and this one cannot",
                hint="Load br_netfilter on its machine (`modprobe br_netfilter`) and restart the engine.",
            )
        client.networks.create(
            wanted, driver="bridge", check_duplicate=True, options={_ICC: "false", _NAME: bridge(cluster, pop)}, labels=_labels(cluster, pop)
        )  # fmt: skip
        log.info("egress_network_made", network=wanted, bridge=bridge(cluster, pop))
    except docker.errors.APIError as error:
        raise CannotStart(f"the engine does not make the network {wanted}: {error.explanation or error}") from error
    except (docker.errors.DockerException, OSError) as error:
        raise EngineUnavailable(f"the Docker engine is not reachable: {error}") from error


def remove(client: docker.DockerClient, cluster: str, pop: str | None = None) -> None:
    """Remove the networks of a cluster, or of one PoP of it. One that still has containers stays."""
    labels = [f"{key}={value}" for key, value in _labels(cluster, pop).items()]
    for network in client.networks.list(filters={"label": labels}):
        try:
            network.remove()
        except docker.errors.APIError as error:
            log.warning("egress_network_not_removed", network=network.name, reason=str(error.explanation or error))


def _labels(cluster: str, pop: str | None) -> dict[str, Any]:
    return {"edgeflow.cluster": cluster, **({"edgeflow.pop": pop} if pop else {})}
