"""A fourth PoP joins a running cluster of three under load, takes part, and leaves again; nobody is restarted."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from edgeflow.errors import TokenUsed
from edgeflow.host import departing, joining
from edgeflow.host.discover import Cluster, PopAccess, find
from edgeflow.host.layout import Home
from edgeflow.testing import LocalCluster

DEADLINE_S = 90.0
NAMESPACE = "join"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as made:
        yield made


@contextlib.contextmanager
def api(access: PopAccess) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {access.token}"}
    with httpx.Client(base_url=access.api_url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


def ask(access: PopAccess, path: str) -> Any:
    with api(access) as client:
        return client.get(path).raise_for_status().json()


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.1)
    return found


def seen(access: PopAccess) -> dict[str, str]:
    return {view["id"]: view["member"]["state"] for view in ask(access, "/v1/pops")["items"]}


def content(access: PopAccess) -> str:
    return str(ask(access, f"/v1/standing/{NAMESPACE}?hash=true")["hash"])


class Load:
    """Values that one PoP takes, one after the other, until it is stopped."""

    def __init__(self, access: PopAccess) -> None:
        self._access = access
        self._stop = threading.Event()
        self.acked: list[str] = []
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        until(lambda: len(self.acked) > 20, "the load runs")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        with api(self._access) as client:
            while not self._stop.wait(0.01):
                key = f"k/{len(self.acked) + len(self.failed):06d}"
                answer = client.put(f"/v1/ekv/{NAMESPACE}/{key}", content=key.encode() * 50)
                (self.acked if answer.is_success else self.failed).append(key)


def pids(cluster: LocalCluster) -> dict[tuple[str, str], int | None]:
    names: tuple[Any, ...] = ("redis", "broker", "data", "control")
    return {(pop, name): cluster.pid(pop, name) for pop in cluster.pops for name in names}


def test_a_pop_joins_under_load_and_leaves(cluster: LocalCluster) -> None:
    everyone = [cluster.pop(pop) for pop in cluster.pops]
    first = everyone[0]
    until(lambda: all(set(seen(one).values()) == {"up"} for one in everyone), "all see all as up")
    before = pids(cluster)
    with api(first) as client:
        token = client.post("/v1/pops/tokens", json={"pop": "dallas"}).raise_for_status().json()["token"]
    with Load(first) as load:
        joined = joining.join(token, home=cluster.home.root, any_ports=True, timeout_s=DEADLINE_S)
        dallas = joined.pop("dallas")
        assert seen(dallas)["dallas"] == "up"
        until(lambda: all(seen(one).get("dallas") == "up" for one in everyone), "all see the new one as up")
        until(lambda: len(seen(dallas)) == 4 and set(seen(dallas).values()) == {"up"}, "and it sees all of them")
        with api(dallas) as client:
            key = f"/v1/ekv/{NAMESPACE}/from-dallas"
            until(lambda: client.put(f"{key}?durability=replicated:3", content=b"hello").is_success, "all have it")
    assert not load.failed and len(load.acked) > 20
    until(lambda: len({content(one) for one in (*everyone, dallas)}) == 1, "all four hold the same")
    assert ask(dallas, f"/v1/ekv/{NAMESPACE}?prefix=k/&limit=1")["items"], "with what was there before it came"
    found: Cluster = find(cluster.home.root)
    assert set(found.pops) == {*cluster.pops, "dallas"}

    with Load(first) as load:
        departing.leave(found, "dallas", timeout_s=DEADLINE_S)
        until(lambda: all("dallas" not in seen(one) for one in everyone), "nobody counts it any more")
    assert not load.failed
    assert not Home(cluster.home.root).joined("dallas").root.exists()
    for one in everyone:
        assert ask(one, "/v1/pops/dallas")["member"]["state"] == "left"
        assert ask(one, f"/v1/ekv/{NAMESPACE}?prefix=from-dallas")["items"], "what it wrote stays"
    head = ask(first, f"/v1/standing/{NAMESPACE}")["heads"]
    own = max(position for position in map(tuple, head) if position[0] == first.id)
    until(lambda: own in map(tuple, ask(first, f"/v1/standing/{NAMESPACE}")["passed"]), "floors move on without it")
    assert pids(cluster) == before, "nobody was restarted"

    with pytest.raises(TokenUsed):
        joining.join(token, home=cluster.home.root, any_ports=True)


def test_a_pop_that_stands_still_is_seen_so_by_all(cluster: LocalCluster) -> None:
    import os
    import signal

    everyone = {pop: cluster.pop(pop) for pop in cluster.pops}
    until(lambda: all(set(seen(one).values()) == {"up"} for one in everyone.values()), "all see all as up")
    still = "la"
    pid = cluster.pid(still, "data")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        others = [access for pop, access in everyone.items() if pop != still]
        until(lambda: all(seen(one)[still] == "down" for one in others), "the others see it as down")
    finally:
        os.kill(pid, signal.SIGCONT)
    until(
        lambda: all(set(seen(one).values()) == {"up"} for one in everyone.values()),
        "and up again, and it blames nobody",
    )


@pytest.mark.faults
def test_a_pop_behind_a_cut_link_is_heard_through_a_third(cluster: LocalCluster) -> None:
    chicago, ny = cluster.pop("chicago"), cluster.pop("ny")
    until(lambda: seen(chicago)["ny"] == "up" == seen(ny)["chicago"], "they see each other")
    cluster.set_link("chicago", "ny", cut=True)
    try:
        until(
            lambda: {view["id"]: view for view in ask(chicago, "/v1/pops")["items"]}["ny"]["link"]["state"] == "down",
            "the link is down",
        )
        assert seen(chicago)["ny"] == "up" and seen(ny)["chicago"] == "up"
    finally:
        cluster.set_link("chicago", "ny", cut=False)
