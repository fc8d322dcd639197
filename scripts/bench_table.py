"""Writes a benchmark's rows as a table into README.md.

What it is: from the JSON of `make bench` to Markdown between two markers. What it is not: a measurement.
What must stay true: a goal that is missed is shown as missed; machine, settings and other load stand beside the numbers.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- bench: begin[^\n]*-->\n).*?(<!-- bench: end -->)", re.DOTALL)


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


def main() -> None:
    """Replace the block in README.md."""
    parser = argparse.ArgumentParser(description="Write the table of the last benchmark into README.md.")
    parser.add_argument(
        "file", type=Path, nargs="?", default=ROOT / "bench-output" / "flow.json", help="the JSON of `make bench`"
    )
    text = table(json.loads(parser.parse_args().file.read_text()))
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(lambda found: found[1] + text + found[2], readme.read_text()))


if __name__ == "__main__":
    main()
