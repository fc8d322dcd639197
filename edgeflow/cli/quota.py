"""`edgeflow quota`: how much a namespace may send to each PoP."""

from typing import Annotated, Any

import typer

from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, print_json, show
from edgeflow.core.quotas import size_per_s
from edgeflow.errors import BadQuota, NotFound

app = typer.Typer(help="How much a namespace may send to each PoP.", no_args_is_help=True)

NamespaceArgument = Annotated[str, typer.Argument(help="The namespace", metavar="NAMESPACE")]


@app.command("set")
def set_quota(
    namespace: NamespaceArgument,
    events: Annotated[
        float | None, typer.Option("--events-per-s", help="Events and values a second.", min=0.001)
    ] = None,
    size: Annotated[
        str | None, typer.Option("--bytes-per-s", help="Bytes a second: 500000, 500k, 2M, 512Ki.", metavar="SIZE")
    ] = None,
    burst: Annotated[
        float | None,
        typer.Option("--burst-s", help="So many seconds' worth may come at once; 2 if not given.", min=0.1),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option("--link-rate", help="What each PoP sends of it to each other PoP, as in 5MB/s.", metavar="SIZE"),
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Set the quota of a namespace, in place of the one it has. It reaches the other PoPs by itself.

    What is over it is refused: HTTP 429 `quota-exceeded`, over MQTT a line `publish_refused` in the log. Outputs of functions do not count.
    """
    wish: dict[str, float] = {}
    if events is not None:
        wish["events_per_s"] = events
    if size is not None:
        wish["bytes_per_s"] = _bytes(size)
    if link is not None:
        wish["link_bytes_per_s"] = _bytes(link)
    if not wish:
        raise typer.BadParameter("give --events-per-s, --bytes-per-s or --link-rate")
    if burst is not None:
        wish["burst_s"] = burst
    with client_of(pop) as client:
        quota = client.set_quota(namespace, wish)
    if output is Output.JSON:
        print_json(quota)
    else:
        print(f"{namespace}: {_text(quota)}")


@app.command("show")
def show_quotas(
    namespace: Annotated[str | None, typer.Argument(help="Only this namespace", metavar="NAMESPACE")] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the quotas that are set."""
    with client_of(pop) as client:
        names = [namespace] if namespace is not None else [item["namespace"] for item in client.namespaces()]
        items = [quota for name in names if (quota := client.quota(name)) is not None]
    columns = {
        "NAMESPACE": lambda item: item["namespace"],
        "EVENTS/s": lambda item: _number(item["events_per_s"]),
        "BYTES/s": lambda item: _number(item["bytes_per_s"]),
        "LINK bytes/s": lambda item: _number(item["link_bytes_per_s"]),
        "BURST s": lambda item: _number(item["burst_s"]),
    }
    show(output, items, columns, empty=f"{namespace} has no quota" if namespace else "no namespace has a quota")


@app.command("clear")
def clear_quota(namespace: NamespaceArgument, pop: PopOption = None) -> None:
    """Remove the quota of a namespace: it has no bound then."""
    with client_of(pop) as client:
        try:
            client.clear_quota(namespace)
        except NotFound as error:
            raise NotFound(error.message, hint="`edgeflow quota show` lists those that are set.") from None


def _bytes(text: str) -> float:
    try:
        return size_per_s(text)
    except BadQuota as error:
        raise typer.BadParameter(error.message) from None


def _text(quota: dict[str, Any]) -> str:
    bounds = [
        f"{_number(quota[name])} {unit}"
        for name, unit in (
            ("events_per_s", "events/s"),
            ("bytes_per_s", "bytes/s"),
            ("link_bytes_per_s", "bytes/s on each link"),
        )
        if quota[name] is not None
    ]
    return f"{' and '.join(bounds)}, {_number(quota['burst_s'])} s at once"


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if value == int(value) else f"{value:,}"
