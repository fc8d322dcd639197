"""`edgeflow secret`: what functions are given as files and nobody can read back.

What must stay true: a value is never an argument (it would be in the shell's history and the list of processes) and never printed.
"""

import sys
from typing import Annotated, Any

import typer

from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, print_json, read_input, show
from edgeflow.errors import BadRequest, NotFound

app = typer.Typer(help="Secrets of functions: set, list, remove. Values do not come back.", no_args_is_help=True)

SecretArgument = Annotated[str, typer.Argument(help="<namespace>/<name>, as in vision/api-key", metavar="SECRET")]


@app.command("set")
def set_secret(
    secret: SecretArgument,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="A file with the value, taken as it is; - for standard input."),
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Set a secret. Without --file it is asked for, or read from standard input when that is no terminal.

    It reaches every PoP; instances of functions that name it are replaced by ones that have it.
    """
    namespace, name = _split(secret)
    if file is not None or not sys.stdin.isatty():
        value = read_input(None, file or "-")
    else:
        value = typer.prompt(f"Value of {secret}", hide_input=True, confirmation_prompt=True, err=True).encode()
    with client_of(pop) as client:
        answer = client.set_secret(namespace, name, value)
    if output is Output.JSON:
        print_json(answer)
    else:
        used = f", used by {', '.join(answer['used_by'])}" if answer["used_by"] else ""
        print(f"{secret}: {len(value)} bytes kept{used}")


@app.command("list")
def list_secrets(
    namespace: Annotated[str, typer.Argument(help="The namespace", metavar="NAMESPACE")],
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the secrets of a namespace, and which functions use them."""
    with client_of(pop) as client:
        items = client.secrets(namespace)
    columns: dict[str, Any] = {
        "SECRET": lambda item: f"{item['namespace']}/{item['name']}",
        "USED BY": lambda item: ", ".join(item["used_by"]),
        "VERSION": lambda item: item["version"],
    }
    show(output, items, columns, empty=f"{namespace} has no secrets")


@app.command("rm")
def remove_secret(secret: SecretArgument, pop: PopOption = None) -> None:
    """Forget a secret. What runs keeps it until it ends; new instances of functions that name it do not start."""
    namespace, name = _split(secret)
    with client_of(pop) as client:
        try:
            client.remove_secret(namespace, name)
        except NotFound as error:
            raise NotFound(error.message, hint=f"`edgeflow secret list {namespace}` shows those there are.") from None
    print(f"{secret}: removed")


def _split(secret: str) -> tuple[str, str]:
    namespace, slash, name = secret.partition("/")
    if not slash or not namespace or not name:
        raise BadRequest(f"{secret!r} names no secret", hint="Write <namespace>/<name>, as in vision/api-key.")
    return namespace, name
