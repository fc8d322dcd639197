"""Archives of images: both formats, and everything that can be wrong with one."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from typing import Any

import pytest
from api_fakes import FakeStore
from image_archives import config_of, digest, docker_archive, layer, oci_archive, tar

from edgeflow.runner import archives
from edgeflow.runner.archives import BadImage, BytesSource, look, packed, unpacked
from edgeflow.runner.library import ImageLibrary

BASE = layer({"bin/sh": b"#!" + os.urandom(3000)})
TOP = layer({"app": b"hello"})
MIB = 1024 * 1024
GIB = 1024**3


def content(data: bytes, limit_bytes: int = GIB) -> list[bytes]:
    """The uncompressed layers of an archive."""
    source = BytesSource(data)
    return [b"".join(unpacked(source, one, limit_bytes)) for one in look(source).layers]


def test_an_archive_of_docker_save() -> None:
    data = docker_archive([BASE, TOP], "vision/augment:3", "docker.io/library/other:latest")
    image = look(BytesSource(data))
    assert image.id == digest(image.config) == digest(config_of([BASE, TOP]))
    assert image.names == ("vision/augment:3", "other:latest")
    assert [one.diff_id for one in image.layers] == [digest(BASE), digest(TOP)]
    assert content(data) == [BASE, TOP]


def test_a_layer_that_occurs_twice_is_a_link() -> None:
    assert content(docker_archive([BASE, TOP, BASE])) == [BASE, TOP, BASE]


@pytest.mark.parametrize("compressed", [True, False])
def test_an_oci_layout(compressed: bool) -> None:
    data = oci_archive([BASE, TOP], "vision/augment:3", compressed=compressed)
    image = look(BytesSource(data))
    assert (image.id, image.names) == (digest(config_of([BASE, TOP])), ("vision/augment:3",))
    assert content(data) == [BASE, TOP]


def test_what_is_packed_is_what_was_unpacked() -> None:
    config = config_of([BASE, TOP])
    data = b"".join(packed(config, ["a/b:1"], [(len(BASE), iter([BASE])), (len(TOP), iter([TOP[:100], TOP[100:]]))]))
    assert look(BytesSource(data)).names == ("a/b:1",) and content(data) == [BASE, TOP]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [member.size for member in archive] == [
            len(config),
            len(BASE),
            len(TOP),
            archive.getmember("manifest.json").size,
        ]


def test_a_layer_that_the_engine_has_is_named_only() -> None:
    data = b"".join(packed(config_of([BASE, TOP]), [], [(0, iter([])), (len(TOP), iter([TOP]))]))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        (about,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
    assert about["Layers"] == ["000.tar", "001.tar"] and "001.tar" in names and "000.tar" not in names


def refused(data: bytes, match: str, limit_bytes: int = GIB) -> BadImage:
    with pytest.raises(BadImage, match=match) as caught:
        content(data, limit_bytes)
    assert caught.value.hint
    return caught.value


def manifest(**changes: Any) -> bytes:
    about = {"Config": "config.json", "RepoTags": None, "Layers": ["l0/layer.tar"], **changes}
    return docker_archive([BASE], manifest=[about])


def test_every_cut_is_refused() -> None:
    """Wherever an archive ends too early: nothing but BadImage comes of it, unless all that is missing is the end mark."""
    data = docker_archive([layer({"a": b"x" * 900})], "a:1")
    end = data.rindex(b"manifest.json") + 512 + 512
    for length in [*range(0, end - 512, 512), *range(17, end - 512, 997)]:
        with pytest.raises(BadImage):
            content(data[:length])


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "l0/../../x", "", 7, None, ["l0"], "blobs/../../../../etc/shadow"]
)
def test_a_name_that_leads_outside_is_no_file_of_the_archive(path: object) -> None:
    refused(manifest(Layers=[path]), "has no file")
    refused(manifest(Config=path), "has no file")


def test_links_lead_nowhere_but_into_the_archive() -> None:
    for target in ("/etc/passwd", "../../../etc/passwd", "l9/layer.tar", "config.json/.."):
        data = tar(
            {
                "config.json": config_of([BASE]),
                "manifest.json": json.dumps([{"Config": "config.json", "Layers": ["l0"]}]).encode(),
            },
            {"l0": target},
        )
        refused(data, "has no file 'l0'")


def test_a_layer_with_another_digest_is_refused() -> None:
    refused(docker_archive([BASE], config=config_of([TOP])), "does not have the digest")
    spoilt = bytearray(docker_archive([BASE]))
    spoilt[spoilt.index(b"#!") + 40] ^= 1
    refused(bytes(spoilt), "does not have the digest")


def test_a_document_with_another_digest_is_refused() -> None:
    data = bytearray(oci_archive([BASE]))
    data[data.index(b'"amd64"') + 1] ^= 1
    refused(bytes(data), "does not have its digest")


def test_sizes_are_bounded() -> None:
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    data = tar(
        {
            "config.json": config_of([bytes(50 * 1024 * 1024)]),
            "l": bomb,
            "manifest.json": b'[{"Config": "config.json", "Layers": ["l"]}]',
        }
    )
    refused(data, "more than 1000000 bytes", limit_bytes=1_000_000)
    big = docker_archive([BASE], config=config_of([BASE]) + b" " * archives.DOCUMENT_BYTES)
    refused(big, "at most")
    refused(tar({f"f{n}": b"" for n in range(archives.MAX_MEMBERS + 1)}), "more than 10000 files")
    refused(docker_archive([BASE], config=config_of([BASE] * 129)), "129 layers")
    refused(manifest(RepoTags=[f"a:{n}" for n in range(archives.MAX_NAMES + 1)]), "21 names")


def test_a_header_that_announces_gigabytes_is_not_read() -> None:
    """A pax header of 3 GiB would be read at once."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 3 * GIB

    class Endless:
        size = 4 * GIB

        def read(self, offset: int = 0, length: int | None = None) -> bytes:
            assert length is not None and length <= archives.DOCUMENT_BYTES
            return (info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))[offset : offset + length].ljust(length, b"\0")

    with pytest.raises(BadImage, match="a header of the archive"):
        look(Endless())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "cannot be read"),
        (b"not a tar" * 200, "cannot be read"),
        (gzip.compress(docker_archive([BASE])), "is compressed"),
        (tar({"readme": b"x"}), "neither manifest.json nor index.json"),
        (docker_archive([BASE], manifest=[]), "holds 0 images"),
        (docker_archive([BASE], manifest=[{}, {}]), "holds 2 images"),
        (docker_archive([BASE], manifest={"Config": 1}), "not a list"),
        (docker_archive([BASE], config=b"[]"), "rootfs.diff_ids is not a list"),
        (docker_archive([BASE], config=b"{"), "not JSON"),
        (docker_archive([BASE], config=b"[" * 100_000), "not JSON"),
        (docker_archive([BASE], config=config_of([])), "has 0 layers"),
        (docker_archive([BASE], config=config_of([BASE, TOP])), "names 2 layers"),
        (docker_archive([BASE], config=config_of([BASE], rootfs={"diff_ids": ["../x"]})), "not a SHA-256"),
        (docker_archive([BASE], "Not A Name"), "not an image's name"),
        (oci_archive([BASE], index={"manifests": []}), "holds 0 images"),
        (oci_archive([BASE], index={"manifests": [{"digest": "sha256:../../x"}]}), "not a SHA-256"),
        (docker_archive([b"\x28\xb5\x2f\xfd" + bytes(600)]), "zstd"),
        (docker_archive([gzip.compress(BASE)[:-300]], config=config_of([BASE])), "ends in the middle"),
        (docker_archive([b"\x1f\x8b" + bytes(600)], config=config_of([BASE])), "cannot be uncompressed"),
    ],
)
def test_bad_archives_are_refused_by_name(data: bytes, match: str) -> None:
    refused(data, match)


