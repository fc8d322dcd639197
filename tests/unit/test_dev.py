"""The parts of the local loop: what `new` writes, how a folder is watched, what is shown of code that cannot be loaded, and what is saved of a failure."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeflow.cli import invoke, loglines, new
from edgeflow.cli.main import app
from edgeflow.core import gathered, manifest
from edgeflow.core.events import make_event
from edgeflow.errors import BadHandler, BadRequest
from edgeflow.runner import bundles
from edgeflow.sdk.context import FunctionInfo
from edgeflow.sdk.failures import KEPT, MAX_BYTES, Failures
from edgeflow.sdk.function import load_handler
from edgeflow.sdk.live import described
from edgeflow.sdk.log import Log
from edgeflow.sdk.printed import Printed
from edgeflow.sdk.watching import Folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    new.write(tmp_path / "hello", "hello")
    return tmp_path / "hello"


def test_new_writes_a_manifest_that_is_valid_and_a_test_that_passes(project: Path) -> None:
    parsed = manifest.parse(
        (project / "edgeflow.yaml").read_text(),
        default_pop="dev",
        look=lambda build, handler: bundles.look(project / build, handler),
    )
    assert list(parsed.functions) == ["hello"]
    load_handler(project)
    namespace: dict[str, Any] = {}
    exec((project / "test_handler.py").read_text(), namespace)
    namespace["test_shouts"]()
    assert {one.name for one in project.iterdir()} == set(new.FILES)


def test_new_changes_nothing_that_is_there_and_refuses_names_that_cannot_be(project: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="not empty"):
        new.write(project, "hello")
    for name in ("Hello", "a b", "a.b", "x" * 200, "system"):
        with pytest.raises(BadRequest, match="cannot be the name"):
            new.write(tmp_path / "other", name)
    assert not (tmp_path / "other").exists()
    result = CliRunner().invoke(app, ["new", "hello", "--contract", "carrier-pigeon"])
    assert result.exit_code == 2


def test_what_dev_keeps_beside_the_code_is_not_part_of_the_function(project: Path) -> None:
    before = bundles.pack(project)
    (project / ".edgeflow" / "failed").mkdir(parents=True)
    (project / ".edgeflow" / "failed" / "x.json").write_text("{}")
    assert bundles.pack(project) == before


def test_a_change_is_told_once_and_when_it_has_come_to_rest(project: Path) -> None:
    folder = Folder(project)
    assert folder.changed() == []
    (project / "handler.py").write_text("x = 1\n")
    (project / "data").mkdir()
    (project / "data" / "words.txt").write_text("a")
    assert folder.changed() == []  # seen, perhaps still being written
    (project / "data" / "words.txt").write_text("ab")
    assert folder.changed() == []
    assert folder.changed() == ["data/words.txt", "handler.py"]
    assert folder.changed() == []
    (project / "handler.py").unlink()
    assert [folder.changed(), folder.changed()] == [[], ["handler.py"]]


def test_what_is_not_code_is_not_watched(project: Path) -> None:
    folder = Folder(project)
    for name in (".edgeflow/dev/log", "__pycache__/handler.pyc", ".handler.py.swp", "handler.py~", ".git/index"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    assert [folder.changed(), folder.changed()] == [[], []]


def test_a_file_that_takes_the_place_of_another_is_a_change_although_time_and_size_are_the_same(project: Path) -> None:
    folder, file = Folder(project), project / "handler.py"
    times = file.stat()
    fresh = project / "fresh.tmp"
    fresh.write_text(file.read_text().replace("upper", "lower"))
    os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))
    fresh.replace(file)
    assert [folder.changed(), folder.changed()] == [[], ["handler.py"]]


@pytest.mark.parametrize(
    ("code", "error", "line", "shown"),
    [
        ("from edgeflow import function\n\n@function\ndef handle(ctx, a:\n    pass\n", "SyntaxError: ", 4, "def handle(ctx, a:"),
        ("import json\njson.loads('{')\n", "JSONDecodeError: ", 2, "json.loads('{')"),
        ("import no_such_package\n", "ModuleNotFoundError: ", 1, "import no_such_package"),
        ("x = 1\n", "marks no function", None, ""),
    ],
)  # fmt: skip
def test_code_that_cannot_be_loaded_is_shown_with_its_line(
    project: Path, code: str, error: str, line: int | None, shown: str
) -> None:
    (project / "handler.py").write_text(code)
    with pytest.raises(BadHandler) as caught:
        load_handler(project)
    told = described(caught.value, project)
    assert error in told["error"] and told["line"] == line and shown in told["shown"]
    assert told["file"] == (None if line is None else str(project / "handler.py"))
    assert "importlib" not in told["shown"] and "edgeflow/sdk" not in told["shown"]


def test_printed_lines_carry_the_fields_of_the_invocation_that_runs() -> None:
    lines = io.StringIO()
    log = Log({"invocation": "i1"}, lines)
    under = io.TextIOWrapper(io.BytesIO())
    printed = Printed(lambda: log, under)
    printed.buffer.write(b"bytes")
    print("one", file=printed)
    print("two, ", end="", file=printed)
    log = Log({"invocation": "i2"}, lines)
    print("three\n\nfour", file=printed, end="")
    printed.end_line()
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(one["text"], one["invocation"]) for one in told] == [("one", "i1"), ("two, three", "i2"), ("four", "i2")]
    assert under.buffer is printed.buffer


INFO = FunctionInfo(namespace="hall", function="pair")


def failed(folder: Path, data: bytes, *, invocation: str = "abc") -> list[dict[str, Any]]:
    """The log of a failed attempt whose one input has `data`."""
    event = make_event("hall/left", data, id="i", source="s", now_ms=1, datacontenttype="text/plain").at(
        "la", 1, 1, 0, 0
    )
    message = {"t": "fail", "invocation": invocation, "attempt": 1, "error": "ValueError: x", "traceback": "at line 1"}
    lines = io.StringIO()
    items = [{"name": "left", "event": event.encode_positioned()}]
    Failures(folder).ended(INFO, Log({}, lines), items, message, 0.01, None)  # type: ignore[arg-type]
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_failure_is_saved_in_the_form_that_invoke_takes(tmp_path: Path) -> None:
    (line,) = failed(tmp_path / "failed", b"bad")
    body, headers = invoke._structured(Path(line["file"]).read_bytes(), "new-id")
    assert headers == {"content-type": gathered.BATCH, "ce-id": "new-id"}
    ((name, event),) = gathered.unpack(body, namespace="hall", source="s", now_ms=1)
    assert (name, event.data, event.channel, event.origin) == ("left", b"bad", "hall/left", "")


def test_failures_are_bounded_and_one_that_is_too_large_is_named(tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        failed(tmp_path, b"x", invocation=f"{number:012}")
    assert len(list(tmp_path.iterdir())) == KEPT
    (line,) = failed(tmp_path, b"x" * (MAX_BYTES + 1), invocation="large")
    assert line["event"] == "failure_not_saved" and str(MAX_BYTES) in line["reason"]


def test_a_file_that_is_no_saved_failure_is_refused() -> None:
    with pytest.raises(BadRequest, match="which `input`"):
        invoke._structured(b'{"inputs": [{"data": 1}]}', "i")


def test_log_lines_are_shown_with_function_and_invocation_and_never_as_markup() -> None:
    record = {"event": "seen", "level": "info", "timestamp": "2026-01-01T10:00:00.123Z", "function": "f", "invocation": "0123456789", "n": 1, "traceback": "a\nb"}  # fmt: skip
    shown = loglines.render(loglines.read(json.dumps(record)), "f").plain
    assert "f 01234567 seen n=1\n    a\n    b" in shown and ".123 " in shown
    assert loglines.render(loglines.read("[red]plain[/red]"), "f").plain.endswith("[red]plain[/red]")
    assert loglines.read("[1, 2]")["text"] == "[1, 2]"


def test_new_lines_are_those_that_are_complete(tmp_path: Path) -> None:
    file, late = tmp_path / "a.log", tmp_path / "b.log"
    file.write_text("old\n")
    follower = loglines.Follower()
    follower.skip([file])
    with file.open("a") as log:
        log.write("new\nhal")
        log.flush()
        assert [line for _, line in follower.lines([file])] == ["new"]
        log.write("f\n")
    late.write_text("late\n")
    assert list(follower.lines([file, late])) == [(file, "half"), (late, "late")]
    file.write_text("cut\n")
    assert [line for _, line in follower.lines([file, late])] == ["cut"]
