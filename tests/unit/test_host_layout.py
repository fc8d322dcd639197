import stat

import pytest

from edgeflow.host import layout
from edgeflow.host.errors import BadClusterSpec


def test_plan_is_the_same_at_the_next_start(tmp_path):
    home = layout.Home(tmp_path / "home")
    first, _ = layout.plan(home, ("b", "a"), any_ports=True)
    second, moved = layout.plan(home, None, any_ports=True)
    assert second == first
    assert moved == []
    first.run_root.rmdir()


def test_run_folder_is_short_and_private(tmp_path):
    identity, _ = layout.plan(layout.Home(tmp_path / ("x" * 60)), ("a" * 32,), any_ports=True)
    longest = identity.run_dir("a" * 32) / "i" / ("x" * 40) / "s"
    assert len(str(longest)) <= 107
    assert stat.S_IMODE(identity.run_root.stat().st_mode) == 0o700
    identity.run_root.rmdir()


def test_run_folder_that_is_not_a_folder_is_not_used(tmp_path):
    home = layout.Home(tmp_path / "home")
    first, _ = layout.plan(home, ("a",), any_ports=True)
    first.run_root.rmdir()
    first.run_root.symlink_to(tmp_path)
    second, _ = layout.plan(home, ("a",), any_ports=True)
    assert second.run_root != first.run_root
    first.run_root.unlink()
    second.run_root.rmdir()


@pytest.mark.parametrize(
    "pops", [(), ("a", "a"), ("A",), ("a_b",), ("-a",), ("a-",), ("x" * 33,), ("",), ("a/b",), ("..",)]
)
def test_bad_pops_are_refused(pops):
    with pytest.raises(BadClusterSpec):
        layout.check_pops(pops)


def test_of_a_pair_the_smaller_id_comes_first():
    assert layout.pairs(("ny", "chicago", "la")) == [("chicago", "la"), ("chicago", "ny"), ("la", "ny")]


def test_the_address_of_the_machine_stays_until_another_is_said(tmp_path):
    home = layout.Home(tmp_path / "home")
    first, _ = layout.plan(home, ("a",), any_ports=True, host="la.example.org")
    again, _ = layout.plan(home, None)
    assert (first.host, again.host, layout.Identity.load(home)) == ("la.example.org", "la.example.org", again)
    back, _ = layout.plan(home, None, host="127.0.0.1")
    assert back.host == "", "loopback is where nobody else is"
    first.run_root.rmdir()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "http://la", "la:7101", "2001:db8::1", "a b", "-la", "x" * 300, "la/"])
def test_what_others_cannot_dial_is_no_address(tmp_path, host):
    with pytest.raises(BadClusterSpec):
        layout.check_host(host)
