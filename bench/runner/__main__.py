"""`python -m bench.runner`: starts, a burst, contracts, images and memory, beside bare starts and the same programs without edgeflow.

What it is: the order of the measurements; as Markdown and as JSON.
What it is not: a test. It exits with 0 whatever the figures are; a goal that is missed, an event that is lost, stand in the table.
"""

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import machine
from bench.command import show
from bench.runner import contracts, moved, report, starts
from bench.runner.starts import HANDLER, Counts
from bench.runner.world import Failed, Say, engine_or_reason, function_image, launcher, world

POPS = ("la", "ny")
OUTPUT = Path("bench-output/bench-runner.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    rounds: int
    counts: Counts
    seconds: float
    """Of each cell of the contracts."""
    idle_s: float
    base_bytes: int
    own_bytes: int


FULL = Plan(
    rounds=3, counts=Counts(warm=100, paused=15, gone=8, burst=200), seconds=1.0, idle_s=5.0, base_bytes=60_000_000, own_bytes=2_000_000,
)  # fmt: skip
QUICK = Plan(
    rounds=1, counts=Counts(warm=20, paused=4, gone=3, burst=120), seconds=0.3, idle_s=1.0, base_bytes=12_000_000, own_bytes=400_000,
)  # fmt: skip


def main(
    quick: Annotated[
        bool, typer.Option(help="One short round of everything: shows that it works, not how fast it is.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; the tables show medians over them.")] = None,
    docker: Annotated[bool, typer.Option(help="Also as containers, where there is a Docker engine.")] = True,
    file: Annotated[Path, typer.Option("--json", help="Where the document is written.")] = OUTPUT,
) -> None:
    """Measure starts, a burst, contracts, images and the agent's memory."""
    plan = QUICK if quick else FULL
    plan = replace(plan, rounds=rounds or plan.rounds)
    show(file, lambda say: measure(plan, docker, say), report.markdown)


def measure(plan: Plan, docker: bool, say: Say) -> dict[str, Any]:
    """The document."""
    started_s = time.monotonic()
    before = machine.usage({})
    document: dict[str, Any] = {
        "runner": 1, "machine": machine.describe(), "at_ms": time.time_ns() // 1_000_000, "settings": asdict(plan), "modes": {},
    }  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="edgeflow-bench-"))
    try:
        _processes(plan, folder, document, say)
        engine, reason = engine_or_reason() if docker else (None, "--no-docker")
        if engine is None:
            document["modes"]["containers"] = {"note": "no Docker engine", "reason": reason}
        else:
            document["machine"]["docker"] = engine.version().get("Version")
            document["modes"]["containers"] = _containers(plan, engine, folder, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    after = machine.usage({})
    document["busy_percent"] = round(
        100 * (after.machine_s - before.machine_s) / (after.at_s - before.at_s) / document["machine"]["cores"], 1
    )
    document["took_s"] = round(time.monotonic() - started_s, 1)
    return document


def _processes(plan: Plan, folder: Path, document: dict[str, Any], say: Say) -> None:
    starts.write(folder)
    contracts.write(folder)
    with world(POPS, say) as one:
        say("memory of the agent, idle")
        document["memory"] = moved.agent_memory(one, POPS, plan.idle_s)
        say("images between two PoPs")
        document["images"] = moved.images(one, POPS[1], plan.base_bytes, plan.own_bytes)
        say("applying the functions")
        one.apply(folder, {**starts.functions(one, {"build": "./starts"}), **contracts.functions(one.pop)})
        one.listen()
        document["contracts"] = contracts.measure(one, folder, plan.rounds, plan.seconds, say)
        document["modes"]["processes"] = {
            "starts": starts.quantiles(starts.starts(one, plan.rounds, plan.counts, None, say)),
            "burst": starts.burst(one, plan.counts.burst, say),
        }


def _containers(plan: Plan, engine: Any, folder: Path, say: Say) -> dict[str, Any]:
    try:
        with (
            function_image(engine, HANDLER, say) as image,
            function_image(engine, contracts.HANDLER, say, folder) as programs,
            launcher(engine, folder, say) as launch,
            world(POPS[:1], say, engine, launch) as one,
        ):
            say("applying the functions")
            one.apply(folder, {**starts.functions(one, {"image": image}), **contracts.functions(one.pop, programs)})
            one.listen()
            return {
                "contracts": contracts.measure_ours(one, plan.rounds, plan.seconds, say),
                "starts": starts.quantiles(starts.starts(one, plan.rounds, plan.counts, image, say)),
                "burst": starts.burst(one, plan.counts.burst, say),
            }
    except Failed as error:
        return {"note": error.message}


if __name__ == "__main__":
    typer.run(main)
