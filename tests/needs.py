"""What a test does when an outside program is missing: skip with a word on a laptop, fail in CI."""

import os

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def missing(what: str, how: str) -> None:
    """End the running test: `what` is not here, `how` to get it."""
    message = f"{what} is missing here: {how}"
    if IN_CI:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
