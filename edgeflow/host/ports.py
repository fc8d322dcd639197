"""Port numbers: fixed defaults, kept from the last start, moved only when taken."""

import itertools
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

API_PORT = 8101
MQTT_PORT = 1891
LINK_PORT = 7101
WAN_PORT = 7201
"""First port of each kind; the n-th PoP (the n-th pair, for the link proxy) gets the n-th number from here."""

ANY_FROM, ANY_TO = 10_000, 32_768
"""Where `any_free` looks: below the numbers that systems give to connections by themselves, one of which could take a port before it is listened on."""

FIRST = {"api": API_PORT, "mqtt": MQTT_PORT, "link": LINK_PORT, "wan": WAN_PORT}
SEARCH = 400

Name = tuple[str, str]
"""(kind, owner): ("api", "chicago"), ("wan", "chicago,la")."""


@dataclass(frozen=True)
class Moved:
    """A port that was taken by something else."""

    kind: str
    owner: str
    wanted: int
    got: int

    def __str__(self) -> str:
        return f"{self.owner}: port {self.wanted} ({self.kind}) is taken, using {self.got}"


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether one could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


# Programs that look at the same moment begin at different places, and no number is given twice while there are others.
_numbers = itertools.count(os.getpid() * 7919)


def any_free(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on."""
    span = ANY_TO - ANY_FROM
    for number in itertools.islice(_numbers, span):
        port = ANY_FROM + number % span
        if is_free(port, host):
            return port
    raise OSError("no free port")


def assign(
    names: Iterable[Name], before: Mapping[Name, int], *, free: Callable[[int], bool] = is_free
) -> tuple[dict[Name, int], list[Moved]]:
    """Give each name a port: the one it had before, else its default, else the next free one.

    Returns the ports and those that had to move away from what was wanted.
    """
    ordered = list(names)
    index: dict[str, int] = {}
    wanted: dict[Name, int] = {}
    for kind, owner in ordered:
        position = index.get(kind, 0)
        index[kind] = position + 1
        wanted[kind, owner] = before.get((kind, owner), FIRST[kind] + position)
    reserved = set(wanted.values())  # a port that moves must not take what the next one is entitled to
    ports: dict[Name, int] = {}
    moved: list[Moved] = []
    for name in ordered:
        kind, owner = name
        port = wanted[name]
        if port in ports.values() or not free(port):
            start = FIRST[kind] + 20
            candidates = (p for p in range(start, start + SEARCH) if p not in reserved and p not in ports.values())
            port = next((candidate for candidate in candidates if free(candidate)), 0) or any_free()
            moved.append(Moved(kind, owner, wanted[name], port))
        ports[name] = port
    return ports, moved
