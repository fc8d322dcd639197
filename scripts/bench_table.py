"""Writes benchmarks as tables into the documentation: `make bench` into README.md, `make bench-flow`, `make bench-ekv` and `make bench-runner` into docs/benchmarks.md.

What it is: from a JSON document to Markdown between two markers. What it is not: a measurement.
What must stay true: a goal that is missed is shown as missed; machine, settings and other load stand beside the numbers.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "bench-output"
FLOW, SHAPES, VALUES = OUTPUT / "flow.json", OUTPUT / "bench-flow.json", OUTPUT / "bench-ekv.json"
RUNNER = OUTPUT / "bench-runner.json"


def table(document: Mapping[str, Any]) -> str:
    """The Markdown of one benchmark document."""
    words = {True: "yes", False: "**no**", None: "-"}
    lines = ["| measure | measured | beside it, in the same run | goal | met |", "|---|---|---|---|---|"]
    for row in document["rows"]:
        cells = (row["measure"], row["measured"], row["reference"] or "-", row["goal"], words[row["met"]])
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    machine, settings = document["machine"], document["settings"]
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Mosquitto {machine['mosquitto']}, Redis {machine['redis']}, Python {machine['python']}; "
        f"{len(document['pops'])} PoPs on that machine, `appendfsync always`, {settings['payload_bytes']} bytes and eight attributes per event, "
        f"medians of {settings['rounds']} round(s) of {settings['seconds']:g} s; {document['busy_elsewhere_percent']:.0f} % of the machine was used by other programs.",
    ]
    return "\n".join(lines) + "\n"


def write(document: Mapping[str, Any]) -> None:
    """Replace the block that the document belongs to."""
    sys.path.insert(0, str(ROOT))
    if "ekv" in document:
        from bench.ekv.report import markdown as values

        page, name, text = ROOT / "docs" / "benchmarks.md", "bench-ekv", values(document)
    elif "runner" in document:
        from bench.runner.report import markdown as starts

        page, name, text = ROOT / "docs" / "benchmarks.md", "bench-runner", starts(document)
    elif "cells" in document:
        from bench.flow.report import markdown

        page, name, text = ROOT / "docs" / "benchmarks.md", "bench-flow", markdown(document)
    else:
        page, name, text = ROOT / "README.md", "bench", table(document)
    block = re.compile(rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    page.write_text(block.sub(lambda found: found[1] + text + found[2], page.read_text()))


def main() -> None:
    """Replace the blocks of the given document, or of those that were measured last."""
    parser = argparse.ArgumentParser(description="Write the tables of benchmarks into the documentation.")
    parser.add_argument("file", type=Path, nargs="?", help="a JSON document of `make bench` or one of `make bench-*`")
    asked = parser.parse_args().file
    files = [asked] if asked else [file for file in (FLOW, SHAPES, VALUES, RUNNER) if file.exists()]
    for file in files:
        write(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
