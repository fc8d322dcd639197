"""`edgeflow publish`: one event, durably."""

import dataclasses
import mimetypes
from typing import Annotated

import typer

from edgeflow.cli.reach import (
    Output,
    OutputOption,
    PopOption,
    TextArgument,
    client_of,
    given_text,
    print_json,
    read_input,
)


def publish(
    channel: Annotated[str, typer.Argument(help="<namespace>/<path>, as in vision/chunks")],
    text: TextArgument = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The data as text.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with the data; - for standard input.")
    ] = None,
    dataref: Annotated[
        str | None, typer.Option("--dataref", help="ekv:<namespace>/<key>: the data is that value.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", "-s", help="What the event is about; joins go by it.")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", "-a", help="name=value; repeatable.", metavar="NAME=VALUE")
    ] = None,
    type_: Annotated[str | None, typer.Option("--type", help="CloudEvents type.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="CloudEvents id; publishing the same id and source again has no effect.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="CloudEvents source.")] = None,
    content_type: Annotated[
        str | None, typer.Option("--content-type", help="Media type; guessed from the file's name.")
    ] = None,
    put: Annotated[
        str | None,
        typer.Option("--put", help="Also put the data into the EKV under this key, in the same step.", metavar="KEY"),
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Publish one event and print its receipt: it is on disk at that PoP then."""
    data = given_text(text, data)
    if dataref is not None and (data is not None or file is not None):
        raise typer.BadParameter("--dataref takes the place of --data and --file")
    body = None if dataref is not None else read_input(data, file)
    attributes = {}
    for pair in attribute or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--attribute {pair!r} is not name=value")
        attributes[name] = value
    if content_type is None:
        content_type = (
            mimetypes.guess_type(file)[0]
            if file is not None
            else "text/plain; charset=utf-8"
            if data is not None
            else None
        )
    with client_of(pop) as client:
        receipt = client.publish(
            channel, body, subject=subject, attributes=attributes, datacontenttype=content_type, type=type_, id=id_, source=source,
            dataref=dataref, put=put,
        )  # fmt: skip
    if output is Output.JSON:
        print_json({"class": receipt.class_, **{k: v for k, v in dataclasses.asdict(receipt).items() if k != "class_"}})
    elif receipt.class_ == "waiting":
        print(f"waiting for {dataref} to be readable  {receipt.id}")
    else:
        print(
            f"{receipt.class_} at {receipt.origin}/{receipt.epoch}/{receipt.seq}  {receipt.id}{'  (known already)' if receipt.duplicate else ''}"
        )
