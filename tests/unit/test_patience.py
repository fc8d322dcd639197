"""How long readers of events wait for a body that was damaged."""

from typing import Any

import pytest

from edgeflow.api.streams import FrameEncoder
from edgeflow.core.events import Event, make_event
from edgeflow.errors import BodyMissing, CorruptBlob, EdgeflowError, NotFound, StoreUnavailable, Unavailable
from edgeflow.store.patience import MOST, PATIENCE_S, Patience
from edgeflow.store.records import Released


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_waits_from_the_first_time_on_and_not_for_ever() -> None:
    clock = Clock()
    patience = Patience(clock=clock)
    assert patience.waits("one")
    clock.now_s += PATIENCE_S - 1
    assert patience.waits("one") and patience.waits("two")
    clock.now_s += 2
    assert not patience.waits("one")
    assert patience.waits("two")


def test_what_it_remembers_is_bounded() -> None:
    patience = Patience()
    for n in range(3 * MOST):
        patience.waits(n)
    assert len(patience._since) == MOST


class Space:
    """A namespace whose data cannot be read."""

    name = "ns"

    def __init__(self, error: EdgeflowError) -> None:
        self.error = error

    def data_of(self, event: Event) -> bytes:
        raise self.error


def frame(encoder: FrameEncoder, error: EdgeflowError) -> bytes:
    event = make_event("ns/c", b"x" * 10, id="1", source="test", now_ms=1)
    space: Any = Space(error)
    return encoder.event(space, Released(1, event, None, "http", 0))


@pytest.mark.parametrize("error", [CorruptBlob(), BodyMissing()])
def test_a_stream_waits_for_damaged_data_and_then_says_that_it_is_missing(error: EdgeflowError) -> None:
    clock = Clock()
    encoder = FrameEncoder("http://x")
    encoder._patience = Patience(clock=clock)
    with pytest.raises(Unavailable):
        frame(encoder, error)
    clock.now_s += PATIENCE_S + 1
    assert frame(encoder, error).startswith(b"event: gap\n")


def test_a_stream_waits_for_its_store_for_ever_and_for_what_is_gone_not_at_all() -> None:
    clock = Clock()
    encoder = FrameEncoder("http://x")
    encoder._patience = Patience(clock=clock)
    for _ in range(3):
        clock.now_s += PATIENCE_S
        with pytest.raises(Unavailable):
            frame(encoder, StoreUnavailable())
    assert frame(encoder, NotFound()).startswith(b"event: gap\n")