def test_files_that_are_none_are_refused() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("device")
        info.type = tarfile.CHRTYPE
        archive.addfile(info)
    refused(out.getvalue(), "not a file")
    twice = tar({"a": b"1"})[:1024] + tar({"./a": b"2"})
    refused(twice, "twice")


@pytest.mark.parametrize(
    ("name", "short"), [("a", "a:latest"), ("docker.io/library/a:1", "a:1"), ("host:5000/a/b", "host:5000/a/b:latest")]
)
def test_names_are_as_in_a_manifest(name: str, short: str) -> None:
    assert archives.short_name(name) == short


class Virtual:
    """An archive of one layer of zeros that is never in memory as a whole."""

    def __init__(self, size: int) -> None:
        whole = hashlib.sha256()
        for _ in range(size // MIB):
            whole.update(bytes(MIB))
        config = config_of([], rootfs={"diff_ids": ["sha256:" + whole.hexdigest()]})
        manifest = json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()
        head = tar({"c": config, "manifest.json": manifest}).rstrip(b"\0")
        head += bytes(-len(head) % 512)
        info = tarfile.TarInfo("l")
        info.size = size
        self._head = head + info.tobuf(tarfile.GNU_FORMAT)
        self.size = len(self._head) + size + 1024

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        end = self.size if length is None else min(self.size, offset + length)
        return self._head[offset:end] + bytes(max(0, end - max(offset, len(self._head))))


def test_memory_does_not_grow_with_the_size_of_an_image() -> None:
    store = FakeStore()
    library = ImageLibrary(store, "chicago", GIB)  # type: ignore[arg-type]
    source = Virtual(128 * MIB)
    tracemalloc.start()
    try:
        image, _ = library.take(source)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 24 * MIB
        assert image.size == 128 * MIB and len(image.pieces()) == 1, "zeros are one piece, stored once"
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert sum(map(len, library.archive(image, "a:1"))) > 128 * MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - taken < 24 * MIB
