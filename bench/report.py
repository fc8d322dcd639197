"""From measurements to the table: each row with its reference, its goal and whether it is met.

What it is: pure arithmetic and text. What must stay true: a goal that is missed says so in the table and in the JSON.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.generator import Flood, quantile
from bench.measures import ECHO, FAST, FAST_ECHO, Trips, added_by_one, chain_path

FLOOR_MS = 0.6
RATE_GOAL = 4000.0
FAST_GOAL = 1.3
ADDED_GOAL_MS = 0.6
BUSY_ELSEWHERE_PERCENT = 5.0
REST = "not of edgeflow (kernel, other programs)"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `met` None = not measured."""

    id: str
    measure: str
    measured: str
    reference: str
    ratio: float | None
    goal: str
    met: bool | None


def flow_row(trips: Mapping[str, Trips], disk_ms: Sequence[float], busy_disk_ms: Sequence[float]) -> Row:
    """Row 1: one event through one durable function and back. The goal takes the disk as it is when nothing else writes."""
    flow, echo = trips[chain_path(1).name], trips[ECHO.name]
    sync_ms = quantile(disk_ms, 0.5)
    goal_ms = 2 * echo.median(0.5) + 3 * sync_ms + FLOOR_MS
    return Row(
        "flow",
        "MQTT publish -> durable function -> MQTT result, one at a time",
        f"p50 {flow.median(0.5):.2f} ms, p99 {flow.median(0.99):.2f} ms",
        f"bare paho echo p50 {echo.median(0.5):.2f} ms, p99 {echo.median(0.99):.2f} ms; "
        f"fdatasync p50 {sync_ms:.3f} ms ({quantile(busy_disk_ms, 0.5):.3f} while events flow)",
        flow.median(0.5) / echo.median(0.5),
        f"p50 <= 2 x echo + 3 x fdatasync + {FLOOR_MS} ms = {goal_ms:.2f} ms",
        flow.median(0.5) <= goal_ms,
    )


def rate_row(results: Mapping[str, Sequence[Flood]], window: int) -> Row:
    """Row 2: events per second of one instance."""
    flow, echo, alone = (middle(results[name]) for name in (chain_path(1).name, ECHO.name, "generator alone"))
    lost, twice = (sum(getattr(one, what) for one in results[chain_path(1).name]) for what in ("lost", "twice"))
    wrong = f"; {lost} LOST, {twice} TWICE" if lost or twice else ""
    return Row(
        "rate",
        f"the same, one instance, {window} events under way",
        f"{flow.events_per_s:,.0f}/s (p50 {flow.p50_ms:.0f} ms){wrong}",
        f"bare paho echo {echo.events_per_s:,.0f}/s; the load generator's own ceiling {alone.events_per_s:,.0f}/s; NATS: in `make bench-flow`",
        flow.events_per_s / echo.events_per_s if echo.events_per_s else None,
        f">= {RATE_GOAL:,.0f}/s",
        flow.events_per_s >= RATE_GOAL and not lost,
    )


def solo_row(results: Mapping[str, Sequence[Flood]], window: int) -> Row:
    """Row 2 again, with no other PoPs on the same cores."""
    flow = middle(results[chain_path(1).name])
    wrong = f"; {flow.lost} LOST, {flow.twice} TWICE" if flow.lost or flow.twice else ""
    return Row(
        "solo",
        "the same, in a cluster of one PoP (no mirrors on these cores)",
        f"{flow.events_per_s:,.0f}/s (p50 {flow.p50_ms:.0f} ms){wrong}",
        "as above",
        None,
        f">= {RATE_GOAL:,.0f}/s",
        flow.events_per_s >= RATE_GOAL and not flow.lost,
    )


def fast_row(trips: Mapping[str, Trips] | None, missing: str = "") -> Row:
    """Row 3: a `qos: 0` input; `missing` says why there are no trips."""
    measure, goal = "`qos: 0` input -> function -> MQTT result, one at a time", f"p50 <= {FAST_GOAL} x bare echo"
    if trips is None:
        return Row("qos0", measure, missing, "", None, goal, None)
    fast, echo = trips[FAST.name], trips[FAST_ECHO.name]
    ratio = fast.median(0.5) / echo.median(0.5)
    return Row(
        "qos0",
        measure,
        f"p50 {fast.median(0.5):.2f} ms, p99 {fast.median(0.99):.2f} ms",
        f"bare paho echo with QoS 0 p50 {echo.median(0.5):.2f} ms, p99 {echo.median(0.99):.2f} ms",
        ratio,
        goal,
        ratio <= FAST_GOAL,
    )


def chain_row(trips: Mapping[str, Trips], disk_ms: Sequence[float]) -> Row:
    """Row 4: what one more function costs."""
    added_ms = statistics.median(added_by_one(trips))
    lengths = ", ".join(f"{trips[chain_path(length).name].median(0.5):.2f}" for length in (1, 2, 3))
    return Row(
        "chain",
        "one more chained function, same PoP",
        f"+ {added_ms:.2f} ms p50 (1, 2, 3 functions: {lengths} ms)",
        f"bare paho echo p50 {trips[ECHO.name].median(0.5):.2f} ms; fdatasync p50 {quantile(disk_ms, 0.5):.3f} ms",
        added_ms / trips[ECHO.name].median(0.5),
        f"p50 <= {ADDED_GOAL_MS} ms",
        added_ms <= ADDED_GOAL_MS,
    )


