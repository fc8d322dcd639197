"""The lab's scenarios, each on a cluster that all of them share, as `edgeflow lab run` runs them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ekv_world import seed_of_the_run

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.discover import PopAccess
from edgeflow.host.local import LocalCluster
from edgeflow.lab import clock
from edgeflow.lab.errors import NotPossibleHere
from edgeflow.lab.hands import Hands, hands_on
from edgeflow.lab.run import Run
from edgeflow.lab.scenario import Form, find, names

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200), pytest.mark.usefixtures("programs")]

POPS = ("la", "ny", "sf")
IN_SHORT = ("cold-boot-offline", "control-double", "partition", "pop-lost", "wrong-clock")
"""In the short form; a sweep and a schedule of their own kill and stop single processes already, `make lab` runs all."""


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Iterator[Hands]:
    commands = None
    try:
        commands = clock.commands(tmp_path_factory.mktemp("clock"))
    except NotPossibleHere:
        pytest.skip("no C compiler")
    with LocalCluster(POPS, commands=commands) as cluster:
        yield hands_on(cluster.find())


@pytest.mark.parametrize("name", names())
def test_scenario(hands: Hands, name: str, is_short: bool, figure: Callable[[str], None]) -> None:
    if is_short and name not in IN_SHORT:
        pytest.skip("in the long form")
    scenario = find(name)
    form: Form = "short" if is_short else "long"
    report = Run(scenario, hands, apply, seed=seed_of_the_run(), form=form, clocks=True, say=print).run()
    for line in report.lines():
        figure(line)
    assert report.ok, report.problems


def apply(file: Path, access: PopAccess) -> None:
    apply_file(file, Target(access.api_url, access.token), timeout_s=300)
