"""From the rounds of the cells to a JSON document, and from that to Markdown.

What it is: medians and text. What must stay true: an answer that was lost or came twice is in the tables, whatever the rates are; machine, settings and other load stand
beside them.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bench.flow.cells import Measured
from bench.flow.functions import CHAIN, FAN, FAN_OUT, FAST, KEEP, RELAXED, SLOW, THREE_POPS, chain, join, slow
from bench.generator import Flood

Cells = Mapping[str, Mapping[str, Any]]
REFERENCES = ("NATS", "NATS, sync always", "HTTP")
GENERATOR = "generator"
ELSEWHERE = "elsewhere"
_MEMORY = ("redis", "data", "control")


def cell_json(measured: Measured) -> dict[str, Any]:
    """Medians over the rounds, what was wrong in all of them, and the rates and times of each."""
    low, full = measured.low, measured.full
    document: dict[str, Any] = {
        "lost": sum(one.lost for one in low + full),
        "twice": sum(one.twice for one in low + full),
    }
    if low:
        document["low"] = {
            **_median(low, "p50_ms", 3), **_median(low, "p99_ms", 3), "events": sum(one.events for one in low),
            "p50_ms_by_round": [round(one.p50_ms, 3) for one in low], ELSEWHERE: _elsewhere(low),
        }  # fmt: skip
    document["full"] = {
        **_median(full, "events_per_s", 0), **_median(full, "p50_ms", 1), **_median(full, "p99_ms", 1), "events": sum(one.events for one in full),
        "events_per_s_by_round": [round(one.events_per_s) for one in full], "processor_us": _processors(full), ELSEWHERE: _elsewhere(full),
    }  # fmt: skip
    return document


def busy_elsewhere_percent(cells: Cells, cores: int) -> float:
    """How much of the machine others used while something was measured, on average."""
    shares = [cell[level][ELSEWHERE] for cell in cells.values() for level in ("low", "full") if level in cell]
    return round(statistics.fmean(shares) * 100 / cores, 1)


def _median(rounds: Sequence[Flood], what: str, digits: int) -> dict[str, float]:
    return {what: round(statistics.median(getattr(one, what) for one in rounds), digits)}


def _elsewhere(rounds: Sequence[Flood]) -> float:
    """Cores that other programs, and the kernel for itself, used meanwhile."""
    return round(statistics.fmean(one.processor_us.get(ELSEWHERE, 0.0) * one.events_per_s / 1e6 for one in rounds), 3)


def _processors(rounds: Sequence[Flood]) -> dict[str, float]:
    """Processor time per event (microseconds) by kind of process."""
    sums: dict[str, list[float]] = defaultdict(list)
    for one in rounds:
        groups: dict[str, float] = defaultdict(float)
        for name, micros in one.processor_us.items():
            groups[_kind(name)] += micros
        for kind, micros in groups.items():
            sums[kind].append(micros)
    medians = {kind: round(statistics.median(all_of_them), 1) for kind, all_of_them in sums.items()}
    return {kind: micros for kind, micros in sorted(medians.items(), key=lambda item: -item[1]) if micros >= 1}


def _kind(name: str) -> str:
    """Which kind of process: "la/instance chain1 x" -> "instances", "worker chain0" -> "workers"."""
    _, slash, process = name.partition("/")
    word = (process if slash else name).split()[0]
    return {"instance": "instances", "worker": "workers", "function": "functions"}.get(word, word)


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of one run."""
    cells: Cells = document["cells"]
    parts = [_chains(cells, document), _shapes(cells), _instances(cells, document), _overload(document)]
    parts.append(_beside(cells, document))
    return "\n".join(parts)


def _chains(cells: Cells, document: Mapping[str, Any]) -> str:
    references = [name for name in REFERENCES if f"{name}: {chain(1).name}" in cells]
    titles = {"HTTP": "HTTP, through the client", "NATS": f"NATS {document['nats']['version']}, no fsync"}
    titles["NATS, sync always"] = f"NATS {document['nats']['version']}, sync always"
    lines = _head("functions in a row", "edgeflow, fsync always", *(titles[name] for name in references))
    for length in range(1, CHAIN + 1):
        row = [str(length)] + [_both(cells.get(f"{name}: {chain(length).name}")) for name in ("edgeflow", *references)]
        lines.append(_line(*row))
    return "\n".join(lines) + "\n"


def _shapes(cells: Cells) -> str:
    rows = [
        ("bare paho echo: nothing kept, no function", "bare echo: QoS 1"),
        ("the same with QoS 0", "bare echo: QoS 0"),
        ("edgeflow, `qos: 0` function: nothing kept", f"edgeflow: {FAST.name}"),
        ("edgeflow, one durable function", f"edgeflow: {chain(1).name}"),
        ("the same in a cluster of three PoPs on these cores", f"edgeflow: {THREE_POPS.name}"),
        ("the same with its store's file synced once a second (not a setting: what the fsyncs cost)", f"edgeflow: {RELAXED}"),
        ("edgeflow, a function that also keeps a value", f"edgeflow: {KEEP.name}"),
        ("NATS, a worker that also keeps a value (no fsync)", f"NATS: {KEEP.name}"),
        ("NATS, the same with sync always", f"NATS, sync always: {KEEP.name}"),
        ("edgeflow, join of 2 channels", f"edgeflow: {join(2).name}"),
        ("edgeflow, join of 3 channels", f"edgeflow: {join(3).name}"),
        (f"edgeflow, fan-out to {FAN_OUT} functions, until all {FAN_OUT} answered", f"edgeflow: {FAN.name}"),
    ]  # fmt: skip
    lines = _head("", "one at a time", "as many as go through", "processor time each")
    for title, name in rows:
        if name in cells:
            cell = cells[name]
            lines.append(_line(title, _low(cell) + _wrong(cell), _full(cell), _cost(cell)))
    return "\n".join(lines) + "\n"


