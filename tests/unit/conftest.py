"""What several unit tests begin from: an agent for instances, a PoP for the reconciler."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_world import World
from sdk_agent import FakeAgent, InstanceThread, Peer, Start


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


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
