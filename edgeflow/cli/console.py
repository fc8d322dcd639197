"""Where the verbs that run a cluster write: data to stdout, progress and questions to stderr."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from edgeflow.cli.reach import Output as Output
from edgeflow.cli.reach import OutputOption as OutputOption
from edgeflow.cli.reach import PopOption as PopOption
from edgeflow.cli.reach import print_json as print_json

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """A step of what is going on, on stderr."""
    err.print(f"[dim]·[/dim] {escape(message)}")


def ask(question: str) -> bool:
    """The user's yes or no; no when nobody is at the terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(question, default=False, err=True)
