"""One scenario on a real cluster: a process is killed in the middle of work whose functions lose some of it on purpose, and exactly that is found."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.apply import Target, apply_file
from edgeflow.host.discover import PopAccess
from edgeflow.host.local import LocalCluster
from edgeflow.lab.errors import BadTrouble, NotPossibleHere
from edgeflow.lab.hands import Hands, hands_on
from edgeflow.lab.judge import ONE_RESULT
from edgeflow.lab.run import Run
from edgeflow.lab.scenario import find, parse
from edgeflow.sdk.client import Client

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("programs")]

SCENARIO = """
what: The data process of one PoP is killed, and one input in twenty is lost by the functions.
place: [a]
load: {events: 50}
sabotage: lose
steps:
  - {after_events: 20, kill: a/data}
  - {after_events: 5, wait_ready: a, wan: {between: "a,b", delay: 5ms}}
"""


@pytest.fixture(scope="module")
def hands(programs: None) -> Iterator[Hands]:
    with LocalCluster(("la", "ny")) as cluster:
        yield hands_on(cluster.find())


def apply(file: Path, access: PopAccess) -> None:
    apply_file(file, Target(access.api_url, access.token), timeout_s=300)


def test_what_was_lost_on_purpose_is_found_and_nothing_else_and_all_is_left_as_it_was(
    hands: Hands, wait_until: Callable[..., Any]
) -> None:
    links = hands.links()[0]
    run = Run(parse("mine", SCENARIO), hands, apply, seed=5)
    report = run.run()
    assert report.ok, report.problems
    assert report.acked >= 50 and report.doubled == 0
    assert report.lost == (report.acked - 1) // 20 + 1, "inputs are numbered from 0"
    assert {name for name, found in report.problems.items() if found} == {ONE_RESULT}
    assert report.link_bytes > 0 and report.placed == [report.pops["a"]]
    assert hands.links()[0] == links
    access = hands.cluster.pop()
    with Client(access.api_url, access.token) as client:
        # It was taken away at one PoP, perhaps the other one.
        wait_until(lambda: client.functions(run.namespace) == [], "its functions are gone")


def test_a_cluster_that_is_hurt_already_and_one_without_clocks_are_refused(hands: Hands) -> None:
    with pytest.raises(NotPossibleHere, match="clocks"):
        Run(find("wrong-clock"), hands, apply, seed=1)
    hands.partition(hands.split("la", one_way=True))
    try:
        with pytest.raises(BadTrouble, match="cut off"):
            Run(find("pop-killed"), hands, apply, seed=1).run()
    finally:
        hands.heal()