def middle(rounds: Sequence[Flood]) -> Flood:
    """The round with the median rate."""
    return sorted(rounds, key=lambda one: one.events_per_s)[len(rounds) // 2]


def cost_groups(processor_us: Mapping[str, float], measured: str) -> dict[str, float]:
    """Processor time per event, the measured PoP by process, the others together."""
    groups: dict[str, float] = defaultdict(float)
    for name, micros in processor_us.items():
        pop, slash, process = name.partition("/")
        if not slash:
            groups[REST if name == "elsewhere" else name] += micros
        elif pop == measured:
            groups["instances" if process.startswith("instance") else process] += micros
        else:
            groups[f"other PoPs: {process}"] += micros
    return {name: round(micros, 1) for name, micros in sorted(groups.items(), key=lambda item: -item[1]) if micros >= 1}


def busy_elsewhere_percent(spent_s: Mapping[str, float], took_s: float, cores: int) -> float:
    """How much of the machine others used during the run."""
    return round(spent_s.get("elsewhere", 0.0) * 100 / (took_s * cores), 1)


def render(document: Mapping[str, Any]) -> RenderableType:
    """The table, the cost per event, memory, and the machine."""
    table = Table(title="edgeflow: the flow of events", title_justify="left", show_lines=True)
    for title in ("measure", "measured", "reference, same run", "ratio", "goal", ""):
        table.add_column(title, justify="right" if title == "ratio" else "left")
    for row in document["rows"]:
        verdict = {True: Text("met", "green"), False: Text("missed", "red"), None: Text("-")}[row["met"]]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} x"
        table.add_row(row["measure"], row["measured"], row["reference"], ratio, row["goal"], verdict)
    parts: list[RenderableType] = [table]
    if document.get("cost_us"):
        parts.append(_cost_table(document["cost_us"]))
    if document.get("idle"):
        parts.append(_idle_table(document["idle"]))
    machine = document["machine"]
    parts.append(
        Text(
            f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}, Linux {machine['kernel']}; Python "
            f"{machine['python']}, Mosquitto {machine['mosquitto']}, Redis {machine['redis']} (appendfsync always), paho {machine['paho']}; "
            f"{len(document['pops'])} PoPs and their links on this machine, {document['measured_pop']} measured"
        )
    )
    if document["busy_elsewhere_percent"] > BUSY_ELSEWHERE_PERCENT:
        busy = document["busy_elsewhere_percent"]
        parts.append(
            Text(
                f"Other programs used {busy:.0f} % of this machine during the run: measure again when it is quiet.",
                "yellow",
            )
        )
    return Group(*parts)


def _cost_table(cost_us: Mapping[str, float]) -> Table:
    own = {name: micros for name, micros in cost_us.items() if name != REST}
    table = Table(title="processor time per event in the second row", title_justify="left")
    table.add_column("process")
    table.add_column("us", justify="right")
    for name, micros in own.items():
        table.add_row(name, f"{micros:.0f}")
    table.add_section()
    table.add_row("all of it", f"{sum(own.values()):.0f}")
    if REST in cost_us:
        table.add_row(REST, f"{cost_us[REST]:.0f}")
    return table


def _idle_table(processes: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="idle, by PoP", title_justify="left")
    for title in (
        "PoP",
        "data",
        "control",
        "both: MiB resident (shared pages divided)",
        "redis",
        "broker",
        "% of one core, all",
    ):
        table.add_column(title, justify="left" if title == "PoP" else "right")
    for pop in sorted({name.partition("/")[0] for name in processes if "/" in name}):
        of = {name.partition("/")[2]: one for name, one in processes.items() if name.startswith(f"{pop}/")}
        agent = (of["data"], of["control"])
        both = f"{sum(one['rss'] for one in agent):.0f} ({sum(one.get('pss', 0) for one in agent):.0f})"
        load = sum(one["core_percent"] for one in of.values())
        table.add_row(
            pop, *(_process(one) for one in agent), both, _process(of["redis"]), _process(of["broker"]), f"{load:.1f}"
        )  # fmt: skip
    return table


def _process(one: Mapping[str, float]) -> str:
    return f"{one['rss']:.0f} MiB, {one['core_percent']:.1f} %"


def flood_json(one: Flood) -> dict[str, Any]:
    """A round as it is written."""
    return {
        "events_per_s": round(one.events_per_s), "p50_ms": round(one.p50_ms, 2), "p99_ms": round(one.p99_ms, 2), "events": one.events,
        "lost": one.lost, "twice": one.twice,
        "processor_us": {name: round(micros, 1) for name, micros in sorted(one.processor_us.items(), key=lambda item: -item[1])},
    }  # fmt: skip


def row_json(row: Row) -> dict[str, Any]:
    """A row as it is written."""
    return asdict(row)
