"""Where the verbs that run a cluster write: data to stdout, progress and questions to stderr."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

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
