"""The images of a cluster: kept in the key-value store, found at every PoP.

What it is: `images/<id>` (a value of the system namespace: configuration, names, and which pieces its layers are made of) and `pieces/<digest>` (4 MiB
of a layer each, deflated). Bodies of pieces stay where they were pushed until another PoP asks for them: a piece that a PoP has is never sent to it
again, so images on one base share its bytes.
What it is not: an engine (engine_images.py), or the clean-up (keeper.py).
What must stay true: an image is listed only when all of its pieces are stored at the PoP that took it; what comes out has the digests that the
configuration says, or fails by name; memory does not grow with the size of an image.
"""

import base64
import hashlib
import json
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.errors import CorruptBlob, EdgeflowError, NotFound, Unavailable
from edgeflow.runner import archives
from edgeflow.runner.archives import BadImage, Source
from edgeflow.runner.ports import BodiesPort, ImageStorePort

IMAGES = "images/"
PIECES = "pieces/"
PIECE_BYTES = 4 * 1024 * 1024
"""Uncompressed bytes of a piece: small enough that one that is cut costs little, and that a narrow link brings it in time."""
FETCH_S = 60.0
"""Longest wait for one piece. What has come of it by then is not lost: the next try goes on there."""
AT_ONCE = 4
"""Pieces that are asked for at a time."""
_DEFLATE = 1
_HEX = 64

Say = Callable[[str], None]


