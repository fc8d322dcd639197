import os
import stat

import pytest

from edgeflow.host import files


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_secret_is_made_once_and_private(tmp_path):
    file = tmp_path / "secret"
    first = files.ensure_secret(file)
    assert len(first) >= 43  # 256 bits as URL-safe text
    assert mode_of(file) == 0o600
    assert file.read_text() == first
    assert files.ensure_secret(file) == first


def test_secret_that_others_can_read_is_closed_again(tmp_path):
    file = tmp_path / "secret"
    file.write_text("known\n")
    file.chmod(0o644)
    assert files.ensure_secret(file) == "known"
    assert mode_of(file) == 0o600


def test_write_replaces_in_one_step_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        files.write_file(tmp_path / "file", "one")
        files.write_file(tmp_path / "file", "two", mode=0o640)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_text() == "two"
    assert mode_of(tmp_path / "file") == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(PermissionError):
        files.write_file(tmp_path / "file", "new", owner=_unusable_owner(tmp_path))
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def _unusable_owner(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may give files to anybody")
    return (0, 0)


def test_read_json_of_something_else_is_none(tmp_path):
    assert files.read_json(tmp_path / "none.json") is None
    (tmp_path / "list.json").write_text("[]")
    assert files.read_json(tmp_path / "list.json") is None
    (tmp_path / "half.json").write_text('{"a":')
    assert files.read_json(tmp_path / "half.json") is None


def test_tail_reads_the_end_only(tmp_path):
    file = tmp_path / "log"
    file.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert files.tail_lines(file, 2) == ["line 9998", "line 9999"]
    assert files.tail_lines(tmp_path / "none", 2) == []
