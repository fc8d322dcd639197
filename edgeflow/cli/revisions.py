"""`edgeflow history`, `rollback` and `diff`: what functions were, going back to it, and what applying would change."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeflow.cli.apply import PopApi, find_target, make, read
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
from edgeflow.core import manifest as manifests
from edgeflow.core.events import time_text

VALUE_CHARS = 60

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
    file: Annotated[Path, typer.Option("--file", "-f", help="The manifest.")] = Path("edgeflow.yaml"),
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """What applying a manifest would change, without changing anything."""
    with PopApi(find_target(pop)) as api:
        pops = api.pops()
        here = pops[0]["id"]
        manifest = read(
            file, known_pops=[one["id"] for one in pops], known_namespaces=api.namespaces(), default_pop=here
        )
        artifacts, _ = make(manifest, file.parent, pops[0]["mode"], lambda line: errors.print(f"[dim]{line}[/dim]"))
        resolved = manifests.resolve(manifest, artifacts, applied_ms=int(time.time() * 1000), default_pop=here)
        answer = api.put_manifest(resolved, dry_run=True)
    if output is Output.JSON:
        print_json(answer)
        return
    if not answer["changes"]:
        errors.print(
            f"{manifest.namespace}: nothing"
            if answer["status"] == "unchanged"
            else f"{manifest.namespace}: channel policies"
        )
    for change in answer["changes"]:
        print(f"{change['change']} {manifest.namespace}/{change['function']}")
        for field in change["fields"]:
            print(f"    {field['field']}: {_short(field['before'])} -> {_short(field['after'])}")


def _short(value: Any) -> str:
    text = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 3] + "..."
