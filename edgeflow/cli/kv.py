"""`edgeflow kv`: values of the EKV. A key is its full name, <namespace>/<key>."""

import dataclasses
import mimetypes
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeflow.cli.reach import (
    Output,
    OutputOption,
    PopOption,
    client_of,
    print_json,
    read_input,
    show,
    size_text,
)
from edgeflow.core.events import time_text
from edgeflow.errors import NotFound

app = typer.Typer(help="Values of the edge key-value store.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(help="<namespace>/<key>, as in vision/models/person", metavar="KEY")]
IfVersion = Annotated[str | None, typer.Option("--if-version", help="Only if the value has this version.")]


@app.command("get")
def get(
    key: KeyArgument,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Write the value to this file.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Exactly this version.")] = None,
    pop: PopOption = None,
) -> None:
    """Write a value to standard output or to a file, as it was put."""
    with client_of(pop) as client:
        value = client.get(key, version=version)
    if value is None:
        raise NotFound(
            f"there is no value {key!r} at this PoP", hint="`edgeflow kv list <namespace>/` lists what is there."
        )
    if file is not None:
        file.write_bytes(value.data)
        return
    sys.stdout.buffer.write(value.data)
    sys.stdout.buffer.flush()


@app.command("put")
def put(
    key: KeyArgument,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The value as text.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with the value; - for standard input.")
    ] = None,
    content_type: Annotated[
        str | None, typer.Option("--content-type", help="Media type; guessed from the file's name.")
    ] = None,
    if_version: IfVersion = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is no value yet.")] = False,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put a value and print its version: it is on disk at that PoP then."""
    body = read_input(data, file)
    if content_type is None:
        content_type = mimetypes.guess_type(file)[0] if file is not None else "text/plain; charset=utf-8"
    with client_of(pop) as client:
        receipt = client.put(key, body, content_type=content_type, if_version=if_version, if_absent=if_absent)
    if output is Output.JSON:
        print_json(
            {
                "key": key,
                "version": receipt.version,
                "origin": receipt.origin,
                "epoch": receipt.epoch,
                "seq": receipt.seq,
            }
        )
    else:
        print(f"{key}  {receipt.version}")


@app.command("list")
def list_values(
    prefix: Annotated[str, typer.Argument(help="<namespace>/ or the beginning of a key", metavar="PREFIX")],
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List keys with version, size and type."""
    with client_of(pop) as client:
        items = [dataclasses.asdict(info) for info in client.list(prefix)]
    columns = {
        "KEY": lambda item: item["key"],
        "SIZE": lambda item: size_text(item["size"]),
        "TYPE": lambda item: item["content_type"],
        "WRITTEN": lambda item: time_text(int(item["version"][:13])),
        "VERSION": lambda item: item["version"],
    }
    show(output, items, columns, empty=f"no keys below {prefix!r}")


@app.command("delete")
def delete(key: KeyArgument, if_version: IfVersion = None, pop: PopOption = None) -> None:
    """Delete a value everywhere."""
    with client_of(pop) as client:
        found = client.delete(key, if_version=if_version)
    if not found:
        raise NotFound(f"there is no value {key!r} at this PoP")
