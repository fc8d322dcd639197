"""`edgeflow new`: a folder with a function that works, to begin from.

What must stay true: what it writes runs under `edgeflow dev` and its test passes as it is; nothing that is there already is changed.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgeflow.cli.console import out
from edgeflow.core import manifest as manifests
from edgeflow.errors import BadManifest, BadRequest


class Contract(StrEnum):
    """How the platform talks to the code."""

    SDK = "sdk"


HANDLER = """\
from edgeflow import function


@function
def handle(ctx, words):  # one parameter per input channel, by its name
    ctx.log.info("shouting", letters=len(words.data))
    return words.text().upper()  # published on the function's only channel
"""

REQUIREMENTS = """\
# Packages that handler.py imports, one per line, as for pip. The edgeflow SDK is there already.
"""

MANIFEST = """\
namespace: {name}
functions:
  {name}: {{build: ., subscribe: words, publish: loud}}
"""

TEST = """\
from handler import handle

from edgeflow.testing import call


def test_shouts():
    result = call(handle, words="quiet")
    assert result.output.text() == "QUIET"
    assert result.logs[0]["letters"] == 5
"""

README = """\
# {name}

A function on edgeflow: it turns the words on the channel `{name}/words` into capitals on `{name}/loud`.

| file | what |
|---|---|
| `handler.py` | the code |
| `requirements.txt` | what it imports |
| `edgeflow.yaml` | what starts it, and where its results go |
| `test_handler.py` | its test, without a cluster: `pytest` |

```sh
edgeflow dev                                     # runs it; edit handler.py and the new code answers
edgeflow invoke {name}/{name} --data "good morning"    # in another terminal, in this folder
edgeflow tail {name}/loud                           # what it publishes
edgeflow apply                                   # on a cluster (edgeflow up --detach)
```
"""

FILES = {
    "handler.py": HANDLER, "requirements.txt": REQUIREMENTS, "edgeflow.yaml": MANIFEST, "test_handler.py": TEST, "README.md": README,
    ".gitignore": ".edgeflow/\n__pycache__/\n",
}  # fmt: skip
_FILLED = ("edgeflow.yaml", "README.md")


def new(
    name: Annotated[str, typer.Argument(help="Name of the function, its folder and its namespace.", metavar="NAME")],
    contract: Annotated[Contract, typer.Option(help="How the platform talks to the code.")] = Contract.SDK,
) -> None:
    """Make a folder with a function that works: handler.py, requirements.txt, edgeflow.yaml, a test and a README."""
    folder = Path(name)
    write(folder, folder.name)
    out.print(f"[green]✓[/] {folder}/: {', '.join(FILES)}", highlight=False)
    out.print(f"  cd {folder} && edgeflow dev", markup=False)


def write(folder: Path, name: str) -> None:
    """The files of a new function. Raises BadRequest when something is there already, or for a name that cannot be one."""
    text = MANIFEST.format(name=name)
    try:
        manifests.parse(text, default_pop="dev")
    except BadManifest:
        raise BadRequest(
            f"{name!r} cannot be the name of a function and of a namespace",
            hint="Use small letters, digits and hyphens, beginning with a letter: edgeflow new hello",
        ) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadRequest(f"{folder} is there already, and not empty", hint="Choose another name, or an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in FILES.items():
        (folder / file).write_text(content.format(name=name) if file in _FILLED else content)
