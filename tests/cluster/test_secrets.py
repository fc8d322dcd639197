"""A secret that is set at one PoP reaches a function at another one, as a file, and a change of it does too; limits of what an invocation publishes."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster

pytestmark = [pytest.mark.timeout(240)]
MANIFEST = """
namespace: shop
functions:
  ask: {build: ./ask, subscribe: questions, publish: answers, secrets: [token], place: {pops: [la]}, limits: {outputs: 2, output_bytes: 64Ki}}
"""
HANDLER = """
import hashlib
import os
from pathlib import Path

from edgeflow import function


@function
def handle(ctx, questions):
    if questions.data == b"many":
        for _ in range(3):
            ctx.emit("answers", b"x")
    elif questions.data == b"large":
        ctx.emit("answers", b"x" * 70_000)
    else:
        ctx.emit("answers", hashlib.sha256(Path(os.environ["EDGEFLOW_SECRETS"], "token").read_bytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def cluster(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "ask").mkdir()
    (folder / "ask" / "handler.py").write_text(HANDLER)
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    with LocalCluster(("chicago", "la")) as cluster:
        with operator(cluster, "chicago") as chicago:
            chicago.set_secret("shop", "token", b"hunter2")
        access = cluster.pop("chicago")
        apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120)
        yield cluster


def operator(cluster: LocalCluster, pop: str) -> Operator:
    access = cluster.pop(pop)
    return Operator(access.api_url, access.token, retry_s=30.0)


def asked(client: Operator) -> bytes:
    (answer,) = client.invoke("shop/ask", b"?")
    return bytes(answer.data)


def digest(value: bytes) -> bytes:
    return hashlib.sha256(value).hexdigest().encode()


def test_a_secret_arrives_and_its_change_too(cluster: LocalCluster, wait_until: Callable[..., Any]) -> None:
    with operator(cluster, "chicago") as chicago, operator(cluster, "la") as la:
        assert asked(la) == digest(b"hunter2")
        assert [(one["name"], one["used_by"]) for one in la.secrets("shop")] == [("token", ["ask"])]
        (before,) = la.function("shop", "ask")["instances"]
        chicago.set_secret("shop", "token", b"correct horse")
        wait_until(lambda: asked(la) == digest(b"correct horse"), "the new secret is used", deadline_s=30)
        view = la.function("shop", "ask")
        assert before["instance"] not in [one["instance"] for one in view["instances"] if one["state"] == "ready"]
        assert view["revision"] == before["revision"]


def test_a_secret_is_nowhere_in_plain(cluster: LocalCluster, wait_until: Callable[..., Any]) -> None:
    value = b"a-needle-in-the-home-8f3a"
    with operator(cluster, "la") as la:
        la.set_secret("shop", "token", value)
        wait_until(lambda: asked(la) == digest(value), "the new secret is used", deadline_s=30)
        sealed = la.ekv.get("system/secrets/shop/token")
        assert sealed is not None and value not in sealed.data
    found = [path for path in cluster.home.root.rglob("*") if path.is_file() and value in path.read_bytes()]
    assert found == [], "neither in Redis' files, nor in logs, nor in settings"
    assert {path.stat().st_mode & 0o777 for path in cluster.home.root.rglob("secrets.key")} == {0o600}


def test_an_invocation_that_publishes_more_than_it_may_is_a_dead_letter(
    cluster: LocalCluster, wait_until: Callable[..., Any]
) -> None:
    with operator(cluster, "la") as la:

        def letter(said: str) -> dict[str, Any] | None:
            return next((one for one in la.dead_letters("shop") if said in one["detail"]), None)

        for data, said in ((b"many", "3 events"), (b"large", "70000 bytes")):
            la.publish("shop/questions", data, id=f"wrong-{data.decode()}")
            found = wait_until(lambda said=said: letter(said), f"a dead letter that says {said}", deadline_s=30)
            assert found["reason"] == "output-limit" and "limits:" in found["detail"]
        failure = wait_until(
            lambda: (la.function("shop", "ask")["stats"] or {}).get("last_failure"), "it is shown", deadline_s=10
        )
        assert failure["reason"] == "output-limit" and "70000 bytes" in failure["detail"]


def test_a_namespace_has_its_own_secrets(cluster: LocalCluster) -> None:
    with operator(cluster, "la") as la:
        assert la.secrets("other") == []
        assert Path(cluster.home.root / "ca" / "secrets.key").is_file()
