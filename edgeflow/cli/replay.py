"""`edgeflow replay`: what a channel kept, handed to a function once more."""

import time
from typing import Annotated, Any

import typer

from edgeflow.cli.admin import Operator
from edgeflow.cli.progress import Progress
from edgeflow.cli.reach import AnyPopOption, Output, OutputOption, client_of, clients_of, errors, print_json
from edgeflow.core.channels import check_filter, namespace_of
from edgeflow.errors import NotFound

POLL_S = 0.3
SHOWN_DIFFERENCES = 20


def replay(
    channel: Annotated[
        str | None,
        typer.Argument(
            help="<namespace>/<path>: a channel that the function subscribes to, or a filter", metavar="CHANNEL"
        ),
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", help="The function: <name> or <name>@<revision>.", metavar="FUNCTION[@REV]")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="RFC 3339, or how long ago, as in 1h; all that is kept if not given.", metavar="TIME"
        ),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="The same; until now if not given.", metavar="TIME")] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Publish nothing; keep the outputs to compare them with what was recorded.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show how it goes on until it is done. Ctrl-C cancels the replay.")
    ] = False,
    cancel: Annotated[
        str | None,
        typer.Option("--cancel", help="Instead: end this replay; what it has started goes on.", metavar="ID"),
    ] = None,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Hand what a channel kept to a function once more, or to one of its older revisions, at the PoP where it is placed.

    With --shadow nothing is published: --follow then ends with how many invocations gave the same as recorded, `edgeflow get replay ID --diff` shows
    the others.
    """
    if cancel is not None:
        if channel is not None or into is not None:
            raise typer.BadParameter("--cancel takes the id of a replay and nothing else")
        _cancel(cancel, pop, output)
        return
    if channel is None or into is None:
        raise typer.BadParameter("give a CHANNEL and --into FUNCTION")
    check_filter(channel)
    namespace = namespace_of(channel)
    owner, slash, function = into.rpartition("/")
    if slash and owner != namespace:
        raise typer.BadParameter(f"--into {into!r} is not in the channel's namespace {namespace!r}")
    wish = {"channel": channel, "function": function, "from": from_, "to": to, "shadow": shadow}
    with client_of(pop or _home_of(namespace, function.partition("@")[0])) as client:
        info = client.start_replay(namespace, wish)
        if follow:
            info = _follow(client, namespace, info)
        differences = _differences(client, namespace, info) if follow and shadow else None
    if output is Output.JSON:
        print_json(info if differences is None else {**info, **differences})
        return
    print(f"{info['id']}  {info['state']}  {progress_text(info)}")
    if differences is not None:
        print(
            f"{differences['same']} the same, {len(differences['different'])} different, {differences['unrecorded']} without a record"
        )
        for id in differences["different"][:SHOWN_DIFFERENCES]:
            print(f"  {id}")


def progress_text(info: dict[str, Any]) -> str:
    """How far a replay is, in a few words."""
    return f"{info['read']} read, {info['invoked']} invoked, {info['committed']} committed, {info['dead']} given up"


def find_replay(id: str, namespace: str | None, pop: str | None) -> tuple[str, str, dict[str, Any]]:
    """(PoP, namespace, replay) of an id, wherever it is. Raises NotFound."""
    for name, client in clients_of(pop):
        for one in [namespace] if namespace else [item["namespace"] for item in client.namespaces()]:
            info = client.replay(one, id)
            if info is not None:
                return name, one, info
    raise NotFound(f"there is no replay {id!r}", hint="`edgeflow get replays` lists them.")


def _home_of(namespace: str, function: str) -> str:
    """The PoP where a function is placed, as the first PoP that answers knows it."""
    with client_of(None) as client:
        return str(client.function(namespace, function)["at"])


def _follow(client: Operator, namespace: str, info: dict[str, Any]) -> dict[str, Any]:
    """Until the replay has ended and nothing of it is under way any more. Ctrl-C cancels it."""
    id = info["id"]
    try:
        with Progress() as progress:
            while info["state"] == "running" or info["committed"] + info["dead"] < info["invoked"]:
                progress.say(f"{id}: {progress_text(info)}")
                time.sleep(POLL_S)
                now = client.replay(namespace, id)
                if now is None:
                    break
                info = now
                if info["state"] == "cancelled":
                    break
    except KeyboardInterrupt:
        client.cancel_replay(namespace, id)
        errors.print(f"replay {id} is cancelled; what it has started goes on", highlight=False)
        raise
    return info


def _differences(client: Operator, namespace: str, info: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"same": 0, "different": [], "unrecorded": 0}
    for item in client.replay_diff(namespace, info["id"]):
        if item["recorded"] is None:
            found["unrecorded"] += 1
        elif item["same"]:
            found["same"] += 1
        else:
            found["different"].append(item["invocation"])
    return found


def _cancel(id: str, pop: str | None, output: Output) -> None:
    name, namespace, info = find_replay(id, None, pop)
    with client_of(name) as client:
        client.cancel_replay(namespace, id)
        now = client.replay(namespace, id) or info
    if output is Output.JSON:
        print_json(now)
        return
    print(f"{id}  {now['state']}  {progress_text(now)}")
