"""From the document of `make bench-ekv` to Markdown.

What must stay true: a body that was read wrong, and a cell that could not be measured, stand in the table; what each system promises with its acknowledgement stands beside it.
"""

from collections.abc import Mapping
from typing import Any

SYSTEMS = ("edgeflow, HTTP", "edgeflow, store library", "Redis", "NATS")


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of one run."""
    return "\n".join((_bodies(document), _across(document), _memory(document), _beside(document)))


def _bodies(document: Mapping[str, Any]) -> str:
    titles = {name: name for name in SYSTEMS} | {
        "Redis": f"redis-py, Redis {document['machine']['redis']}",
        "NATS": f"nats-py, NATS {document['nats']}, no fsync",
    }
    lines = _head("", *titles.values())
    for size in document["sizes"]:
        for what in ("put", "get"):
            cells = [document["cells"].get(f"{name}: {what} {size}") for name in SYSTEMS]
            lines.append(_line(f"{what} {size}", *(_cell(cell, large=size == "100 MB") for cell in cells)))
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping[str, Any] | None, *, large: bool) -> str:
    if cell is None:
        return "-"
    if "p50_ms" not in cell:
        return f"not measured: {cell['note']}"
    wrong = f" ({cell['wrong']} WRONG)" if cell["wrong"] else ""
    if large:
        return f"{cell['p50_ms']:,.0f} ms; {cell['mb_per_s']:,.0f} MB/s{wrong}"
    rate = (
        f"{cell['per_s']:,.0f}/s" if cell["mb_per_s"] < 20 else f"{cell['per_s']:,.0f}/s, {cell['mb_per_s']:,.0f} MB/s"
    )
    return f"{cell['p50_ms']:.2f} / {cell['p99_ms']:.2f} ms; {rate}{wrong}"


def _across(document: Mapping[str, Any]) -> str:
    lines = _head("from one PoP to the other", "edgeflow", "Redis' own replica")
    ours, theirs = document["staleness"]["edgeflow"], document["staleness"]["Redis"]
    for one, other in zip(ours, theirs, strict=True):
        lines.append(
            _line(
                f"staleness beyond the delay, {one['delay_ms']:g} ms apart, p50 / p99",
                *(f"{it['p50_ms']:.1f} / {it['p99_ms']:.1f} ms" for it in (one, other)),
            )
        )
    for one, other in zip(document["catch_up"]["edgeflow"], document["catch_up"]["Redis"], strict=True):
        what = f"{one['values']:,} values of {_size(one['size'])} after an outage"
        lines.append(
            _line(
                what, *(f"{it['took_s']:.1f} s; {it['per_s']:,}/s, {it['mb_per_s']:,.0f} MB/s" for it in (one, other))
            )
        )
        if one["link_per_s"] is not None:
            lines.append(_line("the same, once the line is noticed", f"{one['link_per_s']:,}/s", "not to be seen"))
    return "\n".join(lines) + "\n"


def _memory(document: Mapping[str, Any]) -> str:
    memory = document["memory"]
    ours = memory["edgeflow"]
    lines = _head("memory for a million keys of 100 B", "MB")
    lines.append(_line("edgeflow, with the log", f"{ours['bytes_per_key']:,}"))
    lines.append(_line("edgeflow, once the log is trimmed", f"{ours['bytes_per_key'] - ours['of_it_log_and_ids']:,}"))
    lines.append(_line("Redis by itself", f"{memory['Redis']['bytes_per_key']:,}"))
    lines.append(_line("NATS KV (values are in files)", f"{memory['NATS']['bytes_per_key']:,}"))
    return "\n".join(lines) + f"\n\nMeasured with {ours['keys']:,} keys and multiplied.\n"


def _beside(document: Mapping[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    clients = ", ".join(f"{number} for {size}" for size, number in settings["clients"].items())
    wrong = sum(cell.get("wrong", 0) for cell in document["cells"].values())
    read = sum(cell.get("count", 0) for name, cell in document["cells"].items() if ": get " in name)
    verdict = f"{read:,} bodies were read and are right" if not wrong else f"of {read:,} bodies, {wrong} WERE WRONG"
    return (
        f"p50 / p99 one at a time; per second with several clients ({clients}). {verdict}. Staleness: {settings['staleness_writes']} writes a round, from the acknowledgement to "
        f"the moment a reader at the other end is shown the value. fdatasync p50 {document['fdatasync_ms']['p50']:.3f} ms, p99 {document['fdatasync_ms']['p99']:.3f} ms.\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Redis {machine['redis']}, Python {machine['python']}, commit {machine['commit']}; two PoPs on that machine; "
        f"medians of {settings['rounds']} round(s) of {settings['seconds']:g} s after a warm-up; {document['busy_elsewhere_percent']:.0f} % of the machine was used by other programs "
        f"and the kernel; {document['took_s']:.0f} s in all.\n"
    )


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1024:g} KiB" if size % 1024 == 0 else f"{size / 1e6:g} MB"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
