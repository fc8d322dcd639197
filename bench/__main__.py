"""`python -m bench`: the flow of events through one PoP of a running cluster, measured from outside, beside a bare paho echo.

What it is: rows 1 to 4 of the speed goals (docs/benchmarks.md), as a table and as JSON.
What it is not: a test. It exits with 0 also when a goal is missed; the table says so.
"""

import gc
import json
import os
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench import machine, measures, report
from bench.generator import quantile
from bench.pahos import NoAnswer
from bench.stage import Stage, running
from edgeflow.errors import EdgeflowError

POPS = ("chicago", "la", "ny")
OUTPUT = Path("bench-output/flow.json")
IDLE_S = 4.0
WIDTH = 150
"""Columns when the output is not a terminal."""


class Part(StrEnum):
    """What can be measured by itself."""

    FLOW = "flow"
    RATE = "rate"
    SOLO = "solo"
    QOS0 = "qos0"
    CHAIN = "chain"
    IDLE = "idle"


class Output(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


def main(
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of each measurement; the table shows medians over them.")
    ] = 3,
    seconds: Annotated[
        float,
        typer.Option(min=0.2, help="Seconds that the rate is measured in each round; round trips take a third of it."),
    ] = 5.0,
    window: Annotated[int, typer.Option(min=1, help="Events under way while the rate is measured.")] = 300,
    pops: Annotated[
        str,
        typer.Option(
            help="PoPs of the cluster; the second is measured (or the only one). Fewer show what the others cost."
        ),
    ] = ",".join(POPS),
    only: Annotated[list[Part] | None, typer.Option(help="Measure only this; may be given several times.")] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="`json` prints the document instead of the tables.")
    ] = Output.TEXT,
    file: Annotated[Path, typer.Option("--json", help="Where the document is written.")] = OUTPUT,
) -> None:
    """Measure the flow of events through one PoP of a cluster of three, beside a bare paho echo through the same broker."""
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(stderr=output is Output.JSON, highlight=False, width=width)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with console.status("starting") as status:
            document = measure(tuple(pops.split(",")), rounds, seconds, window, set(only or Part), status.update)
    except EdgeflowError as error:
        console.print(f"[red]{error.message}[/]\n{error.hint}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted; the cluster has ended")
        raise typer.Exit(130) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")
    if output is Output.JSON:
        print(json.dumps(document, indent=2))
    else:
        console.print(report.render(document))
        console.print(f"written to {file}")


def measure(
    pops: tuple[str, ...], rounds: int, seconds: float, window: int, parts: set[Part], say: Any
) -> dict[str, Any]:
    """The document: machine, settings, rows, and the numbers behind them."""
    started_s = time.monotonic()
    measured = pops[min(1, len(pops) - 1)]
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "at_ms": time.time_ns() // 1_000_000,
        "settings": {"rounds": rounds, "seconds": seconds, "window": window, "payload_bytes": measures.PAYLOAD_BYTES},
        "pops": pops,
        "measured_pop": measured,
    }
    rows: list[report.Row] = []
    with running(pops, measured, say) as stage:
        # Collections of the generator's own garbage would be measured as pauses of what it measures.
        gc.collect()
        gc.disable()
        pids = {**stage.pids(), "generator": os.getpid()}
        if Part.IDLE in parts:
            say("idle")
            time.sleep(1.0)
            document["idle"] = measures.idle(stage, IDLE_S)
        before = machine.usage(pids)
        if parts & {Part.FLOW, Part.CHAIN}:
            paths = [
                measures.ECHO,
                *(measures.chain_path(length) for length in ((1, 2, 3) if Part.CHAIN in parts else (1,))),
            ]
            trips, disk_ms = measures.round_trips(stage, paths, rounds, seconds / 3, say)
            document["round_trips"] = {name: one.to_json() for name, one in trips.items()}
            document["fdatasync_ms"] = {
                "p50": round(quantile(disk_ms, 0.5), 4),
                "p99": round(quantile(disk_ms, 0.99), 4),
            }
        if Part.FLOW in parts:
            busy_disk_ms = measures.busy_fdatasyncs_ms(stage, 1.0)
            document["fdatasync_ms"]["p50_while_events_flow"] = round(quantile(busy_disk_ms, 0.5), 4)
            rows.append(report.flow_row(trips, disk_ms, busy_disk_ms))
        if Part.RATE in parts:
            results = measures.floods(stage, rounds, seconds, window, os.getpid(), say)
            rows.append(report.rate_row(results, window))
            document["rates"] = {name: [report.flood_json(one) for one in ones] for name, ones in results.items()}
            middle = report.middle(results[measures.chain_path(1).name])
            document["cost_us"] = report.cost_groups(middle.processor_us, measured)
        if Part.QOS0 in parts:
            rows.append(_fast(stage, document, rounds, seconds / 3, say))
        if Part.CHAIN in parts:
            rows.append(report.chain_row(trips, disk_ms))
        after = machine.usage(pids)
        gc.enable()
    if Part.SOLO in parts and len(pops) > 1:
        with running(pops[:1], pops[0], say) as stage:
            results = measures.floods(stage, rounds, seconds, window, os.getpid(), say, references=False)
            document["rates_solo"] = [report.flood_json(one) for one in results[measures.chain_path(1).name]]
            rows.append(report.solo_row(results, window))
    rows.sort(key=lambda row: list(Part).index(Part(row.id)))
    document["rows"] = [report.row_json(row) for row in rows]
    document["busy_elsewhere_percent"] = report.busy_elsewhere_percent(
        machine.used(before, after), after.at_s - before.at_s, document["machine"]["cores"]
    )
    document["took_s"] = round(time.monotonic() - started_s, 1)
    return document


def _fast(stage: Stage, document: dict[str, Any], rounds: int, seconds: float, say: Any) -> report.Row:
    """The row of the `qos: 0` input."""
    try:
        trips, _ = measures.round_trips(stage, [measures.FAST_ECHO, measures.FAST], rounds, seconds, say)
    except NoAnswer as error:
        return report.fast_row(None, f"NO ANSWER ({error})")
    document.setdefault("round_trips", {}).update({name: one.to_json() for name, one in trips.items()})
    return report.fast_row(trips)


if __name__ == "__main__":
    typer.run(main)
