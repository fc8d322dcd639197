"""The bodies of a namespace: immutable, named by their SHA-256, small ones in Redis and large ones in files.

What it is: the piece of a namespace's client that stores and reads them, whole, in ranges, and piece by piece.
What it is not: what refers to them (values, events), which of them are cached copies (cache.py), or how they come from other PoPs (edgeflow.cluster).
What must stay true: the store says that a body is readable only when it is durable here; what is read was checked; a body that turns out to be
damaged is not readable any more from that moment on, and is missing until a peer has sent it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from edgeflow.core.events import BlobRef
from edgeflow.errors import CorruptBlob, NotFound, StoreFull, TooLarge
from edgeflow.store.blobs import BlobFile, BlobFiles, FileWriter, Room, check_digest, digest_of
from edgeflow.store.calls import Calls, Rows
from edgeflow.store.connection import Command

Body = tuple[str, bytes]
"""(digest, data)."""
Placed = Callable[[], Rows[Command]]
LOST_WAIT_S = 0.2
"""How long a reader that has found damage waits for writers that are just placing files."""
UNMARKED_S = 3600.0
"""A file of that age that the store does not know belongs to a writer that was ended before it could say so."""


class BodyReader:
    """A body that is readable here, open: it stays readable until `close`, whatever happens to what refers to it."""

    def __init__(self, owner: "Bodies", digest: str, source: bytes | BlobFile, is_cached: bool) -> None:
        self.is_cached = is_cached
        """Whether it is a copy of what is kept at other PoPs."""
        self._owner = owner
        self._source = source
        self.digest = digest
        self.size = len(source) if isinstance(source, bytes) else source.size

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` checked bytes from `offset`, fewer at the end. Raises CorruptBlob; the body is then fetched from a peer."""
        end = self.size if length is None else min(self.size, offset + length)
        if isinstance(self._source, bytes):
            return self._source if (offset, end) == (0, self.size) else self._source[offset:end]
        try:
            return self._source.read(offset, max(0, end - offset))
        except CorruptBlob:
            self._owner.lost_blob(self.digest, self._source.inode)
            raise

    def close(self) -> None:
        """Give it back."""
        if isinstance(self._source, BlobFile):
            self._source.close()


class BodyWriter:
    """A body that comes piece by piece: in memory while it is small, in a file from there on. One that is not finished leaves nothing."""

    def __init__(self, owner: "Bodies", files: BlobFiles, room: Room, memory_bytes: int, limit_bytes: int) -> None:
        self._owner = owner
        self._files = files
        self._room = room
        self._memory_bytes = memory_bytes
        self._limit_bytes = limit_bytes
        self._small = bytearray()
        self._file: FileWriter | None = None
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The next part. Raises TooLarge, and StoreFull when there is no room."""
        if self.size + len(data) > self._limit_bytes:
            raise TooLarge(f"the body is larger than the limit of {self._limit_bytes} bytes")
        self._room.check()
        self.size += len(data)
        if self._file is None and self.size < self._memory_bytes:
            self._small += data
            return
        try:
            if self._file is None:
                self._file = self._files.writer()
                self._file.write(self._small)
                self._small = bytearray()
            self._file.write(data)
        except OSError as error:
            raise StoreFull(f"the body cannot be written: {error.strerror}") from error

    def finish(self, digest: str | None = None) -> BlobRef:
        """It is complete, and stored durably. Raises CorruptBlob, and stores nothing, when it has another digest than `digest`.

        Collected after a while unless an entry or a value refers to it.
        """
        try:
            if self._file is None:
                data = bytes(self._small)
                if digest is not None:
                    check_digest(digest, data)
                return self._owner.put_blob(data)
            found = self._file.finish()
            if digest not in (None, found):
                raise CorruptBlob(f"a body of {self.size} bytes does not match its digest {str(digest)[:23]}...")
            self._owner.keep_file(found, self.size, self._file)
            return BlobRef(found, self.size)
        except OSError as error:
            raise StoreFull(f"the body cannot be written: {error.strerror}") from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Nothing of it stays; harmless after `finish`."""
        file, self._file = self._file, None
        self._small = bytearray()
        if file is not None:
            file.close()


