"""Archives of container images: what is in one, and one made of parts.

What it is: `look` (the image in an archive of `docker save`, in its own format or as an OCI layout), `unpacked` (the bytes of one of its layers) and
`packed` (an archive that an engine loads).
What it is not: where images are kept (library.py), or an engine (engine_images.py). The files inside a layer are not looked at: the engine unpacks
them, in a root of their own.
What must stay true: nothing of an archive is trusted: names are looked up among its members and never opened, what is read at once is bounded whatever
its headers say, and a layer that is not what the configuration says is refused; memory does not grow with the size of an image.
"""

import hashlib
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from edgeflow.errors import BadRequest

MAX_MEMBERS = 10_000
MAX_LAYERS = 128
"""An engine takes at most 127."""
DOCUMENT_BYTES = 4 * 1024 * 1024
"""Longest manifest or configuration; also the longest that is read of the archive's own headers at once."""
STEP_BYTES = 1024 * 1024
MAX_NAMES = 20

ID = re.compile(r"sha256:[0-9a-f]{64}")
NAME = re.compile(r"[a-z0-9]+(?:[._/:-]+[a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""An image's name with its tag, as engines write it."""
_GZIP, _ZSTD, _XZ, _BZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


class BadImage(BadRequest):
    """The archive does not hold an image that can be taken."""

    code = "bad-image"
    hint = "Make it with `docker save <name>:<tag> -o image.tar`, one image to an archive, and send all of it."


class Source(Protocol):
    """Where the bytes of an archive are."""

    @property
    def size(self) -> int: ...
    def read(self, offset: int = 0, length: int | None = None) -> bytes: ...


class BytesSource:
    """An archive in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset`, fewer at the end."""
        return self._data[offset : self.size if length is None else offset + length]


@dataclass(frozen=True, slots=True)
class Member:
    """Where in the archive a file is."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the digest of its uncompressed bytes, and its file."""

    diff_id: str
    member: Member


@dataclass(frozen=True, slots=True)
class Image:
    """The image in an archive."""

    id: str
    """`sha256:<hex>` of the configuration: what engines call the image's id."""
    config: bytes
    layers: tuple[Layer, ...]
    names: tuple[str, ...]


def look(source: Source) -> Image:
    """The one image of an archive. Raises BadImage."""
    if (
        source.read(0, 2) == _GZIP
        or source.read(0, 4) == _ZSTD
        or source.read(0, 5) == _XZ
        or source.read(0, 3) == _BZIP
    ):
        raise BadImage("the archive is compressed", hint="Send it as `docker save` writes it, not compressed.")
    members = _members(source)
    if "manifest.json" in members:
        config, files, names = _docker(source, members)
    elif "index.json" in members:
        config, files, names = _oci(source, members)
    else:
        raise BadImage("the archive has neither manifest.json nor index.json: it holds no image")
    diff_ids = _diff_ids(config)
    if len(diff_ids) != len(files):
        raise BadImage(f"the configuration names {len(diff_ids)} layers, the archive {len(files)}")
    layers = tuple(Layer(diff_id, file) for diff_id, file in zip(diff_ids, files, strict=True))
    return Image(digest_of(config), config, layers, names)


def unpacked(source: Source, layer: Layer, limit_bytes: int) -> Iterator[bytes]:
    """The uncompressed bytes of a layer, piece by piece. Raises BadImage: damaged, too large, or not what the configuration says (at the end)."""
    digest, size = hashlib.sha256(), 0
    for chunk in _decoded(source, layer.member):
        size += len(chunk)
        if size > limit_bytes:
            raise BadImage(f"layer {layer.member.name!r} has more than {limit_bytes} bytes (limits.image_bytes)")
        digest.update(chunk)
        yield chunk
    if "sha256:" + digest.hexdigest() != layer.diff_id:
        raise BadImage(
            f"layer {layer.member.name!r} does not have the digest {layer.diff_id} that the configuration says"
        )


def packed(config: bytes, names: Iterable[str], layers: Iterable[tuple[int, Iterator[bytes]]]) -> Iterator[bytes]:
    """An archive in `docker save`'s own format, piece by piece. `layers`: size and uncompressed bytes; size 0: the engine has it, it is only named."""
    config_name = digest_of(config).removeprefix("sha256:") + ".json"
    yield from _file(config_name, len(config), iter([config]))
    files = []
    for number, (size, chunks) in enumerate(layers):
        files.append(f"{number:03}.tar")
        if size:
            yield from _file(files[-1], size, chunks)
    manifest = json.dumps([{"Config": config_name, "RepoTags": list(names), "Layers": files}]).encode()
    yield from _file("manifest.json", len(manifest), iter([manifest]))
    yield bytes(2 * tarfile.BLOCKSIZE)


def digest_of(data: bytes) -> str:
    """`sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def diff_ids_of(config: bytes) -> tuple[str, ...]:
    """The digests of an image's uncompressed layers, lowest first. Raises BadImage."""
    return _diff_ids(config)


# ------------------------------------------------------------------ reading


class _Headers(io.RawIOBase):
    """An archive as tarfile reads its headers: never much at once, whatever a header says about the length of the next."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= DOCUMENT_BYTES:
            raise BadImage(f"a header of the archive has {size} bytes, at most {DOCUMENT_BYTES} are read")
        data = self._source.read(self._at, size)
        self._at += len(data)
        return data


def _members(source: Source) -> dict[str, Member]:
    """The files of an archive by name; links among them are followed."""
    found: dict[str, Member] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=_Headers(source), mode="r:") as archive:
            for info in archive:
                name = posixpath.normpath(info.name)
                if len(found) + len(links) >= MAX_MEMBERS:
                    raise BadImage(f"the archive has more than {MAX_MEMBERS} files")
                if name in found or name in links:
                    raise BadImage(f"the archive has {name!r} twice")
                if info.isdir():
                    continue
                if info.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
                elif info.isreg() and not info.issparse():
                    found[name] = Member(name, info.offset_data, info.size)
                else:
                    raise BadImage(f"{name!r} in the archive is not a file")
                if info.isreg() and info.offset_data + info.size > source.size:
                    raise BadImage(f"the archive ends in the middle of {name!r}")
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        raise BadImage(f"the archive cannot be read: {error}") from None
    for name, target in links.items():  # `docker save` links a layer that occurs twice; never in a chain
        if target in found:
            found[name] = found[target]
    return found


def _document(source: Source, members: dict[str, Member], name: object) -> bytes:
    member = _member(members, name)
    if member.size > DOCUMENT_BYTES:
        raise BadImage(f"{member.name!r} has {member.size} bytes, at most {DOCUMENT_BYTES} are read")
    return source.read(member.offset, member.size)


def _member(members: dict[str, Member], name: object) -> Member:
    member = members.get(posixpath.normpath(name)) if isinstance(name, str) and name else None
    if member is None:
        raise BadImage(f"the archive has no file {str(name)[:120]!r}, which it names")
    return member


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadImage(f"{what} is not JSON") from None


def _docker(source: Source, members: dict[str, Member]) -> tuple[bytes, list[Member], tuple[str, ...]]:
    """Configuration, layers and names, as manifest.json says."""
    manifest = _json(_document(source, members, "manifest.json"), "manifest.json")
    if not isinstance(manifest, list) or not all(isinstance(one, dict) for one in manifest):
        raise BadImage("manifest.json is not a list of images")
    if len(manifest) != 1:
        raise BadImage(f"the archive holds {len(manifest)} images, one is taken at a time")
    layers = _list(manifest[0].get("Layers"), "Layers")
    config = _document(source, members, manifest[0].get("Config"))
    return config, [_member(members, name) for name in layers], _names(manifest[0].get("RepoTags"))


def _oci(source: Source, members: dict[str, Member]) -> tuple[bytes, list[Member], tuple[str, ...]]:
    """Configuration, layers and names of the one image of an OCI layout."""
    index = _json(_document(source, members, "index.json"), "index.json")
    names: tuple[str, ...] = ()
    for _ in range(3):
        candidates = [one for one in _list(_part(index, "manifests"), "manifests") if _is_image(one)]
        if len(candidates) != 1:
            raise BadImage(f"the layout holds {len(candidates)} images, one is taken at a time")
        about = candidates[0].get("annotations")
        if isinstance(about, dict):
            named = about.get("io.containerd.image.name") or about.get("org.opencontainers.image.ref.name")
            names = names or _names([named] if named and ":" in str(named) else None)
        document = _json(_blob(source, members, candidates[0].get("digest")), "the manifest")
        if candidates[0].get("mediaType") not in _INDEXES and _part(document, "manifests") is None:
            files = [_blob_member(members, _part(one, "digest")) for one in _list(_part(document, "layers"), "layers")]
            return _blob(source, members, _part(_part(document, "config"), "digest")), files, names
        index = document
    raise BadImage("the layout has an index in an index in an index")


def _is_image(one: object) -> bool:
    """Whether an entry of an index is an image; what build tools say about one is not."""
    platform = _part(one, "platform")
    return isinstance(one, dict) and _part(platform, "os") != "unknown"


def _blob_member(members: dict[str, Member], digest: object) -> Member:
    if not isinstance(digest, str) or not ID.fullmatch(digest):
        raise BadImage(f"the layout names {str(digest)[:80]!r}, which is not a SHA-256")
    return _member(members, "blobs/" + digest.replace(":", "/"))


def _blob(source: Source, members: dict[str, Member], digest: object) -> bytes:
    data = _document(source, members, _blob_member(members, digest).name)
    if digest_of(data) != digest:
        raise BadImage(f"a document of the layout does not have its digest {digest}")
    return data


def _diff_ids(config: bytes) -> tuple[str, ...]:
    found = _list(_part(_part(_json(config, "the configuration"), "rootfs"), "diff_ids"), "rootfs.diff_ids")
    if not 0 < len(found) <= MAX_LAYERS:
        raise BadImage(f"the image has {len(found)} layers, 1 to {MAX_LAYERS} are taken")
    for diff_id in found:
        if not isinstance(diff_id, str) or not ID.fullmatch(diff_id):
            raise BadImage(f"the configuration names the layer {str(diff_id)[:80]!r}, which is not a SHA-256")
    return tuple(found)


def _part(document: object, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_MEMBERS:
        raise BadImage(f"{what} is not a list")
    return value


def _names(value: object) -> tuple[str, ...]:
    names = [] if value is None else _list(value, "RepoTags")
    if len(names) > MAX_NAMES:
        raise BadImage(f"the image has {len(names)} names, at most {MAX_NAMES} are taken")
    return tuple(dict.fromkeys(short_name(name) for name in names))


def short_name(name: object) -> str:
    """A name as it is written in a manifest: with its tag, without the default registry. Raises BadImage."""
    text = str(name).removeprefix("docker.io/").removeprefix("library/")
    if ":" not in text.rpartition("/")[2]:
        text += ":latest"
    if not isinstance(name, str) or len(text) > 255 or not NAME.fullmatch(text):
        raise BadImage(f"{str(name)[:80]!r} is not an image's name", hint="Name it as in `vision/augment:3`.")
    return text


def _decoded(source: Source, member: Member) -> Iterator[bytes]:
    raw = (
        source.read(offset, min(STEP_BYTES, member.offset + member.size - offset))
        for offset in range(member.offset, member.offset + member.size, STEP_BYTES)
    )
    head = source.read(member.offset, min(4, member.size))
    if head == _ZSTD:
        raise BadImage(f"layer {member.name!r} is compressed with zstd", hint="Use gzip layers, or `docker save`.")
    if head[:2] != _GZIP:
        yield from raw
        return
    decoder = zlib.decompressobj(31)
    try:
        for data in raw:
            while data:
                yield decoder.decompress(data, STEP_BYTES)
                data = decoder.unconsumed_tail
            if decoder.eof:
                break
    except zlib.error as error:
        raise BadImage(f"layer {member.name!r} cannot be uncompressed: {error}") from None
    if not decoder.eof:
        raise BadImage(f"layer {member.name!r} ends in the middle")


# ------------------------------------------------------------------ writing


def _file(name: str, size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = size
    yield info.tobuf(tarfile.GNU_FORMAT)
    yield from chunks
    yield bytes(-size % tarfile.BLOCKSIZE)
