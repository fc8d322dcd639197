"""The decorator and the loader."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeflow.errors import BadHandler
from edgeflow.sdk.function import check_signature, function, load_handler


def write(folder: Path, source: str) -> Path:
    (folder / "handler.py").write_text(source)
    return folder


def test_the_decorator_returns_the_function_itself() -> None:
    def handle(ctx: Any, frames: Any) -> int:
        return 5

    assert function(handle) is handle
    assert handle(None, None) == 5


def test_async_functions_are_refused_by_name() -> None:
    async def detect(ctx: Any, frames: Any) -> None: ...

    async def stream(ctx: Any, frames: Any) -> Any:
        yield 1

    for handle in (detect, stream):
        with pytest.raises(BadHandler, match=rf"{handle.__name__}' is async") as raised:
            function(handle)
        assert "scale" in raised.value.hint


def test_generators_and_other_things_are_refused() -> None:
    def frames(ctx: Any) -> Any:
        yield 1

    with pytest.raises(BadHandler, match="'frames' yields") as raised:
        function(frames)
    assert "ctx.emit" in raised.value.hint
    with pytest.raises(BadHandler, match="on a type"):
        function(dict)


def test_loading_finds_the_one_handler_and_its_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine_only.py").write_text("FACTOR = 3\n")
    source = "from edgeflow import function\nimport mine_only\n@function\ndef handle(ctx, frames): return mine_only.FACTOR\nalias = handle\n"
    handle = load_handler(write(tmp_path, source))
    assert handle(None, None) == 3
    assert inspect.getfile(handle) == str(tmp_path / "handler.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def handle(ctx): ...\n", "marks no function"),
        (
            "from edgeflow import function\n@function\ndef a(ctx): ...\n@function\ndef b(ctx): ...\n",
            r"marks 2 functions with @function: a \(line 2\), b \(line 4\)",
        ),
        ("raise RuntimeError('model is missing')\n", "cannot be imported: RuntimeError: model is missing"),
        ("import sys; sys.exit(4)\n", "cannot be imported: SystemExit: 4"),
        ("import not_there_at_all\n", "No module named 'not_there_at_all'"),
        ("def handle(:\n", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_with_its_path(
    tmp_path: Path, source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BadHandler, match=message) as raised:
        load_handler(write(tmp_path, source))
    assert str(tmp_path / "handler.py") in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadHandler, match=r"no handler\.py"):
        load_handler(tmp_path)


def good1(ctx: Any, frames: Any, faces: Any) -> None: ...
def good2(context: Any, *, faces: Any, frames: Any, extra: int = 1) -> None: ...
def good3(ctx: Any, **inputs: Any) -> None: ...


@pytest.mark.parametrize("handle", [good1, good2, good3])
def test_signatures_match_by_name_in_any_order(handle: Callable[..., Any]) -> None:
    check_signature(handle, ["frames", "faces"])
    check_signature(handle, ["frames", "faces", "faces"])


def bad1(ctx: Any, frames: Any) -> None: ...
def bad2(ctx: Any, frames: Any, faces: Any, matches: Any) -> None: ...
def bad3(frames: Any, faces: Any) -> None: ...
def bad4() -> None: ...
def bad5(ctx: Any, pictures: Any, faces: Any) -> None: ...
def bad6(ctx: Any, frames: Any, faces: Any, /) -> None: ...


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (bad1, "has no parameter for input 'faces'"),
        (bad2, "takes 'matches', which is no input"),
        (bad3, "takes 'frames' where ctx belongs"),
        (bad4, "takes no ctx"),
        (bad5, "has no parameter for input 'frames' and takes 'pictures'"),
        (bad6, "has no parameter for inputs 'frames', 'faces'"),
    ],
)
def test_another_signature_is_refused_with_the_line_to_write(handle: Callable[..., Any], message: str) -> None:
    with pytest.raises(BadHandler, match=message) as raised:
        check_signature(handle, ["frames", "faces"])
    assert f"def {handle.__name__}(ctx, frames, faces):" in raised.value.hint
    assert f"line {handle.__code__.co_firstlineno}" in str(raised.value)


def test_a_function_needs_nothing_of_the_agent() -> None:
    """A function's virtual environment holds msgpack and this package, nothing else."""
    code = (
        "import sys\n"
        "import edgeflow.sdk.runtime, edgeflow.sdk.testing\n"
        "from edgeflow import function\n"
        "heavy = {'redis', 'paho', 'docker', 'fastapi', 'pydantic', 'structlog', 'httpx', 'yaml', 'typer', 'asyncio', 'numpy', 'ssl', 'jmespath'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
