"""`edgeflow images`: container images that every PoP of the cluster can run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeflow.cli.console import say
from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, confirm, print_json, show, size_text
from edgeflow.errors import BadManifest, BadRequest, NotFound

app = typer.Typer(help="Container images that every PoP can run.", no_args_is_help=True)

STEP_BYTES = 1024 * 1024
LOAD_S = 3600.0
"""Longest a PoP may take to store or load an image."""

ImageArgument = Annotated[str, typer.Argument(help="Its name, or the beginning of its id", metavar="IMAGE")]


@app.command("push")
def push(
    source: Annotated[
        str,
        typer.Argument(
            help="File that `docker save` wrote, or an image of this machine's engine", metavar="ARCHIVE|NAME"
        ),
    ],
    name: Annotated[
        list[str] | None, typer.Option("--name", "-t", help="A name for it, as in vision/augment:3; may be repeated.")
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Push an image to one PoP. The others fetch the layers that they lack when a function needs it."""
    archive = Path(source)
    chunks: Callable[[], Iterator[bytes]]
    if archive.is_file():
        chunks, size = (lambda: _read(archive)), archive.stat().st_size
    else:
        chunks, size = saved(source), None
    with client_of(pop, timeout_s=LOAD_S) as client:
        image = client.push_image(chunks, name or [], size)
    if output is Output.JSON:
        print_json(image)
        return
    print(
        f"{', '.join(image['names']) or 'image'}: {_short(image)} ({size_text(image['size'])}, {image['layers']} layers) at {image['pop']}"
    )
    if image["note"]:
        say(image["note"])


@app.command("list")
def list_images(pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the images of the cluster, and how much of each is at the PoP."""
    with client_of(pop) as client:
        items = client.images()
    columns: dict[str, Callable[[Any], object]] = {
        "NAME": lambda item: ", ".join(item["names"]),
        "ID": _short,
        "SIZE": lambda item: size_text(item["size"]),
        "STORED": lambda item: size_text(item["stored"]),
        "HERE": lambda item: "all" if item["here"] == item["stored"] else size_text(item["here"]),
        "ENGINE": lambda item: {True: "loaded", False: "not loaded", None: "none"}[item["loaded"]],
        "PUSHED": lambda item: (
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(item['pushed_ms'] / 1000))} at {item['pop']}"
        ),
        "USED BY": lambda item: ", ".join(item["used_by"]),
    }
    show(output, items, columns, empty="no image was pushed; images that an engine has already need not be")


@app.command("load")
def load(image: ImageArgument, pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Have an image at a PoP before a function needs it there."""
    with client_of(pop, timeout_s=LOAD_S) as client:
        found = client.load_image(_id_of(client.images(), image))
    if output is Output.JSON:
        print_json(found)
        return
    print(
        f"{_short(found)}: {size_text(found['here'])} here, {'on the engine' if found['loaded'] else 'not on an engine'}"
    )
    if found["note"]:
        say(found["note"])


@app.command("rm")
def remove(
    image: ImageArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    pop: PopOption = None,
) -> None:
    """Remove an image from the cluster. One that a function is made from is kept."""
    with client_of(pop) as client:
        id = _id_of(client.images(), image)
        confirm(f"Remove image {image} ({id[7:19]}) from the cluster?", yes=yes)
        client.remove_image(id)


def build_folder(
    folder: Path, tag: str | None, progress: Callable[[str], None], *, push: bool, pop: str | None
) -> dict[str, Any]:
    """The image of a function's folder: {image, id, names, pushed}. Raises BuildFailed, BadManifest, EngineUnavailable."""
    from edgeflow.runner import bundles, images
    from edgeflow.runner.archives import short_name

    name = None if tag is None else short_name(tag)
    wrong = bundles.look(folder, needs_handler=True)
    if wrong is not None:
        raise BadManifest(wrong)
    engine = images.engine()
    built = images.build_image(engine, folder, folder.resolve().name, progress=progress)
    if name is not None:
        engine.images.get(built).tag(name)
    id = images.find_image(engine, built)
    pushed = None
    if push:
        progress(f"pushing {name or built}")
        with client_of(pop, timeout_s=LOAD_S) as client:
            pushed = client.push_image(saved(built), [name] if name else [], None)["pop"]
    return {"image": name or built, "id": id, "names": [built, *([name] if name else [])], "pushed": pushed}


def _read(archive: Path) -> Iterator[bytes]:
    with archive.open("rb") as file:
        while chunk := file.read(STEP_BYTES):
            yield chunk


def saved(name: str) -> Callable[[], Iterator[bytes]]:
    """The archive of an image of this machine's engine, from its beginning each time. Raises NotFound."""
    from edgeflow.runner import images

    engine = images.engine()
    if images.find_image(engine, name) is None:
        raise NotFound(
            f"{name!r} is neither a file nor an image of this machine's engine",
            hint="Name the file that `docker save` wrote, or build the image first (`edgeflow build`).",
        )
    return lambda: iter(engine.images.get(name).save(chunk_size=STEP_BYTES, named=True))


def _id_of(items: list[dict[str, Any]], text: str) -> str:
    """The id of the one image that is called `text`. Raises NotFound, BadRequest."""
    names = {text, f"{text}:latest"}
    found = [item["id"] for item in items if names & set(item["names"])]
    if not found and len(text.removeprefix("sha256:")) >= 4:
        found = [
            item["id"] for item in items if item["id"].removeprefix("sha256:").startswith(text.removeprefix("sha256:"))
        ]
    if not found:
        raise NotFound(f"there is no image {text!r}", hint="`edgeflow images list` shows what is there.")
    if len(found) > 1:
        raise BadRequest(f"{text!r} is the beginning of {len(found)} ids", hint="Write more of it.")
    return str(found[0])


def _short(item: dict[str, Any]) -> str:
    return str(item["id"])[7:19]
