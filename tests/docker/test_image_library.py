"""Images of a real engine: saved, kept in pieces, given to another PoP, and loaded there as they were."""

import io
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_archives import docker_archive, layer
from link_pops import RedisServer, make_settings

from edgeflow.core.manifest import Artifact, ResolvedFunction, parse, resolve
from edgeflow.runner import library as libraries
from edgeflow.runner.archives import BytesSource
from edgeflow.runner.docker import DockerDriver
from edgeflow.runner.driver import NotHereYet
from edgeflow.runner.engine_images import EngineImages
from edgeflow.runner.keeper import Keeper
from edgeflow.runner.library import ImageLibrary
from edgeflow.runner.pins import pin
from edgeflow.runner.venvs import BuildFailed
from edgeflow.store import Store

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300), pytest.mark.usefixtures("programs")]
PREFIX = "edgeflow-i-test"
BASE = layer({"base": b"0123456789" * 100_000})


class Pops:
    """PoPs a and b over one store and one engine: what replicates is not what is tried here."""

    def __init__(self, folder: Path, engine: Any) -> None:
        self.engine = engine
        base = make_settings(folder, "a", {"a": 1})
        self.redis = RedisServer(folder / "redis", base.store.redis_socket).start()
        self.store = Store.open(base)
        runner = base.runner.model_copy(update={"image_prefix": PREFIX})
        self.settings = {
            pop: base.model_copy(update={"pop": pop, "runner": runner, "mode": "docker"}) for pop in ("a", "b")
        }
        self.drivers = {pop: DockerDriver(settings, engine, self.store) for pop, settings in self.settings.items()}

    def images(self, pop: str) -> EngineImages:
        images = self.drivers[pop].images
        assert images is not None
        return images

    def library(self, pop: str) -> ImageLibrary:
        return ImageLibrary(self.store, pop, self.settings[pop].limits.image_bytes)

    def keeper(self, pop: str, clock_ms: Callable[[], int] | None = None) -> Keeper:
        more = {} if clock_ms is None else {"clock_ms": clock_ms}
        return Keeper(self.settings[pop], self.store, self.images(pop), **more)

    def names(self) -> list[str]:
        """What is on the engine under our prefix."""
        return sorted(name for one in self.engine.images.list() for name in one.tags if name.startswith(PREFIX))

    def close(self) -> None:
        self.store.close()
        self.redis.kill()
        for name in self.names():
            self.engine.images.remove(name, force=True)


@pytest.fixture
def pops(tmp_path_factory: pytest.TempPathFactory, engine: Any) -> Iterator[Pops]:
    pops = Pops(tmp_path_factory.mktemp("d"), engine)
    try:
        yield pops
    finally:
        pops.close()


@pytest.fixture
def made(engine: Any, pops: Pops) -> Callable[[str], Any]:
    """`made("edgeflow-i-test/one:1")` puts an image of two layers on the engine; its upper one is new each time."""

    def make(name: str) -> Any:
        mark = secrets.token_hex(8).encode()
        (image,) = engine.images.load(docker_archive([BASE, layer({"mark": mark})], name))
        return image

    return make


def function(image: str, id: str | None = None) -> ResolvedFunction:
    manifest = parse(f"namespace: vision\nfunctions: {{f: {{image: '{image}', subscribe: a, place: {{pops: [b]}}}}}}")
    document = pin(resolve(manifest, {"f": Artifact(image=image)}, applied_ms=1), lambda _name: id)
    return ResolvedFunction.model_validate(document["functions"]["f"], context={"namespace": "vision"})


def content(engine: Any, image: str | None, path: str = "/mark") -> bytes:
    """A file of an image."""
    container = engine.containers.create(image, command=["none"])
    try:
        chunks, _ = container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            assert file is not None
            return file.read()
    finally:
        container.remove(force=True)


def test_an_image_goes_through_the_library_and_comes_out_as_it_was(pops: Pops, made: Callable[[str], Any]) -> None:
    name = f"{PREFIX}/one:1"
    image = made(name)
    mark = content(pops.engine, name)
    stored = pops.images("a").give(image.id)
    assert stored is not None and (stored.id, stored.names) == (image.id, ())
    pops.engine.images.remove(name, force=True)
    lines: list[str] = []
    prepared = pops.drivers["b"].prepare("vision", "f", function(name, image.id), None, lines.append)
    assert prepared.image == image.id and content(pops.engine, image.id) == mark
    assert pops.names() == [f"{PREFIX}/loaded:{image.id[7:31]}"], "the user's name is not touched"
    assert f"loading image {image.id[7:19]}" in lines