class ImageAway(Unavailable):
    """A part of the image is at no PoP that can be reached."""

    code = "image-away"
    hint = "Start the PoP that the image was pushed to, or push it again at a PoP that can be reached."


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a layer: digest and size as it is stored."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer: digest and size of its uncompressed bytes, and its pieces in order."""

    diff_id: str
    size: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image of the cluster."""

    id: str
    names: tuple[str, ...]
    config: bytes
    layers: tuple[StoredLayer, ...]
    pushed_ms: int
    pop: str
    """Where it was pushed."""

    @property
    def size(self) -> int:
        """Uncompressed bytes of its layers."""
        return sum(layer.size for layer in self.layers)

    def pieces(self, skip: int = 0) -> list[Piece]:
        """Its pieces, each once, without those of the lowest `skip` layers."""
        return list(dict.fromkeys(piece for layer in self.layers[skip:] for piece in layer.pieces))

    def dump(self) -> bytes:
        """The value."""
        return json.dumps(
            {
                "id": self.id,
                "names": list(self.names),
                "config": base64.b64encode(self.config).decode(),
                "layers": [
                    {
                        "diff_id": one.diff_id,
                        "size": one.size,
                        "pieces": [[piece.digest, piece.size] for piece in one.pieces],
                    }
                    for one in self.layers
                ],
                "pushed_ms": self.pushed_ms,
                "pop": self.pop,
            },
            separators=(",", ":"),
        ).encode()


def load_image(data: bytes) -> StoredImage:
    """Inverse of `dump`. Raises BadImage when the value is not what it should be."""
    try:
        document: dict[str, Any] = json.loads(data)
        config = base64.b64decode(document["config"], validate=True)
        layers = tuple(
            StoredLayer(str(one["diff_id"]), int(one["size"]), tuple(Piece(str(a), int(b)) for a, b in one["pieces"]))
            for one in document["layers"]
        )
        image = StoredImage(
            str(document["id"]), tuple(map(str, document["names"])), config, layers, int(document["pushed_ms"]), str(document["pop"])
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise BadImage(f"a stored image cannot be read: {error!r}", hint="Push the image again.") from None
    if archives.digest_of(config) != image.id or archives.diff_ids_of(config) != tuple(one.diff_id for one in layers):
        raise BadImage(f"the stored image {image.id[:19]} is not what its configuration says", hint="Push it again.")
    return image


class ImageLibrary:
    """The images as one PoP sees them. Thread-safe as far as its store is."""

    def __init__(self, store: ImageStorePort, pop: str, limit_bytes: int) -> None:
        self._store = store
        self._pop = pop
        self.limit_bytes = limit_bytes
        """Most uncompressed bytes of an image, and most bytes of an archive."""

    # -- what there is -------------------------------------------------------------------------------------------------

    def all(self) -> list[StoredImage]:
        """All images, the one that was pushed last first. One that cannot be read (its value is damaged or on its way) is left out."""
        found: list[StoredImage] = []
        for key in self.keys(IMAGES):
            image = self._read(key)
            if image is not None:
                found.append(image)
        return sorted(found, key=lambda image: image.pushed_ms, reverse=True)

    def get(self, id: str) -> StoredImage | None:
        """The image of that id, None when there is none."""
        return self._read(IMAGES + id.removeprefix("sha256:"))

    def find(self, name: str) -> StoredImage | None:
        """What a name means: the image of that id (also behind `@`), or the one that was pushed last under that name."""
        tag, _, digest = name.rpartition("@")
        if archives.ID.fullmatch(digest):
            return self.get(digest)
        try:
            wanted = archives.short_name(tag or name)
        except BadImage:
            return None
        return next((image for image in self.all() if wanted in image.names), None)

    def absent(self, image: StoredImage, skip: int = 0) -> list[Piece]:
        """Its pieces whose bodies are not at this PoP."""
        system = self._system()
        return [piece for piece in image.pieces(skip) if system.blob_size(piece.digest) is None]

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys under a prefix."""
        after = ""
        while page := self._system().list(prefix, after=after, limit=500):
            yield from (info.key for info in page)
            after = page[-1].key

    # -- in ------------------------------------------------------------------------------------------------------------

    def take(self, source: Source, names: Sequence[str] = ()) -> tuple[StoredImage, bool]:
        """Store the image of an archive, under the names it says and `names`; and whether it is new. Raises BadImage, StoreFull.

        Every piece is written again, also one that is there: so it is newer than any clean-up that is under way.
        """
        image = archives.look(source)
        given = tuple(archives.short_name(name) for name in names)
        if sum(layer.member.size for layer in image.layers) > self.limit_bytes:
            raise BadImage(f"the layers have more than {self.limit_bytes} bytes (limits.image_bytes)")
        stored: dict[str, StoredLayer] = {}
        left = self.limit_bytes
        for layer in image.layers:
            if layer.diff_id not in stored:
                stored[layer.diff_id] = self._take_layer(source, layer, left)
                left -= stored[layer.diff_id].size
        before = self.get(image.id)
        known = before.names if before is not None else ()
        taken = StoredImage(
            image.id, tuple(dict.fromkeys((*given, *image.names, *known)))[: archives.MAX_NAMES], image.config,
            tuple(stored[layer.diff_id] for layer in image.layers), time.time_ns() // 1_000_000, self._pop,
        )  # fmt: skip
        self._system().put(IMAGES + image.id.removeprefix("sha256:"), taken.dump(), content_type="application/json")
        return taken, before is None

    def _take_layer(self, source: Source, layer: archives.Layer, limit_bytes: int) -> StoredLayer:
        pieces: list[Piece] = []
        size = 0
        held = bytearray()

        def store() -> None:
            data = zlib.compress(bytes(held), _DEFLATE)
            ref = self._system().put_blob(data)  # as a body, however small it is
            self._system().put(PIECES + ref.digest.removeprefix("sha256:"), ref=ref, content_type="application/zlib")
            pieces.append(Piece(ref.digest, ref.size))
            held.clear()

        for chunk in archives.unpacked(source, layer, limit_bytes):
            size += len(chunk)
            held += chunk
            while len(held) >= PIECE_BYTES:
                rest = held[PIECE_BYTES:]
                del held[PIECE_BYTES:]
                store()
                held += rest
        if held:
            store()
        return StoredLayer(layer.diff_id, size, tuple(pieces))

    def remove(self, id: str) -> None:
        """Forget an image. Its pieces go later, unless another one has them. Raises NotFound."""
        key = IMAGES + id.removeprefix("sha256:")
        if self._system().head(key) is None:
            raise NotFound(f"there is no image {id}", hint="`edgeflow images list` shows what is there.")
        self._system().delete(key)

    # -- out -----------------------------------------------------------------------------------------------------------

    def fetch(self, image: StoredImage, skip: int = 0, say: Say = lambda line: None) -> int:
        """Have all pieces at this PoP but those of the lowest `skip` layers; how many bytes came. Raises ImageAway.

        What has come stays when it fails: the next try asks for the rest.
        """
        todo = deque(self.absent(image, skip))
        total = sum(piece.size for piece in todo)
        came = 0
        asked: deque[tuple[Piece, Future[dict[str, Any]]]] = deque()
        while todo or asked:
            while todo and len(asked) < AT_ONCE:
                piece = todo.popleft()
                asked.append((piece, self._ask(piece.digest)))
            piece, answer = asked.popleft()
            _wait(answer, image)
            came += piece.size
            say(f"fetched {came / 1e6:.1f} of {total / 1e6:.1f} MB of image {image.id[7:19]}")
        return came

    def archive(self, image: StoredImage, name: str, skip: int = 0) -> Iterator[bytes]:
        """An archive of the image under `name`, for an engine that has its lowest `skip` layers. Pieces that have gone meanwhile are fetched again."""
        layers = (
            (0 if number < skip else layer.size, self._bytes(image, layer)) for number, layer in enumerate(image.layers)
        )
        return archives.packed(image.config, [name], layers)

    def _bytes(self, image: StoredImage, layer: StoredLayer) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        for piece in layer.pieces:
            data = self._inflated(image, piece)
            digest.update(data)
            size += len(data)
            yield data
        if (size, "sha256:" + digest.hexdigest()) != (layer.size, layer.diff_id):
            raise BadImage(f"the stored layer {layer.diff_id[:19]} is not what it should be", hint="Push it again.")

    def _inflated(self, image: StoredImage, piece: Piece) -> bytes:
        system = self._system()
        for _ in range(3):
            try:
                data = system.read_blob(piece.digest)
            except CorruptBlob:
                data = None  # set aside, and missing from now on
            if data is None:
                _wait(self._ask(piece.digest), image)
                continue
            system.note_read(piece.digest, fetched=False)
            decoder = zlib.decompressobj()
            try:
                inflated = decoder.decompress(data, PIECE_BYTES + 1)
            except zlib.error:
                break
            if len(inflated) <= PIECE_BYTES and decoder.eof:
                return inflated
            break
        raise BadImage(f"the stored piece {piece.digest[:19]} cannot be read", hint="Push the image again.")

    def _ask(self, digest: str) -> "Future[dict[str, Any]]":
        return self._store.mailbox.submit("fetch", {"ns": SYSTEM_NAMESPACE, "digest": digest}, FETCH_S)

    def _read(self, key: str) -> StoredImage | None:
        try:
            value = self._system().get(key)
            return None if value is None else load_image(value.data)
        except BadImage:
            return None
        except Unavailable:
            return None  # the value's body is on its way

    def _system(self) -> BodiesPort:
        return self._store.namespace(SYSTEM_NAMESPACE)


def _wait(answer: "Future[dict[str, Any]]", image: StoredImage) -> None:
    try:
        answer.result(FETCH_S + 5)
    except (EdgeflowError, TimeoutError) as error:
        raise ImageAway(
            f"image {image.id[7:19]} cannot be fetched: {getattr(error, 'message', None) or 'no answer'}"
        ) from error
