from edgeflow.host.children import Backoff, rotate_log


def test_first_restart_is_fast_and_later_ones_are_slower():
    backoff = Backoff()
    assert [backoff.ended(0.1) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_after_a_healthy_time_it_counts_from_the_start():
    backoff = Backoff()
    for _ in range(5):
        backoff.ended(0.1)
    assert backoff.failing
    assert backoff.ended(30.0) == 0.2
    assert not backoff.failing


def test_three_quick_ends_are_failing_slow_ones_are_not():
    quick, slow = Backoff(), Backoff()
    for _ in range(3):
        quick.ended(1.0)
        slow.ended(10.0)
    assert quick.failing
    assert not slow.failing


def test_ends_before_it_was_ready_are_failing_however_slow_the_machine():
    backoff = Backoff()
    for _ in range(3):
        backoff.ended(20.0, was_ready=False)
    assert backoff.failing


def test_a_long_crash_loop_does_not_overflow():
    backoff = Backoff(ends_in_row=100_000)
    assert backoff.ended(0.0) == 5.0


def test_log_is_cut_in_place(tmp_path):
    file = tmp_path / "x.log"
    with file.open("a") as writer:
        writer.write("a" * 100)
        writer.flush()
        rotate_log(file, limit_bytes=50)
        writer.write("b")
    assert file.read_text() == "b"
    assert (tmp_path / "x.log.1").read_text() == "a" * 100
    rotate_log(file, limit_bytes=50)
    assert file.read_text() == "b"