def test_layers_that_the_engine_has_are_not_needed(pops: Pops, made: Callable[[str], Any]) -> None:
    """The base image is on the engine: its pieces may be at no PoP that can be reached."""
    name = f"{PREFIX}/one:1"
    image = made(name)
    mark = content(pops.engine, name)
    stored = pops.images("a").give(image.id)
    assert stored is not None and len(stored.layers) == 2
    pops.engine.images.remove(name, force=True)
    system = pops.store.namespace("system")
    for piece in stored.layers[0].pieces:
        system.remove_files([piece.digest.encode()])
        system.delete(f"pieces/{piece.digest[7:]}")
    assert content(pops.engine, pops.images("b").load(stored)) == mark


def test_a_moved_tag_does_not_change_what_was_pinned(pops: Pops, made: Callable[[str], Any]) -> None:
    name = f"{PREFIX}/one:1"
    first = made(name)
    assert pops.images("a").give(first.id) is not None  # for another PoP: that gives it no name
    pinned = function(name, pops.images("a").resolve(name))
    assert pinned.image_id == first.id
    first.tag(f"{PREFIX}/kept:1")
    second = made(name)
    assert pops.images("a").resolve(name) == second.id != first.id
    assert pops.drivers["b"].prepare("vision", "f", pinned, None, print).image == first.id


def test_what_only_one_engine_has_is_given_when_another_pop_wants_it(
    pops: Pops, made: Callable[[str], Any], tmp_path: Path
) -> None:
    name = f"{PREFIX}/one:1"
    image = made(name)
    archive = b"".join(image.save(named=True))
    pops.engine.images.remove(name, force=True)
    with pytest.raises(NotHereYet, match="waiting for image"):
        pops.drivers["b"].prepare("vision", "f", function(name, image.id), None, print)
    assert pops.keeper("a").give_wanted() == 0, "no engine has it"
    pops.engine.images.load(archive)
    assert pops.keeper("b").give_wanted() == 0, "the wish is its own"
    assert pops.keeper("a").give_wanted() == 1
    pops.engine.images.remove(name, force=True)
    assert pops.drivers["b"].prepare("vision", "f", function(name, image.id), None, print).image == image.id
    assert list(pops.store.namespace("system").list("image-wants/")) == []


