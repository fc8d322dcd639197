"""What is measured: cells, each one shape of work in one system, and the turns in which they are measured.

What must stay true: every cell is loaded by the same loop with the same payload and the same attributes; the cells take turns, round by round, so that what else the
machine does hits all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from redis import Redis

from bench.flow import functions
from bench.flow.functions import WINDOW, Shape
from bench.flow.http_function import HttpStage
from bench.flow.http_generator import HttpGenerator
from bench.flow.nats_generator import NatsGenerator
from bench.flow.nats_server import KEEP, NatsStage, deliveries, step_name
from bench.generator import OWN_ID, Flood, Generator, MqttGenerator, drive
from bench.measures import ATTRIBUTES, CONTENT_TYPE, ECHO, FAST_ECHO, PAYLOAD_BYTES
from bench.stage import PLAIN, Say, Stage

HTTP_WINDOW = 64
"""The same for HTTP, where each takes connections of its own; more make it no faster."""
WARM_SHARE = 0.25

System = Literal["edgeflow", "bare echo", "NATS", "NATS, sync always", "HTTP", "generator alone"]
Open = Callable[[int], AbstractContextManager[Generator]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One shape of work in one system, loaded by the generator that `open(messages under way)` gives."""

    system: System
    shape: str
    open: Open
    answers: int = 1
    low: bool = True
    """Whether it is measured one message at a time."""
    window: int = WINDOW

    @property
    def name(self) -> str:
        """What it is called in results."""
        return f"{self.system}: {self.shape}"


@dataclass
class Measured:
    """The rounds of one cell: one message at a time, and many under way."""

    low: list[Flood] = field(default_factory=list)
    full: list[Flood] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long (seconds) each cell is measured."""

    rounds: int
    low_s: float
    full_s: float
    overload_s: float


def edgeflow(stage: Stage, shape: Shape, *, low: bool = True) -> Cell:
    """A shape in edgeflow."""
    return Cell("edgeflow", shape.name, _mqtt(stage, shape), shape.count, low, shape.window)


def relaxed(stage: Stage) -> Cell:
    """The chain of one while the store syncs its file once a second: nearer to what the others promise."""
    strict = edgeflow(stage, functions.chain(1))

    @contextmanager
    def opened(window: int) -> Iterator[Generator]:
        store = Redis(unix_socket_path=stage.store_socket)
        store.config_set("appendfsync", "everysec")
        try:
            with strict.open(window) as generator:
                yield generator
        finally:
            store.config_set("appendfsync", "always")
            store.close()

    return Cell("edgeflow", functions.RELAXED, opened)


def echoes(stage: Stage) -> list[Cell]:
    """The bare echoes of both kinds (their processes must run), and the generator talking to itself through the broker."""
    shapes = [Shape(path.name, [path.requests], path.answers, qos=path.qos) for path in (ECHO, FAST_ECHO)]
    itself = Shape("MQTT", [f"{PLAIN}/self"], f"{PLAIN}/self")
    return [
        *(Cell("bare echo", f"QoS {shape.qos}", _mqtt(stage, shape)) for shape in shapes),
        Cell("generator alone", itself.name, _mqtt(stage, itself), low=False),
    ]


def nats(stage: NatsStage) -> list[Cell]:
    """The chains, the worker that keeps a value, and the generator talking to itself through the server."""
    system: System = "NATS, sync always" if stage.always else "NATS"
    length = stage.length

    def opened(requests: str, answers: str, stored: bool = True) -> Open:
        return lambda _window: closing(
            NatsGenerator(stage.port, requests, answers, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES, stored=stored)
        )

    cells = [
        Cell(system, functions.chain(steps).name, opened(step_name(length - steps), deliveries(step_name(length))))
        for steps in range(1, length + 1)
    ]
    cells.append(Cell(system, functions.KEEP.name, opened(KEEP[0], deliveries(KEEP[1]))))
    if not stage.always:
        cells.append(Cell("generator alone", "NATS", opened("self", "self", stored=False), low=False))
    return cells


def http(stage: HttpStage) -> list[Cell]:
    """The chains, and the generator with a server that does nothing."""

    def opened(ports: Sequence[int]) -> Open:
        return lambda window: closing(HttpGenerator(ports, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES, window))

    chains = [
        Cell("HTTP", functions.chain(length).name, opened(stage.ports[:length]), window=HTTP_WINDOW)
        for length in range(1, len(stage.ports) + 1)
    ]
    return [*chains, Cell("generator alone", "HTTP", opened([stage.bare_port]), low=False, window=HTTP_WINDOW)]


def measure(
    cells: Sequence[Cell], plan: Plan, pids: Mapping[str, int], say: Say, results: dict[str, Measured] | None = None
) -> dict[str, Measured]:
    """All cells in turns, by name; a short warm-up of each goes before and is not kept."""
    results = {} if results is None else results
    for number in range(plan.rounds + 1):
        for cell in cells:
            say(f"{cell.name}, {f'round {number} of {plan.rounds}' if number else 'warm-up'}")
            share = 1.0 if number else WARM_SHARE
            low = one(cell, 1, plan.low_s * share, pids) if cell.low else None
            full = one(cell, cell.window, plan.full_s * share, pids)
            if number:
                found = results.setdefault(cell.name, Measured())
                found.low += [low] if low else []
                found.full.append(full)
    return results


def one(cell: Cell, window: int, seconds: float, pids: Mapping[str, int]) -> Flood:
    """One round of one cell."""
    with cell.open(window) as generator:
        return drive(generator, seconds, window, answers=cell.answers, pids=pids)


def _mqtt(stage: Stage, shape: Shape) -> Open:
    numbered = {**OWN_ID, **({"subject": shape.subjects} if shape.subjects != 1 else {})}
    return lambda _window: closing(
        MqttGenerator(
            stage.broker, shape.requests, shape.answers, ATTRIBUTES, CONTENT_TYPE, PAYLOAD_BYTES, numbered=numbered, qos=shape.qos
        )
    )  # fmt: skip
