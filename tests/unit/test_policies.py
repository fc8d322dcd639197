"""Policies: the longest prefix decides, a home never changes without a move, terms only rise, and bad rules are refused by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.policies import NONE, Home, Policies, Rule, load_policies, moved, parse_rules, revised
from edgeflow.errors import BadPolicy

POPS = ("chicago", "la", "ny")
PREFIXES = st.text("ab/", max_size=4).filter(lambda text: not text.startswith("/") and "//" not in text)
PLACES = st.sampled_from(["eager", "lazy"]) | st.sets(st.sampled_from(POPS), min_size=1).map(
    lambda pops: {"pin": sorted(pops)}
)
ITEMS = st.fixed_dictionaries({"prefix": PREFIXES}, optional={"place": PLACES, "home": st.sampled_from([*POPS, None])})
LISTS = st.lists(ITEMS.filter(lambda item: len(item) > 1), max_size=6, unique_by=lambda item: str(item["prefix"]))
KEYS = st.text("ab/", min_size=1, max_size=6)


@given(LISTS, KEYS)
def test_each_aspect_is_decided_by_the_longest_prefix_that_states_it(items: list[dict[str, Any]], key: str) -> None:
    policies = Policies(parse_rules(items, POPS))

    def said(name: str) -> Any:
        known = [item for item in items if name in item and key.startswith(item["prefix"])]
        return max(known, key=lambda item: len(item["prefix"])).get(name) if known else None

    place = said("place") or "eager"
    assert policies.place(key) == (frozenset(place["pin"]) if isinstance(place, dict) else place)
    home = policies.home(key)
    assert (home.pop if home else None) == said("home")


@given(LISTS)
def test_what_is_stored_is_read_back(items: list[dict[str, Any]]) -> None:
    policies = revised(NONE, parse_rules(items, POPS))
    assert load_policies(policies.dump()) == policies


@given(st.lists(LISTS, min_size=1, max_size=6), KEYS)
def test_a_key_never_goes_from_home_to_home_and_its_terms_only_rise(
    documents: list[list[dict[str, Any]]], key: str
) -> None:
    now = NONE
    seen: list[Home] = []
    for items in documents:
        before = now.home(key)
        try:
            now = revised(now, parse_rules(items, POPS))
        except BadPolicy:
            continue
        after = now.home(key)
        assert before is None or after is None or before.pop == after.pop
        assert now.term >= max((rule.term for rule in now.rules), default=0)
        if after is not None:
            # A home that was away and came back is in a later term than any other home had.
            assert all(after.term > home.term for home in seen if home.pop != after.pop)
            seen.append(after)


@given(LISTS)
def test_setting_the_same_again_changes_nothing(items: list[dict[str, Any]]) -> None:
    policies = revised(NONE, parse_rules(items, POPS))
    assert revised(policies, parse_rules(items, POPS)) == policies


def test_a_move_takes_one_prefix_to_another_home_in_a_later_term() -> None:
    policies = revised(NONE, parse_rules([{"prefix": "a/", "home": "la"}, {"prefix": "b/", "home": "la"}], POPS))
    other = moved(policies, "a/", "ny", policies.term + 1)
    assert other.home("a/x") == Home("a/", "ny", 3)
    assert other.home("b/x") == policies.home("b/x")
    with pytest.raises(BadPolicy, match="no rule gives the prefix 'c/' a home"):
        moved(policies, "c/", "ny", 9)


def test_a_rule_does_not_take_a_home_away() -> None:
    policies = revised(NONE, parse_rules([{"prefix": "a/", "home": "la"}], POPS))
    with pytest.raises(BadPolicy, match="the home of 'a/' is 'la'") as refused:
        revised(policies, parse_rules([{"prefix": "a/", "home": "ny"}], POPS))
    assert "kv policy move" in refused.value.hint
    with pytest.raises(BadPolicy, match="the home of 'a/b/' is 'la'"):
        revised(policies, parse_rules([{"prefix": "a/", "home": "la"}, {"prefix": "a/b/", "home": "ny"}], POPS))
    assert revised(policies, ()).home("a/x") is None
    assert revised(revised(policies, ()), parse_rules([{"prefix": "a/", "home": "ny"}], POPS)).home("a/x") == Home(
        "a/", "ny", 2
    )


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ("x", "`rules` is a list"),
        ([1], "a rule is an object"),
        ([{"place": "eager"}], "`prefix` is a text"),
        ([{"prefix": 5, "place": "eager"}], "`prefix` is a text"),
        ([{"prefix": "a//b", "place": "eager"}], "'a//b' is not the beginning of a key"),
        ([{"prefix": "a#", "place": "eager"}], "'a#' is not the beginning of a key"),
        ([{"prefix": "x" * 600, "place": "eager"}], "is not the beginning of a key"),
        ([{"prefix": "_state/", "place": "lazy"}], "belong to edgeflow"),
        ([{"prefix": "a"}], "says nothing"),
        ([{"prefix": "a", "plaice": "eager"}], "no field 'plaice'"),
        ([{"prefix": "a", "place": "sometimes"}], "none of eager, lazy"),
        ([{"prefix": "a", "place": {"pin": []}}], "none of eager, lazy"),
        ([{"prefix": "a", "place": {"pin": "la"}}], "none of eager, lazy"),
        ([{"prefix": "a", "place": {"pin": ["mars"]}}], "'mars', which is no PoP; there are chicago, la, ny"),
        ([{"prefix": "a", "home": "mars"}], "'mars', which is no PoP"),
        ([{"prefix": "a", "home": 7}], "which is no PoP"),
        ([{"prefix": "a", "home": "la", "term": "x"}], "the term of 'a' is not a number"),
        ([{"prefix": "a", "home": "la"}, {"prefix": "a", "place": "lazy"}], "has two rules"),
        ([{"prefix": f"a{n}", "place": "lazy"} for n in range(101)], "101 rules"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_by_name(items: Any, named: str) -> None:
    with pytest.raises(BadPolicy) as refused:
        parse_rules(items, POPS)
    assert named in refused.value.message


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"term": "x", "rules": []}', b'{"term": 1, "rules": [{}]}'])
def test_a_stored_document_that_cannot_be_read_says_so(data: bytes) -> None:
    with pytest.raises(BadPolicy):
        load_policies(data)


def test_a_rule_is_shown_as_it_was_set() -> None:
    assert Rule("a/", frozenset({"ny", "la"}), "", 4).to_json() == {
        "prefix": "a/",
        "place": {"pin": ["la", "ny"]},
        "home": None,
        "term": 4,
    }
