"""The document of `make bench-runner` as Markdown.

What must stay true: a goal that is missed says so; what is lost, came twice or was not measured stands in its cell.
"""

from collections.abc import Mapping
from typing import Any

from bench.runner.starts import most

GOAL_PAUSED_MS, GOAL_GONE_MS, GOAL_IMAGE_PERCENT, GOAL_MEMORY_MB = 50, 700, 15, 130
MODES = ("processes", "containers")
ROWS = {
    "warm": "warm: an instance runs", "paused": "from paused (`min: 0, pool: 1`)", "gone": "from the folder or image: no instance there (`min: 0, pool: 0`)",
    "bare python": "beside it: python that imports the SDK", "docker run": "beside it: `docker run` of the image, python that imports the SDK",
}  # fmt: skip


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of one run."""
    return "\n".join(part(document) for part in (_starts, _bursts, _contracts, _images, _memory, _beside))


def _starts(document: Mapping[str, Any]) -> str:
    lines = _head("from an event to its handler, p50 / p99", "as processes", "as containers", "goal (p50)", "met")
    modes = [document["modes"][mode] for mode in MODES]
    for kind, title in ROWS.items():
        cells = [_start(mode, kind) for mode in modes]
        goal = {"paused": f"<= {GOAL_PAUSED_MS} ms", "gone": f"<= {GOAL_GONE_MS} ms + the bare python"}.get(kind, "-")
        met = " / ".join(_yes(_is_met(mode, kind)) for mode in modes) if goal != "-" else "-"
        lines.append(_line(title, *cells, goal, met))
    lines.append(_line("from stopped", *["as with no instance: none that is stopped is kept"] * 2, "-", "-"))
    return "\n".join(lines) + "\n"


def _start(mode: Mapping[str, Any], kind: str) -> str:
    if "note" in mode:
        return str(mode["note"])
    found = mode["starts"].get(kind)
    return "-" if found is None else f"{found['p50_ms']:,.1f} / {found['p99_ms']:,.1f} ms"


def _is_met(mode: Mapping[str, Any], kind: str) -> bool | None:
    if "note" in mode:
        return None
    found = mode["starts"]
    more_ms = 0 if kind == "paused" else found["bare python"]["p50_ms"]
    return bool(found[kind]["p50_ms"] <= (GOAL_PAUSED_MS if kind == "paused" else GOAL_GONE_MS) + more_ms)


def _bursts(document: Mapping[str, Any]) -> str:
    lines = _head("0 -> 4 instances", "as processes", "as containers")
    bursts = [document["modes"][mode] for mode in MODES]

    def row(title: str, text: Any) -> None:
        lines.append(_line(title, *(mode["note"] if "note" in mode else text(mode["burst"]) for mode in bursts)))

    row(
        "events at once",
        lambda it: f"{it['events']} of {it['handler_ms']:g} ms, published in {it['published_s']:.1f} s",
    )
    row("lost, came twice", lambda it: f"{it['lost']}, {it['twice']}" if not it["lost"] + it["twice"] else f"**{it['lost']} LOST, {it['twice']} TWICE**")  # fmt: skip
    row("awake at most, four after", lambda it: f"{it['most_awake']}, {_or(it['four_after_s'], 's')}")
    row("the last one began after", lambda it: f"{it['took_s']:.1f} s")
    row("age of the oldest that waits, at most", lambda it: f"{most(it['oldest']):.1f} s")
    row("over time", lambda it: ", ".join(f"{age:.1f} at {at:.1f} s" for at, age in _few(it["oldest"])) or "-")
    return "\n".join(lines) + "\n"


def _contracts(document: Mapping[str, Any]) -> str:
    lines = _head(
        "contract", "one at a time, p50 / p99", "the same program directly", "events/s", "directly", "in containers, one at a time", "events/s",
    )  # fmt: skip
    contained = document["modes"]["containers"]
    for name, sides in document["contracts"].items():
        ours, direct = sides["edgeflow"], sides["direct"]
        if "contracts" in contained:
            inside = contained["contracts"][name]["edgeflow"]
            shown = (_trip(inside), f"{inside['per_s']:,.0f}")
        else:
            shown = (contained.get("note", "-"), "-")
        lines.append(
            _line(
                f"`{name}`",
                *(_trip(side) for side in (ours, direct)),
                *(f"{side['per_s']:,.0f}" for side in (ours, direct)),
                *shown,
            )
        )
    return "\n".join(lines) + "\n"


def _images(document: Mapping[str, Any]) -> str:
    found = document["images"]
    lines = _head("images from one PoP to the other", "moved", "goal", "met")
    base, own = (found[name] / 1e6 for name in ("base_bytes", "own_bytes"))
    lines.append(_line(f"the first: a base of {base:.0f} MB, {own:.1f} MB of its own", f"{found['first_bytes'] / 1e6:.2f} MB, {found['took_s'][0]:.1f} s", "-", "-"))  # fmt: skip
    is_met = found["second_percent"] < GOAL_IMAGE_PERCENT
    lines.append(_line("a second one on the same base", f"{found['second_bytes'] / 1e6:.2f} MB ({found['second_percent']:.1f} %), {found['took_s'][1]:.1f} s", f"< {GOAL_IMAGE_PERCENT} %", _yes(is_met)))  # fmt: skip
    return "\n".join(lines) + "\n"


def _memory(document: Mapping[str, Any]) -> str:
    lines = _head(
        "a PoP, idle, MB resident (shared pages divided)",
        "data",
        "control",
        "both",
        "goal",
        "met",
        "its broker, its store",
    )
    for pop, entry in document["memory"].items():
        is_met = entry["rss_mb"] <= GOAL_MEMORY_MB
        beside = ", ".join(_mb(entry[name]) for name in ("broker", "redis"))
        lines.append(
            _line(
                pop, _mb(entry["data"]), _mb(entry["control"]), _mb(entry), f"<= {GOAL_MEMORY_MB}", _yes(is_met), beside
            )
        )
    return "\n".join(lines) + "\n"


def _beside(document: Mapping[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    counts = settings["counts"]
    docker = f", Docker {machine['docker']}" if machine.get("docker") else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}{docker}, Mosquitto {machine['mosquitto']}, Redis {machine['redis']}, Python {machine['python']}, "
        f"commit {machine['commit']}; medians of {settings['rounds']} round(s) after a warm-up, in each {counts['warm']} warm starts, {counts['paused']} from paused and "
        f"{counts['gone']} from nothing (the p99 of so few is the slowest), {settings['seconds']:g} s for each cell of the contracts; the machine was busy to "
        f"{document['busy_percent']:.0f} %, the benchmark included; {document['took_s']:.0f} s in all.\n"
    )


def _few(points: Any) -> list[tuple[float, float]]:
    """At most eight of them, evenly."""
    return list(points)[:: max(1, -(-len(points) // 8))]


def _mb(entry: Mapping[str, Any]) -> str:
    return f"{entry['rss_mb']:.0f} ({entry['pss_mb']:.0f})" if "pss_mb" in entry else f"{entry['rss_mb']:.0f}"


def _trip(cell: Mapping[str, Any]) -> str:
    return f"{cell['p50_ms']:.2f} / {cell['p99_ms']:.2f} ms{_wrong(cell)}"


def _wrong(cell: Mapping[str, Any]) -> str:
    return f" (**{cell['lost']} LOST, {cell['twice']} TWICE**)" if cell["lost"] or cell["twice"] else ""


def _or(value: float | None, unit: str) -> str:
    return "never" if value is None else f"{value:.1f} {unit}"


def _yes(is_met: bool | None) -> str:
    return "-" if is_met is None else "yes" if is_met else "**no**"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
