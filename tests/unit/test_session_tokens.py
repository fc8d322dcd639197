"""Session tokens: they never claim less than what was seen, and always fit."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core.cursors import Vector, merged
from edgeflow.core.tokens import MAX_TOKEN_BYTES, Session, log_name, parse_session
from edgeflow.errors import BadSession

POPS = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=32)
LOGS = st.tuples(POPS, st.integers(1, 2**33))
VECTORS = st.dictionaries(LOGS, st.integers(0, 2**53), max_size=40)
NAMESPACES = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True)


@given(NAMESPACES, VECTORS)
def test_a_token_fits_and_claims_at_least_what_was_seen(namespace: str, vector: Vector) -> None:
    session = Session(namespace).with_vector(vector)
    text = session.text()
    assert len(text.encode()) <= MAX_TOKEN_BYTES
    back = parse_session(text, namespace)
    assert back.is_wide or dict(back.seen) == {name: seq for name, seq in session.seen.items() if seq > 0}


@given(VECTORS, VECTORS)
def test_only_a_pop_with_everything_that_was_seen_covers_it(seen: Vector, applied: Vector) -> None:
    session = parse_session(Session("ns").with_vector(seen).text(), "ns")
    has_all = all(applied.get(log, 0) >= seq for log, seq in seen.items())
    if session.missing(applied) == 0:
        assert has_all
    elif not session.is_wide:
        assert not has_all
    assert session.is_wide or session.missing(merged(seen, applied)) == 0


@given(VECTORS, VECTORS, VECTORS)
def test_merging_is_commutative_associative_and_idempotent(one: Vector, two: Vector, three: Vector) -> None:
    a, b, c = (Session("ns").with_vector(vector) for vector in (one, two, three))
    assert a.merged(b) == b.merged(a)
    assert a.merged(b).merged(c) == a.merged(b.merged(c))
    assert a.merged(a) == a


@given(VECTORS, VECTORS)
def test_what_is_pruned_is_covered_by_every_pop_that_passed_it(seen: Vector, passed: Vector) -> None:
    session = Session("ns").with_vector(seen)
    pruned = session.pruned(passed)
    # A member has applied at least what all have: whoever covers the pruned one covers the whole one.
    for applied in (passed, merged(passed, seen)):
        assert (pruned.missing(applied) == 0) == (session.missing(applied) == 0)
    assert len(pruned.text()) <= len(session.text()) or pruned.text() != session.text()


def test_a_token_with_more_logs_than_it_has_room_for_is_wide_and_no_pop_covers_it() -> None:
    vector = {(f"pop-{number}", 1_700_000_000): 2**40 for number in range(40)}
    session = parse_session(Session("vision").with_vector(vector).text(), "vision")
    assert session.is_wide
    assert session.missing(vector) == 1
    assert parse_session(session.with_vector({("la", 1): 3}).text(), "vision").is_wide


def test_eight_pops_with_busy_logs_fit_into_a_token_that_is_not_wide() -> None:
    vector = {(f"a-pop-with-a-long-name-{number}", 1_700_000_000): 2**34 for number in range(8)}
    assert not parse_session(Session("n" * 63).with_vector(vector).text(), "n" * 63).is_wide


def test_the_short_names_of_the_logs_of_a_cluster_differ() -> None:
    names = {
        log_name((f"pop{number}", epoch)) for number in range(100) for epoch in range(1_700_000_000, 1_700_000_100)
    }
    assert len(names) == 10_000


@pytest.mark.parametrize(
    "text",
    ["", "vision", "vision:", ":AQ", "vision:!!", "vision:A", "vision:/w", "Vision:AQ", "vision:AQAA", "vision:Aw", "vision:" + "A" * 300, "vision:AQAAAAE", "vision:AQAAAAGAgICAgICAgICAgIAB", "vision:ä"],
)  # fmt: skip
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadSession):
        parse_session(text, "vision")


def test_a_token_of_another_namespace_is_refused_by_name() -> None:
    token = Session("vision").with_vector({("la", 1): 3}).text()
    with pytest.raises(BadSession, match="'vision', not of 'audio'"):
        parse_session(token, "audio")
    with pytest.raises(BadSession, match="'audio', not of 'vision'"):
        Session("vision").merged(Session("audio"))


def test_a_session_that_has_seen_nothing_has_a_token_too() -> None:
    session = parse_session(Session("vision").text(), "vision")
    assert session == Session("vision")
    assert session.missing({}) == 0
