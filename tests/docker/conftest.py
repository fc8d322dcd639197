"""Images built from the clone, for the tests of this folder."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built(engine: Any) -> Callable[[str], str]:
    """`built("store")` builds that target of deploy/Dockerfile (cached by the engine) and returns its tag."""
    tags: dict[str, str] = {}

    def build(target: str) -> str:
        if target not in tags:
            tag = f"edgeflow-test/{target}"
            arguments = [
                f"--build-arg={name}={os.environ[name]}"
                for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
                if os.environ.get(name)
            ]
            command = [
                "docker",
                "build",
                "-q",
                "-f",
                "deploy/Dockerfile",
                "--target",
                target,
                "-t",
                tag,
                *arguments,
                ".",
            ]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"target {target} does not build:\n{result.stderr[-2000:]}"
            tags[target] = tag
        return tags[target]

    return build