class Bodies(Calls):
    """The bodies of a namespace at this PoP."""

    # -- storing -------------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes) -> BlobRef:
        """Store a body durably, addressed by its SHA-256. Collected after a while unless an entry or a value refers to it."""
        with self.placed_body(data) as (ref, commands):
            self._routed(lambda _again: commands())
        return ref

    @contextlib.contextmanager
    def placed_body(self, data: bytes) -> Iterator[tuple[BlobRef, Placed]]:
        """For whoever refers to a new body in the same round trip: its reference, and what makes the commands that have to go in front."""
        digest = digest_of(data)
        ref = BlobRef(digest, len(data))
        if len(data) < self._limits.redis_blob_bytes:
            yield ref, lambda: self._small_blobs([(digest, data)])
        else:
            with self._placed_file(digest, data):
                yield ref, lambda: [self._blob_mark(digest, len(data))]

    def blob_writer(self, limit_bytes: int | None = None) -> BodyWriter:
        """For a body that comes piece by piece, in constant memory; at most `limit_bytes` (limits.value_bytes)."""
        limit = self._limits.value_bytes if limit_bytes is None else limit_bytes
        return BodyWriter(self, self._files, self._room, self._limits.redis_blob_bytes, limit)

    def add_blob(self, digest: str, data: bytes) -> None:
        """Store a body that came from elsewhere, and open the gates that waited for it. Raises CorruptBlob."""
        check_digest(digest, data)
        self._store_blobs([(digest, data)])

    def keep_file(self, digest: str, size: int, file: FileWriter) -> None:
        """Store a body whose file is complete."""
        with self._files.placing():
            if not self._has_file(digest, size):
                self._files.place(digest, file)
            evicted = self._mark(digest, size)
        self.remove_files(evicted)

    def has_blob(self, digest: str) -> bool:
        """Whether a body is readable here."""
        return bool(self._connection.one("HEXISTS", self.prefix + "blobs", digest))

    def knows_blob(self, digest: str) -> bool:
        """Whether something here refers to a body, readable here or not."""
        return bool(self._connection.one("HEXISTS", self.prefix + "refs", digest))

    def blob_size(self, digest: str) -> int | None:
        """Size (bytes) of a body that is readable here, else None."""
        size = self._connection.one("HGET", self.prefix + "blobs", digest)
        return None if size is None else int(size)

    def missing_blobs(self) -> Rows[str]:
        """Digests that gates here wait for, and those whose bodies were damaged."""
        return sorted(digest.decode() for digest in self._connection.one("SMEMBERS", self.prefix + "missing"))

    # -- reading -------------------------------------------------------------------------------------------------------

    def open_blob(self, digest: str) -> BodyReader | None:
        """A body to be read piece by piece; None when it is not here. Raises CorruptBlob."""
        size, data, cached = self._connection.run([
            ("HGET", self.prefix + "blobs", digest), ("GET", f"{self.prefix}blob:{digest}"), ("ZSCORE", self.prefix + "cached", digest),
        ])  # fmt: skip
        if data is not None:
            try:
                check_digest(digest, data)
            except CorruptBlob:
                self.lost_blob(digest)
                raise
            return BodyReader(self, digest, data, cached is not None)
        if size is None:
            return None
        file = self._files.open(digest)
        if file is None and not self.has_blob(digest):
            return None  # collected just now
        if file is None or file.size != int(size):
            self.lost_blob(digest, file.inode if file else 0)
            raise CorruptBlob(f"the file of {digest[:23]}... is {'cut' if file else 'gone'}")
        return BodyReader(self, digest, file, cached is not None)

    def read_blob(self, digest: str) -> bytes | None:
        """A whole body, checked; None when it is not here. Raises CorruptBlob."""
        body = self.open_blob(digest)
        if body is None:
            return None
        try:
            return body.read()
        finally:
            body.close()

    def read_blob_range(self, digest: str, offset: int, length: int) -> bytes:
        """`length` checked bytes of a body from `offset`. Raises NotFound, CorruptBlob."""
        body = self.open_blob(digest)
        if body is None:
            raise NotFound(f"blob {digest} is not at {self.pop}")
        try:
            return body.read(offset, length)
        finally:
            body.close()

    def lost_blob(self, digest: str, inode: int = 0) -> None:
        """A body turned out to be damaged: not readable any more, and missing if something refers to it. `inode`: of the file that was read."""
        with self._files.removing(LOST_WAIT_S) as is_alone:
            # Otherwise whoever reads it next tries again.
            if is_alone and self._files.set_aside(digest, inode):
                self._routed(lambda _again: [self._command("ef_blob_lost", {"digest": digest})])

    # -- chores --------------------------------------------------------------------------------------------------------

    def remove_files(self, digests: Sequence[bytes]) -> int:
        """Remove files of bodies that the store has forgotten, unless they came back meanwhile; how many. What is in use now is left to `sweep_files`."""
        removed = 0
        if digests:
            with self._files.removing() as is_alone:
                for digest in digests if is_alone else ():
                    if not self._connection.one("HEXISTS", self.prefix + "blobs", digest):
                        self._files.remove(digest.decode())
                        removed += 1
        return removed

    def sweep_files(self) -> int:
        """Remove what ended writers left behind, a piece per call; how many files."""
        found = self._files.some_digests(UNMARKED_S)
        known = self._connection.run([("HEXISTS", self.prefix + "blobs", one) for one in found]) if found else []
        unknown = [one.encode() for one, is_known in zip(found, known, strict=True) if not is_known]
        return self._files.drop_unfinished() + self.remove_files(unknown)

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _placed_file(self, digest: str, data: bytes) -> Iterator[None]:
        with self._files.placing():
            if self._has_file(digest, len(data)):
                yield
                return
            try:
                file = self._files.writer(digest)
                try:
                    file.write(data)
                    file.finish()
                    self._files.place(digest, file)
                finally:
                    file.close()
            except OSError as error:
                raise StoreFull(f"the body cannot be written: {error.strerror}") from error
            yield

    def _has_file(self, digest: str, size: int) -> bool:
        """Whether a body is here already as a file. The caller holds `placing`, so that it stays until it is marked again."""
        if not self.has_blob(digest):
            return False
        file = self._files.open(digest)
        if file is None:
            return False
        file.close()
        return file.size == size

    def _store_blobs(self, blobs: Sequence[Body]) -> None:
        large, small = self._by_size(blobs)
        for digest, data in large:
            with self._placed_file(digest, data):
                evicted = self._mark(digest, len(data))
            self.remove_files(evicted)
        if small:
            self._routed(lambda _again: self._small_blobs(small))

    def _by_size(self, blobs: Sequence[Body]) -> tuple[Rows[Body], Rows[Body]]:
        """Those that become files, and those that Redis keeps."""
        limit = self._limits.redis_blob_bytes
        return [body for body in blobs if len(body[1]) >= limit], [body for body in blobs if len(body[1]) < limit]

    def _small_blobs(self, blobs: Sequence[Body]) -> Rows[Command]:
        commands: Rows[Command] = []
        for digest, data in blobs:
            commands.append(("SET", f"{self.prefix}blob:{digest}", data))
            commands.append(self._blob_mark(digest, len(data)))
        return commands

    def _mark(self, digest: str, size: int) -> Rows[bytes]:
        """Say that a body is readable; files of cached ones that went to make room for it, to be removed without holding `placing`."""
        evicted: Rows[bytes] = self._routed(lambda _again: [self._blob_mark(digest, size)])[-1]
        return evicted

    def _blob_mark(self, digest: str, size: int) -> Command:
        return self._command("ef_blob", {
            "digest": digest, "size": size, "rv": self.routes().version, "cache_bytes": self._limits.cache_bytes,
        })  # fmt: skip
