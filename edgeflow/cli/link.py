"""`edgeflow link`: the network between PoPs: delay it, cut it, heal it. `edgeflow lab` can do more to it."""

from typing import Annotated

import typer

from edgeflow.cli.console import err
from edgeflow.host.discover import find
from edgeflow.lab.hands import hands_on

app = typer.Typer(
    no_args_is_help=True, help="Delay, cut and heal the links between PoPs (a user-space proxy, always in their path)."
)

Between = Annotated[str, typer.Option(help="Two PoPs, comma-separated: chicago,la. In either order.")]


@app.command()
def delay(
    between: Between,
    ms: Annotated[float, typer.Option(help="Delay in each direction, in ms; 0 = none.", min=0, max=60_000)],
) -> None:
    """Delay the link between two PoPs, until changed or the next start."""
    _change(between, delay_ms=ms)
    err.print(f"{between}: {ms:g} ms in each direction")


@app.command()
def cut(between: Between) -> None:
    """Cut the link between two PoPs: nothing arrives, as on a dead line."""
    _change(between, cut=True)
    err.print(f"{between}: cut")


@app.command()
def heal(between: Between) -> None:
    """End a cut; the delay stays what it was."""
    _change(between, cut=False)
    err.print(f"{between}: whole")


def _change(between: str, *, delay_ms: float | None = None, cut: bool | None = None) -> None:
    hands = hands_on(find(), anyway=True)
    a, b = hands.pair(between)
    hands.change(a, b, delay_ms=delay_ms, cut=cut)
