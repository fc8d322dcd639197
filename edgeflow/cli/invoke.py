"""`edgeflow invoke`: call one function with one event and print what it answers."""

import base64
import json
import mimetypes
import sys
from typing import Annotated, Any
from urllib.parse import unquote

import httpx
import typer

from edgeflow.cli.admin import header_value, new_event_id
from edgeflow.cli.reach import (
    Output,
    OutputOption,
    PopOption,
    TextArgument,
    client_of,
    clients_of,
    complain,
    errors,
    function_of,
    given_text,
    print_json,
    read_input,
    size_text,
)
from edgeflow.core.gathered import BATCH
from edgeflow.errors import BadRequest, InvocationDead, InvocationPending

STRUCTURED = "application/cloudevents+json"
INVOCATION_HEADER = "Edgeflow-Invocation"
GIVEN_UP, PENDING = 3, 4
"""Exit statuses."""
ANSWER_S = 15.0
"""How much longer than the function the PoP may take to answer."""


def invoke(
    function: Annotated[str, typer.Argument(help="<namespace>/<function>, as in vision/detect", metavar="FUNCTION")],
    text: TextArgument = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The data as text.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with the data; - for standard input.")
    ] = None,
    event: Annotated[
        str | None,
        typer.Option(
            "--event",
            help="A file with a whole CloudEvent as JSON, also as `tail -o json` prints it, or a failed invocation that `edgeflow dev` saved; - for standard input. It gets a new id.",
        ),
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", "-s", help="What the event is about.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", "-a", help="name=value; repeatable.", metavar="NAME=VALUE")
    ] = None,
    content_type: Annotated[
        str | None, typer.Option("--content-type", help="Media type; guessed from the file's name.")
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="CloudEvents id; a call with the same id is made once.")
    ] = None,
    timeout: Annotated[str, typer.Option("--timeout", help="Longest wait: 500ms, 30s, 2m; at most 300s.")] = "30s",
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Call one function with one event, at any PoP, and print its output as it is; -o json prints all of it with its attributes.

    Whoever stops waiting changes nothing: the invocation goes on, and `edgeflow get invocation` has its result. Exit status: 0 carried out, 3 given up (the
    traceback is on stderr), 4 not ended in time, 1 any other error.
    """
    data = given_text(text, data)
    if event is not None:
        if any(given is not None for given in (data, file, subject, content_type)) or attribute:
            raise typer.BadParameter("--event holds the data and all attributes")
        body, headers = _structured(read_input(None, event), id_ or new_event_id())
    else:
        body = read_input(data, file) if (data, file) != (None, None) else b""
        headers = _binary(subject, attribute or [], id_)
        kind = content_type or _guess(data, file)
        if kind is not None:
            headers["content-type"] = kind
    with client_of(pop, timeout_s=_seconds(timeout) + ANSWER_S) as client:
        namespace, name = function_of(client, function)
        try:
            answer = client.call_function(namespace, name, body, headers, timeout)
        except InvocationDead as error:
            _explain(namespace, error)
            raise typer.Exit(GIVEN_UP) from None
        except InvocationPending as error:
            complain(error)
            raise typer.Exit(PENDING) from None
    outputs = _outputs(answer)
    if output is Output.JSON:
        print_json({"invocation": answer.headers.get(INVOCATION_HEADER), "outputs": outputs})
    elif not outputs:
        errors.print("no output", highlight=False)
    elif answer.headers.get("content-type", "").startswith(BATCH):
        for one in outputs:
            print(f"{one['channel']}  {one.get('subject') or '-'}  {_preview(one)}")
    else:
        sys.stdout.buffer.write(answer.content)
        if sys.stdout.isatty() and not answer.content.endswith(b"\n"):
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def _explain(namespace: str, error: InvocationDead) -> None:
    """Why an invocation was given up, with the traceback of its last attempt, from the PoP that has the dead letter."""
    id = str(error.details.get("invocation") or "")
    for _, client in clients_of(None):
        letter = client.dead_letter(namespace, id)
        if letter is not None:
            errors.print(str(letter["detail"]).rstrip(), markup=False, highlight=False)
            break
    complain(error)


def _seconds(timeout: str) -> float:
    """How long the PoP may take; it checks the text, so one that is no duration only needs some time for the refusal."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        number = timeout.removesuffix(unit)
        if number != timeout and number.replace(".", "", 1).isdigit():
            return min(float(number) * factor, 300.0)
    return min(float(timeout), 300.0) if timeout.replace(".", "", 1).isdigit() else 0.0


