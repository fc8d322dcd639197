"""`edgeflow history`, `rollback` and `diff`: what functions were, going back to it, and what applying would change."""

from pathlib import Path
from typing import Annotated

import typer

from edgeflow.cli import folders
from edgeflow.cli.apply import Declared, SetOption, find_target
from edgeflow.cli.reach import (
    Output,
    OutputOption,
    PopOption,
    client_of,
    errors,
    function_of,
    print_json,
    said_by,
    show,
)
from edgeflow.core.events import time_text

FunctionArgument = Annotated[
    str, typer.Argument(help="<namespace>/<function>, or the function's name alone", metavar="FUNCTION")
]


def history(function: FunctionArgument, pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The revisions of a function, the newest first: when, by whom, what changed, and which one serves now."""
    with client_of(pop) as client:
        namespace, name = function_of(client, function)
        document = client.history(namespace, name)
    if output is Output.JSON:
        print_json(document)
        return
    columns = {
        "REVISION": lambda item: item["revision"],
        "APPLIED": lambda item: time_text(item["at_ms"]),
        "BY": lambda item: item["by"],
        "AT": lambda item: item["pop"],
        "CHANGE": lambda item: item["change"],
        "FIELDS": lambda item: ", ".join(field["field"] for field in item["fields"]),
        "STATE": lambda item: item["state"],
        "REASON": lambda item: item["reason"],
    }
    show(output, document["items"], columns, empty=f"{function} has no history")


def rollback(
    function: FunctionArgument,
    to: Annotated[
        str | None, typer.Option("--to", help="A revision, or its first digits; the one before if not given.")
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Apply a function as it was in an earlier revision. It takes over when it is ready, as any new revision does."""
    with client_of(pop) as client:
        namespace, name = function_of(client, function)
        document = client.rollback(namespace, name, to, said_by())
    if output is Output.JSON:
        print_json(document)
    else:
        print(f"{namespace}/{name}: revision {document['revision']} instead of {document['before']}")


def diff(
    file: Declared = Path("edgeflow.yaml"), pop: PopOption = None, set_: SetOption = None, output: OutputOption = Output.TABLE
) -> None:  # fmt: skip
    """What applying a manifest or a folder would change, without changing anything."""
    options = folders.Options(set_=set_)
    plan = folders.compare(file, find_target(pop), options, lambda line: errors.print(f"[dim]{line}[/dim]"))
    folders.show_plan(plan, output)
