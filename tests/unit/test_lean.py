"""What the agent's processes keep out of memory."""

import subprocess
import sys

import pytest

LOOK = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(name for name in ("rich", "pygments", "numpy", "httpx", "typer") if name in sys.modules))
import rich.console, structlog.dev
"""


@pytest.mark.parametrize("root", ["edgeflow.pop", "edgeflow.api.__main__"])
def test_the_agent_loads_nothing_that_only_the_cli_uses(root: str) -> None:
    """And what it left out can be imported afterwards."""
    seen = subprocess.run([sys.executable, "-c", LOOK, root], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []
