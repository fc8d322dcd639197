"""`python -m bench.flow`: shapes of applications in edgeflow, beside a bare echo, NATS and a chain of HTTP functions, in one run.

What it is: latency one message at a time, messages per second with many under way, more instances of one function, and overload; as Markdown and as JSON.
What it is not: a test. It exits with 0 whatever the figures are; an answer that was lost or came twice stands in the table.
"""

import gc
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import machine, measures
from bench.command import run
from bench.flow import cells, functions, http_function, nats_server, overload, report
from bench.flow.cells import Measured, Plan
from bench.generator import quantile
from bench.measures import ECHO, FAST_ECHO, PAYLOAD_BYTES
from bench.stage import Stage, bare_echo, running

SOLO = "solo"
POPS = ("chicago", "la", "ny")
MEASURED = "la"
OUTPUT = Path("bench-output/bench-flow.json")
INSTANCES = (1, 2, 3, 4)
FULL = Plan(rounds=3, low_s=0.7, full_s=1.3, overload_s=4.0)
QUICK = Plan(rounds=1, low_s=0.4, full_s=0.6, overload_s=2.0)


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
    """Measure shapes of applications in edgeflow, side by side with a bare paho echo, NATS JetStream and a chain of HTTP functions."""
    plan = QUICK if quick else FULL
    plan = replace(plan, rounds=rounds or plan.rounds)
    run("bench-flow", nats_program, file, lambda program, say: measure(plan, program, say), report.markdown)


def measure(plan: Plan, nats_program: Path, say: Any) -> dict[str, Any]:
    """The document: machine, settings, and the rounds of every cell."""
    started_s = time.monotonic()
    # Collections of the generator's own garbage would be measured as pauses of what it measures.
    gc.collect()
    gc.disable()
    own = {"generator": os.getpid()}
    results: dict[str, Measured] = {}
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "at_ms": time.time_ns() // 1_000_000,
        "settings": {
            "rounds": plan.rounds, "low_s": plan.low_s, "full_s": plan.full_s, "window": functions.WINDOW, "http_window": cells.HTTP_WINDOW,
            "payload_bytes": PAYLOAD_BYTES, "slow_handler_ms": functions.SLOW_S * 1000,
        },
    }  # fmt: skip
    with ExitStack() as stack:
        stage = stack.enter_context(running([SOLO], SOLO, say, functions.write_all))
        say("starting the references")
        root = stage.cluster.home.root
        always = nats_server.knows_sync_always(nats_program)
        servers = [
            stack.enter_context(nats_server.running(nats_program, root / f"nats-{sync}", functions.CHAIN, always=sync))
            for sync in (False, True)[: 2 if always else 1]
        ]
        web = stack.enter_context(http_function.running(functions.CHAIN))
        document["nats"] = {"version": servers[0].version, "sync_always": always}
        with ExitStack() as echoing:
            pids = {**own, **stage.pids(), **web.pids, **_start_echoes(echoing, stage)}
            for server in servers:
                pids |= {f"{name}, sync always" if server.always else name: pid for name, pid in server.pids.items()}
            shapes = [cells.edgeflow(stage, functions.chain(length)) for length in range(1, functions.CHAIN + 1)]
            shapes += [cells.edgeflow(stage, shape) for shape in functions.OTHERS]
            everything = [*shapes, cells.relaxed(stage), *cells.echoes(stage)]
            for server in servers:
                everything += cells.nats(server)
            everything += cells.http(web)
            document["fdatasync_ms"] = _fdatasyncs(stage)
            cells.measure(everything, plan, pids, say, results)
        for count in INSTANCES:
            say(f"scaling to {count}")
            stage.apply(functions.write_all(root / "bench-application", SOLO, instances=count))
            slow = cells.edgeflow(stage, functions.slow(count), low=False)
            cells.measure([slow], plan, {**own, **stage.pids()}, say, results)
        say("applying what is overloaded")
        stage.apply(functions.write_overloaded(root / "bench-application", SOLO))
        capacities = {functions.SLOW: functions.slow(1), "echo": functions.chain(1)}
        capacity_per_s = {
            handler: report.cell_json(results[f"edgeflow: {shape.name}"])["full"]["events_per_s"]
            for handler, shape in capacities.items()
        }
        document["overload"] = {
            "times": overload.TIMES, "seconds": plan.overload_s, "max_pending": functions.MAX_PENDING, "subjects": functions.SUBJECTS,
            "results": overload.all_policies(stage, capacity_per_s, plan.overload_s, say),
        }  # fmt: skip
    with running(POPS, MEASURED, say, functions.write_chain_of_one) as stage:
        three = cells.edgeflow(stage, functions.THREE_POPS)
        cells.measure([three], plan, {**own, **stage.pids()}, say, results)
    gc.enable()
    document["cells"] = {name: report.cell_json(one) for name, one in results.items()}
    document["busy_elsewhere_percent"] = report.busy_elsewhere_percent(document["cells"], document["machine"]["cores"])
    document["took_s"] = round(time.monotonic() - started_s, 1)
    return document


def _start_echoes(stack: ExitStack, stage: Stage) -> dict[str, int]:
    """The bare echoes, which answer with what edgeflow puts on an event that it publishes; their pids."""
    shape = functions.chain(1)
    path = measures.Path(shape.name, shape.requests[0], shape.answers)
    attributes, content_type = measures.published_attributes(stage, path)
    return {
        f"echo {one.qos}": stack.enter_context(
            bare_echo(stage.broker, one.requests, one.answers, attributes, content_type, qos=one.qos)
        )
        for one in (ECHO, FAST_ECHO)
    }


def _fdatasyncs(stage: Stage) -> dict[str, float]:
    """p50 and p99 of appends with fdatasync in the cluster's folder, while nothing else writes."""
    times_ms = machine.fdatasyncs_ms(stage.cluster.home.root, measures.FSYNCS * 3, pause_s=measures.FSYNC_PAUSE_S)
    return {
        "p50": round(quantile(times_ms, 0.5), 4), "p99": round(quantile(times_ms, 0.99), 4)
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
