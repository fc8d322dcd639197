"""Whom a missing blob is asked of, and when again."""

from edgeflow.cluster.wants import RETRY_S, STALL_S, Wants


def test_one_peer_at_a_time() -> None:
    wants = Wants()
    wants.missing("ns", ["x", "y"], 0.0)
    assert wants.take("a", 0.0) == {"ns": ["x", "y"]}
    assert wants.take("b", 0.0) == {}
    wants.failed(("ns", "x"), "a", 1.0)
    assert wants.take("a", 1.0) == {}
    assert wants.take("b", 1.0) == {"ns": ["x"]}


def test_what_is_announced_is_not_asked_for() -> None:
    wants = Wants()
    wants.coming("ns", ["x"], "a", 0.0)
    wants.missing("ns", ["x"], 0.0)
    assert wants.take("a", 0.0) == wants.take("b", 0.0) == {}
    wants.peer_lost("a", 1.0)
    assert wants.take("b", 1.0) == {"ns": ["x"]}


def test_a_stalled_transfer_is_asked_of_another() -> None:
    wants = Wants()
    wants.coming("ns", ["x"], "a", 0.0)
    wants.progress(("ns", "x"), STALL_S)
    wants.tick(STALL_S + 1)
    assert wants.take("b", STALL_S + 1) == {}
    wants.tick(2 * STALL_S + 1)
    assert wants.take("a", 2 * STALL_S + 1) == {}
    assert wants.take("b", 2 * STALL_S + 1) == {"ns": ["x"]}


def test_what_nobody_has_is_asked_for_again_after_a_while() -> None:
    wants = Wants()
    wants.missing("ns", ["x"], 0.0)
    for peer in ("a", "b"):
        assert wants.take(peer, 0.0)
        wants.failed(("ns", "x"), peer, 0.0)
    wants.tick(RETRY_S / 2)
    assert not wants.take("a", RETRY_S / 2)
    wants.tick(RETRY_S + 1)
    assert wants.take("a", RETRY_S + 1) == {"ns": ["x"]}


def test_the_store_has_the_last_word() -> None:
    wants = Wants()
    wants.missing("ns", ["x", "y"], 0.0)
    wants.missing("other", ["z"], 0.0)
    wants.settle("ns", ["y", "w"], 0.0)
    assert wants.take("a", 0.0) == {"ns": ["y", "w"], "other": ["z"]}


def test_what_is_too_large_is_never_asked_for() -> None:
    wants = Wants()
    wants.missing("ns", ["x"], 0.0)
    assert wants.take("a", 0.0)
    wants.give_up(("ns", "x"), 0.0)
    wants.peer_lost("a", 0.0)
    wants.settle("ns", ["x"], 0.0)
    wants.tick(100.0)
    assert wants.take("a", 100.0) == {}
    assert len(wants) == 0


def test_what_arrived_is_forgotten() -> None:
    wants = Wants()
    wants.missing("ns", ["x"], 0.0)
    wants.arrived(("ns", "x"))
    assert wants.take("a", 0.0) == {}
