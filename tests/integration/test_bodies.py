"""Bodies on a real Redis: streamed in and out, checked piece by piece, set aside when they are damaged, cached within a budget."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_pops import NAME, StorePop

from edgeflow.errors import CorruptBlob, StoreFull, TooLarge
from edgeflow.store.blobs import PIECE_BYTES, Room, digest_of
from edgeflow.store.replica import ReplicatedNamespace

MIB = 1024 * 1024


class Pop(StorePop):
    """One whose files can be looked at."""

    @property
    def blobs(self) -> Path:
        return self.settings.state_dir / "blobs" / NAME

    def file(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.blobs / name[:2] / name

    def files(self) -> list[Path]:
        """All files of bodies, finished or not; damaged ones that were set aside apart."""
        return [path for path in self.blobs.rglob("*") if path.is_file() and path.name != ".lock" and path.parent.name != ".damaged"]  # fmt: skip


@pytest.fixture
def pops(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Pop]]:
    folder = tmp_path_factory.mktemp("s")
    opened: list[Pop] = []

    def open_pop(pop: str = "a", **limits: int) -> Pop:
        opened.append(Pop(folder, pop, **limits))
        return opened[-1]

    yield open_pop
    for pop in opened:
        pop.close()


def flip(path: Path, offset: int) -> None:
    """One bit of a file turns over."""
    with open(path, "r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 0x10]))


def stream(ns: ReplicatedNamespace, data: bytes, step: int = 100_000) -> str:
    writer = ns.blob_writer()
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
    return writer.finish().digest


class TestWriting:
    @pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 262_143, 262_144, 3 * PIECE_BYTES + 1, 5 * MIB, 5 * MIB + 77])
    def test_a_body_comes_back_as_it_was_whole_and_in_ranges(self, pops: Callable[..., Pop], size: int) -> None:
        ns = pops().ns
        data = os.urandom(size)
        digest = stream(ns, data)
        assert digest == digest_of(data)
        assert ns.blob_size(digest) == size
        assert ns.read_blob(digest) == data
        for offset, length in (
            (0, 1),
            (0, size),
            (size // 2, 70_000),
            (PIECE_BYTES - 1, 2),
            (max(0, size - 3), 10),
            (size, 5),
        ):
            assert ns.read_blob_range(digest, offset, length) == data[offset : offset + length]

    def test_it_does_not_matter_in_which_steps_it_came(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        data = os.urandom(MIB + 5)
        assert stream(pop.ns, data, 1013) == pop.ns.put_blob(data).digest == stream(pop.ns, data, MIB)
        assert len(pop.files()) == 1

    def test_what_is_not_finished_leaves_nothing(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        writer = pop.ns.blob_writer()
        writer.write(os.urandom(MIB))
        assert len(pop.files()) == 1
        writer.abort()
        assert pop.files() == []

    def test_another_digest_than_was_said_is_refused_and_leaves_nothing(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        for size in (1000, MIB):
            writer = pop.ns.blob_writer()
            writer.write(os.urandom(size))
            with pytest.raises(CorruptBlob):
                writer.finish(digest_of(b"something else"))
        assert pop.files() == []

    def test_too_large_and_no_room_are_said_while_it_comes(
        self, pops: Callable[..., Pop], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pop = pops(value_bytes=2 * MIB)
        writer = pop.ns.blob_writer()
        writer.write(bytes(2 * MIB))
        with pytest.raises(TooLarge):
            writer.write(b"x")
        writer.abort()
        writer = pop.ns.blob_writer()
        writer.write(bytes(MIB))

        def full(self: Room) -> None:
            raise StoreFull("no room")

        monkeypatch.setattr(Room, "check", full)
        with pytest.raises(StoreFull):
            writer.write(b"x")
        writer.abort()
        assert pop.files() == []

    def test_what_an_ended_writer_left_is_removed_and_a_living_one_is_not_disturbed(
        self, pops: Callable[..., Pop]
    ) -> None:
        pop = pops()
        living = pop.ns.blob_writer()
        living.write(bytes(MIB))
        (pop.blobs / ".incoming-dead").write_bytes(b"half")
        assert pop.ns.sweep_files() == 1
        assert living.finish().size == MIB

    def test_a_file_that_the_store_never_heard_of_is_removed_when_it_is_old(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        kept = pop.ns.put_blob(os.urandom(MIB)).digest
        for age_s in (10, 100_000):
            stray = pop.file(digest_of(b"%d" % age_s))
            stray.parent.mkdir(exist_ok=True)
            stray.write_bytes(b"x")
            os.utime(stray, (os.stat(stray).st_mtime - age_s,) * 2)
        assert sum(pop.ns.sweep_files() for _ in range(256)) == 1
        assert pop.file(kept).exists() and pop.file(digest_of(b"10")).exists()

    def test_many_writers_of_one_body_and_a_collector_at_once(self, pops: Callable[..., Pop]) -> None:
        """The collector takes the body away at any time. What the store says is readable must be."""
        pop = pops()
        bodies = [os.urandom(300_000) for _ in range(3)]
        failures: list[str] = []
        stored: list[str] = []
        ended = threading.Event()

        def put() -> None:
            for n in range(30):
                data = bodies[n % 3]
                stored.append(digest_of(data))
                with pop.ns.placed_body(data) as (ref, commands):
                    pop.ns._routed(lambda _again, commands=commands: commands())
                    if pop.ns.read_blob(ref.digest) not in (data, None):
                        failures.append("another body")

        def collect() -> None:
            while not ended.is_set():
                for data in bodies:
                    digest = digest_of(data)
                    pop.ns._connection.one("HDEL", pop.ns.prefix + "blobs", digest)
                    pop.ns.remove_files([digest.encode()])

        writers = [threading.Thread(target=put) for _ in range(4)]
        collector = threading.Thread(target=collect)
        collector.start()
        for one in writers:
            one.start()
        for one in writers:
            one.join(60)
        ended.set()
        collector.join(10)
        assert failures == [] and len(stored) == 120
        assert "bodies_damaged" not in pop.ns.counters()
        for digest in set(stored):
            assert pop.file(digest).exists() or not pop.ns.has_blob(digest)


class TestDamage:
    def test_a_flipped_bit_is_never_handed_out(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        data = os.urandom(MIB)
        digest = pop.ns.put("k", data) and pop.ns.head("k").digest  # type: ignore[union-attr]
        assert digest is not None
        flip(pop.file(digest), 5 * PIECE_BYTES + 17)
        assert pop.ns.read_blob_range(digest, 0, 4 * PIECE_BYTES) == data[: 4 * PIECE_BYTES]
        with pytest.raises(CorruptBlob):
            pop.ns.read_blob_range(digest, 5 * PIECE_BYTES, 10)
        assert not pop.ns.has_blob(digest)
        assert pop.ns.missing_blobs() == [digest]
        assert not pop.file(digest).exists()
        assert pop.ns.counters()["bodies_damaged"] == 1

    @pytest.mark.parametrize("change", ["checksum", "cut", "longer", "gone", "small"])
    def test_every_kind_of_damage_is_noticed_and_mended_by_the_same_body(
        self, pops: Callable[..., Pop], change: str
    ) -> None:
        pop = pops()
        data = os.urandom(100_000 if change == "small" else MIB)
        pop.ns.put("k", data)
        digest = digest_of(data)
        path = pop.file(digest)
        if change == "checksum":
            flip(path, path.stat().st_size - 2)
        elif change == "cut":
            os.truncate(path, PIECE_BYTES)
        elif change == "longer":
            path.write_bytes(path.read_bytes() + b"x" * 100)
        elif change == "gone":
            path.unlink()
        else:
            pop.ns._connection.one("SETRANGE", f"{pop.ns.prefix}blob:{digest}", 50_000, b"damage")
        with pytest.raises(CorruptBlob):
            pop.ns.read_blob(digest)
        assert pop.ns.read_blob(digest) is None
        assert pop.ns.missing_blobs() == [digest]
        pop.ns.add_blob(digest, data)
        assert pop.ns.read_blob(digest) == data
        assert pop.ns.missing_blobs() == []

    def test_an_open_reader_goes_on_when_the_body_is_removed(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        data = os.urandom(MIB)
        digest = pop.ns.put_blob(data).digest
        body = pop.ns.open_blob(digest)
        assert body is not None
        pop.file(digest).unlink()
        assert body.read(0, 1000) + body.read(1000) == data
        body.close()

    def test_damage_that_was_found_in_a_file_that_was_replaced_does_not_take_the_new_one(
        self, pops: Callable[..., Pop]
    ) -> None:
        pop = pops()
        data = os.urandom(MIB)
        pop.ns.put("k", data)
        digest = digest_of(data)
        flip(pop.file(digest), 10)
        late = pop.ns.open_blob(digest)
        assert late is not None
        with pytest.raises(CorruptBlob):
            pop.ns.read_blob(digest)
        pop.ns.add_blob(digest, data)
        with pytest.raises(CorruptBlob):
            late.read()
        assert pop.ns.read_blob(digest) == data

    def test_only_some_damaged_files_are_kept(self, pops: Callable[..., Pop]) -> None:
        pop = pops()
        for n in range(12):
            digest = pop.ns.put_blob(os.urandom(300_000 + n)).digest
            flip(pop.file(digest), 3)
            with pytest.raises(CorruptBlob):
                pop.ns.read_blob(digest)
        assert len(list((pop.blobs / ".damaged").iterdir())) == 8
        assert pop.ns.missing_blobs() == []  # nothing refers to them