def test_a_part_that_no_pop_in_reach_has_is_waited_for(
    pops: Pops, made: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{PREFIX}/one:1"
    image = made(name)
    stored = pops.images("a").give(image.id)
    assert stored is not None
    pops.engine.images.remove(name, force=True)
    system = pops.store.namespace("system")
    body = system.read_blob(stored.layers[1].pieces[0].digest)
    assert body is not None
    monkeypatch.setattr(libraries, "FETCH_S", 0.3)
    for piece in stored.pieces():
        system._connection.run(
            [("DEL", f"ef:{{system}}:blob:{piece.digest}"), ("HDEL", "ef:{system}:blobs", piece.digest)]
        )
    with pytest.raises(NotHereYet, match="waiting for a part of image"):
        pops.drivers["b"].prepare("vision", "f", function(name, image.id), None, print)
    pops.engine.images.load(
        docker_archive([BASE], f"{PREFIX}/base:1")
    )  # the engine gets the lower layer in another way
    system.put_blob(body)
    assert pops.drivers["b"].prepare("vision", "f", function(name, image.id), None, print).image == image.id


def test_a_name_with_a_digest_is_that_image(pops: Pops, made: Callable[[str], Any]) -> None:
    name = f"{PREFIX}/one:1"
    image = made(name)
    pops.images("a").give(image.id)
    pops.engine.images.remove(name, force=True)
    prepared = pops.drivers["b"].prepare("vision", "f", function(f"{PREFIX}/one@{image.id}"), None, print)
    assert prepared.image == image.id
    with pytest.raises(NotHereYet):
        pops.drivers["b"].prepare("vision", "f", function(f"{PREFIX}/one@sha256:{'0' * 64}"), None, print)


def test_a_missing_base_image_comes_from_the_library(pops: Pops, made: Callable[[str], Any], tmp_path: Path) -> None:
    from edgeflow.runner import bundles

    base = made(f"{PREFIX}/function:latest")
    pops.library("a").take(BytesSource(b"".join(base.save(named=True))))
    pops.engine.images.remove(f"{PREFIX}/function:latest", force=True)
    (tmp_path / "handler.py").write_text(f"MARK = {secrets.token_hex(8)!r}\n")
    digest, data = bundles.pack(tmp_path)
    manifest = parse("namespace: vision\nfunctions: {f: {build: ./f, subscribe: a, place: {pops: [b]}}}")
    document = resolve(manifest, {"f": Artifact(bundle=digest)}, applied_ms=1)
    built = ResolvedFunction.model_validate(document["functions"]["f"], context={"namespace": "vision"})
    tag = pops.drivers["b"].prepare("vision", "f", built, data, print).image
    assert tag is not None and b"MARK" in content(pops.engine, tag, "/function/handler.py")


def test_unused_images_leave_the_engine_after_their_grace_but_never_one_in_use(
    pops: Pops, made: Callable[[str], Any]
) -> None:
    name = f"{PREFIX}/one:1"
    image = made(name)
    stored = pops.images("a").give(image.id)
    assert stored is not None
    made(f"{PREFIX}/mine:1")  # a user's own: never touched
    pops.engine.images.remove(name, force=True)
    loaded = f"{PREFIX}/loaded:{image.id[7:31]}"
    pops.images("b").load(stored)
    system = pops.store.namespace("system")
    system.put("manifests/vision", b'{"functions": {"f": {"image_id": "%s"}}}' % image.id.encode())
    now_ms = [stored.pushed_ms]
    keeper = pops.keeper("b", lambda: now_ms[0])
    now_ms[0] += 400 * 3_600_000
    assert keeper.clean()["engine"] == 0 and loaded in pops.names()
    system.delete("manifests/vision")
    assert keeper.clean()["engine"] == 0, "the grace begins now"
    now_ms[0] += 169 * 3_600_000
    container = pops.engine.containers.create(image.id, command=["none"])
    try:
        assert keeper.clean()["engine"] == 0 and loaded in pops.names(), "a container is made from it"
    finally:
        container.remove(force=True)
    assert keeper.clean()["engine"] == 1
    assert pops.names() == [f"{PREFIX}/mine:1"]


def test_a_layer_that_would_escape_stays_inside(pops: Pops, tmp_path: Path) -> None:
    """Files of a layer are unpacked by the engine, in a root of their own."""
    target = f"/tmp/edgeflow-i-escaped-{secrets.token_hex(4)}"
    archive = docker_archive([layer({f"../../../../../../..{target}": b"x", "mark": b"y"})], f"{PREFIX}/evil:1")
    stored, _ = pops.library("a").take(BytesSource(archive))
    try:
        pops.images("b").load(stored)
    except BuildFailed as error:
        assert "does not load" in error.message
    assert not Path(target).exists()


def test_an_image_that_the_engine_refuses_says_why(pops: Pops) -> None:
    stored, _ = pops.library("a").take(BytesSource(docker_archive([b"no tar at all" * 100], f"{PREFIX}/bad:1")))
    with pytest.raises(BuildFailed, match="the engine does not load image"):
        pops.images("b").load(stored)
    assert pops.names() == []


def test_the_archive_that_is_loaded_has_what_it_should(pops: Pops, made: Callable[[str], Any]) -> None:
    image = made(f"{PREFIX}/one:1")
    stored = pops.images("a").give(image.id)
    assert stored is not None
    data = b"".join(pops.library("a").archive(stored, "x:1", 1))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert "000.tar" not in archive.getnames() and archive.getmember("001.tar").size == stored.layers[1].size


def test_a_folder_is_built_named_and_pushed(
    pops: Pops, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgeflow build FOLDER --tag NAME --push`, with the PoP's side played by the library."""
    from contextlib import contextmanager

    from edgeflow.cli import images as commands

    (tmp_path / "Dockerfile").write_text(f"FROM scratch\nLABEL mark={secrets.token_hex(8)}\nCOPY Dockerfile /mark\n")
    pushed: list[Any] = []

    class Client:
        def push_image(self, chunks: Any, names: list[str], _size: object) -> dict[str, str]:
            stored, _ = pops.library("a").take(BytesSource(b"".join(chunks())), names)
            pushed.append(stored)
            return {"pop": stored.pop, "id": stored.id}

    @contextmanager
    def client_of(_pop: str | None, **_more: float) -> Iterator[Client]:
        yield Client()

    monkeypatch.setattr(commands, "client_of", client_of)
    name = f"{PREFIX}/folder:1"
    built = commands.build_folder(tmp_path, name, print, push=True, pop=None)
    try:
        assert engine.images.get(name).id == built["id"] == pushed[0].id and name in pushed[0].names
        assert built["pushed"] == "a" and built["names"][0].startswith("edgeflow/")
        again = commands.build_folder(tmp_path, None, print, push=False, pop=None)
        assert (again["image"], again["id"], again["pushed"]) == (built["names"][0], built["id"], None)
    finally:
        engine.images.remove(built["names"][0], force=True)
