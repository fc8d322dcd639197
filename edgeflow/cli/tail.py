"""`edgeflow tail`: follow a channel."""

import base64
import codecs
import json
import sys
from typing import Annotated, Any

import typer

from edgeflow.cli import reach
from edgeflow.cli.reach import Output, OutputOption, PopOption, errors, size_text
from edgeflow.core.events import time_text
from edgeflow.sdk.client import Client, Gap, ReceivedEvent

PREVIEW_CHARS = 80
TEXT_TYPES = ("text/", "application/json")


def tail(
    channel: Annotated[str, typer.Argument(help="A channel, or an MQTT filter as in 'vision/#'")],
    count: Annotated[int | None, typer.Option("-n", "--count", help="Stop after this many events.", min=1)] = None,
    from_: Annotated[
        str, typer.Option("--from", help="`now`, `start`, or a cursor of any PoP (everything behind it).")
    ] = "now",
    durable: Annotated[
        str | None,
        typer.Option(
            "--durable",
            help="Go on where this consumer stopped, here or at any PoP that answers; a new one begins at --from.",
            metavar="NAME",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write nothing but the data, as it is.")] = False,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print events as they become readable at a PoP: one line each, or one JSON document per line with -o json."""
    seen = 0
    with _client(pop) as client, client.subscribe(channel, from_=from_, durable=durable) as items:
        for item in items:
            if isinstance(item, Gap):
                _show_gap(item, output)
                continue
            if raw:
                sys.stdout.buffer.write(item.data)
            elif output is Output.JSON:
                _write(_document(item))
            else:
                print(_line(item))
            sys.stdout.flush()
            seen += 1
            if count is not None and seen >= count:
                return


def _client(pop: str | None) -> Client:
    """A client of `pop`, else of the first PoP, that knows the others. Raises NoCluster, NoSuchPop."""
    cluster = reach.find()
    first = cluster.pop(pop)
    names = list(cluster.pops)
    at = names.index(first.id)
    others = [(cluster.pops[name].api_url, cluster.pops[name].token) for name in (*names[at + 1 :], *names[:at])]
    return Client(first.api_url, first.token, retry_s=10.0, others=others)


def _show_gap(gap: Gap, output: Output) -> None:
    if output is Output.JSON:
        _write({"gap": dict(gap.details), "cursor": gap.cursor})
        sys.stdout.flush()
    else:
        errors.print(f"[yellow]gap:[/yellow] {gap.reason} {dict(gap.details)}", highlight=False)


def _line(event: ReceivedEvent) -> str:
    parts = [
        time_text(event.time_ms)[11:],
        event.channel,
        event.subject or "-",
        size_text(event.size_bytes),
        _preview(event),
    ]
    return "  ".join(parts)


def _preview(event: ReceivedEvent) -> str:
    """The beginning of a text, else the type; a body that would have to be fetched for it is not."""
    kind = event.datacontenttype or ""
    if event.is_remote or (kind and not kind.startswith(TEXT_TYPES)):
        return kind or "bytes"
    try:
        # Incremental: a character that the cut goes through is not an error, a byte that is no text is.
        text = codecs.getincrementaldecoder("utf-8")().decode(event.data[: PREVIEW_CHARS * 4])
    except UnicodeDecodeError:
        return kind or "bytes"
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 3] + "..."


def _document(event: ReceivedEvent) -> dict[str, Any]:
    document: dict[str, Any] = {
        "cursor": event.cursor, "channel": event.channel, "id": event.id, "source": event.source, "type": event.type,
        "time": time_text(event.time_ms), "subject": event.subject, "datacontenttype": event.datacontenttype,
        "attributes": dict(event.attributes), "origin": event.origin, "epoch": event.epoch, "seq": event.seq,
    }  # fmt: skip
    data = event.data
    try:
        return {**document, "data": data.decode()}
    except UnicodeDecodeError:
        return {**document, "data_base64": base64.b64encode(data).decode()}


def _write(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