def _instances(cells: Cells, document: Mapping[str, Any]) -> str:
    slow_ms = document["settings"]["slow_handler_ms"]
    lines = _head(f"instances of a function of {slow_ms:g} ms", "events/s", "of what the handlers alone could do")
    for count in range(1, 65):
        cell = cells.get(f"edgeflow: {slow(count).name}")
        if cell is not None:
            rate = cell["full"]["events_per_s"]
            lines.append(_line(str(count), f"{rate:,.0f}{_wrong(cell)}", f"{rate * slow_ms / (count * 10):.0f} %"))
    return "\n".join(lines) + "\n"


def _overload(document: Mapping[str, Any]) -> str:
    overload, slow_ms = document["overload"], document["settings"]["slow_handler_ms"]
    handlers = {SLOW: f"a function of {slow_ms:g} ms", "echo": "a function that only answers"}
    titles = ("offered", "handled", "refused", "dropped", "handled meanwhile", "p50 / p99 meanwhile")
    lines = _head("too much for", "`on_full`", *titles, *(f"{name}, MiB" for name in _MEMORY))
    for one in overload["results"]:
        wrong = f" ({one['missing']} MISSING, {one['twice']} TWICE)" if one["missing"] or one["twice"] else ""
        lines.append(
            _line(
                f"{handlers[one['handler']]}, {one['capacity_per_s']:,.0f}/s",
                f"`{one['policy']}`",
                f"{one['offered']:,}",
                f"{one['handled']:,}{wrong}",
                *(_reasons(one[kind]) for kind in ("refused", "dropped")),
                f"{one['handled_per_s']:,.0f}/s",
                f"{one['p50_ms']:,.0f} / {one['p99_ms']:,.0f} ms",
                *(" / ".join(f"{mib:.0f}" for mib in one["memory_mib"][name]) for name in _MEMORY),
            )
        )
    return "\n".join(lines) + (
        f"\n\nOffered {overload['times']} times as much as goes through, for {overload['seconds']:g} s, over MQTT; `max_pending: {overload['max_pending']}`, "
        f"{overload['subjects']} subjects. Times run from when a message was due, and are of what was answered while more was offered; resident memory before / at most / "
        "after.\n"
    )


def _reasons(counted: Mapping[str, int]) -> str:
    """Numbers by reason."""
    return ", ".join(f"{number:,} ({reason})" for reason, number in counted.items()) or "0"


def _beside(cells: Cells, document: Mapping[str, Any]) -> str:
    """What the figures depend on."""
    machine, settings = document["machine"], document["settings"]
    ceilings = ", ".join(
        f"{kind} {cells[name]['full']['events_per_s']:,.0f}/s"
        for kind in ("MQTT", "NATS", "HTTP")
        if (name := f"generator alone: {kind}") in cells
    )
    always = (
        ""
        if document["nats"]["sync_always"]
        else f"; NATS {document['nats']['version']} has no `sync_interval: always`"
    )
    wrong = sum(cell["lost"] + cell["twice"] for cell in cells.values())
    answers = sum(cell[level]["events"] for cell in cells.values() for level in ("low", "full") if level in cell)
    verified = (
        f"{answers:,} messages were answered exactly once"
        if not wrong
        else f"of {answers:,} messages, {wrong} ANSWERS WERE LOST OR CAME TWICE"
    )
    return (
        f"p50 / p99 one message at a time; events per second with {settings['window']} under way ({settings['http_window']} for HTTP). "
        f"{verified}. The load generator alone: {ceilings}. fdatasync p50 {document['fdatasync_ms']['p50']:.3f} ms, p99 {document['fdatasync_ms']['p99']:.3f} ms{always}.\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Mosquitto {machine['mosquitto']}, Redis {machine['redis']}, Python {machine['python']}, "
        f"commit {machine['commit']}; {settings['payload_bytes']} bytes and eight attributes per message; medians of {settings['rounds']} round(s) of {settings['low_s']:g} s "
        f"and {settings['full_s']:g} s after a warm-up; {document['busy_elsewhere_percent']:.0f} % of the machine was used by other programs and the kernel.\n"
    )


def _both(cell: Mapping[str, Any] | None) -> str:
    return "-" if cell is None else f"{_low(cell)}; {_full(cell)}{_wrong(cell)}"


def _low(cell: Mapping[str, Any]) -> str:
    return f"{cell['low']['p50_ms']:.2f} / {cell['low']['p99_ms']:.2f} ms" if "low" in cell else "-"


def _full(cell: Mapping[str, Any]) -> str:
    return f"{cell['full']['events_per_s']:,.0f}/s"


def _cost(cell: Mapping[str, Any]) -> str:
    """Processor time per message of everything but the generator and other programs."""
    micros = sum(one for kind, one in cell["full"]["processor_us"].items() if kind not in (GENERATOR, ELSEWHERE))
    return f"{micros:,.0f} us"


def _wrong(cell: Mapping[str, Any]) -> str:
    return f" ({cell['lost']} LOST, {cell['twice']} TWICE)" if cell["lost"] or cell["twice"] else ""


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
