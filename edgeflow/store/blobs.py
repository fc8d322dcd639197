"""Blob files: immutable bodies of 256 KiB and more, beside Redis.

What must stay true: a file is complete, fsynced and under its final name before the store says that it is readable; a name is its SHA-256, so a
reader can always check it; a file is removed only under the lock that writers hold.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from edgeflow.errors import CorruptBlob, StoreFull

PREFIX = "sha256:"


def digest_of(data: bytes) -> str:
    """`sha256:<64 hex>` of a body."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def check_digest(digest: str, data: bytes) -> None:
    """Raises CorruptBlob unless `data` has that digest."""
    if digest_of(data) != digest:
        raise CorruptBlob(f"a body of {len(data)} bytes does not match its digest {digest[:23]}...")


class Room:
    """Whether the disk below a folder has room; asked at most once a second."""

    def __init__(self, folder: Path, least_free_bytes: int) -> None:
        self._folder = folder
        self._least_free_bytes = least_free_bytes
        self._asked_s = 0.0
        self._free_bytes = 0

    def check(self) -> None:
        """Raises StoreFull when less than the least is free."""
        now = time.monotonic()
        if now - self._asked_s > 1.0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._free_bytes = shutil.disk_usage(self._folder).free
            self._asked_s = now
        if self._free_bytes < self._least_free_bytes:
            raise StoreFull(
                f"the disk below {self._folder} has {self._free_bytes} bytes free, at least {self._least_free_bytes} are kept"
            )


class BlobFiles:
    """The blob files of one namespace at one PoP."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by writers from the file to the store's mark, and by the collector from the mark to the file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / ".lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def write(self, digest: str, data: bytes) -> None:
        """Store a body durably. The caller checked the digest."""
        path = self._path(digest)
        if path.exists() and path.stat().st_size == len(data):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self, digest: str, offset: int = 0, length: int = -1) -> bytes | None:
        """A body or a range of it; None when there is no such file."""
        try:
            with open(self._path(digest), "rb") as handle:
                handle.seek(offset)
                return handle.read(length)
        except FileNotFoundError:
            return None

    def remove(self, digest: str) -> None:
        """Remove a body; the caller holds the lock and checked that nothing refers to it."""
        with contextlib.suppress(FileNotFoundError):
            self._path(digest).unlink()

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix(PREFIX)
        if len(name) != 64 or not all(char in "0123456789abcdef" for char in name):
            raise CorruptBlob(f"{digest[:80]!r} is not a digest")
        return self._folder / name[:2] / name
