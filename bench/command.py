"""The command around a benchmark: measure, write the document, show the tables; where it compares with NATS, find its server first.

What it is: the frame that `python -m bench.flow`, `bench.ekv` and `bench.runner` share. What it is not: their options, or what they measure.
"""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from edgeflow.errors import EdgeflowError
from edgeflow.host.programs import find_program

Say = Callable[[str], None]


def run(
    script: str, nats_program: str, file: Path, measure: Callable[[Path, Say], dict[str, Any]], markdown: Callable[[dict[str, Any]], str]
) -> None:  # fmt: skip
    """`measure(nats-server, say)` makes the document, which goes to `file` as JSON and to the terminal as Markdown. Exits with 1 where it cannot, 130 on Ctrl-C."""
    program = find_program(nats_program)
    if program is None:
        Console(highlight=False).print(f"[red]{nats_program} is not installed; scripts/{script} installs it[/]")
        raise typer.Exit(1)
    found = program
    show(file, lambda say: measure(found, say), markdown)


def show(file: Path, measure: Callable[[Say], dict[str, Any]], markdown: Callable[[dict[str, Any]], str]) -> None:
    """The same without NATS."""
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with console.status("starting") as status:
            document = measure(status.update)
    except EdgeflowError as error:
        console.print(f"[red]{error.message}[/]\n{error.hint}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted; everything has ended")
        raise typer.Exit(130) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")
    text = markdown(document)
    if sys.stdout.isatty():
        console.print(Markdown(text))
    else:
        print(text)
    console.print(f"written to {file}")
