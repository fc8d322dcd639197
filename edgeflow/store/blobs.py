"""Blob files: immutable bodies of 256 KiB and more, beside Redis.

What it is: files named by the SHA-256 of their body, and the writer and the reader of one. Behind the body a file has the CRC-32 of each of its
pieces of 64 KiB, four bytes each, so that any range can be checked without reading the rest.
What it is not: what is readable here. That the store says (bodies.py); a file that it does not know is not read.
What must stay true: a file is complete, fsynced and under its final name before the store says that it is readable; no byte leaves a piece whose
checksum does not match; a file is taken away only under the lock that writers share; memory does not grow with the size of a body.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgeflow.errors import CorruptBlob, StoreFull

PREFIX = "sha256:"
PIECE_BYTES = 64 * 1024
"""What one checksum covers."""
SYNC_BYTES = 8 * 1024 * 1024
"""A writer hands this much to the disk while it takes the next: at the end little is left to wait for."""
KEPT_DAMAGED = 8
"""Damaged files that are kept for whoever wants to look at them."""
_CRC_BYTES = 4
_INCOMING = ".incoming-"
_DAMAGED = ".damaged"

_syncers = ThreadPoolExecutor(4, thread_name_prefix="sync")


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
        self._sweep = 0

    @contextlib.contextmanager
    def placing(self) -> Iterator[None]:
        """Held by a writer from the file's final name to the store's mark. Many may hold it at once."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def removing(self, wait_s: float = 0.0) -> Iterator[bool]:
        """Held while files are taken away, alone; yields False when writers are still at it after `wait_s`: the lock is not fair to who waits."""
        until_s = time.monotonic() + wait_s
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB))
                    is_alone = True
                    break
                except BlockingIOError:
                    is_alone = False
                    if time.monotonic() >= until_s:
                        break
                    time.sleep(0.002)
            yield is_alone

    def writer(self, digest: str | None = None) -> "FileWriter":
        """A new file, without a name until its body is complete; `digest`: of that body, when it is known already."""
        try:
            return FileWriter(self._folder, digest)
        except FileNotFoundError:
            self._make_folders()
            return FileWriter(self._folder, digest)

    def open(self, digest: str) -> "BlobFile | None":
        """The file of a body, None when there is none."""
        try:
            return BlobFile(digest, os.open(self._path(digest), os.O_RDONLY))
        except FileNotFoundError:
            return None

    def place(self, digest: str, file: "FileWriter") -> None:
        """Give a complete file its name, durably. The caller holds `placing` until the store knows of it."""
        path = self._path(digest)
        if not path.parent.exists():
            self._make_folders()
        try:
            # Its name first and both to the disk at the same time: nobody believes the name before the store says so. A name that is there
            # already may be believed, so what takes its place has to be on the disk before.
            os.link(file.path, path)
            os.unlink(file.path)
            name = _syncers.submit(_sync_folder, path.parent)
            file.sync()
            name.result()
        except FileExistsError:
            file.sync()
            os.replace(file.path, path)
            _sync_folder(path.parent)

    def remove(self, digest: str) -> None:
        """Remove a body; the caller holds `removing` and checked that nothing refers to it."""
        with contextlib.suppress(FileNotFoundError):
            self._path(digest).unlink()

    def set_aside(self, digest: str, inode: int) -> bool:
        """Take a damaged file out of the way; False when another than the one with that inode is in its place. The caller holds `removing`."""
        path, away = self._path(digest), self._folder / _DAMAGED
        try:
            if path.stat().st_ino != inode:
                return False
        except FileNotFoundError:
            return True
        away.mkdir(exist_ok=True)
        os.replace(path, away / f"{path.name}.{time.time_ns()}")
        kept = sorted(away.iterdir(), key=lambda one: one.name.rpartition(".")[2])
        for old in kept[:-KEPT_DAMAGED]:
            old.unlink(missing_ok=True)
        return True

    def drop_unfinished(self) -> int:
        """Remove files whose writers are gone; how many there were."""
        dropped = 0
        for path in self._folder.glob(_INCOMING + "*"):
            with contextlib.suppress(OSError), open(path, "rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                path.unlink()
                dropped += 1
        return dropped

    def some_digests(self, older_than_s: float) -> list[str]:
        """The bodies of the next of the 256 folders, of files at least that old: to be compared with what the store knows."""
        folder = self._folder / f"{self._sweep:02x}"
        self._sweep = (self._sweep + 1) % 256
        before = time.time() - older_than_s
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if len(path.name) == 64 and path.stat().st_mtime < before:
                        found.append(PREFIX + path.name)
        return found

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        path = self._folder / ".lock"
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._make_folders()
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _make_folders(self) -> None:
        """All of them at once, so that one fsync is enough for all that will ever be in them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(256):
            (self._folder / f"{number:02x}").mkdir(exist_ok=True)
        _sync_folder(self._folder)
        _sync_folder(self._folder.parent)

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix(PREFIX)
        if len(name) != 64 or not all(char in "0123456789abcdef" for char in name):
            raise CorruptBlob(f"{digest[:80]!r} is not a digest")
        return self._folder / name[:2] / name


class FileWriter:
    """A body on its way into a file. One that is closed without having been placed leaves nothing."""

    _fd = -1

    def __init__(self, folder: Path, digest: str | None = None) -> None:
        self.path = folder / f"{_INCOMING}{secrets.token_hex(8)}"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # says that its writer lives
        self._known = digest
        self._hash = hashlib.sha256()
        self._crcs = bytearray()
        self._crc = 0
        self._filled = 0
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The next part of the body."""
        view = memoryview(data)
        if self._known is None:
            self._hash.update(view)
        at = 0
        while at < len(view):
            part = view[at : at + PIECE_BYTES - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += len(part)
            at += len(part)
            if self._filled == PIECE_BYTES:
                self._end_piece()
        self._put(view)
        self.size += len(view)
        self._unsynced += len(view)
        if self._unsynced >= SYNC_BYTES:
            self._settle()
            self._syncing = _syncers.submit(os.fdatasync, self._fd)
            self._unsynced = 0

    def finish(self) -> str:
        """The body is complete; its digest."""
        if self._filled:
            self._end_piece()
        self._put(self._crcs)
        return self._known or PREFIX + self._hash.hexdigest()

    def sync(self) -> None:
        """All of it is on the disk."""
        self._settle()
        os.fsync(self._fd)

    def close(self) -> None:
        """Give the descriptor back; a file that was not placed is removed."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self._settle()
        os.close(self._fd)
        self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _put(self, data: memoryview | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _end_piece(self) -> None:
        self._crcs += struct.pack("<I", self._crc)
        self._crc = self._filled = 0

    def _settle(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def __del__(self) -> None:
        self.close()


class BlobFile:
    """An open file of a body. It stays readable while it is open, also when it is removed meanwhile."""

    _fd = -1

    def __init__(self, digest: str, fd: int) -> None:
        self.digest = digest
        self._fd = fd
        about = os.fstat(fd)
        self.inode = about.st_ino
        pieces = -(-about.st_size // (PIECE_BYTES + _CRC_BYTES))
        self.size = about.st_size - _CRC_BYTES * pieces

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end. Raises CorruptBlob when a piece that they lie in is damaged."""
        end = min(self.size, offset + length)
        if offset >= end:
            return b""
        first, last = offset // PIECE_BYTES, -(-end // PIECE_BYTES)
        start = first * PIECE_BYTES
        wanted = min(self.size, last * PIECE_BYTES) - start
        data = self._read(start, wanted)
        crcs = self._read(self.size + _CRC_BYTES * first, _CRC_BYTES * (last - first))
        if len(data) != wanted or len(crcs) != _CRC_BYTES * (last - first):
            raise self._damaged("is shorter than it was")
        view = memoryview(data)
        for number, (crc,) in enumerate(struct.iter_unpack("<I", crcs)):
            if zlib.crc32(view[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]) != crc:
                raise self._damaged(f"does not match its checksum at byte {start + number * PIECE_BYTES}")
        return data if len(data) == end - offset else bytes(view[offset - start : end - start])

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while 0 < len(data) < length:  # one call reads at most 2 GiB, and may be cut short by a signal
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def _damaged(self, how: str) -> CorruptBlob:
        return CorruptBlob(f"the file of {self.digest[:23]}... {how}")

    def __del__(self) -> None:
        self.close()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
