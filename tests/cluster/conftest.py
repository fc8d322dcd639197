"""One three-PoP cluster with the real application for all tests of this folder that hurt or watch it; one PoP for modules that need no more."""

import contextlib
from collections.abc import Iterator

import pytest
from video import FRAMES, POPS, ROOT, Video, make_clip

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.local import LocalCluster

_running = contextlib.ExitStack()


@pytest.fixture(scope="session")
def video(programs: None) -> Video:
    from edgeflow.demo import faces, person

    cluster = _running.enter_context(LocalCluster(POPS))
    access = cluster.pop("chicago")
    apply_file(ROOT / "functions" / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=300)
    running = Video(cluster, make_clip(FRAMES))
    _running.callback(running.close)
    running.client("ny").put("vision/models/person-of-interest", person.make_model(faces.portrait(0)))
    running.client("ny").put("vision/models/replacement-face", person.replacement_face(), content_type="image/jpeg")
    return running


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    """One PoP, for the tests of a module."""
    with LocalCluster(["la"]) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Operator]:
    access = cluster.pop("la")
    with Operator(access.api_url, access.token) as one:
        yield one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that use the cluster come one after the other, so that it can end before the rest."""
    users = [item for item in items if _uses_video(item)]
    if users:
        first = items.index(users[0])
        items[first:] = users + [item for item in items[first:] if not _uses_video(item)]


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the cluster with the last test that uses it, so that it takes nothing from the tests behind it."""
    if nextitem is None or not _uses_video(nextitem):
        _running.close()


def _uses_video(item: pytest.Item) -> bool:
    return "video" in getattr(item, "fixturenames", ())
