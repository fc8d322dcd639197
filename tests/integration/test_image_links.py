"""Images between PoPs: real stores, real links, and what goes over them."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from image_archives import digest, docker_archive, layer
from link_pops import LinkedPair

from edgeflow.errors import NotFound
from edgeflow.runner import library as libraries
from edgeflow.runner.archives import BadImage, BytesSource, look, unpacked
from edgeflow.runner.keeper import Keeper
from edgeflow.runner.library import ImageAway, ImageLibrary, StoredImage

Wait = Callable[..., Any]
MIB = 1024 * 1024
GIB = 1024**3
HOUR_MS = 3_600_000
BASE = layer({"lib/base": os.urandom(9 * MIB), "lib/more": bytes(5 * MIB)})
pytestmark = pytest.mark.usefixtures("programs")


def app(mark: str, size: int = MIB) -> list[bytes]:
    """The layers of an image on the common base."""
    return [BASE, layer({"app": mark.encode() + os.urandom(size)})]


class Pair(LinkedPair):
    """PoPs a and b with libraries of images; what goes over the line is counted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.libraries = {name: ImageLibrary(store, name, GIB) for name, store in self.stores.items()}
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._serve, args=(name,), daemon=True) for name in self.pops]
        for thread in self._threads:
            thread.start()

    def _serve(self, name: str) -> None:
        """What the data process does when it is woken."""
        links = self.pops[name].links

        def step() -> None:
            links.serve()
            links.notify({"system"})

        while not self._is_over.wait(0.02):
            self.pops[name].call(step)

    def push(self, layers: list[bytes], *names: str, at: str = "a") -> StoredImage:
        return self.libraries[at].take(BytesSource(docker_archive(layers, *names)))[0]

    def known(self, id: str, at: str = "b") -> StoredImage | None:
        return self.libraries[at].get(id)

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(5)
        super().stop()


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("i"))
    try:
        yield pair
    finally:
        pair.stop()


def restored(library: ImageLibrary, image: StoredImage) -> list[bytes]:
    """The layers in the archive that an engine would be given."""
    source = BytesSource(b"".join(library.archive(image, "x/loaded:1")))
    return [b"".join(unpacked(source, one, GIB)) for one in look(source).layers]


def test_a_second_image_on_the_same_base_moves_its_own_layers_only(pair: Pair, wait_until: Wait) -> None:
    first_layers, second_layers = app("first"), app("second")
    first = pair.push(first_layers, "vision/one:1")
    assert wait_until(lambda: pair.known(first.id), "the image is known at b") == first
    quiet = pair.line.passed_bytes
    assert quiet < MIB, "pieces travel only when they are asked for"
    came = pair.libraries["b"].fetch(first)
    moved_first = pair.line.passed_bytes - quiet
    assert came <= moved_first < 1.1 * came and restored(pair.libraries["b"], first) == first_layers
    second = pair.push(second_layers, "vision/two:1")
    wait_until(lambda: pair.known(second.id), "the second image is known at b")
    before = pair.line.passed_bytes
    pair.libraries["b"].fetch(second)
    moved_second = pair.line.passed_bytes - before
    print(
        f"first image {moved_first} bytes on the link, second {moved_second}: {100 * moved_second / moved_first:.1f} %"
    )
    assert 0 < moved_second < 0.15 * moved_first
    assert restored(pair.libraries["b"], second) == second_layers
    assert pair.libraries["b"].fetch(second) == 0


