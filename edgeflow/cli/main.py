"""The command `edgeflow`: one verb per line of work.

What must stay true: an error that a user can meet ends as message, hint and exit status 1, never as a traceback; every verb has --help.
"""

import os
from typing import Annotated, Any

import httpx
import typer
from typer.core import TyperGroup

from edgeflow import __version__
from edgeflow.cli import (
    apply,
    demo,
    dev,
    dlq,
    doctor,
    down,
    env,
    get,
    images,
    invoke,
    kv,
    lab,
    link,
    logs,
    new,
    pops,
    publish,
    quota,
    replay,
    revisions,
    route,
    secret,
    status,
    tail,
    top,
    up,
)
from edgeflow.cli.console import err
from edgeflow.cli.reach import complain
from edgeflow.errors import EdgeflowError, Unavailable


class _Group(TyperGroup):
    """Turns errors into messages."""

    def invoke(
        self, ctx: Any
    ) -> Any:  # click's Context, which Typer brings along under names that differ between its versions
        try:
            return super().invoke(ctx)
        except EdgeflowError as error:
            complain(error)
        except httpx.TransportError as error:
            complain(Unavailable(f"The PoP's API does not answer: {error}"))
        except BrokenPipeError:
            # The reader (head, less) went away; stdout must not be flushed again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        except KeyboardInterrupt:
            err.print("interrupted")
            raise typer.Exit(130) from None
        raise typer.Exit(1)


app = typer.Typer(
    name="edgeflow",
    cls=_Group,
    help="A CDN-style pub/sub edge compute runtime: every PoP a broker, a replicated key-value store and a runner of functions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeflow {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run PoPs on this machine, or talk to those that run. State lives under $EDGEFLOW_HOME (default: .edgeflow)."""


LOOP = "Write a function"
CLUSTER = "Cluster"
DATA = "Applications and data"

app.command(rich_help_panel=LOOP)(new.new)
app.command(rich_help_panel=LOOP)(dev.dev)
app.command(rich_help_panel=CLUSTER)(up.up)
app.command(rich_help_panel=CLUSTER)(down.down)
app.command(rich_help_panel=CLUSTER)(status.status)
app.command(rich_help_panel=CLUSTER)(env.env)
app.command(rich_help_panel=CLUSTER)(doctor.doctor)
app.command(rich_help_panel=CLUSTER)(logs.logs)
app.command(rich_help_panel=CLUSTER)(top.top)
app.add_typer(link.app, name="link", rich_help_panel=CLUSTER)
app.add_typer(pops.app, name="pops", rich_help_panel=CLUSTER)
app.command(rich_help_panel=CLUSTER)(route.route)
app.add_typer(lab.app, name="lab", rich_help_panel=CLUSTER)
app.command(rich_help_panel=DATA)(apply.apply)
app.command(rich_help_panel=DATA)(apply.build)
app.command(rich_help_panel=DATA)(revisions.diff)
app.command(rich_help_panel=DATA)(revisions.history)
app.command(rich_help_panel=DATA)(revisions.rollback)
app.add_typer(get.app, name="get", rich_help_panel=DATA)
app.command(rich_help_panel=DATA)(publish.publish)
app.command(rich_help_panel=DATA)(invoke.invoke)
app.command(rich_help_panel=DATA)(tail.tail)
app.add_typer(kv.app, name="kv", rich_help_panel=DATA)
app.add_typer(dlq.app, name="dlq", rich_help_panel=DATA)
app.command(rich_help_panel=DATA)(replay.replay)
app.add_typer(images.app, name="images", rich_help_panel=DATA)
app.add_typer(quota.app, name="quota", rich_help_panel=DATA)
app.add_typer(secret.app, name="secret", rich_help_panel=DATA)
app.command(rich_help_panel=DATA)(demo.demo)
