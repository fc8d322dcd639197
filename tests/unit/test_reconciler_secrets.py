"""The reconciler: secrets that functions are given."""

from pathlib import Path

from runner_world import World

from edgeflow.store.sealed import Sealer, SecretBook


def with_secrets(world: World, folder: Path) -> SecretBook:
    """Gives the PoP the cluster's key; the secrets as an operator sets them."""
    (folder / "secrets.key").write_text("k" * 43)
    runner = world.settings.runner.model_copy(update={"secrets_key_file": folder / "secrets.key"})
    world.settings = world.settings.model_copy(update={"runner": runner})
    world.begin()
    return SecretBook(lambda: world.store.namespace("system"), Sealer("k" * 43, world.settings.cluster))


def test_a_secret_is_waited_for_given_and_its_change_replaces_what_runs(world: World, tmp_path: Path) -> None:
    book = with_secrets(world, tmp_path)
    book.set("other", "token", b"of another namespace")
    world.apply("{f: {image: i, subscribe: a, secrets: [token]}}")
    world.settle()
    assert world.driver.started == [] and world.state()["state"] == "failing"
    assert (
        "vision/token is not set" in world.state()["reason"]
        and "edgeflow secret set vision/token" in world.state()["reason"]
    )

    book.set("vision", "token", b"hunter2")
    world.round()
    (first,) = world.driver.started
    assert first.secrets == {"token": b"hunter2"} and "hunter2" not in repr(first)
    world.become("ready")
    world.round(3)
    assert world.state()["state"] == "ready" and len(world.driver.started) == 1

    book.set("vision", "token", b"two")
    world.round()
    second = world.driver.started[1]
    assert second.secrets == {"token": b"two"} and second.revision == first.revision
    world.round()
    assert world.driver.stopped == [], "the first one works until the second one is ready"
    world.become("ready", second.instance)
    world.round()
    assert world.driver.stopped == [first.instance]


def test_a_secret_that_is_removed_stays_with_what_runs(world: World, tmp_path: Path) -> None:
    book = with_secrets(world, tmp_path)
    book.set("vision", "token", b"one")
    world.apply("{f: {image: i, subscribe: a, secrets: [token]}}")
    world.settle()
    (spec,) = world.driver.started
    world.become("ready")
    world.round()
    book.remove("vision", "token")
    world.round(3, later_ms=1000)
    assert world.driver.stopped == [] and set(world.driver.instances) == {spec.instance}
    assert world.state()["state"] == "failing" and "is not set" in world.state()["reason"]


def test_a_pop_without_the_key_says_so(world: World) -> None:
    SecretBook(lambda: world.store.namespace("system"), Sealer("k" * 43, "c")).set("vision", "token", b"one")
    world.apply("{f: {image: i, subscribe: a, secrets: [token]}}")
    world.settle()
    assert world.state()["state"] == "failing" and "secrets_key_file" in world.state()["reason"]
