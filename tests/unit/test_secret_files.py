"""Secrets as files of one instance."""

import os
from pathlib import Path

import pytest

from edgeflow.runner import secret_files


def test_files_are_for_one_reader(tmp_path: Path) -> None:
    folder = tmp_path / "i" / "secrets"
    secret_files.write(folder, {"a": b"1", "b": b"2"}, reader=None)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"2"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o400}
    secret_files.write(folder, {"a": b"3"}, reader=None)
    assert (folder / "a").read_bytes() == b"3"


def test_another_account_reads_them_alone_or_by_its_group(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    secret_files.write(folder, {"a": b"1"}, reader=65534)
    status = (folder / "a").stat()
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_mode & 0o777) == (65534, 0o400)
        assert secret_files.groups(folder, 65534) == []
    else:
        assert (status.st_gid, status.st_mode & 0o777) == (os.getegid(), 0o440)
        assert secret_files.groups(folder, 65534) == [os.getegid()]
    assert folder.stat().st_mode & 0o007 == 0


def test_the_fingerprint_names_versions() -> None:
    assert secret_files.fingerprint({}) == ""
    one = secret_files.fingerprint({"a": "v1", "b": "v1"})
    assert one == secret_files.fingerprint({"b": "v1", "a": "v1"})
    assert (
        len({one, secret_files.fingerprint({"a": "v2", "b": "v1"}), secret_files.fingerprint({"a": "v1", "b": ""})})
        == 3
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes over files of others")
def test_a_second_write_replaces_what_was_given_away(tmp_path: Path) -> None:
    for data in (b"1", b"2"):
        secret_files.write(tmp_path / "s", {"a": data}, reader=65534)
    assert (tmp_path / "s" / "a").read_bytes() == b"2"
