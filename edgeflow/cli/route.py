"""`edgeflow route`: which PoP suits a client best, and why."""

from typing import Annotated, Any

import typer

from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, print_json, show


def route(
    lat: Annotated[float | None, typer.Option("--lat", help="Where the client is: latitude in degrees.")] = None,
    lon: Annotated[float | None, typer.Option("--lon", help="And longitude.")] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Rank the PoPs for a client: by distance from where it is, else as seen from the PoP that is asked; by load and cost."""
    if (lat is None) != (lon is None):
        raise typer.BadParameter("give --lat and --lon, or none of them")
    with client_of(pop) as client:
        ranking = client.route(lat, lon)
    if output is Output.JSON:
        print_json(ranking)
        return
    columns = {
        "POP": lambda one: one["pop"],
        "TAKES CLIENTS": lambda one: "yes" if one["eligible"] else "no",
        "SCORE": lambda one: f"{one['score']:g}",
        "URL": lambda one: one["url"],
        "BECAUSE": _reasons,
    }
    show(output, ranking["items"], columns, empty="no PoP is known")


def _reasons(one: dict[str, Any]) -> str:
    return ", ".join(one["reasons"])
