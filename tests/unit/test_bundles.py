"""Archives of function folders: the same bytes for the same files, and nothing outside the target."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from edgeflow.errors import BadManifest
from edgeflow.runner.bundles import look, pack, unpack


def folder_with(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> tuple[str, bytes]:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    packed = gzip.compress(raw.getvalue(), mtime=0)
    return hashlib.sha256(packed).hexdigest(), packed


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    files = {"handler.py": "x = 1\n", "data/a.txt": "a", "requirements.txt": "six\n"}
    one = folder_with(tmp_path / "one", files)
    two = folder_with(tmp_path / "two", dict(reversed(files.items())))
    folder_with(two, {"__pycache__/handler.cpython-311.pyc": "junk", ".git/HEAD": "junk", "a.pyc": "junk"})
    assert pack(one) == pack(two)
    folder_with(two, {"handler.py": "x = 2\n"})
    assert pack(one) != pack(two)


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {"handler.py": "x = 1\n", "deep/er/data.txt": "data"})
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    digest, data = pack(source)
    target = unpack(data, digest, tmp_path / "target")
    assert (target / "deep/er/data.txt").read_text() == "data"
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (target / "handler.py").stat().st_mode & 0o777 == 0o644
    assert unpack(b"not even read", digest, tmp_path / "target") == target
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "a\\..\\evil"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    digest, data = archive_of((tarfile.TarInfo("handler.py"), b"ok"), (tarfile.TarInfo(name), b"evil"))
    with pytest.raises(BadManifest, match="leads outside"):
        unpack(data, digest, tmp_path / "inner" / "target")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "inner" / "target").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_are_unpacked(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("handler.py")
    member.type, member.linkname = kind, "/etc/passwd"
    digest, data = archive_of((member, b""))
    with pytest.raises(BadManifest, match="not a plain file"):
        unpack(data, digest, tmp_path / "target")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {"handler.py": "x = 1\n" * 1000})
    digest, data = pack(source)
    with pytest.raises(BadManifest, match="does not match its digest"):
        unpack(data[:-1], digest, tmp_path / "target")
    cut = data[: len(data) // 2]
    with pytest.raises(BadManifest, match="cannot be unpacked"):
        unpack(cut, hashlib.sha256(cut).hexdigest(), tmp_path / "target")


def test_an_archive_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeflow.runner.bundles.MAX_UNPACKED_BYTES", 1000)
    digest, data = archive_of((tarfile.TarInfo("handler.py"), bytes(2000)))
    with pytest.raises(BadManifest, match="unpacks to more than"):
        unpack(data, digest, tmp_path / "target")


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {"handler.py": ""})
    (source / "secret").symlink_to("/etc/passwd")
    with pytest.raises(BadManifest, match="symbolic link"):
        pack(source)


def test_look_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in str(look(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    assert "is not a folder" in str(look(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    assert "neither handler.py nor Dockerfile" in str(look(tmp_path / "empty"))
    assert look(folder_with(tmp_path / "good", {"handler.py": ""})) is None
    assert look(folder_with(tmp_path / "image", {"Dockerfile": "FROM scratch"})) is None
