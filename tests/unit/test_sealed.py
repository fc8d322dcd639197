"""Secrets at rest open only for their cluster, under their own name."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeflow.errors import NoSecretsHere, SecretMissing
from edgeflow.store.sealed import Sealer, SecretBook

KEY, OTHER = "k" * 43, "o" * 43
VALUE = b"hunter2-and-a-bit-more"


@dataclass
class Item:
    key: str
    version: str
    data: bytes = b""


class System:
    """The system namespace in memory."""

    def __init__(self) -> None:
        self.values: dict[str, Item] = {}
        self.writes = 0

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> list[Item]:
        return [item for key, item in sorted(self.values.items()) if key.startswith(prefix) and key > after][:limit]

    def get(self, key: str) -> Item | None:
        return self.values.get(key)

    def put(self, key: str, data: bytes, *, content_type: str | None = None) -> Item:
        self.writes += 1
        self.values[key] = Item(key, f"v{self.writes}", data)
        return self.values[key]

    def delete(self, key: str) -> None:
        del self.values[key]


def test_what_is_sealed_opens_under_its_place_only() -> None:
    sealer = Sealer(KEY, "c-1")
    sealed = sealer.seal("vision", "key", VALUE)
    assert sealer.open("vision", "key", sealed) == VALUE
    assert VALUE not in sealed and sealer.seal("vision", "key", VALUE) != sealed
    others = [(sealer, "vision", "other"), (sealer, "audio", "key"), (Sealer(KEY, "c-2"), "vision", "key"), (Sealer(OTHER, "c-1"), "vision", "key")]  # fmt: skip
    for one, namespace, name in others:
        with pytest.raises(NoSecretsHere) as refused:
            one.open(namespace, name, sealed)
        assert VALUE.decode() not in str(refused.value) + refused.value.hint


@pytest.mark.parametrize("damage", ["", "{}", "[]", "not json", '{"key": "x", "nonce": "", "data": ""}'])
def test_damaged_values_are_refused(damage: str) -> None:
    with pytest.raises(NoSecretsHere, match="vision/key"):
        Sealer(KEY, "c").open("vision", "key", damage.encode())


def test_a_flipped_bit_is_noticed() -> None:
    sealer = Sealer(KEY, "c")
    document = json.loads(sealer.seal("vision", "key", VALUE))
    first = "A" if document["data"][0] != "A" else "B"
    document["data"] = first + document["data"][1:]
    with pytest.raises(NoSecretsHere, match="damaged"):
        sealer.open("vision", "key", json.dumps(document).encode())


def test_a_book_keeps_lists_and_forgets() -> None:
    system = System()
    book = SecretBook(lambda: system, Sealer(KEY, "c"))
    first = book.set("vision", "key", VALUE)
    book.set("vision2", "key", b"another")
    assert [(one.name, one.version) for one in book.list("vision")] == [("key", first)]
    assert book.read("vision", ["key"]) == {"key": (first, VALUE)}
    assert all(VALUE not in item.data for item in system.values.values())
    second = book.set("vision", "key", b"new")
    assert second != first and book.read("vision", ["key"])["key"] == (second, b"new")
    with pytest.raises(SecretMissing, match="vision/gone") as missing:
        book.read("vision", ["key", "gone"])
    assert "edgeflow secret set vision/gone" in missing.value.hint
    assert book.remove("vision", "key") and not book.remove("vision", "key")
    assert book.list("vision") == []


def test_without_a_key_nothing_is_taken_or_read(tmp_path: Path) -> None:
    system = System()
    assert Sealer.load(None, "c") is Sealer.load(tmp_path / "none", "c") is None
    (tmp_path / "short").write_text("x")
    assert Sealer.load(tmp_path / "short", "c") is None
    (tmp_path / "good").write_text(KEY + "\n")
    loaded = Sealer.load(tmp_path / "good", "c")
    assert loaded is not None and loaded.key_id == Sealer(KEY, "c").key_id != Sealer(OTHER, "c").key_id
    book = SecretBook(lambda: system, None)
    for act in (lambda: book.set("vision", "key", VALUE), lambda: book.read("vision", ["key"])):
        with pytest.raises(NoSecretsHere):
            act()
    assert system.values == {}
