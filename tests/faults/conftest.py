"""Fault tests: run by scripts/test-faults, in a short form (EDGEFLOW_FAULTS=short) or the whole (EDGEFLOW_FAULTS=long).

They take minutes and both cores, so that without that variable they are skipped. What they measured is printed at the end of the run.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from world import World

FORM = os.environ.get("EDGEFLOW_FAULTS", "")
_figures: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a form nothing of this folder runs."""
    if FORM in ("short", "long"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="scripts/test-faults runs these"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures."""
    if _figures:
        terminalreporter.section("figures of the fault tests")
        for line in _figures:
            terminalreporter.write_line(line)


@pytest.fixture
def figure() -> Callable[[str], None]:
    """Notes one line for the end of the run, and prints it."""

    def note(line: str) -> None:
        _figures.append(line)
        print(line)

    return note


@pytest.fixture(scope="session")
def is_short() -> bool:
    """Whether the short form was asked for."""
    return FORM == "short"


@pytest.fixture(scope="module")
def world(programs: None) -> Iterator[World]:
    """A cluster with the application, for one module. A killed data process is back at once."""
    with World.running() as running:
        yield running
