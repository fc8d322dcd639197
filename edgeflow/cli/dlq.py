"""`edgeflow dlq`: dead letters, the invocations that were given up. They lie at the PoP of their function."""

from typing import Annotated, Any

import typer

from edgeflow.cli.reach import AnyPopOption, Output, OutputOption, clients_of, print_json, show
from edgeflow.core.events import time_text
from edgeflow.errors import NotFound
from edgeflow.sdk.client import Client

app = typer.Typer(help="Invocations that were given up, with reason and inputs.", no_args_is_help=True)

DETAIL_CHARS = 100


@app.command("list")
def list_dead_letters(
    namespace: Annotated[str | None, typer.Argument(help="Only this namespace")] = None,
    limit: Annotated[int, typer.Option("--limit", help="Most letters per namespace and PoP.", min=1)] = 100,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List dead letters, oldest first."""
    items: list[dict[str, Any]] = []
    for name, client in clients_of(pop):
        for one in [namespace] if namespace else _namespaces(client):
            try:
                for letter, _ in zip(client.dead_letters(one), range(limit), strict=False):
                    items.append({"pop": name, **letter})
            except NotFound:
                continue  # this PoP has nothing of that namespace
    columns = {
        "TIME": lambda item: time_text(item["at_ms"]),
        "POP": lambda item: item["pop"],
        "FUNCTION": lambda item: f"{item['namespace']}/{item['function']}",
        "REASON": lambda item: item["reason"],
        "ATTEMPTS": lambda item: item["attempts"],
        "DETAIL": lambda item: " ".join(item["detail"].split())[:DETAIL_CHARS],
        "ID": lambda item: item["id"],
    }
    show(output, sorted(items, key=lambda item: item["at_ms"]), columns, empty="no dead letters")


@app.command("show")
def show_dead_letter(
    id_: Annotated[str, typer.Argument(help="Id of the invocation, or its beginning", metavar="ID")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace; searched if not given.")
    ] = None,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one dead letter with its inputs."""
    for name, client in clients_of(pop):
        for one in [namespace] if namespace else _namespaces(client):
            letter = _find(client, one, id_)
            if letter is not None:
                _print(output, {"pop": name, **letter})
                return
    raise NotFound(f"there is no dead letter {id_!r}", hint="`edgeflow dlq list` lists them.")


def _namespaces(client: Client) -> list[str]:
    return [item["namespace"] for item in client.namespaces()]


def _find(client: Client, namespace: str, id_: str) -> dict[str, Any] | None:
    try:
        letter = client.dead_letter(namespace, id_)
        if letter is not None:
            return letter
        whole = next((item["id"] for item in client.dead_letters(namespace) if item["id"].startswith(id_)), None)
        return client.dead_letter(namespace, whole) if whole is not None else None
    except NotFound:
        return None


def _print(output: Output, letter: dict[str, Any]) -> None:
    if output is Output.JSON:
        print_json(letter)
        return
    print(f"{letter['namespace']}/{letter['function']} (revision {letter['revision']}) at {letter['pop']}")
    print(f"id        {letter['id']}")
    print(f"time      {time_text(letter['at_ms'])}")
    print(f"reason    {letter['reason']}, after {letter['attempts']} attempts")
    print("detail")
    for line in letter["detail"].splitlines():
        print(f"  {line}")
    print("inputs")
    for item in letter["inputs"]:
        event = item["event"]
        print(f"  {item['name']}: {event['channel']}  subject {event.get('subject') or '-'}  id {event['id']}")
        if "dataref" in event:
            print(f"    {event['dataref']}  ({event['size']} bytes)")
