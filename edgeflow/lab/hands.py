"""What can be done to a running cluster: to its links, and to the processes of its PoPs.

What it is: `Hands`, the same verbs for both modes, and the parts of a PoP that they reach. `hands_on` gives those of a cluster.
What it is not: the means: local processes in embedded.py, containers in compose.py, the link proxy in host/wan.py.
What must stay true: a cluster is hurt only if it runs on this machine, or if somebody insisted; what a verb did can be undone by `heal` and `resume`; a verb that returned
has been carried out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from time import monotonic, sleep
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from edgeflow.host.discover import Cluster
from edgeflow.host.layout import Home
from edgeflow.host.linkfile import Line, Link
from edgeflow.lab.errors import BadTrouble, NotALab, NotInTime, NotPossibleHere

Part = Literal["control", "data", "broker", "redis", "instances"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In the order in which they are hurt: who starts others first."""
State = Literal["runs", "paused", "down"]
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Target:
    """A PoP, or one part of it."""

    pop: str
    part: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return PARTS if self.part is None else (self.part,)

    def __str__(self) -> str:
        return self.pop if self.part is None else f"{self.pop}/{self.part}"


@dataclass(frozen=True)
class Split:
    """What `partition` cuts: `pop` from `others`; `one_way`: only what `pop` sends."""

    pop: str
    others: tuple[str, ...]
    one_way: bool = False


class Hands(ABC):
    """The verbs of the lab on one cluster. Raises BadTrouble, NoSuchPop, NotInTime."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    # -- links ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def links(self) -> tuple[list[Link], dict[tuple[str, str], int]]:
        """The links as they are, and the bytes that were carried from one PoP to another."""

    @abstractmethod
    def change(
        self, a: str, b: str, *, delay_ms: float | None = None, cut: bool | None = None, kbit_s: float | None = None,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        """Change one link, both directions or only what goes from `a` to `b`."""

    def wan(
        self, pairs: Iterable[tuple[str, str]], *, delay_ms: float | None, kbit_s: float | None, one_way: bool = False
    ) -> None:
        """Make these links long or narrow."""
        for a, b in pairs:
            self.change(a, b, delay_ms=delay_ms, kbit_s=kbit_s, one_way=one_way)

    def partition(self, split: Split) -> None:
        """Cut a PoP off from others."""
        for other in split.others:
            self.change(split.pop, other, cut=True, one_way=split.one_way)

    def heal(self, *, all: bool = False) -> None:
        """End every cut; with `all` every delay and bound too."""
        none = 0.0 if all else None
        for link in self.links()[0]:
            lines = (link.line(link.a), link.line(link.b))
            if any(line.cut or (all and line != Line()) for line in lines):
                self.change(link.a, link.b, cut=False, delay_ms=none, kbit_s=none)

    def pairs(self) -> list[tuple[str, str]]:
        """Every pair of PoPs that has a link."""
        known = {frozenset((link.a, link.b)) for link in self.links()[0]}
        return [pair for pair in combinations(self.cluster.pops, 2) if frozenset(pair) in known]

    # -- processes -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def kill(self, target: Target, *, stay_down: bool = False) -> None:
        """`kill -9`. What watches over the processes starts them again, unless they are to stay down until `resume` (a whole PoP only)."""

    @abstractmethod
    def restart(self, pop: str) -> None:
        """End all of a PoP in good order, as for an update of its machine, and start it again."""

    @abstractmethod
    def pause(self, target: Target) -> None:
        """Stop processes where they are, with all that they hold; their connections stay open."""

    @abstractmethod
    def resume(self, pop: str) -> None:
        """What is paused at a PoP goes on, what is down is started."""

    @abstractmethod
    def parts(self, pop: str) -> dict[Part, State]:
        """How each part of a PoP is. Instances are "down" where there are none."""

    def target(self, text: str) -> Target:
        """The target that `la` or `la/data` names. Raises NoSuchPop, BadTrouble."""
        pop, slash, part = text.partition("/")
        self.cluster.pop(pop)
        if not slash:
            return Target(pop)
        if part == "store":
            part = "redis"  # as the compose file calls it
        if part not in PARTS:
            raise BadTrouble(f"{part[:40]!r} is no part of a PoP.", hint=f"Parts: {', '.join(PARTS)}.")
        return Target(pop, part)

    def pair(self, text: str) -> tuple[str, str]:
        """The two PoPs of `la,ny`. Raises NoSuchPop, BadTrouble."""
        a, comma, b = text.partition(",")
        if not (a and comma and b) or "," in b or a == b:
            raise BadTrouble(f"{text[:60]!r} does not name two PoPs.", hint="For example: la,ny")
        self.cluster.pop(a), self.cluster.pop(b)
        return a, b

    def split(self, text: str, *, one_way: bool) -> Split:
        """What `la` (from all others) or `la,ny` (that link) stands for. Raises NoSuchPop, BadTrouble."""
        if "," in text:
            a, b = self.pair(text)
            return Split(a, (b,), one_way)
        self.cluster.pop(text)
        others = tuple(pop for pop in self.cluster.pops if pop != text)
        if not others:
            raise BadTrouble(f"{text} is the only PoP: there is nothing to cut it off from.")
        reached = {frozenset(pair) for pair in self.pairs()}
        out_of_reach = [other for other in others if frozenset((text, other)) not in reached]
        if out_of_reach:
            raise NotPossibleHere(
                f"The links between {text} and {', '.join(out_of_reach)} do not go through the link proxy.",
                hint=f"Name a pair that does: {'; '.join(','.join(pair) for pair in self.pairs()) or 'there is none'}.",
            )
        return Split(text, others, one_way)

    def no_down_part(self, target: Target) -> NotPossibleHere:
        """The refusal of a part that is to stay down."""
        return NotPossibleHere(
            f"{target} cannot stay down alone.", hint="--stay-down is for whole PoPs; `pause` stops a single part."
        )


def hands_on(cluster: Cluster, *, anyway: bool = False) -> Hands:
    """The hands on this cluster. Raises NotALab."""
    if cluster.mode == "embedded":
        from edgeflow.lab.embedded import EmbeddedHands

        return EmbeddedHands(cluster)
    hosts = {str(urlsplit(access.api_url).hostname) for access in cluster.pops.values()}
    if not (hosts <= LOOPBACK or anyway):
        raise NotALab(f"Its PoPs answer at {', '.join(sorted(hosts - LOOPBACK))}, not on this machine.")
    from edgeflow.lab.compose import ComposeHands

    return ComposeHands(cluster)


def home_of(cluster: Cluster, pop: str) -> Home:
    """The folder that the supervisor of an embedded PoP runs from: the cluster's, or one below it for a PoP that joined later."""
    joined = Home(cluster.home.root / "joined" / pop)
    return joined if joined.cluster_file.exists() else cluster.home


def until(condition: Callable[[], Any], what: str, deadline_s: float = 30.0, every_s: float = 0.02) -> Any:
    """Wait until `condition()` is true; its value. Raises NotInTime."""
    end_s = monotonic() + deadline_s
    while not (value := condition()):
        if monotonic() > end_s:
            raise NotInTime(f"Not within {deadline_s:g} s: {what}.")
        sleep(every_s)
    return value


def overall(parts: Mapping[Part, State]) -> str:
    """One word for a PoP: runs, paused, down, or `partly …`."""
    states = {state for part, state in parts.items() if part != "instances"}
    if len(states) == 1:
        return next(iter(states))
    return "partly " + " and ".join(sorted(states - {"runs"}))