def test_what_is_here_is_enough_while_the_link_is_cut(
    pair: Pair, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = app("here")
    image = pair.push(layers)
    away = pair.push(app("away"))
    wait_until(lambda: pair.known(away.id), "both images are known at b")
    pair.libraries["b"].fetch(image)
    pair.line.cut()
    assert restored(pair.libraries["b"], image) == layers
    monkeypatch.setattr(libraries, "FETCH_S", 0.5)
    with pytest.raises(ImageAway, match="cannot be fetched"):
        pair.libraries["b"].fetch(away)
    pair.line.heal()
    monkeypatch.setattr(libraries, "FETCH_S", 120.0)
    pair.libraries["b"].fetch(away)
    assert pair.libraries["b"].absent(away) == []


def test_a_fetch_that_was_cut_goes_on_with_the_rest(
    pair: Pair, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [layer({"data": os.urandom(40 * MIB)})]
    image = pair.push(layers)
    wait_until(lambda: pair.known(image.id), "the image is known at b")
    monkeypatch.setattr(libraries, "FETCH_S", 2.0)
    pair.line.cut_after_bytes = 20 * MIB
    with pytest.raises(ImageAway):
        pair.libraries["b"].fetch(image)
    assert 0 < len(pair.libraries["b"].absent(image)) < len(image.pieces())
    before = pair.line.passed_bytes
    pair.line.heal()
    monkeypatch.setattr(libraries, "FETCH_S", 120.0)
    pair.libraries["b"].fetch(image)
    assert pair.line.passed_bytes - before < 32 * MIB
    assert restored(pair.libraries["b"], image) == layers


def test_a_damaged_piece_is_fetched_again_and_a_forged_one_refused(pair: Pair, wait_until: Wait) -> None:
    layers = app("damaged", 3 * MIB)
    image = pair.push(layers)
    wait_until(lambda: pair.known(image.id), "the image is known at b")
    pair.libraries["b"].fetch(image)
    text = image.layers[1].pieces[0].digest.removeprefix("sha256:")
    with open(pair.settings["b"].state_dir / "blobs" / "system" / text[:2] / text, "r+b") as file:
        file.seek(MIB)
        file.write(b"damage")
    assert restored(pair.libraries["b"], image) == layers
    # A value that says other pieces than the image has: the pieces are sound, the layer is not.
    other = pair.push(app("other"))
    forged = StoredImage(image.id, (), image.config, (image.layers[0], type(image.layers[1])(image.layers[1].diff_id, image.layers[1].size, other.layers[1].pieces)), 1, "a")  # fmt: skip
    pair.stores["a"].namespace("system").put("images/" + image.id[7:], forged.dump())
    found = wait_until(lambda: pair.known(image.id) == forged and forged, "the forged value is at b")
    pair.libraries["b"].fetch(found)
    with pytest.raises(BadImage, match="is not what it should be"):
        restored(pair.libraries["b"], found)


def test_the_same_image_pushed_twice_is_stored_once_and_names_move(pair: Pair, wait_until: Wait) -> None:
    layers = app("same")
    first = pair.push(layers, "vision/x:1")
    wait_until(lambda: pair.known(first.id), "the image is known at b")
    again, is_new = pair.libraries["b"].take(BytesSource(docker_archive(layers, "vision/x:2")))
    assert not is_new and again.layers == first.layers and set(again.names) == {"vision/x:1", "vision/x:2"}
    assert list(pair.libraries["b"].keys("pieces/")) == sorted(f"pieces/{piece.digest[7:]}" for piece in first.pieces())
    other = pair.push(app("moved"), "vision/x:1", at="b")
    library = pair.libraries["b"]
    found = [
        library.find(name) for name in ("vision/x:1", "vision/x:2", f"any/name@{first.id}", first.id, "vision/none")
    ]
    assert [one and one.id for one in found] == [other.id, first.id, first.id, first.id, None]


def test_an_upload_that_is_refused_leaves_no_image(pair: Pair) -> None:
    spoilt = bytearray(docker_archive(app("spoilt")))
    spoilt[-4 * MIB // 5] ^= 1
    with pytest.raises(BadImage):
        pair.libraries["a"].take(BytesSource(bytes(spoilt)))
    assert pair.libraries["a"].all() == []
    with pytest.raises(BadImage, match="more than 1000 bytes"):
        ImageLibrary(pair.stores["a"], "a", 1000).take(BytesSource(docker_archive(app("large"))))
    with pytest.raises(NotFound):
        pair.libraries["a"].remove(digest(b"none"))


class Clock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


def test_the_keeper_removes_what_nothing_uses_after_its_grace_and_nothing_else(pair: Pair, wait_until: Wait) -> None:
    used, named, unused = pair.push(app("used")), pair.push(app("named"), "vision/n:1"), pair.push(app("unused"))
    system = pair.stores["a"].namespace("system")
    system.put(
        "manifests/vision",
        b'{"functions": {"f": {"image": "vision/f:1", "image_id": "%s"}, "g": {"image": "vision/n:1", "bundle": null}}}'
        % used.id.encode(),
    )
    system.put("revisions/vision/gone/abc", b'{"spec": {"image_id": "%s"}}' % unused.id.encode())
    system.put("revisions/vision/f/abc", b'{"spec": {"bundle": "%s"}}' % (b"b" * 64))
    for bundle in ("a", "b"):
        system.put(f"bundles/{bundle * 64}", b"an archive")
    clock = Clock()
    keeper = Keeper(pair.settings["a"], pair.stores["a"], clock_ms=clock)
    assert not any(keeper.clean().values()), "nothing goes before its grace is over"
    clock.ahead_ms = 169 * HOUR_MS
    removed = keeper.clean()
    assert (removed["images"], removed["bundles"]) == (1, 1) and removed["pieces"] == len(unused.layers[1].pieces)
    library = pair.libraries["a"]
    assert {image.id for image in library.all()} == {used.id, named.id} and library.absent(used) == []
    assert system.head("bundles/" + "a" * 64) is None and system.head("bundles/" + "b" * 64) is not None
    assert not any(keeper.clean().values())
    assert pair.stores["a"].local.get_doc("kept", "removed")["pieces"] == removed["pieces"]
    system.put("manifests/broken", b"{")
    system.delete("manifests/vision")
    with pytest.raises(ValueError):
        keeper.clean()
    assert library.get(used.id) is not None, "a reference that cannot be read stops the clean-up"


def test_a_push_beside_a_clean_up_keeps_its_pieces(pair: Pair) -> None:
    layers = app("again")
    image = pair.push(layers)
    pair.libraries["a"].remove(image.id)
    clock = Clock()
    keeper = Keeper(pair.settings["a"], pair.stores["a"], clock_ms=clock)
    clock.ahead_ms = 167 * HOUR_MS
    assert keeper.clean()["pieces"] == 0
    pair.push(layers)  # writes all of its pieces again
    clock.ahead_ms = 168 * HOUR_MS - 60_000
    assert keeper.clean()["pieces"] == 0 and pair.libraries["a"].absent(image) == []
