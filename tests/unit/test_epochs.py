"""Epochs: never one that was in use, whatever of Redis, the file and the clock was lost."""

import shutil
from pathlib import Path

import pytest

from edgeflow.store.epochs import EpochFile


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.5

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_epoch_is_the_time(tmp_path: Path, clock: Clock) -> None:
    assert EpochFile(tmp_path, clock).decide("ns", 0, 0) == 1_700_000_000


def test_a_store_that_kept_everything_goes_on(tmp_path: Path, clock: Clock) -> None:
    epoch = EpochFile(tmp_path, clock).decide("ns", 0, 0)
    clock.now_s += 100
    EpochFile(tmp_path, clock).record({"ns": (epoch, 5)})
    assert EpochFile(tmp_path, clock).decide("ns", epoch, 5) == epoch
    assert EpochFile(tmp_path, clock).decide("ns", epoch, 9) == epoch


def test_a_store_that_lost_its_tail_begins_anew(tmp_path: Path, clock: Clock) -> None:
    file = EpochFile(tmp_path, clock)
    epoch = file.decide("ns", 0, 0)
    file.record({"ns": (epoch, 5)})
    assert file.decide("ns", epoch, 4) == epoch + 1, "also within the same second"
    clock.now_s += 100
    assert file.decide("ns", 0, 0) == 1_700_000_100


def test_with_the_file_lost_too_the_time_tells_them_apart(tmp_path: Path, clock: Clock) -> None:
    epoch = EpochFile(tmp_path, clock).decide("ns", 0, 0)
    shutil.rmtree(tmp_path)
    clock.now_s += 1
    assert EpochFile(tmp_path, clock).decide("ns", 0, 0) > epoch


def test_a_clock_that_was_set_back_does_no_harm_while_the_file_is_there(tmp_path: Path, clock: Clock) -> None:
    file = EpochFile(tmp_path, clock)
    epoch = file.decide("ns", 0, 0)
    file.record({"ns": (epoch, 5)})
    clock.now_s -= 1_000_000
    assert file.decide("ns", epoch, 1) == epoch + 1
    file.record({"ns": (epoch + 500, 3)})  # a peer knows of a later one
    assert file.decide("ns", epoch + 1, 0) == epoch + 501


def test_with_the_file_lost_the_epoch_of_the_store_counts(tmp_path: Path, clock: Clock) -> None:
    assert EpochFile(tmp_path, clock).decide("ns", 1_600_000_000, 7) == 1_600_000_000


def test_a_restored_copy_of_everything_begins_anew(tmp_path: Path, clock: Clock) -> None:
    """The store and the file are of the same old moment: only the copy itself shows it."""
    file = EpochFile(tmp_path / "state", clock)
    epoch = file.decide("ns", 0, 0)
    file.record({"ns": (epoch, 5)})
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    file.record({"ns": (epoch, 9)})
    shutil.rmtree(tmp_path / "state")
    shutil.copytree(tmp_path / "backup", tmp_path / "state")
    after = EpochFile(tmp_path / "state", clock).decide("ns", epoch, 5)
    assert after == epoch + 1
    assert EpochFile(tmp_path / "state", clock).decide("ns", after, 0) == after, "once"


def test_a_machine_that_was_started_anew_begins_anew(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = EpochFile(tmp_path, clock).decide("ns", 0, 0)
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr("edgeflow.store.epochs._BOOT_ID", tmp_path / "boot")
    assert EpochFile(tmp_path, clock).decide("ns", epoch, 0) == epoch + 1
