"""What the verbs share: where text goes, JSON output, and how an error looks.

What must stay true: with `-o json` stdout holds one JSON document and nothing else; progress and errors go to stderr.
"""

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from edgeflow.errors import EdgeflowError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Output(StrEnum):
    """Forms of output."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text for people, json for programs.")]
PopOption = Annotated[str | None, typer.Option("--pop", help="PoP to talk to (default: the first one).", show_default=False)]


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def say(message: str) -> None:
    """A step of what is going on, on stderr."""
    err.print(f"[dim]·[/dim] {escape(message)}")


def ask(question: str) -> bool:
    """The user's yes or no; no when nobody is at the terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(question, default=False, err=True)


def print_error(error: EdgeflowError) -> None:
    """Message and hint, as every failed command ends."""
    err.print(f"[bold red]error:[/bold red] {escape(error.message)}")
    if error.hint:
        err.print(f"[yellow]hint:[/yellow]  {escape(error.hint)}")
