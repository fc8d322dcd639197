"""How a process ended, in words, wherever it is told."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from edgeflow.core.endings import how_ended
from edgeflow.host.children import describe_exit
from edgeflow.runner.docker import DockerDriver
from edgeflow.sdk.adapters.program import in_words

UNNAMED = 40
"""A real-time signal: a process may end by it, and it has no name."""


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (0, ("exited with status 0", "exit status 0", "with status 0")),
        (3, ("exited with status 3", "exit status 3", "with status 3")),
        (-signal.SIGKILL, ("was ended by SIGKILL", "killed by SIGKILL", "by SIGKILL")),
        (-UNNAMED, (f"was ended by signal {UNNAMED}", f"killed by signal {UNNAMED}", f"by signal {UNNAMED}")),
    ],
)
def test_a_status_in_words(status: int, told: tuple[str, str, str]) -> None:
    assert (how_ended(status), describe_exit(status), in_words(status)) == told


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"ExitCode": 3}, "exited with status 3"),
        ({"ExitCode": 128 + signal.SIGTERM}, "was ended by SIGTERM"),
        ({"ExitCode": 128 + UNNAMED}, f"exited with status {128 + UNNAMED}"),
        ({"ExitCode": 255}, "exited with status 255"),
        ({"ExitCode": 137, "OOMKilled": True}, "ran out of memory (raise `limits: {memory: ...}`)"),
    ],
)
def test_a_container_in_words(state: dict[str, Any], told: str) -> None:
    api = SimpleNamespace(inspect_container=lambda id: {"State": state})
    driver = SimpleNamespace(_client=SimpleNamespace(api=api))
    assert DockerDriver._how(driver, "c") == told  # type: ignore[arg-type]