def _guess(data: str | None, file: str | None) -> str | None:
    if data is not None:
        return "text/plain; charset=utf-8"
    return mimetypes.guess_type(file)[0] if file is not None else None


def _binary(subject: str | None, attributes: list[str], id_: str | None) -> dict[str, str]:
    headers = {"ce-id": header_value(id_ or new_event_id())}
    if subject is not None:
        headers["ce-subject"] = header_value(subject)
    for pair in attributes:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--attribute {pair!r} is not name=value")
        headers[f"ce-{name}"] = header_value(value)
    return headers


def _structured(content: bytes, id: str) -> tuple[bytes, dict[str, str]]:
    """The request for one CloudEvent in JSON. What the log gave it (its place) is left out; `id` takes the place of its own."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the event is not JSON: {error}", hint="--event takes one CloudEvent as JSON.") from None
    if not isinstance(document, dict):
        raise BadRequest("the event is not a JSON object", hint="--event takes one CloudEvent as JSON.")
    if isinstance(document.get("inputs"), list):
        return _saved(document, id)
    if "cursor" in document:  # a line of `tail -o json`: its data is the text of the body, its attributes stand apart
        document.update(document.pop("attributes", None) or {})
        if "data" in document:
            document["data_base64"] = base64.b64encode(str(document.pop("data")).encode()).decode()
    for name in ("cursor", "channel", "origin", "epoch", "seq", "prev", "size"):
        document.pop(name, None)
    document = {name: value for name, value in document.items() if value is not None or name == "data"}
    defaults = {"specversion": "1.0", "source": "urn:edgeflow:cli", "type": "edgeflow.message"}
    return json.dumps({**defaults, **document, "id": id}).encode(), {"content-type": STRUCTURED}


def _saved(document: dict[str, Any], id: str) -> tuple[bytes, dict[str, str]]:
    """The request for a failed invocation that was saved: all its inputs in one batch."""
    inputs = document["inputs"]
    if not inputs or not all(isinstance(one, dict) and isinstance(one.get("input"), str) for one in inputs):
        raise BadRequest(
            "the file has `inputs`, but not each says which `input` it is",
            hint="`edgeflow dev` saves failed invocations in .edgeflow/failed.",
        )
    return json.dumps(inputs).encode(), {"content-type": BATCH, "ce-id": header_value(id)}


def _outputs(answer: httpx.Response) -> list[dict[str, Any]]:
    """The outputs as structured CloudEvents, whichever way they came."""
    if answer.status_code == 204:
        return []
    kind = answer.headers.get("content-type", "")
    if kind.startswith(BATCH):
        documents: list[dict[str, Any]] = answer.json()
        return documents
    document: dict[str, Any] = {
        name[3:]: unquote(value) for name, value in answer.headers.items() if name.startswith("ce-")
    }
    document["datacontenttype"] = kind
    try:
        document["data"] = answer.json() if "json" in kind else answer.content.decode()
    except ValueError:
        document["data_base64"] = base64.b64encode(answer.content).decode()
    return [document]


def _preview(document: dict[str, Any]) -> str:
    if "data" in document:
        value = document["data"]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 80 else text[:77] + "..."
    if "data_base64" in document:
        return size_text(len(base64.b64decode(document["data_base64"])))
    return f"{document.get('dataref')}  {size_text(int(document.get('size', 0)))}"
