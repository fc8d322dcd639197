"""The bodies of a namespace: immutable, named by their SHA-256, small ones in Redis and large ones in files.

What it is: the piece of a namespace's client that stores and reads them.
What it is not: what refers to them (values, events), or how they come from other PoPs (edgeflow.cluster).
What must stay true: the store says that a body is readable only when it is durable here.
"""

from collections.abc import Sequence

from edgeflow.core.events import BlobRef
from edgeflow.errors import NotFound
from edgeflow.store.blobs import check_digest, digest_of
from edgeflow.store.calls import Calls, Rows
from edgeflow.store.connection import Command

Body = tuple[str, bytes]
"""(digest, data)."""


class Bodies(Calls):
    """The bodies of a namespace at this PoP."""

    def put_blob(self, data: bytes) -> BlobRef:
        """Store a body durably, addressed by its SHA-256. Collected after a while unless an entry or a value refers to it."""
        digest = digest_of(data)
        self._store_blobs([(digest, data)])
        return BlobRef(digest, len(data))

    def add_blob(self, digest: str, data: bytes) -> None:
        """Store a body that came from elsewhere, and open the gates that waited for it. Raises CorruptBlob."""
        check_digest(digest, data)
        self._store_blobs([(digest, data)])

    def read_blob(self, digest: str) -> bytes | None:
        """A body, checked against its digest; None when it is not here. Raises CorruptBlob."""
        data: bytes | None = self._connection.one("GET", f"{self.prefix}blob:{digest}")
        if data is None:
            data = self._files.read(digest)
        if data is not None:
            check_digest(digest, data)
        return data

    def read_blob_range(self, digest: str, offset: int, length: int) -> bytes:
        """`length` bytes of a body from `offset`, not checked (the reader of the whole checks). Raises NotFound."""
        if self._connection.one("EXISTS", f"{self.prefix}blob:{digest}"):
            part: bytes | None = self._connection.one(
                "GETRANGE", f"{self.prefix}blob:{digest}", offset, offset + length - 1
            )
        else:
            part = self._files.read(digest, offset, length)
        if part is None:
            raise NotFound(f"blob {digest} is not at {self.pop}")
        return part

    def blob_size(self, digest: str) -> int | None:
        """Size (bytes) of a body that is readable here, else None."""
        size = self._connection.one("HGET", self.prefix + "blobs", digest)
        return None if size is None else int(size)

    def missing_blobs(self) -> Rows[str]:
        """Digests that gates here wait for."""
        return sorted(digest.decode() for digest in self._connection.one("SMEMBERS", self.prefix + "missing"))

    def _store_blobs(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        large, small = self._by_size(blobs)
        if large:
            with self._files.lock():
                for digest, data in large:
                    self._files.write(digest, data)
                self._routed(lambda _again: [self._blob_mark(digest, len(data)) for digest, data in large])
        if small:
            self._routed(lambda _again: self._small_blobs(small))

    def _by_size(self, blobs: Sequence[Body]) -> tuple[Rows[Body], Rows[Body]]:
        """Those that become files, and those that Redis keeps."""
        limit = self._limits.redis_blob_bytes
        return [body for body in blobs if len(body[1]) >= limit], [body for body in blobs if len(body[1]) < limit]

    def _small_blobs(self, blobs: Sequence[tuple[str, bytes]]) -> Rows[Command]:
        commands: Rows[Command] = []
        for digest, data in blobs:
            commands.append(("SET", f"{self.prefix}blob:{digest}", data))
            commands.append(self._blob_mark(digest, len(data)))
        return commands

    def _blob_mark(self, digest: str, size: int) -> Command:
        return self._command("ef_blob", {"digest": digest, "size": size, "rv": self.routes().version})
