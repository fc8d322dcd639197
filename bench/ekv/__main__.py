"""`python -m bench.ekv`: the edge key-value store of two PoPs, beside raw Redis with the same settings, Redis' own replication, and NATS.

What it is: put and get by size, staleness by delay, catching up, and memory; as Markdown and as JSON.
What it is not: a test. It exits with 0 whatever the figures are; a wrong body stands in the table.
"""

import gc
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import machine
from bench.command import run
from bench.ekv import across, cells, report
from bench.ekv.cells import SIZES
from bench.ekv.systems import HttpStore, LibraryStore, NatsStore, RedisStore, System, library, nats_server, redis_server
from bench.generator import quantile
from bench.measures import FSYNC_PAUSE_S, FSYNCS
from bench.stage import Stage
from edgeflow.host.local import LocalCluster

POPS = ("la", "ny")
OUTPUT = Path("bench-output/bench-ekv.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    rounds: int
    seconds: float
    staleness_writes: int
    catch_up: tuple[tuple[int, int], ...]
    """(values, bytes) of each outage."""
    keys: int


FULL = Plan(rounds=3, seconds=1.0, staleness_writes=80, catch_up=((20_000, 100), (1_000, 65_536)), keys=100_000)
QUICK = Plan(rounds=1, seconds=0.6, staleness_writes=30, catch_up=((3_000, 100), (100, 65_536)), keys=10_000)


def main(
    quick: Annotated[
        bool, typer.Option(help="One short round of everything: shows that it works, not how fast it is.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; the tables show medians over them.")] = None,
    nats_program: Annotated[
        str, typer.Option("--nats-server", help="The nats-server to compare with.")
    ] = "nats-server",
    file: Annotated[Path, typer.Option("--json", help="Where the document is written.")] = OUTPUT,
) -> None:
    """Measure the edge key-value store, side by side with raw Redis and NATS."""
    plan = QUICK if quick else FULL
    plan = replace(plan, rounds=rounds or plan.rounds)
    run("bench-ekv", nats_program, file, lambda program, say: measure(plan, program, say), report.markdown)


def measure(plan: Plan, nats_program: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The document."""
    started_s = time.monotonic()
    # Collections of the generator's own garbage would be measured as pauses of what it measures.
    gc.collect()
    gc.disable()
    document: dict[str, Any] = {
        "ekv": 1, "machine": machine.describe(), "at_ms": time.time_ns() // 1_000_000, "sizes": [size.name for size in SIZES],
        "settings": {
            "rounds": plan.rounds, "seconds": plan.seconds, "staleness_writes": plan.staleness_writes,
            "clients": {size.name: size.clients for size in SIZES},
        },
    }  # fmt: skip
    with ExitStack() as stack:
        say("starting two PoPs")
        cluster = stack.enter_context(LocalCluster(POPS))
        stage = Stage(cluster, POPS[0], cluster.pop(POPS[0]))
        root = cluster.home.root
        store = stack.enter_context(library(stage, POPS[0]))
        own, own_pid = stack.enter_context(redis_server(root / "bench-redis"))
        nats_url, nats_pid, document["nats"] = stack.enter_context(nats_server(nats_program, root / "bench-nats"))
        pair = stack.enter_context(across.replica(root / "bench-replica"))
        pids = {**stage.pids(), "generator": os.getpid(), "redis": own_pid, "nats": nats_pid}
        before = machine.usage(pids)
        disk_ms = machine.fdatasyncs_ms(root, FSYNCS * 3, pause_s=FSYNC_PAUSE_S)
        document["fdatasync_ms"] = {"p50": round(quantile(disk_ms, 0.5), 4), "p99": round(quantile(disk_ms, 0.99), 4)}
        # The other PoP has nothing to do meanwhile: what mirrors cost is in the staleness and in what comes after it.
        cluster.set_link(*POPS, cut=True)
        systems: dict[str, Callable[[], System]] = {
            "edgeflow, HTTP": lambda: HttpStore(stage.access.api_url, stage.access.token),
            "edgeflow, store library": lambda: LibraryStore(store),
            "Redis": lambda: RedisStore(own),
            "NATS": lambda: NatsStore(nats_url),
        }
        results = cells.measure(systems, SIZES, plan.rounds, plan.seconds, say)
        sizes = {size.name: size.size for size in SIZES}
        document["cells"] = {
            f"{name}: {what} {size}": cell.to_json(sizes[size]) for (name, size, what), cell in results.items()
        }
        say("memory of keys")
        document["memory"] = {
            "edgeflow": across.memory_of_keys(stage, store, plan.keys),
            "Redis": across.memory_of_redis(own, plan.keys),
        }
        # A server of its own: what the other one has kept of large bodies is given back meanwhile.
        with nats_server(nats_program, root / "bench-nats-memory") as (url, pid, _):
            document["memory"]["NATS"] = across.memory_of_nats(url, pid, plan.keys)
        say("all that was written goes to the other PoP")
        across.heal_and_wait(stage, POPS[1], 0, 0)
        document["staleness"] = _staleness(plan, stage, pair, say)
        document["catch_up"] = {"edgeflow": [], "Redis": []}
        cluster.set_link(*POPS, delay_ms=0)
        for count, size in plan.catch_up:
            say(f"catching up with {count} values of {size} bytes")
            document["catch_up"]["edgeflow"].append(
                across.edgeflow_catch_up(stage, store, POPS[1], count, size).to_json()
            )
            document["catch_up"]["Redis"].append(across.replica_catch_up(pair, count, size).to_json())
        after = machine.usage(pids)
    gc.enable()
    elsewhere = machine.used(before, after)["elsewhere"]
    document["busy_elsewhere_percent"] = round(
        100 * elsewhere / (after.at_s - before.at_s) / document["machine"]["cores"], 1
    )
    document["took_s"] = round(time.monotonic() - started_s, 1)
    return document


def _staleness(
    plan: Plan, stage: Stage, pair: across.Replica, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """In turns, round by round."""
    ours: dict[float, list[across.Staleness]] = {delay: [] for delay in across.DELAYS_MS}
    theirs: dict[float, list[across.Staleness]] = {delay: [] for delay in across.DELAYS_MS}
    for number in range(plan.rounds):
        for delay in across.DELAYS_MS:
            say(f"staleness, {delay} ms apart, round {number + 1}")
            ours[delay].append(across.edgeflow_staleness(stage, POPS[1], delay, plan.staleness_writes))
            theirs[delay].append(pair.staleness(delay, plan.staleness_writes))
    return {
        "edgeflow": [across.medians(rounds) for rounds in ours.values()],
        "Redis": [across.medians(rounds) for rounds in theirs.values()],
    }


if __name__ == "__main__":
    typer.run(main)
