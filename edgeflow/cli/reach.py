"""What the commands that talk to a PoP share: finding it, options, printing.

What it is: the running cluster as clients, one table printer and the `-o json` switch.
What must stay true: data goes to stdout and nothing else does; an error is one line and its hint on stderr, exit status 1, never a traceback.
"""

import getpass
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeflow.cli.admin import Operator
from edgeflow.core.channels import check_namespace
from edgeflow.errors import BadRequest, EdgeflowError, Unavailable
from edgeflow.host.discover import find as find

errors = Console(stderr=True, soft_wrap=True)


class Output(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="`table` for people, `json` for programs.")]
TextArgument = Annotated[
    str | None, typer.Argument(help="The data as text; --data says the same.", metavar="TEXT", show_default=False)
]
PopOption = Annotated[
    str | None, typer.Option("--pop", help="PoP to talk to; the first one if not given.", metavar="POP")
]
AnyPopOption = Annotated[
    str | None, typer.Option("--pop", help="Only this PoP; all of them if not given.", metavar="POP")
]


def complain(error: EdgeflowError) -> None:
    """An error and its hint on stderr."""
    errors.print(f"[red]error:[/red] {escape(error.message)}")
    if error.hint:
        errors.print(f"[dim]hint:[/dim] {escape(error.hint)}")


@contextmanager
def client_of(pop: str | None, *, retry_s: float = 10.0, timeout_s: float = 30.0) -> Iterator[Operator]:
    """A client of `pop`, else of the first PoP. Raises NoCluster, NoSuchPop."""
    access = find().pop(pop)
    with Operator(access.api_url, access.token, retry_s=retry_s, timeout_s=timeout_s) as client:
        yield client


def clients_of(pop: str | None) -> Iterator[tuple[str, Operator]]:
    """(id, client) of `pop`, else of every PoP that answers; one that does not is named on stderr."""
    cluster = find()
    names = [pop] if pop is not None else list(cluster.pops)
    answered = 0
    trouble: EdgeflowError | None = None
    for name in names:
        access = cluster.pop(name)
        with Operator(access.api_url, access.token, retry_s=2.0 if pop is None else 10.0) as client:
            try:
                client.pops()
            except Unavailable as error:
                trouble = error
                errors.print(f"[yellow]skipped:[/yellow] PoP {escape(name)} does not answer")
                continue
            answered += 1
            yield name, client
    if not answered and trouble is not None:
        raise trouble


def said_by() -> str:
    """Who this is, for the history of functions; nobody checks it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def show(
    output: Output, items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], object]], *, empty: str
) -> None:
    """Print `items`: as JSON in full, or as a table of `columns` (title -> cell). `empty` is said on stderr when there are none."""
    if output is Output.JSON:
        print_json(items)
        return
    if not items:
        errors.print(escape(empty))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        table.add_column(title, overflow="fold")
    for item in items:
        table.add_row(*(escape(_cell(make(item))) for make in columns.values()))
    console = Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=400)
    console.print(table)


def print_json(document: object) -> None:
    """Indented JSON on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def size_text(size_bytes: int) -> str:
    """A size for people: 1.9 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000 or unit == "MB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size_bytes} B"


def given_text(text: str | None, data: str | None) -> str | None:
    """The text that was given, as an argument or by --data."""
    if text is not None and data is not None:
        raise typer.BadParameter("TEXT and --data are the same: give one of them")
    return data if text is None else text


def read_input(data: str | None, file: str | None) -> bytes:
    """The bytes of a text or of --file (`-` is standard input). Exactly one of them must be given."""
    if (data is None) == (file is None):
        raise typer.BadParameter("give either TEXT or --file PATH (- for standard input)")
    if data is not None:
        return data.encode()
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        with open(str(file), "rb") as handle:
            return handle.read()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None


def confirm(question: str, *, yes: bool) -> None:
    """Go on if the user says so, here or by --yes. Raises BadRequest when nobody is there to ask, Exit when the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadRequest(f"{question} Nobody is at the terminal to answer.", hint="Say --yes if that is meant.")
    if not typer.confirm(question, default=False, err=True):
        errors.print("nothing was changed")
        raise typer.Exit(1)


def function_of(client: Operator, text: str) -> tuple[str, str]:
    """(namespace, name) of `<namespace>/<name>`, or of the only function that has this name. Raises BadParameter, BadName, BadRequest."""
    if "/" in text:
        namespace, _, name = text.partition("/")
        if not name or "/" in name:
            raise typer.BadParameter(f"{text!r} is not <namespace>/<function>")
        return check_namespace(namespace), name
    found = [item["namespace"] for item in client.functions(None) if item["function"] == text]
    if len(found) != 1:
        what = f"{len(found)} functions are" if found else "no function is"
        raise BadRequest(f"{what} called {text!r}", hint="Say <namespace>/<function>; `edgeflow get functions` lists them.")  # fmt: skip
    return found[0], text
