"""The ranking of PoPs: the same everywhere, spread evenly, and one PoP's absence moves nothing but its own."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.ownership import owner, rank

POPS = st.lists(st.sampled_from(["la", "ny", "chicago", "paris", "tokyo"]), min_size=1, unique=True)
TOKENS = st.text(max_size=20)


@given(POPS, TOKENS, st.randoms())
def test_the_order_in_which_pops_are_named_does_not_matter(pops: list[str], token: str, chance: object) -> None:
    mixed = sorted(pops)
    assert rank("f", token, tuple(pops)) == rank("f", token, tuple(mixed))
    assert sorted(rank("f", token, tuple(pops))) == mixed


@given(POPS, TOKENS, st.sampled_from(["la", "ny", "elsewhere"]))
def test_whoever_has_it_already_is_first_and_the_others_keep_their_order(
    pops: list[str], token: str, first: str
) -> None:
    plain, ranked = rank("f", token, tuple(pops)), rank("f", token, tuple(pops), first)
    assert ranked[0] == first if first in pops else ranked == plain
    assert [pop for pop in ranked if pop != first] == [pop for pop in plain if pop != first]


@given(POPS, TOKENS, st.data())
def test_a_pop_that_goes_moves_only_what_was_its_own(pops: list[str], token: str, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(pops))
    ranked = rank("f", token, tuple(pops))
    before, after = owner(ranked, ()), owner(ranked, {gone})
    assert after == before or before == gone
    assert len(pops) == 1 or after != gone
    if len(pops) > 1:
        left = tuple(pop for pop in pops if pop != gone)
        assert after == rank("f", token, left)[0], "as if it had never been there"


@given(POPS, TOKENS)
def test_without_anybody_the_first_keeps_it(pops: list[str], token: str) -> None:
    ranked = rank("f", token, tuple(pops))
    assert owner(ranked, set(pops)) == ranked[0]


def test_keys_are_spread_and_functions_differ() -> None:
    pops = ("la", "ny", "chicago")
    counts = Counter(rank("f", f"k{number}", pops)[0] for number in range(3000))
    assert all(800 < count < 1200 for count in counts.values()) and len(counts) == 3
    assert any(rank("f", f"k{number}", pops) != rank("g", f"k{number}", pops) for number in range(10))
