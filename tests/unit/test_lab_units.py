"""What people write for delays, bandwidths and targets, and what the lab's hands make of it."""

from itertools import combinations
from pathlib import Path

import pytest

from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.errors import NoSuchPop
from edgeflow.host.layout import Home
from edgeflow.host.linkfile import Link
from edgeflow.lab import units
from edgeflow.lab.compose import ComposeHands
from edgeflow.lab.errors import BadTrouble, NotALab, NotPossibleHere
from edgeflow.lab.hands import PARTS, Hands, Split, Target, hands_on, overall


@pytest.mark.parametrize(("text", "wanted"), [("20ms", 20), ("1.5s", 1500), ("0", 0), ("none", 0), ("0.5ms", 0.5)])
def test_delays(text: str, wanted: float) -> None:
    assert units.delay_ms(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("50Mbit", 50_000), ("800kbit/s", 800), ("1.5Gbit", 1_500_000), ("0", 0), ("none", 0)]
)
def test_bandwidths(text: str, wanted: float) -> None:
    assert units.kbit_s(text) == wanted


@pytest.mark.parametrize("text", ["20", "ms", "-5ms", "20 ms", "1h", "", "nanms"])
def test_what_is_no_delay_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadTrouble) as refused:
        units.delay_ms(text)
    assert "20ms" in refused.value.hint


@pytest.mark.parametrize("text", ["50", "50MB", "0Mbit", "-1Mbit", "50 Mbit", ""])
def test_what_is_no_bandwidth_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadTrouble) as refused:
        units.kbit_s(text)
    assert "50Mbit" in refused.value.hint


class Noted(Hands):
    """Hands that note what they are told to do."""

    def __init__(self, *pops: str, links: tuple[Link, ...] = ()) -> None:
        super().__init__(cluster_of(*pops))
        self.done: list[tuple[object, ...]] = []
        self._links = list(links)

    def links(self) -> tuple[list[Link], dict[tuple[str, str], int]]:
        return self._links, {}

    def change(
        self, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None, kbit_s: float | None = None,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        self.done.append((a, b, delay_ms, cut, kbit_s, one_way))

    def kill(self, target: Target, *, stay_down: bool = False) -> None:
        raise NotImplementedError

    restart = pause = resume = parts = kill  # type: ignore[assignment]


def all_links(*pops: str) -> tuple[Link, ...]:
    return tuple(Link(a, b, "h", 1, "h", 2) for a, b in combinations(pops, 2))


def cluster_of(*pops: str, mode: str = "embedded", host: str = "127.0.0.1") -> Cluster:
    found = {
        pop: PopAccess(pop, "ready", f"http://{host}:{8101 + n}", Path("token"), host, 1891, "", "operator", Path("pw"))
        for n, pop in enumerate(pops)
    }
    return Cluster("c-1", mode, "ready", Home(Path("/nowhere")), found)


def test_a_partition_of_one_pop_cuts_it_off_from_all_others() -> None:
    hands = Noted("chicago", "la", "ny", links=all_links("chicago", "la", "ny"))
    hands.partition(hands.split("la", one_way=True))
    assert hands.done == [("la", "chicago", None, True, None, True), ("la", "ny", None, True, None, True)]
    assert hands.split("ny,la", one_way=False) == Split("ny", ("la",))


def test_a_pop_whose_links_are_out_of_reach_is_not_called_cut_off() -> None:
    hands = Noted("chicago", "dallas", "la", links=all_links("chicago", "la"))
    with pytest.raises(NotPossibleHere, match="la and dallas do not go through"):
        hands.split("la", one_way=False)
    assert hands.split("la,chicago", one_way=False).others == ("chicago",)


def test_heal_ends_cuts_of_one_direction_too_and_leaves_delays() -> None:
    whole = Link("a", "b", "h", 1, "h", 2, delay_ms=30)
    from_b = Link("a", "c", "h", 3, "h", 4)
    from_b = from_b.with_lines(from_b.line("a"), Link("", "", "", 0, "", 0, cut=True).line(""))
    hands = Noted("a", "b", "c", links=(whole, from_b))
    hands.heal()
    assert hands.done == [("a", "c", None, False, None, False)]
    hands.done.clear()
    hands.heal(all=True)
    assert hands.done == [("a", "b", 0, False, 0, False), ("a", "c", 0, False, 0, False)]


def test_targets_are_pops_or_parts_of_them() -> None:
    hands = Noted("la", "ny")
    assert hands.target("la") == Target("la") and hands.target("la").parts == PARTS
    assert hands.target("ny/store") == Target("ny", "redis")
    for text, error in (("paris", NoSuchPop), ("la/disk", BadTrouble), ("la/", BadTrouble)):
        with pytest.raises(error):
            hands.target(text)
    for text, error in (("la", BadTrouble), ("la,la", BadTrouble), ("la,ny,x", BadTrouble), ("la,paris", NoSuchPop)):
        with pytest.raises(error):
            hands.pair(text)
    with pytest.raises(BadTrouble):
        Noted("la").split("la", one_way=False)


def test_a_cluster_that_is_not_on_this_machine_is_left_alone_unless_somebody_insists() -> None:
    far = cluster_of("la", mode="docker", host="10.0.0.7")
    with pytest.raises(NotALab, match=r"10\.0\.0\.7"):
        hands_on(far)
    assert isinstance(hands_on(far, anyway=True), ComposeHands)
    assert isinstance(hands_on(cluster_of("la", mode="docker")), ComposeHands)


def test_one_word_for_a_pop() -> None:
    runs = dict.fromkeys(PARTS, "runs")
    assert overall(runs) == "runs"  # type: ignore[arg-type]
    assert overall({**runs, "instances": "down"}) == "runs"  # type: ignore[dict-item]
    assert overall({**runs, "data": "paused", "redis": "down"}) == "partly down and paused"  # type: ignore[dict-item]
