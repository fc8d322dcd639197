"""Who is out as a PoP sees it, when its store is told, and when what was pending at a start is given out again."""

from collections.abc import Collection

from edgeflow.cluster.takeover import PAUSE_S, RETURN_WAIT_S, Takeover
from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.routing import RouteTable, compile_routes

SHARED = "namespace: app\nfunctions: {f: {image: i, subscribe: x, place: {pops: [la, ny, chicago]}}}\n"
ALONE = "namespace: app\nfunctions: {f: {image: i, subscribe: x, place: {pops: [la]}}}\n"


def table(text: str) -> RouteTable:
    return compile_routes(resolve(parse(text), {"f": Artifact(image="i")}, applied_ms=1), "la")


class World:
    """A store with one namespace, peers, a clock; `moves` is how many pieces a distribution has."""

    def __init__(self, text: str = SHARED) -> None:
        self.pop = "la"
        self.is_held = False
        self.table = table(text)
        self.calls: list[tuple[list[str], bool]] = []
        self.moves = 0
        self.left = 0
        self.states = {"la": "up", "ny": "up", "chicago": "up"}
        self.complete: dict[str, float | None] = {"ny": None, "chicago": None}
        self.now_s = 100.0
        self.work: list[tuple[str, list[str]]] = []
        self.takeover = Takeover(
            self, self, lambda name, inboxes: self.work.append((name, inboxes)), lambda: self.now_s
        )

    def namespace(self, name: str) -> "World":
        assert name == "app"
        return self

    def routes(self) -> RouteTable:
        return self.table

    def set_out(self, pops: Collection[str], *, again: bool = False) -> bool:
        self.calls.append((sorted(pops), again))
        self.left = self.moves
        return self.left > 0

    def sweep(self) -> tuple[bool, list[str]]:
        self.left -= 1
        return self.left > 0, ["f:1"]

    def peers(self) -> list[str]:
        return ["ny", "chicago"]

    def state(self, pop: str) -> str:
        return self.states[pop]

    def complete_s(self, namespace: str, peer: str) -> float | None:
        return self.complete[peer]

    def look(self, passed_s: float = 0.1) -> None:
        self.now_s += passed_s
        self.takeover.look(["app"])


def test_the_store_is_told_when_the_picture_changes_and_not_otherwise() -> None:
    world = World()
    world.look()
    world.look()
    world.states["ny"] = "down"
    world.look()
    world.states["chicago"] = "draining"
    world.look()
    world.states["ny"] = "joining"
    world.look()
    world.states.update(ny="up", chicago="up")
    world.look()
    assert world.calls == [([], True), (["ny"], False), (["chicago", "ny"], False), ([], False)]


def test_a_suspect_is_what_it_was() -> None:
    world = World()
    world.states["ny"] = "suspect"
    world.look()
    world.states["ny"] = "down"
    world.look()
    world.states["ny"] = "suspect"
    world.look()
    assert world.calls == [([], True), (["ny"], False)]


def test_another_table_is_distributed_anew_and_one_without_several_pops_ends_it() -> None:
    world = World()
    world.look()
    world.table = table(SHARED.replace("subscribe: x", "subscribe: y"))
    world.look()
    world.table = table(ALONE)
    world.look()
    world.look()
    assert world.calls == [([], True)] * 3
    alone = World(ALONE)
    alone.look()
    assert alone.calls == []


def test_a_long_distribution_goes_on_at_the_next_looks() -> None:
    world = World()
    world.moves = 50
    for _ in range(3):
        world.look()
    assert world.left == 0 and len(world.work) == 50 and len(world.calls) == 1


def test_after_a_start_nothing_is_given_out_until_those_that_are_heard_have_told() -> None:
    world = World()
    world.states.update(ny="suspect", chicago="suspect")
    world.takeover.start(["app"])
    world.look()
    assert world.is_held
    world.states.update(ny="up", chicago="down")
    world.complete["ny"] = 99.0
    world.look()
    assert world.is_held, "it was complete before this PoP was gone"
    world.complete["ny"] = 101.0
    world.look()
    assert not world.is_held


def test_alone_it_waits_until_it_sees_the_others_down() -> None:
    world = World()
    world.takeover.start(["app"])
    world.states.update(ny="down", chicago="left")
    world.look()
    assert not world.is_held


def test_a_peer_that_does_not_get_complete_is_not_waited_for_for_ever() -> None:
    world = World()
    world.takeover.start(["app"])
    for _ in range(int(RETURN_WAIT_S) + 2):
        assert world.is_held or world.now_s > 100 + RETURN_WAIT_S
        world.look(1.0)
    assert not world.is_held


def test_a_process_that_stood_still_asks_again() -> None:
    world = World()
    world.complete.update(ny=100.0, chicago=100.0)
    world.look()
    assert not world.is_held
    world.look(PAUSE_S + 1)
    assert world.is_held
    world.complete.update(ny=world.now_s, chicago=world.now_s)
    world.look()
    assert not world.is_held
