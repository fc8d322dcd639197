"""What several unit tests begin from: an agent for instances, a served API, a PoP for the reconciler."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fakes import FakeStore, empty_store, make_api, served
from runner_world import World
from sdk_agent import FakeAgent, InstanceThread, Peer, Start

from edgeflow.api.context import Api


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:  # pytest's own folders are too long for a socket's path
        made = FakeAgent(Path(folder))
        yield made
        made.close()


@pytest.fixture
def start(agent: FakeAgent) -> Iterator[Start]:
    threads: list[InstanceThread] = []

    def begin(handle: Callable[..., Any], **overrides: Any) -> tuple[Peer, InstanceThread]:
        thread = InstanceThread(agent.path, handle)
        threads.append(thread)
        peer = agent.accept()
        peer.welcome(**overrides)
        return peer, thread

    yield begin
    for thread in threads:
        thread.stop.request()
    agent.close()


@pytest.fixture(scope="module")
def served_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, str]]:
    """An API whose events have 1000 bytes at most, and its URL, for the tests of a module."""
    api = make_api(tmp_path_factory.mktemp("api"), event_bytes=1000)
    with served(api) as url:
        yield api, url


@pytest.fixture
def store(served_api: tuple[Api, str]) -> FakeStore:
    return empty_store(served_api[0])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
