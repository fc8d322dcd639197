"""`edgeflow down`: end the cluster."""

from typing import Annotated

import typer

from edgeflow.cli.console import err, say
from edgeflow.host import lifecycle


def down(
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", "--volumes", help="Also remove its data, secrets and certificates (Docker mode: its volumes)."
        ),
    ] = False,
) -> None:
    """End all processes of the cluster, each after it has finished or given back its work. Data stays unless --purge."""
    if lifecycle.down(purge=purge, say=say):
        err.print("The cluster has ended.")
    else:
        err.print("No cluster was running.")
